"""Runs that are watched: read when something changed, whatever their commands do; diffproof watch says it."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from diffproof.cli.main import run
from diffproof.errors import ArgumentError
from diffproof.runs import watching
from diffproof.runs.reports import load_any_report
from diffproof.runs.status import load_status
from diffproof.runs.watching import Watched
from helpers.command_line import Refused
from helpers.files import tree
from helpers.processes import exit_status, forked, outcome, until
from helpers.runs import change, rows

HALF = "DELETE FROM images WHERE image_index > 2"
ATTACK = (
    "attack --data digits --indices 0:2 --classifier digits --defense none --threat linf --budget 0.1"
    " --attack pgd:iterations=1 --diagnose 0"
)


def names(folders: Sequence[Path]) -> list[str]:
    return [folder.name for folder in folders]


@pytest.fixture
def made(copy: Path) -> tuple[Watched[int], list[list[str]]]:
    """The copy and a folder that is not there, watched, and of which folders something was made so far."""
    calls: list[list[str]] = []

    def make(folders: Sequence[Path]) -> int:
        calls.append(names(folders))
        return len(calls)

    return Watched([copy, copy.parent / "later"], make), calls


def after(seconds: float, act: Callable[[], object]) -> int:
    time.sleep(seconds)
    act()
    return 0


def touch(path: Path) -> None:
    """Another time of the last change, however coarse the system's clock is."""
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 10**9))


def test_something_is_made_when_there_is_more(
    made: tuple[Watched[int], list[list[str]]], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, calls = made
    monkeypatch.setattr(watching, "_PART", 1)
    later = copy.parent / "later"
    seen = watched.look()
    assert (names([one.folder for one in seen.statuses]), seen.missing, seen.made) == (["copy"], [later], 1)
    assert not seen.finished
    assert watched.look() is seen
    # What a run tells of its progress makes nothing new.
    change(copy, "UPDATE progress SET evaluations = evaluations + 1")
    touch(copy / "results.sqlite")
    assert watched.look() is not seen
    assert calls == [["copy"]]
    # A folder that has begun, and one without an image.
    later.mkdir()
    (later / "lock").touch()
    assert watched.look().missing == [later]
    shutil.copytree(copy, later, dirs_exist_ok=True)
    change(later, "DELETE FROM images")
    seen = watched.look()
    assert (len(seen.statuses), seen.missing, seen.made) == (2, [], 1)
    shutil.rmtree(later)
    shutil.copytree(copy, later)
    seen = watched.look()
    assert (seen.made, seen.finished) == (2, True)
    assert calls[-1] == ["copy", "later"]
    # A folder that goes, and settings that somebody edits.
    shutil.rmtree(later)
    assert watched.look().missing == [later]
    assert calls[2:] == [["copy"]]
    with (copy / "settings.yaml").open("a") as stream:
        stream.write("# edited\n")
    assert watched.look().made == 4
    shutil.rmtree(copy)
    seen = watched.look()
    assert (seen.statuses, seen.made) == ([], None)


def test_making_takes_a_part_of_the_time(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(watching, "monotonic", lambda: clock[0])
    whole = shutil.copytree(copy, copy.parent / "whole")
    change(copy, HALF)

    def make(folders: Sequence[Path]) -> int:
        clock[0] += 5.0
        return load_status(folders[0]).finished

    watched = Watched([copy], make)
    assert watched.look().made == 3
    change(copy, "DELETE FROM images WHERE image_index > 1")
    clock[0] += 44.0
    seen = watched.look()
    # How far it is, is told at once.
    assert (seen.statuses[0].finished, seen.made) == (2, 3)
    clock[0] += 1.0
    assert watched.look().made == 2
    # The end is not waited for.
    shutil.copyfile(whole / "results.sqlite", copy / "results.sqlite")
    seen = watched.look()
    assert (seen.finished, seen.made) == (True, 6)


def test_trouble_while_somebody_writes_passes(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_PART", 1)
    others: list[Callable[[], object]] = []

    def make(folders: Sequence[Path]) -> list[str]:
        for other in others:
            other()
        return [str(row.folders[0].name) for row in load_any_report(folders).rows]  # type: ignore[union-attr]

    watched = Watched([copy], make)
    store = copy / "results.sqlite"
    content = store.read_bytes()
    before = watched.look()
    # It is gone when its images are read, then it is there again.
    change(copy, HALF)
    others.append(store.unlink)
    seen = watched.look()
    assert seen.trouble == f"run: {copy} is no run folder (results.sqlite is missing)"
    assert (seen.made, seen.statuses) == (before.made, before.statuses)
    assert seen.told(moving=False)[-1] == f"cannot be read now: {seen.trouble}"
    others.clear()
    store.write_bytes(content)
    assert (watched.look().trouble, watched.look().finished) == ("", True)
    # Nobody writes: it is so for good.
    store.write_bytes(b"no database, but long enough to be one" * 100)
    with pytest.raises(ArgumentError, match="is corrupt: file is not a database"):
        watched.look()


def test_readers_leave_what_a_killed_writer_left(
    copy: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    assert run(["report", str(copy)]) == 0
    expected = capsys.readouterr().out

    def work() -> int:
        connection = sqlite3.connect(copy / "results.sqlite", isolation_level=None)
        # What does not fit goes to the file before its time, and the journal has what it was.
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE large (text TEXT)")
        connection.execute("UPDATE images SET true_label = true_label + 1")
        connection.executemany("INSERT INTO large VALUES (?)", [("x" * 4000,)] * 50)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert exit_status(forked(work)) == -signal.SIGKILL
    before = tree(copy)
    assert before["results.sqlite-journal"]
    for line in (["report", str(copy)], ["watch", str(copy)], ["status", str(copy)]):
        assert run(line) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert (expected in out) == (line[0] != "status")
        assert tree(copy) == before
    # The next writer undoes it.
    change(copy, "UPDATE progress SET told = told")
    assert "results.sqlite-journal" not in tree(copy)
    # A journal that leads elsewhere is not followed.
    (copy / "results.sqlite-journal").symlink_to(copy / "lock")
    assert refused(["watch", str(copy)]).endswith(
        "results.sqlite-journal is a link, expected a file of the run's own"
    )


@pytest.mark.slow
def test_a_pipe_gets_every_change_once(
    at_work: Callable[[Path, Path], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, go_on = tmp_path / "run", tmp_path / "go on"
    writer = at_work(folder, go_on)
    # Runs that are read are not held up: the other goes on once the watch has begun.
    lookout = forked(lambda: after(1.0, go_on.touch))
    assert run(["watch", str(folder), "--every", "0.1"]) == 0
    assert exit_status(writer) == exit_status(lookout) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert run(["report", str(folder)]) == 0
    report = capsys.readouterr().out
    blocks = re.split(rf"\n(?={re.escape(str(folder))}: )", out)
    assert re.match(rf"{re.escape(str(folder))}: running, [1-5] of 6 images finished\n", blocks[0])
    assert "6 of 6" not in blocks[0]
    assert blocks[-1] == f"{folder}: finished, 6 of 6 images finished\n{report}"
    assert len({*blocks}) == len(blocks)
    assert len(rows(folder)) == 6


def test_standard_output_may_be_closed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert run(["watch", str(copy)]) == 0


def test_finished_runs_are_shown_once_and_left_alone(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(copy)
    assert run(["watch", str(copy)]) == 0
    watched = capsys.readouterr().out
    assert run(["report", str(copy)]) == 0
    assert watched == f"{copy}: finished, 6 of 6 images finished\n{capsys.readouterr().out}"
    assert tree(copy) == before


def on_a_terminal(line: list[str], act: Callable[[int], None]) -> tuple[int, str]:
    """The exit status of a command line on a terminal of its own, and what it wrote there.

    Args:
        line: the command line.
        act: is called with the process once it has shown something.
    """
    pid, screen = pty.fork()
    if not pid:
        status = 70
        try:
            os.environ["TERM"] = "xterm-256color"
            status = child(line)
        finally:
            os._exit(status)
    written = b""
    while True:
        try:
            found = os.read(screen, 65536)
        except OSError:
            break
        # The whole screen is there.
        first = b"Ctrl-C ends" in found and b"Ctrl-C ends" not in written
        written += found
        if first:
            act(pid)
    os.close(screen)
    # An interrupt may cut a letter in two.
    return exit_status(pid), written.decode(errors="replace")


def child(line: list[str]) -> int:
    """Run a command line in a child, whose streams are its own."""
    import sys

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    status = run(line)
    sys.stdout.flush()
    sys.stderr.flush()
    return status


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_terminal_keeps_what_was_shown_last(copy: Path, how: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    change(copy, HALF)
    before = tree(copy)
    status, written = on_a_terminal(["watch", "copy", "--every", "60"], lambda pid: os.kill(pid, how))
    assert status == 130
    alone, after = written.split("\x1b[?1049l")
    assert alone.startswith("\x1b[?1049h")
    for part in (alone, after):
        assert "unfinished, 3 of 6 images finished" in part
    assert "certified accuracy at ℓ2 radius" in after
    assert after.rstrip().endswith("diffproof: interrupted; the runs were only looked at")
    assert "\x1b[?25h" in after
    assert tree(copy) == before


def test_a_terminal_shows_the_end(copy: Path, told_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    change(copy, HALF)

    def finish(pid: int) -> None:
        shutil.copyfile(told_run / "results.sqlite", copy / "results.sqlite")

    status, written = on_a_terminal(["watch", "copy", "--every", "0.1"], finish)
    assert status == 0
    after = written.split("\x1b[?1049l")[1]
    assert "finished, 6 of 6 images finished" in after
    assert "interrupted" not in after


def test_what_cannot_be_watched_is_one_line(refused: Refused, told_run: Path, tmp_path: Path) -> None:
    Path("file").touch()
    Path("other").mkdir()
    Path("other/photo.jpg").touch()
    shutil.copytree(told_run, "run")
    assert run([*ATTACK.split(), "--out", "attack"]) == 0
    missing = "is no run folder (results.sqlite is missing)"
    for line, message in (
        ("file", "run: file is a file, expected a run folder"),
        ("other", f"run: other {missing}"),
        ("run run", "runs: expected each run once, got run again"),
        ("run attack", "runs: expected runs of one kind, got certification and attack runs"),
        ("run --every 0", "--every: expected 0.1 to 86400 seconds, got 0"),
        ("run --every nan", "--every: expected 0.1 to 86400 seconds, got nan"),
        ("run --every often", "Invalid value for '--every': 'often' is not a valid float."),
        ("", "Missing argument 'RUNS...'."),
    ):
        for command in ("watch", "serve"):
            assert refused([command, *line.split()]) == message


def test_runs_of_different_data_end_a_watch(copy: Path, told_run: Path) -> None:
    other = Path(shutil.copytree(copy, copy.parent / "other"))
    change(other, "UPDATE images SET true_label = true_label + 1")
    status, said = outcome(lambda: run(["watch", str(copy), str(other)]))
    assert status == 2
    assert len(said.splitlines()) == 1
    assert "has another label" in said


def test_waiting_ends_when_the_run_is_there(tmp_path: Path, told_run: Path) -> None:
    later = tmp_path / "later"

    def arrive() -> int:
        time.sleep(0.5)
        shutil.copytree(told_run, tmp_path / "half")
        (tmp_path / "half").rename(later)
        return 0

    other = forked(arrive)
    assert run(["watch", str(later), "--every", "0.1"]) == 0
    assert exit_status(other) == 0
    until(later.exists)
