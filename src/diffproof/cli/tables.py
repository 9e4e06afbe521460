"""Reports for people: tables, what was compared in words, and what a reader must know."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffproof.cli.screen import Rows, said, show

# What one command runs or shows, another need not wait for.
if TYPE_CHECKING:
    from diffproof.runs.attack.report import AttackReport
    from diffproof.runs.certify.ablation import Ablation
    from diffproof.runs.certify.report import Report
    from diffproof.runs.comparison import Comparisons


def print_report(report: Report) -> None:
    """The tables on standard output, remarks below them."""
    from diffproof.runs.certify.tables import best_cells, best_header, cells, header

    tables = [
        Rows(
            header(report),
            [cells(report, row) for row in report.rows],
            repeated=1,
            sections=_changes([row.settings.sigma for row in report.rows]),
            title="certified accuracy at ℓ2 radius ε, and average certified radius",
        )
    ]
    if report.best:
        title = "best sigma at each ε, in brackets its accuracy at ε=0"
        tables.append(Rows(best_header(report), [best_cells(one) for one in report.best], title=title))
    _print(tables, report.remarks, report.comparisons)


def print_ablation(ablation: Ablation) -> None:
    """The table on standard output, remarks below it."""
    from diffproof.runs.certify.ablation import cells, header

    row = next(iter(ablation.rows.values()))
    settings = row.settings
    title = f"certified accuracy of {settings.describe()}, sigma = {settings.sigma:g}, at ℓ2 radius ε"
    _print([Rows(header(ablation), cells(ablation), title=title)], row.untaken)


def print_attack_report(report: AttackReport) -> None:
    """The table on standard output, remarks below it."""
    from diffproof.runs.attack.tables import header, table_cells

    threats = [(row.settings.threat, row.settings.budget) for row in report.rows]
    table = Rows(
        header(report),
        [table_cells(report, row) for row in report.rows],
        names=2,
        repeated=2,
        sections=_changes(threats),
        title="robust accuracy in %, and its 95% Clopper–Pearson interval",
    )
    _print([table], report.remarks, report.comparisons)


def _changes(values: Sequence[object]) -> list[bool]:
    """Which values are others than those before them."""
    return [False, *(one != other for one, other in itertools.pairwise(values))]


def _print(tables: Sequence[Rows], remarks: Sequence[str], comparisons: Comparisons | None = None) -> None:
    for table in tables:
        show(table)
    if comparisons is not None and comparisons.pairs:
        _print_comparisons(comparisons)
    for remark in [*remarks, *(comparisons.remarks if comparisons else ())]:
        said(f"note: {remark}")


def _print_comparisons(comparisons: Comparisons) -> None:
    """The table of differences, and the same in words."""
    from diffproof.runs.comparison import table_cells, table_header

    show(
        Rows(
            table_header(comparisons),
            [table_cells(pair) for pair in comparisons.pairs],
            title="difference in points on common images, its 95% interval, and p corrected",
        )
    )
    for pair in comparisons.pairs:
        said(pair.sentence)
