"""Which images of a data set: the indices that a user writes, and random ones of these."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Sequence

from torch import Tensor

from diffproof.checks import check_at_least, check_instance, check_probability, shown
from diffproof.errors import ArgumentError
from diffproof.wording import counted


def choose(
    labels: Tensor,
    *,
    indices: str | None = None,
    per_class: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    without: Collection[int] = (),
) -> list[int]:
    """Indices of images, ascending; random ones are a function of the seed and of each image's index alone.

    So a larger number adds images to those of a smaller one.

    Args:
        labels: N integers, those of the whole data.
        indices: see `parse_indices`; None for all.
        per_class: take so many of each class at random, ≥ 1, or all that it has; None for all.
        limit: take so many of what is left at random, ≥ 1, or all; None for all.
        seed: of the choice.
        without: leave these out before anything is chosen at random.

    Raises:
        ValueError: bad indices, or a number below 1.
    """
    check_at_least("seed", seed, 0)
    given = range(len(labels)) if indices is None else parse_indices(indices, len(labels))
    chosen = [index for index in given if index not in without]
    if per_class is not None:
        check_at_least("per_class", per_class, 1)
        chosen = [index for part in _by_class(labels, chosen) for index in _ranked(part, seed)[:per_class]]
    if limit is not None:
        chosen = _ranked(chosen, seed)[: check_at_least("limit", limit, 1)]
    return sorted(chosen)


def hold_out(labels: Tensor, chosen: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Part images in two, each class in proportion: those that stay, and at random those held out.

    Args:
        labels: N integers, those of the whole data.
        chosen: indices of the images to part.
        share: share to hold out, in (0, 1); of each class one image stays at least.
        seed: of the choice.

    Raises:
        ValueError: the share is none, or so small that no image is held out.
    """
    check_probability("holdout", share)
    held: list[int] = []
    seen = 0
    for part in _by_class(labels, chosen):
        # What rounding leaves of one class goes to the next.
        number = round(share * (seen + len(part))) - round(share * seen)
        held += _ranked(part, seed, "holdout")[: min(number, len(part) - 1)]
        seen += len(part)
    if not held:
        of = counted(len(chosen), "image")
        raise ArgumentError("holdout", f"{share:g} of {of} is none, as one a class stays")
    return sorted(set(chosen) - set(held)), sorted(held)


def _by_class(labels: Tensor, chosen: Sequence[int]) -> list[list[int]]:
    parts: dict[int, list[int]] = {}
    for index, label in zip(chosen, labels[list(chosen)].tolist(), strict=True):
        parts.setdefault(label, []).append(index)
    return [parts[label] for label in sorted(parts)]


def _ranked(indices: Sequence[int], seed: int, purpose: str = "images") -> list[int]:
    """The indices in random order, the same on every machine."""

    def rank(index: int) -> bytes:
        return hashlib.sha256(f"{purpose} {seed} {index}".encode()).digest()

    return sorted(indices, key=rank)


def parse_indices(text: str, size: int) -> list[int]:
    """Image indices from "start:stop", "start:stop:step", a number, or several of these with commas.

    Raises:
        ValueError: not of that form, empty, beyond the data set's size, or an image given twice.
    """
    chosen: list[int] = []
    for part in check_instance("indices", text, str, "a text").split(","):
        pieces = part.strip().split(":")
        # No more digits than any data set's size has.
        whole = all(re.fullmatch(r"-?[0-9]{1,18}", piece) for piece in pieces)
        numbers = [int(piece) for piece in pieces] if whole else []
        if len(numbers) == 1:
            start, stop, step = numbers[0], numbers[0] + 1, 1
        elif len(numbers) in (2, 3):
            start, stop, step = (*numbers, 1)[:3]
        else:
            raise ArgumentError("indices", f"expected start:stop or start:stop:step, got {shown(text)}")
        if start < 0 or step < 1 or stop <= start:
            raise ArgumentError("indices", f"expected 0 ≤ start < stop and step ≥ 1, got {shown(text)}")
        if stop > size:
            raise ArgumentError("indices", f"the data has {size} images (0 to {size - 1}), got {shown(text)}")
        chosen.extend(range(start, stop, step))
    twice = [index for index, times in Counter(chosen).items() if times > 1]
    if twice:
        raise ArgumentError("indices", f"expected each image once, got {twice[0]} again in {shown(text)}")
    return sorted(chosen)


def written_indices(indices: Sequence[int]) -> str:
    """The text that `parse_indices` reads as these indices; they ascend."""
    parts, start = [], 0
    while start < len(indices):
        stop, step = start + 1, (*indices[start + 1 : start + 2], indices[start] + 1)[0] - indices[start]
        while stop < len(indices) and indices[stop] - indices[stop - 1] == step:
            stop += 1
        if stop - start > 2:
            every = "" if step == 1 else f":{step}"
            parts.append(f"{indices[start]}:{indices[stop - 1] + 1}{every}")
        else:
            # The second of two may begin a longer row.
            stop = start + 1
            parts.append(str(indices[start]))
        start = stop
    return ",".join(parts)
