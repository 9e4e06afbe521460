"""diffproof status: a row a run, workers and failures below, JSON, mistakes in one line."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from diffproof.cli.main import run
from diffproof.runs.progress import State, WorkerState
from diffproof.runs.status import load_status
from helpers.command_line import Refused
from helpers.runs import change

CERTIFY = "certify --data digits --indices 0:4 --classifier digits --defense none --sigma 0.25 --n0 5 --n 15"
ATTACK = (
    "attack --data digits --indices 0:2 --classifier digits --defense none --threat linf --budget 0.1"
    " --attack pgd:iterations=1 --diagnose 0"
)

Told = Callable[..., list[str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each kind; read only."""
    folder = tmp_path_factory.mktemp("runs")
    for name, line in (("certified", CERTIFY), ("attacked", ATTACK)):
        assert run([*line.split(), "--out", str(folder / name)]) == 0
    return folder


@pytest.fixture
def told(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Told:
    """Change a copy of each run, and give what is said of some, columns with one blank between."""
    for name in ("certified", "attacked"):
        shutil.copytree(runs / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)

    def lines(*names: str, changes: dict[str, list[tuple[Any, ...]]] | None = None) -> list[str]:
        for name, statements in (changes or {}).items():
            for statement, *values in statements:
                change(Path(name), statement, *values)
        capsys.readouterr()
        assert run(["status", *names]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return [" ".join(re.sub("[│┃━┏┡└─]", " ", line).split()) for line in out.splitlines()]

    return lines


def worker(name: str, **changes: Any) -> tuple[Any, ...]:
    values = {"host": "node7", "device": "cuda:0", "state": State.WORKING, "units": 1200, "done": 20}
    values |= {"evaluations": 300, "busy": 90.0, "heard": time.time() - 7200, "error": None}
    one = WorkerState(name, **{**values, **changes})
    return (f"INSERT INTO workers VALUES ({', '.join('?' * 10)})", *asdict(one).values())


def progress(**values: float | str | None) -> tuple[Any, ...]:
    return (f"UPDATE progress SET {', '.join(f'{name} = ?' for name in values)}", *values.values())


PACE = progress(started=1000, told=1010, images=5, evaluations=12_000, remaining=7_200_000)
HALF = ("DELETE FROM images WHERE image_index > 1",)


def test_a_row_a_run(told: Told) -> None:
    found = told("certified", "attacked", changes={"certified": [PACE], "attacked": [PACE]})
    assert "run what images draws in work done evaluations/s images/h left state" in found
    assert "certified none, sigma = 0.25 4 of 4 0 100.0% 1,200 1,800 – finished" in found
    assert "attacked none, pgd:iterations=1 exact, linf 0.1 2 of 2 – 100.0% 1,200 1,800 – finished" in found
    assert not [line for line in found if line.startswith(("certified:", "attacked:"))]


def test_a_run_of_another_machine(told: Told) -> None:
    now = time.time()
    moved = progress(host="node7", ended=None, started=now - 7210, told=now - 7200)
    found = told("certified", changes={"certified": [HALF, PACE, moved]})
    (row,) = (line for line in found if "sigma" in line)
    assert row == "certified none, sigma = 0.25 2 of 4 0 50.0% 1,200 1,800 1.7 h told 2.0 h ago"


def test_commands_that_did_not_end_well(told: Told) -> None:
    columns = "host, 7, version, started, told, images, evaluations, remaining, ?"
    again = f"INSERT INTO progress SELECT NULL, {columns} FROM progress LIMIT 1"
    statements = [HALF, *((again, how) for how in (None, "failed", None, "finished", "interrupted"))]
    found = told("certified", changes={"certified": statements})
    assert [line.split()[-1] for line in found if "sigma" in line] == ["interrupted"]
    first, second = (line for line in found if line.startswith("certified: "))
    assert re.fullmatch(
        r"certified: process 7 on \S+, interrupted, last told something [\d.]+ \w+ ago", first
    )
    assert second == "certified: 3 commands before the last: 2 killed, 1 failed"


def test_workers_and_failures(told: Told) -> None:
    failure = "INSERT INTO failures VALUES (?, ?, ?, ?)"
    statements = [
        ("DELETE FROM workers",),
        ("UPDATE efforts SET work = 8000, wasted = 96",),
        worker("0"),
        worker("1", state=State.LOST, error="the node \x1b[31m is gone", device="cpu"),
        *((failure, index, "not finite", 3, "1") for index in range(20, 32)),
    ]
    found = told("certified", "attacked", changes={"certified": statements})
    assert "workers of certified" in found
    assert "worker host device state units draws evaluations busy heard last error" in found
    assert "0 node7 cuda:0 working 1,200 20 300 90 s 2.0 h ago" in found
    assert r"1 node7 cpu lost 1,200 20 300 90 s 2.0 h ago the node \x1b[31m is gone" in found
    effort, *failures = [line for line in found if line.startswith("certified: ")]
    assert effort == "certified: workers: 2, 600 evaluations, 1.2% of the draws for nothing"
    assert failures[0] == "certified: image 20 failed 3 times, last on worker 1: not finite"
    assert len(failures) == 11
    assert failures[-1] == "certified: 2 more images failed"
    # One worker is no table.
    assert "workers of attacked" not in found


def test_a_shard(told: Told) -> None:
    shard = ("UPDATE settings SET json = json_set(json, '$.shard', '3/16'), planned = 60",)
    part = ("INSERT INTO part VALUES (0), (1), (2), (3), (19), (35), (51), (7)",)
    found = told("certified", changes={"certified": [shard, part]})
    (row,) = (line for line in found if "sigma" in line)
    assert row.startswith("certified none, sigma = 0.25, shard 3/16 of 60 images 4 of 8 0 50.0%")


def test_json(told: Told, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failure = ("INSERT INTO failures VALUES (3, 'x', 1, '1')",)
    told("certified", changes={"certified": [HALF, worker("1"), failure]})
    assert run(["status", "certified", "attacked", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    expected = [asdict(load_status(Path(name))) | {"folder": name} for name in ("certified", "attacked")]
    assert json.loads(out) == {"runs": expected}
    assert [one["state"] for one in expected] == ["unfinished", "finished"]
    assert len(expected[0]["workers"]) == 2
    assert len(expected[0]["failures"]) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("nowhere", "run: nowhere is no run folder (results.sqlite is missing)"),
        (
            "purified",
            "run: purified is no run folder (of `diffproof purify`, whose result is its pictures)",
        ),
        ("file", "run: file is no run folder (results.sqlite is missing)"),
        ("broken", "run: the store in broken is corrupt: file is not a database"),
        ("empty", "run: empty is no run folder (its store lacks images or attacked)"),
        ("linked", "run: linked/results.sqlite is a link, expected a file of the run's own"),
        ("", "Missing argument 'RUNS...'."),
    ],
)
def test_what_is_no_run_is_one_line(refused: Refused, runs: Path, names: str, message: str) -> None:
    for name in ("purified", "broken", "empty", "linked"):
        Path(name).mkdir()
    Path("purified/settings.yaml").write_text("defense: diffpure\n")
    Path("purified/sheet.png").touch()
    Path("file").touch()
    Path("broken/results.sqlite").write_bytes(b"no database, but long enough to be one" * 100)
    Path("empty/results.sqlite").touch()
    Path("linked/results.sqlite").symlink_to(runs / "certified" / "results.sqlite")
    assert refused(["status", *names.split()]) == message
