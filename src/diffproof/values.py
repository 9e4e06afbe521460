"""Values of settings as texts: what a setting takes, and how its text is read."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from diffproof.checks import shown


class Value:
    """What a setting takes. Subclasses write `read` and `says`."""

    def read(self, text: str) -> Any:
        """The value of a text.

        Raises:
            ValueError: the text is none; the message says what was expected.
        """
        raise TypeError(f"{type(self).__name__} does not define read()")

    def says(self) -> str:
        """What is expected, as errors and `diffproof methods` say it."""
        raise TypeError(f"{type(self).__name__} does not define says()")

    def _refuse(self, text: str) -> ValueError:
        return ValueError(f"expected {self.says()}, got {shown(text)}")


_RANGE = re.compile(r"([>≥]) (\S+)|in ([\[(])(\S+), (\S+)([\])])")


def _inside(limits: str) -> Callable[[float], bool]:
    """Whether a number lies within limits written as "> 0", "≥ 1" or "in (0, 1]"; "" has none."""
    if not limits:
        return math.isfinite
    match = _RANGE.fullmatch(limits)
    if match is None:
        raise ValueError(f"limits: expected a range, got {limits!r}")
    if match[1]:
        above = operator.gt if match[1] == ">" else operator.ge
        least = float(match[2])
        return lambda number: math.isfinite(number) and above(number, least)
    low, high = float(match[4]), float(match[5])
    over = operator.gt if match[3] == "(" else operator.ge
    under = operator.lt if match[6] == ")" else operator.le
    return lambda number: over(number, low) and under(number, high)


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.IGNORECASE | re.ASCII)
_QUOTIENT = re.compile(r"[+-]?\d{1,9}/\d{1,9}", re.ASCII)


def number(text: str) -> float:
    """A number such as 0.5 or 8/255.

    Raises:
        ValueError: it is none.
    """
    if _QUOTIENT.fullmatch(text) and not text.endswith("/" + "0" * (len(text) - text.index("/") - 1)):
        return float(Fraction(text))
    if _NUMBER.fullmatch(text):
        return float(text)
    raise ValueError(f"expected a number, got {shown(text)}")


@dataclass(frozen=True)
class Integer(Value):
    """A whole number of at least `least`; None for any."""

    least: int | None

    def read(self, text: str) -> int:
        """See Value."""
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise self._refuse(text)
        if self.least is not None and int(text) < self.least:
            raise self._refuse(text)
        return int(text)

    def says(self) -> str:
        """See Value."""
        return "an integer" if self.least is None else f"an integer ≥ {self.least}"


@dataclass(frozen=True)
class Real(Value):
    """A number, a quotient such as 8/255 included, within limits such as "> 0" or "in (0, 1]"."""

    limits: str

    def read(self, text: str) -> float:
        """See Value."""
        try:
            found = number(text)
        except ValueError:
            raise self._refuse(text) from None
        if not _inside(self.limits)(found):
            raise self._refuse(text)
        return found

    def says(self) -> str:
        """See Value."""
        return f"a number {self.limits}".rstrip()


@dataclass(frozen=True)
class Time(Value):
    """A time in (0, 1] of a diffusion."""

    def read(self, text: str) -> float:
        """See Value; a timestep is told how to write it as a time."""
        try:
            return float(Real("in (0, 1]").read(text))
        except ValueError:
            refused = self._refuse(text)
            try:
                step = Real("in (1, 1000]").read(text)
            except ValueError:
                raise refused from None
            raise ValueError(f"{refused}; timestep {step:g} of 1000 is the time {step / 1000:g}") from None

    def says(self) -> str:
        """See Value."""
        return "a time in (0, 1]"


@dataclass(frozen=True)
class Flag(Value):
    """Yes or no."""

    def read(self, text: str) -> bool:
        """See Value."""
        if text.lower() not in ("true", "false"):
            raise self._refuse(text)
        return text.lower() == "true"

    def says(self) -> str:
        """See Value."""
        return "true or false"


@dataclass(frozen=True, init=False)
class Choice(Value):
    """One of some words."""

    words: tuple[str, ...]

    def __init__(self, *words: str) -> None:
        object.__setattr__(self, "words", words)

    def read(self, text: str) -> str:
        """See Value."""
        if text not in self.words:
            raise self._refuse(text)
        return text

    def says(self) -> str:
        """See Value."""
        return " or ".join(filter(None, (", ".join(self.words[:-1]), self.words[-1])))


@dataclass(frozen=True)
class Text(Value):
    """A text of a form that the method itself checks."""

    form: str

    def read(self, text: str) -> str:
        """See Value."""
        return text

    def says(self) -> str:
        """See Value."""
        return self.form


@dataclass(frozen=True)
class Numbers(Value):
    """Numbers in brackets, "[0.1,0.2]", each within limits."""

    limits: str = ""
    whole: bool = False

    def read(self, text: str) -> list[float] | list[int]:
        """See Value."""
        if not (text.startswith("[") and text.endswith("]") and text[1:-1].strip()):
            raise self._refuse(text)
        try:
            found = [number(part.strip()) for part in text[1:-1].split(",")]
        except ValueError:
            raise self._refuse(text) from None
        if not all(map(_inside(self.limits), found)) or (self.whole and any(one % 1 for one in found)):
            raise self._refuse(text)
        return [int(one) for one in found] if self.whole else found

    def says(self) -> str:
        """See Value."""
        kind = "integers" if self.whole else "numbers"
        return f"{kind} {self.limits}".rstrip() + " in brackets, such as [1,2]"


@dataclass(frozen=True)
class Levels(Numbers):
    """Noise levels in brackets, or a text that stands for a grid of them: edm:125."""

    def read(self, text: str) -> Any:
        """See Value; the text stays as it is."""
        return text if re.fullmatch(r"edm:[1-9][0-9]{0,4}", text) else super().read(text)

    def says(self) -> str:
        """See Value."""
        return f"{super().says()}, or edm:N"


@dataclass(frozen=True)
class Optional(Value):
    """Another value, or the word that stands for None."""

    value: Value
    word: str = "none"

    def read(self, text: str) -> Any:
        """See Value."""
        if text == self.word:
            return None
        try:
            return self.value.read(text)
        except ValueError as error:
            # What was expected is this, or the word.
            wanted = f"expected {self.value.says()}"
            raise ValueError(str(error).replace(wanted, f"expected {self.says()}", 1)) from None

    def says(self) -> str:
        """See Value."""
        return f"{self.value.says()}, or {self.word}"


def written(value: Any) -> str:
    """A setting's value as a text that reads as it again: true, none, [0.1,0.2], 8/255 as its decimals."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if hasattr(value, "tolist"):
        # NumPy's numbers, arrays and tensors.
        return written(value.tolist())
    if isinstance(value, list | tuple):
        return f"[{','.join(map(written, value))}]"
    return repr(value) if isinstance(value, int | float) else str(value)
