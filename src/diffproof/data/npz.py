"""NumPy archives of images and labels."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from diffproof.checks import unknown_name
from diffproof.data.images import ImageData

# Names under which archives keep images and labels; {} stands for the split.
_NAMES = (("x_{}", "y_{}"), ("{}_images", "{}_labels"), ("images", "labels"), ("x", "y"))


def load_npz(path: Path, split: str | None) -> ImageData:
    """An .npz file with images and labels, read as data (an archive with pickled objects is refused).

    Args:
        path: the file. Arrays are named images and labels, x and y, or with the split: x_test and y_test,
            test_images and test_labels. Images are N×H×W, N×H×W×C or N×C×H×W, uint8 or floats in [0, 1];
            labels N integers.
        split: which of the splits, None for "test" or for arrays that name none.

    Raises:
        ValueError: unreadable, no such arrays, or arrays of another form.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is no .npz archive")
            names = list(archive.files)
            found = _find(path, names, split)
            images, labels = archive[found[0]], archive[found[1]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"data: cannot read {path}: {error}") from None
    pixels = _pixels(path, images)
    labels = labels.squeeze()
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise ValueError(f"data: labels in {path}: expected N integers, got {labels.dtype} {labels.shape}")
    named_split = found[2] or "all"
    count = int(labels.max()) + 1 if len(labels) else 0
    classes = [str(label) for label in range(count)]
    return ImageData(
        path.name,
        named_split,
        pixels,
        torch.from_numpy(labels.astype(np.int64)),
        classes,
        classes_named=False,
    )


def _find(path: Path, names: list[str], split: str | None) -> tuple[str, str, str | None]:
    for images, labels in _NAMES:
        with_split = "{}" in images
        wanted = split or "test"
        pair = images.format(wanted), labels.format(wanted)
        if all(name in names for name in pair) and (with_split or split is None):
            return (*pair, wanted if with_split else None)
    prefix, suffix = _NAMES[0][0].format(""), _NAMES[1][0].format("")
    splits = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    splits += [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    if splits:
        raise unknown_name("split", split or "test", splits)
    if split is not None and any(pair[0] in names for pair in _NAMES):
        raise ValueError(f"it has one split only and does not name it; expected no split, got {split!r}")
    raise ValueError(f"expected arrays images and labels (or x_test and y_test), got {', '.join(names)}")


def _pixels(path: Path, images: np.ndarray) -> torch.Tensor:
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"data: images in {path}: expected N×H×W, N×H×W×C or N×C×H×W, got {images.shape}")
    if images.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(images))
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"data: images in {path}: expected uint8 or floats in [0, 1], got {images.dtype}")
    if images.size and not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"data: images in {path}: expected finite pixels in [0, 1]")
    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
