"""Tables of robust accuracy: for people, as CSV and as LaTeX."""

from __future__ import annotations

from pathlib import Path

from diffproof.attacks.scoring import Scores
from diffproof.files import write_csv
from diffproof.intervals import Share
from diffproof.runs.attack.report import AttackReport, AttackRow
from diffproof.runs.latex import escaped, tabular

_HEADER = ("defence", "attack", "images", "scored", "one draw", "majority", "worst", "while optimising")
# A score of those runs alone that attacked once more.
_FIXED = "fixed noise"


def header(report: AttackReport) -> tuple[str, ...]:
    """Names of the columns; that of fixed noise where a run has it."""
    return (*_HEADER, *((_FIXED,) if _has_fixed(report) else ()))


def _has_fixed(report: AttackReport) -> bool:
    return any(row.attacked.fixed is not None for row in report.rows)


def table_cells(report: AttackReport, row: AttackRow) -> list[str]:
    """A run in the table as people read it: the scores in two lines, clean images above attacked ones."""
    columns = zip(_shares(row.clean), _shares(row.attacked), strict=True)
    scores = [f"{_cell(clean)}\n{_cell(attacked)}" for clean, attacked in columns]
    if _has_fixed(report):
        known = [_cell(one.fixed) for one in (row.clean, row.attacked) if one.fixed is not None]
        scores.append("\n".join(known) or "–")
    head = [report.label(row), row.settings.describe_attack(), str(len(row.results))]
    return [*head, "clean\nattacked", *scores]


def _shares(score: Scores) -> tuple[Share, Share, Share, Share]:
    return score.fresh, score.majority, score.worst, score.optimisation


def _cell(share: Share) -> str:
    return f"{100 * share.value:.1f} ({100 * share.low:.0f}–{100 * share.high:.0f})"


def write_attack_table(report: AttackReport, path: Path) -> None:
    """The table as CSV, with shares in [0, 1], their intervals, and each run's folder."""
    names = ("fresh", "majority", "worst", "optimisation")
    columns = [
        f"{when}_{name}{part}"
        for when in ("clean", "attacked")
        for name in names
        for part in ("", "_low", "_high")
    ]
    how = ("attack", "threat", "budget", "gradient", "surrogate_share")
    about = (*how, "protocol", "draws", "majority_of")
    known = ("clean_fixed", "attacked_fixed")
    lines: list[list[object]] = [["defence", *about, "images", "skipped", *columns, *known, "run"]]
    for row in report.rows:
        given = [getattr(row.settings, name) for name in about]
        shares = [
            f"{value:.6f}"
            for score in (row.clean, row.attacked)
            for share in _shares(score)
            for value in (share.value, share.low, share.high)
        ]
        counts = len(row.results), row.skipped
        fixed = ["" if one.fixed is None else f"{one.fixed.value:.6f}" for one in (row.clean, row.attacked)]
        lines.append([report.label(row), *given, *counts, *shares, *fixed, row.folder])
    write_csv(path, lines)


def write_attack_latex(report: AttackReport, path: Path) -> None:
    """The table as LaTeX: clean images above attacked ones, in percent, and remarks as comments."""
    columns = header(report)
    scores = columns[4:]
    over = rf"\multicolumn{{{len(scores)}}}{{c}}{{accuracy (\%), 95\% Clopper--Pearson interval}}"
    heads = [["", "", "", "", over], [rf"\cmidrule(lr){{5-{4 + len(scores)}}}"], list(columns)]
    sections: dict[str, list[list[str]]] = {}
    for row in report.rows:
        lines = [cell.split("\n") for cell in table_cells(report, row)]
        pair = [[escaped(cell[min(half, len(cell) - 1)]) for cell in lines] for half in (0, 1)]
        pair[1][:3] = [""] * 3
        threat = f"{row.settings.threat} {row.settings.budget}"
        sections.setdefault(threat, []).extend(pair)
    notes = [
        *(pair.sentence for pair in report.comparisons.pairs),
        *report.comparisons.remarks,
        *report.remarks,
    ]
    text = tabular(f"llrl{'r' * len(scores)}", heads, sections.values(), notes)
    path.write_text(text, encoding="utf-8")
