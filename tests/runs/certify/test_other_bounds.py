"""Reports by another bound than the run's, of the same counts."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from diffproof.cli.main import run
from diffproof.runs.certify.report import load_report
from diffproof.smoothing.bounds import radius_bound


def test_radii_are_those_of_the_bound(told_run: Path) -> None:
    (own,), (other,) = (load_report([told_run], [0.0], None, bound).rows for bound in (None, "pixeldp"))
    assert (own.settings.bound, other.settings.bound) == ("one-sided", "pixeldp")
    assert load_report([told_run], [0.0], None, "one-sided").rows == [own]
    radii = []
    for mine, again in zip(own.results, other.results, strict=True):
        one, proved = mine.certificate, again.certificate
        expected = radius_bound(
            one.counts, one.selected, one.alpha, one.sigma, "pixeldp", failure_mass=one.failure_mass
        )
        assert (proved.p_a_lower, proved.p_b_upper, proved.radius) == tuple(expected)
        assert proved.label == (one.selected if expected.radius else None)
        radii.append((proved.radius, one.radius))
    assert any(0 < private < public for private, public in radii)
    assert other.average_radius < own.average_radius
    assert other.largest_radius < own.largest_radius


def test_the_command_shows_it(told_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(told_run), "--at", "0,0.01", "--bound", "pixeldp", "--json"]) == 0
    private = capsys.readouterr().out
    assert run(["report", str(told_run), "--at", "0,0.01", "--json"]) == 0
    assert capsys.readouterr().out != private


def test_of_draws_that_ended_when_decided_there_is_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    line = (
        "certify --data digits --indices 0:1 --defense none --classifier digits --sigma 0.25 --n0 10 --n 50"
    )
    assert run(shlex.split(f"{line} --stop sequential --bound pixeldp --out {folder}")) == 2
    assert "--bound: sequential certificates are one-sided, got pixeldp" in capsys.readouterr().err
    assert run(shlex.split(f"{line} --stop sequential --out {folder}")) == 0
    capsys.readouterr()
    assert run(["report", str(folder), "--bound", "pixeldp"]) == 2
    assert capsys.readouterr().err == (
        f"diffproof: error: --bound: expected a run of a fixed number of draws, {folder} is sequential\n"
    )


def test_a_run_by_it_verifies(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    line = (
        "certify --data digits --indices 0:2 --defense none --classifier digits --sigma 0.25 --n0 10 --n 50"
    )
    assert run(shlex.split(f"{line} --bound pixeldp --out {folder}")) == 0
    assert run(["verify", str(folder)]) == 0
