"""The numbers that the papers print, packaged as data."""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Place:
    """Where a number is printed.

    Attributes:
        paper: "DensePure", "DDS", "RDC" or "AGDM".
        table: its number, "text" for one in the text.
        method: the row, as printed.
        setting: what else the row or the table's head says.
        metric: what was measured.
        at: the column.
    """

    paper: str
    table: str
    method: str
    setting: str
    metric: str
    at: str


@functools.cache
def printed() -> Mapping[tuple[str, Place], float]:
    """Every number, in percent where it is a share, by data set and place."""
    text = (files("diffproof") / "assets" / "printed.csv").read_text(encoding="utf-8")
    return {
        (line["dataset"], Place(*(line[name] for name in ("source", *_NAMES)))): float(line["value"])
        for line in csv.DictReader(text.splitlines())
    }


_NAMES = ("table", "method", "setting", "metric", "at")


def number(dataset: str, place: Place) -> float | None:
    """A printed number; None where the paper has none."""
    return printed().get((dataset, place))
