"""Words of messages: numbers with their nouns, long lists cut short."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable

from diffproof.errors import printable


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number and its noun: "1 picture", "2,000 pictures"; `plural` for one that does not end in s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def part_of(number: int, whole: int, noun: str) -> str:
    """A part and its verb: "1 of 5 images is", "2 of 5 images are", "1 of 1 image is"."""
    return f"{number:,} of {counted(whole, noun)} {'is' if number == 1 else 'are'}"


def unfinished(finished: int, planned: int) -> list[str]:
    """The remark that a run is not finished, where it is not."""
    return [f"{part_of(finished, planned, 'image')} finished"] if finished < planned else []


def shortened(items: Iterable[object], most: int = 5) -> str:
    """A list with commas, and how many more there are than `most`."""
    texts = [printable(item, 200) for item in items]
    more = [f"and {len(texts) - most:,} more"] if len(texts) > most else []
    return ", ".join([*texts[:most], *more])


def effort(workers: int, evaluations: int, wasted: float, what: str) -> str:
    """What workers did, and which share of it was for nothing."""
    return (
        f"workers: {workers:,}, {counted(evaluations, 'evaluation')}, {wasted:.1%} of the {what} for nothing"
    )


def kind_of(value: object) -> str:
    """The name of a value's type. An async function's call is closed, since Python complains of it, too."""
    if inspect.iscoroutine(value):
        value.close()
    return type(value).__name__


def duration(seconds: float) -> str:
    """Two digits or more: "8.3 s", "2.5 min", "13 h", "4.2 days"."""
    units = (("s", 1, 100), ("min", 60, 6_000), ("h", 3_600, 360_000), ("days", 86_400, math.inf))
    unit, length = next((unit, length) for unit, length, most in units if seconds < most)
    return f"{rounded(seconds / length)} {unit}"


def rounded(value: float) -> str:
    """Two digits or more: "8.3", "1,234"."""
    return f"{value:,.{1 if value < 10 else 0}f}"
