"""diffproof plan: the flags of the runs, a few lines, and nothing written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from scipy.stats import norm

from diffproof.cli.attack import attack
from diffproof.cli.certify import certify
from diffproof.cli.main import run
from diffproof.cli.plan import plan
from diffproof.cli.run_options import WORKER_FLAGS
from helpers.command_line import Refused

DATA = "--data digits --classifier digits --defense none"
CERTIFY = f"plan certify {DATA} --sigma 0.5"
ATTACK = f"plan attack {DATA} --threat linf --budget 0.1"
TIME = r"about [\d.]+ s \([\d.]+ s to [\d.]+ s\), at most [\d.]+ kB on disk"

Printed = Callable[[str], list[str]]


@pytest.fixture
def printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Printed:
    """Run a command line that writes nothing, and give the lines that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffproof.runs.plan._MOST", 1)

    def lines(line: str) -> list[str]:
        assert run(line.split()) == 0
        assert list(tmp_path.iterdir()) == []
        return capsys.readouterr().out.splitlines()

    return lines


@pytest.mark.parametrize("command", [certify, attack], ids=lambda command: command.name)
def test_plans_take_the_flags_of_the_run(command: click.Command) -> None:
    assert command.name is not None
    planned = plan.commands[command.name]
    names = [one.name for one in planned.params]
    other = ("out", *WORKER_FLAGS)
    assert names == [*(one.name for one in command.params if one.name not in other), "workers", "as_json"]
    assert "--classifier" in (planned.help or "")


def test_the_plan_of_a_certification(printed: Printed) -> None:
    first, alone, shared, radius = printed(f"{CERTIFY} --indices 0:10:4 --n0 5 --n 20 --workers 2")
    assert first == "3 images: 75 evaluations of networks"
    assert re.fullmatch(f"one process: {TIME}", alone)
    assert re.fullmatch(f"2 workers: {TIME}", shared)
    largest = 0.5 * norm.ppf(0.001 ** (1 / 20))
    assert radius == f"largest radius that n = 20 and alpha = 0.001 allow: {largest:.4f}"


@pytest.mark.slow
def test_the_plan_tells_votes_that_are_not_needed_and_an_n_too_small(printed: Printed) -> None:
    line = CERTIFY.replace("none", "densepure:steps=2,votes=5 --denoiser digits")
    first, _, radius = printed(f"{line} --limit 1 --n0 2 --n 4")
    # A first estimate and three to five votes a draw, of one evaluation of each network.
    found = re.fullmatch(r"1 image: (\d+) evaluations of networks, 90 if no vote were stopped early", first)
    assert found is not None
    assert 6 * (1 + 3 * 2) <= int(found[1]) <= 6 * (1 + 5 * 2)
    assert radius == "largest radius that n = 4 and alpha = 0.001 allow: 0.0000: n is too small"


def test_the_plan_of_an_attack(printed: Printed) -> None:
    first, alone = printed(f"{ATTACK} --indices 0:2 --attack pgd:iterations=4 --diagnose 0")
    # A label before and one after, five looks, a control; no network of a diffusion model.
    assert first == "2 images: 16 evaluations of networks"
    assert re.fullmatch(f"one process: {TIME}", alone)


def test_workers_without_work_are_told(printed: Printed) -> None:
    _, _, shared, groups = printed(
        f"{ATTACK} --indices 0:4 --attack pgd:iterations=1 --diagnose 0 --batch-size 2 --workers 8"
    )
    assert re.fullmatch(f"8 workers, 2 of them with something to do: {TIME}", shared)
    assert groups == "images are attacked in 2 groups, --batch-size rows together"


def test_auto_is_a_worker_a_core(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffproof.scale.workforce.cores", lambda: 3)
    _, _, shared, _ = printed(f"{CERTIFY} --indices 0:2 --n0 5 --n 20 --workers auto --device cpu")
    assert re.fullmatch(f"3 workers: {TIME}", shared)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{CERTIFY} --workers 0", "--workers: expected an integer ≥ 1, got 0"),
        (f"{ATTACK} --workers -1", "--workers: expected an integer ≥ 1, got -1"),
        (
            f"{CERTIFY} --workers 1.5",
            "Invalid value for '--workers': expected a whole number or auto, got '1.5'.",
        ),
        (
            f"{ATTACK} --workers many",
            "Invalid value for '--workers': expected a whole number or auto, got 'many'.",
        ),
        (f"{CERTIFY} --workers 1000000", "--workers: expected at most 100000, got 1000000"),
        (f"{CERTIFY} --devices 2", "No such option '--devices'."),
        (f"{CERTIFY} --ray auto", "No such option '--ray'."),
        (f"{CERTIFY} --n 0", "--n: expected an integer ≥ 1"),
        (f"{CERTIFY} --sigma 0", "--sigma: expected a finite number > 0"),
        (f"{CERTIFY} --indices 5000", "--indices: "),
        (f"{CERTIFY} --out runs/a", "No such option '--out'."),
        (f"{ATTACK} --attack pgd:eot=0", "--attack: eot: expected an integer ≥ 1, got '0'"),
        (f"{ATTACK} --gradient bpda", "--gradient: bpda is for defences that purify"),
        ("plan certify --data digits", "Missing option '--defense'."),
        ("plan purify", "No such command 'purify'."),
    ],
)
def test_mistakes_are_one_line(line: str, message: str, refused: Refused) -> None:
    assert refused(line.split()).startswith(message)
