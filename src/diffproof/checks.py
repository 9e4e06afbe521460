"""Checks of arguments, shared by all rooms: every message names the argument, expected and got."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

from diffproof.errors import ArgumentError

T = TypeVar("T")
# In bytes: what file systems allow a name and a path.
_LONGEST_NAME, _LONGEST_PATH = 255, 4096
E = TypeVar("E", bound=StrEnum)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ArgumentError:
    """The error for a name that is in no table: it lists the nearest known names, or else all of them."""
    if not isinstance(name, str):
        return ArgumentError(
            kind, f"expected a name such as {', '.join(sorted(known)[:3])}, got {shown(name)}"
        )
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return ArgumentError(kind, f"unknown name {shown(name)}; {hint}")


def check_known(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of a table with this name; else ValueError, also for what is no text."""
    if not isinstance(name, str) or name not in table:
        raise unknown_name(kind, name, table)
    return table[name]


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
    """Errors of what this argument names come out under its name, whatever they are about."""
    try:
        yield
    except ArgumentError as error:
        # Those of a loader's own spec.
        plain = error.argument in ("classifier", "denoiser", argument)
        raise ArgumentError(argument, error.problem if plain else str(error)) from None


def check_member(name: str, value: str, enum: type[E]) -> E:
    """The member of an enum with this value, or ValueError."""
    try:
        return enum(value)
    except ValueError:
        raise ArgumentError(name, f"expected one of {', '.join(enum)}, got {shown(value)}") from None


def shown(value: object) -> str:
    """What came, as errors say it: short, and tensors and arrays by their type and shape."""
    nested = getattr(value, "is_nested", False)  # which have no shape
    dtype, shape = getattr(value, "dtype", None), () if nested else getattr(value, "shape", ())
    if dtype is not None and len(shape):
        kind = "" if type(value).__name__ == "Tensor" else f"{type(value).__name__} of "
        layout = str(getattr(value, "layout", "")).removeprefix("torch.").replace("strided", "")
        lacking = ", without values (device meta)" * bool(getattr(value, "is_meta", False))
        return f"{kind}shape {tuple(shape)}, {dtype}{', ' * bool(layout)}{layout}{lacking}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}…"


def check_integer(name: str, value: int, expected: str = "an integer") -> int:
    """An integer of Python, NumPy or torch, as Python's; ValueError for others, and for a yes or no."""
    with contextlib.suppress(TypeError):
        if not isinstance(value, bool) and "bool" not in str(getattr(value, "dtype", "")):
            return operator.index(value)
    raise ArgumentError(name, f"expected {expected}, got {shown(value)}")


def check_at_least(name: str, value: int, minimum: int, most: int | None = None) -> int:
    """An integer of at least `minimum`, and at most `most`, as Python's; else ValueError."""
    number = check_integer(name, value, f"an integer ≥ {minimum}")
    if number < minimum:
        raise ArgumentError(name, f"expected an integer ≥ {minimum}, got {shown(value)}")
    if most is not None and number > most:
        raise ArgumentError(name, f"expected at most {most}, got {shown(value)}")
    return number


def check_class_names(names: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    """The names of so many classes, None for none; else ValueError."""
    if names is None:
        return None
    listed = check_listed("class_names", names)
    if not all(isinstance(name, str) for name in listed):
        raise ArgumentError("class_names", f"expected {num_classes} texts, got {shown(names)}")
    if len(listed) != num_classes:
        raise ArgumentError("class_names", f"expected {num_classes} names, got {len(listed)}")
    return tuple(listed)


def check_number(name: str, value: float, inside: Callable[[float], bool], expected: str) -> float:
    """A number of Python or NumPy within a range, as Python's; else ValueError.

    Args:
        name: of the argument.
        value: what was given.
        inside: whether a number is in the range; NaN must not be.
        expected: the range in words, such as "a number in (0, 1)".
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    number = math.nan
    if is_number:
        with contextlib.suppress(OverflowError):
            number = float(value)
    if not (is_number and inside(number)):
        raise ArgumentError(name, f"expected {expected}, got {shown(value)}")
    return value if type(value) in (int, float) else number


def check_probability(name: str, value: float) -> float:
    """A number strictly between 0 and 1, or ValueError."""
    return check_number(name, value, lambda number: 0.0 < number < 1.0, "a number in (0, 1)")


def check_positive(name: str, value: float) -> float:
    """A finite number above 0, or ValueError."""
    return check_number(name, value, lambda number: 0.0 < number < math.inf, "a finite number > 0")


def check_not_negative(name: str, value: float) -> float:
    """A finite number of at least 0, or ValueError."""
    return check_number(name, value, lambda number: 0.0 <= number < math.inf, "a finite number ≥ 0")


def check_share(name: str, value: float) -> float:
    """A number above 0 and at most 1, or ValueError."""
    return check_number(name, value, lambda number: 0.0 < number <= 1.0, "a number in (0, 1]")


def check_unit(name: str, value: float) -> float:
    """A number from 0 to 1, or ValueError."""
    return check_number(name, value, lambda number: 0.0 <= number <= 1.0, "a number in [0, 1]")


def check_flag(name: str, value: bool) -> bool:
    """True or False, or ValueError."""
    if not isinstance(value, bool):
        raise ArgumentError(name, f"expected True or False, got {shown(value)}")
    return value


def check_listed(name: str, values: Iterable[T]) -> list[T]:
    """The items of a list, tuple, array or tensor of one dimension; ValueError for others, and for a text."""
    if isinstance(values, str | Mapping) or getattr(values, "ndim", 1) != 1:
        raise ArgumentError(name, f"expected a list, got {shown(values)}")
    try:
        listed = values.tolist() if hasattr(values, "tolist") else list(values)
    except (TypeError, RuntimeError):  # the second of a sparse tensor
        raise ArgumentError(name, f"expected a list, got {shown(values)}") from None
    return cast("list[T]", listed)


def check_instance(name: str, value: object, kind: type[T], expected: str) -> T:
    """An object of a class, or ValueError."""
    if not isinstance(value, kind):
        raise ArgumentError(name, f"expected {expected}, got {shown(value)}")
    return value


def check_source(name: str, text: str) -> str:
    """The name, spec or path of a network or data set; ValueError unless a system can look for it."""
    if not check_instance(name, text, str, "a text").strip():
        raise ArgumentError(name, f"expected a name or a path, got {text!r}")
    longest = max(len(part.encode("utf-8", "replace")) for part in text.split("/"))
    if longest > _LONGEST_NAME or len(text) > _LONGEST_PATH:
        raise ArgumentError(name, f"expected a name or a path, got one too long for a file: {shown(text)}")
    return text


def check_levels(name: str, values: Sequence[float] | Tensor) -> list[float]:
    """At least one number, finite, above 0 and ascending; else ValueError."""
    levels = [
        float(check_number(name, value, lambda _: True, "numbers")) for value in check_listed(name, values)
    ]
    if not levels:
        raise ArgumentError(name, "expected at least one noise level, got none")
    ascending = all(low < high for low, high in itertools.pairwise([0.0, *levels, float("inf")]))
    if not ascending:
        listed = ", ".join(f"{level:g}" for level in levels[:5])
        raise ArgumentError(
            name, f"expected ascending noise levels > 0, got {listed}{'…' * (len(levels) > 5)}"
        )
    return levels


def check_tensor(name: str, value: Tensor, expected: str = "a torch tensor of floats") -> Tensor:
    """A tensor that has all its values: none of the device meta, and none sparse; else ValueError."""
    from torch import Tensor, strided

    check_instance(name, value, Tensor, expected)
    if value.is_meta or value.is_nested or value.layout is not strided:
        raise ArgumentError(name, f"expected {expected} that has all its values, got {shown(value)}")
    return value


def as_numbers(name: str, values: Tensor | Sequence[float], dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of numbers, made of a sequence of them where it is none; else ValueError."""
    import torch

    try:
        given = torch.as_tensor(values, dtype=dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ArgumentError(name, f"expected numbers, got {shown(values)}") from None
    return check_tensor(name, given, "numbers")


def check_floats(images: Tensor, name: str = "images") -> Tensor:
    """A tensor N×C×H×W of floating point; else ValueError."""
    if not check_tensor(name, images).is_floating_point():
        raise ArgumentError(
            name, f"expected floats in [0, 1], got {images.dtype}; divide 8-bit pixels by 255"
        )
    if images.ndim != 4:
        raise ArgumentError(name, f"expected N×C×H×W, got shape {tuple(images.shape)}")
    return images


def check_finite(images: Tensor, name: str = "images") -> Tensor:
    """As `check_floats`, without NaN and infinity."""
    if not bool(check_floats(images, name).isfinite().all()):
        raise ArgumentError(name, "expected finite pixels, got NaN or infinity")
    return images


# More draws that score an image would take gigabytes, and tell nothing that a tenth does not.
MOST_DRAWS = 100_000
# More rows in a batch than any memory holds.
MOST_ROWS = 2**31 - 1
# The largest side that images are brought to: a picture takes gigabytes beyond.
MOST_PIXELS = 8192
# How far rounding may take pixels out of [0, 1].
_ROUNDING = 1e-6


def check_pixels(images: Tensor, name: str = "images", *, empty: bool = False) -> Tensor:
    """Clean images: N×C×H×W, float32 or float64, finite and in [0, 1] but for rounding; else ValueError.

    Args:
        images: what was given.
        name: of the argument.
        empty: whether there may be none.
    """
    from torch import stack

    if check_floats(images, name).dtype.itemsize < 4:
        raise ArgumentError(
            name,
            f"expected float32 or float64, got {images.dtype}, which would round noise; use .float()",
        )
    if images.numel() == 0:
        if empty:
            return images
        raise ArgumentError(name, f"expected at least one image, got shape {tuple(images.shape)}")
    # The device is waited for once; a NaN is both ends.
    low, high = stack(images.detach().aminmax()).tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ArgumentError(name, "expected finite pixels, got NaN or infinity")
    if low < -_ROUNDING or high > 1.0 + _ROUNDING:
        hint = "; divide 8-bit pixels by 255" if high > 2.0 else ""
        raise ArgumentError(name, f"expected pixels in [0, 1], got [{low:.7g}, {high:.7g}]{hint}")
    return images


def check_device(images: Tensor, module: nn.Module, owner: str) -> None:
    """Raise ValueError unless images lie on the device of a module's first tensor."""
    tensor = next(itertools.chain(module.parameters(), module.buffers()), None)
    if tensor is not None and tensor.device != images.device:
        raise ArgumentError(
            "images", f"expected them on {tensor.device}, where the {owner} is, got {images.device}"
        )


@contextlib.contextmanager
def unchanged(argument: str, given: Tensor) -> Iterator[None]:
    """Raise ValueError if what a network does inside changes its input in place."""
    # Counted by torch, so that nothing is copied, and no device waited for.
    before = None if given.is_inference() else given._version
    yield
    if before is not None and given._version != before:
        raise ArgumentError(argument, "changes its input in place; let it clone the input first")


def check_shape(images: Tensor, expected: tuple[int, int, int] | None, owner: str) -> None:
    """A batch N×C×H×W whose C×H×W is what `owner` takes (None: anything); else ValueError."""
    check_floats(images)
    if expected is not None and tuple(images.shape[1:]) != expected:
        want, got = ("×".join(map(str, shape)) for shape in (expected, images.shape[1:]))
        hint = "; permute(0, 3, 1, 2) brings channels first" * (
            tuple(images.shape[1:]) == (*expected[1:], expected[0])
        )
        if images.shape[1] == expected[0] and expected[1] == expected[2]:
            hint = f"; --image-size {expected[1]} brings pictures of files there"
        raise ArgumentError("images", f"the {owner} takes {want} (channels×height×width), got {got}{hint}")


def check_shape_setting(name: str, shape: Sequence[int] | None) -> tuple[int, int, int] | None:
    """(C, H, W) of three integers ≥ 1, or None; else ValueError."""
    if shape is None:
        return None
    sizes = [check_at_least(name, size, 1) for size in check_listed(name, shape)]
    if len(sizes) != 3:
        raise ArgumentError(name, f"expected (channels, height, width), got {shown(shape)}")
    return sizes[0], sizes[1], sizes[2]
