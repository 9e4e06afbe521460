"""Image data sets by name, as tensors in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffproof.checks import unknown_name

SPLITS = ("train", "test")


@dataclass(frozen=True)
class ImageData:
    """Images and labels; unpacks as `images, labels = data`.

    Attributes:
        name, split: where they come from.
        images: N×C×H×W float32 in [0, 1]. labels: N int64.
        class_names: the name of each label.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.images, self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width


def _digits(split: str) -> ImageData:
    """scikit-learn's 1,797 8×8 handwritten digits; test is every image whose index is 0 or 3 modulo 7.

    The digits come in runs of 0…9; a step of 7 is coprime to that and keeps both splits balanced.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    index = np.arange(len(bunch.target))
    in_test = np.isin(index % 7, (0, 3))
    chosen = index[in_test] if split == "test" else index[~in_test]
    images = torch.from_numpy(bunch.images[chosen]).float()[:, None] / 16
    labels = torch.from_numpy(bunch.target[chosen]).long()
    return ImageData("digits", split, images, labels, tuple("0123456789"))


DATASETS: dict[str, Callable[[str], ImageData]] = {"digits": _digits}


def load_data(name: str, split: str = "test") -> ImageData:
    """A data set by name.

    Args:
        name: "digits".
        split: "train" or "test".

    Raises:
        ValueError: unknown name or split.
    """
    if name not in DATASETS:
        raise unknown_name("data", name, DATASETS)
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    return DATASETS[name](split)


def parse_indices(text: str, size: int) -> list[int]:
    """Image indices from "start:stop", "start:stop:step", a number, or several of these with commas.

    Raises:
        ValueError: not of that form, empty, or beyond the data set's size.
    """
    chosen: list[int] = []
    for part in text.split(","):
        try:
            numbers = [int(piece) for piece in part.split(":")]
        except ValueError:
            numbers = []
        if len(numbers) == 1:
            start, stop, step = numbers[0], numbers[0] + 1, 1
        elif len(numbers) in (2, 3):
            start, stop, step = (*numbers, 1)[:3]
        else:
            raise ValueError(f"indices: expected start:stop or start:stop:step, got {text!r}")
        if start < 0 or step < 1 or stop <= start:
            raise ValueError(f"indices: expected 0 ≤ start < stop and step ≥ 1, got {text!r}")
        if stop > size:
            raise ValueError(f"indices: the data has {size} images (0 to {size - 1}), got {text!r}")
        chosen.extend(range(start, stop, step))
    return sorted(set(chosen))
