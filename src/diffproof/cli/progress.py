"""What a person sees of a run: progress bars with the time left, and the table of a report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from time import monotonic as now
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from diffproof.cli.screen import printed
from diffproof.errors import printable

# What one command runs or shows, another need not wait for.
if TYPE_CHECKING:
    from diffproof.runs.attack.job import AttackRun
    from diffproof.runs.attack.store import AttackedImage
    from diffproof.runs.certify.job import CertifyRun
    from diffproof.runs.certify.store import ImageResult
    from diffproof.scale.workforce import Workforce

# Seconds between lines where there is no terminal for a bar.
_LINE_EVERY = 60.0


class _Titled(Progress):
    """A bar below its title, which may take lines of its own, so that no number is cut."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """See Progress."""
        for task in self.tasks:
            yield Text(task.description, overflow="fold")
        yield from super().get_renderables()


@contextmanager
def shown_once_started(title: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """Progress that appears with the first step, so that what is refused before shows its one line only.

    Yields what is called with how many units are done since the last call, and perhaps with another title or
    unit. Where standard error is no terminal, a line a minute takes the place of the bar.
    """
    progress = _Titled(
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TextColumn("left"),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        console=Console(stderr=True),
    )
    title = printable(title)
    task, terminal, shown = progress.add_task(title, total=total, unit=unit), sys.stderr.isatty(), now()

    def advance(units: int, **changes: str) -> None:
        nonlocal shown
        progress.update(task, advance=units, **changes)  # type: ignore[arg-type]
        if terminal:
            progress.start()
        elif now() - shown > _LINE_EVERY:
            one = progress.tasks[0]
            what = f"{one.description}: {one.completed:,.0f} of {total:,} {one.fields['unit']}"
            printed(what, err=True)
            shown = now()

    try:
        yield advance
    finally:
        if progress.live.is_started:
            progress.stop()


def run_with_progress(job: CertifyRun, folder: Path, workers: Workforce | None = None) -> list[ImageResult]:
    """`certify.run`, perhaps on workers, with progress that counts evaluations of networks."""
    from diffproof.runs.certify.run import run
    from diffproof.runs.certify.workers import hired

    title = f"{job.settings.describe()} σ={job.settings.sigma:g}"
    total = len(job.part) * job.certifier.evaluations_per_image
    with shown_once_started(title, total, "evaluations") as advance:
        hire = nullcontext if workers is None else partial(hired, job, workers)
        return run(job, folder, advance, hire)


def attack_with_progress(
    job: AttackRun, folder: Path, workers: Workforce | None = None
) -> list[AttackedImage]:
    """`attack.run`, perhaps on workers, with progress that counts images and evaluations of networks."""
    from diffproof.runs.attack.run import run
    from diffproof.runs.attack.workers import hired

    title = f"{job.settings.describe()}, {job.settings.describe_attack()}"
    spent = 0
    with shown_once_started(title, len(job.part), "images") as advance:

        def on_evaluations(evaluations: int) -> None:
            nonlocal spent
            spent += evaluations
            advance(0, unit=f"images, {spent:,} evaluations")

        hire = nullcontext if workers is None else partial(hired, job, workers)
        return run(job, folder, advance, on_evaluations, hire)


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
