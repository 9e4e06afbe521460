"""The noise that smoothing adds: rounded to a grid of pixels and sampled exactly, or continuous.

Rounding an image on the grid plus Gaussian noise to the grid is that image plus rounded noise. So a base
classifier behind the rounding sees grid points only, Cohen et al.'s theorem holds for it as it stands, and a
program that adds whole numbers runs it to the last bit; one that adds floating-point numbers tells images
apart by the last bits of their sums (Voráček and Hein, "Sound Randomized Smoothing in Floating-Point
Arithmetics", arXiv:2207.07209).
"""

from __future__ import annotations

import functools
import math
from enum import StrEnum
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from diffproof.checks import check_at_least, check_member, check_positive
from diffproof.errors import ArgumentError
from diffproof.noise import Noise

# 8-bit images.
LEVELS = 255
_MOST_LEVELS = 2**16 - 1
# A second's work and some megabytes of tables.
# Noise below never leaves a level.
_LEAST_SIGMA = 1e-9
_LARGEST_SIGMA = 2048

# Bits of a number's tail probability, in units of 2^-64: its word without the sign, and 32 more.
_HIGH = (1 << 31) - 1
_LOW_BITS = 32
# Cells of equal probability: the tables of so many stay in a core's cache.
_CELL_BITS = 13
_CELL_SHIFT = 31 - _CELL_BITS
# In the place of a magnitude: the cell holds several, and the search tells which.
_SEVERAL = -3


class SmoothingNoise(StrEnum):
    """What is added to images.

    GRID: whole levels of a pixel; certificates hold for the program that runs.
    CONTINUOUS: floating-point normals, as in the literature; certificates hold for real numbers only.
    """

    GRID = "grid"
    CONTINUOUS = "continuous"


class Added(Protocol):
    """What is added to images, and what certificates say of it; see GridNoise."""

    sigma: float

    @property
    def name(self) -> SmoothingNoise:
        """Which it is."""

    @property
    def levels(self) -> int | None:
        """Of its grid; None for continuous noise."""

    def certified(self, image: Tensor) -> Tensor:
        """The image that a certificate is about."""

    def moved(self, image: Tensor) -> float:
        """The ℓ2 distance between an image and that one."""

    def square_distance(self, image: Tensor, other: Tensor) -> Fraction:
        """The exact square of the ℓ2 distance between two images as they are certified."""

    def added(self, image: Tensor, noise: Noise) -> Tensor:
        """The image with one row's noise each, N×C×H×W."""

    def failure_mass(self, size: int) -> float:
        """At most the total variation distance from what the theorem says, for images of so many values."""

    def off_grid(self, size: int) -> float:
        """What a radius is less by for images off the grid."""


class ContinuousNoise:
    """sigma·N(0, I) in floating point.

    Args:
        sigma: standard deviation in [0, 1] pixels, > 0.
    """

    name = SmoothingNoise.CONTINUOUS
    levels: int | None = None

    def __init__(self, sigma: float) -> None:
        self.sigma = check_positive("sigma", sigma)

    def certified(self, image: Tensor) -> Tensor:
        """The image that a certificate is about: the image itself."""
        return image

    def moved(self, image: Tensor) -> float:
        """0: no image is."""
        return 0.0

    def square_distance(self, image: Tensor, other: Tensor) -> Fraction:
        """The exact square of the ℓ2 distance between two images."""
        pairs = zip(image.double().flatten().tolist(), other.double().flatten().tolist(), strict=True)
        return sum(((Fraction(a) - Fraction(b)) ** 2 for a, b in pairs), Fraction(0))

    def added(self, image: Tensor, noise: Noise) -> Tensor:
        """See GridNoise."""
        return image + self.sigma * noise.normal(image.shape, 0, image.dtype)

    def failure_mass(self, size: int) -> float:
        """0: nothing is stated of what floating point changes."""
        return 0.0

    def off_grid(self, size: int) -> float:
        """0: there is no grid."""
        return 0.0


class GridNoise:
    """round(levels·sigma·N(0, I)) levels of a pixel, added as whole numbers and converted once.

    Args:
        sigma: standard deviation in [0, 1] pixels before rounding, > 0.
        levels: images are multiples of 1/levels; 255 for 8-bit ones. At least 1.

    Raises:
        ValueError: an argument is out of range, or levels·sigma > 2048.
    """

    name = SmoothingNoise.GRID

    def __init__(self, sigma: float, levels: int = LEVELS) -> None:
        self.sigma = check_positive("sigma", sigma)
        self.levels = check_at_least("levels", levels, 1, _MOST_LEVELS)
        if levels * sigma < _LEAST_SIGMA:
            raise ArgumentError("sigma", f"expected levels·sigma ≥ {_LEAST_SIGMA:g}, got {levels}·{sigma:g}")
        if levels * sigma > _LARGEST_SIGMA:
            raise ArgumentError(
                # The one of the two that somebody chose.
                "sigma" if levels == LEVELS else "levels",
                f"expected levels·sigma ≤ {_LARGEST_SIGMA}, got {levels}·{sigma:g}",
            )
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def certified(self, image: Tensor) -> Tensor:
        """The grid point nearest to an image, of its shape and dtype: a certificate is about that one."""
        return self._values(image)[self._whole(image) + self._law.largest]

    def moved(self, image: Tensor) -> float:
        """The ℓ2 distance between an image and the nearest grid point."""
        exact = image.detach().cpu().double()
        return float(((exact * self.levels).round() / self.levels - exact).norm())

    def square_distance(self, image: Tensor, other: Tensor) -> Fraction:
        """The exact square of the ℓ2 distance between the nearest grid points of two images."""
        difference = self._whole(image) - self._whole(other)
        return Fraction(int(difference.square().sum()), self.levels**2)

    def added(self, image: Tensor, noise: Noise) -> Tensor:
        """The nearest grid point with one row's noise each.

        Args:
            image: C×H×W floats in [0, 1].
            noise: N rows, of which step 0 of vote 0 is drawn.

        Returns:
            N×C×H×W, of the image's dtype: float(whole number / levels), outside [0, 1], too.
        """
        if image.device.type == "mps":
            # Its whole numbers are made as on any other device.
            cpu = torch.device("cpu")
            return self.added(image.cpu(), noise.to(cpu)).to(image.device)
        law, values = self._law.to(image.device), self._values(image)
        start = (self._whole(image) + law.largest).flatten()
        out = torch.empty(len(noise), len(start), dtype=image.dtype, device=image.device)
        fill = self._fill if image.device.type == "cpu" else self._fill_by_all_bits
        fill(out, start, law, values, noise)
        return out.reshape(len(noise), *image.shape)

    @staticmethod
    def _fill(out: Tensor, start: Tensor, law: _Law, values: Tensor, noise: Noise) -> None:
        unsure = []
        for rows, bits in noise.words(len(start), 0):
            whole, row, column = law.whole(bits)
            # Few enough to look at them one by one.
            unsure.append((row + rows.start, column, bits[row, column]))
            out[rows] = values[whole.add_(start)]
        row, column, bits = unsure[0] if len(unsure) == 1 else map(torch.cat, zip(*unsure, strict=True))
        magnitude, tied = law.searched(bits & _HIGH)
        if len(tied):
            low = noise.low_words(row[tied], column[tied], 0)
            magnitude[tied] = law.searched_to_the_end(bits[tied] & _HIGH, low)
        out[row, column] = values[_signed(magnitude, bits).add_(start[column])]

    @staticmethod
    def _fill_by_all_bits(out: Tensor, start: Tensor, law: _Law, values: Tensor, noise: Noise) -> None:
        """As `_fill`, without a look at the values, for which the program would wait for the device."""
        every = zip(noise.words(len(start), 0), noise.words(len(start), 0, low=True), strict=True)
        for (rows, bits), (_, low) in every:
            magnitude = law.searched_to_the_end(bits & _HIGH, low)
            out[rows] = values[_signed(magnitude, bits).add_(start)]

    def failure_mass(self, size: int) -> float:
        """At most the total variation distance between what is drawn and rounded normals.

        A probability of labels under rounded normals is at least one under what is drawn, less this.

        Args:
            size: numbers in an image.
        """
        # Each threshold is off by half a unit at most, on both sides; what is cut off is smaller than one.
        return size * math.ldexp(self._law.largest + 2, -64)

    def off_grid(self, size: int) -> float:
        """At most the ℓ2 distance of an image from the nearest grid point: √size / (2·levels), rounded up.

        Args:
            size: numbers in an image.
        """
        # Two roundings, each by less than 2^-52 of the value.
        return math.sqrt(size) / (2 * self.levels) * (1 + 2.0**-50)

    @property
    def _law(self) -> _Law:
        return _law(self.sigma, self.levels)

    def _whole(self, image: Tensor) -> Tensor:
        """The nearest level of each pixel, int64."""
        # In float64, which every other device has: the same grid point everywhere.
        exact = (image.cpu() if image.device.type == "mps" else image).double()
        return (exact * self.levels).round_().long().to(image.device)

    def _values(self, image: Tensor) -> Tensor:
        """The floating-point value of each level that can come out, from the least on."""
        key = (image.device, image.dtype)
        if key not in self._tables:
            reach = self._law.largest
            whole = torch.arange(-reach, self.levels + reach + 1, dtype=torch.float64)
            self._tables[key] = (whole / self.levels).to(image.dtype).to(image.device)
        return self._tables[key]


def as_noise(kind: SmoothingNoise | str, sigma: float, levels: int | None) -> GridNoise | ContinuousNoise:
    """The noise of a kind by name.

    Args:
        kind: see SmoothingNoise.
        sigma: see GridNoise.
        levels: see GridNoise; None for 255, and for continuous noise.

    Raises:
        ValueError: an argument is out of range, or levels of continuous noise.
    """
    if check_member("noise", kind, SmoothingNoise) is SmoothingNoise.GRID:
        return GridNoise(sigma, LEVELS if levels is None else levels)
    if levels is not None:
        raise ArgumentError("levels", f"continuous noise has none, got {levels}")
    return ContinuousNoise(sigma)


class _Law(NamedTuple):
    """How tail probabilities become magnitudes.

    Attributes:
        thresholds: 2^64·P(magnitude ≥ k with its sign), rounded to whole numbers, ascending, from the largest
            k that has one at all.
        leads: their 31 leading bits.
        cells: one number for each cell of leading bits, from which `_whole` subtracts.
    """

    thresholds: Tensor
    leads: Tensor
    cells: Tensor

    @property
    def largest(self) -> int:
        """The largest magnitude that is drawn."""
        return len(self.thresholds)

    def to(self, device: torch.device) -> _Law:
        """The same on a device."""
        return self if self.cells.device == device else _Law(*(part.to(device) for part in self))

    def whole(self, bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The numbers that words tell, and the rows and columns where they do not."""
        if bits.device.type != "cpu":
            return _whole(bits, self.cells)
        # NumPy takes a third of the time that torch does.
        found = _whole(bits.numpy(), self.cells.numpy())
        whole, row, column = (torch.from_numpy(part) for part in found)
        return whole, row, column

    def searched(self, high: Tensor) -> tuple[Tensor, Tensor]:
        """How many thresholds lie above 31 leading bits, and at which places these are a threshold's, too."""
        last = torch.searchsorted(self.leads, high, right=True)
        tied = (torch.searchsorted(self.leads, high) != last).nonzero()[:, 0]
        return self.largest - last, tied

    def searched_to_the_end(self, high: Tensor, low: Tensor) -> Tensor:
        """The magnitude that all 63 bits tell: how many thresholds lie above them."""
        tail = high << _LOW_BITS | low
        return self.largest - torch.searchsorted(self.thresholds, tail, right=True)


def _whole(bits: Any, cells: Any) -> tuple[Any, Any, Any]:
    """Signed numbers, 0 where 31 bits do not tell, and rows and columns of these; of tensors or arrays."""
    high = bits & _HIGH
    # (base + 1)·2^31 + lead − 1 − high, whose high part is base + 1 where high < lead, or else base.
    number = cells[high >> _CELL_SHIFT]
    number -= high
    # At high = lead the low bits are all ones, and the bits that follow decide; so do they where base < 0.
    unsure = (number & _HIGH) == _HIGH
    unsure |= number < 0
    number >>= 31
    row, column = unsure.nonzero() if isinstance(unsure, np.ndarray) else unsure.nonzero(as_tuple=True)
    number[row, column] = 0
    return _signed(number, bits), row, column


def _signed(magnitude: Any, bits: Any) -> Any:
    """The magnitude, negative where the top bit is set; in place."""
    sign = bits >> 31
    magnitude ^= -sign
    magnitude += sign
    return magnitude


@functools.lru_cache(maxsize=64)
def _law(sigma: float, levels: int) -> _Law:
    # Only a run needs it, and no other command waits for it.
    import mpmath

    thresholds: list[int] = []
    with mpmath.workprec(128):
        scale = mpmath.sqrt(2) * 2 * levels * mpmath.mpf(sigma)
        while True:
            # P(Z > (k − ½) / (levels·sigma)), whose integer part has at most 63 bits.
            tail = mpmath.erfc((2 * len(thresholds) + 1) / scale) * mpmath.mpf(2) ** 63
            if (rounded := int(mpmath.nint(tail))) < 1:
                break
            thresholds.append(rounded)
    above = torch.tensor(thresholds[::-1], dtype=torch.int64)
    first = torch.arange(1 << _CELL_BITS, dtype=torch.int64) << _CELL_SHIFT + _LOW_BITS
    last = first + (1 << _CELL_SHIFT + _LOW_BITS) - 1
    at_first, at_last = (len(above) - torch.searchsorted(above, one, right=True) for one in (first, last))
    inside = at_first - at_last
    # The threshold of a cell with one is the next one above its first number.
    lead = torch.where(inside == 1, above[(len(above) - at_first).clamp(max=len(above) - 1)] >> _LOW_BITS, 0)
    base = torch.where(inside > 1, _SEVERAL, at_last)
    return _Law(above, above >> _LOW_BITS, (base + 1 << 31) + lead - 1)
