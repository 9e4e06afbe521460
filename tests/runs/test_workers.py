"""Workers of runs: when they are looked for, and what is recorded of them; see tests/scale for real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffproof.cli.main import run
from diffproof.runs.folder import claimed
from helpers.command_line import Refused, words
from helpers.runs import PLAIN, certify_flags, contents

# Where no cluster can be.
NOWHERE = "nowhere.invalid:1"
ATTACK = words(
    "attack",
    data="digits",
    indices="0:4:2",
    classifier="digits",
    defense="none",
    attack="pgd:iterations=1",
    threat="linf",
    budget=0.1,
    diagnose=0,
)


@pytest.mark.parametrize("kind", ["certify", "attack"])
def test_a_finished_run_needs_no_workers(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = certify_flags(folder, **PLAIN) if kind == "certify" else [*ATTACK, "--out", str(folder)]
    assert run(flags) == 0
    before = contents(folder)
    assert run([*flags, "--ray", NOWHERE]) == 0
    assert contents(folder) == before


def test_a_run_that_knows_enough_needs_no_workers(tmp_path: Path) -> None:
    flags = certify_flags(tmp_path / "run", **{**PLAIN, "indices": "0:40"}, until_half_width=0.45)
    assert run(flags) == 0
    assert len(contents(tmp_path / "run")["images"]) < 40
    assert run([*flags, "--ray", NOWHERE]) == 0


def test_a_folder_that_cannot_be_had_is_named_before_workers_are_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(certify_flags(folder, **PLAIN)) == 0
    refused = Refused(tmp_path, capsys)
    line = refused(certify_flags(folder, **PLAIN, n=200, ray=NOWHERE))
    assert line == f"--out: {folder} holds a run with other settings: n (100, now 200)"
    with claimed(folder):
        line = refused(certify_flags(folder, **PLAIN, ray=NOWHERE))
    assert line == f"--out: another process is at work in {folder}"
