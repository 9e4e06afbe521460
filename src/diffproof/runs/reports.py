"""The report of runs, whatever kind they are of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffproof.errors import ArgumentError
from diffproof.runs.attack.report import AttackReport, load_attack_report
from diffproof.runs.attack.store import AttackStore
from diffproof.runs.certify.report import Report, load_report

# The ε of a report's columns unless others are asked for.
RADII = (0.0, 0.25, 0.5, 0.75, 1.0)


def are_attacks(folders: Sequence[Path]) -> bool:
    """Whether runs are of attacks, or else of certification; ValueError if some are of each."""
    attacks = [AttackStore.holds(folder) for folder in folders]
    if any(attacks) and not all(attacks):
        raise ArgumentError("runs", "expected runs of one kind, got certification and attack runs")
    return all(attacks)


def load_any_report(folders: Sequence[Path]) -> Report | AttackReport:
    """The report of runs with the usual columns.

    Args:
        folders: run folders with finished images.

    Raises:
        ValueError: runs of both kinds, or what `load_report` and `load_attack_report` refuse.
    """
    return load_attack_report(folders) if are_attacks(folders) else load_report(folders, RADII)
