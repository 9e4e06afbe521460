"""What a person sees of a run: progress bars with the time left, and the table of a report."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic as now
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

# What one command runs or shows, another need not wait for.
if TYPE_CHECKING:
    from diffproof.runs.attack.report import AttackReport
    from diffproof.runs.attack.run import AttackRun
    from diffproof.runs.attack.store import AttackedImage
    from diffproof.runs.certify.report import Report
    from diffproof.runs.certify.run import CertifyRun
    from diffproof.runs.certify.store import ImageResult

# Seconds between lines where there is no terminal for a bar.
_LINE_EVERY = 60.0


@contextmanager
def shown_once_started(title: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """Progress that appears with the first step, so that what is refused before shows its one line only.

    Yields what is called with how many units are done since the last call, and perhaps with another title or
    unit. Where standard error is no terminal, a line a minute takes the place of the bar.
    """
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    task, terminal, shown = progress.add_task(title, total=total, unit=unit), sys.stderr.isatty(), now()

    def advance(units: int, **changes: str) -> None:
        nonlocal shown
        progress.update(task, advance=units, **changes)  # type: ignore[arg-type]
        if terminal:
            progress.start()
        elif now() - shown > _LINE_EVERY:
            one = progress.tasks[0]
            what = f"{one.description}: {one.completed:,.0f} of {total:,} {one.fields['unit']}"
            print(what, file=sys.stderr, flush=True)
            shown = now()

    try:
        yield advance
    finally:
        if progress.live.is_started:
            progress.stop()


def run_with_progress(job: CertifyRun, folder: Path) -> list[ImageResult]:
    """`certify.run` with progress that counts evaluations of networks."""
    from diffproof.runs.certify.run import run

    title = f"{job.settings.describe()} σ={job.settings.sigma:g}"
    total = len(job.indices) * job.evaluations_per_image
    with shown_once_started(title, total, "evaluations") as advance:
        return run(job, folder, advance)


def attack_with_progress(job: AttackRun, folder: Path) -> list[AttackedImage]:
    """`attack.run` with progress that counts images, and evaluations of networks beside them."""
    from diffproof.runs.attack.run import run

    title = f"{job.settings.describe()}, {job.settings.describe_attack()}"
    spent = 0
    with shown_once_started(title, len(job.indices), "images") as advance:

        def on_evaluations(evaluations: int) -> None:
            nonlocal spent
            spent += evaluations
            advance(0, unit=f"images, {spent:,} evaluations")

        return run(job, folder, advance, on_evaluations)


@contextmanager
def training_progress(iterations: int) -> Iterator[Callable[[int, float], None]]:
    """Progress with the loss; yields what training calls after each step."""
    with shown_once_started("loss –", iterations, "steps") as advance:
        mean, done = 0.0, 0

        def on_step(step: int, loss: float) -> None:
            nonlocal mean, done
            weight = max(0.01, 1 / step)
            mean += weight * (loss - mean)
            advance(step - done, description=f"loss {mean:.4f}")
            done = step

        yield on_step


def print_report(report: Report) -> None:
    """The table on standard output, remarks below it."""
    from diffproof.runs.certify.report import cells, header

    table = Table(title="certified accuracy at ℓ2 radius ε, and average certified radius")
    for i, name in enumerate(header(report)):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    previous = None
    for row in report.rows:
        if previous is not None and row.settings.sigma != previous:
            table.add_section()
        previous = row.settings.sigma
        table.add_row(*cells(report, row))
    _print(table, report.remarks)


def print_attack_report(report: AttackReport) -> None:
    """The table on standard output, remarks below it."""
    from diffproof.runs.attack.report import HEADER, table_cells

    table = Table(title="robust accuracy in %, and its 95% Clopper–Pearson interval")
    for i, name in enumerate(HEADER):
        # On a narrow terminal what is attacked, and how, takes several lines.
        justify: Literal["left", "right"] = "left" if i in (0, 1, 3) else "right"
        table.add_column(name, justify=justify, no_wrap=i > 1, overflow="fold")
    previous = None
    for row in report.rows:
        threat = row.settings.threat, row.settings.budget
        if previous is not None and threat != previous:
            table.add_section()
        previous = threat
        table.add_row(*table_cells(report, row))
    _print(table, report.remarks)


def _print(table: Table, remarks: list[str]) -> None:
    # A table piped into a file is as wide as it is, not as a terminal that is not there.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 1000
    console = Console(width=width)
    console.print(table)
    for remark in remarks:
        console.print(f"note: {remark}", highlight=False, soft_wrap=True)
