"""Σ of a step where authors choose it: AGDM's last, GDMP's "fixed large" one; in y = √ᾱ·(2x − 1)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import diffproof as dp
from helpers.classifiers import linear_classifier
from helpers.denoisers import ToyDenoiser
from helpers.gradients import direction
from helpers.images import SHAPE, pictures
from helpers.noise import noise_of
from helpers.tensors import error
from helpers.vp_process import bar, from_y, level, to_y

# The steps of t* = 0.2 in five: they begin at 0.2, 0.16, …, 0.04.
STEPS: dict[str, Any] = {"t_star": 0.2, "steps": 5}


def small(now: float, then: float) -> float:
    """β̃ of a step from one time to another."""
    return (1 - bar(then)) / (1 - bar(now)) * (1 - bar(now) / bar(then))


def moved(defense: dp.Purification, step: int, noisy: Tensor) -> Tensor:
    """A step of the chain, whose first is the diffusion."""
    with torch.no_grad():
        return defense.chain(noise_of())[step](noisy, pictures())


def last_of(defense: dp.Purification) -> tuple[Tensor, Tensor, Tensor | None]:
    """A state before the last step, x̂0 of it in [−1, 1] and the learned mixture."""
    noisy = pictures() + level(0.04) * direction(7)
    with torch.no_grad():
        estimate = defense.denoiser.checked_estimate(noisy, level(0.04))
    return noisy, 2 * estimate.clean.clamp(0, 1) - 1, estimate.log_variance_mix


@pytest.mark.parametrize("channels", [1, 2])
def test_the_last_step_of_agdms_paper_is_guided_by_the_variance_before(channels: int) -> None:
    settings: dict[str, Any] = {**STEPS, "guide": linear_classifier(), "scale": 30.0}
    defense = dp.AGDM(ToyDenoiser(channels), linear_classifier(), variant="paper", **settings)
    noisy, clean, mix = last_of(defense)
    lower = torch.tensor(small(0.08, 0.04), dtype=torch.float64).log()
    upper = math.log(1 - bar(0.04))
    share = torch.zeros_like(noisy) if mix is None else mix
    variance = torch.exp(share * upper + (1 - share) * lower)
    shift = defense.score_shift(noisy, level(0.04), pictures(), lambda: noisy).detach()
    # The gradient in y: x moves by √(1 + 4σ²)/2 where y moves by 1.
    gradient = shift * math.sqrt(1 + 4 * level(0.04) ** 2) / 2
    expected = from_y(clean + variance * gradient, 0.0).clamp(0, 1)
    assert error(from_y(clean, 0.0).clamp(0, 1), expected) > 1e-4
    torch.testing.assert_close(moved(defense, 5, noisy), expected, rtol=1e-8, atol=1e-10)
    measured = dp.AGDM(ToyDenoiser(channels), linear_classifier(), **settings)
    torch.testing.assert_close(moved(measured, 5, noisy), from_y(clean, 0.0), rtol=1e-8, atol=1e-10)


def test_the_variants_of_agdm() -> None:
    def made(**settings: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {**STEPS, "guide": linear_classifier(), **settings}
        told = dp.AGDM(ToyDenoiser(), linear_classifier(), **arguments).settings()
        return {name: told[name] for name in ("where", "distance", "guide_last", "label")}

    measured = {"where": "clean", "distance": "l2", "guide_last": False, "label": "guide"}
    paper = {"where": "state", "distance": "kl", "guide_last": True, "label": "guide"}
    assert made() == measured
    assert made(variant="paper") == paper
    assert made(variant="paper", guide_last=False, distance="l2") == paper | {
        "guide_last": False,
        "distance": "l2",
    }
    assert made(solver="sde")["guide_last"] is True
    with pytest.raises(ValueError, match=r"^guide_last: the solver sde guides every step; expected None"):
        made(solver="sde", guide_last=False)


def test_a_single_step_has_the_large_variance() -> None:
    # There is no step before.
    settings: dict[str, Any] = {"t_star": 0.04, "steps": 1, "guide": linear_classifier(), "scale": 30.0}
    defense = dp.AGDM(ToyDenoiser(), linear_classifier(), variant="paper", **settings)
    noisy, clean, _ = last_of(defense)
    gradient = (
        defense.score_shift(noisy, level(0.04), pictures(), lambda: noisy).detach() / math.sqrt(bar(0.04)) / 2
    )
    expected = from_y(clean + (1 - bar(0.04)) * gradient, 0.0).clamp(0, 1)
    torch.testing.assert_close(moved(defense, 1, noisy), expected, rtol=1e-8, atol=1e-10)


def test_gdmps_large_variance_is_beta() -> None:
    defense = dp.GDMP(ToyDenoiser(2), linear_classifier(), rounds=1, variance="large", scale=200.0, **STEPS)
    noisy = pictures() + level(0.2) * direction(7)
    with torch.no_grad():
        clean = 2 * defense.denoiser(noisy, level(0.2)).clamp(0, 1) - 1
    now, then, y = bar(0.2), bar(0.16), to_y(noisy, level(0.2))
    beta = 1 - now / then
    mean = (math.sqrt(then) * beta * clean + math.sqrt(now / then) * (1 - then) * y) / (1 - now)
    z = noise_of().normal(SHAPE, 3, torch.float64)
    shift = defense.score_shift(noisy, level(0.2), pictures(), lambda: z).detach()
    gradient = shift * math.sqrt(1 + 4 * level(0.2) ** 2) / 2
    normal = noise_of().normal(SHAPE, 2, torch.float64)
    expected = from_y(mean + beta * gradient + math.sqrt(beta) * normal, level(0.16))
    torch.testing.assert_close(moved(defense, 1, noisy), expected, rtol=1e-8, atol=1e-9)


def test_gdmps_last_step_with_the_large_variance_has_that_before() -> None:
    defense = dp.GDMP(ToyDenoiser(2), linear_classifier(), rounds=1, variance="large", scale=200.0, **STEPS)
    noisy, clean, _ = last_of(defense)
    z = noise_of().normal(SHAPE, 11, torch.float64)
    shift = defense.score_shift(noisy, level(0.04), pictures(), lambda: z).detach()
    gradient = shift / math.sqrt(bar(0.04)) / 2
    expected = from_y(clean + small(0.08, 0.04) * gradient, 0.0).clamp(0, 1)
    assert error(from_y(clean, 0.0), expected) > 1e-4
    torch.testing.assert_close(moved(defense, 5, noisy), expected, rtol=1e-8, atol=1e-10)
    with pytest.raises(ValueError, match=r"^variance: the solver ode has its own; expected posterior"):
        dp.GDMP(ToyDenoiser(), linear_classifier(), variance="large", solver="ode")
