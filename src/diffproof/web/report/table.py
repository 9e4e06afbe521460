"""The table of the terminal's report, to be sorted by any column."""

from __future__ import annotations

from collections.abc import Sequence

from diffproof.runs import comparison
from diffproof.runs.attack import tables as attacks
from diffproof.runs.attack.report import AttackReport, AttackRow
from diffproof.runs.certify.report import Report, Row
from diffproof.runs.certify.tables import best_cells, best_header, cells, header
from diffproof.runs.comparison import Comparisons
from diffproof.web.markup import Child, Html, markup, tag
from diffproof.web.report.names import names
from diffproof.web.report.shares import certified_share, interval

# Columns at the left whose cells are texts.
_CERTIFIED_TEXTS, _ATTACK_TEXTS = 1, 2


def results_table(report: Report | AttackReport) -> Html:
    """Every run in a row, with intervals below the shares."""
    if isinstance(report, Report):
        rows = [
            [name, *_certified(report, row)] for name, row in zip(names(report), report.rows, strict=True)
        ]
        caption = (
            "Certified accuracy at ℓ2 radius ε with its 95% interval, and average certified radius (ACR)"
        )
        made = sortable(caption, header(report), rows, _CERTIFIED_TEXTS)
        return markup(made, _best(report), _compared(report.comparisons))
    columns = [name for name in attacks.header(report) if name != "scored"]
    lines = [[name, *_attacked(report, row)] for name, row in zip(names(report), report.rows, strict=True)]
    caption = "Accuracy in % after the attack, below it on clean images; 95% intervals in brackets"
    return markup(sortable(caption, columns, lines, _ATTACK_TEXTS), _compared(report.comparisons))


def _best(report: Report) -> Html | None:
    """The table of what is best over sigma; None where no method has several."""
    if not report.best:
        return None
    rows = [best_cells(one) for one in report.best]
    return sortable("Best σ at each ε, in brackets its accuracy at ε=0", best_header(report), rows, 1)


def _compared(comparisons: Comparisons) -> Html | None:
    """The table of differences; None where nothing is compared."""
    if not comparisons.pairs:
        return None
    cells = [comparison.table_cells(pair) for pair in comparisons.pairs]
    rows = [[name, number, *map(_below, differences)] for name, number, *differences in cells]
    caption = "Difference in points on common images, its 95% interval, and p corrected for all comparisons"
    return sortable(caption, comparison.table_header(comparisons), rows, 1)


def _certified(report: Report, row: Row) -> list[Child]:
    """All cells but the name."""
    found: list[Child] = list(cells(report, row))
    first = header(report).index("images") + 1
    for place, radius in enumerate(report.radii, first):
        share = certified_share(row, radius)
        if share is not None:
            found[place] = (str(found[place]), tag("small", interval(share)))
    return found[1:]


def _attacked(report: AttackReport, row: AttackRow) -> list[Child]:
    """All cells but the name."""
    pairs = zip(attacks.table_cells(report, row), attacks.header(report), strict=True)
    texts = [cell for cell, name in pairs if name not in ("defence", "scored")]
    # The clean score stands above the attacked one there.
    lines = [text.partition("\n") for text in texts]
    return [_below(f"{after}\nclean {clean}") if after else clean for clean, _, after in lines]


def _below(text: str) -> Child:
    """A text whose second line, if it has one, is smaller."""
    first, _, second = text.partition("\n")
    return (first, tag("small", second)) if second else first


def sortable(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Child]], texts: int) -> Html:
    """A table whose columns report.js sorts.

    Args:
        caption: what it shows.
        columns: their names.
        rows: a cell for each column.
        texts: so many columns at the left hold texts, the first of them what a row is called.
    """
    head = [
        tag("th", name, scope="col", class_=None if place < texts else "number")
        for place, name in enumerate(columns)
    ]
    body = [
        tag(
            "tr",
            tag("th", tag("code", row[0]), scope="row"),
            [
                tag("td", cell, class_=None if place < texts else "number")
                for place, cell in enumerate(row[1:], 1)
            ],
        )
        for row in rows
    ]
    made = tag(
        "table", tag("caption", caption), tag("thead", tag("tr", head)), tag("tbody", body), class_="sortable"
    )
    return scrolling(caption, made)


def scrolling(told: str, table: Html) -> Html:
    """A table that is pushed to and fro where it is wider than the screen, by the keyboard, too."""
    return tag("div", table, class_="wide", role="region", aria_label=told, tabindex=0)
