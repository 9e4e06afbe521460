"""Runs that are killed, interrupted, doubled or out of disk: the store stays whole and the run goes on."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from diffproof.cli.main import run
from diffproof.runs.certify import run as certify_run
from diffproof.runs.certify.job import CertifyRun, prepare
from diffproof.runs.certify.report import load_report
from diffproof.runs.certify.store import CertifyStore
from diffproof.runs.settings import CertifySettings
from helpers.processes import exit_status, forked, outcome, until
from helpers.runs import PLAIN, certify_flags, change, rows

INDICES = [0, 100, 200]
N = 24
# Many small batches, so that most of the time is spent in the middle of an image.
LONG: dict[str, object] = {"indices": "0:300:100", "votes": 2, "n0": 8, "n": N, "batch_size": 8}


@pytest.fixture(scope="module")
def job(denoiser: Path) -> CertifyRun:
    """The same run, ready to start; children that are forked have it, too."""
    fields = {name: value for name, value in LONG.items() if name != "votes"}
    settings = CertifySettings(
        data="digits",
        classifier="digits",
        defense=f"densepure:steps=2,votes={LONG['votes']}",
        denoiser=str(denoiser),
        sigma=0.25,
        seed=3,
        **fields,  # type: ignore[arg-type]
    )
    return prepare(settings)


def certify_often(folder: Path, job: CertifyRun) -> int:
    """The run with a commit after every batch."""
    certify_run.COMMIT_EVERY = 0.0
    certify_run.run(job, folder)
    return 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, job: CertifyRun) -> tuple[list[tuple[Any, ...]], float]:
    """The rows of the run that nobody interrupts, and the seconds it takes."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    started = time.monotonic()
    assert exit_status(forked(lambda: certify_often(folder, job))) == 0
    return rows(folder), time.monotonic() - started


@pytest.mark.slow
def test_twenty_kills_leave_the_store_of_an_uninterrupted_run(
    tmp_path: Path, job: CertifyRun, whole: tuple[list[tuple[Any, ...]], float]
) -> None:
    expected, seconds = whole
    source = random.Random(20)
    folders = [tmp_path / "run-0"]
    killed = in_image = in_work = before_store = 0
    # A fresh folder where one run got to its end; the bound only guards against endless waiting.
    for _ in range(200):
        folder = folders[-1]
        pid = forked(lambda folder=folder: certify_often(folder, job))  # type: ignore[misc]
        time.sleep(source.uniform(0, 0.35 * seconds))
        os.kill(pid, signal.SIGKILL)
        if exit_status(pid) == 0:
            folders.append(tmp_path / f"run-{len(folders)}")
            continue
        killed += 1
        if not (folder / "results.sqlite").exists():
            before_store += 1
            continue
        # Readable, with nothing but finished images in their final form, and what is known of others.
        with CertifyStore.reading(folder) as store:
            finished = [result.image_index for result in store.results()]
            partials = {index: store.partial(index) for index in INDICES}
            in_work += bool(store.work().tensors)
        assert rows(folder) == [row for row in expected if row[0] in finished]
        assert all(partials[index].selection is None for index in finished)
        estimations = [partial.estimation for partial in partials.values()]
        in_image += any(one is not None and 0 < one.draws < N for one in estimations)
        if killed >= 20 and in_image >= 5:
            break
    assert killed >= 20
    assert in_image >= 5
    assert in_work >= 5
    for folder in folders:
        assert exit_status(forked(lambda folder=folder: certify_often(folder, job))) == 0  # type: ignore[misc]
        assert rows(folder) == expected
        assert {path.name for path in folder.iterdir()} == {"settings.yaml", "results.sqlite", "lock"}
        with CertifyStore.reading(folder) as store:
            assert all(store.partial(index).estimation is None for index in INDICES)
            assert store.work() == ([], {})
            # Time before a kill counts too, but only what was committed.
            assert all(result.seconds > 0 for result in store.results())


@pytest.mark.parametrize(
    "left", ["lock", "settings.yaml", "results.sqlite.new", "results.sqlite.new-journal"]
)
def test_what_a_kill_during_creation_leaves_is_no_obstacle(tmp_path: Path, left: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / left).write_bytes(b"half of somethi" if left != "lock" else b"")
    assert run(certify_flags(folder, **PLAIN, indices="0", n=10)) == 0
    assert len(rows(folder)) == 1
    assert {path.name for path in folder.iterdir()} == {"settings.yaml", "results.sqlite", "lock"}


def saved_draws(folder: Path) -> int:
    """Estimation draws of the first image that are in the store, as another process sees it."""
    if not (folder / "results.sqlite").exists():
        return 0
    with CertifyStore.reading(folder) as store:
        estimation = store.partial(0).estimation
    return 0 if estimation is None else estimation.draws


@pytest.mark.slow
def test_an_interrupt_saves_says_so_and_continues(
    tmp_path: Path, denoiser: Path, whole: tuple[list[tuple[Any, ...]], float]
) -> None:
    folder = tmp_path / "run"
    flags = certify_flags(folder, denoiser=denoiser, **{**LONG, "batch_size": 1})
    out, err = tmp_path / "out", tmp_path / "err"

    def work() -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        certify_run.COMMIT_EVERY = 0.05
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 1)
        return run(flags)

    with err.open("w") as errors:
        pid = forked(work, errors.fileno())
    try:
        # Stopped once it has saved tallies of its first image.
        until(lambda: saved_draws(folder) > 0)
        saved = saved_draws(folder)
    finally:
        os.kill(pid, signal.SIGINT)
        status = exit_status(pid)
    assert status == 130
    assert out.read_text() == ""
    # In a pipe, progress is a line a minute at most; none of its lines has control characters.
    lines = [line for line in err.read_text().splitlines() if line.strip() and " evaluations" not in line]
    assert "\x1b" not in err.read_text()
    assert lines == ["diffproof: interrupted; the same command continues where it stopped"]
    with CertifyStore.reading(folder) as store:
        kept = store.partial(0).estimation
        # The interrupt itself saves what was counted since the last commit.
        assert store.finished() or (kept is not None and kept.draws >= saved > 0)
    assert run(certify_flags(folder, denoiser=denoiser, **LONG)) == 0
    assert rows(folder) == whole[0]


@pytest.mark.slow
def test_two_processes_at_once(
    tmp_path: Path,
    denoiser: Path,
    job: CertifyRun,
    whole: tuple[list[tuple[Any, ...]], float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, go_on = tmp_path / "run", tmp_path / "go-on"
    flags = certify_flags(folder, denoiser=denoiser, **LONG)

    def first() -> int:
        certify_run.COMMIT_EVERY = 0.0
        counted = 0

        def wait(evaluations: int) -> None:
            nonlocal counted
            counted += evaluations
            # Stop and wait in the middle of the second image.
            if counted >= 1.5 * job.certifier.evaluations_per_image:
                until(go_on.exists)

        certify_run.run(job, folder, wait)
        return 0

    pid = forked(first)
    try:
        until(lambda: (folder / "results.sqlite").exists() and len(rows(folder)) == 1)
        assert run(flags) == 2
        refusal = f"diffproof: error: --out: another process is at work in {folder}\n"
        assert capsys.readouterr().err == refusal
        # So does a process with nothing in common with the first.
        assert outcome(lambda: run(flags)) == (2, refusal)
        # Reading is allowed meanwhile.
        (row,) = load_report([folder], [0.0]).rows
        assert [result.image_index for result in row.results] == [0]
    finally:
        go_on.touch()
        status = exit_status(pid)
    assert status == 0
    assert rows(folder) == whole[0]
    assert run(flags) == 0


FORTY: dict[str, object] = {**PLAIN, "indices": "0:40", "n0": 5, "n": 20, "batch_size": 8}


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple[Any, ...]], int]:
    """The rows of a run whose store takes more room than any limit, and the bytes of that before any row."""
    folder = tmp_path_factory.mktemp("runs") / "forty"
    assert run(certify_flags(folder, **FORTY)) == 0
    empty = folder / "empty.sqlite"
    with CertifyStore.reading(folder) as store, closing(sqlite3.connect(empty)) as connection:
        CertifyStore.fresh(folder, connection, store.settings, store.identity)
    assert (folder / "results.sqlite").stat().st_size > empty.stat().st_size + 8_500
    return rows(folder), empty.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "beyond", "every"),
    [
        (0, False, 0.0),
        (2_000, False, 0.0),
        (10_000, False, 0.0),
        (-4_096, True, 0.0),
        (8_500, True, 0.0),
        (8_500, True, 99.0),
    ],
)
def test_a_full_disk_ends_in_one_line_and_loses_nothing(
    tmp_path: Path, forty: tuple[list[tuple[Any, ...]], int], limit: int, beyond: bool, every: float
) -> None:
    """No file may grow beyond the limit: before the settings, within the empty store, within the run."""
    whole, empty = forty
    within_run, limit = beyond and limit > 0, limit + empty * beyond
    folder = tmp_path / "run"
    flags = certify_flags(folder, **FORTY)

    def with_limit() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        certify_run.COMMIT_EVERY = every
        return run(flags)

    status, errors = outcome(with_limit)
    lines = [line for line in errors.splitlines() if " evaluations" not in line]
    assert status == 2
    assert len(lines) == 1
    assert lines[0].startswith("diffproof: error: ")
    assert str(folder) in lines[0] or "File too large" in lines[0]
    if within_run:
        with CertifyStore.reading(folder) as store:
            count = len(store.results())
        # Without a commit on the way, the only one is the last, and the disk is full by then.
        assert (0 < count < 40) if every == 0.0 else count == 0
        assert rows(folder) == whole[:count]
    else:
        assert not folder.exists()
    assert run(flags) == 0
    assert rows(folder) == whole


def _work(folder: Path) -> tuple[list[list[Any]], dict[str, torch.Tensor]]:
    connection = sqlite3.connect(folder / "results.sqlite")
    ((units, blob),) = connection.execute("SELECT units, tensors FROM work").fetchall()
    connection.close()
    return json.loads(units), safetensors.torch.load(blob[32:])


def _twice(units: list[list[Any]], tensors: dict[str, torch.Tensor]) -> None:
    tensors["draw"][1] = tensors["draw"][0]


def _classes(units: list[list[Any]], tensors: dict[str, torch.Tensor]) -> None:
    for *_, tally in units:
        tally["counts"] = [sum(tally["counts"]), 0, 0]


def _image(units: list[list[Any]], tensors: dict[str, torch.Tensor]) -> None:
    for unit in units:
        unit[0] = 10**6


def _no_ballots(units: list[list[Any]], tensors: dict[str, torch.Tensor]) -> None:
    del tensors["of ballots"]


def _other_ballots(units: list[list[Any]], tensors: dict[str, torch.Tensor]) -> None:
    tensors["of ballots"] = tensors["of ballots"][:, :1].contiguous()


def _floats(units: list[list[Any]], tensors: dict[str, torch.Tensor]) -> None:
    tensors["draw"] = tensors["draw"].float()


@pytest.fixture(scope="module")
def in_work(tmp_path_factory: pytest.TempPathFactory, job: CertifyRun) -> Path:
    """A run that was interrupted with draws in work; read only."""
    folder = tmp_path_factory.mktemp("runs") / "in-work"
    calls = 0

    def stop(evaluations: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        certify_run.run(job, folder, stop)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("edit", [_twice, _classes, _image, _no_ballots, _other_ballots, _floats])
def test_edited_draws_in_work_are_one_line(
    edit: Callable[[list[list[Any]], dict[str, torch.Tensor]], None],
    tmp_path: Path,
    in_work: Path,
    denoiser: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(in_work, tmp_path / "run")
    flags = certify_flags(folder, denoiser=denoiser, **LONG)
    units, tensors = _work(folder)
    assert len(tensors["draw"]) > 1
    edit(units, tensors)
    data = safetensors.torch.save(tensors)
    blob = hashlib.sha256(data).digest() + data
    change(folder, "UPDATE work SET units = ?, tensors = ?", json.dumps(units), blob)
    capsys.readouterr()
    assert run(flags) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if " evaluations" not in line]
    assert len(lines) == 1
    assert "is corrupt: draws in work: " in lines[0]
