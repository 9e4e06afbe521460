"""The Lagrange attack (Chen et al. 2023, eq. 10) against its formula, and as the union of its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.attacks.expectation import Expectation
from diffproof.attacks.lagrange import penalised
from diffproof.attacks.losses import Loss
from diffproof.attacks.threat import Linf
from helpers.attacks import adversarials, job_of, purifier
from helpers.denoisers import CountingMixture, mixture_around
from helpers.images import inner_pictures
from helpers.noise import attack_noise

SIGMAS = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
BUDGET = 0.15


def mixture_of_pairs(**settings: Any) -> CountingMixture:
    """Two broad components a class, so that there is something to gain in likelihood."""
    labels: dict[str, Any] = {"component_labels": [0, 0, 1, 1, 2, 2], "sigmas": SIGMAS}
    return mixture_around(inner_pictures(6, seed=3), 0.05, **{**labels, **settings})


def rdc(**settings: Any) -> dp.RDC:
    usual: dict[str, Any] = {"iterations": 3, "budget": 0.05, "likelihood_timesteps": "first:2"}
    return dp.RDC(mixture_of_pairs(), **{**usual, **settings})


def labelled(defense: dp.Defense, number: int = 12) -> tuple[Tensor, Tensor]:
    """Images away from 0 and 1, with the labels that the defence gives them."""
    images = inner_pictures(number, seed=8)
    return images, defense(images, attack_noise(number, 0)).argmax(1)


def attacked(
    defense: dp.Defense, budget: float = BUDGET, number: int = 12, **settings: Any
) -> list[dp.AttackResult]:
    images, labels = labelled(defense, number)
    usual = {"iterations": 4, "seed": 7, "image_indices": range(5, 5 + len(images))}
    return dp.attack(defense, images, labels, attack="lagrange", threat=Linf(budget), **{**usual, **settings})


@pytest.mark.parametrize("weight", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("name", ["dc", "rdc"])
def test_steps_go_down_in_log_p_plus_the_weighted_loss(name: str, weight: float) -> None:
    defense = rdc() if name == "rdc" else dp.DiffusionClassifier(mixture_of_pairs())
    classifier = defense.classifier if isinstance(defense, dp.RDC) else defense
    images, labels = labelled(defense)
    noise = attack_noise(len(images), 2)

    def objective(points: Tensor) -> Tensor:
        log_p = classifier(points, noise).log_softmax(1).gather(1, labels[:, None])[:, 0]
        # The levels of RDC's likelihood maximisation are its own.
        levels, total = SIGMAS[:2] if name == "rdc" else SIGMAS, torch.zeros(len(points), dtype=points.dtype)
        for step, sigma in enumerate(levels):
            vote = torch.full_like(noise.vote, 2**15)
            epsilon = noise.rows(torch.arange(len(noise)), vote).normal(points.shape[1:], step, points.dtype)
            clean = defense.denoiser(points + sigma * epsilon, float(sigma))
            residual = (points + sigma * epsilon - clean) / sigma - epsilon
            total = total + residual.square().flatten(1).sum(1) / len(levels)
        value: Tensor = log_p + weight * total
        return value

    expectation = Expectation(
        job_of(defense, images, labels), eot=1, loss=Loss.CE, respond=penalised(defense, weight)
    )
    gradient = expectation.gradient(images, 2)
    with torch.enable_grad():
        points = images.clone().requires_grad_()
        (expected,) = torch.autograd.grad(objective(points).sum(), points)
    torch.testing.assert_close(gradient, -expected, rtol=1e-8, atol=1e-10)
    # And so by differences of the objective, along the gradient.
    length = 1e-5
    unit = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    with torch.no_grad():
        slope = (objective(images + length * unit) - objective(images - length * unit)) / (2 * length)
    torch.testing.assert_close(slope, -gradient.flatten(1).norm(dim=1), rtol=1e-5, atol=1e-8)


def test_a_step_is_pgds() -> None:
    defense = rdc()
    images, labels = labelled(defense)
    job = job_of(defense, images, labels)
    expectation = Expectation(job, eot=2, loss=Loss.CE, respond=penalised(defense, 1.0))
    expected = Linf(BUDGET).clip(images + 0.05 * expectation.gradient(images, 0).sign(), images)
    (*results,) = dp.attack(
        defense,
        images,
        labels,
        attack=dp.Lagrange(iterations=1, eot=2, step=0.05, weights=(1.0,)),
        threat=Linf(BUDGET),
        seed=job.seed,
        image_indices=job.image_indices.tolist(),
    )
    torch.testing.assert_close(adversarials(results), expected, rtol=0, atol=1e-12)
    assert (results[0].forwards, results[0].backwards, results[0].draws) == (4, 2, 4)


@pytest.mark.slow
def test_a_larger_weight_leaves_less_to_undo() -> None:
    defense = rdc()
    images, _ = labelled(defense)
    noise = attack_noise(len(images), 77)
    losses = []
    for weight in (0.0, 10.0):
        points = adversarials(attacked(defense, weights=(weight,), iterations=6))
        assert defense.loss is not None
        losses.append(defense.loss.unconditional(points, noise))
    # Signs and the budget bend the way down, so not every image need gain.
    assert int((losses[1] < losses[0]).sum()) >= 10
    assert float(losses[1].mean()) < 0.95 * float(losses[0].mean())


@pytest.mark.slow
def test_the_result_is_the_strongest_of_the_union() -> None:
    defense, weights, eot = rdc(), (10.0, 1.0, 0.0), 2
    _, labels = labelled(defense)
    union = attacked(defense, 0.02, weights=weights, eot=eot)
    parts = [attacked(defense, 0.02, weights=(weight,), eot=eot) for weight in weights]
    true = nn.functional.one_hot(labels, 3).bool()
    margins = torch.zeros(len(weights), len(labels), dtype=torch.float64)
    for place, part in enumerate(parts):
        for draw in range(4 * eot, 5 * eot):
            logits = defense(adversarials(part), attack_noise(len(labels), draw))
            margins[place] += logits.masked_fill(true, -torch.inf).amax(1) - logits[true]
    lucky = 0
    for row, (result, place) in enumerate(zip(union, margins.argmax(0).tolist(), strict=True)):
        tried = [part[row] for part in parts]
        torch.testing.assert_close(result.adversarial, tried[place].adversarial, rtol=0, atol=1e-12)
        assert result.norm == pytest.approx(tried[place].norm)
        firsts = [5 * i + 4 for i, one in enumerate(tried) if one.success]
        assert result.first_success == (firsts[0] if firsts else None)
        assert (result.forwards, result.backwards, result.draws) == (3 * 5 * eot, 3 * 4 * eot, 5 * eot)
        most = dp.Lagrange(iterations=4, eot=eot, weights=weights).most_evaluations(3)
        assert (result.forwards, result.backwards) == most
        lucky += bool(firsts) and firsts[0] < 5 * place
    # On some images a draw of an earlier l errs, and a later l is stronger.
    assert lucky > 0


def counting(**settings: Any) -> tuple[dp.RDC, CountingMixture]:
    denoiser = mixture_of_pairs()
    return dp.RDC(denoiser, iterations=2, temperature=2.0, log_prior=[0.0, 1.0, 2.0], **settings), denoiser


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        ({}, [8, 8, 8]),
        ({"likelihood_timesteps": "first:2"}, [6, 6, 6, 2, 2]),
        ({"reduction": "mean"}, [6, 6, 6, 2, 2, 2]),
        ({"shared_noise": False}, [6, 6, 6, 2, 2, 2]),
    ],
    ids=["one loss", "other levels", "other reduction", "fresh noise"],
)
def test_the_null_label_is_in_the_batch_of_the_classes(settings: dict[str, Any], batches: list[int]) -> None:
    defense, denoiser = counting(**settings)
    assert defense.loss is not None
    images, noise = inner_pictures(2), attack_noise(2, 0)
    logits, penalty = penalised(defense, 3.0)(images, noise)
    assert denoiser.batches == batches
    torch.testing.assert_close(logits, defense.classifier(images, noise), rtol=1e-12, atol=1e-12)
    assert penalty is not None
    expected = -3 * defense.loss.unconditional(images, noise)
    torch.testing.assert_close(penalty, expected, rtol=1e-12, atol=1e-12)


def test_no_batch_is_larger_for_the_null_label() -> None:
    defense, denoiser = counting()
    images = inner_pictures(2)
    dp.attack(
        defense,
        images,
        torch.tensor([0, 1]),
        attack="lagrange",
        threat=Linf(BUDGET),
        iterations=1,
        batch_size=7,
    )
    # Climbing one image and its null label, looking two images at once.
    assert set(denoiser.batches) >= {4, 6}
    assert max(denoiser.batches) <= 7


def test_success_is_an_error_of_the_defence() -> None:
    defense = rdc()
    _, labels = labelled(defense)
    results = attacked(defense, 0.02, weights=(0.0,))
    points = adversarials(results)
    wrong = defense(points, attack_noise(12, 4)).argmax(1) != labels
    alone = defense.classifier(points, attack_noise(12, 4)).argmax(1) != labels
    assert [result.success for result in results] == wrong.tolist()
    # The two differ, or this would say nothing.
    assert wrong.tolist() != alone.tolist()


@pytest.mark.slow
def test_batches_change_nothing() -> None:
    whole = attacked(rdc(), number=2, eot=2, iterations=2)
    split = attacked(rdc(), number=2, eot=2, iterations=2, batch_size=1)
    torch.testing.assert_close(adversarials(split), adversarials(whole), rtol=0, atol=1e-10)
    assert [result.first_success for result in split] == [result.first_success for result in whole]


@pytest.mark.parametrize(
    ("defense", "settings", "message"),
    [
        (purifier(), {}, "attack: lagrange needs the exact gradient of dc or rdc, got exact of 'diffpure'"),
        (
            rdc(),
            {"gradient": "bpda"},
            "attack: lagrange needs the exact gradient of dc or rdc, got bpda of 'rdc'",
        ),
        (rdc(), {"weights": ()}, "weights: expected finite numbers ≥ 0, got none"),
        (rdc(), {"weights": (1.0, -1.0)}, "weights: expected a finite number ≥ 0, got -1.0"),
        (rdc(), {"weights": (float("nan"),)}, "weights: expected a finite number ≥ 0, got nan"),
        (rdc(), {"mean_of": "logits"}, "mean_of: lagrange averages losses, got logits"),
        (
            rdc(),
            {"gradient": "surrogate"},
            "gradient: surrogate is for defences that purify by a reverse process",
        ),
    ],
)
def test_refusals(defense: dp.Defense, settings: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"attack": "lagrange", "threat": Linf(BUDGET), "iterations": 1, **settings}
    with pytest.raises(ValueError, match=f"^{message}"):
        dp.attack(defense, inner_pictures(2), torch.tensor([0, 1]), **arguments)


def test_a_denoiser_without_a_null_label_has_no_unconditional_loss() -> None:
    denoiser = mixture_of_pairs()
    denoiser.null_label = None
    defense = dp.DiffusionClassifier(denoiser)
    with pytest.raises(ValueError, match=r"^denoiser: lagrange needs a null label"):
        dp.attack(
            defense,
            inner_pictures(1),
            torch.tensor([0]),
            attack="lagrange",
            threat=Linf(BUDGET),
            iterations=1,
        )
    (result,) = dp.attack(
        defense,
        inner_pictures(1),
        torch.tensor([0]),
        attack="lagrange",
        threat=Linf(BUDGET),
        iterations=1,
        weights=(0.0,),
    )
    assert result.forwards == 2
