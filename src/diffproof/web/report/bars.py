"""Robust accuracy as bars within a table: every score after the attack beside that on clean images."""

from __future__ import annotations

from diffproof.attacks.scoring import Score, Scores
from diffproof.intervals import Share
from diffproof.runs.attack.report import AttackReport, AttackRow
from diffproof.web.markup import Html, tag
from diffproof.web.report.names import names
from diffproof.web.report.shares import interval, percent
from diffproof.web.report.table import scrolling

# What the scores are called in the terminal's report, by their names in Scores.
_SCORES = {
    Score.FRESH.value: "one draw",
    Score.MAJORITY.value: "majority",
    Score.WORST.value: "worst",
    Score.OPTIMISATION.value: "while optimising",
    "fixed": "fixed noise",
}
_HIGH = 16


def bars(report: AttackReport) -> Html:
    """The figure of all runs, with what shows and hides its bars."""
    choices = [
        tag(
            "label",
            tag("input", type="checkbox", checked=True, data_score=score),
            tag("span", called),
        )
        for score, called in _SCORES.items()
        if any(_share(row.attacked, score) is not None for row in report.rows)
    ]
    clean = tag(
        "label", tag("input", type="checkbox", checked=True, data_clean=True), tag("span", "clean images")
    )
    bands = tag(
        "label", tag("input", type="checkbox", checked=True, data_bands=True), tag("span", "95% intervals")
    )
    legend = tag("fieldset", tag("legend", "Bars"), choices, clean, bands, class_="legend scripted")
    head = [tag("th", name, scope="col") for name in ("score", "0 to 100%", "after the attack, and clean")]
    body = [_run(name, row) for name, row in zip(names(report), report.rows, strict=True)]
    caption = "Accuracy after the attack (full bar) and on clean images (outline), 95% interval in brackets"
    inner = tag("caption", caption), tag("thead", tag("tr", head)), body
    table = tag("table", *inner, class_="bars")
    return tag("div", legend, scrolling(caption, table), class_="chart")


def _run(name: str, row: AttackRow) -> Html:
    title = tag("code", name), " under ", tag("code", row.settings.describe_attack())
    head = tag("tr", tag("th", title, colspan=3, scope="rowgroup"))
    return tag("tbody", head, [_score(score, row.clean, row.attacked) for score in _SCORES])


def _score(score: str, clean: Scores, attacked: Scores) -> Html | None:
    """Its line; None where the run does not have it."""
    before, after = (_share(scores, score) for scores in (clean, attacked))
    if before is None or after is None:
        return None
    return tag(
        "tr",
        tag("th", _SCORES[score], scope="row"),
        tag("td", _bar(_SCORES[score], before, after), class_="bar"),
        tag("td", _told(after), tag("small", f"clean {_told(before)}")),
        data_score_row=score,
    )


def _told(share: Share) -> str:
    return f"{percent(share.value)} ({interval(share)})"


def _share(scores: Scores, score: str) -> Share | None:
    share: Share | None = getattr(scores, score)
    return share


def _bar(name: str, before: Share, after: Share) -> Html:
    """Both shares on a scale of 0 to 100, with their intervals."""
    told = f"{name}: {percent(after.value)} after the attack, {percent(before.value)} on clean images"
    ticks = [tag("line", x1=x, x2=x, y1=0, y2=_HIGH, class_="grid") for x in (25, 50, 75)]
    return tag(
        "svg",
        tag("title", told),
        ticks,
        tag("rect", x=0, y=1, width=100 * before.value, height=_HIGH - 2, class_="clean"),
        tag("rect", x=0, y=4, width=100 * after.value, height=_HIGH - 8, class_="attacked"),
        _whisker(before, 3, "of-clean"),
        _whisker(after, _HIGH / 2, "of-attacked"),
        viewBox=f"0 0 100 {_HIGH}",
        preserveAspectRatio="none",
        role="img",
        aria_label=told,
    )


def _whisker(share: Share, y: float, of: str) -> Html:
    low, high = 100 * share.low, 100 * share.high
    ends = [tag("line", x1=x, x2=x, y1=y - 2, y2=y + 2) for x in (low, high)]
    return tag("g", tag("line", x1=low, x2=high, y1=y, y2=y), ends, class_=f"whisker {of}")
