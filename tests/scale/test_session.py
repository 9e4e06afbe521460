"""Ray's files and processes: they go with the command, also when it is interrupted or was killed before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffproof.interrupts import terminated_as_interrupted
from diffproof.scale import session
from diffproof.scale.session import begin, own_folder
from helpers.processes import exit_status, family, forked, until
from helpers.runs import PLAIN, certify_flags


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where own folders are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(session, "_LONGEST_FOLDER", 1000)
    return tmp_path


def killed(place: Path) -> Path:
    """The folder of a command that was killed."""

    def work() -> int:
        with own_folder():
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    before = {*place.iterdir()}
    assert exit_status(forked(work)) == -signal.SIGKILL
    (left,) = {*place.iterdir()} - before
    return left


def test_folders_of_commands_that_were_killed_go_and_no_others(place: Path) -> None:
    others = {place / "diffproof-notes", place / "diffproof-link", place / "other"}
    (place / "other").mkdir()
    (place / "other/lock").touch()
    (place / "diffproof-notes").mkdir()
    (place / "diffproof-link").symlink_to(place / "other")
    with own_folder() as first:
        (first / "session").mkdir()
        left = killed(place)
        assert {*place.iterdir()} == {*others, first, left}
        with own_folder() as second:
            assert {*place.iterdir()} == {*others, first, second}
            assert (first / "session").is_dir()
        assert {*place.iterdir()} == {*others, first}
    assert {*place.iterdir()} == others
    assert (place / "other/lock").exists()


def test_names_leave_room_for_sockets(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_LONGEST_FOLDER", 4)
    with own_folder() as folder:
        assert folder.parent == Path("/tmp")


class Starting:
    """Begins a process and gets a signal, as it may be with Ray, which then ends as it is told to."""

    def __init__(self, number: signal.Signals | None, ends: BaseException | None) -> None:
        self.number, self.ends = number, ends

    def init(self) -> None:
        self.process = subprocess.Popen(["sleep", "60"])
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, lambda *_: None)
        if self.number is not None:
            os.kill(os.getpid(), self.number)
        if self.ends is not None:
            raise self.ends

    def shutdown(self) -> None:
        pass


@pytest.fixture
def handlers() -> Iterator[None]:
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in usual.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "ends", "expected"),
    [
        (signal.SIGTERM, SystemExit(15), KeyboardInterrupt),
        (signal.SIGTERM, ConnectionError("gone"), KeyboardInterrupt),
        (signal.SIGTERM, None, KeyboardInterrupt),
        (signal.SIGINT, None, KeyboardInterrupt),
        (None, ConnectionError("gone"), ConnectionError),
    ],
)
def test_no_signal_is_lost_and_no_process_left_while_ray_begins(
    number: signal.Signals | None, ends: BaseException | None, expected: type[BaseException], handlers: None
) -> None:
    pytest.importorskip("ray")
    starting = Starting(number, ends)
    with pytest.raises(expected):
        begin(starting)
    if ends is None:
        # Who calls it shuts down what has begun well.
        starting.process.kill()
    assert starting.process.wait() == -signal.SIGKILL


def test_sigterm_is_a_ctrl_c_within_alone() -> None:
    usual = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminated_as_interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is usual


@pytest.mark.slow
def test_sigterm_while_ray_begins(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    # With room for the names of sockets.
    with tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp") as place:
        command = [sys.executable, "-m", "diffproof", *certify_flags(tmp_path / "run", **PLAIN, workers=1)]
        with subprocess.Popen(
            command, env={**os.environ, "TMPDIR": place}, stderr=subprocess.PIPE, text=True
        ) as process:
            until(lambda: any("gcs_server" in line for line in family(process.pid).values()))
            begun = family(process.pid)
            process.terminate()
            _, told = process.communicate(timeout=60)
            assert process.returncode == 130
            assert told.strip() == "diffproof: interrupted; the same command continues where it stopped"
        until(lambda: not any(Path("/proc", str(one)).exists() for one in begun))
        assert not list(Path(place).iterdir())
    assert not (tmp_path / "run").exists()
