from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import integrate

from diffproof.denoisers.schedules import (
    SCHEDULES,
    DiscreteSchedule,
    Schedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
    named_schedule,
)


def float64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# The timesteps of DensePure's code at sigma = 0.25, 0.5, 1 in [0, 1] pixels: σ' is twice that, because the
# networks see [−1, 1]. CIFAR-10 counts from 1, ImageNet from 0.
CIFAR10 = [(0.25, 1159), (0.5, 1984), (1.0, 2810)]
IMAGENET = [(0.25, 144), (0.5, 258), (1.0, 396)]


@pytest.mark.parametrize(("sigma", "timestep"), CIFAR10)
def test_cosine_timesteps_of_densepure(sigma: float, timestep: int) -> None:
    schedule = DiscreteSchedule.cosine(4000, first_timestep=1)
    assert round(schedule.start_timestep(2 * sigma)) == timestep
    # The nearest trained level is the same one; networks are indexed from 0.
    assert int(schedule.timestep(float64(2 * sigma))) == timestep - 1
    # The authors' formula, with ᾱ(0) = cos² of the angle at t = 0, that is sin² of its complement.
    n = 4000 * (
        1 - 2 * 1.008 / math.pi * math.asin(math.sin(math.pi / (2 * 1.008)) / math.sqrt(1 + 4 * sigma**2))
    )
    assert schedule.start_timestep(2 * sigma) == pytest.approx(n, abs=1e-8)
    assert DiscreteSchedule.cosine(4000).start_timestep(2 * sigma) == pytest.approx(n - 1, abs=1e-8)


@pytest.mark.parametrize(("sigma", "timestep"), IMAGENET)
def test_linear_timesteps_of_densepure(sigma: float, timestep: int) -> None:
    schedule = DiscreteSchedule.linear()
    assert schedule.start_timestep(2 * sigma) == timestep
    assert int(schedule.timestep(float64(2 * sigma))) == timestep


@pytest.mark.parametrize(
    ("schedule", "sigma", "timestep"),
    [
        (DiscreteSchedule.cosine(4000), 0.25, 1158),
        (DiscreteSchedule.cosine(4000), 0.5, 1984),
        (DiscreteSchedule.cosine(4000), 1.0, 2809),
        (DiscreteSchedule.linear(), 0.25, 145),
        (DiscreteSchedule.linear(), 0.5, 259),
        (DiscreteSchedule.linear(), 1.0, 396),
    ],
)
def test_smallest_level_above_sigma_is_that_of_dds(
    schedule: DiscreteSchedule, sigma: float, timestep: int
) -> None:
    above = (schedule.sigmas >= 2 * sigma).nonzero()
    assert int(above[0]) == timestep


def test_effective_sigmas_of_dds() -> None:
    assert float(DiscreteSchedule.cosine(4000).sigmas[1158]) / 2 == pytest.approx(0.25012, abs=5e-6)
    assert float(DiscreteSchedule.linear().sigmas[145]) / 2 == pytest.approx(0.25158, abs=5e-6)


@pytest.mark.parametrize("timesteps", [10, 1000, 4000])
@pytest.mark.parametrize(
    ("schedule", "name", "start", "end"),
    [
        (DiscreteSchedule.linear, "linear", 1e-4, 0.02),
        (DiscreteSchedule.scaled_linear, "scaled_linear", 0.00085, 0.012),
        (DiscreteSchedule.cosine, "squaredcos_cap_v2", 1e-4, 0.02),
    ],
)
def test_tables_are_those_of_diffusers(
    schedule: Callable[[int], DiscreteSchedule], name: str, start: float, end: float, timesteps: int
) -> None:
    from diffusers import DDPMScheduler

    other = DDPMScheduler(timesteps, beta_start=start, beta_end=end, beta_schedule=name)
    bar = schedule(timesteps).alphas_cumprod
    assert bar.dtype == torch.float64
    before = torch.cat([float64(1.0), bar[:-1]])
    # diffusers computes in float32, with rounding errors around 1e-7 relative to 1.
    torch.testing.assert_close(1 - bar / before, other.betas.double(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(schedule(timesteps).sigmas, (1 / bar - 1).sqrt(), rtol=1e-14, atol=0)


def test_cosine_is_the_published_formula() -> None:
    bar = DiscreteSchedule.cosine(1000).alphas_cumprod
    # Below the cap on β (the last timestep here), ᾱ telescopes to f(t)/f(0) with 1-based t.
    for t in (1, 2, 500, 900, 999):
        f = [math.cos((time / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for time in (t, 0)]
        assert float(bar[t - 1]) == pytest.approx(f[0] / f[1], rel=1e-9)
    assert float(bar[-1] / bar[-2]) == pytest.approx(0.001, rel=1e-9)


@pytest.mark.parametrize("index", [0, 1, 57, 500, 998])
def test_cosine_formula_inverts_its_table(index: int) -> None:
    schedule = DiscreteSchedule.cosine(1000, first_timestep=1)
    assert schedule.start_timestep(float(schedule.sigmas[index])) == pytest.approx(index + 1, abs=1e-6)


def test_tables_from_betas_and_lists() -> None:
    schedule = DiscreteSchedule.from_betas([0.1, 0.2, 0.5], first_timestep=1)
    torch.testing.assert_close(schedule.alphas_cumprod, float64(0.9, 0.72, 0.36))
    torch.testing.assert_close(schedule.sigmas, float64(1 / 3, math.sqrt(0.28 / 0.72), 4 / 3))
    assert schedule.sigma_range == pytest.approx((1 / 3, 4 / 3))
    assert schedule.start_timestep(0.34) == 1
    assert schedule.start_timestep(9.0) == 3


def test_nearest_ties_go_to_the_lower() -> None:
    # ᾱ = 1/(1 + σ'²) at σ' = 1, 3, 7; every value here is exact in binary or rounds back to it.
    schedule = DiscreteSchedule(float64(0.5, 0.1, 0.02))
    assert schedule.sigmas.tolist() == [1.0, 3.0, 7.0]
    wanted = float64(0.1, 1.0, 1.99, 2.0, 2.01, 3.0, 5.0, 5.01, 7.0, 90.0)
    assert schedule.timestep(wanted).tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert schedule.start_timestep(2.0) == 0


def test_single_level() -> None:
    schedule = DiscreteSchedule(float64(0.5))
    assert schedule.timestep(float64(0.3, 1.0, 7.0)).tolist() == [0, 0, 0]
    assert schedule.sigma_range == (1.0, 1.0)


def test_nearest_is_the_brute_force_nearest() -> None:
    schedule = DiscreteSchedule.linear()
    low, high = schedule.sigma_range
    sigma = torch.linspace(low, high, 2003, dtype=torch.float64)
    brute = (schedule.sigmas[None] - sigma[:, None]).abs().argmin(1)
    assert torch.equal(schedule.timestep(sigma), brute)


@pytest.mark.parametrize("schedule", [DiscreteSchedule.linear(), DiscreteSchedule.cosine(400)])
def test_input_scale_is_the_root_of_alpha_bar(schedule: DiscreteSchedule) -> None:
    torch.testing.assert_close(schedule.input_scale(schedule.sigmas) ** 2, schedule.alphas_cumprod)


VP = VariancePreservingSchedule()
VE = VarianceExplodingSchedule(0.02, 40.0)


@pytest.mark.parametrize(("low", "high"), [(0.1, 20.0), (0.0, 5.0), (2.0, 3.0)])
@pytest.mark.parametrize("time", [1e-5, 0.01, 0.1, 0.5, 1.0])
def test_vp_is_the_integral_of_beta(low: float, high: float, time: float) -> None:
    schedule = VariancePreservingSchedule(low, high)
    integral, _ = integrate.quad(lambda t: low + t * (high - low), 0.0, time, epsabs=0, epsrel=1e-12)
    sigma = schedule.sigma(float64(time))
    assert float(sigma**2) == pytest.approx(math.expm1(integral), rel=1e-10)
    # The chain scales by √ᾱ = exp(−∫β/2).
    assert float(schedule.input_scale(sigma)) == pytest.approx(math.exp(-integral / 2), rel=1e-10)


def test_vp_is_the_limit_of_the_discrete_chain() -> None:
    # Ho et al.'s chain has β_t = β(t/T)/T; its ᾱ tends to exp(−∫β) (Song et al. 2021, appendix B).
    timesteps = 100_000
    time = torch.arange(1, timesteps + 1, dtype=torch.float64) / timesteps
    chain = DiscreteSchedule.from_betas((0.1 + time * 19.9) / timesteps)
    at = [timesteps // 100, timesteps // 3, timesteps - 1]
    torch.testing.assert_close(VP.sigma(time[at]), chain.sigmas[at], rtol=2e-3, atol=0)


@pytest.mark.parametrize("time", [1e-3, 0.3, 0.7, 1.0])
def test_ve_solves_its_equation(time: float) -> None:
    # dx = σ_low (σ_high/σ_low)^t √(2 log(σ_high/σ_low)) dw (Song et al. 2021, eq. 30) adds its squared
    # diffusion to the variance, which starts at σ_low².
    ratio = 40.0 / 0.02

    def diffusion(t: float) -> float:
        return float((0.02 * ratio**t) ** 2 * 2 * math.log(ratio))

    added, _ = integrate.quad(diffusion, 0.0, time, epsabs=0, epsrel=1e-12)
    assert float(VE.sigma(float64(time)) ** 2) == pytest.approx(0.02**2 + added, rel=1e-10)


@pytest.mark.parametrize("schedule", [VP, VariancePreservingSchedule(0.0, 8.0), VE])
def test_time_inverts_sigma(schedule: VariancePreservingSchedule | VarianceExplodingSchedule) -> None:
    time = torch.logspace(-5, 0, 50, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.sigma(time)), time, rtol=1e-9, atol=1e-12)
    assert schedule.start_timestep(float(schedule.sigma(float64(0.4)))) == pytest.approx(0.4, abs=1e-10)


def test_continuous_ranges_and_conditioning() -> None:
    assert VP.sigma_range == pytest.approx(
        (math.sqrt(math.expm1(0.1e-5 + 0.5 * 19.9e-10)), math.sqrt(math.expm1(10.05)))
    )
    assert VE.sigma_range == (0.02, 40.0)
    # score_sde conditions VP networks on 999·t and VE networks on log σ', which sees unscaled images.
    sigma = VP.sigma(float64(0.25, 0.5))
    torch.testing.assert_close(VP.timestep(sigma), float64(249.75, 499.5))
    torch.testing.assert_close(VE.timestep(float64(1.0, math.e)), float64(0.0, 1.0))
    assert VE.input_scale(float64(0.5, 30.0)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("schedule", [DiscreteSchedule.linear(), VP, VE])
def test_continuous_schedules_have_no_grid(schedule: Schedule) -> None:
    assert (schedule.sigmas is None) == (schedule is VP or schedule is VE)
    low, high = schedule.sigma_range
    assert 0 < low < high


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_named_schedules(name: str) -> None:
    assert torch.equal(named_schedule(name, timesteps=50).sigmas, SCHEDULES[name](50).sigmas)


def test_named_schedule_settings() -> None:
    torch.testing.assert_close(
        named_schedule("linear", timesteps=3, start=0.1, end=0.3).alphas_cumprod, float64(0.9, 0.72, 0.504)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiscreteSchedule(float64()), "alphas_cumprod: expected a table"),
        (
            lambda: DiscreteSchedule(float64(0.5, 0.4)[None]),
            r"alphas_cumprod: expected a table of ᾱ, got shape",
        ),
        (lambda: DiscreteSchedule(float64(0.5, 0.5)), "alphas_cumprod: expected strictly decreasing"),
        (lambda: DiscreteSchedule(float64(0.4, 0.5)), "alphas_cumprod: expected strictly decreasing"),
        (lambda: DiscreteSchedule(float64(1.0, 0.5)), "alphas_cumprod: expected strictly decreasing"),
        (lambda: DiscreteSchedule(float64(0.5, 0.0)), "alphas_cumprod: expected strictly decreasing"),
        (lambda: DiscreteSchedule(float64(0.5, math.nan)), "alphas_cumprod: expected strictly decreasing"),
        (lambda: DiscreteSchedule.from_betas([]), "betas: expected a table"),
        (
            lambda: DiscreteSchedule.from_betas([0.1, 1.0]),
            r"betas: expected values in \(0, 1\), got 0.1 to 1.0",
        ),
        (lambda: DiscreteSchedule.from_betas([0.0, 0.1]), "betas: expected values"),
        (lambda: DiscreteSchedule.from_betas([0.1, math.nan]), "betas: expected values"),
        (lambda: DiscreteSchedule.linear(0), "timesteps: expected an integer ≥ 1, got 0"),
        (lambda: DiscreteSchedule.linear(10, -0.1), "start: expected a number in"),
        (lambda: DiscreteSchedule.scaled_linear(0), "timesteps: expected an integer ≥ 1, got 0"),
        (lambda: DiscreteSchedule.cosine(0), "timesteps: expected an integer ≥ 1, got 0"),
        (lambda: DiscreteSchedule.cosine(10, max_beta=1.0), "max_beta: expected a number in"),
        (
            lambda: VariancePreservingSchedule(3.0, 2.0),
            "beta_min: expected 0 ≤ beta_min < beta_max, got 3.0, 2.0",
        ),
        (lambda: VariancePreservingSchedule(-0.1, 2.0), "beta_min: expected"),
        (lambda: VariancePreservingSchedule(0.1, math.inf), "beta_max: expected a finite"),
        (
            lambda: VariancePreservingSchedule(smallest_time=0.0),
            r"smallest_time: expected a number in \(0, 1\)",
        ),
        (lambda: VariancePreservingSchedule(smallest_time=1.0), "smallest_time: expected"),
        (lambda: VarianceExplodingSchedule(0.0), "sigma_low: expected a finite number > 0"),
        (
            lambda: VarianceExplodingSchedule(2.0, 1.0),
            "sigma_high: expected a finite number > sigma_low = 2.0",
        ),
        (lambda: VarianceExplodingSchedule(1.0, math.inf), "sigma_high: expected"),
        (lambda: named_schedule("cosin"), "schedule: unknown name 'cosin'; did you mean cosine"),
        (lambda: named_schedule("linear", timesteps=2.5), "timesteps: expected an integer"),
    ],
)
def test_bad_settings(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
