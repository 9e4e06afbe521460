"""Stores of other versions: refused or continued, never mixed; and what verification checks of all."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from diffproof.cli.main import run
from diffproof.runs.database import FORMAT
from diffproof.version import version
from helpers.command_line import Refused
from helpers.paths import GOLDEN
from helpers.runs import change, rows

pytestmark = pytest.mark.usefixtures("small_digits")

CERTIFY = (
    "certify --data digits --classifier digits --defense none --sigma 0.25 --n0 5 --n 20 --seed 3 --out run"
)
ATTACK = (
    "attack --data digits --classifier digits --denoiser digits --defense diffpure:t_star=0.1,steps=1"
    " --seed 3 --threat l2 --budget 0.5 --attack pgd:iterations=1 --draws 2 --majority-of 2"
    " --diagnose 0 --out run"
)
STAMP = "SET {0} = json_set({0}, '$.version', '0.0.9')"


def commanded(line: str, indices: str) -> list[str]:
    return [*line.split(), "--indices", indices]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "table", "column"), [(CERTIFY, "images", "certificate"), (ATTACK, "attacked", "result")]
)
@pytest.mark.parametrize("where", ["an image", "a session"])
def test_another_version_is_not_gone_on_with(
    refused: Refused, line: str, table: str, column: str, where: str
) -> None:
    assert run(commanded(line, "0:2")) == 0
    stamps = {
        "an image": f"UPDATE {table} {STAMP.format(column)} WHERE image_index = 0",
        "a session": "UPDATE progress SET version = '0.0.9'",
    }
    change(Path("run"), stamps[where])
    told = refused(commanded(line, "0:3"))
    assert told.startswith(f"--out: run is of diffproof 0.0.9, this is {version()}: ")
    assert run(["report", "run"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "table", "column"), [(CERTIFY, "images", "certificate"), (ATTACK, "attacked", "result")]
)
def test_verification_tells_versions(
    refused: Refused, capsys: pytest.CaptureFixture[str], line: str, table: str, column: str
) -> None:
    assert run(commanded(line, "0:2")) == 0
    for indices, status, said in (
        ("(0)", 1, f"its images come from 2 versions of diffproof: 0.0.9, {version()}"),
        ("(0, 1)", 0, f"it was made by diffproof 0.0.9, this is {version()}"),
    ):
        change(Path("run"), f"UPDATE {table} {STAMP.format(column)} WHERE image_index IN {indices}")
        capsys.readouterr()
        assert run(["verify", "run", "--counts"]) == status
        assert said in " ".join(capsys.readouterr().out.split())


def test_shards_of_two_versions_are_not_merged(refused: Refused) -> None:
    for number in range(2):
        words = commanded(CERTIFY.replace("--out run", f"--out run-{number}"), "0:2")
        assert run([*words, "--shard", f"{number}/2"]) == 0
    change(Path("run-1"), f"UPDATE images {STAMP.format('certificate')}")
    change(Path("run-1"), "UPDATE progress SET version = '0.0.9'")
    assert "of another run than run-0: the version of diffproof (0.0.9, " in refused(
        ["merge", "out", "run-0", "run-1"]
    )


def test_a_store_states_its_format(refused: Refused) -> None:
    assert run(commanded(CERTIFY, "0:1")) == 0
    connection = sqlite3.connect("run/results.sqlite")
    assert connection.execute("PRAGMA user_version").fetchone() == (FORMAT,)
    connection.close()
    change(Path("run"), f"PRAGMA user_version = {FORMAT + 1}")
    # Whatever else a later version has.
    change(Path("run"), "UPDATE images SET certificate = json_set(certificate, '$.more', 1)")
    told = f"the store in run has format {FORMAT + 1}, that of a later version of diffproof; this one, "
    for command in (["report", "run"], ["verify", "run"], ["export", "run"], ["status", "run"]):
        assert refused(command).startswith(f"run: {told}")
    assert told in refused(commanded(CERTIFY, "0:2"))


def test_a_store_with_a_log_is_refused(refused: Refused) -> None:
    assert run(commanded(CERTIFY, "0:1")) == 0
    change(Path("run"), "PRAGMA journal_mode = wal")
    told = "the store in run is corrupt: expected a rollback journal, got a write-ahead log"
    assert refused(["report", "run"]) == f"run: {told}"
    assert refused(commanded(CERTIFY, "0:2")) == f"--out: {told}"


def test_a_pipe_is_not_waited_for(refused: Refused) -> None:
    assert run(commanded(CERTIFY, "0:1")) == 0
    Path("run/results.sqlite").unlink()
    os.mkfifo("run/results.sqlite")
    assert "run" in refused(commanded(CERTIFY, "0:2"))


@pytest.mark.usefixtures("packaged_digits")
@pytest.mark.slow
@pytest.mark.parametrize("folder", ["certified", "attacked"])
def test_golden_folders_hold_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    """Folders that an earlier version wrote before formats were stated; one image of three is unfinished."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN / "runs" / folder, "run")
    assert run(["verify", "run", "--resample", "2"]) == 0
    line = CERTIFY if folder == "certified" else ATTACK
    finished = rows(Path("run")) if folder == "certified" else None
    assert run(commanded(line, "0:3")) == 0
    assert finished is None or rows(Path("run"))[:2] == finished
    capsys.readouterr()
    assert run(["verify", "run", "--resample", "3"]) == 0
    assert "3 drawn again" in capsys.readouterr().out
    connection = sqlite3.connect("run/results.sqlite")
    assert connection.execute("PRAGMA user_version").fetchone() == (FORMAT,)
    connection.close()


@pytest.mark.slow
def test_runs_of_the_documentation_hold(capsys: pytest.CaptureFixture[str]) -> None:
    folders = sorted((Path(__file__).parents[2] / "docs" / "results").rglob("results.sqlite"))
    assert folders
    for store in folders[::7]:
        assert run(["verify", str(store.parent), "--counts"]) == 0, store


# What somebody who edits a store might change, and what verification says.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("change_to", "flags", "said"),
    [
        ("'$.denoiser_evaluations', 24", "--resample 2", "denoiser_evaluations is 24, drawn again 25"),
        (
            "'$.naive_denoiser_evaluations', 50, '$.naive_classifier_evaluations', 50",
            "",
            "naive_denoiser_evaluations is 50, expected 25",
        ),
        (
            "'$.naive_denoiser_evaluations', 26",
            "--counts",
            "denoiser_evaluations is 25, expected at most 26, as many for each draw",
        ),
    ],
)
def test_evaluations_are_checked(
    refused: Refused, capsys: pytest.CaptureFixture[str], change_to: str, flags: str, said: str
) -> None:
    line = CERTIFY.replace("--defense none", "--defense dds --denoiser digits")
    assert run(commanded(line, "0:2")) == 0
    assert run(["verify", "run", "--resample", "2"]) == 0
    change(Path("run"), f"UPDATE images SET certificate = json_set(certificate, {change_to})")
    capsys.readouterr()
    assert run(["verify", "run", *flags.split()]) == 1
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("packaged_digits")
@pytest.mark.slow
def test_labels_of_an_attack_may_fall_otherwise_by_rounding_alone(
    refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ATTACK.replace("--draws 2 --majority-of 2", "--draws 25 --majority-of 25")
    assert run(commanded(line, "0:2")) == 0
    assert run(["verify", "run", "--resample", "2"]) == 0
    # Two of 25 labels, which all agreed.
    connection = sqlite3.connect("run/results.sqlite")
    (text,) = connection.execute("SELECT result FROM attacked WHERE image_index = 0").fetchone()
    connection.close()
    told = json.loads(text)
    assert len({*told["labels"]}) == 1
    told["labels"][:2] = [(told["labels"][0] + 1) % 10] * 2
    change(Path("run"), "UPDATE attacked SET result = ? WHERE image_index = 0", json.dumps(told))
    capsys.readouterr()
    status = run(["verify", "run", "--resample", "2"])
    assert "scored again, 2 of 25 labels fell otherwise" in " ".join(capsys.readouterr().out.split())
    assert status == 1
