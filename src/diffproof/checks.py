"""Checks of arguments, shared by all rooms: every message names the argument, expected and got."""

from __future__ import annotations

import contextlib
import difflib
import functools
import itertools
import math
import operator
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from enum import StrEnum
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

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
        raise type(error)(names[error.argument], error.problem) from None


@contextlib.contextmanager
def loading(argument: str) -> Iterator[None]:
    """Errors of the network that this argument names come out under its name, whatever they are about."""
    try:
        yield
    except ArgumentError as error:
        # Those of a loader's own spec.
        plain = error.argument in ("classifier", "denoiser")
        raise ArgumentError(argument, error.problem if plain else str(error)) from None


def check_member(name: str, value: str, enum: type[E]) -> E:
    """The member of an enum with this value, or ValueError."""
    try:
        return enum(value)
    except ValueError:
        raise ArgumentError(name, f"expected one of {', '.join(enum)}, got {value!r}") from None


# How a file's values of a type are told of; a JSON file has lists for tuples.
_TYPES: dict[Any, str] = {
    int: "an integer",
    float: "a finite number",
    str: "a text",
    bool: "true or false",
    dict: "names with values",
    tuple: "a list",
    type(None): "null",
}


def check_fields(kind: type[Any], values: object) -> dict[str, Any]:
    """What was read from a file, if it is what the fields of a dataclass declare.

    Args:
        kind: the dataclass.
        values: its fields by name; lists stand for tuples.

    Returns:
        the values, with tuples.

    Raises:
        ValueError: no mapping, a field that is unknown or missing, or one of another type, which is named;
            integers beyond 64 bits and numbers that are not finite are of no type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"expected names with values, got {reprlib.repr(values)}")
    hints = _hints(kind)  # type: ignore[arg-type]
    if unknown := sorted(map(str, values.keys() - hints.keys())):
        raise ValueError(unknown_name("field", unknown[0], hints).problem)
    required = [one.name for one in fields(kind) if one.default is MISSING]
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"{missing[0]} is missing")
    for name, value in values.items():
        if not _fits(value, hints[name]):
            kinds = get_args(hints[name]) if get_origin(hints[name]) is UnionType else (hints[name],)
            wanted = " or ".join(_TYPES.get(get_origin(one) or one, "another value") for one in kinds)
            raise ValueError(f"{name}: expected {wanted}, got {reprlib.repr(value)}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind)}


def _fits(value: object, hint: Any) -> bool:
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin is UnionType:
        return any(_fits(value, one) for one in inner)
    if origin is tuple:
        if not isinstance(value, list | tuple) or (inner[-1] is not ... and len(value) != len(inner)):
            return False
        return all(_fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    if origin in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | origin):
            return False
        return -(2**63) <= value < 2**64 if isinstance(value, int) else math.isfinite(value)
    return hint is Any or isinstance(value, hint)


def check_at_least(name: str, value: int, minimum: int) -> int:
    """An integer of at least `minimum`, or ValueError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = minimum - 1
    if isinstance(value, bool) or number < minimum:
        raise ArgumentError(name, f"expected an integer ≥ {minimum}, got {value!r}")
    return number


def check_class_names(names: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    """The names of so many classes, None for none; else ValueError."""
    if names is None:
        return None
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ArgumentError("class_names", f"expected {num_classes} texts, got {names!r}"[:200])
    if len(names) != num_classes:
        raise ArgumentError("class_names", f"expected {num_classes} names, got {len(names)}")
    return tuple(names)


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
