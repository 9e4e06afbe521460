"""What several test files share: tiny weights made by the real commands, a small run, child processes."""

from __future__ import annotations

import os

# The networks here are so small that threads only wait for each other, and a process that is forked from one
# with threads may hang; set before torch loads.
os.environ["OMP_NUM_THREADS"] = "1"
# A process of the suite gets the width of a terminal that its captured output does not go to.
os.environ.pop("COLUMNS", None)

import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from diffproof.catalog import ATTACKS, DEFENSES
from diffproof.cli.main import run

# Unlike the demo's runs, small enough to repeat in every test; still some wrong, some certified.
SMALL_RUN: dict[str, object] = {
    "data": "digits",
    "indices": "0:40:8",
    "classifier": "digits",
    "defense": "densepure",
    "sigma": 0.25,
    "steps": 2,
    "votes": 5,
    "n0": 20,
    "n": 100,
    "seed": 3,
}


# What settings of a defence are called among the flags of a test where its attack has one of that name, too.
_OTHER_NAMES = {
    "defense_sigma": "sigma",
    "purify_budget": "budget",
    "likelihood_iterations": "iterations",
    "likelihood_norm": "norm",
}
_SHARED = {"iterations", "step", "budget", "norm", "sigma"}
_SETTINGS = {
    kind: {one.name for method in table.values() for one in method.settings}
    for kind, table in (("defense", DEFENSES), ("attack", ATTACKS))
}
OF_A_DEFENSE = {name: name for name in _SETTINGS["defense"] - _SHARED} | _OTHER_NAMES
OF_AN_ATTACK = {name: name for name in _SETTINGS["attack"]}


def composed(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags with the settings among them moved into the texts of the defence and of the attack.

    A setting of None is left out; numbers with commas between are a list; the empty text is yes.
    """
    flags = {name.replace("-", "_"): value for name, value in flags.items()}
    for kind, names, usual in (("defense", OF_A_DEFENSE, None), ("attack", OF_AN_ATTACK, "pgd")):
        given = {names[name]: flags.pop(name) for name in list(flags) if name in names}
        settings = [f"{name}={_in_text(value)}" for name, value in given.items() if value is not None]
        method = flags.get(kind) or (usual if settings else None)
        if method is not None:
            flags[kind] = f"{method}:{','.join(settings)}" if settings else method
    return flags


def _in_text(value: object) -> str:
    text = "true" if value == "" else str(value)
    return f"[{text}]" if "," in text and not text.startswith("[") else text


def certify_flags(out: Path, **changes: object) -> list[str]:
    """The command line of SMALL_RUN with other values; None leaves a flag out."""
    flags = {**SMALL_RUN, "out": out}
    if changes.get("defense", flags["defense"]) != flags["defense"]:
        # The settings of another defence are its own.
        del flags["steps"], flags["votes"]
    flags = composed({**flags, **changes})
    words = ["certify"]
    for name, value in flags.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def rows(
    folder: Path, columns: str = "image_index, true_label, certificate", table: str = "images"
) -> list[tuple[Any, ...]]:
    """The finished images of a run folder, read without diffproof."""
    connection = sqlite3.connect(folder / "results.sqlite")
    try:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY image_index").fetchall()
    finally:
        connection.close()


def change(folder: Path, statement: str, *values: object) -> None:
    """Edit a run's store behind diffproof's back."""
    connection = sqlite3.connect(folder / "results.sqlite")
    try:
        with connection:
            connection.execute(statement, values)
    finally:
        connection.close()


def forked(work: Callable[[], int], errors: int | None = None) -> int:
    """Start `work` in a child that has everything loaded already; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY) if errors is None else errors, 2)
        # pytest's captured streams belong to the parent.
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        status = work()
        sys.stderr.flush()
    finally:
        os._exit(status)


def exit_status(pid: int) -> int:
    """Wait for a child; negative is the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def until(condition: Callable[[], bool]) -> None:
    """Wait for another process; a minute without it is a failure, not a wait for ever."""
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file with its content, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


class Refused:
    """Runs a command line in a folder that must not change, and gives the one line that it printed."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def __call__(self, arguments: list[str]) -> str:
        before = tree(self.folder)
        self.capsys.readouterr()
        assert run(arguments) == 2
        captured = self.capsys.readouterr()
        assert captured.out == ""
        assert captured.err.endswith("\n")
        (line,) = captured.err.splitlines()
        start = "diffproof: error: "
        assert line.startswith(start)
        assert tree(self.folder) == before
        return line.removeprefix(start)


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    monkeypatch.chdir(tmp_path)
    return Refused(tmp_path, capsys)


@pytest.fixture(scope="session")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser good enough to certify something, trained in seconds by the real command.

    Once for all processes of the suite: the first one trains, the others wait. Run folders each makes for
    itself, because a command holds the lock of the one it works in.
    """
    base = tmp_path_factory.getbasetemp()
    # The folder of one of several processes lies in the folder of the suite.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "weights"
    folder.mkdir(exist_ok=True)
    path, done = folder / "denoiser.safetensors", folder / "done"
    with FileLock(folder / "lock"):
        if not done.exists():
            flags = "--data digits --channels 8,16 --batch-size 64 --learning-rate 0.005 --iterations 100"
            assert run(["train", "denoiser", *flags.split(), "--force", "--out", str(path)]) == 0
            done.touch()
    return path


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, denoiser: Path) -> Path:
    """A finished run of SMALL_RUN; read only, copy it to change it."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    assert run(certify_flags(folder, denoiser=denoiser)) == 0
    return folder
