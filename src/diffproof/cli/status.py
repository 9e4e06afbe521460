"""diffproof status: how far runs are."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from diffproof.cli.flags import command, json_option
from diffproof.cli.paths import PATH
from diffproof.cli.screen import Rows, print_json, said, show
from diffproof.wording import counted, duration, effort, rounded

if TYPE_CHECKING:
    from diffproof.runs.progress import WorkerState
    from diffproof.runs.status import Status

# Lines of images that failed, of a run.
_MOST_LINES = 10
_HEADER = ("run", "what", "images", "draws in work", "done", "evaluations/s", "images/h", "left", "state")
_WORKERS = ("worker", "host", "device", "state", "units", "", "evaluations", "busy", "heard", "last error")


@command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@json_option
def status(runs: tuple[Path, ...], as_json: bool) -> None:
    """Say how far RUNS are, at work or not: how fast, by which workers, what failed.

    Time left is what the rest may take at most, at the pace since the last command began. Whether a run is at
    work, the system of this machine says; of another machine's, how long ago it last told something is said.
    Nothing is disturbed. diffproof watch and diffproof serve show the report of what is finished so far.
    """
    from diffproof.runs.status import load_status

    found = [load_status(run) for run in runs]
    if as_json:
        print_json({"runs": found})
        return
    show(Rows(_HEADER, [_row(one) for one in found], names=2))
    for one in found:
        if len(one.workers) > 1:
            _show_workers(one)
        for line in _remarks(one):
            said(f"{one.folder}: {line}")


def _row(one: Status) -> list[str]:
    part = "" if one.shard is None else f", shard {one.shard} of {counted(one.planned, 'image')}"
    state = f"told {_ago(one.sessions[-1].told)}" if one.state == "unknown" else one.state
    rates = one.evaluations_per_second, one.images_per_hour
    return [
        str(one.folder),
        one.description + part,
        f"{one.finished:,} of {one.part:,}",
        f"{one.draws:,}" if one.kind == "certification" else "–",
        f"{one.share:.1%}",
        *("–" if rate is None else rounded(rate) for rate in rates),
        "–" if one.seconds_left is None else duration(one.seconds_left),
        state,
    ]


def _ago(told: float) -> str:
    return f"{duration(max(0.0, time.time() - told))} ago"


def _what(one: Status) -> str:
    """What its workers do."""
    return "draws" if one.kind == "certification" else "images"


def _show_workers(one: Status) -> None:
    rows = [_worker(worker) for worker in one.workers]
    show(Rows([name or _what(one) for name in _WORKERS], rows, repeated=3, title=f"workers of {one.folder}"))


def _worker(worker: WorkerState) -> list[str]:
    numbers = [f"{number:,}" for number in (worker.units, worker.done, worker.evaluations)]
    times = duration(worker.busy), _ago(worker.heard)
    return [worker.name, worker.host, worker.device, worker.state, *numbers, *times, worker.error or ""]


def _remarks(one: Status) -> Iterator[str]:
    """What the workers did, commands that did not come to their end, and images that failed."""
    if len(one.workers) > 1 and one.sessions and (work := one.sessions[-1].work):
        busy = sum(worker.units > 0 for worker in one.workers)
        evaluations = sum(worker.evaluations for worker in one.workers)
        yield effort(busy, evaluations, (one.sessions[-1].wasted or 0) / work, _what(one))
    if one.state in ("interrupted", "failed", "killed"):
        last = one.sessions[-1]
        yield f"process {last.pid} on {last.host}, {one.state}, last told something {_ago(last.told)}"
    before = Counter(session.ended or "killed" for session in one.sessions[:-1])
    del before["finished"]
    if before:
        yield f"{counted(before.total(), 'command')} before the last: " + ", ".join(
            f"{number:,} {how}" for how, number in before.items()
        )
    for failure in one.failures[:_MOST_LINES]:
        times = counted(failure.times, "time")
        yield f"image {failure.image_index} failed {times}, last on worker {failure.worker}: {failure.error}"
    if len(one.failures) > _MOST_LINES:
        yield f"{counted(len(one.failures) - _MOST_LINES, 'more image')} failed"
