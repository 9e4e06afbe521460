from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from diffproof.denoisers.base import Denoiser
from diffproof.denoisers.gaussian_mixture import GaussianMixtureDenoiser
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.denoisers.schedules import DiscreteSchedule, VariancePreservingSchedule
from diffproof.noise import Noise, Stream
from diffproof.reverse.levels import (
    StepRule,
    authors_timesteps,
    log_sigma_indices,
    paper_timesteps,
    select_sigmas,
)
from diffproof.reverse.sampling import first_estimate, one_shot, posterior_sample
from diffproof.reverse.solvers import reverse_step
from helpers.tensors import random

SHAPE = (1, 2, 2)
LINEAR = DiscreteSchedule.linear()
CIFAR10 = DiscreteSchedule.cosine(4000, first_timestep=1)


class Curved(nn.Module):
    """A smooth network with an output that depends on its timestep; it keeps the timesteps it saw."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.channels = channels
        self.seen: list[int] = []

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        self.seen.append(int(timestep[0]))
        output = torch.sin(x + 0.01 * timestep[:, None, None, None])
        return torch.cat([output, torch.cos(3 * x)], 1) if self.channels == 2 else output


def frozen(rows: int, seed: int = 0) -> Noise:
    noise = Noise.for_draws(seed, Stream.ESTIMATION, 0, 0, rows)
    return noise.rows(torch.arange(rows), torch.ones(rows, dtype=torch.int64))


X = random(2, *SHAPE)

# Step rules.

# The lists that DensePure's code prints at sigma = 0.25 and b = 10: CIFAR-10 from 1, ImageNet from 0.
CIFAR10_LIST = [1159, 1043, 927, 811, 695, 579, 463, 348, 232, 116]
IMAGENET_LIST = [144, 130, 115, 101, 86, 72, 58, 43, 29, 14]


def test_lists_of_the_authors() -> None:
    assert authors_timesteps(CIFAR10.start_timestep(0.5), 10) == CIFAR10_LIST
    assert authors_timesteps(LINEAR.start_timestep(0.5), 10) == IMAGENET_LIST
    # Ties go to the even number: 2.5 and 1.5 both become 2.
    assert authors_timesteps(5, 10) == [5, 4, 4, 4, 3, 2, 2, 2, 1, 0]
    assert authors_timesteps(1158.5, 1) == [1158]


@pytest.mark.parametrize(
    ("start", "steps"), [(1159, 10), (1159, 2), (145, 10), (7, 7), (7, 5), (4000, 40), (3, 1)]
)
def test_list_of_the_paper(start: int, steps: int) -> None:
    floors = [math.floor(Fraction(start) - Fraction(j * start, steps)) for j in range(steps)]
    expected = [start] if steps == 1 else [*floors[:-1], 1]
    assert paper_timesteps(start, steps) == expected


@pytest.mark.parametrize(
    ("schedule", "rule", "timesteps", "first"),
    [
        (CIFAR10, StepRule.AUTHORS, CIFAR10_LIST, 1),
        (LINEAR, StepRule.AUTHORS, IMAGENET_LIST, 0),
        (CIFAR10, StepRule.PAPER, [1159, 1043, 927, 811, 695, 579, 463, 347, 231, 1], 1),
        (LINEAR, StepRule.PAPER, [145, 130, 116, 101, 87, 72, 58, 43, 29, 1], 1),
        (CIFAR10, "authors", [1159, 579], 1),
        (LINEAR, "paper", [145, 1], 1),
    ],
)
def test_lists_on_the_grid_of_a_network(
    schedule: DiscreteSchedule, rule: StepRule | str, timesteps: list[int], first: int
) -> None:
    network = Curved()
    denoiser = NetworkDenoiser(network, schedule)
    levels = select_sigmas(denoiser, 0.25, len(timesteps), rule)
    bar = schedule.alphas_cumprod[[timestep - first for timestep in timesteps]]
    expected = (1 / bar - 1).sqrt() / 2
    assert levels[0] == 0.25
    torch.testing.assert_close(
        torch.tensor(levels[1:], dtype=torch.float64), expected[1:], rtol=1e-12, atol=0
    )
    # The network is conditioned on its trained index, that of ᾱ, from 0, in both countings.
    posterior_sample(denoiser, 0.5 + 0.25 * random(1, *SHAPE), levels, frozen(1))
    assert network.seen == [timestep - first for timestep in timesteps]


@pytest.mark.parametrize("sigma", [0.1, 0.25, 0.26])
@pytest.mark.parametrize("rule", list(StepRule))
def test_full_process_visits_every_trained_level(sigma: float, rule: StepRule) -> None:
    network = Curved()
    denoiser = NetworkDenoiser(network, LINEAR)
    levels = select_sigmas(denoiser, sigma, None, rule)
    start = int((LINEAR.sigmas / 2 - sigma).abs().argmin())
    assert levels[0] == sigma
    assert levels[1:] == (LINEAR.sigmas[:start].flip(0) / 2).tolist()
    posterior_sample(denoiser, 0.5 + sigma * random(1, *SHAPE), levels, frozen(1))
    assert network.seen == list(range(start, -1, -1))


@pytest.mark.parametrize("rule", list(StepRule))
def test_one_step_is_sigma_alone(rule: StepRule) -> None:
    assert select_sigmas(NetworkDenoiser(Curved(), LINEAR), 0.3, 1, rule) == [0.3]
    assert select_sigmas(NetworkDenoiser(Curved(), VariancePreservingSchedule()), 0.3, 1, rule) == [0.3]


@pytest.mark.parametrize("steps", [2, 3, 10, 20])
def test_log_sigma_levels_are_the_nearest_to_uniform_spacing(steps: int) -> None:
    # A grid fine enough that no two wanted levels share a neighbour.
    grid = torch.logspace(-2, 1, 3001, dtype=torch.float64)
    start = 2345
    wanted = torch.linspace(math.log(grid[start]), math.log(grid[0]), steps, dtype=torch.float64)
    brute = [int((grid.log() - level).abs().argmin()) for level in wanted]
    assert log_sigma_indices(grid, start, steps) == brute
    denoiser = GaussianMixtureDenoiser(torch.zeros(1, *SHAPE), torch.ones(1), sigmas=grid)
    levels = select_sigmas(denoiser, float(grid[start]), steps, "log-sigma")
    assert levels == grid[brute].tolist()
    gaps = torch.tensor(levels, dtype=torch.float64).log().diff()
    assert float(gaps.max() - gaps.min()) <= 2 * math.log(grid[1] / grid[0])


@pytest.mark.parametrize("steps", [2, 5, 50, 139, 143, 145])
def test_log_sigma_levels_never_repeat(steps: int) -> None:
    indices = log_sigma_indices(LINEAR.sigmas, 144, steps)
    assert len(indices) == steps
    assert (indices[0], indices[-1]) == (144, 0)
    assert all(later < earlier for earlier, later in itertools.pairwise(indices))


def test_log_sigma_levels_of_a_continuous_denoiser() -> None:
    denoiser = NetworkDenoiser(Curved(), VariancePreservingSchedule(smallest_time=1e-3))
    levels = select_sigmas(denoiser, 0.5, 9, "log-sigma")
    assert levels[0] == 0.5
    assert levels[-1] == pytest.approx(denoiser.sigma_min, rel=1e-12)
    ratios = [later / earlier for earlier, later in itertools.pairwise(levels)]
    assert ratios == pytest.approx([(denoiser.sigma_min / 0.5) ** (1 / 8)] * 8, rel=1e-12)


def on_grid() -> Denoiser:
    return NetworkDenoiser(Curved(), LINEAR)


def continuous() -> Denoiser:
    return NetworkDenoiser(Curved(), VariancePreservingSchedule())


def without_end() -> Denoiser:
    denoiser = GaussianMixtureDenoiser(torch.zeros(1, *SHAPE), torch.ones(1))
    denoiser.sigma_min = 0.0
    return denoiser


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: select_sigmas(on_grid(), 0.25, 10, "even"),
            "step_rule: expected one of authors, paper, log-sigma",
        ),
        (lambda: select_sigmas(on_grid(), 0.001, 10), "sigma: expected .* got 0.001"),
        (lambda: select_sigmas(on_grid(), 100.0, 10), "sigma: expected .* got 100"),
        (lambda: select_sigmas(on_grid(), -1.0, None), "sigma: expected .* got -1"),
        (lambda: select_sigmas(continuous(), 1e-9, 1), "sigma: expected"),
        (lambda: select_sigmas(on_grid(), 0.25, 0), "steps: expected an integer ≥ 1, got 0"),
        (lambda: select_sigmas(continuous(), 0.25, -2), "steps: expected an integer ≥ 1, got -2"),
        (
            lambda: select_sigmas(on_grid(), 0.25, 146),
            "steps: the grid has 145 levels up to sigma = 0.25, got 146",
        ),
        (lambda: select_sigmas(on_grid(), 0.25, 146, "paper"), "steps: the grid has 145 levels"),
        (lambda: select_sigmas(on_grid(), 0.25, 146, "log-sigma"), "steps: the grid has 145 levels"),
        # 145 values of round(144 − i·144/145) cannot be distinct from 144 … 1.
        (lambda: select_sigmas(on_grid(), 0.25, 145), "steps: 145 steps from sigma = 0.25 repeat a level"),
        (
            lambda: select_sigmas(continuous(), 0.25, None, "log-sigma"),
            "step_rule: this denoiser has no timesteps",
        ),
        (
            lambda: select_sigmas(continuous(), 0.25, 10, "authors"),
            "step_rule: this denoiser has no timesteps",
        ),
        (lambda: select_sigmas(continuous(), 0.25, 10, "paper"), "step_rule: this denoiser has no timesteps"),
        (
            lambda: select_sigmas(continuous(), continuous().sigma_min, 2, "log-sigma"),
            "step_rule: 'log-sigma' needs 0 < sigma_min < sigma",
        ),
        (
            lambda: select_sigmas(without_end(), 0.25, 2, "log-sigma"),
            "needs 0 < sigma_min < sigma, got sigma_min = 0",
        ),
        (
            lambda: reverse_step(X, X, 0.5, 0.5, X),
            "next_sigma: expected 0 ≤ next_sigma < sigma = 0.5, got 0.5",
        ),
        (lambda: reverse_step(X, X, 0.5, 0.6, X), "next_sigma: expected"),
        (lambda: reverse_step(X, X, 0.5, -0.1, X), "next_sigma: expected"),
        (lambda: reverse_step(X, X, 0.5, math.nan, X), "next_sigma: expected"),
        (lambda: reverse_step(X, X, 0.5, 0.1, X, eta=1.1), r"eta: expected a number in \[0, 1\], got 1.1"),
        (lambda: reverse_step(X, X, 0.5, 0.1, X, eta=-0.1), "eta: expected"),
        (lambda: posterior_sample(on_grid(), X, [], frozen(2)), "sigmas: expected at least one"),
        (
            lambda: posterior_sample(on_grid(), X, [0.5, 0.2], frozen(1)),
            "noise: expected one row for each of 2",
        ),
        (lambda: posterior_sample(on_grid(), X, [0.5, 0.6], frozen(2)), "sigmas: expected descending"),
        (lambda: posterior_sample(on_grid(), X, [0.5, 0.001], frozen(2)), "sigma: expected .* got 0.001"),
        (lambda: posterior_sample(on_grid(), X, [0.5, 0.2], frozen(2), eta=2.0), "eta: expected"),
        (lambda: posterior_sample(on_grid(), X[0], [0.5], frozen(1)), "images: expected N×C×H×W"),
        (lambda: one_shot(on_grid(), X, 0.001), "sigma: expected"),
        (
            lambda: first_estimate(on_grid(), X, 0.5, label=torch.tensor([0, 0])),
            "label: this denoiser is uncond",
        ),
    ],
)
def test_bad_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# One step.


def to_chain(pixels: Tensor, bar: float) -> Tensor:
    """Pixels with noise, image + sigma·N(0, I), to the chain's √ᾱ coordinates of [−1, 1] data."""
    return (2 * pixels - 1) * math.sqrt(bar)


def from_chain(x: Tensor, bar: float) -> Tensor:
    return (x / math.sqrt(bar) + 1) / 2


STEPS = [(999, 998), (999, 500), (400, 100), (258, 257), (144, 130), (14, 1), (1, 0)]


@pytest.mark.parametrize(("now", "then"), STEPS)
@pytest.mark.parametrize("schedule", [LINEAR, DiscreteSchedule.cosine(1000)], ids=["linear", "cosine"])
def test_step_is_the_posterior_of_ddpm(now: int, then: int, schedule: DiscreteSchedule) -> None:
    bar, bar_then = (float(schedule.alphas_cumprod[t]) for t in (now, then))
    sigma, sigma_then = (math.sqrt(1 / b - 1) / 2 for b in (bar, bar_then))
    noisy, clean, z = (
        0.5 + sigma * random(3, *SHAPE),
        torch.rand(3, *SHAPE).double(),
        random(3, *SHAPE, seed=2),
    )
    # Ho et al. 2020, eq. 6 and 7, with the β of the subsequence.
    beta = 1 - bar / bar_then
    x0, xt = 2 * clean - 1, to_chain(noisy, bar)
    mean = math.sqrt(bar_then) * beta / (1 - bar) * x0 + math.sqrt(1 - beta) * (1 - bar_then) / (1 - bar) * xt
    variance = (1 - bar_then) / (1 - bar) * beta
    for normal, expected in ((z, mean + math.sqrt(variance) * z), (None, mean)):
        got = reverse_step(noisy, clean, sigma, sigma_then, normal)
        torch.testing.assert_close(got, from_chain(expected, bar_then), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(to_chain(got, bar_then), expected, rtol=1e-6, atol=1e-6)


def in_float64(scheduler: Any) -> Any:
    """The scheduler with its own table computed in float64."""
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


@pytest.mark.parametrize("now", [999, 500, 144, 1])
def test_step_is_that_of_the_ddpm_scheduler(now: int) -> None:
    from diffusers import DDPMScheduler

    scheduler = in_float64(DDPMScheduler(1000, clip_sample=False, prediction_type="sample"))
    bar, bar_then = (float(scheduler.alphas_cumprod[t]) for t in (now, now - 1))
    sigma, sigma_then = (math.sqrt(1 / b - 1) / 2 for b in (bar, bar_then))
    noisy, clean = 0.5 + sigma * random(3, *SHAPE), random(3, *SHAPE, seed=1)
    other = scheduler.step(
        2 * clean - 1, now, to_chain(noisy, bar), generator=torch.Generator().manual_seed(5)
    ).prev_sample
    z = torch.randn(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    got = reverse_step(noisy, clean, sigma, sigma_then, z)
    torch.testing.assert_close(to_chain(got, bar_then), other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("now", "then"), STEPS)
def test_step_is_the_formula_of_ddim(now: int, then: int, eta: float) -> None:
    bar, bar_then = (float(LINEAR.alphas_cumprod[t]) for t in (now, then))
    sigma, sigma_then = (math.sqrt(1 / b - 1) / 2 for b in (bar, bar_then))
    noisy, clean, z = 0.5 + sigma * random(3, *SHAPE), random(3, *SHAPE, seed=1), random(3, *SHAPE, seed=2)
    # Song et al. 2021, eq. 12 and 16.
    x0, xt = 2 * clean - 1, to_chain(noisy, bar)
    epsilon = (xt - math.sqrt(bar) * x0) / math.sqrt(1 - bar)
    deviation = eta * math.sqrt((1 - bar_then) / (1 - bar)) * math.sqrt(1 - bar / bar_then)
    expected = math.sqrt(bar_then) * x0 + math.sqrt(1 - bar_then - deviation**2) * epsilon + deviation * z
    got = reverse_step(noisy, clean, sigma, sigma_then, z, eta=eta)
    torch.testing.assert_close(to_chain(got, bar_then), expected, rtol=1e-9, atol=1e-9)


def test_step_to_zero_is_the_clean_estimate() -> None:
    assert torch.equal(reverse_step(X, X + 1, 0.5, 0.0, random(2, *SHAPE, seed=3)), X + 1)


# Whole processes.


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_process_is_that_of_the_ddim_scheduler(eta: float, clip: bool) -> None:
    from diffusers import DDIMScheduler

    # 25 steps of 40 timesteps each: a strided subsequence of diffusers, begun in its middle.
    scheduler = in_float64(DDIMScheduler(1000, clip_sample=clip, timestep_spacing="leading"))
    scheduler.set_timesteps(25)
    timesteps = [t for t in scheduler.timesteps.tolist() if t <= 400]
    assert timesteps == list(range(400, -1, -40))
    network = Curved()
    denoiser = NetworkDenoiser(network, LINEAR)
    levels = (LINEAR.sigmas[timesteps] / 2).tolist()
    noisy, noise = 0.5 + levels[0] * random(4, *SHAPE), frozen(4)
    x = to_chain(noisy, float(LINEAR.alphas_cumprod[400]))
    for i, t in enumerate(timesteps, start=1):
        output = network(x, torch.full((4,), t), None)
        z = noise.normal(SHAPE, i, torch.float64) if eta > 0 else None
        # With clipping, DDPM's mean and DensePure use the clipped estimate throughout.
        x = scheduler.step(output, t, x, eta=eta, use_clipped_model_output=True, variance_noise=z).prev_sample
    got = posterior_sample(denoiser, noisy, levels, noise, eta=eta, clip=clip)
    torch.testing.assert_close(got, (x + 1) / 2, rtol=1e-8, atol=1e-8)
    assert (float(got.min()) >= 0 and float(got.max()) <= 1) == clip


@pytest.mark.parametrize("clip", [True, False])
def test_process_with_learned_variance_is_that_of_guided_diffusion(clip: bool) -> None:
    schedule = DiscreteSchedule.cosine(400)
    timesteps = [300, 222, 140, 60, 7, 0]
    network = Curved(channels=2)
    noise = frozen(4)
    noisy = 0.5 + float(schedule.sigmas[300]) / 2 * random(4, *SHAPE)
    bars = schedule.alphas_cumprod[timesteps].tolist()
    x = to_chain(noisy, bars[0])
    for i, t in enumerate(timesteps):
        # p_mean_variance and p_sample of guided-diffusion on respaced timesteps, predicting ε.
        output = network(x, torch.full((4,), t), None)
        bar, bar_then = bars[i], (*bars, 1.0)[i + 1]
        x0 = math.sqrt(1 / bar) * x - math.sqrt(1 / bar - 1) * output[:, :1]
        x0 = x0.clamp(-1, 1) if clip else x0
        beta = 1 - bar / bar_then
        mean = x0 * beta * math.sqrt(bar_then) / (1 - bar) + x * math.sqrt(1 - beta) * (1 - bar_then) / (
            1 - bar
        )
        if t == 0:
            x = mean
            break
        fraction = (output[:, 1:] + 1) / 2
        log_variance = fraction * math.log(beta) + (1 - fraction) * math.log(
            beta * (1 - bar_then) / (1 - bar)
        )
        x = mean + (0.5 * log_variance).exp() * noise.normal(SHAPE, i + 1, torch.float64)
    denoiser = NetworkDenoiser(network, schedule)
    levels = (schedule.sigmas[timesteps] / 2).tolist()
    got = posterior_sample(denoiser, noisy, levels, noise, clip=clip)
    torch.testing.assert_close(got, (x + 1) / 2, rtol=1e-8, atol=1e-8)


def test_learned_variance_belongs_to_the_ancestral_process_alone() -> None:
    noisy, levels = 0.5 + 0.5 * X, [0.5, 0.3, 0.1]
    plain, learned = (NetworkDenoiser(Curved(channels), LINEAR) for channels in (1, 2))
    for eta, same in ((0.5, True), (1.0, False)):
        samples = [
            posterior_sample(denoiser, noisy, levels, frozen(2), eta=eta) for denoiser in (plain, learned)
        ]
        assert torch.equal(*samples) == same


def test_one_shot_is_the_clipped_estimate() -> None:
    means = torch.tensor([-0.4, 0.3, 1.7], dtype=torch.float64).reshape(3, 1, 1, 1)
    denoiser = GaussianMixtureDenoiser(
        means, torch.full((3,), 0.01, dtype=torch.float64), component_labels=[0, 1, 2]
    )
    noisy = means + 0.1
    label = torch.arange(3)
    exact = means + 0.1 * 0.01 / (0.01 + 0.04)
    torch.testing.assert_close(one_shot(denoiser, noisy, 0.2, label=label, clip=False), exact)
    torch.testing.assert_close(one_shot(denoiser, noisy, 0.2, label=label), exact.clamp(0, 1))
    torch.testing.assert_close(
        posterior_sample(denoiser, noisy, [0.2], frozen(3), label=label), exact.clamp(0, 1)
    )


def test_label_holds_at_every_step() -> None:
    means = torch.tensor([0.2, 0.8], dtype=torch.float64).reshape(2, 1, 1, 1)
    denoiser = GaussianMixtureDenoiser(
        means, torch.full((2,), 1e-6, dtype=torch.float64), component_labels=[0, 1]
    )
    noisy = torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64)
    # The levels are so high that without its label the last estimate would be half-way.
    got = posterior_sample(denoiser, noisy, [0.5, 0.48, 0.45], frozen(2), label=torch.tensor([1, 0]))
    torch.testing.assert_close(
        got.flatten(), torch.tensor([0.8, 0.2], dtype=torch.float64), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_start_that_the_caller_has_changes_nothing(channels: int, eta: float) -> None:
    denoiser = NetworkDenoiser(Curved(channels), LINEAR)
    noisy = 0.5 + 0.5 * random(5, *SHAPE)
    levels = select_sigmas(denoiser, 0.5, 6)
    start = first_estimate(denoiser, noisy, 0.5)
    fresh = posterior_sample(denoiser, noisy, levels, frozen(5), eta=eta)
    assert torch.equal(posterior_sample(denoiser, noisy, levels, frozen(5), eta=eta, start=start), fresh)
    assert not torch.equal(
        posterior_sample(
            denoiser, noisy, levels, frozen(5), eta=eta, start=start._replace(clean=start.clean / 2)
        ),
        fresh,
    )


def test_votes_have_noise_of_their_own() -> None:
    denoiser = NetworkDenoiser(Curved(), LINEAR)
    levels = select_sigmas(denoiser, 0.5, 4)
    draws = Noise.for_draws(0, Stream.ESTIMATION, 0, 0, 1)
    noisy = (0.5 + 0.5 * random(1, *SHAPE)).expand(3, -1, -1, -1)
    noise = draws.rows(torch.zeros(3, dtype=torch.int64), torch.tensor([1, 2, 1]))
    first, second, again = posterior_sample(denoiser, noisy, levels, noise)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    one, two, three = posterior_sample(denoiser, noisy, levels, noise, eta=0.0)
    assert torch.equal(one, two)
    assert torch.equal(one, three)


def small_mixture(sigmas: Tensor | None = None) -> GaussianMixtureDenoiser:
    means = torch.rand(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    roots = random(3, 4, 4, seed=5)
    covariances = 0.02 * roots @ roots.transpose(1, 2)
    return GaussianMixtureDenoiser(means, covariances, [0.5, 0.2, 0.3], sigmas=sigmas)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_gradients_match_finite_differences(eta: float) -> None:
    denoiser = small_mixture()
    levels = [0.5, 0.3, 0.15, 0.05]
    noisy = (0.5 + 0.3 * X).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: posterior_sample(denoiser, x, levels, frozen(2), eta=eta, clip=False), (noisy,)
    )


@pytest.mark.parametrize("channels", [1, 2])
def test_gradients_through_a_network_with_clipping(channels: int) -> None:
    # With these values some pixels are clipped, and none lies within the difference step of the edge.
    denoiser = NetworkDenoiser(Curved(channels), LINEAR)
    levels = select_sigmas(denoiser, 0.5, 5)
    noisy = (0.5 + 0.5 * random(3, *SHAPE, seed=6)).requires_grad_()
    clean = one_shot(denoiser, noisy, 0.5)
    assert 0 < int(((clean == 0) | (clean == 1)).sum()) < clean.numel()
    assert torch.autograd.gradcheck(lambda x: posterior_sample(denoiser, x, levels, frozen(3)), (noisy,))
    assert torch.autograd.gradcheck(lambda x: one_shot(denoiser, x, 0.5), (noisy,))


# Convergence to the posterior p(image | noisy) (DensePure, Theorem 3.1), in float64 and without clipping. On
# a single Gaussian and on a one-dimensional mixture the law of the result is computed, not sampled, so the
# order of the bias shows without Monte Carlo error.

SIGMA = 0.5
SMALLEST = 0.02


def on_line(means: list[float], variances: list[float], weights: list[float]) -> GaussianMixtureDenoiser:
    denoiser = GaussianMixtureDenoiser(
        torch.tensor(means, dtype=torch.float64).reshape(-1, 1, 1, 1),
        torch.tensor(variances, dtype=torch.float64),
        weights,
    )
    denoiser.sigma_min = SMALLEST
    return denoiser


def step_law(
    denoiser: Denoiser, x: Tensor, sigma: float, next_sigma: float, eta: float = 1.0
) -> tuple[Tensor, float]:
    """Means of the next x from each x on the line, and the deviation that they share."""
    points = x.reshape(-1, 1, 1, 1)
    clean = first_estimate(denoiser, points, sigma, clip=False).clean
    mean = reverse_step(points, clean, sigma, next_sigma, torch.zeros_like(points), eta=eta)
    moved = reverse_step(points, clean, sigma, next_sigma, torch.ones_like(points), eta=eta)
    deviation = (moved - mean).flatten()
    torch.testing.assert_close(deviation, deviation[:1].expand(len(x)), rtol=1e-6, atol=1e-12)
    return mean.flatten(), float(deviation[0])


def gaussian_moments(denoiser: Denoiser, noisy: float, steps: int) -> tuple[float, float]:
    """Mean and variance of the result where every step is linear."""
    mean, variance = noisy, 0.0
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    levels = select_sigmas(denoiser, SIGMA, steps, StepRule.LOG_SIGMA)
    for sigma, next_sigma in itertools.pairwise(levels):
        at, deviation = step_law(denoiser, ends, sigma, next_sigma)
        slope = float(at[1] - at[0])
        mean, variance = float(at[0]) + slope * mean, slope**2 * variance + deviation**2
    at = one_shot(denoiser, ends.reshape(2, 1, 1, 1), levels[-1], clip=False).flatten()
    slope = float(at[1] - at[0])
    return float(at[0]) + slope * mean, slope**2 * variance


@pytest.mark.slow
@pytest.mark.parametrize("variance", [0.01, 0.09, 1.0])
def test_variance_on_a_gaussian_converges_at_first_order(variance: float) -> None:
    centre, noisy = 0.4, 1.1
    denoiser = on_line([centre], [variance], [1.0])
    gain = variance / (variance + SIGMA**2)
    # The last jump takes the posterior mean at the lowest level and so leaves out its variance there.
    limit = gain * SIGMA**2 - variance * SMALLEST**2 / (variance + SMALLEST**2)
    errors = []
    for intervals in (32, 64, 128, 256):
        mean, spread = gaussian_moments(denoiser, noisy, intervals + 1)
        # E[x_s | x] is the step's mean for any density, so on a Gaussian no number of steps biases the mean.
        assert mean == pytest.approx(centre + gain * (noisy - centre), abs=1e-12)
        errors.append(spread - limit)
    ratios = [first / second for first, second in itertools.pairwise(errors)]
    assert ratios == pytest.approx([2.0] * 3, rel=0.15)
    assert ratios[-1] == pytest.approx(2.0, rel=0.04)
    assert abs(errors[-1]) < 0.04 * limit


def mixture_moments(denoiser: GaussianMixtureDenoiser, noisy: float, steps: int) -> np.ndarray[Any, Any]:
    """Mean, variance and component shares of the result, its density carried along on a grid."""
    levels = select_sigmas(denoiser, SIGMA, steps, StepRule.LOG_SIGMA)
    grid = torch.linspace(-1.2, 2.2, 901, dtype=torch.float64)
    width = float(grid[1] - grid[0])
    mean, deviation = step_law(denoiser, torch.tensor([noisy], dtype=torch.float64), *levels[:2])
    mass = torch.exp(-0.5 * ((grid - mean) / deviation) ** 2) * width / (deviation * math.sqrt(2 * math.pi))
    for sigma, next_sigma in itertools.pairwise(levels[1:]):
        mean, deviation = step_law(denoiser, grid, sigma, next_sigma)
        # The trapezium rule is exact to rounding for Gaussians this much wider than the grid's spacing.
        assert deviation > 1.4 * width
        kernel = torch.exp(-0.5 * ((grid[:, None] - mean) / deviation) ** 2)
        mass = kernel @ mass * width / (deviation * math.sqrt(2 * math.pi))
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-6)
    points = grid.reshape(-1, 1, 1, 1)
    clean = one_shot(denoiser, points, levels[-1], clip=False).flatten()
    shares, _ = denoiser.component_posterior(points, levels[-1])
    average = float(mass @ clean)
    return np.array([average, float(mass @ (clean - average) ** 2), *(mass @ shares).tolist()])


@pytest.mark.slow
def test_mixture_converges_to_the_posterior_at_first_order() -> None:
    denoiser = on_line([0.0, 0.5, 1.0], [0.01, 0.02, 0.005], [0.3, 0.3, 0.4])
    noisy = 0.62
    shares, means = denoiser.component_posterior(torch.full((1, 1, 1, 1), noisy, dtype=torch.float64), SIGMA)
    share, mean = shares[0].numpy(), means[0, :, 0].numpy()
    variances = denoiser.variances[:, 0].numpy()
    spread = variances * SIGMA**2 / (variances + SIGMA**2)
    average = float(share @ mean)
    variance = float(share @ (spread + (mean - average) ** 2))
    assert share.min() > 0.15
    # The last jump leaves out the variance that is left at the lowest level, averaged over what leads there.
    ratio = SMALLEST**2 / SIGMA**2
    grid = np.linspace(-0.6, 1.6, 4001)
    density = share @ stats.norm.pdf(
        grid,
        ((1 - ratio) * mean + ratio * noisy)[:, None],
        np.sqrt((1 - ratio) ** 2 * spread + SMALLEST**2 * (1 - ratio))[:, None],
    )
    late, late_means = denoiser.component_posterior(torch.from_numpy(grid).reshape(-1, 1, 1, 1), SMALLEST)
    late_variance = variances * SMALLEST**2 / (variances + SMALLEST**2) + late_means[:, :, 0].numpy() ** 2
    left = (late.numpy() * late_variance).sum(1) - (late * late_means[:, :, 0]).sum(1).numpy() ** 2
    variance -= float(np.sum(density * left)) * (grid[1] - grid[0])

    intervals = np.array([7, 15, 31])
    exact = np.array([average, variance, *share])
    errors = np.abs([mixture_moments(denoiser, noisy, int(count) + 1) - exact for count in intervals])
    assert (errors[1:] < errors[:-1]).all()
    order = np.log(errors[:-1] / errors[1:]) / np.log(intervals[1:] / intervals[:-1])[:, None]
    np.testing.assert_allclose(order[-1], 1.0, atol=0.15)
    assert errors[-1].max() < 0.04


@pytest.mark.parametrize("variance", [0.01, 0.5])
def test_ddim_converges_to_the_flow_at_first_order(variance: float) -> None:
    centre, noisy = 0.4, 1.1
    denoiser = on_line([centre], [variance], [1.0])
    # The probability flow keeps (x − centre)/√(variance + sigma²); the last jump is the posterior mean.
    limit = centre + (noisy - centre) * variance / math.sqrt((variance + SIGMA**2) * (variance + SMALLEST**2))
    errors = []
    for intervals in (64, 128, 256):
        levels = select_sigmas(denoiser, SIGMA, intervals + 1, StepRule.LOG_SIGMA)
        x = torch.full((1, 1, 1, 1), noisy, dtype=torch.float64)
        errors.append(float(posterior_sample(denoiser, x, levels, frozen(1), eta=0.0, clip=False)) - limit)
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2.0, rel=0.05)


PLANE = (1, 1, 2)
# Two components overlap, and the third is narrow and tilted.
CENTRES = torch.tensor([[0.1, 0.3], [0.5, 0.8], [0.9, 0.2]], dtype=torch.float64)
COVARIANCES = torch.tensor(
    [[[0.02, 0.01], [0.01, 0.02]], [[0.03, 0.0], [0.0, 0.01]], [[0.01, -0.008], [-0.008, 0.01]]],
    dtype=torch.float64,
)
WEIGHTS = [0.4, 0.3, 0.3]
OBSERVED = np.array([0.55, 0.45])


def on_plane() -> GaussianMixtureDenoiser:
    denoiser = GaussianMixtureDenoiser(CENTRES.reshape(3, *PLANE), COVARIANCES, WEIGHTS)
    denoiser.sigma_min = 0.005
    return denoiser


@functools.cache
def plane_samples(count: int, steps: int, seed: int) -> Tensor:
    denoiser = on_plane()
    noisy = torch.tensor(OBSERVED).reshape(1, *PLANE).expand(count, -1, -1, -1)
    levels = select_sigmas(denoiser, SIGMA, steps, StepRule.LOG_SIGMA)
    return posterior_sample(denoiser, noisy, levels, frozen(count, seed), clip=False).flatten(1)


def plane_posterior() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Shares, means and covariances of the posterior's components: Bayes' rule, by numpy."""
    shares, means, covariances = [], [], []
    for centre, covariance, weight in zip(CENTRES.numpy(), COVARIANCES.numpy(), WEIGHTS, strict=True):
        total = covariance + SIGMA**2 * np.eye(2)
        shares.append(weight * stats.multivariate_normal.pdf(OBSERVED, centre, total))
        gain = covariance @ np.linalg.inv(total)
        means.append(centre + gain @ (OBSERVED - centre))
        covariances.append(covariance - gain @ covariance)
    return np.array(shares) / sum(shares), np.array(means), np.array(covariances)


def soft_shares(samples: Tensor) -> Tensor:
    """Component probabilities of clean points; their mean over the posterior is the posterior's shares."""
    return on_plane().component_posterior(samples.reshape(-1, *PLANE), 1e-6)[0]


@pytest.mark.slow
def test_posterior_samples_have_the_moments_of_the_posterior() -> None:
    share, mean, covariance = plane_posterior()
    assert share.min() > 0.15
    count = 4000
    samples = plane_samples(count, 600, seed=1)
    average = share @ mean
    offset = mean - average
    spread = np.einsum("k,kij->ij", share, covariance + offset[:, :, None] * offset[:, None, :])
    centred = samples - torch.from_numpy(average)
    values = torch.cat(
        [
            samples,
            centred[:, :1] ** 2,
            centred[:, 1:] ** 2,
            centred[:, :1] * centred[:, 1:],
            soft_shares(samples),
        ],
        1,
    )
    exact = torch.tensor([*average, spread[0, 0], spread[1, 1], spread[0, 1], *share])
    z = (values.mean(0) - exact) / (values.std(0) / math.sqrt(count))
    # Eight tests; the bias left at 600 steps is under 0.3 deviations, so each raises a false alarm below
    # 3e-6 and all below 3e-5.
    assert float(z.abs().max()) < 5.0


def kolmogorov_smirnov(samples: Tensor, direction: np.ndarray[Any, Any]) -> float:
    share, mean, covariance = plane_posterior()

    def distribution(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        deviations = np.sqrt(np.einsum("i,kij,j->k", direction, covariance, direction))
        parts = [
            w * stats.norm.cdf(x, m @ direction, d) for w, m, d in zip(share, mean, deviations, strict=True)
        ]
        return np.asarray(np.sum(parts, axis=0))

    return float(stats.kstest(samples.numpy() @ direction, distribution).pvalue)


DIRECTIONS = [np.array([math.cos(angle), math.sin(angle)]) for angle in (0.0, 0.7, math.pi / 2, 2.5)]


@pytest.mark.slow
def test_kolmogorov_smirnov_does_not_reject_many_steps_and_rejects_few() -> None:
    # Four directions at 1e-5 each: a false alarm in 4e-5 of seeds, where the law is exact.
    many = plane_samples(4000, 600, seed=1)
    assert min(kolmogorov_smirnov(many, direction) for direction in DIRECTIONS) > 1e-5
    # The same test on as many samples has the power to see the bias of few steps.
    for steps in (2, 4, 8):
        few = plane_samples(4000, steps, seed=2)
        assert min(kolmogorov_smirnov(few, direction) for direction in DIRECTIONS) < 1e-5


@pytest.mark.slow
def test_sampled_shares_approach_the_posterior_as_steps_grow() -> None:
    share, _, _ = plane_posterior()
    errors = [
        float(
            (soft_shares(plane_samples(20_000, steps, seed=3)).mean(0) - torch.from_numpy(share)).abs().max()
        )
        for steps in (4, 8, 64)
    ]
    # The expected errors, 0.17, 0.036 and 0.004, lie over four deviations of their differences apart:
    # a false alarm in under 1e-4 of seeds.
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < errors[0] / 8
