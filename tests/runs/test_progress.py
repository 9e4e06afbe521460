"""What run folders tell of the commands that worked on them: sessions, workers, failures."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffproof.cli.main import run
from diffproof.runs.attack import job as attack_job
from diffproof.runs.attack import run as attack_run
from diffproof.runs.attack.store import AttackStore
from diffproof.runs.certify import run as certify_run
from diffproof.runs.certify.job import CertifyRun, prepare
from diffproof.runs.certify.store import CertifyStore
from diffproof.runs.database import connected
from diffproof.runs.progress import Failure, Progress, Session, State, WorkerState
from diffproof.runs.settings import AttackRequest, CertifySettings
from diffproof.runs.status import load_status
from diffproof.smoothing.packing import SchedulePacking
from diffproof.version import version
from helpers.processes import exit_status
from helpers.runs import TOLD, change, rows

pytestmark = pytest.mark.usefixtures("often")

A_RUN = 6 * 40
ATTACK: dict[str, Any] = {
    "seed": 0,
    "data": "digits",
    "indices": "0:6:2",
    "classifier": "digits",
    "defense": "none",
    "threat": "linf",
    "budget": "0.05",
    "attack": "pgd:iterations=2",
    "diagnose": 0,
    "batch_size": 1,
}


def told(folder: Path) -> tuple[list[Session], list[WorkerState], list[Failure]]:
    kind = AttackStore if AttackStore.holds(folder) else CertifyStore
    with kind.reading(folder) as store:
        return store.progress.sessions(), store.progress.workers(), store.progress.failures()


def test_a_certification_tells_what_it_did(told_job: CertifyRun, tmp_path: Path) -> None:
    before = time.time()
    counted: list[int] = []
    results = certify_run.run(told_job, tmp_path / "run", counted.append)
    (session,), (worker,), failures = told(tmp_path / "run")
    assert (session.pid, session.version, session.ended) == (os.getpid(), version(), "finished")
    assert before <= session.started <= worker.heard <= session.told <= time.time()
    assert (session.images, session.evaluations, session.remaining) == (6, A_RUN, 0)
    assert (session.work, session.wasted) == (A_RUN, 0)
    assert sum(counted) == A_RUN == sum(one.certificate.classifier_evaluations for one in results)
    assert (worker.host, worker.device, worker.state) == (session.host, "cpu", State.WORKING)
    assert (worker.units, worker.done, worker.evaluations, worker.error) == (6, A_RUN, A_RUN, None)
    assert 0 < worker.busy <= session.told - session.started
    assert failures == []


def interrupt(told_job: CertifyRun, folder: Path, calls: int, error: type[BaseException]) -> None:
    """Run until so many calls of the networks are made."""
    made: list[int] = []

    def stop(evaluations: int) -> None:
        made.extend([evaluations] * (evaluations > 0))
        if len(made) == calls:
            raise error

    with pytest.raises(error):
        certify_run.run(told_job, folder, stop)


@pytest.mark.parametrize(
    ("error", "ended"), [(KeyboardInterrupt, "interrupted"), (ZeroDivisionError, "failed")]
)
def test_each_session_tells_its_own_part(
    told_job: CertifyRun, tmp_path: Path, error: type[BaseException], ended: str
) -> None:
    interrupt(told_job, tmp_path, 3, error)
    (first,), (worker,), _ = told(tmp_path)
    assert first.ended == ended
    assert 0 < first.evaluations < A_RUN
    assert first.remaining == A_RUN - first.evaluations
    assert worker.done >= first.evaluations
    # With nothing between, each of these is a session of its own, too.
    interrupt(told_job, tmp_path, 4, error)
    results = certify_run.run(told_job, tmp_path)
    sessions, (worker,), _ = told(tmp_path)
    assert [one.ended for one in sessions] == [ended, ended, "finished"]
    assert sum(one.images for one in sessions) == len(results) == 6
    # Each call is committed before it is told.
    assert sum(one.evaluations for one in sessions) == A_RUN
    assert worker.done == worker.evaluations == sessions[-1].evaluations < A_RUN
    assert [one.started for one in sessions] == sorted(one.started for one in sessions)


def test_a_command_with_nothing_to_do_tells_nothing(told_job: CertifyRun, copy: Path) -> None:
    before = told(copy)
    certify_run.run(told_job, copy)
    assert told(copy) == before


@pytest.mark.slow
def test_others_see_a_session_while_it_works_and_when_it_was_killed(
    told_job: CertifyRun, at_work: Callable[[Path, Path], int], tmp_path: Path
) -> None:
    folder, go_on = tmp_path / "run", tmp_path / "go-on"
    pid = at_work(folder, go_on)
    for _ in range(2):
        (session,), (worker,), _ = told(folder)
        assert (session.pid, session.ended) == (pid, None)
        assert 1 <= session.images < 6
        assert 40 <= session.evaluations < A_RUN
        assert worker.units == session.images
        os.kill(pid, signal.SIGKILL)
    exit_status(pid)
    certify_run.run(told_job, folder)
    sessions, (worker,), _ = told(folder)
    assert [one.ended for one in sessions] == [None, "finished"]
    # Of the calls after the last commit, none is lost: each is committed.
    assert sum(one.images for one in sessions) == worker.units + sessions[0].images == 6


def test_an_attack_tells_what_it_did(tmp_path: Path) -> None:
    job, counted = attack_job.prepare(AttackRequest(**ATTACK)), list[int]()
    attack_run.run(job, tmp_path, on_evaluations=counted.append)
    (session,), (worker,), failures = told(tmp_path)
    assert (session.images, session.evaluations, session.ended) == (3, sum(counted), "finished")
    assert (session.remaining, session.work, session.wasted) == (None, 3, 0)
    assert (worker.units, worker.done, worker.evaluations) == (3, 3, sum(counted))
    assert failures == []
    before = (tmp_path / "results.sqlite").read_bytes()
    attack_run.run(job, tmp_path)
    assert (tmp_path / "results.sqlite").read_bytes() == before


def test_an_attack_tells_in_the_middle_of_an_image(tmp_path: Path) -> None:
    job, counted = attack_job.prepare(AttackRequest(**ATTACK)), list[int]()

    def stop(evaluations: int) -> None:
        counted.append(evaluations)
        if len(counted) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack_run.run(job, tmp_path, on_evaluations=stop)
    (session,), (worker,), _ = told(tmp_path)
    # The third call interrupts before it is told.
    assert (session.images, session.evaluations, session.ended) == (0, sum(counted[:2]), "interrupted")
    assert worker.evaluations == session.evaluations


def worker(name: str, **changes: Any) -> WorkerState:
    usual = {"units": 1, "done": 20, "evaluations": 300, "busy": 1.5, "heard": 1e9, "error": None}
    return WorkerState(name, **{"host": "a", "device": "cuda:0", "state": "working", **usual, **changes})


def test_workers_are_those_told_last(copy: Path) -> None:
    changed = [worker("b", state="lost", error="gone"), worker("a", units=0)]
    with connected(copy) as connection:
        progress = Progress(copy, connection, CertifyStore.table)
        progress.tell_workers([worker("c"), worker("b")])
        progress.tell_workers(changed)
        assert progress.workers() == changed


def test_failures_are_kept_until_the_image_is_finished(told_job: CertifyRun, tmp_path: Path) -> None:
    interrupt(told_job, tmp_path, 1, KeyboardInterrupt)
    with connected(tmp_path) as connection, connection:
        progress = Progress(tmp_path, connection, CertifyStore.table)
        for index, name, error in ((3, "a", "x"), (8, "b", "y" * 1000), (3, "c", "out of memory")):
            progress.fail(index, name, error)
    kept = Failure(8, "y" * 500, 1, "b")
    assert told(tmp_path)[2] == [Failure(3, "out of memory", 2, "c"), kept]
    certify_run.run(told_job, tmp_path)
    assert told(tmp_path)[2] == [kept]


def test_folders_of_earlier_versions(copy: Path) -> None:
    change(copy, "DROP TABLE efforts")
    (session,), _, _ = told(copy)
    assert (session.images, session.work, session.wasted) == (6, None, None)
    for table in ("progress", "workers", "failures"):
        change(copy, f"DROP TABLE {table}")
    assert told(copy) == ([], [], [])
    for line in (["report"], ["export"], ["verify", "--counts"]):
        assert run([*line, str(copy)]) == 0
    certify_run.run(prepare(CertifySettings(**{**TOLD, "indices": "0:7"})), copy)
    (session,), (worker,), _ = told(copy)
    assert (session.images, session.remaining, worker.units) == (1, 0, 1)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "UPDATE progress SET ended = 'well'",
            "progress: ended: expected one of finished,",
        ),
        ("UPDATE progress SET images = -1", "progress: images: expected a finite number ≥ 0, got -1"),
        ("UPDATE progress SET started = 'then'", "progress: started: expected a finite number, got 'then'"),
        ("UPDATE progress SET remaining = 0.5", "progress: remaining: expected an integer or null, got 0.5"),
        ("ALTER TABLE progress DROP COLUMN told", "no such column: told"),
        ("UPDATE efforts SET wasted = -1", "progress: wasted: expected a finite number ≥ 0, got -1"),
        (
            "UPDATE workers SET state = 'idle'",
            "workers: state: expected one of starting,",
        ),
        ("UPDATE workers SET busy = -1", "workers: busy: expected a finite number ≥ 0, got -1"),
        (
            "INSERT INTO failures VALUES (-3, 'x', 1, 'a')",
            "failures: image_index: expected a finite",
        ),
        ("INSERT INTO failures VALUES (3, x'00', 1, 'a')", "failures: error: expected a text, got b'\\x00'"),
    ],
)
def test_edited_tables_are_named(copy: Path, statement: str, message: str) -> None:
    change(copy, statement)
    with pytest.raises(ValueError, match="is corrupt: ") as caught:
        told(copy)
    assert message in str(caught.value)


def test_a_batch_system_that_ends_a_command_loses_nothing(
    told_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM is what Ctrl-C is: what was counted is kept, and how the session ended is told."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in TOLD.items()]
    command, steps = ["certify", *words, "--out", str(tmp_path / "run")], []
    step = SchedulePacking.step

    def terminated(packing: SchedulePacking) -> bool:
        steps.append(step(packing))
        if len(steps) == 3:
            signal.raise_signal(signal.SIGTERM)
        return steps[-1]

    with monkeypatch.context() as patch:
        patch.setattr(SchedulePacking, "step", terminated)
        assert run(command) == 130
    assert "diffproof: interrupted" in capsys.readouterr().err
    (session,) = load_status(tmp_path / "run").sessions
    assert session.ended == "interrupted"
    assert session.evaluations > 0
    assert run(command) == 0
    assert rows(tmp_path / "run") == rows(told_run)
