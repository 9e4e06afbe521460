"""Checks of arguments, shared by all rooms: every message names the argument, expected and got."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

from diffproof.errors import ArgumentError

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ArgumentError:
    """The error for a name that is in no table: it lists the nearest known names, or else all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return ArgumentError(kind, f"unknown name {name!r}; {hint}")


@contextlib.contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Errors of the arguments `names` come out under the names that they have here."""
    try:
        yield
    except ArgumentError as error:
        if error.argument not in names:
            raise
        raise ArgumentError(names[error.argument], error.problem) from None


def check_member(name: str, value: str, enum: type[E]) -> E:
    """The member of an enum with this value, or ValueError."""
    try:
        return enum(value)
    except ValueError:
        raise ArgumentError(name, f"expected one of {', '.join(enum)}, got {value!r}") from None


def check_at_least(name: str, value: int, minimum: int) -> int:
    """An integer of at least `minimum`, or ValueError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = minimum - 1
    if isinstance(value, bool) or number < minimum:
        raise ArgumentError(name, f"expected an integer ≥ {minimum}, got {value!r}")
    return number


def check_probability(name: str, value: float) -> float:
    """A number strictly between 0 and 1, or ValueError."""
    if not 0.0 < value < 1.0:
        raise ArgumentError(name, f"expected a number in (0, 1), got {value!r}")
    return value


def check_positive(name: str, value: float) -> float:
    """A finite number above 0, or ValueError."""
    if not 0.0 < value < float("inf"):
        raise ArgumentError(name, f"expected a finite number > 0, got {value!r}")
    return value


def check_levels(name: str, values: Sequence[float] | Tensor) -> list[float]:
    """At least one number, finite, above 0 and ascending; else ValueError."""
    levels = [float(value) for value in values]
    if not levels:
        raise ArgumentError(name, "expected at least one noise level, got none")
    ascending = all(low < high for low, high in itertools.pairwise([0.0, *levels, float("inf")]))
    if not ascending:
        listed = ", ".join(f"{level:g}" for level in levels[:5])
        raise ArgumentError(
            name, f"expected ascending noise levels > 0, got {listed}{'…' * (len(levels) > 5)}"
        )
    return levels


def check_pixels(images: Tensor, name: str = "images") -> Tensor:
    """Clean images: floating point, N×C×H×W, finite and in [0, 1]; else ValueError."""
    if not images.is_floating_point():
        raise ArgumentError(
            name, f"expected floats in [0, 1], got {images.dtype}; divide 8-bit pixels by 255"
        )
    if images.ndim != 4:
        raise ArgumentError(name, f"expected N×C×H×W, got shape {tuple(images.shape)}")
    if images.numel() == 0:
        raise ArgumentError(name, f"expected at least one image, got shape {tuple(images.shape)}")
    low, high = float(images.min()), float(images.max())
    if not images.isfinite().all():
        raise ArgumentError(name, "expected finite pixels, got NaN or infinity")
    if low < 0.0 or high > 1.0:
        raise ArgumentError(name, f"expected pixels in [0, 1], got [{low:.4g}, {high:.4g}]")
    return images


def check_shape(images: Tensor, expected: tuple[int, int, int] | None, owner: str) -> None:
    """A batch N×C×H×W whose C×H×W is what `owner` takes (None: anything); else ValueError."""
    if images.ndim != 4:
        raise ArgumentError("images", f"expected N×C×H×W, got shape {tuple(images.shape)}")
    if expected is not None and tuple(images.shape[1:]) != expected:
        want, got = ("×".join(map(str, shape)) for shape in (expected, images.shape[1:]))
        raise ArgumentError("images", f"the {owner} takes {want} (channels×height×width), got {got}")
