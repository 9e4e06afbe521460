"""Progress bars of the library: what they count, and that results do not depend on them."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import torch

import diffproof as dp
from helpers.classifiers import steep_classifier
from helpers.images import pictures

IMAGES = pictures(5, 0, (1, 2, 2))
DEFENSE = dp.Undefended(steep_classifier())
LABELS = DEFENSE.predict_labels(IMAGES)
ATTACK: dict[str, Any] = {"budget": 0.5, "iterations": 2, "batch_size": 2}


def last(text: str, title: str, unit: str) -> tuple[str, str]:
    """What is done of what in the last state of a bar."""
    done, total = re.findall(rf"{title}: [^|]*\|[^|]*\| (\d+)/(\d+) \[[^\]]* {unit}/s\]", text)[-1]
    return done, total


def test_certification_counts_evaluations(capsys: pytest.CaptureFixture[str]) -> None:
    how: dict[str, Any] = {"sigma": 0.25, "n0": 10, "n": 90, "batch_size": 30}
    found = dp.certify(IMAGES, LABELS, defense=DEFENSE, progress=True, **how)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert last(captured.err, "certify", "evaluations") == ("500", "500")
    assert found == dp.certify(IMAGES, LABELS, defense=DEFENSE, **how)
    assert capsys.readouterr().err == ""


def test_what_sequential_draws_save_counts_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    how: dict[str, Any] = {"sigma": 0.25, "n": 400, "stop": "sequential", "radii": [0.1]}
    found = dp.certify(IMAGES, LABELS, defense=DEFENSE, progress=True, **how)
    assert any(one.n < 400 for one in found)
    assert last(capsys.readouterr().err, "certify", "evaluations") == ("2500", "2500")


def test_attacks_count_images(capsys: pytest.CaptureFixture[str]) -> None:
    shown = dp.attack(DEFENSE, IMAGES, LABELS, progress=True, **ATTACK)
    assert last(capsys.readouterr().err, "pgd", "images") == ("5", "5")
    plain = dp.attack(DEFENSE, IMAGES, LABELS, **ATTACK)
    assert [one.image_index for one in shown] == list(range(5))
    for one, other in zip(shown, plain, strict=True):
        assert torch.equal(one.adversarial, other.adversarial)
    found = dp.evaluate(DEFENSE, IMAGES, LABELS, progress=True, **ATTACK)
    assert last(capsys.readouterr().err, "pgd", "images") == ("5", "5")
    assert found.attacked == dp.evaluate(DEFENSE, IMAGES, LABELS, **ATTACK).attacked
    assert capsys.readouterr().err == ""


def test_memory_that_runs_out_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, run, sizes = dp.evaluate(DEFENSE, IMAGES, LABELS, **ATTACK), dp.PGD.find, list[int]()

    def find(self: dp.PGD, job: dp.Job, threat: dp.Threat) -> list[dp.AttackResult]:
        sizes.append(len(job.images))
        if len(job.images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, job, threat)

    monkeypatch.setattr(dp.PGD, "find", find)
    with pytest.warns(UserWarning, match="no memory for the batch: going on with 2 images"):
        halved = dp.evaluate(DEFENSE, IMAGES, LABELS, **{**ATTACK, "batch_size": 4})
    assert sizes == [4, 2, 2, 1]
    assert halved.attacked == plain.attacked


def test_a_bar_says_where_to_get_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(dp.ArgumentError, match=r"^tqdm.auto: not installed; .*diffproof\[notebook\]"):
        dp.attack(DEFENSE, IMAGES, LABELS, progress=True, **ATTACK)
