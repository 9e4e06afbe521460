"""Which images of a data set: the indices that a user writes."""

from __future__ import annotations

import re
from collections import Counter

from diffproof.checks import check_instance, shown
from diffproof.errors import ArgumentError


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
