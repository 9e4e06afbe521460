"""Labels of files: integers as they are, large ones and texts numbered, missing ones refused by their row."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

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
    "texts": (
        ["dog", "ant", "dog"],
        [1, 0, 1],
        ["ant", "dog"],
        True,
        "classes in alphabetical order: ant, dog are the labels 0 to 1",
    ),
    "one text": (["dog"], [0], ["dog"], True, ""),
    "texts of any alphabet": (
        ["猫", "Ä", "a b"], [2, 1, 0], ["a b", "Ä", "猫"], True, "order: a b, Ä, 猫 are the labels 0 to 2"
    ),
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


# Labels of the split that is read and of others; what comes of it, or what is said.
SPLITS: dict[str, tuple[list[Any], list[Any], list[int] | str, list[str]]] = {
    "as many texts": (["bee", "cat"], ["ant", "bee"], [1, 2], ["ant", "bee", "cat"]),
    "the same texts": (["b", "a"], ["a", "b"], [1, 0], ["a", "b"]),
    "numbers as texts": (["10", "2"], ["9"], [2, 0], ["2", "9", "10"]),
    "ids": ([10**9, 10**8], [5 * 10**8], [2, 0], ["100000000", "500000000", "1000000000"]),
    "ids of the other split only": ([1, 3], [1, 10**9], [0, 1], ["1", "3", "1000000000"]),
    "integers": ([0, 1], [0, 1, 2], [0, 1], ["0", "1", "2"]),
    "no labels beside texts": (["b", "a"], ["", " "], [1, 0], ["a", "b"]),
    "no labels beside integers": ([1, 0], [-1, -1], [1, 0], ["0", "1"]),
    "fractions beside integers": ([1, 0], [0.5, 0.5], [1, 0], ["0", "1"]),
    "texts and integers": (
        ["a", "b"], [0, 1], "labels of {} are texts, those of another split integers; expected one kind", []
    ),
    "integers and texts": (
        [0, 1], ["a", "b"], "labels of {} are integers, those of another split texts; expected one kind", []
    ),
}  # fmt: skip


# The library that reads tables gives all splits one kind before.
OF_ARCHIVES = ("fractions beside integers", "texts and integers", "integers and texts")


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        (kind, name)
        for kind in ("npz", "parquet")
        for name in SPLITS
        if kind == "npz" or name not in OF_ARCHIVES
    ],
)
def test_a_label_means_the_same_in_each_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, case: str
) -> None:
    values, others, expected, names = SPLITS[case]
    if kind == "npz":
        splits = {"test": values, "train": others}
        arrays: dict[str, Any] = {f"y_{name}": np.array(one) for name, one in splits.items()}
        arrays |= {f"x_{name}": np.zeros((len(one), 2, 2), np.uint8) for name, one in splits.items()}
        np.savez(tmp_path / "d.npz", **arrays)
        source, told = tmp_path / "d.npz", str(tmp_path / "d.npz")
    else:
        pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        picture = io.BytesIO()
        Image.new("L", (2, 2)).save(picture, format="png")
        (tmp_path / "d").mkdir()
        for name, one in (("test", values), ("train", others)):
            rows = [{"bytes": picture.getvalue(), "path": None}] * len(one)
            pandas.DataFrame({"image": rows, "label": one}).to_parquet(tmp_path / "d" / f"{name}.parquet")
        source, told = tmp_path / "d", "d"
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=re.escape(f"data: {expected.format(told)}")):
            dp.load_data(str(source))
        return
    data = dp.load_data(str(source))
    assert (data.labels.tolist(), list(data.class_names)) == (expected, names)
    absent = [name for label, name in enumerate(names) if label not in expected]
    assert (f"no image of {', '.join(absent)}" in data.layout) == (bool(absent) and data.classes_named)


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
        (
            column([0, "a", 1.5]),
            None,
            "labels of few: expected integers or texts, one an image, got float, int, str",
        ),
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
