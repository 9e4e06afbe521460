"""Distributions with exact diffused densities, scores and posteriors (Xiao et al. 2023, section 3).

Everywhere x_σ = x0 + σ·N(0, I). The paper's x_t = √α_t·x0 + √(1−α_t)·ε is √α_t·x_σ at σ² = (1−α_t)/α_t.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from diffproof.checks import as_numbers, check_at_least, check_positive, check_tensor
from diffproof.denoisers.gaussian_mixture import GaussianMixtureDenoiser
from diffproof.errors import ArgumentError


class Density(ABC):
    """A distribution p(x0) over ℝ^D in float64; points of other floating types are brought to it.

    Attributes:
        dimension: D.
        labels: class of each component or point, int64, or None.
        log_weights: logarithm of the weight of each component or point.
    """

    dimension: int
    labels: Tensor | None
    log_weights: Tensor

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Independent samples, count×D."""

    @abstractmethod
    def diffused(self, sigma: float) -> GaussianMixture:
        """The law p_t of x0 + sigma·N(0, I), with the same labels; sigma > 0."""

    @abstractmethod
    def posterior(self, noisy: Tensor, sigma: float) -> Density:
        """The law of x0 given that x_sigma is `noisy` (Theorem 3.1): p(x)·N(noisy; x, sigma²·I), normalised.

        Args:
            noisy: D numbers, x0 + sigma·N(0, I).
            sigma: noise level > 0.

        Raises:
            ValueError: wrong shape, not finite, or sigma not a finite number > 0.
        """

    @abstractmethod
    def denoiser(
        self, image_shape: tuple[int, int, int] | None = None, sigmas: Tensor | None = None
    ) -> GaussianMixtureDenoiser:
        """The exact denoiser of this distribution, conditional where there are labels.

        Args:
            image_shape: (C, H, W) with C·H·W = D; None for (1, 1, D).
            sigmas: ascending noise levels to pretend a timestep grid; None for continuous.

        Raises:
            ValueError: the shape does not fit, or a class below the largest label is empty.
        """

    def score(self, points: Tensor, sigma: float) -> Tensor:
        """∇ log p_t, the gradient of the log density of x0 + sigma·N(0, I).

        Args:
            points: N×D.
            sigma: noise level > 0; 0 too where the distribution has a density.

        Returns:
            N×D.
        """
        return self.diffused(sigma).score(points, 0.0)

    def posterior_classes(self, noisy: Tensor, sigma: float) -> Tensor:
        """Posterior mass of each class given x_sigma, N×(largest label + 1), rows sum to 1.

        Args:
            noisy: N×D.
            sigma: noise level > 0.

        Raises:
            ValueError: there are no labels, or as `posterior`.
        """
        return self.diffused(sigma).class_shares(noisy)

    def check_points(self, points: Tensor, name: str = "points") -> Tensor:
        """Points N×D in float64, finite; else ValueError."""
        table = check_tensor(name, points).ndim == 2 and points.shape[1] == self.dimension
        if not table or not points.is_floating_point():
            raise ArgumentError(
                name, f"expected N×{self.dimension} floats, got shape {tuple(points.shape)}, {points.dtype}"
            )
        return _finite(name, points.double())

    def check_noisy(self, noisy: Tensor) -> Tensor:
        """One noisy vector of D numbers in float64, finite; else ValueError."""
        if check_tensor("noisy", noisy).ndim != 1:
            raise ArgumentError("noisy", f"expected {self.dimension} numbers, got shape {tuple(noisy.shape)}")
        return self.check_points(noisy[None], "noisy")[0]

    def check_labels(self) -> Tensor:
        """The labels; ValueError where there are none."""
        if self.labels is None:
            raise ArgumentError("labels", "expected a density with labels, got one without")
        return self.labels

    def _choose(self, count: int, generator: torch.Generator) -> Tensor:
        """The component or point that each sample comes from."""
        check_at_least("count", count, 1)
        return torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)

    def _with(self, **values: Any) -> Self:
        other = copy.copy(self)
        other.__dict__.update(values)
        return other


class GaussianMixture(Density):
    """p(x0) = Σ_k w_k·N(μ_k, Σ_k).

    Isotropic components keep K variances and never build K×D×D. Of N points, methods hold N×K numbers for
    isotropic components and N×K×D for others.

    Args:
        means: K×D.
        covariances: K×D×D, symmetric and positive definite; or K variances of isotropic components.
        weights: K positive numbers that sum to 1 within 1e-6, which is then divided out; None for equal ones.
        labels: K integers ≥ 0, the class of each component, or None.

    Attributes:
        means: K×D.
        log_weights: K.
        labels: K, or None.
        variances: K×D, along the axes; K×1 for isotropic components.
        axes: K×D×D, whose columns are orthonormal; None for isotropic components.

    Raises:
        ValueError: shapes do not fit, a number is not finite, a covariance is not symmetric or is singular,
            weights are not positive or do not sum to 1, a label is no integer ≥ 0.
    """

    def __init__(
        self,
        means: Tensor,
        covariances: Tensor,
        weights: Tensor | Sequence[float] | None = None,
        labels: Tensor | Sequence[int] | None = None,
    ) -> None:
        self.means = as_table("means", means)
        count, self.dimension = means.shape
        covariances = _finite("covariances", check_tensor("covariances", covariances).double())
        self.axes: Tensor | None = None
        if covariances.shape == (count,):
            self.variances = covariances[:, None].clone()
        elif covariances.shape == (count, self.dimension, self.dimension):
            skew = (covariances - covariances.mT).abs().amax((1, 2))
            if bool((skew > 1e-10 * covariances.abs().amax((1, 2))).any()):
                raise ArgumentError(
                    "covariances",
                    f"expected symmetric matrices, got component {int(skew.argmax())}"
                    f" off by {float(skew.max()):.3g}",
                )
            self.variances, self.axes = torch.linalg.eigh(covariances)
        else:
            raise ArgumentError(
                "covariances",
                f"expected {count} variances or {count}×{self.dimension}×{self.dimension},"
                f" got shape {tuple(covariances.shape)}",
            )
        # What eigh cannot tell from zero.
        floor = self.variances.amax(1).clamp(min=0) * self.dimension * torch.finfo(torch.float64).eps
        smallest = self.variances.amin(1)
        if bool((singular := smallest <= floor).any()):
            worst = int(singular.nonzero()[0, 0])
            raise ArgumentError(
                "covariances",
                f"expected positive definite matrices, got component {worst}"
                f" with smallest eigenvalue {float(smallest[worst]):.3g}",
            )
        self.log_weights = as_log_weights(weights, count)
        self.labels = as_labels(labels, count)

    @classmethod
    def kernel_density(
        cls, points: Tensor, bandwidth: float, labels: Tensor | Sequence[int] | None = None
    ) -> GaussianMixture:
        """Equal isotropic components round points M×D, of standard deviation bandwidth > 0."""
        as_table("points", points)
        variance = check_positive("bandwidth", bandwidth) ** 2
        return cls(points, torch.full((len(points),), variance, dtype=torch.float64), labels=labels)

    @property
    def covariances(self) -> Tensor:
        """K×D×D, or K variances of isotropic components: the form that the constructor takes."""
        if self.axes is None:
            return self.variances[:, 0]
        return (self.axes * self.variances[:, None]) @ self.axes.mT

    def component_log_densities(self, points: Tensor) -> Tensor:
        """log(w_k·N(x; μ_k, Σ_k)) of points N×D, N×K."""
        points = self.check_points(points)
        if self.axes is None:
            # The other modes of cdist expand the square, which loses small distances far from the origin.
            distance = torch.cdist(points, self.means, compute_mode="donot_use_mm_for_euclid_dist")
            squares = distance.square() / self.variances[:, 0]
        else:
            offsets = torch.einsum("nkd,kde->nke", points[:, None] - self.means, self.axes)
            squares = (offsets.square() / self.variances).sum(-1)
        return self.log_weights + self.log_peaks - 0.5 * squares

    @property
    def log_peaks(self) -> Tensor:
        """log N(μ_k; μ_k, Σ_k), K: the logarithm of the greatest density of each component, unweighted."""
        log_determinants = self.variances.log().expand(-1, self.dimension).sum(1)
        return -0.5 * (self.dimension * math.log(2 * math.pi) + log_determinants)

    def log_density(self, points: Tensor) -> Tensor:
        """log p(x) of points N×D, N."""
        return torch.logsumexp(self.component_log_densities(points), dim=1)

    def class_shares(self, points: Tensor) -> Tensor:
        """P(class | x0 = x) of points N×D, N×(largest label + 1); ValueError without labels."""
        labels = self.check_labels()
        shares = torch.softmax(self.component_log_densities(points), dim=1)
        classes = torch.zeros(len(points), int(labels.max()) + 1, dtype=torch.float64)
        return classes.index_add(1, labels, shares)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Independent samples, count×D."""
        component = self._choose(count, generator)
        normal = torch.randn(count, self.dimension, dtype=torch.float64, generator=generator)
        offsets = normal * self.variances[component].sqrt()
        if self.axes is not None:
            for k in component.unique().tolist():
                rows = component == k
                offsets[rows] = offsets[rows] @ self.axes[k].T
        return self.means[component] + offsets

    def diffused(self, sigma: float) -> GaussianMixture:
        """The mixture with covariances Σ_k + sigma²·I."""
        return self._with(variances=self.variances + noise_variance(sigma))

    def score(self, points: Tensor, sigma: float) -> Tensor:
        """∇ log p_t at points N×D, N×D; sigma ≥ 0."""
        if sigma != 0:
            return super().score(points, sigma)
        shares = torch.softmax(self.component_log_densities(points), dim=1)
        points = points.double()
        if self.axes is None:
            pulls = shares / self.variances[:, 0]
            return pulls @ self.means - pulls.sum(1, keepdim=True) * points
        offsets = torch.einsum("nkd,kde->nke", self.means - points[:, None], self.axes) / self.variances
        return torch.einsum("nk,nke,kde->nd", shares, offsets, self.axes)

    def posterior(self, noisy: Tensor, sigma: float) -> GaussianMixture:
        """A mixture again, as many components; see `posterior_components`."""
        log_weights, means, variances = self.posterior_components(self.check_noisy(noisy)[None], sigma)
        return self._with(log_weights=log_weights[0], means=means[0], variances=variances)

    def posterior_components(self, noisy: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """The posterior mixture of each noisy vector, in closed form; its axes are those of this mixture.

        Component k of it is N(μ_k, Σ_k) times the likelihood: mean μ_k + Σ_k(Σ_k + sigma²·I)⁻¹(noisy − μ_k),
        covariance sigma²·Σ_k(Σ_k + sigma²·I)⁻¹, weight ∝ w_k·N(noisy; μ_k, Σ_k + sigma²·I).

        Args:
            noisy: N×D.
            sigma: noise level > 0.

        Returns:
            Log weights N×K, means N×K×D, and variances K×D or K×1 along the axes, the same for all.
        """
        noisy = self.check_points(noisy, "noisy")
        diffused = self.diffused(sigma)
        log_weights = torch.log_softmax(diffused.component_log_densities(noisy), dim=1)
        gain = self.variances / diffused.variances
        offsets = noisy[:, None] - self.means
        if self.axes is None:
            offsets = offsets * gain
        else:
            offsets = torch.einsum("nkd,kde->nke", offsets, self.axes) * gain
            offsets = torch.einsum("nke,kde->nkd", offsets, self.axes)
        return log_weights, self.means + offsets, gain * noise_variance(sigma)

    def denoiser(
        self, image_shape: tuple[int, int, int] | None = None, sigmas: Tensor | None = None
    ) -> GaussianMixtureDenoiser:
        """As `Density.denoiser`."""
        return exact_denoiser(self, self.means, self.covariances, image_shape, sigmas)


def exact_denoiser(
    density: Density,
    means: Tensor,
    covariances: Tensor,
    image_shape: tuple[int, int, int] | None,
    sigmas: Tensor | None,
) -> GaussianMixtureDenoiser:
    """The denoiser of components with a density's weights and labels; see `Density.denoiser`."""
    shape = (1, 1, density.dimension) if image_shape is None else image_shape
    if len(shape) != 3 or math.prod(shape) != density.dimension:
        raise ArgumentError("image_shape", f"expected C·H·W = {density.dimension}, got {image_shape}")
    labels = None if density.labels is None else density.labels.tolist()
    denoiser = GaussianMixtureDenoiser(
        means.reshape(-1, *shape), covariances, component_labels=labels, sigmas=sigmas
    )
    # Not through the weights: those of a posterior may be too small for a float, their logarithms are not.
    denoiser.log_weights.copy_(density.log_weights)
    return denoiser


def noise_variance(sigma: float) -> float:
    """The square of a finite sigma > 0, or ValueError."""
    variance = check_positive("sigma", sigma) ** 2
    if not 0.0 < variance < math.inf:
        raise ArgumentError("sigma", f"expected a number whose square is one of float64, got {sigma!r}")
    return variance


def _finite(name: str, values: Tensor) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise ArgumentError(name, "expected finite numbers, got NaN or infinity")
    return values


def as_table(name: str, values: Tensor) -> Tensor:
    """Rows of D finite numbers in float64, or ValueError."""
    if check_tensor(name, values).ndim != 2 or values.numel() == 0 or not values.is_floating_point():
        raise ArgumentError(
            name, f"expected at least one row of D floats, got shape {tuple(values.shape)}, {values.dtype}"
        )
    return _finite(name, values.double())


def as_log_weights(weights: Tensor | Sequence[float] | None, count: int) -> Tensor:
    """Log weights whose exponentials sum to 1 to rounding, equal ones for None, or ValueError."""
    if weights is None:
        return torch.full((count,), -math.log(count), dtype=torch.float64)
    values = as_numbers("weights", weights, torch.float64)
    if values.shape != (count,):
        raise ArgumentError("weights", f"expected {count} numbers, got shape {tuple(values.shape)}")
    if not bool((values > 0).all()):
        raise ArgumentError("weights", f"expected numbers > 0, got {float(values[~(values > 0)][0]):.6g}")
    if not abs(float(values.sum()) - 1) <= 1e-6:
        raise ArgumentError("weights", f"expected a sum of 1, got {float(values.sum()):.9g}")
    return torch.log(values / values.sum())


def as_labels(labels: Tensor | Sequence[int] | None, count: int) -> Tensor | None:
    """Labels as `count` int64 ≥ 0, None for None, or ValueError."""
    if labels is None:
        return None
    values = as_numbers("labels", labels)
    if values.shape != (count,) or values.is_floating_point() or values.dtype == torch.bool:
        raise ArgumentError(
            "labels", f"expected {count} integers, got shape {tuple(values.shape)}, {values.dtype}"
        )
    if int(values.min()) < 0:
        raise ArgumentError("labels", f"expected integers ≥ 0, got {int(values.min())}")
    return values.long()
