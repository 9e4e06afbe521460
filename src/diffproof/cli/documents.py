"""What --json prints: attributes of the Python API under their names; docs/runs.md shows the documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# What one command runs or shows, another need not wait for.
if TYPE_CHECKING:
    from diffproof.runs.attack.report import AttackReport
    from diffproof.runs.certify.ablation import Ablation
    from diffproof.runs.certify.report import Report, Row
    from diffproof.runs.comparison import Compared

Document = dict[str, Any]

_RUN = ("folders", "settings", "weights_hash", "planned", "largest_radius", "draws", "votes", "shares")
_ACCURACY = ("average_radius", "wrong", "abstained")


def of_report(report: Report, written: Iterable[Path]) -> Document:
    """A report of certifications, and the files that were written."""
    rows = [
        {
            "label": report.label(row),
            **_attributes(row, _RUN),
            **_certified(row, report.radii),
        }
        for row in report.rows
    ]
    best = [
        {
            "label": one.label,
            "at": {
                float(radius): {
                    "sigma": row.settings.sigma,
                    "certified_accuracy": row.certified_accuracy(radius),
                    "at_0": row.certified_accuracy(0.0),
                }
                for radius, row in one.at.items()
            },
        }
        for one in report.best
    ]
    return {"radii": report.radii, "rows": rows, "best": best, **_compared(report, written)}


def of_ablation(ablation: Ablation, written: Iterable[Path]) -> Document:
    """What fewer votes or draws would have certified, and the files that were written."""
    last = next(reversed(ablation.rows.values()))
    rows = [{ablation.over: value, **_certified(row, ablation.radii)} for value, row in ablation.rows.items()]
    return {
        **_attributes(ablation, ("folder", "over")),
        "settings": last.settings,
        "planned": last.planned,
        "radii": ablation.radii,
        "rows": rows,
        "remarks": last.untaken,
        "written": list(written),
    }


def of_attack_report(report: AttackReport, written: Iterable[Path]) -> Document:
    """A report of attacks, and the files that were written."""
    about = ("folder", "settings", "planned", "skipped", "findings", "clean", "attacked")
    rows = [
        {"label": report.label(row), "images": len(row.results), **_attributes(row, about)}
        for row in report.rows
    ]
    return {"rows": rows, **_compared(report, written)}


def _compared(report: Report | AttackReport, written: Iterable[Path]) -> Document:
    pairs = [
        {
            **_attributes(pair, ("label", "against", "setting", "folders", "against_folders", "images")),
            "at": {measure: compared and _difference(compared) for measure, compared in pair.at.items()},
            "sentence": pair.sentence,
        }
        for pair in report.comparisons.pairs
    ]
    remarks = [*report.remarks, *report.comparisons.remarks]
    return {"comparisons": pairs, "remarks": remarks, "written": list(written)}


def _difference(compared: Compared) -> Document:
    parts = ("value", "low", "high", "gained", "lost", "p_value")
    return {**_attributes(compared.difference, parts), **_attributes(compared, ("corrected", "verdict"))}


def _certified(row: Row, radii: Sequence[float]) -> Document:
    accuracies = {radius: row.certified_accuracy(radius) for radius in map(float, radii)}
    return {"images": len(row.results), "certified_accuracy": accuracies, **_attributes(row, _ACCURACY)}


def _attributes(of: object, names: Iterable[str]) -> Document:
    return {name: getattr(of, name) for name in names}
