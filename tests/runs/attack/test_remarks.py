"""What reports of attacks say of randomness and of optimisation at inference."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import diffproof as dp
from diffproof.cli.main import run
from diffproof.runs.attack.report import own_words
from diffproof.runs.attack.store import AttackStore

HOW = {"threat": "linf", "budget": "0.2", "attack": "pgd:iterations=3,eot=2"}


def attack(folder: Path, defense: str, *more: str) -> list[str]:
    flags = f"--data digits --indices 0:30:10 --denoiser digits --defense {defense} --diagnose 0 --seed 5"
    how = [word for name, value in HOW.items() for word in (f"--{name}", value)]
    return ["attack", *flags.split(), *how, "--draws", "3", "--majority-of", "3", *more, "--out", str(folder)]


@pytest.mark.slow
def test_how_much_is_randomness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, text = tmp_path / "run", "diffpure:t_star=0.1,steps=2"
    words = attack(folder, text, "--classifier", "digits", "--fixed-noise")
    assert run(words) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "fixed noise: " in told
    assert "points are the randomness" in told
    with AttackStore.reading(folder) as store:
        stored = [image.evaluated for image in store.results()]
    images, labels = dp.load_data("digits", indices="0:30:10")
    defense = dp.load_defense(
        text, denoiser=dp.load_denoiser("digits"), classifier=dp.load_classifier("digits")
    )
    found = dp.evaluate(
        defense,
        images,
        labels,
        **HOW,  # type: ignore[arg-type]
        draws=3,
        votes=3,
        fixed_noise=True,
        seed=5,
        image_indices=[0, 10, 20],
    )
    assert [(one.fixed_clean, one.fixed_right) for one in stored] == [
        (one.fixed_clean, one.fixed_right) for one in found.images
    ]
    assert found.attacked.fixed is not None
    assert "fixed noise" in found.attacked.named
    assert run(["report", str(folder), "--out", str(tmp_path / "report")]) == 0
    (row,) = csv.DictReader((tmp_path / "report" / "table.csv").read_text(encoding="utf-8").splitlines())
    assert float(row["attacked_fixed"]) == pytest.approx(found.attacked.fixed.value, abs=1e-6)
    assert run(["verify", str(folder), "--counts"]) == 0
    capsys.readouterr()
    words.remove("--fixed-noise")
    assert run(words) == 2
    assert "fixed_noise (True, now False)" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_optimisation_at_inference_is_remarked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "rdc:timesteps=uniform:2,likelihood_timesteps=uniform:2,iterations=1"
    assert run(attack(tmp_path / "run", text, "--limit", "1")) == 0
    assert "optimisation at inference: " in " ".join(capsys.readouterr().out.split())


def test_what_optimises() -> None:
    found = {
        name for name in ("rdc", "likelihood", "diffpure", "dc", "none") if "optimise" in own_words(name)
    }
    assert found == {"rdc", "likelihood"}
