"""The handwritten digits that scikit-learn ships."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from diffproof.checks import unknown_name
from diffproof.data.images import ImageData

SPLITS = ("train", "test")
# The pixels are sixteenths; noise is rounded to fifteenths of these, about as finely as in 8-bit images.
_LEVELS = 16 * 15


def load_digits(split: str) -> ImageData:
    """scikit-learn's 1,797 8×8 handwritten digits; test is every image whose index is 0 or 3 modulo 7.

    The digits come in runs of 0…9; a step of 7 is coprime to that and keeps both splits balanced.

    Args:
        split: "train" or "test".

    Raises:
        ValueError: unknown split.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    table = _table()
    index = np.arange(len(table))
    in_test = np.isin(index % 7, (0, 3))
    chosen = index[in_test] if split == "test" else index[~in_test]
    images = torch.from_numpy(table[chosen, :-1]).float().reshape(-1, 1, 8, 8) / 16
    labels = torch.from_numpy(table[chosen, -1]).long()
    return ImageData("digits", split, images, labels, tuple("0123456789"), levels=_LEVELS)


@cache
def _table() -> NDArray[np.float64]:
    """A row an image: its pixels in 0…16, and its label; read once, since parsing takes most of loading."""
    # The file itself: importing scikit-learn takes longer than everything else that a small run does.
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    return np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
