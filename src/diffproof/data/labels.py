"""Labels and class names: integers or texts of files, names of folders."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffproof.errors import ArgumentError
from diffproof.wording import shortened

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?", re.ASCII)
# No network has as many classes. Larger integers are ids; names for all numbers up to them would fill memory.
_MOST_CLASSES = 65_536


class Classes(NamedTuple):
    """Labels of a file.

    Attributes:
        labels: N int64.
        names: the name of each label.
        named: whether the file names its classes (see ImageData).
        note: what to know of them, "" for nothing.
    """

    labels: Tensor
    names: Sequence[str]
    named: bool
    note: str = ""


def in_order(names: Iterable[str], source: str) -> tuple[tuple[str, ...], str]:
    """Class names by label, and a note where these are numbers in another order or with gaps.

    Args:
        names: different names; where all are numbers, their order is that of the numbers.
        source: whose names they are, for messages.

    Raises:
        ValueError: a negative number among numbers, or names that differ in spaces around them only.
    """
    alphabetical = tuple(sorted(names))
    bare = Counter(name.strip() for name in alphabetical)
    if bare.total() > len(bare):
        alike = [name for name in alphabetical if bare[name.strip()] > 1]
        raise ArgumentError(
            "data", f"{source} has the classes {alike[0]!r} and {alike[1]!r}, which differ in spaces only"
        )
    if not all(_NUMBER.fullmatch(name) for name in alphabetical):
        return alphabetical, ""
    if any(name.startswith("-") for name in alphabetical):
        negative = next(name for name in alphabetical if name.startswith("-"))
        raise ArgumentError("data", f"{source} has the class {negative}, expected numbers ≥ 0 or names")
    # Exact for numbers of any size.
    numbers = tuple(sorted(alphabetical, key=lambda name: (Decimal(name), name)))
    if numbers == alphabetical and [*map(Decimal, numbers)] == [*range(len(numbers))]:
        return numbers, ""
    return numbers, f"classes in numeric order: {shortened(numbers)} are the labels 0 to {len(numbers) - 1}"


def classes_of(values: np.ndarray, source: str, names: Sequence[str] | None = None) -> Classes:
    """Labels from integers or texts, one an image.

    Integers are labels as they are, unless one is 65,536 or more: then the different ones are numbered in
    their order. Texts are numbered in alphabetical order, or in numeric order where all are numbers.

    Args:
        values: a column or an array; None and NaN stand for missing labels.
        source: the file's name, for messages.
        names: the names of the labels, where the file says that its labels are 0 to their number − 1.

    Raises:
        ValueError: a missing label, one that is out of range, or values of another kind.
    """
    if values.dtype.kind in "Of":
        every = values.ravel().tolist()
        none = [value is None or (isinstance(value, float) and math.isnan(value)) for value in every]
        _refuse(np.array(none, dtype=bool), source, lambda row: "has no label (a split without labels?)")
        if {type(value) for value in every} in ({int}, {str}):
            values = np.array(every)
    if values.ndim == 1 and values.dtype.kind in "iu":
        return _from_integers(values, source, names)
    if values.ndim == 1 and values.dtype.kind == "U":
        blank = np.char.strip(values) == ""
        _refuse(blank, source, lambda row: "has no label (a split without labels?)")
        texts, codes = np.unique(values, return_inverse=True)
        ordered, note = in_order(texts.tolist(), source)
        place = {name: label for label, name in enumerate(ordered)}
        label_of = np.array([place[text] for text in texts.tolist()], dtype=np.int64)
        return Classes(torch.from_numpy(label_of[codes]), ordered, True, note)
    shape = "×".join(map(str, values.shape))
    raise ArgumentError(
        "data", f"labels of {source}: expected integers or texts, one an image, got {values.dtype} ({shape})"
    )


def _from_integers(values: np.ndarray, source: str, names: Sequence[str] | None) -> Classes:
    last = len(names) - 1 if names is not None else None
    outside = values < 0 if last is None else (values < 0) | (values > last)
    wanted = "≥ 0" if last is None else f"0 to {last}"
    _refuse(
        outside,
        source,
        lambda row: f"has the label {values[row]}, expected {wanted} (a split without labels?)",
    )
    if names is not None:
        return Classes(torch.from_numpy(values.astype(np.int64)), names, True)
    different, codes = np.unique(values, return_inverse=True)
    if different.size and int(different[-1]) >= _MOST_CLASSES:
        found = tuple(str(value) for value in different.tolist())
        note = f"labels are large numbers: {shortened(found)} are taken as 0 to {len(found) - 1}"
        return Classes(torch.from_numpy(codes.astype(np.int64)), found, True, note)
    count = int(different[-1]) + 1 if different.size else 0
    gaps = f"labels are numbers up to {count - 1}, {len(different)} different ones, taken as they are"
    classes = [str(label) for label in range(count)]
    note = gaps if len(different) < count else ""
    return Classes(torch.from_numpy(values.astype(np.int64)), classes, False, note)


def _refuse(bad: np.ndarray, source: str, problem: Callable[[int], str]) -> None:
    """Raise ValueError of the first row that is bad."""
    if bad.any():
        row = int(np.argmax(bad))
        more = f"; {int(bad.sum()):,} rows are so" if bad.sum() > 1 else ""
        raise ArgumentError("data", f"row {row} of {source} {problem(row)}{more}")
