"""Parts of a run for machines that share nothing: --shard 3/16."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, Self, TypeVar

from diffproof.checks import shown
from diffproof.errors import ArgumentError

T = TypeVar("T")
# No more digits than any data set's size has.
_WRITTEN = re.compile(r"([0-9]{1,18})/([0-9]{1,18})")


class Shard(NamedTuple):
    """One of the parts of a run, "3/16": number 3, the fourth, of 16."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a shard.

        Raises:
            ValueError: not of that form, no parts, or a number beyond theirs.
        """
        match = _WRITTEN.fullmatch(text)
        shard = cls(*map(int, match.groups())) if match else None
        if shard is None or shard.of < 1:
            raise ArgumentError("shard", f"expected i/N with 0 ≤ i < N, as in 3/16, got {shown(text)}")
        if shard.number >= shard.of:
            told = f"expected 0/{shard.of} to {shard.of - 1}/{shard.of}, got {shown(text)}"
            raise ArgumentError("shard", told)
        return shard


def in_shard(items: Sequence[T], shard: str | None) -> list[T]:
    """Those of the items that a shard has, every N-th; all of them where there is none."""
    if shard is None:
        return list(items)
    number, of = Shard.parse(shard)
    return list(items[number::of])


def is_first(shard: str | None) -> bool:
    """Whether a run does what is done once, whatever its images: one without a shard does."""
    return shard is None or Shard.parse(shard).number == 0


def check_images(shard: str | None, images: int) -> None:
    """Raise ValueError where a run of so many images has none for some of its shards."""
    if shard is not None and Shard.parse(shard).of > images:
        raise ArgumentError("shard", f"expected at most {images}, one an image of the run, got {shard}")
