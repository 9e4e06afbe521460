"""Noise schedules: which noise level a timestep of a network stands for, in the network's own units.

Everywhere σ' = √(1/ᾱ − 1) is the noise level relative to data in the network's range: for pixels scaled to
[−1, 1] it is twice the sigma of [0, 1] pixels. The network adapter makes that conversion, not this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from diffproof.checks import (
    as_numbers,
    check_at_least,
    check_known,
    check_not_negative,
    check_positive,
    check_probability,
    check_tensor,
)
from diffproof.errors import ArgumentError

# A table of more would be of no use, and take gigabytes.
MOST_TIMESTEPS = 100_000


class Schedule(Protocol):
    """What a network adapter asks of a schedule."""

    @property
    def sigmas(self) -> Tensor | None:
        """Trained noise levels σ', ascending float64, or None if continuous."""

    @property
    def origin(self) -> str | None:
        """The name and settings that it is computed from, for hashes; None for `sigmas` that are given."""

    @property
    def first_timestep(self) -> int:
        """The number of the lowest level in the model's own counting."""

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Smallest and largest σ'."""

    def timestep(self, sigma: Tensor) -> Tensor:
        """What the network is conditioned on at σ' (float64 in, float64 or int64 out)."""

    def start_timestep(self, sigma: float) -> float:
        """The timestep, in the model's own counting and maybe fractional, at which the noise level is σ'."""

    def input_scale(self, sigma: Tensor) -> Tensor:
        """Factor from image + σ'·N(0, I) to what the network takes."""


@dataclass(frozen=True)
class DiscreteSchedule:
    """A variance-preserving chain of T timesteps, given by its ᾱ table (Ho et al. 2020, eq. 4).

    Args:
        alphas_cumprod: ᾱ at the T timesteps, strictly decreasing in (0, 1).
        first_timestep: how the authors count the first of them: 0 (guided-diffusion) or 1 (papers, and
            DensePure's CIFAR-10 code). Only the step rules depend on it; networks are indexed from 0.
        analytic: σ' to fractional 1-based timestep where ᾱ has a formula; None uses the nearest in the table.
        origin: the name and settings that ᾱ is computed from: another machine's cosine may differ in the last
            bit, so hashes hold these in its place. None where the table itself is given.

    Raises:
        ValueError: ᾱ is not strictly decreasing in (0, 1), or β lies outside (0, 1).
    """

    alphas_cumprod: Tensor
    first_timestep: int = 0
    analytic: Callable[[float], float] | None = None
    origin: str | None = None
    sigmas: Tensor = field(init=False)

    def __post_init__(self) -> None:
        bar = check_tensor("alphas_cumprod", self.alphas_cumprod).double()
        if bar.ndim != 1 or len(bar) == 0:
            raise ArgumentError("alphas_cumprod", f"expected a table of ᾱ, got shape {tuple(bar.shape)}")
        if not bool(((bar > 0) & (bar < 1)).all()) or not bool((bar.diff() < 0).all()):
            raise ArgumentError("alphas_cumprod", "expected strictly decreasing values in (0, 1)")
        object.__setattr__(self, "alphas_cumprod", bar)
        object.__setattr__(self, "sigmas", torch.sqrt(1 / bar - 1))

    @classmethod
    def from_betas(
        cls, betas: Tensor | Sequence[float], first_timestep: int = 0, *, origin: str | None = None
    ) -> DiscreteSchedule:
        """From the chain's β table: ᾱ_t = Π(1 − β); other arguments as of the class."""
        table = as_numbers("betas", betas, torch.float64)
        if table.ndim != 1 or len(table) == 0:
            raise ArgumentError("betas", f"expected a table of β, got shape {tuple(table.shape)}")
        if not bool(((table > 0) & (table < 1)).all()):
            raise ArgumentError(
                "betas", f"expected values in (0, 1), got {float(table.min())} to {float(table.max())}"
            )
        return cls(torch.cumprod(1 - table, 0), first_timestep, origin=origin)

    @classmethod
    def single(cls, sigma: float) -> DiscreteSchedule:
        """Of one noise level.

        Args:
            sigma: σ' > 0, in the network's own units.

        Raises:
            ValueError: it is out of range.
        """
        level = check_positive("sigma", sigma)
        return cls(torch.tensor([1 / (1 + level**2)], dtype=torch.float64), origin=f"single {level!r}")

    @classmethod
    def linear(cls, timesteps: int = 1000, start: float = 1e-4, end: float = 0.02) -> DiscreteSchedule:
        """β linear from start to end (Ho et al. 2020).

        Args:
            timesteps: T ≥ 1.
            start: β of the first timestep, in (0, 1).
            end: β of the last one, in (0, 1).

        Raises:
            ValueError: an argument is out of range.
        """
        check_at_least("timesteps", timesteps, 1, MOST_TIMESTEPS)
        check_probability("start", start)
        check_probability("end", end)
        betas = torch.linspace(start, end, timesteps, dtype=torch.float64)
        return cls.from_betas(betas, origin=_origin("linear", timesteps, start=start, end=end))

    @classmethod
    def scaled_linear(
        cls, timesteps: int = 1000, start: float = 0.00085, end: float = 0.012
    ) -> DiscreteSchedule:
        """√β linear from √start to √end (latent diffusion).

        Args:
            timesteps: T ≥ 1.
            start: β of the first timestep, in (0, 1).
            end: β of the last one, in (0, 1).

        Raises:
            ValueError: an argument is out of range.
        """
        check_at_least("timesteps", timesteps, 1, MOST_TIMESTEPS)
        check_probability("start", start)
        check_probability("end", end)
        roots = torch.linspace(math.sqrt(start), math.sqrt(end), timesteps, dtype=torch.float64)
        return cls.from_betas(roots**2, origin=_origin("scaled_linear", timesteps, start=start, end=end))

    @classmethod
    def cosine(
        cls, timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999, first_timestep: int = 0
    ) -> DiscreteSchedule:
        """ᾱ(t) ∝ cos²(π/2·(t/T + offset)/(1 + offset)), β capped (Nichol & Dhariwal 2021, eq. 17).

        Args:
            timesteps: T ≥ 1.
            offset: keeps β from being too small at the first timesteps; the paper's s.
            max_beta: the largest β, in (0, 1).
            first_timestep: see DiscreteSchedule.

        Raises:
            ValueError: an argument is out of range.
        """
        check_at_least("timesteps", timesteps, 1, MOST_TIMESTEPS)
        check_not_negative("offset", offset)
        check_probability("max_beta", max_beta)
        time = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        bar = torch.cos((time + offset) / (1 + offset) * math.pi / 2) ** 2
        betas = torch.clamp(1 - bar[1:] / bar[:-1], max=max_beta)

        def analytic(sigma: float) -> float:
            # ᾱ = 1/(1 + σ'²) solved for t; cos(π/2·offset/(1 + offset)) is √ of the formula's value at t = 0.
            at_zero = math.cos(math.pi / 2 * offset / (1 + offset))
            angle = math.asin(at_zero / math.sqrt(1 + sigma**2))
            return timesteps * (1 - 2 * (1 + offset) / math.pi * angle)

        origin = _origin("cosine", timesteps, offset=offset, max_beta=max_beta)
        return cls(torch.cumprod(1 - betas, 0), first_timestep, analytic, origin)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Smallest and largest trained σ'."""
        return float(self.sigmas[0]), float(self.sigmas[-1])

    def timestep(self, sigma: Tensor) -> Tensor:
        """0-based index of the trained level nearest to σ'; ties go to the lower."""
        grid = self.sigmas.to(sigma.device)
        above = torch.searchsorted(grid, sigma).clamp(1, len(grid) - 1) if len(grid) > 1 else None
        if above is None:
            return torch.zeros_like(sigma, dtype=torch.int64)
        return torch.where(sigma - grid[above - 1] <= grid[above] - sigma, above - 1, above)

    def start_timestep(self, sigma: float) -> float:
        """The analytic timestep where there is a formula (cosine), else that of the nearest level."""
        if self.analytic is not None:
            return self.analytic(sigma) - 1 + self.first_timestep
        return int(self.timestep(torch.tensor(sigma, dtype=torch.float64))) + self.first_timestep

    def input_scale(self, sigma: Tensor) -> Tensor:
        """1/√(1 + σ'²), exactly √ᾱ on the grid."""
        return torch.rsqrt(1 + sigma**2)


def _origin(name: str, timesteps: int, **settings: float) -> str:
    """A schedule as hashes have it."""
    values = "".join(f", {setting} {float(value)!r}" for setting, value in settings.items())
    return f"{name}, timesteps {int(timesteps)}{values}"


@dataclass(frozen=True)
class VariancePreservingSchedule:
    """Continuous VP-SDE with β(t) = β_min + t(β_max − β_min) on (0, 1] (Song et al. 2021, eq. 11, 32).

    σ'(t)² = exp(∫β) − 1.

    Args:
        beta_min: β at time 0, ≥ 0.
        beta_max: β at time 1, > beta_min.
        smallest_time: the time of the lowest noise level, in (0, 1).
        time_scale: factor from the time to what the network is conditioned on.

    Raises:
        ValueError: an argument is out of range.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    smallest_time: float = 1e-5
    time_scale: float = 999.0
    sigmas: None = field(default=None, init=False)
    first_timestep: int = field(default=0, init=False)

    @property
    def origin(self) -> str:
        """Its settings."""
        return repr(self)

    def __post_init__(self) -> None:
        check_not_negative("beta_min", self.beta_min)
        check_positive("beta_max", self.beta_max)
        if self.beta_min >= self.beta_max:
            raise ArgumentError(
                "beta_min", f"expected 0 ≤ beta_min < beta_max, got {self.beta_min}, {self.beta_max}"
            )
        check_probability("smallest_time", self.smallest_time)
        check_positive("time_scale", self.time_scale)

    def sigma(self, time: Tensor) -> Tensor:
        """σ' at a time in (0, 1]."""
        integral = self.beta_min * time + 0.5 * (self.beta_max - self.beta_min) * time**2
        return torch.sqrt(torch.expm1(integral))

    def time(self, sigma: Tensor) -> Tensor:
        """The time at which the noise level is σ': the positive root of ∫β = log(1 + σ'²)."""
        integral = torch.log1p(sigma**2)
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))

    @property
    def sigma_range(self) -> tuple[float, float]:
        """σ' at the smallest time and at 1."""
        low, high = self.sigma(torch.tensor([self.smallest_time, 1.0], dtype=torch.float64)).tolist()
        return low, high

    def start_timestep(self, sigma: float) -> float:
        """The time itself."""
        return float(self.time(torch.tensor(sigma, dtype=torch.float64)))

    def timestep(self, sigma: Tensor) -> Tensor:
        """time·time_scale."""
        return self.time(sigma) * self.time_scale

    def input_scale(self, sigma: Tensor) -> Tensor:
        """1/√(1 + σ'²)."""
        return torch.rsqrt(1 + sigma**2)


@dataclass(frozen=True)
class VarianceExplodingSchedule:
    """Continuous VE-SDE: σ'(t) = σ_low·(σ_high/σ_low)^t on [0, 1] (Song et al. 2021, eq. 30).

    The network sees the image unscaled and is conditioned on log σ'.

    Args:
        sigma_low: σ' at time 0, > 0.
        sigma_high: σ' at time 1, > sigma_low.

    Raises:
        ValueError: an argument is out of range.
    """

    sigma_low: float = 0.01
    sigma_high: float = 50.0
    sigmas: None = field(default=None, init=False)
    first_timestep: int = field(default=0, init=False)

    @property
    def origin(self) -> str:
        """Its settings."""
        return repr(self)

    def __post_init__(self) -> None:
        check_positive("sigma_low", self.sigma_low)
        check_positive("sigma_high", self.sigma_high)
        if not self.sigma_low < self.sigma_high:
            raise ArgumentError(
                "sigma_high",
                f"expected a finite number > sigma_low = {self.sigma_low}, got {self.sigma_high}",
            )

    def sigma(self, time: Tensor) -> Tensor:
        """σ' at a time in [0, 1]."""
        return self.sigma_low * (self.sigma_high / self.sigma_low) ** time

    def time(self, sigma: Tensor) -> Tensor:
        """The time at which the noise level is σ'."""
        return torch.log(sigma / self.sigma_low) / math.log(self.sigma_high / self.sigma_low)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The two ends."""
        return self.sigma_low, self.sigma_high

    def start_timestep(self, sigma: float) -> float:
        """The time itself."""
        return float(self.time(torch.tensor(sigma, dtype=torch.float64)))

    def timestep(self, sigma: Tensor) -> Tensor:
        """Log σ', the conditioning of NCSN++."""
        return torch.log(sigma)

    def input_scale(self, sigma: Tensor) -> Tensor:
        """1: noise is added to the image as it is."""
        return torch.ones_like(sigma)


_MOST_TIMESTEPS = 10**6
SCHEDULES: dict[str, Callable[..., DiscreteSchedule]] = {
    "linear": DiscreteSchedule.linear,
    "scaled_linear": DiscreteSchedule.scaled_linear,
    "cosine": DiscreteSchedule.cosine,
}


def named_schedule(name: str, **settings: float) -> DiscreteSchedule:
    """A discrete schedule by name, as weights files record it; "single" is that of one noise level.

    Raises:
        ValueError: unknown name (the nearest are listed) or bad settings.
    """
    if name == "single":
        return DiscreteSchedule.single(**settings)
    schedule = check_known("schedule", name, SCHEDULES)
    if settings.get("timesteps", 0) > _MOST_TIMESTEPS:
        raise ArgumentError(
            "timesteps", f"expected at most {_MOST_TIMESTEPS:,}, got {settings['timesteps']:,}"
        )
    return schedule(**settings)
