"""DiffAttack's loss, in the papers' y = √ᾱ·(2x − 1) + √(1 − ᾱ)·z, and its gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import diffproof as dp
from diffproof.attacks.diffattack import deviated_reconstruction
from diffproof.gradients import checkpointed_with_losses
from diffproof.noise import Noise
from helpers.attacks import adversarials, labels_of, purifier
from helpers.classifiers import SmoothClassifier, linear_classifier
from helpers.denoisers import ToyDenoiser, one_gaussian
from helpers.gradients import direction
from helpers.images import SHAPE, inner_pictures, pictures
from helpers.noise import attack_noise, noise_of
from helpers.tensors import error
from helpers.vp_process import bar, level, to_y


def defense_of(name: str, solver: str = "ddpm") -> dp.Purification:
    """A defence of rounds (0.3, 4 steps) and (0.15, 3 steps), or of the first alone."""
    networks: dict[str, Any] = {
        "denoiser": ToyDenoiser(2),
        "classifier": SmoothClassifier(),
        "solver": solver,
    }
    if name == "rounds":
        return dp.GradualNoise(t_star=(0.3, 0.15), steps=(4, 3), **networks)
    settings: dict[str, dict[str, Any]] = {
        "diffpure": {},
        "coup": {"scale": 5.0},
        # Its clean estimates are evaluations of the denoiser besides the states.
        "agdm": {"guide": SmoothClassifier(), "where": "clean", "scale": 5.0},
    }
    defense = dp.load_defense(name, t_star=0.3, steps=4, **networks, **settings[name])
    assert isinstance(defense, dp.Purification)
    return defense


def by_formula(defense: dp.Purification, images: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """Kang et al. 2023, eq. 8, with α(t) = 1/(number of states) and autograd's own graph of all of them."""
    chain = iter(enumerate(defense.chain(noise)))
    state, distances = images, []
    for t_star, steps in zip(defense.t_star, defense.steps, strict=True):
        index, diffuse = next(chain)
        start, z = 2 * state - 1, noise.normal(SHAPE, 2 * index, images.dtype)
        state = diffuse(state, images)
        for time in [t_star * (1 - i / steps) for i in range(1, steps + 1)]:
            _, step = next(chain)
            state = step(state, images)
            if isinstance(defense, dp.COUP):
                # Its images enter the reverse process as they are.
                reference = start
            else:
                reference = math.sqrt(bar(time)) * start + math.sqrt(1 - bar(time)) * z
            distances.append((to_y(state, level(time)) - reference).square().mean((1, 2, 3)))
    assert next(chain, None) is None
    return state, torch.stack(distances).mean(0)


CASES = [(name, "ddpm") for name in ("rounds", "coup", "agdm")]
CASES += [("diffpure", solver) for solver in ("ddpm", "sde", "ode")]


@pytest.mark.parametrize(("name", "solver"), CASES)
def test_loss_and_gradient_by_the_formula(name: str, solver: str) -> None:
    defense, noise = defense_of(name, solver), noise_of()
    points, plain = (pictures().requires_grad_() for _ in range(2))
    purified, deviation = deviated_reconstruction(defense, points, noise)
    state, expected = by_formula(defense, plain, noise)
    torch.testing.assert_close(deviation, expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(purified, state, rtol=0, atol=0)
    gradients = [
        torch.autograd.grad(loss.sum() + images.square().sum(), leaf)[0]
        for loss, images, leaf in ((deviation, purified, points), (expected, state, plain))
    ]
    assert error(*gradients) < 1e-7


@pytest.mark.parametrize("name", ["rounds", "coup", "agdm"])
def test_gradient_is_that_of_central_differences(name: str) -> None:
    defense, noise, along, width = defense_of(name), noise_of(), direction(2), 1e-5
    points = pictures().requires_grad_()
    (gradient,) = torch.autograd.grad(deviated_reconstruction(defense, points, noise)[1].sum(), points)
    with torch.no_grad():
        above, below = (
            float(deviated_reconstruction(defense, pictures() + sign * width * along, noise)[1].sum())
            for sign in (1, -1)
        )
    assert float((gradient * along).sum()) == pytest.approx((above - below) / (2 * width), rel=1e-5)


def test_one_step_on_gaussian_data_in_closed_form() -> None:
    """The step jumps to the posterior mean ½ + s·(x + σz − ½), s = 0.01/(0.01 + σ²); y is 2x − 1 there."""
    defense = dp.DiffPure(one_gaussian(), linear_classifier(), t_star=0.2, steps=1, solver="ddpm")
    noise, images = noise_of(), 0.4 + 0.2 * pictures()
    sigma = level(0.2)
    shrink = 0.01 / (0.01 + sigma**2)
    noisy = images + sigma * noise.normal(SHAPE, 0, torch.float64)
    mean = 0.5 + shrink * (noisy - 0.5)
    assert 0 < float(mean.min()) < float(mean.max()) < 1
    with torch.no_grad():
        _, deviation = deviated_reconstruction(defense, images, noise)
    torch.testing.assert_close(deviation, (2 * (mean - images)).square().mean((1, 2, 3)), rtol=1e-6, atol=0)


def test_a_process_that_returns_to_the_diffusion_deviates_by_nothing() -> None:
    class Perfect(dp.GaussianMixtureDenoiser):
        """Knows the image."""

        def estimate(self, noisy: Tensor, sigma: Any, label: Tensor | None) -> Any:
            return super().estimate(noisy, sigma, label)._replace(clean=pictures())

    perfect = Perfect(torch.full((1, *SHAPE), 0.5), torch.tensor([0.01]))
    # DDIM with the true clean image stays on the line of the image and its noise.
    defense = dp.GradualNoise(perfect, linear_classifier(), t_star=(0.3, 0.2), steps=(4, 3), solver="ode")
    with torch.no_grad():
        _, deviation = deviated_reconstruction(defense, pictures(), noise_of())
    assert float(deviation.max()) < 1e-25


def test_diffattack_raises_the_deviation() -> None:
    defense, images = purifier(), inner_pictures()
    labels = labels_of(defense, images)
    noise = attack_noise(3, 0, seed=0, first=0)
    deviation = [
        float(deviated_reconstruction(defense, adversarials(found), noise)[1].mean())
        for found in (
            dp.attack(defense, images, labels, attack="diffattack", weight=weight, budget=0.1, iterations=5)
            for weight in (1e-9, 1e6)
        )
    ]
    assert deviation[1] > deviation[0]


def test_losses_of_a_chain_are_told_where_their_round_began() -> None:
    """States 1, 3 | 6, 10: a round begins at 0 and one at 3."""
    steps = [lambda state, images, by=by: state + by for by in (1, 2, 3, 4)]
    losses = [
        None,
        lambda state, start: (10 * state + start).flatten(),
        None,
        lambda s, r: (100 * s + r).flatten(),
    ]
    zero = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    final, total = checkpointed_with_losses(zero, steps, losses)
    assert final.flatten().tolist() == [10, 10]
    assert total.tolist() == [10 * 3 + 0 + 100 * 10 + 3] * 2


def test_losses_of_a_chain_need_one_for_each_step() -> None:
    with pytest.raises(ValueError, match=r"^losses: expected one for each of 2 steps, got 1$"):
        checkpointed_with_losses(pictures(), [lambda s, x: s, lambda s, x: s], [None])
