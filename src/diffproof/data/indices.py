"""Which images of a data set: the indices that a user writes."""

from __future__ import annotations

from diffproof.errors import ArgumentError


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
            raise ArgumentError("indices", f"expected start:stop or start:stop:step, got {text!r}")
        if start < 0 or step < 1 or stop <= start:
            raise ArgumentError("indices", f"expected 0 ≤ start < stop and step ≥ 1, got {text!r}")
        if stop > size:
            raise ArgumentError("indices", f"the data has {size} images (0 to {size - 1}), got {text!r}")
        chosen.extend(range(start, stop, step))
    return sorted(set(chosen))
