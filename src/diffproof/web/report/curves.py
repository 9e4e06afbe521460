"""Certified accuracy over radius as SVG, one panel for each sigma, and the table behind each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffproof.intervals import Share
from diffproof.runs.certify.report import Report, Row
from diffproof.smoothing.stopping import Stopping
from diffproof.web.markup import Html, tag
from diffproof.web.report.lines import DASHES, Frame, axes, line_class, nice_step, path_of
from diffproof.web.report.names import names
from diffproof.web.report.shares import certified_share, interval, percent
from diffproof.web.report.table import scrolling
from diffproof.wording import counted

# Places of the slider, at most, and rows of a table behind a chart.
_PLACES, _ROWS = 250, 12
# Lines of a panel with their intervals on, which otherwise hide each other.
_FEW = 3


def curves(report: Report) -> Html:
    """The figure of all panels, with what shows and hides its lines."""
    found = list(zip(names(report), report.rows, strict=True))
    labels = list(dict.fromkeys(name for name, _ in found))
    sigmas = sorted({row.settings.sigma for row in report.rows})
    lines = {sigma: [(name, row) for name, row in found if row.settings.sigma == sigma] for sigma in sigmas}
    panels = [_panel(sigma, lines[sigma], labels, report.radii) for sigma in sigmas]
    few = max(map(len, lines.values())) <= _FEW
    choices = [
        tag(
            "label",
            tag("input", type="checkbox", checked=True, data_line=place),
            _sample(place),
            tag("span", label),
        )
        for place, label in enumerate(labels)
    ]
    box = tag("input", type="checkbox", checked=few, data_bands=True)
    bands = tag("label", box, tag("span", "95% intervals"), class_="scripted")
    legend = tag("fieldset", tag("legend", "Lines"), choices, bands, class_="legend")
    parts = legend, tag("div", panels, class_="panels")
    return tag("div", *parts, class_="chart" if few else "chart no-bands")


def _sample(place: int) -> Html:
    line = tag(
        "line",
        x1=1,
        y1=5,
        x2=27,
        y2=5,
        class_=line_class(place),
        stroke_dasharray=DASHES[place % len(DASHES)],
    )
    return tag("svg", line, viewBox="0 0 28 10", width=28, height=10, aria_hidden="true")


def _panel(sigma: float, rows: list[tuple[str, Row]], labels: list[str], radii: Sequence[float]) -> Html:
    """The chart of one sigma.

    Args:
        sigma: of the runs.
        rows: the runs with their names.
        labels: names of all lines, in the order of their colours.
        radii: what its table has besides round ones.
    """
    largest = max(row.largest_radius for _, row in rows) or 1.0
    frame, step = Frame(largest), nice_step(largest / _PLACES)
    lines = [_line(row, frame, labels.index(name), name, step) for name, row in rows]
    falling = f"a falling line for each of {counted(len(rows), 'defence')}"
    svg = tag(
        "svg",
        axes(frame),
        lines,
        tag("line", y1=frame.top, y2=frame.height - frame.bottom, class_="cursor", visibility="hidden"),
        viewBox=f"0 0 {frame.width:g} {frame.height:g}",
        role="img",
        aria_label=f"Certified accuracy at σ = {sigma:g}: {falling}; the table below has the values.",
        data_largest=largest,
        data_left=frame.left,
        data_right=frame.width - frame.right,
    )
    end = f"{step * math.floor(largest / step + 1e-9):g}"
    slider = tag("input", type="range", min=0, max=end, step=f"{step:g}", value=0)
    return tag(
        "figure",
        tag("figcaption", tag("h3", f"σ = {sigma:g}")),
        svg,
        tag("label", "radius ε ", slider, class_="slider scripted"),
        tag("output", class_="reading scripted"),
        _behind(rows, largest, radii),
        class_="panel",
    )


def _line(row: Row, frame: Frame, place: int, label: str, step: float) -> Html:
    """A run's line, its band, and what it says at each place of the slider."""
    radii, shares = row.certification.curve()
    end = max(frame.largest, radii[-1])
    drawn = path_of(frame, [*radii, end], [*shares, shares[-1]])
    asked = row.settings.asked_radii if row.settings.stop != Stopping.FIXED else None
    dots = [
        tag("circle", cx=frame.x(radius), cy=frame.y(row.certified_accuracy(radius)), r=3, class_="dot")
        for radius in asked or ()
    ]
    places = [step * number for number in range(math.floor(frame.largest / step + 1e-9) + 1)]
    values = [_told(certified_share(row, round(radius, 9)), row, round(radius, 9)) for radius in places]
    return tag(
        "g",
        _band(row, frame, radii, shares),
        tag("path", d=drawn, class_="line", stroke_dasharray=DASHES[place % len(DASHES)]),
        dots,
        class_=f"series {line_class(place)}",
        data_series=place,
        data_label=label,
        data_values="|".join(values),
    )


def _band(row: Row, frame: Frame, radii: list[float], shares: list[float]) -> Html | None:
    """The intervals of a line; none of a run whose intervals are those of a few radii."""
    if row.settings.until_half_width is not None:
        return None
    within = [
        (radius, share) for radius, share in zip(radii, shares, strict=True) if radius <= row.largest_radius
    ]
    found = [Share.of(share, len(row.results)) for _, share in within]
    ends = [*(radius for radius, _ in within), row.largest_radius]
    upper = path_of(frame, ends, [*(one.high for one in found), found[-1].high])
    lower = path_of(frame, ends, [*(one.low for one in found), found[-1].low], back=True)
    return tag("path", d=f"{upper}{lower}Z", class_="band")


def _told(share: Share | None, row: Row, radius: float) -> str:
    """What stands beside a line at a radius."""
    if share is not None:
        return f"{percent(share.value)} ({interval(share)})"
    return "–" if radius > row.largest_radius else percent(row.certified_accuracy(radius))


def _behind(rows: list[tuple[str, Row]], largest: float, radii: Sequence[float]) -> Html:
    """The table behind a panel."""
    step = nice_step(largest / _ROWS)
    steps = (round(step * number, 9) for number in range(math.floor(largest / step + 1e-9) + 1))
    head = tag("tr", tag("th", "ε", scope="col"), [tag("th", name, scope="col") for name, _ in rows])
    body = [
        tag(
            "tr",
            tag("th", f"{radius:g}", scope="row"),
            [tag("td", _told(certified_share(row, radius), row, radius)) for _, row in rows],
        )
        for radius in sorted({*steps, *radii})
        if radius <= largest
    ]
    caption = "Certified accuracy at ℓ2 radius ε, 95% interval in brackets"
    table = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", body))
    return tag("details", tag("summary", "Table of this chart"), scrolling(caption, table))
