"""What hashes hold of a denoiser: all that defines it, and nothing that a machine computes by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.denoisers.edm import EDMSchedule
from diffproof.denoisers.schedules import (
    DiscreteSchedule,
    Schedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)
from diffproof.weights import hash_tensors
from helpers.denoisers import mixture
from helpers.images import pictures
from helpers.libm import other_libm


def hashed(denoiser: dp.Denoiser) -> str:
    return hash_tensors(denoiser.state_dict(), denoiser.describe())


def network(schedule: Schedule, weight: float = 0.5) -> dp.NetworkDenoiser:
    layer = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(layer.weight, weight)
    return dp.NetworkDenoiser(layer, schedule)


def cosines(timesteps: int = 20, **settings: Any) -> DiscreteSchedule:
    """A user's own table, computed where the code runs."""
    bar = torch.cos(torch.linspace(0.1, 1.5, timesteps, dtype=torch.float64)) ** 2
    return DiscreteSchedule(bar, **settings)


class Own(VariancePreservingSchedule):
    """A schedule of a user's, which says nothing of its origin."""

    origin = None  # type: ignore[assignment]


class Silent:
    """A schedule of a user's that Python shows by its address."""

    sigmas, first_timestep = None, 0

    def __init__(self, high: float = 1.0) -> None:
        self.high = high

    @property
    def sigma_range(self) -> tuple[float, float]:
        low, high = torch.exp(torch.tensor([-5.0, self.high], dtype=torch.float64)).tolist()
        return low, high


@dataclass
class OfUser(dp.Denoiser):
    """A user's denoiser with levels that its code computes."""

    count: int = 6

    def __post_init__(self) -> None:
        super().__init__()
        self.sigmas = torch.exp(torch.linspace(-3, 1, self.count, dtype=torch.float64))


def correlated(covariance: float = 0.3) -> dp.GaussianMixtureDenoiser:
    matrix = torch.tensor([[1.0, covariance], [covariance, 2.0]])
    return dp.GaussianMixtureDenoiser(torch.zeros(2, 1, 1, 2), matrix.expand(2, 2, 2), [0.25, 0.75])


# Denoisers of every kind, each with another one that must not have its hash.
DENOISERS: dict[str, tuple[Callable[[], dp.Denoiser], Callable[[], dp.Denoiser]]] = {
    "linear": (
        lambda: network(DiscreteSchedule.linear(50)),
        lambda: network(DiscreteSchedule.linear(50, end=0.021)),
    ),
    "another weight": (
        lambda: network(DiscreteSchedule.linear(50)),
        lambda: network(DiscreteSchedule.linear(50), weight=0.5 + 2**-24),
    ),
    "scaled linear": (
        lambda: network(DiscreteSchedule.scaled_linear(50)),
        lambda: network(DiscreteSchedule.scaled_linear(50, start=0.0008500000001)),
    ),
    "cosine": (
        lambda: network(DiscreteSchedule.cosine(50)),
        lambda: network(DiscreteSchedule.cosine(50, offset=0.008000000001)),
    ),
    "cosine, other β": (
        lambda: network(DiscreteSchedule.cosine(50)),
        lambda: network(DiscreteSchedule.cosine(50, max_beta=0.99)),
    ),
    "cosine, counted from 1": (
        lambda: network(DiscreteSchedule.cosine(50)),
        lambda: network(DiscreteSchedule.cosine(50, first_timestep=1)),
    ),
    "a table": (lambda: network(cosines()), lambda: network(cosines(21))),
    "a table counted from 1": (lambda: network(cosines()), lambda: network(cosines(first_timestep=1))),
    "betas": (
        lambda: network(DiscreteSchedule.from_betas([0.1, 0.2])),
        lambda: network(DiscreteSchedule.from_betas([0.1, 0.200001])),
    ),
    "VP": (
        lambda: network(VariancePreservingSchedule()),
        lambda: network(VariancePreservingSchedule(beta_max=20.000001)),
    ),
    "VE": (
        lambda: network(VarianceExplodingSchedule()),
        lambda: network(VarianceExplodingSchedule(sigma_high=51.0)),
    ),
    "EDM": (lambda: network(EDMSchedule()), lambda: network(EDMSchedule(sigma_high=81.0))),
    "own schedule": (lambda: network(Own()), lambda: network(Own(beta_max=21.0))),
    "own schedule without a text": (
        lambda: network(Silent()),  # type: ignore[arg-type]
        lambda: network(Silent(1.1)),  # type: ignore[arg-type]
    ),
    "own denoiser": (OfUser, lambda: OfUser(7)),
    "mixture": (correlated, lambda: correlated(0.30000003)),
    "mixture with levels": (mixture, lambda: mixture(sigmas=None)),
    "empirical": (
        lambda: dp.load_denoiser("empirical:digits:test:50"),
        lambda: dp.load_denoiser("empirical:digits:test:51"),
    ),
    "empirical with levels": (
        lambda: dp.EmpiricalDenoiser(pictures(3), sigmas=[0.1, 0.2]),
        lambda: dp.EmpiricalDenoiser(pictures(3), sigmas=[0.1, 0.20001]),
    ),
    "packaged": (lambda: dp.load_denoiser("digits"), lambda: dp.load_denoiser("cifar10")),
}


@pytest.mark.parametrize("name", DENOISERS)
def test_a_hash_is_the_same_on_any_machine_and_another_for_another_denoiser(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make, other = DENOISERS[name]
    here = make()
    expected = hashed(here)
    assert hashed(other()) != expected
    other_libm(monkeypatch)
    there = make()
    assert hashed(there) == expected
    # What the machines compute differs, or there is nothing that they do.
    given = name in ("mixture", "mixture with levels", "empirical with levels", "VE", "EDM", "betas")
    levels, moved = here.sigmas, there.sigmas
    if levels is None or moved is None:
        assert given or (here.sigma_min, here.sigma_max) != (there.sigma_min, there.sigma_max)
    else:
        assert given or not torch.equal(levels, moved)
        torch.testing.assert_close(moved, levels, rtol=1e-9, atol=0)


def test_a_mixture_is_hashed_by_what_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    here = correlated()
    other_libm(monkeypatch)
    there = correlated()
    assert not torch.equal(here.axes, there.axes)
    assert not torch.equal(here.log_weights, there.log_weights)
    noisy = torch.rand(3, 1, 1, 2, dtype=torch.float64)

    def estimate(denoiser: dp.Denoiser) -> Tensor:
        estimated: Tensor = denoiser(noisy, 0.5)
        return estimated

    torch.testing.assert_close(estimate(here), estimate(there))
