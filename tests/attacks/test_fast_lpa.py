"""Fast-LPA as an attack on defences: against a loop by differences, within its budget, verified."""

from __future__ import annotations

import shlex
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import diffproof as dp
from diffproof.attacks.features import classified, distances, features_of, pulled
from diffproof.attacks.threat import Perceptual
from diffproof.cli.main import run
from diffproof.noise import MAX_DRAW
from helpers.attacks import labels_of, purifier
from helpers.classifiers import curved_classifier, mapped_classifier
from helpers.denoisers import mixture_around
from helpers.images import inner_pictures

SEED = 7


def noise_of(image: int, draw: int) -> dp.Noise:
    index = torch.tensor([image])
    return dp.Noise.for_rows(SEED, dp.Stream.ATTACK, index, torch.full_like(index, draw))


def alone(defense: dp.Defense, image: Tensor, label: int, number: int, budget: float, steps: int) -> Tensor:
    """The authors' algorithm on one image, gradients by differences, two draws of noise a gradient."""
    classifier = defense.classifier
    assert classifier is not None

    def features(point: Tensor) -> Tensor:
        return classified(classifier, point[None])[1][0]

    def loss(point: Tensor, weight: float, step: int) -> float:
        margins = []
        for repeat in (0, 1):
            logits = defense(point[None], noise_of(number, 2 * step + repeat))[0]
            others = torch.cat([logits[:label], logits[label + 1 :]]).max()
            margins.append(float(others - logits[label]))
        far = float((features(point) - features(image)).norm())
        return -sum(margins) / 2 + weight * max(0.0, far - budget)

    start = 0.01 * noise_of(number, MAX_DRAW).normal(image.shape, 0, torch.float64)[0]
    at = (image + start).clamp(0, 1)
    for k in range(steps):
        length, weight = budget * 0.1 ** (k / steps), 10 * 0.1 ** (1 - k / steps)
        slope = torch.stack(
            [
                torch.tensor(loss(at + unit, weight, k) - loss(at - unit, weight, k))
                for unit in 1e-6 * torch.eye(16, dtype=torch.float64).reshape(16, 1, 4, 4)
            ]
        ).reshape(1, 4, 4)
        unit = slope / slope.norm()
        rate = float((features(at) - features(at - 0.1 * unit)).norm()) / 0.1
        at = (at - unit * length / (rate + 1e-4)).clamp(0, 1)
    way = image + torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None, None, None] * (at - image)
    far = (classified(classifier, way)[1] - features(image)).norm(dim=1)
    return way[far <= budget][-1]


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.05, 0.4])
def test_on_a_random_defence_it_is_the_authors_algorithm(budget: float) -> None:
    defense, images = purifier(mapped_classifier(), steps=2), inner_pictures(3)
    labels = labels_of(defense, images)
    found = dp.attack(
        defense, images, labels, attack="fast-lpa:iterations=3,eot=2", threat=Perceptual(budget), seed=SEED
    )
    features = features_of(defense)
    with torch.no_grad():
        for i in range(3):
            expected = alone(defense, images[i], int(labels[i]), i, budget, 3)
            torch.testing.assert_close(found[i].adversarial, expected, rtol=0, atol=1e-3)
            far = float(distances(features, found[i].adversarial[None], images[i : i + 1]))
            assert found[i].norm == pytest.approx(far)
            assert far <= budget
            # Success is what the returned image does, under the draws after the last step.
            wrong = [
                int(defense(found[i].adversarial[None], noise_of(i, 6 + repeat)).argmax()) != int(labels[i])
                for repeat in (0, 1)
            ]
            assert found[i].first_success == (3 if any(wrong) else None)
    assert (found[0].forwards, found[0].backwards, found[0].draws) == (8, 6, 8)


def test_points_are_pulled_to_the_edge_and_no_further() -> None:
    features, images = features_of(dp.Undefended(mapped_classifier())), inner_pictures(3)
    points = images.clone()
    points[0] = 1 - points[0]
    points[1] += 1e-4
    found, norms = pulled(features, points, images, 0.2)
    assert 0.2 - 1e-6 < float(norms[0]) <= 0.2
    torch.testing.assert_close(norms, distances(features, found, images))
    assert torch.equal(found[1:], points[1:])
    # On the straight way from the image.
    way, whole = (found[0] - images[0]).flatten(), (points[0] - images[0]).flatten()
    assert float(way @ whole) == pytest.approx(float(way.norm() * whole.norm()))


@pytest.mark.slow
def test_it_breaks_a_classifier_and_more_with_more() -> None:
    images, labels = dp.load_data("digits", indices="0:24")
    defense = dp.load_defense("none", classifier=dp.load_classifier("digits"))
    wrong = []
    for budget in (0.3, 0.6, 1.0):
        found = dp.attack(defense, images, labels, attack="fast-lpa", threat="perceptual", budget=budget)
        assert all(one.norm <= budget for one in found)
        wrong.append(sum(one.success for one in found))
    assert wrong[0] < wrong[1] < wrong[2]
    assert wrong[2] >= 22


def test_what_is_refused() -> None:
    images = inner_pictures(1)
    labels = torch.zeros(1, dtype=torch.int64)
    given: dict[str, Any] = {"attack": "fast-lpa", "threat": "perceptual", "budget": 0.3}
    with pytest.raises(ValueError, match=r"^network: expected one with maps of features"):
        dp.attack(purifier(curved_classifier(seed=2)), images, labels, **given)
    with pytest.raises(ValueError, match=r"^threat: fast-lpa attacks within perceptual, got linf"):
        dp.attack(purifier(mapped_classifier()), images, labels, **given | {"threat": "linf"})
    own: dict[str, Any] = {"component_labels": list(range(4)), "sigmas": torch.tensor([0.1, 0.3]).double()}
    denoiser = mixture_around(inner_pictures(4, seed=3), 0.05, **own)
    with pytest.raises(ValueError, match=r"^threat: perceptual distances are of a classifier's features"):
        dp.attack(dp.load_defense("dc", denoiser=denoiser), images, labels, **given)


@pytest.mark.slow
def test_a_run_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    line = "attack --data digits --indices 0:3 --defense none --classifier digits --threat perceptual"
    flags = "--budget 0.5 --attack fast-lpa:iterations=4 --diagnose 2"
    assert run(shlex.split(f"{line} {flags} --out {folder}")) == 0
    assert run(["report", str(folder)]) == 0
    assert "perceptual 0.5" in capsys.readouterr().out
    assert run(["verify", str(folder), "--trust"]) == 0
    # An image that went further than the result says.
    with sqlite3.connect(folder / "results.sqlite") as connection:
        connection.execute("UPDATE attacked SET result = replace(result, '\"norm\": 0.', '\"norm\": 0.0')")
    capsys.readouterr()
    assert run(["verify", str(folder), "--trust"]) == 1
    assert "its features are 0." in capsys.readouterr().out
