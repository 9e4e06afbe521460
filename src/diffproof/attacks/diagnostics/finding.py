"""What a check of an attack evaluation found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        name: name of the check.
        passed: nothing speaks against the evaluation.
        message: what was measured; if the check did not pass, what that means and what to do.
        measured: the figures, by name.
    """

    name: str
    passed: bool
    message: str
    measured: dict[str, float]
