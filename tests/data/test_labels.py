"""Labels of files: integers as they are, large ones and texts numbered, missing ones refused by their row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import diffproof as dp
from diffproof.data.labels import classes_of

TAKEN: dict[str, tuple[Any, list[int], list[str], bool, str]] = {
    "in order": ([0, 1, 2], [0, 1, 2], ["0", "1", "2"], False, ""),
    "of 8 bits": (np.array([1, 0, 1], np.uint8), [1, 0, 1], ["0", "1"], False, ""),
    "of 64 bits without sign": (np.array([1, 0, 1], np.uint64), [1, 0, 1], ["0", "1"], False, ""),
    "with a gap": (
        [3, 0, 1],
        [3, 0, 1],
        ["0", "1", "2", "3"],
        False,
        "labels are numbers up to 3, 3 different ones, taken as they are",
    ),
    # A few rows of ImageNet have few of its labels, and these mean what they mean.
    "of many classes": (
        [7, 400, 999],
        [7, 400, 999],
        [str(label) for label in range(1000)],
        False,
        "labels are numbers up to 999, 3 different ones, taken as they are",
    ),
    "the largest that is taken": (
        [0, 65_535], [0, 65_535], [str(label) for label in range(65_536)], False, "up to 65535"
    ),
    "ids": (
        [300_000_007, 300_000_001, 300_000_007],
        [1, 0, 1],
        ["300000001", "300000007"],
        True,
        "labels are large numbers: 300000001, 300000007 are taken as 0 to 1",
    ),
    "the smallest id": ([0, 65_536], [0, 1], ["0", "65536"], True, "0, 65536 are taken as 0 to 1"),
    "a thousand million": ([10**9, 5], [1, 0], ["5", "1000000000"], True, "5, 1000000000 are taken as 0"),
    "beyond 63 bits": (
        np.array([2**64 - 1, 2, 2**63], np.uint64),
        [2, 0, 1],
        ["2", "9223372036854775808", "18446744073709551615"],
        True,
        "are taken as 0 to 2",
    ),
    "texts": (["dog", "ant", "dog"], [1, 0, 1], ["ant", "dog"], True, ""),
    "texts of any alphabet": (["猫", "Ä", "a b"], [2, 1, 0], ["a b", "Ä", "猫"], True, ""),
    "numbers as texts": (
        ["10", "2", "0"],
        [2, 1, 0],
        ["0", "2", "10"],
        True,
        "classes in numeric order: 0, 2, 10 are the labels 0 to 2",
    ),
    "decimals as texts": (
        ["10.0", "2.0", "0.0"],
        [2, 1, 0],
        ["0.0", "2.0", "10.0"],
        True,
        "classes in numeric order: 0.0, 2.0, 10.0 are the labels 0 to 2",
    ),
    "one column": (np.array([[1], [0]]), [1, 0], ["0", "1"], False, ""),
}  # fmt: skip


@pytest.mark.parametrize(("values", "labels", "names", "named", "said"), TAKEN.values(), ids=TAKEN)
def test_labels_of_an_archive(
    tmp_path: Path, values: Any, labels: list[int], names: list[str], named: bool, said: str
) -> None:
    images = np.zeros((len(labels), 2, 2), np.uint8)
    np.savez(tmp_path / "few.npz", images=images, labels=np.array(values))
    data = dp.load_data(str(tmp_path / "few.npz"))
    assert (data.labels.tolist(), list(data.class_names), data.classes_named) == (labels, names, named)
    assert said in data.layout
    assert bool(said) == bool(data.layout)


REFUSED: dict[str, tuple[Any, str]] = {
    "none": ([0, -1, 1], "row 1 of {} has the label -1, expected ≥ 0 (a split without labels?)"),
    "several": ([0, -1, -1], "row 1 of {} has the label -1, expected ≥ 0 (a split without labels?); 2 rows"),
    "of 64 bits": ([-(2**63), 0], "row 0 of {} has the label -9223372036854775808, expected ≥ 0"),
    "numbers below 0 as texts": (["0", "-1"], "{} has the class -1, expected numbers ≥ 0 or names"),
    "decimals below 0 as texts": (["0.0", "-1.0"], "{} has the class -1.0, expected numbers ≥ 0 or names"),
    "spaces": (["a", "a ", "b"], "{} has the classes 'a' and 'a ', which differ in spaces only"),
    "fractions": ([0.5, 1.0], "labels of {}: expected integers or texts, one an image, got float64 (2)"),
    "no number": ([0.0, np.nan], "row 1 of {} has no label"),
    "no text": (["a", " ", ""], "row 1 of {} has no label (a split without labels?); 2 rows are so"),
    "truth": ([True, False], "labels of {}: expected integers or texts, one an image, got bool (2)"),
    "complex": ([1j, 0], "labels of {}: expected integers or texts, one an image, got complex128 (2)"),
    "one-hot": (np.eye(2, dtype=int), "labels of {}: expected integers or texts, one an image, got int64"),
    "bytes": ([b"a", b"b"], "labels of {}: expected integers or texts, one an image, got |S1 (2)"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_labels_of_an_archive(tmp_path: Path, values: Any, message: str) -> None:
    path = tmp_path / "few.npz"
    np.savez(path, images=np.zeros((len(values), 2, 2), np.uint8), labels=np.array(values))
    with pytest.raises(ValueError, match=re.escape(f"data: {message.format(path)}")) as caught:
        dp.load_data(str(path))
    assert len(str(caught.value).splitlines()) == 1


def column(values: list[Any]) -> np.ndarray:
    """Values as pyarrow hands over those of a column that is not all numbers."""
    filled = np.empty(len(values), dtype=object)
    filled[:] = values
    return filled


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        (column([0, None]), None, "row 1 of few has no label (a split without labels?)"),
        (
            column(["a", None, None]),
            None,
            "row 1 of few has no label (a split without labels?); 2 rows are so",
        ),
        (np.array([0.0, np.nan]), ["ant", "bee"], "row 1 of few has no label (a split without labels?)"),
        (np.array([0, -1]), ["ant", "bee"], "row 1 of few has the label -1, expected 0 to 1"),
        (np.array([0, 2]), ["ant", "bee"], "row 1 of few has the label 2, expected 0 to 1"),
        (np.array([300_000_000, 0]), ["ant", "bee"], "row 0 of few has the label 300000000, expected 0 to 1"),
        (column([0, "a", 1.5]), None, "labels of few: expected integers or texts, one an image, got object"),
        (
            column([np.arange(2), np.arange(3)]),
            None,
            "labels of few: expected integers or texts, one an image",
        ),
    ],
)
def test_refused_labels_of_a_column(values: np.ndarray, names: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"data: {message}")):
        classes_of(values, "few", names)
