"""What reports of attacks say of randomness and of optimisation at inference."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch

import diffproof as dp
from diffproof.cli.main import run
from diffproof.runs.attack.report import load_attack_report, own_words, right_by_accuracy
from diffproof.runs.attack.store import AttackStore
from diffproof.runs.attack.tables import header, table_cells

HOW = {"threat": "linf", "budget": "0.2", "attack": "pgd:iterations=3,eot=2"}


def attack(folder: Path, defense: str, *more: str) -> list[str]:
    network = "" if defense == "none" else "--denoiser digits"
    flags = f"--data digits --indices 0:30:10 {network} --defense {defense} --diagnose 0 --seed 5"
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
    capsys.readouterr()
    assert run(["verify", str(folder), "--counts"]) == 0
    unchecked = "whether the attack that knows the noise finds no more"
    assert unchecked in " ".join(capsys.readouterr().out.split())
    again = ["verify", str(folder), "--trust", "--resample", "3"]
    assert run(again) == 0
    assert unchecked in " ".join(capsys.readouterr().out.split())
    # What that attack found is kept, and scored again where it did not succeed.
    for one, other in zip(stored, found.images, strict=True):
        assert (one.fixed_adversarial is None) == (other.fixed_adversarial is None)
        if one.fixed_adversarial is not None:
            assert other.fixed_adversarial is not None
            assert torch.equal(one.fixed_adversarial, other.fixed_adversarial)
    withstood = [one for one in stored if one.fixed_right]
    assert withstood
    known = withstood[0].image_index
    with sqlite3.connect(folder / "results.sqlite") as connection:
        (kept,) = connection.execute(
            "SELECT adversarial FROM known_noise WHERE image_index = ?", (known,)
        ).fetchone()
        change = "UPDATE known_noise SET adversarial = ? WHERE image_index = ?"
        # An image of another class, within the budget of 1 that nobody had: told from labels and from norms.
        other = np.load(io.BytesIO(kept))
        other[...] = dp.load_data("digits", indices="1:2").images[0]
        file = io.BytesIO()
        np.save(file, other)
        connection.execute(change, (file.getvalue(), known))
    assert run(again) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert f"image {known}: what the attack that knows the noise found has norm" in told
    assert f"fixed noise: 1 of the labels of {len(withstood)} attacked image" in told
    with sqlite3.connect(folder / "results.sqlite") as connection:
        connection.execute("DELETE FROM known_noise WHERE image_index = ?", (known,))
    assert run(again) == 1
    assert "the attack that knows the noise, whose image is not there" in capsys.readouterr().out
    with sqlite3.connect(folder / "results.sqlite") as connection:
        connection.execute("INSERT INTO known_noise VALUES (?, ?)", (known, kept))
        (text,) = connection.execute("SELECT result FROM attacked WHERE image_index = 0").fetchone()
        fields = json.loads(text) | {"fixed_clean": False, "fixed_right": True}
        connection.execute("UPDATE attacked SET result = ? WHERE image_index = 0", (json.dumps(fields),))
    assert run(again) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "withstands the attack that knows the noise, but is wrong before it" in told
    assert "fixed noise: 1 of the labels of 3 clean images fell otherwise" in told
    words.remove("--fixed-noise")
    assert run(words) == 2
    assert "fixed_noise (True, now False)" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_fixed_noise_is_a_column_where_a_run_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_it, without = tmp_path / "with", tmp_path / "without"
    assert run(attack(with_it, "none", "--classifier", "digits", "--fixed-noise")) == 0
    assert run(attack(without, "none", "--classifier", "digits")) == 0
    alone, both = load_attack_report([without]), load_attack_report([with_it, without])
    assert "fixed noise" not in header(alone)
    assert len(table_cells(alone, alone.rows[0])) == len(header(alone)) == len(header(both)) - 1
    known = both.rows[0].attacked.fixed
    assert known is not None
    cells = [table_cells(both, row)[-1] for row in both.rows]
    assert cells[0].partition("\n")[2].startswith(f"{100 * known.value:.1f} (")
    assert cells[1] == "–"
    assert "attacked fixed noise" not in right_by_accuracy(alone.rows[0], alone)
    right = right_by_accuracy(both.rows[0], both)["attacked fixed noise"]
    assert right == {one.evaluated.image_index: one.evaluated.fixed_right for one in both.rows[0].results}
    (pair,) = both.comparisons.pairs
    assert pair.at["attacked fixed noise"] is None
    latex, page = tmp_path / "table.tex", tmp_path / "page.html"
    capsys.readouterr()
    assert run(["report", str(with_it), str(without), "--latex", str(latex), "--html", str(page)]) == 0
    assert "fixed noise" in " ".join(capsys.readouterr().out.split())
    (line,) = [one for one in latex.read_text().splitlines() if "one draw &" in one]
    assert line.rstrip(" \\").endswith("fixed noise")
    html = page.read_text()
    assert '<th scope="col" class="number">fixed noise</th>' in html
    assert html.count('data-score-row="fixed"') == 1
    assert run(["report", str(without), "--html", str(page), "--force"]) == 0
    assert "fixed noise" not in page.read_text()


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
