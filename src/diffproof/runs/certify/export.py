"""Exports of a run in other projects' formats."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path

from diffproof.checks import unknown_name
from diffproof.runs.certify.store import CertifyStore
from diffproof.wording import part_of

FORMATS = ("cohen",)
ABSTAIN = -1


def export(folder: Path, form: str) -> str:
    """A run as text.

    Args:
        folder: the run folder.
        form: "cohen", the TSV of Cohen et al.'s certify.py, which their analysis code reads: idx, label
            (the true one), predict (−1 for abstention), radius, correct (0 or 1), time (h:mm:ss.ffffff).
            Radii keep all digits where theirs have three.

    Raises:
        ValueError: no run folder, or an unknown format.

    Warns:
        UserWarning: the run is not finished.
    """
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)
    with CertifyStore.reading(folder) as store:
        results, planned = store.results(), store.identity.planned
    if len(results) < planned:
        warnings.warn(f"{folder}: {part_of(len(results), planned, 'image')} finished", stacklevel=2)
    lines = ["idx\tlabel\tpredict\tradius\tcorrect\ttime"]
    for result in results:
        label = result.certificate.label
        lines.append(
            f"{result.image_index}\t{result.true_label}\t{ABSTAIN if label is None else label}"
            f"\t{result.certificate.radius!r}\t{int(result.correct)}\t{timedelta(seconds=result.seconds)}"
        )
    return "\n".join(lines) + "\n"
