"""Lines, axes and colours of charts as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diffproof.web.markup import Html, tag

# Colours are report.css's; numbers of colours and of dashes share no factor, so that lines repeat late.
_COLOURS = 8
DASHES = ("none", "7 3", "2 3", "9 3 2 3", "12 4 4 4")
# Units of the drawing that a step must be wide to be drawn on its own.
_FINE = 0.5
_TICKS = 6


@dataclass(frozen=True)
class Frame:
    """Where a panel draws, in units of its SVG: a radius of 0 to `largest`, a share of 0 to 1."""

    largest: float
    width: float = 480.0
    height: float = 300.0
    left: float = 46.0
    right: float = 14.0
    top: float = 10.0
    bottom: float = 44.0

    def x(self, radius: float) -> float:
        """Where a radius is."""
        return self.left + (self.width - self.left - self.right) * min(1.0, radius / self.largest)

    def y(self, share: float) -> float:
        """Where a share is."""
        return self.top + (self.height - self.top - self.bottom) * (1 - share)


def line_class(place: int) -> str:
    """The class that gives a line of a chart its colour."""
    return f"c{place % _COLOURS}"


def path_of(frame: Frame, radii: Sequence[float], shares: Sequence[float], *, back: bool = False) -> str:
    """The path of a step function that has each value from its radius on, up to the last radius.

    Steps finer than a screen shows are joined, to the lowest of them.

    Args:
        frame: where it is drawn.
        radii: ascending.
        shares: the value from each radius on.
        back: whether it goes on from another path, from its right end to the left.
    """
    points: list[tuple[float, float]] = []
    for radius, share in zip(radii, shares, strict=True):
        x, y = frame.x(radius), frame.y(share)
        if points and len(points) > 1 and x - points[-1][0] < _FINE:
            points[-1] = points[-1][0], y
        else:
            points.append((x, y))
    if back:
        path = f"L{points[-1][0]:.1f} {points[-1][1]:.1f}"
        for (x, _), (_, before) in zip(points[:0:-1], points[-2::-1], strict=True):
            path += f"H{x:.1f}V{before:.1f}"
        return path + f"H{points[0][0]:.1f}"
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    return path + "".join(f"H{x:.1f}V{y:.1f}" for x, y in points[1:])


def axes(frame: Frame) -> Html:
    """Grid, ticks and names of both axes."""
    drawn = []
    right, bottom = frame.width - frame.right, frame.height - frame.bottom
    for percent in range(0, 101, 25):
        y = frame.y(percent / 100)
        drawn += [
            tag("line", x1=frame.left, x2=right, y1=y, y2=y, class_="grid"),
            tag("text", f"{percent}", x=frame.left - 6, y=y + 4, class_="tick end"),
        ]
    step = nice_step(frame.largest / _TICKS)
    for number in range(math.floor(frame.largest / step + 1e-9) + 1):
        x = frame.x(step * number)
        drawn += [
            tag("line", x1=x, x2=x, y1=frame.top, y2=bottom, class_="grid"),
            tag("text", f"{round(step * number, 9):g}", x=x, y=bottom + 16, class_="tick middle"),
        ]
    middle = (frame.left + right) / 2, (frame.top + bottom) / 2
    turned = f"rotate(-90 12 {middle[1]:g})"
    drawn += [
        tag(
            "text",
            "certified ℓ2 radius ε, pixels in [0, 1]",
            x=middle[0],
            y=frame.height - 8,
            class_="name middle",
        ),
        tag("text", "certified accuracy (%)", x=12, y=middle[1], transform=turned, class_="name middle"),
    ]
    return tag("g", drawn, class_="axes", aria_hidden="true")


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, … times a power of ten that is no smaller."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(round(factor * power, 12) for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
