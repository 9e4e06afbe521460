"""Tables of certified accuracy: for people, as CSV and as LaTeX."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from diffproof.files import write_csv
from diffproof.runs.certify.report import Best, Report, Row
from diffproof.runs.labels import short_source
from diffproof.runs.latex import escaped, tabular
from diffproof.smoothing.stopping import Stopping
from diffproof.wording import counted


def header(report: Report) -> list[str]:
    """Column names of the table."""
    return [
        "defence",
        "sigma",
        "images",
        *(f"ε={radius:g}" for radius in report.radii),
        "ACR",
        "wrong",
        "abstained",
    ]


def cells(report: Report, row: Row) -> list[str]:
    """One row of the table as people read it: percentages, – where no radius that large can be proved."""
    accuracies = [
        f"{row.certified_accuracy(radius):.1%}" if radius <= row.largest_radius else "–"
        for radius in report.radii
    ]
    settings = row.settings
    return [
        report.label(row),
        f"{settings.sigma:g}",
        str(len(row.results)),
        *accuracies,
        f"{row.average_radius:.3f}",
        f"{row.wrong:.1%}",
        f"{row.abstained:.1%}",
    ]


def best_header(report: Report) -> list[str]:
    """Column names of the table of what is best over sigma."""
    return ["defence", "images", *(f"ε={radius:g}" for radius in report.radii)]


def best_cells(best: Best) -> list[str]:
    """One row of what is best over sigma: accuracy, and that at ε=0 of the same sigma in brackets."""
    images = len(next(iter(best.at.values())).results)
    accuracies = [
        f"{row.certified_accuracy(radius):.1%} ({row.certified_accuracy(0.0):.1%})"
        if radius <= row.largest_radius
        else "–"
        for radius, row in best.at.items()
    ]
    return [best.label, str(images), *accuracies]


def write_table(report: Report, path: Path) -> None:
    """The table as CSV, with shares in [0, 1], the statistics of each run, and its folder."""
    radii = [f"certified_accuracy_at_{radius:g}" for radius in report.radii]
    tests = ["n0", "n", "draws", "votes", "radii", "alpha"]
    lines: list[list[object]] = [
        ["defence", "sigma", "images", *radii, "acr", "wrong", "abstained", *tests, "run"]
    ]
    for row in report.rows:
        s = row.settings
        accuracies = [f"{row.certified_accuracy(radius):.6f}" for radius in report.radii]
        shares = [f"{value:.6f}" for value in (row.average_radius, row.wrong, row.abstained)]
        head = [report.label(row), s.sigma, len(row.results)]
        votes = None if row.votes is None else f"{row.votes[0]:.6g}"
        asked = [s.n0, s.n, f"{row.draws:.6g}", votes, s.radii, s.alpha]
        lines.append([*head, *accuracies, *shares, *asked, "; ".join(map(str, row.folders))])
    write_csv(path, lines)


def write_latex(report: Report, path: Path) -> None:
    """The table as LaTeX with accuracies in percent, and what a reader must know as comments."""
    radii = [f"{radius:g}" for radius in report.radii]
    last = 2 + len(radii)
    over = rf"\multicolumn{{{len(radii)}}}{{c}}{{certified accuracy (\%) at $\ell_2$ radius $\varepsilon$}}"
    heads = [["", "", over, ""], [rf"\cmidrule(lr){{3-{last}}}"], ["defence", r"$\sigma$", *radii, "ACR"]]
    sections: dict[str, list[list[str]]] = {}
    for row in report.rows:
        label, sigma, _, *accuracies, radius, _, _ = cells(report, row)
        sections.setdefault(sigma, []).append([label, sigma, *accuracies, radius])
    for one in report.best:
        label, _, *accuracies = best_cells(one)
        sections.setdefault("best", []).append([label, "best", *accuracies, ""])
    plain = [
        [[escaped(text.replace("%", "")) for text in line] for line in lines] for lines in sections.values()
    ]
    sentences = [pair.sentence for pair in report.comparisons.pairs]
    notes = [about(report), *sentences, *report.comparisons.remarks, *report.remarks]
    path.write_text(tabular(f"ll{'r' * (len(radii) + 1)}", heads, plain, notes), encoding="utf-8")


def about(report: Report) -> str:
    """What all rows have in common, or what there is among them: data, images, draws, alpha."""
    data = _either(f"{short_source(row.settings.data)} ({row.settings.split})" for row in report.rows)
    images = _either(counted(len(row.results), "image") for row in report.rows)
    signs = {Stopping.FIXED: "=", Stopping.SEQUENTIAL: "≤"}
    draws = _either(f"n {signs[Stopping(row.settings.stop)]} {row.settings.n}" for row in report.rows)
    alpha = _either(f"α = {row.settings.alpha:g}" for row in report.rows)
    return f"{data}, {images}, {draws}, {alpha}"


def _either(texts: Iterable[str]) -> str:
    """The different texts, in order of appearance."""
    return " or ".join(dict.fromkeys(texts))
