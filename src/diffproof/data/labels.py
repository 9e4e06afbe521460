"""Labels and class names: integers or texts of files, names of folders."""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffproof.errors import ArgumentError, printable
from diffproof.wording import counted, shortened

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?", re.ASCII)
# No network has as many classes. Larger integers are ids; names for all numbers up to them would fill memory.
_MOST_CLASSES = 65_536
# Characters of a name in a list of them.
_LONGEST_NAME = 40


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
    """Class names by label, and a note on which is which; "" for numbers that are their labels.

    Args:
        names: different names; where all are numbers, their order is that of the numbers.
        source: whose names they are, for messages.

    Raises:
        ValueError: numbers of which one is negative or two are equal, or names that differ in spaces around
            them only.
    """
    alphabetical = tuple(sorted(names))
    bare = Counter(name.strip() for name in alphabetical)
    if bare.total() > len(bare):
        alike = [name for name in alphabetical if bare[name.strip()] > 1]
        raise ArgumentError(
            "data", f"{source} has the classes {alike[0]!r} and {alike[1]!r}, which differ in spaces only"
        )
    if not all(_NUMBER.fullmatch(name) for name in alphabetical):
        return alphabetical, _order("alphabetical", alphabetical)
    if any(name.startswith("-") for name in alphabetical):
        negative = next(name for name in alphabetical if name.startswith("-"))
        raise ArgumentError("data", f"{source} has the class {negative}, expected numbers ≥ 0 or names")
    # Exact for numbers of any size.
    numbers = tuple(sorted(alphabetical, key=lambda name: (Decimal(name), name)))
    for one, other in itertools.pairwise(numbers):
        if Decimal(one) == Decimal(other):
            raise ArgumentError(
                "data", f"{source} has the classes {one!r} and {other!r}, which are one number"
            )
    if numbers == alphabetical and [*map(Decimal, numbers)] == [*range(len(numbers))]:
        return numbers, ""
    return numbers, _order("numeric", numbers)


def plain_name(name: str) -> str:
    """A name without what does not tell it from others: case, underscores, hyphens, spaces, zeros."""
    plain = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()
    return str(int(plain)) if plain.isdecimal() else plain


def check_names_of_splits(splits: Sequence[Collection[str]], source: str) -> None:
    """Raise ValueError where splits write a class in two ways, which would be two classes."""
    written: dict[str, str] = {}
    for name in sorted({name for split in splits for name in split}):
        other = written.setdefault(plain_name(name), name)
        if other != name and not any(name in split and other in split for split in splits):
            raise ArgumentError(
                "data", f"splits of {source} call a class {other!r} and {name!r}; expected one name in all"
            )


def _order(kind: str, names: Sequence[str]) -> str:
    if len(names) == 1 and kind == "alphabetical":
        return ""
    listed = shortened(printable(name, _LONGEST_NAME) for name in names)
    labels = f"are the labels 0 to {len(names) - 1}" if len(names) > 1 else "is the label 0"
    return f"classes in {kind} order: {listed} {labels}"


def classes_of(
    values: np.ndarray,
    source: str,
    names: Sequence[str] | None = None,
    others: Iterable[np.ndarray] = (),
) -> Classes:
    """Labels from integers or texts, one an image.

    Integers are labels as they are, unless one is 65,536 or more: then the different ones are numbered in
    their order. Texts are numbered in alphabetical order, or in numeric order where all are numbers. What
    is numbered is all that there is in any split, so that a label means the same in each.

    Args:
        values: a column or an array; None and NaN stand for missing labels.
        source: the file's name, for messages.
        names: the names of the labels, where the file says that its labels are 0 to their number − 1.
        others: those of the other splits, which may have no labels.

    Raises:
        ValueError: a missing label, one that is out of range, values of another kind, or texts in one split
            and integers in another.
    """
    if values.ndim == 1:
        _refuse(_missing(values), source, lambda row: "has no label (a split without labels?)")
        values = _plain(values)
    if values.ndim != 1 or values.dtype.kind not in "iuU":
        shape = "×".join(map(str, values.shape))
        kinds = sorted({type(value).__name__ for value in values.ravel().tolist()})
        got = f"{shortened(kinds)} ({shape})" if values.dtype.kind == "O" else f"{values.dtype} ({shape})"
        raise ArgumentError(
            "data", f"labels of {source}: expected integers or texts, one an image, got {got}"
        )
    if values.dtype.kind != "U":
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
    every = _in_all_splits(values, others, source)
    return _from_texts(values, every, source) if values.dtype.kind == "U" else _from_integers(values, every)


def _missing(values: np.ndarray) -> np.ndarray:
    """Which values stand for no label: None, NaN and blanks."""
    if values.dtype.kind in "Of":
        every = values.ravel().tolist()
        none = [value is None or (isinstance(value, float) and math.isnan(value)) for value in every]
        blank = [isinstance(value, str) and not value.strip() for value in every]
        return np.array([*map(any, zip(none, blank, strict=True))], dtype=bool)
    if values.dtype.kind == "U":
        return np.asarray(np.char.strip(values) == "", dtype=bool)
    return np.zeros(len(values), dtype=bool)


def _plain(values: np.ndarray) -> np.ndarray:
    """Objects that are all integers, or all texts, as an array of these; texts that look alike become one."""
    every: list[Any] = values.ravel().tolist() if values.dtype.kind in "OfU" else []
    kinds = {type(value) for value in every}
    if kinds == {str}:
        return np.array([unicodedata.normalize("NFC", text) for text in every]).reshape(values.shape)
    return np.array(every) if kinds == {int} else values


def _in_all_splits(values: np.ndarray, others: Iterable[np.ndarray], source: str) -> np.ndarray:
    """The different labels of all splits, in their order."""
    parts = [values]
    for other in others:
        kept = _plain(other[~_missing(other)]) if other.ndim == 1 else other[:0]
        if kept.dtype.kind in "iu":
            kept = kept[kept >= 0]
        if not kept.size or kept.dtype.kind not in "iuU":
            continue
        if (kept.dtype.kind == "U") != (values.dtype.kind == "U"):
            kinds = ("texts", "integers") if values.dtype.kind == "U" else ("integers", "texts")
            raise ArgumentError(
                "data",
                f"labels of {source} are {kinds[0]}, those of another split {kinds[1]}; expected one kind",
            )
        parts.append(kept)
    # Of integers with and without a sign, NumPy would make floats.
    different = [np.unique(part) for part in parts]
    if values.dtype.kind == "U":
        check_names_of_splits([part.tolist() for part in different], source)
    else:
        different = [part.astype(np.uint64) for part in different]
    return np.asarray(np.unique(np.concatenate(different)))


def _from_texts(values: np.ndarray, every: np.ndarray, source: str) -> Classes:
    ordered, note = in_order(every.tolist(), source)
    place = {name: label for label, name in enumerate(ordered)}
    texts, codes = np.unique(values, return_inverse=True)
    label_of = np.array([place[text] for text in texts.tolist()], dtype=np.int64)
    return Classes(torch.from_numpy(label_of[codes]), ordered, True, _with_absent(note, every, texts))


def _from_integers(values: np.ndarray, every: np.ndarray) -> Classes:
    """From integers ≥ 0; `every` are the different ones of all splits."""
    different = np.unique(values)
    if every.size and int(every[-1]) >= _MOST_CLASSES:
        found = tuple(str(value) for value in every.tolist())
        note = f"labels are large numbers: {shortened(found)} are taken as 0 to {len(found) - 1}"
        codes = np.searchsorted(every, values.astype(np.uint64)).astype(np.int64)
        return Classes(torch.from_numpy(codes), found, True, _with_absent(note, every, different))
    count = int(every[-1]) + 1 if every.size else 0
    gaps = (
        f"labels are numbers up to {count - 1}, {counted(len(different), 'different one')}, taken as they are"
    )
    classes = [str(label) for label in range(count)]
    note = gaps if len(different) < count else ""
    return Classes(torch.from_numpy(values.astype(np.int64)), classes, False, note)


def _with_absent(note: str, every: np.ndarray, here: np.ndarray) -> str:
    """A note, and which classes of other splits have no image here."""
    absent = sorted({*map(str, every.tolist())} - {*map(str, here.tolist())})
    return f"{note}; no image of {shortened(absent)}" if absent else note


def _refuse(bad: np.ndarray, source: str, problem: Callable[[int], str]) -> None:
    """Raise ValueError of the first row that is bad."""
    if bad.any():
        row = int(np.argmax(bad))
        more = f"; {int(bad.sum()):,} rows are so" if bad.sum() > 1 else ""
        raise ArgumentError("data", f"row {row} of {source} {problem(row)}{more}")
