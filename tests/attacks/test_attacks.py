"""Attacks against closed forms, plain loops over the papers' formulas, scipy and finite differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import fft, ndimage, optimize, stats
from torch import Tensor, nn

import diffproof as dp
from diffproof.attacks.base import Job
from diffproof.attacks.diagnostics.probe import Probe
from diffproof.attacks.expectation import Expectation, MeanOf
from diffproof.attacks.losses import Loss, loss_values
from diffproof.attacks.low_frequency import low_pass
from diffproof.attacks.pyautoattack import WatchedDefense, contained
from diffproof.attacks.stadv import total_variation, warp
from diffproof.attacks.threat import L2, Flow, Linf, PixelThreat, parse_budget
from diffproof.catalog_attacks import ATTACKS
from diffproof.noise import Noise, Stream
from helpers.attacks import SETTINGS, adversarials, job_of, labels_of, purifier, short_package, threat_of
from helpers.classifiers import curved_classifier, mapped_classifier
from helpers.denoisers import CountingMixture, mixture_around
from helpers.images import inner_pictures
from helpers.noise import attack_noise
from helpers.tensors import random

SHAPE = (1, 4, 4)
SIZE = math.prod(SHAPE)


def linear(classes: int = 3, seed: int = 2) -> dp.Classifier:
    layer = nn.Linear(SIZE, classes).double().requires_grad_(False)
    layer.weight.copy_(random(classes, SIZE, seed=seed))
    layer.bias.copy_(random(classes, seed=seed + 1))
    return dp.Classifier(nn.Sequential(nn.Flatten(), layer), classes, image_shape=SHAPE)


def weights(classifier: nn.Module) -> Tensor:
    layer: Any = classifier.network[1]  # type: ignore[index]
    tensor: Tensor = layer.weight
    return tensor


def diffusing() -> dp.RDC:
    """A defence whose diffusion model classifies."""
    levels = torch.tensor([0.1, 0.3], dtype=torch.float64)
    denoiser = mixture_around(inner_pictures(4, seed=3), 0.05, component_labels=[0, 1, 2, 3], sigmas=levels)
    return dp.RDC(denoiser, iterations=2, budget=0.02)


# Budgets and balls.


@pytest.mark.parametrize(
    ("given", "expected"),
    [("8/255", 8 / 255), ("0.0314", 0.0314), (0.0314, 0.0314), ("1e-2", 0.01), (2, 2.0)],
)
def test_budgets(given: str | float, expected: float) -> None:
    assert parse_budget(given) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    "given", ["eight", "8/0", "", "8/255/2", 0, "0", -0.1, "-1/255", "nan", float("inf")]
)
def test_refused_budgets(given: str | float) -> None:
    with pytest.raises(ValueError, match=r"^budget: expected a"):
        dp.load_threat("linf", given)


def test_budget_in_the_wrong_scale() -> None:
    with pytest.raises(ValueError, match=r"does 8 mean 8/255\?"):
        dp.load_threat("linf", "8")
    with pytest.raises(ValueError, match=r"^budget: expected stadv in \(0, 1\], got 2$"):
        dp.load_threat("stadv", 2)
    assert dp.load_threat("l2", 3) == L2(3.0)
    with pytest.raises(ValueError, match=r"^threat: unknown name 'linff'; did you mean linf\?"):
        dp.load_threat("linff", 1)


def test_projections_are_the_nearest_points() -> None:
    perturbations = (
        random(3, *SHAPE) * torch.tensor([0.01, 0.2, 1.0], dtype=torch.float64)[:, None, None, None]
    )
    linf, l2 = Linf(0.15), L2(0.5)
    np.testing.assert_array_equal(linf.project(perturbations), np.clip(perturbations.numpy(), -0.15, 0.15))
    for i, far in enumerate(perturbations.flatten(1).numpy()):
        nearest = optimize.minimize(
            lambda p, far=far: ((p - far) ** 2).sum(),
            np.zeros(SIZE),
            jac=lambda p, far=far: 2 * (p - far),
            constraints={"type": "ineq", "fun": lambda p: 0.25 - p @ p, "jac": lambda p: -2 * p},
            options={"ftol": 1e-14},
        )
        assert nearest.success
        ours = l2.project(perturbations)[i].flatten().numpy()
        np.testing.assert_allclose(ours, nearest.x, atol=1e-5)
    np.testing.assert_allclose(
        l2.norm(perturbations), np.linalg.norm(perturbations.flatten(1).numpy(), axis=1), rtol=1e-14
    )
    assert torch.equal(linf.norm(perturbations), perturbations.abs().amax((1, 2, 3)))


def test_points_stay_in_the_ball_and_in_the_pixel_range() -> None:
    images = torch.rand(50, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    for threat in (Linf(0.3), L2(1.0)):
        points = threat.clip(images + random(50, *SHAPE), images)
        assert 0 <= float(points.min()) <= float(points.max()) <= 1
        assert float(threat.norm(points - images).max()) <= threat.budget * (1 + 1e-12)


@pytest.mark.parametrize("threat", [Linf(0.3), L2(0.7)])
def test_steepest_directions(threat: PixelThreat) -> None:
    gradient = random(4, *SHAPE)
    gradient[1] *= 1e-200
    gradient[2] = 0
    step = threat.steepest(gradient)
    assert bool(torch.isfinite(step).all())
    assert not step[2].any()
    others = [0, 1, 3]
    torch.testing.assert_close(threat.norm(step[others]), torch.ones(3, dtype=torch.float64))
    # Hölder: the largest rise within a unit ball is the dual norm of the gradient.
    order = 1 if isinstance(threat, Linf) else 2
    dual = torch.linalg.vector_norm(gradient.flatten(1), order, dim=1)
    torch.testing.assert_close((gradient * step).sum((1, 2, 3))[[0, 3]], dual[[0, 3]])


def test_random_starts_are_uniform_in_the_ball() -> None:
    """Kolmogorov–Smirnov at a false-alarm rate of 1e-4 each, fixed seed."""
    number = 2000
    defense = dp.Undefended(linear())
    images = torch.full((number, *SHAPE), 0.5, dtype=torch.float64)
    labels = labels_of(defense, images)
    for threat in (Linf(0.4), L2(0.4)):
        attack = dp.PGD(iterations=1, step=1e-12, random_start=True)
        view = dp.AttackedDefense(defense)
        found = attack.run(
            view, images, labels, threat=threat, seed=0, image_indices=range(number), batch_size=4000
        )
        start = adversarials(found) - images
        if isinstance(threat, Linf):
            law, values = stats.uniform(-0.4, 0.8), start[:, 0, 1, 2]
        else:
            law, values = stats.uniform(0, 1), (threat.norm(start) / 0.4) ** SIZE
        assert stats.kstest(values.numpy(), law.cdf).pvalue > 1e-4


# Losses.


def test_losses_by_their_formulas() -> None:
    logits, labels = random(6, 5, seed=8), torch.tensor([0, 1, 2, 3, 4, 0])
    for row, label, ce, dlr, margin in zip(
        logits.tolist(),
        labels.tolist(),
        loss_values(Loss.CE, logits, labels).tolist(),
        loss_values(Loss.DLR, logits, labels).tolist(),
        loss_values(Loss.MARGIN, logits, labels).tolist(),
        strict=True,
    ):
        other = max(value for i, value in enumerate(row) if i != label)
        ordered = sorted(row, reverse=True)
        assert ce == pytest.approx(math.log(sum(math.exp(value - row[label]) for value in row)))
        assert margin == pytest.approx(other - row[label])
        assert dlr == pytest.approx(-(row[label] - other) / (ordered[0] - ordered[2]))


def test_dlr_needs_three_classes_and_survives_ties() -> None:
    with pytest.raises(ValueError, match=r"^loss: dlr needs at least 3 classes, got 2; use margin$"):
        loss_values(Loss.DLR, torch.zeros(1, 2), torch.tensor([0]))
    assert bool(torch.isfinite(loss_values(Loss.DLR, torch.zeros(1, 3), torch.tensor([0]))).all())


# PGD where the optimum is known.


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_pgd_reaches_the_optimum_of_a_linear_model(loss: str) -> None:
    """The margin grows by the budget times the dual norm of w_other − w_label."""
    classifier = linear()
    defense = dp.Undefended(classifier)
    images, labels = inner_pictures(), torch.tensor([0, 1, 2])
    if loss == "ce":
        # Two classes that differ by their bias only leave cross-entropy one direction.
        two = dp.Classifier(nn.Sequential(nn.Flatten(), classifier.network[1]), 3, image_shape=SHAPE)  # type: ignore[index]
        weights(two)[2] = weights(two)[0]
        defense, labels = dp.Undefended(two), torch.tensor([1, 1, 1])
    w = weights(defense.classifier)
    for threat, dual in ((Linf(0.02), 1), (L2(0.02), 2)):
        results = dp.attack(defense, images, labels, threat=threat, loss=loss, iterations=30)
        for image, label, result in zip(images, labels.tolist(), results, strict=True):
            reached = loss_values(Loss.MARGIN, defense(result.adversarial[None]), torch.tensor([label]))
            clean = defense(image[None])[0]
            best = max(
                float(
                    clean[j] - clean[label] + threat.budget * torch.linalg.vector_norm(w[j] - w[label], dual)
                )
                for j in range(3)
                if j != label
            )
            assert float(reached) == pytest.approx(best, abs=1e-9)


def test_sign_steps_in_l2() -> None:
    defense, images = dp.Undefended(linear()), inner_pictures(1)
    labels = labels_of(defense, images)
    (result,) = dp.attack(
        defense,
        images,
        labels,
        threat="l2",
        budget=1,
        iterations=1,
        step=0.01,
        direction="sign",
        loss="margin",
    )
    moved = (result.adversarial - images[0]).abs()
    torch.testing.assert_close(moved, torch.full(SHAPE, 0.01, dtype=torch.float64))


def test_default_step_and_trajectory() -> None:
    """The iterates of a plain loop over the paper's formulas."""
    defense, images = dp.Undefended(curved_classifier(classes=3, seed=2)), inner_pictures()
    labels = labels_of(defense, images)
    results = dp.attack(defense, images, labels, budget=0.05, iterations=7)
    points = images.clone()
    for _ in range(7):
        points.requires_grad_()
        (gradient,) = torch.autograd.grad(
            nn.functional.cross_entropy(defense(points), labels, reduction="sum"), points
        )
        moved = points.detach() + 2.5 * 0.05 / 7 * gradient.sign()
        points = torch.minimum(torch.maximum(moved, images - 0.05), images + 0.05).clamp(0, 1)
    torch.testing.assert_close(adversarials(results), points, rtol=0, atol=1e-12)


def test_success_is_what_was_seen_and_when() -> None:
    defense, images = dp.Undefended(curved_classifier(classes=3, seed=2)), inner_pictures(6)
    labels = labels_of(defense, images)
    labels[0] = (labels[0] + 1) % 3
    runs = [
        dp.attack(defense, images, labels, budget=0.3, step=0.02, iterations=count) for count in range(1, 13)
    ]
    last = runs[-1]
    assert last[0].first_success == 0
    assert any((result.first_success or 0) > 1 for result in last)
    for i, result in enumerate(last):
        wrong = [int(defense(run[i].adversarial[None]).argmax()) != int(labels[i]) for run in runs]
        first = 0 if i == 0 else next((count for count, bad in enumerate(wrong, 1) if bad), None)
        assert result.first_success == first
        assert result.success == (first is not None)


# Expectation over noise.


@pytest.mark.parametrize("loss", list(Loss))
def test_eot_gradient_is_the_mean_of_single_gradients(loss: Loss) -> None:
    defense, images = purifier(), inner_pictures()
    labels = labels_of(defense, images)
    expectation = Expectation(job_of(defense, images, labels), eot=4, loss=loss)
    gradient = expectation.gradient(images, 3)
    singles = []
    for repeat in range(4):
        points = images.clone().requires_grad_()
        logits = defense(points, attack_noise(3, 3 * 4 + repeat))
        singles.append(torch.autograd.grad(loss_values(loss, logits, labels).sum(), points)[0])
    assert float((singles[0] - singles[1]).abs().max()) > 1e-6
    torch.testing.assert_close(gradient, torch.stack(singles).mean(0), rtol=1e-10, atol=1e-14)


def test_gradient_of_mean_logits() -> None:
    defense, images = purifier(), inner_pictures()
    labels = labels_of(defense, images)
    expectation = Expectation(
        job_of(defense, images, labels, batch_size=5), eot=4, loss=Loss.CE, mean_of=MeanOf.LOGITS
    )
    gradient = expectation.gradient(images, 0)
    points = images.clone().requires_grad_()
    logits = torch.stack([defense(points, attack_noise(3, repeat)) for repeat in range(4)]).mean(0)
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(gradient, torch.autograd.grad(loss, points)[0], rtol=1e-10, atol=1e-14)
    assert (expectation.forwards, expectation.backwards) == (8, 4)


def run(name: str, images: Tensor, labels: Tensor, **changes: Any) -> list[dp.AttackResult]:
    classifier = mapped_classifier() if name == "fast-lpa" else None
    usual = diffusing() if name == "lagrange" else purifier(classifier, steps=2)
    defense = changes.pop("defense", None) or usual
    return dp.attack(
        defense, images, labels, attack=name, threat=threat_of(name), **SETTINGS[name], **changes
    )


def test_every_attack_is_tested() -> None:
    assert set(SETTINGS) == set(ATTACKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SETTINGS))
def test_results_do_not_depend_on_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in ("autoattack", "square"):
        short_package(monkeypatch, 6)
    # The package attacks each image on its own: of three the second would tell nothing.
    count = 2 if name == "autoattack" else 3
    images = inner_pictures(3)[:count]
    labels = labels_of(purifier(), images)
    whole = run(name, images, labels, batch_size=64)
    split = run(name, images, labels, batch_size=2)
    if name != "autoattack":
        assert torch.equal(adversarials(run(name, images, labels, batch_size=64)), adversarials(whole))
    alone = run(name, images[-1:], labels[-1:], image_indices=[count - 1])
    torch.testing.assert_close(adversarials(split), adversarials(whole), rtol=0, atol=1e-10)
    torch.testing.assert_close(adversarials(alone)[0], adversarials(whole)[-1], rtol=0, atol=1e-10)
    for a, b in zip(whole, split, strict=True):
        assert (a.first_success, a.forwards, a.backwards) == (b.first_success, b.forwards, b.backwards)
    if name not in ("autoattack", "square"):
        other = run(name, images, labels, seed=1)
        assert not torch.equal(adversarials(whole), adversarials(other))
    threat = Linf(0.02)
    for result, image in zip(whole, images, strict=True):
        assert 0 <= float(result.adversarial.min()) <= float(result.adversarial.max()) <= 1
        if name == "fast-lpa":
            assert 0.1 < result.norm <= 0.3 + 1e-9
        elif name != "stadv":
            norm = float(threat.norm((result.adversarial - image)[None]))
            assert result.norm == pytest.approx(norm)
            assert norm <= 0.02 + 1e-6
        else:
            assert 0 < result.norm <= 0.2 + 1e-12


def test_queries_are_counted_and_batches_kept_small() -> None:
    images = inner_pictures(3)
    defense = purifier(steps=5)
    labels = labels_of(defense, images)
    assert isinstance(defense.denoiser, CountingMixture)
    results = dp.attack(defense, images, labels, threat=Linf(0.02), iterations=3, eot=2, batch_size=4)
    # Going backward runs each step but the last two once more.
    evaluations = sum(5 * result.forwards + 3 * result.backwards for result in results)
    assert (results[0].forwards, results[0].backwards) == (8, 6)
    assert defense.denoiser.spent == evaluations
    assert defense.denoiser.largest == 4


def test_attack_noise_is_a_stream_of_its_own() -> None:
    drawn = [
        Noise.for_rows(0, stream, torch.tensor([1]), torch.tensor([2])).normal((4,), 0, torch.float64)
        for stream in Stream
    ]
    assert len({tuple(values.flatten().tolist()) for values in drawn}) == len(Stream) == 8


def test_zero_gradients_are_counted_without_nan() -> None:
    class Saturated(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            score = images.flatten(1).sum(1)
            # The second half of the rows is flat.
            sure = torch.where(score > SIZE / 2, score, 100 * torch.ones_like(score) + 0 * score)
            return torch.stack([sure, torch.zeros_like(sure), torch.zeros_like(sure)], 1)

    images = torch.cat([torch.full((1, *SHAPE), 0.8), torch.full((1, *SHAPE), 0.2)]).double()
    defense = dp.Undefended(dp.Classifier(Saturated(), 3))
    for threat in (Linf(0.05), L2(0.05)):
        varied, flat = dp.attack(
            defense, images, torch.tensor([0, 0]), threat=threat, iterations=4, loss="margin"
        )
        assert (varied.zero_gradients, flat.zero_gradients) == (0.0, 1.0)
        assert torch.equal(flat.adversarial, images[1])
        assert float(varied.adversarial.sum()) < float(images[0].sum())


# What an attack differentiates.


def test_exact_view_is_the_defence() -> None:
    defense, images = purifier(), inner_pictures(2)
    view = dp.AttackedDefense(defense)
    noise = attack_noise(2, 0)
    assert torch.equal(view(images, noise), defense(images, noise))
    points = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(view(points, noise)[0, 1], points)
    step = 1e-5 * random(2, *SHAPE, seed=9)
    slope = (defense(images + step, noise) - defense(images - step, noise))[0, 1] / 2
    assert float((gradient * step).sum()) == pytest.approx(float(slope), rel=1e-6)


def test_bpda_gradient_is_the_classifiers_at_the_purified_image() -> None:
    defense, images, noise = purifier(), inner_pictures(2), attack_noise(2, 0)
    points = images.clone().requires_grad_()
    logits = dp.AttackedDefense(defense, "bpda")(points, noise)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), points)
    purified = defense.purify(images, noise).detach().requires_grad_()
    (expected,) = torch.autograd.grad(defense.classifier(purified)[:, 1].sum(), purified)
    assert torch.equal(logits, defense(images, noise))
    assert torch.equal(gradient, expected)


def test_blind_view_is_the_classifier() -> None:
    defense, images = purifier(), inner_pictures(2)
    assert isinstance(defense.denoiser, CountingMixture)
    points = images.clone().requires_grad_()
    logits = dp.AttackedDefense(defense, "blind")(points)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), points)
    (expected,) = torch.autograd.grad(defense.classifier(points)[:, 1].sum(), points)
    assert torch.equal(logits, defense.classifier(images))
    assert torch.equal(gradient, expected)
    assert defense.denoiser.spent == 0


def test_surrogate_takes_fewer_steps() -> None:
    defense, images, noise = purifier(steps=10), inner_pictures(2), attack_noise(2, 0)
    assert isinstance(defense.denoiser, CountingMixture)
    view = dp.AttackedDefense(defense, "surrogate", surrogate_share=0.2)
    logits = view(images, noise)
    assert defense.denoiser.spent == 2 * 2
    assert torch.equal(logits, purifier(steps=2)(images, noise))
    defense(images, noise)
    assert defense.denoiser.spent == 2 * (2 + 10)


def test_adjoint_view() -> None:
    defense, images, noise = purifier(solver="ode", steps=6), inner_pictures(2), attack_noise(2, 0)
    points = images.clone().requires_grad_()
    logits = dp.AttackedDefense(defense, "adjoint")(points, noise)
    (gradient,) = torch.autograd.grad(logits[0, 0], points)
    again = defense.classifier(defense.purify_by_adjoint(points, noise))
    torch.testing.assert_close(logits, defense(images, noise))
    assert torch.equal(gradient, torch.autograd.grad(again[0, 0], points)[0])
    (exact,) = torch.autograd.grad(defense(points, noise)[0, 0], points)
    assert not torch.allclose(gradient, exact, rtol=1e-6)
    assert float(nn.functional.cosine_similarity(gradient.flatten(), exact.flatten(), 0)) > 0.9


@pytest.mark.parametrize(
    ("defense", "settings", "message"),
    [
        (
            dp.Undefended(linear()),
            {"gradient": "bpda"},
            "gradient: bpda is for defences that purify, got 'none'",
        ),
        (
            dp.Undefended(linear()),
            {"gradient": "surrogate"},
            "gradient: surrogate is for defences that purify",
        ),
        (
            purifier(),
            {"gradient": "adjoint"},
            "gradient: adjoint is for diffpure with the solver ode, got 'diffpure'",
        ),
        (purifier(), {"gradient": "exactly"}, "gradient: expected one of exact, bpda"),
        (
            purifier(),
            {"gradient": "surrogate", "surrogate_share": 2},
            r"surrogate_share: expected a number in \(0, 1\]",
        ),
        (dp.Undefended(linear()), {"attack": "diffattack"}, "attack: diffattack needs the exact gradient"),
        (
            purifier(),
            {"attack": "diffattack", "gradient": "bpda"},
            "attack: diffattack needs the exact gradient",
        ),
        (purifier(), {"attack": "stadv"}, "threat: stadv attacks within stadv, got linf"),
        (purifier(), {"threat": "stadv"}, "threat: pgd attacks within l2, linf, got stadv"),
        (purifier(), {"attack": "pdg"}, "attack: unknown name 'pdg'; did you mean pgd"),
        (purifier(), {"steps": 3}, "steps: no setting of the attack 'pgd', did you mean step"),
        (purifier(), {"iterations": 0}, "iterations: expected an integer ≥ 1, got 0"),
        (purifier(), {"step": -1.0}, "step: expected a finite number > 0"),
        (purifier(), {"loss": "cw"}, "loss: expected one of ce, dlr, margin, got 'cw'"),
        (
            purifier(),
            {"attack": "low-frequency", "share": 0},
            r"share: expected a number in \(0, 1\]",
        ),
        (purifier(), {"attack": "diffattack", "mean_of": "logits"}, "mean_of: diffattack averages losses"),
        (purifier(), {"attack": "autoattack", "version": "plus"}, "version: expected one of standard, rand"),
        (purifier(), {"attack": dp.PGD(), "eot": 2}, "settings: expected none beside an attack, got eot"),
        (purifier(), {"budget": None}, "budget: expected one for the threat 'linf', got None"),
        (purifier(), {"threat": Linf(0.1)}, "budget: the threat has its own, expected None, got 0.1"),
        (purifier(), {"batch_size": 0}, "batch_size: expected an integer ≥ 1"),
        (purifier(), {"labels": torch.tensor([0, 4])}, r"labels: expected 0 ≤ label < 4, got \[0, 4\]"),
        (purifier(), {"labels": torch.tensor([0])}, "labels: expected 2 int64 labels"),
        (purifier(), {"images": 255 * inner_pictures(2)}, r"images: expected pixels in \[0, 1\]"),
        (purifier(), {"image_indices": [1]}, "image_indices: expected 2 numbers"),
    ],
)
def test_refusals(defense: dp.Defense, settings: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "images": inner_pictures(2),
        "labels": torch.tensor([0, 1]),
        "budget": 0.1,
        **settings,
    }
    with pytest.raises(ValueError, match=f"^{message}"):
        dp.attack(defense, **arguments)


def test_defences_without_a_gradient_are_for_square() -> None:
    class Hard(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.one_hot((images.flatten(1).sum(1) > 8).long(), 3).double()

    defense = dp.Undefended(dp.Classifier(Hard(), 3))
    images = torch.full((1, *SHAPE), 0.51, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^defense: it gives its images no gradient; attack it without one"):
        dp.attack(defense, images, torch.tensor([1]), budget=0.1)
    pytest.importorskip("pyautoattack")
    (result,) = dp.attack(defense, images, torch.tensor([1]), budget=0.1, attack="square", queries=50)
    assert result.success
    assert int(defense(result.adversarial[None]).argmax()) == 0
    assert (result.backwards, result.zero_gradients) == (0, None)


def test_gradients_that_are_nan_are_refused() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([(images - images).sum((1, 2, 3)).sqrt()] * 3, 1)

    with pytest.raises(ValueError, match=r"^defense: expected finite gradients"):
        dp.attack(dp.Undefended(dp.Classifier(Broken(), 3)), inner_pictures(1), torch.tensor([0]), budget=0.1)


def test_training_mode_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(SIZE, 3)).double().train()
    with pytest.raises(ValueError, match="training mode"):
        dp.attack(dp.Undefended(dp.Classifier(network, 3)), inner_pictures(1), torch.tensor([0]), budget=0.1)


# StAdv.


def test_flow_of_zero_is_the_identity() -> None:
    images = inner_pictures(2)
    flow = torch.zeros(2, 4, 4, 2, dtype=torch.float64)
    torch.testing.assert_close(warp(images, flow), images, rtol=0, atol=1e-15)


def test_flow_of_whole_pixels_is_a_shift() -> None:
    images = random(1, 2, 4, 8).abs()
    flow = torch.zeros(1, 4, 8, 2, dtype=torch.float64)
    flow[..., 0], flow[..., 1] = 2 * 2 / 8, -1 * 2 / 4
    shifted = torch.zeros_like(images)
    shifted[:, :, 1:, :6] = images[:, :, :3, 2:]
    torch.testing.assert_close(warp(images, flow), shifted, rtol=0, atol=1e-14)


def test_bilinear_interpolation_is_scipys() -> None:
    images, flow = random(2, 3, 5, 7).abs(), 0.5 * random(2, 5, 7, 2, seed=3)
    ours = warp(images, flow).numpy()
    rows, columns = np.mgrid[0:5, 0:7]
    for n in range(2):
        at = np.stack([rows + flow[n, ..., 1].numpy() * 5 / 2, columns + flow[n, ..., 0].numpy() * 7 / 2])
        for channel in range(3):
            expected = ndimage.map_coordinates(
                images[n, channel].numpy(), at, order=1, mode="grid-constant", cval=0.0
            )
            np.testing.assert_allclose(ours[n, channel], expected, atol=1e-12)


def test_total_variation_by_its_double_sum() -> None:
    flow = random(2, 3, 4, 2)
    for n in range(2):
        expected = 0.0
        for i in range(3):
            for j in range(4):
                for a, b in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                    if 0 <= a < 3 and 0 <= b < 4:
                        expected += float((flow[n, i, j] - flow[n, a, b]).norm())
        assert float(total_variation(flow)[n]) == pytest.approx(expected, rel=1e-6)


def test_stadv_is_adam_on_the_papers_loss() -> None:
    """A plain loop that differentiates through everything at once."""
    defense, images = dp.Undefended(curved_classifier(classes=3, seed=2)), inner_pictures()
    labels = labels_of(defense, images)
    results = dp.attack(defense, images, labels, attack="stadv", threat="stadv", budget=0.03, iterations=6)
    flow = torch.zeros(3, 4, 4, 2, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([flow], lr=0.01)
    for _ in range(6):
        adam.zero_grad()
        logits = defense(warp(images, flow))
        true = logits.gather(1, labels[:, None])[:, 0]
        others = torch.stack([row[torch.arange(3) != y].max() for row, y in zip(logits, labels, strict=True)])
        (true - others + 0.0025 / 0.03 * total_variation(flow)).sum().backward()
        adam.step()
        flow.data.clamp_(-0.03, 0.03)
    torch.testing.assert_close(adversarials(results), warp(images, flow), rtol=0, atol=1e-9)
    for result, moved in zip(results, flow, strict=True):
        assert result.norm == pytest.approx(float(moved.detach().abs().max()))


@pytest.mark.parametrize(("size", "rate"), [(29, 0.02), (33, 0.005)])
def test_moved_pixels_stay_in_the_range(size: int, rate: float) -> None:
    """The weights of a bilinear mean add up to 1 but for rounding: white pixels can leave [0, 1] by that."""
    images, generator = torch.ones(2, 1, size, size), torch.Generator().manual_seed(0)
    flows = 0.05 * (2 * torch.rand(20, size, size, 2, generator=generator) - 1)
    assert float(warp(images[:1].expand(20, -1, -1, -1), flows).max()) > 1
    looked: list[Tensor] = []

    class Looking(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            looked.append(images.detach())
            score = (images.flatten(1) * torch.linspace(-1, 1, size**2)).sum(1)
            return torch.stack([score, -score], 1)

    defense = dp.Undefended(dp.Classifier(Looking(), 2))
    labels, attack, threat = torch.tensor([0, 1]), dp.StAdv(iterations=6, learning_rate=rate), Flow(0.05)
    results = dp.attack(defense, images, labels, attack=attack, threat=threat)
    # Two looks whether it is a function come first, and one comes last.
    assert len(looked) == 2 + 7 + 1
    points = Probe(job_of(defense, images, labels), threat, attack).points(20)
    for given in (*looked, adversarials(results), points):
        assert 0 <= float(given.min()) <= float(given.max()) <= 1
        assert float(given.max()) > 0.9
    assert all(0 < result.norm <= 0.05 + 1e-6 for result in results)


# Low frequencies.


def test_low_pass_is_scipys_dct() -> None:
    images = random(2, 3, 6, 8)
    spectrum = fft.dctn(images.numpy(), axes=(2, 3), norm="ortho")
    spectrum[:, :, 2:], spectrum[..., 2:] = 0, 0
    np.testing.assert_allclose(
        low_pass(images, 0.25), fft.idctn(spectrum, axes=(2, 3), norm="ortho"), atol=1e-12
    )


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.1)])
def test_low_frequency_perturbations_stay_low(threat: PixelThreat) -> None:
    defense, images = dp.Undefended(curved_classifier(classes=3, seed=2)), inner_pictures()
    labels = labels_of(defense, images)
    results = dp.attack(
        defense, images, labels, attack="low-frequency", threat=threat, share=0.5, iterations=8
    )
    perturbation = (adversarials(results) - images).numpy()
    spectrum = fft.dctn(perturbation, axes=(2, 3), norm="ortho")
    assert np.abs(spectrum[:, :, 2:]).max() < 1e-12
    assert np.abs(spectrum[..., 2:]).max() < 1e-12
    before = loss_values(Loss.CE, defense(images), labels)
    assert bool((loss_values(Loss.CE, defense(adversarials(results)), labels) > before).all())
    for result in results:
        assert result.norm == pytest.approx(threat.budget)


@pytest.mark.slow
def test_low_frequency_nears_the_optimum_of_a_linear_model() -> None:
    """The best perturbation of low frequencies in the ℓ∞ ball is that of a linear program."""
    budget, images = 0.05, inner_pictures(3)
    defense = dp.Undefended(linear(2))
    labels = labels_of(defense, images)
    results = dp.attack(
        defense,
        images,
        labels,
        attack="low-frequency",
        budget=budget,
        share=0.5,
        iterations=120,
        step=budget / 20,
        loss="margin",
    )
    basis = np.zeros((4, SIZE))
    for row, (vertical, horizontal) in enumerate(np.ndindex(2, 2)):
        spectrum = np.zeros(SHAPE[1:])
        spectrum[vertical, horizontal] = 1
        basis[row] = fft.idctn(spectrum, norm="ortho").flatten()
    slope = (weights(defense.classifier)[1] - weights(defense.classifier)[0]).numpy()
    for result, image in zip(results, images, strict=True):
        gain = slope if result.label == 0 else -slope
        best = optimize.linprog(
            -basis @ gain,
            A_ub=np.concatenate([basis.T, -basis.T]),
            b_ub=np.full(2 * SIZE, budget),
            bounds=(None, None),
        )
        reached = float((result.adversarial - image).flatten().numpy() @ gain)
        assert 0.97 * -best.fun < reached < -best.fun * (1 + 1e-9)


# AutoAttack.


def test_eot_of_autoattack_in_one_batch_is_that_of_single_calls() -> None:
    """The package's own gradients: repeats one at a time against repeats as one batch, split in any way."""
    pytest.importorskip("pyautoattack")
    images = inner_pictures(1)
    defense = purifier(steps=2)
    labels = labels_of(defense, images)
    job = job_of(defense, images, labels)

    def gradient(watched: WatchedDefense) -> Tensor:
        total = torch.zeros_like(images)
        for _ in range(5):
            point = images.clone().requires_grad_()
            loss = nn.functional.cross_entropy(watched(point), labels)
            total = total + torch.autograd.grad(loss, point)[0]
        return total

    one = WatchedDefense(job, 0, Linf(0.1))
    expected = gradient(one)
    for size in (64, 5, 2, 1):
        batched = WatchedDefense(
            Job(job.view, images, labels, job.image_indices, job.seed, size), 0, Linf(0.1), repeats=5
        )
        torch.testing.assert_close(gradient(batched), expected, rtol=1e-10, atol=1e-14)
        assert (batched.forwards, batched.backwards) == (one.forwards, one.backwards) == (5, 5)


# The package warns of gradients that are zero, too.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:pyautoattack:RuntimeWarning")
def test_autoattack_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    short_package(monkeypatch)
    defense, images = purifier(steps=1), inner_pictures(1)
    defense.classifier.requires_grad_()
    labels = labels_of(defense, images)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with pytest.warns(RuntimeWarning, match="randomized defense"):
        dp.attack(defense, images, labels, attack="autoattack", budget=0.3)
    assert torch.equal(torch.rand(3), expected)
    assert all(
        parameter.requires_grad and parameter.grad is None for parameter in defense.classifier.parameters()
    )


def test_parameters_get_no_gradient_from_the_package() -> None:
    """FAB calls backward(), which would fill .grad of the user's network."""
    defense, images = purifier(steps=1), inner_pictures(1)
    defense.classifier.requires_grad_()
    job = job_of(defense, images, torch.tensor([0]))
    point = images.clone().requires_grad_()
    with contained(job):
        WatchedDefense(job, 0, Linf(0.1))(point).sum().backward()
    assert point.grad is not None
    assert all(parameter.grad is None for parameter in defense.classifier.parameters())
    assert all(parameter.requires_grad for parameter in defense.classifier.parameters())


def test_autoattack_says_how_many_classes_it_needs() -> None:
    pytest.importorskip("pyautoattack")
    with pytest.raises(ValueError, match=r"^version: standard needs 4 classes, got 3; use pgd"):
        dp.attack(
            dp.Undefended(linear()), inner_pictures(1), torch.tensor([0]), attack="autoattack", budget=0.1
        )


class Jittery(dp.Defense):
    """Noise on the logits of a linear model: label 0, and another under a few percent of the draws.

    Writes down what it is asked: the draw of noise, whether for a gradient, the image, and the answer.
    """

    method = "jittery"

    def __init__(self, lead: float = 3.0) -> None:
        super().__init__(linear(4))
        self.lead, self.slope = lead, weights(linear(4))
        self.asked: list[tuple[int, bool, Tensor, Tensor]] = []

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        lead = self.lead * torch.eye(4, dtype=images.dtype)[0]
        tilt = (images.flatten(1) - 0.5) @ self.slope.T
        logits: Tensor = lead + tilt + noise.normal((4,), 0, images.dtype)
        climbing = images.requires_grad and torch.is_grad_enabled()
        rows = zip(noise.draw.tolist(), images.detach(), logits.detach(), strict=True)
        self.asked += [(draw, climbing, image, answer) for draw, image, answer in rows]
        return logits


PACKAGED: dict[str, dp.AutoAttack | dp.Square] = {
    "rand": dp.AutoAttack(version="rand", eot=3),
    "standard": dp.AutoAttack(),
    "square": dp.Square(queries=30),
}
GRAY = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)


def packaged(
    name: str, defense: dp.Defense, index: int, threat: PixelThreat, batch_size: int = 64
) -> dp.AttackResult:
    pytest.importorskip("pyautoattack")
    (result,) = dp.attack(
        defense,
        GRAY,
        torch.tensor([0]),
        attack=PACKAGED[name],
        threat=threat,
        image_indices=[index],
        batch_size=batch_size,
    )
    return result


# The package warns of a random defence.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:pyautoattack:RuntimeWarning")
@pytest.mark.parametrize(
    ("name", "index", "threat"),
    [
        ("rand", 0, Linf(0.02)),
        ("rand", 1, L2(0.05)),
        ("standard", 1, Linf(0.02)),
        ("square", 0, Linf(0.02)),
        ("square", 1, Linf(0.02)),
    ],
    ids=["rand-linf", "rand-l2", "standard", "square", "another square"],
)
def test_what_the_package_drops_of_a_random_defence_is_kept(
    name: str, index: int, threat: PixelThreat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kept perturbation, by a search of everything that the defence was asked.

    The images are such whose last draw is right.
    """
    short_package(monkeypatch)
    defense, eot = Jittery(), 3 if name == "rand" else 1
    result = packaged(name, defense, index, threat)
    # Each draw once and in order, whatever it was for.
    assert [draw for draw, *_ in defense.asked] == list(range(result.draws))
    judged = [(point, answer) for _, climbing, point, answer in defense.asked if climbing or name == "square"]
    assert len(judged) % eot == 0
    candidates = []
    for start in range(0, len(judged), eot):
        points, answers = zip(*judged[start : start + eot], strict=True)
        assert all(torch.equal(point, points[0]) for point in points)
        margin = np.mean([float(answer[1:].max() - answer[0]) for answer in answers])
        norm = float(threat.norm(points[0][None] - GRAY))
        if 0 < norm <= threat.budget + 1e-5:
            candidates.append((margin, points[0]))
    best, strongest = max(candidates, key=lambda candidate: candidate[0])
    assert best > candidates[0][0]
    assert torch.equal(result.adversarial, strongest)
    assert 0 < result.norm <= threat.budget + 1e-5
    if name != "square":
        assert result.backwards > 0
    split = packaged(name, Jittery(), index, threat, batch_size=2)
    # The package computes in float32.
    torch.testing.assert_close(split.adversarial, result.adversarial, rtol=0, atol=1e-6)
    assert (split.first_success, split.draws) == (result.first_success, result.draws)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:pyautoattack:RuntimeWarning")
@pytest.mark.parametrize("name", ["rand", "square"])
def test_a_first_look_that_errs_does_not_end_the_attack(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The draw of the package's first look at its answer: 0 of Square, 2 of AutoAttack after two checks."""
    short_package(monkeypatch)
    look, threat = 2 if name == "rand" else 0, Linf(0.02)
    draws = {draw: Jittery()(GRAY.expand(200, *SHAPE), attack_noise(200, draw, 0, 0)) for draw in range(3)}
    wrong = draws[look].argmax(1) != 0
    index = int(wrong.nonzero()[0])
    defense = Jittery()
    result = packaged(name, defense, index, threat)
    assert result.first_success is not None
    assert result.first_success <= look
    assert [draw for draw, *_ in defense.asked] == list(range(result.draws))
    # The package starts anew under the next draws.
    assert torch.equal(defense.asked[look + 1][2].float(), GRAY[0].float())
    assert result.norm == pytest.approx(0.02, abs=1e-6)
    assert (result.backwards > 0) == (name == "rand")


@pytest.mark.parametrize(("name", "looks"), [("rand", 3), ("standard", 8), ("square", 1)])
@pytest.mark.filterwarnings("ignore:pyautoattack:RuntimeWarning")
def test_the_package_is_run_a_few_times_at_most(name: str, looks: int) -> None:
    """A defence that is never right; without randomness one look is enough."""
    defense = Jittery(lead=-50.0)
    for is_random, runs in ((True, 10), (False, 1)):
        defense.random = is_random
        result = packaged(name, defense, 0, Linf(0.02))
        assert (result.draws, result.backwards) == (runs * looks, 0)
        assert torch.equal(result.adversarial, GRAY[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rand", "square"])
def test_without_randomness_the_package_has_the_last_word(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short_package(monkeypatch)
    defense = Jittery(lead=50.0)
    defense.random = False
    result = packaged(name, defense, 0, Linf(0.02))
    assert (result.norm, result.success) == (0.0, False)
