"""The exact denoiser of a Gaussian mixture: a closed-form oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffproof.checks import check_integer, check_levels, check_listed, check_number, check_tensor, shown
from diffproof.denoisers.base import EXACT_SIGMAS, Denoiser, Estimate, Sigma
from diffproof.errors import ArgumentError


class GaussianMixtureDenoiser(Denoiser):
    """E[x | x + sigma·N(0, I)] for x ~ Σ_k w_k·N(μ_k, Σ_k), exact to rounding.

    Args:
        means: K×C×H×W.
        covariances: K×D×D with D = C·H·W, positive semi-definite; or K variances of isotropic components.
        weights: K positive numbers that sum to 1; None for equal ones.
        component_labels: class of each component in [0, number of classes), which makes it conditional.
        sigmas: ascending noise levels to pretend a timestep grid, so that the step rules apply; None for
            continuous.

    Raises:
        ValueError: shapes do not fit, a covariance is not positive semi-definite, weights do not sum to 1, a
            class below the largest label has no component.
    """

    sigma_min, sigma_max = EXACT_SIGMAS

    def __init__(
        self,
        means: Tensor,
        covariances: Tensor,
        weights: Tensor | Sequence[float] | None = None,
        *,
        component_labels: Sequence[int] | None = None,
        sigmas: Tensor | None = None,
    ) -> None:
        super().__init__()
        for name, values in (("means", means), ("covariances", covariances)):
            if not check_tensor(name, values).is_floating_point():
                raise ArgumentError(name, f"expected floats, got {shown(values)}")
            if not bool(torch.isfinite(values).all()):
                raise ArgumentError(name, "expected finite numbers, got NaN or infinity")
        if means.ndim != 4 or len(means) == 0:
            raise ArgumentError("means", f"expected K×C×H×W, got {shown(means)}")
        components, dimension = len(means), means[0].numel()
        variances, axes = _principal_axes(covariances, components, dimension)
        weight = _checked_weights(weights, components)
        if component_labels is not None:
            self.num_classes = _classes(component_labels, components)
            self.null_label = self.num_classes
        self.image_shape = (means.shape[1], means.shape[2], means.shape[3])
        if sigmas is not None:
            self.sigmas = torch.tensor(check_levels("sigmas", sigmas), dtype=torch.float64)
            self.sigma_min, self.sigma_max = float(self.sigmas[0]), float(self.sigmas[-1])
        self.register_buffer("means", means.double().reshape(components, dimension))
        # What is given is the state; what is computed of it may differ in the last bit between machines.
        self.register_buffer("covariances", covariances.double())
        self.register_buffer("weights", weight)
        self.register_buffer("variances", variances.clamp(min=0.0), persistent=False)
        self.register_buffer("axes", axes, persistent=False)
        self.register_buffer("log_weights", weight.log(), persistent=False)
        self.register_buffer(
            "labels", None if component_labels is None else torch.tensor(list(component_labels))
        )
        self.means: Tensor
        self.variances: Tensor
        self.axes: Tensor
        self.log_weights: Tensor
        self.labels: Tensor | None

    def component_posterior(
        self, noisy: Tensor, sigma: Sigma, label: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Posterior of the component given the noisy image, and each component's posterior mean.

        Args:
            noisy: N×C×H×W.
            sigma: noise level in [0, 1] pixels, one for all or N of them.
            label: N integers, or None for all components.

        Returns:
            Shares N×K that sum to 1, and means N×K×D, in the dtype of `noisy`.
        """
        flat = noisy.flatten(1)
        means, variances, axes = (tensor.to(flat.dtype) for tensor in (self.means, self.variances, self.axes))
        noise_variance = torch.as_tensor(sigma, dtype=flat.dtype, device=flat.device).reshape(-1, 1, 1) ** 2
        offset = torch.einsum("nkd,kde->nke", flat[:, None] - means, axes)
        total = variances + noise_variance
        log_density = -0.5 * (offset**2 / total + total.log()).sum(-1) + self.log_weights.to(flat.dtype)
        if label is not None and self.labels is not None:
            other = (self.labels != label[:, None]) & (label[:, None] != self.null_label)
            log_density = log_density.masked_fill(other, float("-inf"))
        posterior = means + torch.einsum("nke,kde->nkd", offset * variances / total, axes)
        return torch.softmax(log_density, dim=1), posterior

    def estimate(self, noisy: Tensor, sigma: Sigma, label: Tensor | None) -> Estimate:
        """The posterior mean."""
        shares, posterior = self.component_posterior(noisy, sigma, label)
        return Estimate(torch.einsum("nk,nkd->nd", shares, posterior).reshape(noisy.shape))


def _principal_axes(covariances: Tensor, components: int, dimension: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues K×D and eigenvectors K×D×D of K covariances, or of K variances."""
    if covariances.shape == (components,):
        covariances = covariances.double()[:, None, None] * torch.eye(dimension, dtype=torch.float64)
    if covariances.shape != (components, dimension, dimension):
        raise ArgumentError(
            "covariances",
            f"expected {components} variances or {components}×{dimension}×{dimension},"
            f" got shape {tuple(covariances.shape)}",
        )
    variances, axes = torch.linalg.eigh(covariances.double())
    if bool((variances < -1e-10 * variances.abs().max()).any()):
        raise ArgumentError("covariances", "expected positive semi-definite matrices")
    return variances, axes


def _checked_weights(weights: Tensor | Sequence[float] | None, components: int) -> Tensor:
    given = [1 / components] * components if weights is None else weights
    numbers = [
        check_number("weights", one, math.isfinite, "finite numbers")
        for one in check_listed("weights", given)
    ]
    weight = torch.tensor(numbers, dtype=torch.float64)
    if weight.shape != (components,) or not bool((weight > 0).all()) or abs(float(weight.sum()) - 1) > 1e-6:
        raise ArgumentError(
            "weights", f"expected {components} positive numbers that sum to 1, got {weight.tolist()}"
        )
    return weight


def _classes(labels: Sequence[int], components: int) -> int:
    """How many classes the labels of the components name."""
    labels = [check_integer("component_labels", label) for label in check_listed("component_labels", labels)]
    if len(labels) != components or min(labels) < 0:
        raise ArgumentError("component_labels", f"expected {components} labels ≥ 0, got {labels}")
    classes = max(labels) + 1
    if len(set(labels)) != classes:
        raise ArgumentError(
            "component_labels", f"expected every class of 0…{classes - 1} at least once, got {labels}"
        )
    return classes
