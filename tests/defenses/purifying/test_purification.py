"""Times, steps and laws of purifications against the papers' formulas, and DiffPure as a user calls it.

The papers write states as y = √ᾱ·(2x − 1) + √(1 − ᾱ)·z; what is compared here is written in y throughout.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import diffproof as dp
from diffproof.defenses.purifying.reverse_process import Draw
from diffproof.denoisers.base import Estimate
from diffproof.gradients import plain
from diffproof.noise import Noise, Stream
from diffproof.reverse.levels import check_t_star, t_star_of, vp_sigmas
from diffproof.reverse.solvers import solver_step
from helpers.classifiers import linear_classifier
from helpers.denoisers import ToyDenoiser
from helpers.gradients import direction
from helpers.images import SHAPE, pictures
from helpers.noise import noise_of
from helpers.purifications import SOLVERS, Guided, Unguided, purification
from helpers.vp_process import bar, integral, level, to_y

# Times.


@pytest.mark.parametrize(
    ("t_star", "steps"), [(0.15, 150), (0.1, 100), (0.1, 7), (1.0, 10), (1.0, 1000), (0.075, 1)]
)
def test_levels_are_those_of_equal_steps_in_time(t_star: float, steps: int) -> None:
    levels = vp_sigmas(t_star, steps)
    wanted = [level(t_star * (steps - i) / steps) for i in range(steps)]
    assert levels == pytest.approx(wanted, rel=1e-10)
    assert all(later < earlier for earlier, later in itertools.pairwise(levels))


@pytest.mark.parametrize("t_star", [0.1, 0.125, 0.15, 0.2])
def test_a_network_with_timesteps_sees_each_of_them_once(t_star: float) -> None:
    # DiffPure's own code, which rounds times to timesteps, visits 149, 148, 148, 147, … from t* = 0.15.
    defense = dp.DiffPure(ToyDenoiser(), linear_classifier(), t_star=t_star)
    count = round(1000 * t_star)
    assert defense.steps == (count,)
    (levels,) = defense.levels()
    assert [defense.denoiser.nearest_index(sigma) for sigma in levels] == list(range(count - 1, -1, -1))


def test_levels_that_the_denoiser_does_not_know_are_left_out() -> None:
    grid = torch.tensor([0.05, 0.1, 0.2, 0.4], dtype=torch.float64)
    denoiser = dp.GaussianMixtureDenoiser(torch.full((1, *SHAPE), 0.5), torch.ones(1) * 0.01, sigmas=grid)
    defense = dp.DiffPure(denoiser, linear_classifier(), sigma=0.2, steps=50)
    (levels,) = defense.levels()
    full = vp_sigmas(defense.t_star[0], 50)
    assert levels == [sigma for sigma in full if sigma >= 0.05]
    assert 5 < defense.evaluations == len(levels) < 50
    assert levels[0] == pytest.approx(0.2, rel=1e-12)


@pytest.mark.parametrize("time", [1e-4, 0.01, 0.075, 0.1, 0.15, 0.5, 0.999])
def test_time_of_a_level(time: float) -> None:
    assert t_star_of(level(time)) == pytest.approx(time, rel=1e-9)


def test_the_highest_level_is_one_and_is_named() -> None:
    highest = level(1.0)
    assert t_star_of(highest * (1 - 1e-9)) == pytest.approx(1.0)
    message = rf"sigma: expected a noise level of the VP-SDE, in \(0, {highest:.4g}\], got 76.2"
    with pytest.raises(ValueError, match=message):
        t_star_of(76.2)
    assert t_star_of(vp_sigmas(1.0, 1)[0]) <= 1


# One step.


# Times of a step: short, long, to the image, at the far end.
INTERVALS = [(0.1, 0.099), (0.15, 0.05), (0.01, 0.0), (1.0, 0.9)]


def step_case(now: float, then: float) -> dict[str, Any]:
    sigma = level(now)
    noisy = 0.5 + (sigma + 0.3) * direction(1)
    return {
        "sigma": sigma,
        "next_sigma": level(then) if then else 0.0,
        "noisy": noisy,
        "clean": 0.5 + 0.3 * direction(2),
        "normal": direction(3),
        "shift": 2 * direction(4),
    }


def step(solver: dp.Solver, case: dict[str, Any], **more: Any) -> Tensor:
    return to_y(
        solver_step(
            solver, case["noisy"], case["clean"], case["sigma"], case["next_sigma"], case["normal"], **more
        ),
        case["next_sigma"],
    )


def in_y(case: dict[str, Any], now: float) -> tuple[Tensor, Tensor, Tensor]:
    """State and clean estimate of [−1, 1] pixels, and the gradient of the guide by y, by the chain rule."""
    return (
        to_y(case["noisy"], case["sigma"]),
        2 * case["clean"] - 1,
        case["shift"] / (2 * math.sqrt(bar(now))),
    )


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("now", "then"), INTERVALS)
def test_sde_is_the_step_of_euler_and_maruyama(now: float, then: float, guided: bool) -> None:
    case = step_case(now, then)
    y, x0, gradient = in_y(case, now)
    # Score of y by Tweedie; Song et al. 2021, eq. 6 with f = −½βy and g² = β, over a step of time.
    score = (math.sqrt(bar(now)) * x0 - y) / (1 - bar(now)) + (gradient if guided else 0)
    step_of_beta = integral(then, now)
    expected = y + step_of_beta * (y / 2 + score) + math.sqrt(step_of_beta) * case["normal"]
    got = step(dp.Solver.SDE, case, score_shift=case["shift"] if guided else None)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("now", "then"), INTERVALS)
def test_ddpm_adds_the_variance_times_the_gradient(
    now: float, then: float, guided: bool, learned: bool
) -> None:
    case = step_case(now, then)
    y, x0, gradient = in_y(case, now)
    # Ho et al. 2020, eq. 7, with the β of the subsequence; Dhariwal & Nichol 2021, algorithm 1: N(μ + Σ∇, Σ).
    bar_now, bar_then = bar(now), bar(then)
    one_minus_alpha = 1 - bar_now / bar_then
    mean = (
        math.sqrt(bar_then) * one_minus_alpha / (1 - bar_now) * x0
        + math.sqrt(bar_now / bar_then) * (1 - bar_then) / (1 - bar_now) * y
    )
    variance = torch.tensor((1 - bar_then) / (1 - bar_now) * one_minus_alpha, dtype=torch.float64)
    own = None
    if learned and then > 0:
        # Between β̃ and β, a value of its own for each pixel.
        mix = torch.sigmoid(direction(5))
        variance = variance ** (1 - mix) * one_minus_alpha**mix
        own = variance / (4 * bar_then)
    expected = mean + variance.sqrt() * case["normal"] + (variance * gradient if guided else 0)
    got = step(dp.Solver.DDPM, case, score_shift=case["shift"] if guided else None, variance=own)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("now", "then"), INTERVALS)
def test_ode_is_ddim(now: float, then: float, guided: bool) -> None:
    case = step_case(now, then)
    y, x0, gradient = in_y(case, now)
    # Dhariwal & Nichol 2021, algorithm 2.
    epsilon = (y - math.sqrt(bar(now)) * x0) / math.sqrt(1 - bar(now))
    epsilon = epsilon - (math.sqrt(1 - bar(now)) * gradient if guided else 0)
    predicted = (y - math.sqrt(1 - bar(now)) * epsilon) / math.sqrt(bar(now))
    expected = math.sqrt(bar(then)) * predicted + math.sqrt(1 - bar(then)) * epsilon
    got = step(dp.Solver.ODE, case, score_shift=case["shift"] if guided else None)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def test_learned_variance_reaches_the_steps_of_ddpm_alone() -> None:
    # The same network with and without its variance: only DDPM's noise may tell them apart.
    class Without(ToyDenoiser):
        def estimate(self, noisy: Tensor, sigma: Any, label: Tensor | None) -> Estimate:
            return Estimate(super().estimate(noisy, sigma, label).clean)

    for solver in SOLVERS:
        with_it, without = (
            Unguided(denoiser, linear_classifier(), solver=solver, t_star=(0.3,), steps=(4,))
            for denoiser in (ToyDenoiser(2), Without(2))
        )
        same = torch.equal(with_it.purify(pictures(), noise_of()), without.purify(pictures(), noise_of()))
        assert same == (solver is not dp.Solver.DDPM)


def test_the_sde_needs_noise() -> None:
    case = step_case(0.1, 0.05)
    with pytest.raises(ValueError, match="normal: the SDE's step needs noise, got None"):
        step(dp.Solver.SDE, {**case, "normal": None})


# Whole purifications of Gaussian data, where all is affine.

SMALL = (1, 2, 2)
MEAN = torch.tensor([0.45, 0.5, 0.55, 0.5], dtype=torch.float64)
AXES = torch.linalg.qr(direction(7).flatten(1)[:, :4].repeat(2, 1) + torch.eye(4, dtype=torch.float64)).Q
COVARIANCE = AXES @ torch.diag(torch.tensor([1e-4, 1e-3, 2e-3, 4e-3], dtype=torch.float64)) @ AXES.T


def gaussian() -> dp.GaussianMixtureDenoiser:
    return dp.GaussianMixtureDenoiser(MEAN.reshape(1, *SMALL), COVARIANCE[None])


def small_classifier() -> dp.Classifier:
    return dp.Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).double(), 3)


def affine_purification(
    solver: dp.Solver, t_star: float, steps: int, x: Tensor, normals: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """What the papers' formulas make of a flat image, and its Jacobian by the image.

    Args:
        normals: noise of the diffusion, then of each step.
    """
    eye = torch.eye(4, dtype=torch.float64)
    mean, covariance = 2 * MEAN - 1, 4 * COVARIANCE
    y = math.sqrt(bar(t_star)) * (2 * x - 1) + math.sqrt(1 - bar(t_star)) * normals[0]
    jacobian = 2 * math.sqrt(bar(t_star)) * eye
    for i in range(steps):
        now, then = t_star * (steps - i) / steps, t_star * (steps - i - 1) / steps
        a, b = bar(now), bar(then)
        # p(y) = N(√ᾱ·m, ᾱ·S + (1 − ᾱ)·1): its score is linear, and so is E[x0 | y].
        precision = torch.linalg.inv(a * covariance + (1 - a) * eye)
        gain = math.sqrt(a) * covariance @ precision
        x0 = mean + gain @ (y - math.sqrt(a) * mean)
        if solver is dp.Solver.SDE:
            width = integral(then, now)
            score = -precision @ (y - math.sqrt(a) * mean)
            y = y + width * (y / 2 + score) + math.sqrt(width) * normals[1 + i]
            factor = eye * (1 + width / 2) - width * precision
        elif solver is dp.Solver.ODE:
            y = math.sqrt(b) * x0 + math.sqrt((1 - b) / (1 - a)) * (y - math.sqrt(a) * x0)
            factor = math.sqrt(b) * gain + math.sqrt((1 - b) / (1 - a)) * (eye - math.sqrt(a) * gain)
        else:
            of_x0 = math.sqrt(b) * (1 - a / b) / (1 - a)
            of_y = math.sqrt(a / b) * (1 - b) / (1 - a)
            y = of_x0 * x0 + of_y * y + math.sqrt((1 - b) / (1 - a) * (1 - a / b)) * normals[1 + i]
            factor = of_x0 * gain + of_y * eye
        jacobian = factor @ jacobian
    return (y + 1) / 2, jacobian / 2


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("solver", SOLVERS)
def test_value_and_jacobian_on_gaussian_data(solver: dp.Solver, steps: int) -> None:
    t_star = 0.1
    defense = dp.DiffPure(gaussian(), small_classifier(), t_star=t_star, steps=steps, solver=solver)
    noise = noise_of(1)
    x = MEAN + torch.tensor([0.05, -0.05, 0.02, 0.03], dtype=torch.float64)
    normals = [noise.normal(SMALL, 2 * index, torch.float64).flatten() for index in range(steps + 1)]
    value, jacobian = affine_purification(solver, t_star, steps, x, normals)
    assert 0 < float(value.min()) < float(value.max()) < 1, "nothing is clipped"

    def purified(image: Tensor) -> Tensor:
        return defense.purify(image.reshape(1, *SMALL), noise).flatten()

    torch.testing.assert_close(purified(x), value, rtol=1e-10, atol=1e-12)
    got = torch.autograd.functional.jacobian(purified, x)
    torch.testing.assert_close(got, jacobian, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [dp.Solver.SDE, dp.Solver.DDPM])
def test_many_steps_sample_the_posterior(solver: dp.Solver) -> None:
    # One pixel x0 ~ N(½, 0.08²), one image diffused over and over: purified = a sample of p(x0 | noisy).
    rows, steps, variance, image, t_star = 10_000, 150, 0.08**2, 0.6, 0.1
    denoiser = dp.GaussianMixtureDenoiser(torch.full((1, 1, 1, 1), 0.5), torch.tensor([variance]))
    model = dp.Classifier(torch.nn.Flatten(), 2)
    defense = dp.DiffPure(denoiser, model, t_star=t_star, steps=steps, solver=solver)
    images = torch.full((rows, 1, 1, 1), image, dtype=torch.float64)
    noise = noise_of(rows, seed=11)
    with torch.no_grad():
        purified = defense.purify(images, noise).flatten().numpy()
    sigma = level(t_star)
    noisy = image + sigma * noise.normal((1, 1, 1), 0, torch.float64).flatten().numpy()
    gain = variance / (variance + sigma**2)
    rest = (purified - (0.5 + gain * (noisy - 0.5))) / math.sqrt(variance * (1 - gain))
    # Standard normal but for the finite steps, which may move the mean and deviation by 2 %; else each of the
    # three checks raises a false alarm with probability 1e-6.
    quantile, bias = stats.norm.isf(5e-7), 0.02
    assert abs(rest.mean()) < bias + quantile / math.sqrt(rows)
    low, high = np.sqrt(stats.chi2.isf([1 - 5e-7, 5e-7], rows - 1) / (rows - 1))
    assert low - bias < rest.std(ddof=1) < high + bias
    # What is left does not depend on the noise of the diffusion.
    slope = stats.pearsonr(rest, noisy).statistic
    assert abs(slope) < bias + quantile / math.sqrt(rows)


# DiffPure as it is called.


def toy(**settings: Any) -> dp.DiffPure:
    return dp.DiffPure(ToyDenoiser(), linear_classifier(), **{"t_star": 0.1, "steps": 4, **settings})


def test_defaults_are_the_papers() -> None:
    defense = dp.DiffPure(ToyDenoiser(), linear_classifier(), t_star=0.1)
    assert defense.settings() == {"method": "diffpure", "t_star": [0.1], "steps": [100], "solver": "sde"}
    assert defense.evaluations == 100
    assert dp.DiffPure(gaussian(), small_classifier(), t_star=1e-4).steps == (1,)


@pytest.mark.parametrize("solver", SOLVERS)
def test_sigma_is_another_way_to_say_t_star(solver: dp.Solver) -> None:
    by_time = toy(solver=solver)
    by_level = toy(t_star=None, sigma=level(0.1), solver=solver.value)
    assert by_level.t_star == pytest.approx((0.1,), rel=1e-12)
    assert by_level.solver is solver
    torch.testing.assert_close(
        by_level(pictures(), noise_of()), by_time(pictures(), noise_of()), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_evaluations_are_those_made(solver: dp.Solver) -> None:
    defense = purification(Guided, solver)
    assert isinstance(defense.denoiser, ToyDenoiser)
    defense.purify(pictures(), noise_of())
    assert defense.evaluations == len(defense.denoiser.estimates) == 7


@pytest.mark.parametrize("solver", SOLVERS)
def test_rounds_follow_each_other_with_noise_of_their_own(solver: dp.Solver) -> None:
    both = purification(Unguided, solver, t_star=(0.3, 0.15), steps=(4, 3)).chain(noise_of())
    first = purification(Unguided, solver, t_star=(0.3,), steps=(4,))
    second = purification(Unguided, solver, t_star=(0.15,), steps=(3,))
    between = plain(pictures(), both[:5])
    assert torch.equal(between, plain(pictures(), first.chain(noise_of())))
    assert float(between.detach().min()) >= 0
    assert float(between.detach().max()) <= 1
    # The second round would be that of its own, but for its noise.
    rest = plain(between, both[5:])
    assert not torch.equal(rest, second.purify(between, noise_of()))
    diffused = (both[5](between, pictures()) - between) / second.levels()[0][0]
    torch.testing.assert_close(diffused, noise_of().normal(SHAPE, 10, torch.float64), rtol=1e-9, atol=1e-9)


def test_guidance_sees_the_state_the_images_and_noise_of_its_own() -> None:
    seen: list[tuple[Tensor, float, Tensor, Tensor]] = []

    class Watched(dp.Purification):
        method = "watched"

        def score_shift(self, noisy: Tensor, sigma: float, images: Tensor, draw: Draw) -> None:
            assert torch.equal(draw(), draw())
            seen.append((noisy, sigma, images, draw()))

    defense = purification(Watched, dp.Solver.SDE)
    noise, states = noise_of(), [pictures()]
    for one in defense.chain(noise):
        states.append(one(states[-1], pictures()).detach())
    steps = [1, 2, 3, 4, 6, 7, 8]
    assert [sigma for _, sigma, _, _ in seen] == [sigma for levels in defense.levels() for sigma in levels]
    for (noisy, _, images, drawn), k in zip(seen, steps, strict=True):
        assert torch.equal(noisy, states[k])
        assert torch.equal(images, pictures())
        assert torch.equal(drawn, noise.normal(SHAPE, 2 * k + 1, torch.float64))


@pytest.mark.parametrize("kind", [Unguided, Guided])
@pytest.mark.parametrize("solver", SOLVERS)
def test_noise_fixes_the_result_row_by_row(kind: type[dp.Purification], solver: dp.Solver) -> None:
    defense = purification(kind, solver)
    images, noise = pictures(5), noise_of(5)
    with torch.no_grad():
        logits = defense(images, noise)
        assert torch.equal(defense(images, noise), logits)
        assert not torch.equal(defense(images, noise_of(5, seed=1)), logits)
        alone = torch.cat(
            [
                defense(images[i : i + 1], noise.rows(torch.tensor([i]), torch.zeros(1, dtype=torch.int64)))
                for i in range(5)
            ]
        )
        torch.testing.assert_close(alone, logits, rtol=1e-12, atol=1e-12)
        # Without noise every call and every row has its own, which torch's seed fixes.
        torch.manual_seed(3)
        first, second = defense(images), defense(images)
        assert not torch.equal(first, second)
        assert len(defense(images[:1].repeat(4, 1, 1, 1)).unique(dim=0)) == 4
        torch.manual_seed(3)
        assert torch.equal(defense(images), first)


@pytest.mark.parametrize("kind", [Unguided, Guided])
@pytest.mark.parametrize("solver", SOLVERS)
def test_purified_images_are_images(kind: type[dp.Purification], solver: dp.Solver) -> None:
    defense = purification(kind, solver)
    with torch.no_grad():
        extremes = pictures(50).round()
        purified = defense.purify(extremes, noise_of(50))
        assert torch.equal(defense(extremes, noise_of(50)), defense.classifier(purified))
    assert 0 <= float(purified.min()) < float(purified.max()) <= 1
    assert bool(((purified == 0) | (purified == 1)).any()), "some would be outside"


def test_a_surrogate_takes_a_share_of_the_steps() -> None:
    defense = purification(Guided, dp.Solver.SDE, t_star=(0.3, 0.15), steps=(10, 3))
    surrogate = defense.with_steps(0.5)
    assert type(surrogate) is Guided
    assert (surrogate.steps, surrogate.t_star) == ((5, 2), (0.3, 0.15))
    assert surrogate.denoiser is defense.denoiser
    assert surrogate.classifier is defense.classifier
    assert defense.steps == (10, 3)
    assert defense.with_steps(0.01).steps == (1, 1)
    assert torch.equal(defense.with_steps(1.0)(pictures(), noise_of()), defense(pictures(), noise_of()))
    built = purification(Guided, dp.Solver.SDE, t_star=(0.3, 0.15), steps=(5, 2))
    assert torch.equal(surrogate(pictures(), noise_of()), built(pictures(), noise_of()))
    # What is done to the surrogate later stays there.
    calls: list[str] = []
    surrogate.register_forward_hook(lambda *_: calls.append("surrogate"))
    surrogate.classifier = torch.nn.Identity()
    defense(pictures(), noise_of())
    assert isinstance(defense.classifier, dp.Classifier)
    assert calls == []


@pytest.mark.parametrize("share", [0, -0.5, 1.5, math.nan])
def test_shares_that_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"share: expected a number in \(0, 1\], got"):
        toy().with_steps(share)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"t_star": 100},
            r"t_star: expected a time in \(0, 1\], got 100; timestep 100 of 1000 is t_star = 0.1$",
        ),
        ({"t_star": 1.5}, "timestep 1.5 of 1000 is t_star = 0.0015"),
        ({"t_star": 0}, r"t_star: expected a time in \(0, 1\], got 0$"),
        ({"t_star": -0.1}, r"t_star: expected a time in \(0, 1\], got -0.1$"),
        ({"t_star": 2000}, r"t_star: expected a time in \(0, 1\], got 2000$"),
        ({"t_star": math.nan}, r"t_star: expected a time in \(0, 1\], got nan$"),
        ({"t_star": 0.1, "sigma": 0.2}, "t_star, sigma: expected one of them, got 0.1 and 0.2"),
        ({"t_star": None}, "t_star, sigma: expected one of them, got None and None"),
        ({"t_star": None, "sigma": 0.0}, "sigma: expected a finite number > 0, got 0"),
        ({"t_star": None, "sigma": -1.0}, "sigma: expected a finite number > 0, got -1"),
        ({"t_star": None, "sigma": 80.0}, r"sigma: expected a noise level of the VP-SDE, in .*, got 80"),
        ({"steps": 0}, "steps: expected an integer ≥ 1, got 0"),
        ({"steps": -2}, "steps: expected an integer ≥ 1, got -2"),
        ({"steps": 2.5}, "steps: expected an integer ≥ 1, got 2.5"),
        ({"solver": "heun"}, "solver: expected one of ddpm, sde, ode, got 'heun'"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy(**settings)


def test_rounds_that_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds: expected an integer ≥ 1, got 0"):
        purification(Unguided, dp.Solver.SDE, t_star=(), steps=())
    with pytest.raises(ValueError, match=r"steps: expected one number for each of 2 rounds, got \(4,\)"):
        purification(Unguided, dp.Solver.SDE, t_star=(0.1, 0.1), steps=(4,))
    with pytest.raises(ValueError, match=r"timestep 50 of 1000 is t_star = 0\.05"):
        purification(Unguided, dp.Solver.SDE, t_star=(0.1, 50), steps=(4, 4))
    assert check_t_star(1) == 1


def test_denoisers_that_do_not_know_the_level() -> None:
    grid = torch.linspace(0.1, 0.6, 12, dtype=torch.float64)
    denoiser = dp.GaussianMixtureDenoiser(torch.zeros(1, *SHAPE), torch.ones(1), sigmas=grid)
    for sigma in (0.05, 0.7):
        message = rf"sigma: expected 0\.1 ≤ sigma ≤ 0\.6 .*, got {sigma}"
        with pytest.raises(ValueError, match=message):
            dp.DiffPure(denoiser, linear_classifier(), sigma=sigma, steps=3)
        with pytest.raises(ValueError, match=r"sigma: expected 0\.1 ≤ sigma ≤ 0\.6"):
            dp.DiffPure(denoiser, linear_classifier(), t_star=t_star_of(sigma), steps=3)


@pytest.mark.parametrize("call", ["forward", "purify", "purify_by_adjoint"])
def test_images_and_noise_that_are_refused(call: str) -> None:
    work = getattr(toy(solver="ode"), call)
    with pytest.raises(ValueError, match=r"images: expected floats in \[0, 1\], got torch.uint8"):
        work(torch.zeros(2, *SHAPE, dtype=torch.uint8))
    with pytest.raises(ValueError, match="images: expected finite pixels"):
        work(torch.full((2, *SHAPE), math.nan, dtype=torch.float64))
    with pytest.raises(ValueError, match="noise: expected one row for each of 2 images, got 3"):
        work(pictures(), noise_of(3))
    with pytest.raises(ValueError, match=r"images: the (denoiser|classifier) takes 1×3×3 .*, got 2×3×3"):
        work(torch.zeros(2, 2, 3, 3, dtype=torch.float64), noise_of())


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_noisy_digits_are_recovered(solver: dp.Solver) -> None:
    data = dp.load_data("digits", "test")
    images, labels = data.images[:60], data.labels[:60]
    model = dp.load_classifier("digits")
    defense = dp.DiffPure(dp.load_denoiser("digits"), model, sigma=0.25, steps=4, solver=solver)
    attack = Noise.for_draws(5, Stream.ESTIMATION, 0, 0, len(images))
    noisy = (images + 0.4 * attack.normal(images.shape[1:], 0, images.dtype)).clamp(0, 1)

    def accuracy(logits: Tensor) -> float:
        return float((logits.argmax(1) == labels).double().mean())

    with torch.no_grad():
        before, after = accuracy(model(noisy)), accuracy(defense(noisy, noise_of(len(images))))
        clean = accuracy(defense(images, noise_of(len(images))))
    # Measured: 0.43 of the noisy ones before, 0.67 to 0.75 after, 0.93 of the clean ones and more.
    assert after > before + 0.15
    assert clean > 0.9
