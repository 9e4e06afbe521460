"""NumPy archives of images and labels."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from diffproof.data.images import ImageData
from diffproof.data.labels import classes_of
from diffproof.data.splits import choose_split
from diffproof.errors import ArgumentError
from diffproof.files import check_archive, check_array
from diffproof.formats import in_place_of_file
from diffproof.wording import shortened

# Names under which archives keep images and labels; {} stands for the split.
_NAMES_BY_SPLIT = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))
_NAMES = (("images", "labels"), ("x", "y"), ("image", "label"))
# Bytes that show what lies in place of an archive.
_HEAD = 4096
# The split of arrays that name none.
_ALL = "all"


def load_npz(path: Path, split: str | None, default: str) -> ImageData:
    """An .npz file with images and labels, read as data (an archive with pickled objects is refused).

    Args:
        path: the file. Arrays are named images and labels, image and label, x and y, or with the
            split: x_test and y_test, test_images and test_labels. Images are N×H×W, N×H×W×C or
            N×C×H×W, uint8 or floats in [0, 1]; labels N integers or texts.
        split: which of the splits, "all" for arrays that name none; None for `default`, the only one there
            is, or arrays that name none.
        default: see `default_split` of load_data.

    Raises:
        ValueError: unreadable, no such arrays, or arrays of another form.
    """
    check_archive("data", path)
    # NumPy leaves a damaged file open that it opened itself.
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            found = in_place_of_file(file.read(_HEAD))
            raise ArgumentError("data", f"{path} is {found or 'no .npz archive'}")
        file.seek(0)
        with _damage_told(path):
            archive = np.load(file, allow_pickle=False)
        arrays = _find(path, archive.files, split, default)
        with _damage_told(path):
            for name in (arrays.images, arrays.labels, *arrays.others):
                entry = zipfile.ZipFile(file).getinfo(f"{name}.npy")
                with zipfile.ZipFile(file).open(entry) as member:
                    check_array(member, entry.file_size)
            images, labels, *others = (
                archive[name] for name in (arrays.images, arrays.labels, *arrays.others)
            )
    pixels = _pixels(path, images)
    classes = classes_of(_column(labels), str(path), others=map(_column, others))
    unread = f"arrays that are not read: {shortened(arrays.unread)}" if arrays.unread else ""
    notes = "; ".join(filter(None, [classes.note, unread]))
    layout = f"{path.name}: {notes}" if notes else ""
    return ImageData(
        path.name,
        arrays.split,
        pixels,
        classes.labels,
        classes.names,
        classes_named=classes.named,
        layout=layout,
    )


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive ends in almost any exception
        raise ArgumentError("data", f"cannot read {path}: {' '.join(str(error).split())[:200]}") from None


def _column(labels: np.ndarray) -> np.ndarray:
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


class _Arrays(NamedTuple):
    """The names of the arrays of images and labels, their split, other splits' labels, and the rest."""

    images: str
    labels: str
    split: str
    others: tuple[str, ...]
    unread: tuple[str, ...]


def _find(path: Path, names: list[str], split: str | None, default: str) -> _Arrays:
    """The arrays of a split; "" stands for the one of arrays that name none."""
    found: dict[str, list[tuple[str, str]]] = {}
    for images, labels in (*_NAMES_BY_SPLIT, *_NAMES):
        for name in names:
            match = re.fullmatch(images.format("(.+)"), name)
            if match is not None:
                one = match[1] if match.groups() else ""
                found.setdefault(one, []).append((name, labels.format(one)))
    pairs = {one: [pair for pair in given if pair[1] in names] for one, given in found.items()}
    splits = {one: given[0] for one, given in pairs.items() if given}
    twice = next((given for given in pairs.values() if len(given) > 1), [])
    if twice or ("" in splits and len(splits) > 1):
        first, other = (twice or [splits[""], *(pair for one, pair in splits.items() if one)])[:2]
        raise ArgumentError(
            "data", f"{path}: expected one set of arrays a split, got {first[0]} and {other[0]}"
        )
    lone = found.get(split or default, [])
    if lone and (split or default) not in splits:
        raise ArgumentError(
            "data", f"{path} has the images {lone[0][0]} without labels, expected {lone[0][1]}"
        )
    if not splits:
        got = ", ".join(names)
        raise ArgumentError(
            "data", f"{path}: expected arrays images and labels (or x_test and y_test), got {got}"
        )
    if [*splits] == [""] and split not in (None, _ALL):
        told = f"expected none or {_ALL!r}, as {path} has one set of images without a name, got {split!r}"
        raise ArgumentError("split", told)
    wanted = "" if [*splits] == [""] else choose_split(splits, split, default, path)
    others = tuple(labels for other, (_, labels) in splits.items() if other != wanted)
    unread = tuple(name for name in names if not any(name in pair for pair in splits.values()))
    return _Arrays(*splits[wanted], wanted or _ALL, others, unread)


def _pixels(path: Path, images: np.ndarray) -> torch.Tensor:
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ArgumentError(
            "data", f"images in {path}: expected N×H×W, N×H×W×C or N×C×H×W, got {images.shape}"
        )
    # Of nothing but black, no unit is told.
    if images.dtype == np.uint8 and images.size and images.max() == 1:
        raise ArgumentError(
            "data",
            f"images in {path}: expected 8 bits, 0 to 255, got 0 and 1 only; in [0, 1] floats are taken",
        )
    if images.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(images))
    if not np.issubdtype(images.dtype, np.floating):
        raise ArgumentError(
            "data", f"images in {path}: expected uint8 or floats in [0, 1], got {images.dtype}"
        )
    if images.size and not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
        got = f"{images.min():g} to {images.max():g}"
        raise ArgumentError("data", f"images in {path}: expected finite pixels in [0, 1], got {got}")
    if images.size and 0 < images.max() < 1.5 / 255:
        raise ArgumentError(
            "data",
            f"images in {path}: expected pixels up to 1, got {images.max():.3g} at most (divided twice?)",
        )
    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
