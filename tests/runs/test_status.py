"""How far runs are: of finished, live, killed and old folders; writers are not disturbed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffproof.errors import ArgumentError
from diffproof.runs import database
from diffproof.runs.attack import job as attack_job
from diffproof.runs.attack import run as attack_run
from diffproof.runs.certify import run as certify_run
from diffproof.runs.certify.job import CertifyRun
from diffproof.runs.certify.store import CertifyStore
from diffproof.runs.database import is_locked
from diffproof.runs.settings import AttackRequest
from diffproof.runs.status import load_status
from helpers.processes import exit_status, forked
from helpers.runs import change, rows

pytestmark = pytest.mark.usefixtures("often")

ATTACK: dict[str, Any] = {
    "seed": 0,
    "data": "digits",
    "indices": "0:2",
    "classifier": "digits",
    "defense": "none",
    "threat": "linf",
    "budget": "8/255",
    "attack": "pgd:iterations=2,eot=1",
    "diagnose": 0,
}


HALF = "DELETE FROM images WHERE image_index > 2"
AT_WORK = "UPDATE progress SET ended = NULL"
ELSEWHERE = "UPDATE progress SET host = 'elsewhere'"
PACE = "UPDATE progress SET started = 1000, told = 1010, images = 5, evaluations = 120, remaining = 60"
TALLY = '{"counts": [8, 2], "draws": %d, "denoiser_evaluations": 0, "classifier_evaluations": 10}'
BACKWARDS = "UPDATE progress SET told = 999"
SHARD = "UPDATE settings SET json = json_set(json, '$.shard', '1/2')"
IN_WORK = (
    f"INSERT INTO partial VALUES (3, 'selection', '{TALLY % 10}', 1), (3, 'estimation', '{TALLY % 4}', 1),"
    " (3, 'hits', '[3]', 1)"
)
UNITS = f"INSERT INTO work VALUES ('[[3, 1, 4, 14, {TALLY % 6}]]', x'00')"


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ([], {"state": "finished", "live": False, "share": 1.0, "finished": 6, "planned": 6, "draws": 0}),
        ([HALF], {"state": "unfinished", "share": 0.5, "finished": 3, "seconds_left": None}),
        ([HALF, "UPDATE progress SET ended = 'interrupted'"], {"state": "interrupted", "live": False}),
        ([HALF, "UPDATE progress SET ended = 'failed'"], {"state": "failed", "live": False}),
        ([HALF, AT_WORK], {"state": "killed", "live": False, "seconds_left": None}),
        ([HALF, AT_WORK, ELSEWHERE, PACE], {"state": "unknown", "live": None, "seconds_left": 5.0}),
        ([HALF, ELSEWHERE], {"state": "unfinished", "live": False}),
        ([AT_WORK], {"state": "finished", "live": False}),
        ([PACE], {"evaluations_per_second": 12.0, "images_per_hour": 1800.0, "seconds_left": None}),
        (
            [HALF, AT_WORK, ELSEWHERE, PACE, "UPDATE progress SET remaining = NULL"],
            {"seconds_left": 6.0},  # Of three images at five in ten seconds.
        ),
        ([HALF, AT_WORK, ELSEWHERE, PACE, "UPDATE progress SET evaluations = 0"], {"seconds_left": None}),
        (
            [PACE, "UPDATE progress SET told = 1000"],
            {"evaluations_per_second": None, "images_per_hour": None},
        ),
        ([HALF, IN_WORK], {"draws": 14, "share": (3 + 14 / 40) / 6}),
        ([HALF, IN_WORK, UNITS], {"draws": 20, "share": (3 + 20 / 40) / 6}),
        ([HALF, "DROP TABLE work"], {"draws": 0, "share": 0.5}),
        ([HALF, "DROP TABLE progress"], {"state": "unfinished", "sessions": [], "images_per_hour": None}),
        (["DROP TABLE progress", "DROP TABLE workers", "DROP TABLE failures"], {"state": "finished"}),
        (
            [HALF, SHARD, "INSERT INTO part VALUES (0), (1), (2)"],
            {"state": "finished", "shard": "1/2", "planned": 6, "part": 3, "share": 1.0},
        ),
        (
            [HALF, "UPDATE settings SET json = json_set(json, '$.until_half_width', 0.4)"],
            {"state": "finished", "share": 1.0, "finished": 3},
        ),
    ],
)
def test_what_a_folder_tells(copy: Path, statements: list[str], expected: dict[str, Any]) -> None:
    for statement in statements:
        change(copy, statement)
    found = load_status(copy)
    assert {name: getattr(found, name) for name in expected} == expected


def test_the_rest_is_what_the_folder_tells(told_run: Path) -> None:
    found = load_status(told_run)
    with CertifyStore.reading(told_run) as store:
        assert found.sessions == store.progress.sessions() != []
        assert found.workers == store.progress.workers() != []
    assert (found.folder, found.kind, found.description) == (told_run, "certification", "none, sigma = 0.25")
    assert (found.shard, found.part, found.failures) == (None, 6, [])


def test_an_attack(tmp_path: Path) -> None:
    attack_run.run(attack_job.prepare(AttackRequest(**ATTACK)), tmp_path / "run")
    found = load_status(tmp_path / "run")
    assert (found.kind, found.planned, found.finished, found.draws) == ("attack", 2, 2, 0)
    assert found.description == "none, pgd:iterations=2 exact, linf 8/255"
    change(tmp_path / "run", "UPDATE settings SET json = json_set(json, '$.surrogate_share', 0.5)")
    assert load_status(tmp_path / "run").description == "none, pgd:iterations=2 exact 0.5, linf 8/255"


@pytest.mark.slow
def test_a_run_at_work(at_work: Callable[[Path, Path], int], tmp_path: Path) -> None:
    folder, go_on = tmp_path / "run", tmp_path / "go-on"
    pid = at_work(folder, go_on)
    found = load_status(folder)
    (session,) = found.sessions
    assert (found.live, found.state, session.pid) == (True, "running", pid)
    assert 0 < found.finished < 6
    spent = session.told - session.started
    assert found.evaluations_per_second == session.evaluations / spent
    assert session.remaining is not None
    assert found.seconds_left == pytest.approx(session.remaining * spent / session.evaluations)
    go_on.touch()
    assert exit_status(pid) == 0
    found = load_status(folder)
    assert (found.live, found.state, found.seconds_left) == (False, "finished", None)


def test_a_run_that_was_killed(told_job: CertifyRun, tmp_path: Path) -> None:
    def stop(evaluations: int) -> None:
        if rows(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> int:
        certify_run.run(told_job, tmp_path, stop)
        return 0

    assert exit_status(forked(work)) == -signal.SIGKILL
    found = load_status(tmp_path)
    assert (found.live, found.state) == (False, "killed")
    assert 0 < found.finished < 6


@pytest.mark.slow
def test_no_writer_is_disturbed(told_job: CertifyRun, copy: Path) -> None:
    """Runs that begin while others look, again and again, each get the lock."""

    def look() -> int:
        while True:
            is_locked(copy, None)

    pid = forked(look)
    try:
        with CertifyStore.reading(copy) as store:
            settings, identity = store.settings, store.identity
        for _ in range(100):
            with CertifyStore.writing(copy, settings, identity, told_job.data.fingerprint) as store:
                assert len(store.finished()) == 6
    finally:
        os.kill(pid, signal.SIGKILL)
        exit_status(pid)


@pytest.mark.parametrize(
    ("text", "pid", "expected"),
    [
        ("", None, False),
        ("1: FLOCK  ADVISORY  WRITE 77 {device}:{inode} 0 EOF\n", None, True),
        ("1: FLOCK  ADVISORY  WRITE 77 {device}:1{inode} 0 EOF\n", 77, False),
        ("1: FLOCK  ADVISORY  WRITE 77 00:7f:{inode} 0 EOF\n", None, False),
        # Where files of several systems lie above one another, locks tell the device of another.
        ("1: FLOCK  ADVISORY  WRITE 77 00:7f:{inode} 0 EOF\n", 77, True),
        ("1: POSIX  ADVISORY  WRITE 77 {device}:{inode} 0 EOF\n", 77, False),
        # Who waits holds nothing.
        ("1: -> FLOCK  ADVISORY  WRITE 77 {device}:{inode} 0 EOF\n", 77, False),
        (None, 77, None),
    ],
)
def test_locks_as_the_system_tells_them(
    text: str | None,
    pid: int | None,
    expected: bool | None,
    copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock, held = (copy / "lock").stat(), tmp_path / "locks"
    if text is not None:
        device = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}"
        held.write_text(text.format(device=device, inode=lock.st_ino))
    monkeypatch.setattr(database, "_HOLDERS", held)
    assert is_locked(copy, pid) is expected
    if text is None:
        change(copy, AT_WORK)
        change(copy, HALF)
        assert load_status(copy).state == "unknown"
        (copy / "lock").unlink()
        assert is_locked(copy, pid) is None


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE settings SET json = '['", "is corrupt: settings: "),
        ("UPDATE settings SET json = '[]'", "is corrupt: settings: "),
        ("UPDATE settings SET json = json_remove(json, '$.defense')", "is corrupt: settings: 'defense'"),
        ("UPDATE settings SET json = json_set(json, '$.defense', 'nothing')", "unknown name 'nothing'"),
        ("UPDATE settings SET json = json_set(json, '$.sigma', 'x')", "is corrupt: settings: "),
        ("UPDATE settings SET json = json_set(json, '$.n', 0)", "draws in work: n: expected an integer ≥ 1"),
        ("UPDATE settings SET planned = 0", "is corrupt: settings: planned: expected an integer ≥ 1, got 0"),
        ("DELETE FROM settings", "is corrupt: settings: 'defense'"),
        ("DROP TABLE settings", "is no run folder (its store lacks images or attacked)"),
        ("DROP TABLE images", "is no run folder (its store lacks images or attacked)"),
        ("DROP TABLE partial", "is corrupt: no such table: partial"),
        ("INSERT INTO partial VALUES (3, 'selection', '{', 1)", "is corrupt: "),
        ("INSERT INTO partial VALUES (3, 'selection', '{}', 1)", "is corrupt: draws in work: 'draws'"),
        (
            "INSERT INTO partial VALUES (3, 'selection', '{\"draws\": -1}', 1)",
            "draws: expected an integer ≥ 0",
        ),
        ("UPDATE progress SET pid = 'me'", "is corrupt: progress: pid: expected an integer, got 'me'"),
    ],
)
def test_what_is_wrong_is_one_line(copy: Path, statement: str, message: str) -> None:
    change(copy, statement)
    with pytest.raises(ArgumentError) as caught:
        load_status(copy)
    assert str(caught.value).startswith("run: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
