"""What runs are called on a page: as in the terminal, told apart where that does not."""

from __future__ import annotations

from collections import Counter

from diffproof.runs.attack.report import AttackReport
from diffproof.runs.certify.report import Report


def names(report: Report | AttackReport) -> list[str]:
    """The defence of each row, with its folder where another row has the same defence and setting."""
    return [name if folder is None else f"{name} ({folder})" for name, _, folder in _parts(report)]


def whole_names(report: Report | AttackReport) -> list[str]:
    """The same with what the defence was put to: no two are the same."""
    return [
        f"{name}, {setting}" if folder is None else f"{name}, {setting} ({folder})"
        for name, setting, folder in _parts(report)
    ]


def _parts(report: Report | AttackReport) -> list[tuple[str, str, str | None]]:
    """The defence, its setting and, where need be, the folder of each row."""
    if isinstance(report, Report):
        told = [(report.label(row), f"σ = {row.settings.sigma:g}", row.folders[0]) for row in report.rows]
    else:
        told = [(report.label(row), row.settings.describe_attack(), row.folder) for row in report.rows]
    often = Counter((name, setting) for name, setting, _ in told)
    return [
        (name, setting, str(folder) if often[name, setting] > 1 else None) for name, setting, folder in told
    ]
