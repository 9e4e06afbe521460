"""What a person sees of a run: progress bars with the time left, and the table of a report."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
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
def shown_once_started() -> Iterator[Progress]:
    """A bar that appears with the first step, so that what is refused before shows its one line only."""
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
    try:
        yield progress
    finally:
        if progress.live.is_started:
            progress.stop()


def run_with_progress(job: CertifyRun, folder: Path) -> list[ImageResult]:
    """`certify.run` under a progress bar that counts draws."""
    from diffproof.runs.certify.run import run

    title = f"{job.settings.describe()} σ={job.settings.sigma:g}"
    with shown_once_started() as progress:
        task = progress.add_task(title, total=len(job.indices) * job.draws_per_image, unit="draws")

        def on_draws(draws: int) -> None:
            progress.start()
            progress.advance(task, draws)

        return run(job, folder, on_draws)


def attack_with_progress(job: AttackRun, folder: Path) -> list[AttackedImage]:
    """`attack.run` under a progress bar that counts images."""
    from diffproof.runs.attack.run import run

    title = f"{job.settings.describe()}, {job.settings.describe_attack()}"
    with shown_once_started() as progress:
        task = progress.add_task(title, total=len(job.indices), unit="images")

        def on_images(images: int) -> None:
            progress.start()
            progress.advance(task, images)

        return run(job, folder, on_images)


@contextmanager
def training_progress(iterations: int) -> Iterator[Callable[[int, float], None]]:
    """A progress bar with the loss; yields what training calls after each step.

    Where standard error is no terminal, a line a minute takes its place.
    """
    with shown_once_started() as progress:
        task = progress.add_task("loss –", total=iterations, unit="steps")
        mean, terminal, shown = 0.0, sys.stderr.isatty(), time.monotonic()

        def on_step(step: int, loss: float) -> None:
            nonlocal mean, shown
            weight = max(0.01, 1 / step)
            mean += weight * (loss - mean)
            if terminal:
                progress.start()
                progress.update(task, completed=step, description=f"loss {mean:.4f}")
            elif time.monotonic() - shown > _LINE_EVERY:
                print(f"iteration {step} of {iterations}, loss {mean:.4f}", file=sys.stderr, flush=True)
                shown = time.monotonic()

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
