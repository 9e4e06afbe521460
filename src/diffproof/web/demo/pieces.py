"""Pieces of the demo's page: pictures, bars, the chart of a growing radius, problems."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from diffproof.errors import printable
from diffproof.web.markup import Child, Html, tag
from diffproof.web.report.lines import nice_step
from diffproof.web.report.thumbnails import Album

# The chart, in units of its drawing.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 240, 52, 16, 12, 44
_TICKS = 5


def tile(picture: Tensor, *caption: Child, kind: str = "") -> Html:
    """A picture, enlarged by the page, with a caption that is its text, too.

    Args:
        picture: C×H×W floats, cut to [0, 1], with C = 1 or 3.
        caption: what stands below it.
        kind: classes of the figure.
    """
    album = Album()
    album.add(picture.detach().cpu())
    ((uri,), _) = album.uris()
    said = [one for one in caption if isinstance(one, str)]
    image = tag("img", src=uri, alt=" ".join(said))
    return tag("figure", image, tag("figcaption", caption), class_=f"tile {kind}".strip())


def strip(tiles: Iterable[Html]) -> Html:
    """Tiles side by side."""
    return tag("div", list(tiles), class_="strip")


def sentence(*children: Child, kind: str = "") -> Html:
    """A line of text."""
    return tag("p", children, class_=kind or None)


def problem(error: BaseException) -> Html:
    """What went wrong, in one sentence, as screen readers read it at once."""
    return tag("p", printable(error), class_="problem", role="alert")


def bars(caption: str, rows: Sequence[tuple[str, float, str]], largest: float = 1.0) -> Html:
    """A table with a bar a row.

    Args:
        caption: what the bars are.
        rows: name, length and what is written beside it.
        largest: the length of a full bar.
    """
    body = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            tag("td", _bar(value / largest if largest else 0.0), class_="bar"),
            tag("td", told, class_="number"),
        )
        for name, value, told in rows
    ]
    return tag("table", tag("caption", caption), tag("tbody", body), class_="bars")


def _bar(share: float) -> Html:
    filled = tag("rect", x=0, y=0, width=round(100 * min(1.0, share), 2), height=10)
    return tag("svg", filled, viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true")


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Child]]) -> Html:
    """A table whose first cells name their rows."""
    body = [
        tag("tr", tag("th", name, scope="row"), [tag("td", cell) for cell in cells]) for name, *cells in rows
    ]
    names = tag("tr", [tag("th", one, scope="col") for one in head])
    whole = tag("table", tag("caption", caption), tag("thead", names), tag("tbody", body))
    return tag("div", whole, class_="wide", tabindex=0)


def growth(points: Sequence[tuple[int, float | None]], most: int, largest: float) -> Html:
    """The chart of a radius over the draws that prove it.

    Args:
        points: draws, ascending, and the radius that they prove; None for none.
        most: where the draws end.
        largest: the largest radius that can come out.
    """

    def x(draws: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * draws / most

    def y(radius: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - radius / (largest or 1.0))

    line, floor = f"M{x(0):.1f} {y(0):.1f}", _HEIGHT - _BOTTOM
    for draws, radius in points:
        line += f"H{x(draws):.1f}V{y(radius or 0.0):.1f}"
    last, proved = points[-1] if points else (0, None)
    told = f"After {last:,} draws the certified radius is {proved or 0.0:.3f}, of at most {largest:.3f}."
    return tag(
        "svg",
        tag("title", told),
        _grid(x, [step * nice_step(most / _TICKS) for step in range(_TICKS + 1)], most, vertical=True),
        _grid(y, [step * nice_step(max(largest, 1e-9) / _TICKS) for step in range(_TICKS + 1)], largest),
        tag("path", d=line, class_="line"),
        tag("circle", cx=x(last), cy=y(proved or 0.0), r=4, class_="dot"),
        tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(largest), y2=y(largest), class_="limit"),
        tag("text", "draws of noise", x=(_LEFT + _WIDTH) / 2, y=_HEIGHT - 6, class_="middle"),
        tag("text", "certified radius", x=-floor / 2, y=14, transform="rotate(-90)", class_="middle"),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=told,
        class_="growth",
    )


def _grid(place: object, values: Sequence[float], most: float, *, vertical: bool = False) -> list[Html]:
    assert callable(place)
    drawn = []
    for value in values:
        if value > most:
            continue
        at, told = place(value), f"{round(value, 9):,g}"
        if vertical:
            line = tag("line", x1=at, x2=at, y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="grid")
            drawn += [line, tag("text", told, x=at, y=_HEIGHT - _BOTTOM + 16, class_="middle")]
        else:
            line = tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=at, y2=at, class_="grid")
            drawn += [line, tag("text", told, x=_LEFT - 6, y=at + 4, class_="end")]
    return drawn
