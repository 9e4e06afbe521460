"""Distributions of finitely many points, such as a training set (Xiao et al. 2023, Theorem 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffproof.denoisers.gaussian_mixture import GaussianMixtureDenoiser
from diffproof.errors import ArgumentError
from diffproof.theory.densities import (
    Density,
    GaussianMixture,
    as_labels,
    as_log_weights,
    as_table,
    exact_denoiser,
    noise_variance,
)


class FiniteSupport(Density):
    """p(x0) with masses at M points; it has no density.

    A point given more than once counts once, where it is first, with the sum of its masses.

    Args:
        points: M×D.
        weights: M positive masses that sum to 1 within 1e-6, which is then divided out; None for equal ones.
        labels: M integers ≥ 0, the class of each point, or None.

    Attributes:
        points: M×D, no two the same.
        log_weights: M log masses.
        labels: M, or None.

    Raises:
        ValueError: shapes do not fit, a number is not finite, weights are not positive or do not sum to 1, a
            label is no integer ≥ 0, or a point has two labels.
    """

    def __init__(
        self,
        points: Tensor,
        weights: Tensor | Sequence[float] | None = None,
        labels: Tensor | Sequence[int] | None = None,
    ) -> None:
        self.points = as_table("points", points)
        count, self.dimension = points.shape
        self.log_weights = as_log_weights(weights, count)
        self.labels = as_labels(labels, count)
        distinct, group = torch.unique(self.points, dim=0, return_inverse=True)
        if len(distinct) < count:
            self._merge(group, len(distinct))

    def _merge(self, group: Tensor, groups: int) -> None:
        """Make the points of each group one."""
        count = len(group)
        first = torch.full((groups,), count).scatter_reduce(0, group, torch.arange(count), "amin")
        if self.labels is not None and bool((clash := self.labels != self.labels[first][group]).any()):
            later = int(clash.nonzero()[0, 0])
            raise ArgumentError(
                "labels",
                f"expected one label a point, got points {int(first[group[later]])} and {later}"
                f" at the same place with labels {int(self.labels[first[group[later]]])}"
                f" and {int(self.labels[later])}",
            )
        masses = torch.zeros(groups, dtype=torch.float64).index_add(0, group, self.log_weights.exp())
        kept, order = first.sort()
        self.points, self.log_weights = self.points[kept], masses[order].log()
        self.labels = None if self.labels is None else self.labels[kept]

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Independent samples, count×D."""
        return self.points[self._choose(count, generator)]

    def diffused(self, sigma: float) -> GaussianMixture:
        """Isotropic components of variance sigma² at the points."""
        variances = torch.full((len(self.points),), noise_variance(sigma), dtype=torch.float64)
        mixture = GaussianMixture(self.points, variances, labels=self.labels)
        return mixture._with(log_weights=self.log_weights)

    def posterior(self, noisy: Tensor, sigma: float) -> FiniteSupport:
        """Masses ∝ p(x)·exp(−‖x − noisy‖²/(2·sigma²)) at the same points."""
        joint = self.diffused(sigma).component_log_densities(self.check_noisy(noisy)[None])
        return self._with(log_weights=torch.log_softmax(joint[0], dim=0))

    def denoiser(
        self, image_shape: tuple[int, int, int] | None = None, sigmas: Tensor | None = None
    ) -> GaussianMixtureDenoiser:
        """As `Density.denoiser`: that of a mixture whose components have no width."""
        return exact_denoiser(self, self.points, torch.zeros(len(self.points)), image_shape, sigmas)
