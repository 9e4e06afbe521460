"""Purification to the highest posterior density (Xiao et al. 2023, Algorithm 1), with a certificate."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffproof.theory.densities import GaussianMixture
from diffproof.theory.finite_support import FiniteSupport

# Numbers that an array may hold: 64 MiB of float64.
_AT_ONCE = 2**23
_ITERATIONS = 200
# A rise of the log density that is not worth another step.
_RISE = 1e-12
# What the search over boxes leaves open, in log density, and how often it halves them at most.
_TOLERANCE = 1e-9
_HALVINGS = 60
# Boxes that there is room for, of each noisy vector in a batch.
_BOXES = 256
# Components this far below the best density in log, and together too, are bounded one by one.
_FAR = 30.0


class Mode(NamedTuple):
    """Where the posterior p(x0 | x_sigma = noisy) is highest.

    Attributes:
        points: N×D.
        log_density: N, log posterior density there; log posterior mass for a finite support.
        gap: N, at least log(supremum of the posterior density) − log_density; 0 for a finite support.
    """

    points: Tensor
    log_density: Tensor
    gap: Tensor


class HighDensityPurifier:
    """P(x_a; t) = argmax_x p(x0 = x | x_sigma = x_a) (Algorithm 1).

    Of a finite support it is the exact maximum, ties to the lowest index. Of a Gaussian mixture it is the
    best point of ascents from means of the posterior's components, and the gap says how much higher the
    density can be anywhere else. Each step of an ascent is the better one of an expectation-maximisation
    step, which never lowers the density, and a Newton step.

    The gap is proven, up to rounding of about 1e-12, with g_k = π_k·N(m_k, C_k) the posterior's components
    and q their sum:

    - Where g_k is the largest component, q = g_k + Σ_{j≠k} min(g_j, g_k). So sup q is at most the largest
      over k of sup g_k + Σ_{j≠k} sup min(g_j, g_k), and min(a, b) ≤ a^λ·b^(1−λ), whose supremum over x has a
      closed form for every λ in [0, 1]. Components far from each other leave almost no gap.
    - For D ≤ 2 also by boxes. A point above the found density has some g_k ≥ density/K, so it lies in the
      box round those ellipsoids. On a box of centre c and half-widths h, log g_k(c + δ) ≤ log g_k(c) + b_k·δ
      with the gradient b_k at c, as log g_k is concave. With shares s_k at c, b = Σ s_k·b_k and
      X_k = (b_k − b)·δ ≤ r, Taylor's theorem bounds log q(c + δ) − log q(c) by
      b·δ + log Σ s_k·exp(X_k) ≤ b·δ + ½·e^r·Σ s_k·X_k². Boxes bounded below the found density are dropped
      and others halved, until the gap is 1e-9 or there are too many, when their highest bound counts.

    Args:
        density: p(x0).
    """

    def __init__(self, density: GaussianMixture | FiniteSupport) -> None:
        self.density = density

    def purify(self, noisy: Tensor, sigma: float) -> Mode:
        """The points of highest posterior density.

        Args:
            noisy: N×D, x0 + sigma·N(0, I).
            sigma: noise level > 0.

        Raises:
            ValueError: wrong shape, not finite, or sigma not a finite number > 0.
        """
        density = self.density
        noisy = density.check_points(noisy, "noisy")
        if isinstance(density, FiniteSupport):
            log_masses, best = _best_point(density, noisy, sigma)
            log_mass = log_masses.gather(1, best[:, None])[:, 0]
            return Mode(density.points[best], log_mass, torch.zeros_like(log_mass))
        components = len(density.means)
        room = components * max(components, density.dimension * _BOXES)
        rows = max(1, _AT_ONCE // room)
        parts = [_highest(_Posteriors(density, part, sigma)) for part in noisy.split(rows)]
        return Mode(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def labels(self, noisy: Tensor, sigma: float) -> Tensor:
        """The class that each noisy vector is purified into, N int64; ties to the lowest.

        That of the point for a finite support; for a mixture the class with the largest share at the mode.

        Raises:
            ValueError: the density has no labels, or as `purify`.
        """
        labels = self.density.check_labels()
        if isinstance(self.density, FiniteSupport):
            return labels[_best_point(self.density, self.density.check_points(noisy, "noisy"), sigma)[1]]
        return self.density.class_shares(self.purify(noisy, sigma).points).argmax(dim=1)


def _best_point(support: FiniteSupport, noisy: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Log posterior masses N×M and the index of the largest, N."""
    joint = support.diffused(sigma).component_log_densities(noisy)
    # The first of equal ones, which is what argmax promises.
    return torch.log_softmax(joint, dim=1), joint.argmax(dim=1)


class _Posteriors:
    """The posterior mixtures of N noisy vectors, whose components have the same covariances for all.

    Attributes:
        means: N×K×D.
        log_peaks: N×K, log of sup g_k.
        variances: K×D or K×1 along the axes.
        axes: K×D×D; None for isotropic components.
        covariances: K×D×D.
        precisions: K×D×D; there is none for isotropic components.
        coordinate_variances: K×D, along the coordinates.
    """

    def __init__(self, density: GaussianMixture, noisy: Tensor, sigma: float) -> None:
        log_weights, self.means, self.variances = density.posterior_components(noisy, sigma)
        mixture = density._with(variances=self.variances)
        self.axes, self.covariances = density.axes, mixture.covariances
        self.log_peaks = log_weights + mixture.log_peaks
        if self.axes is None:
            self.coordinate_variances = self.variances.expand(-1, density.dimension)
        else:
            self.coordinate_variances = self.covariances.diagonal(dim1=1, dim2=2)
            self.precisions = (self.axes / self.variances[:, None]) @ self.axes.mT

    def terms(self, points: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        """log g_k at points P×D of the posteriors `owner`, P×K, and their gradients, P×K×D."""
        offsets = self.means[owner] - points[:, None]
        if self.axes is None:
            pulls = offsets / self.variances
            squares = (offsets * pulls).sum(-1)
        else:
            along = torch.einsum("pkd,kde->pke", offsets, self.axes)
            pulls = torch.einsum("pke,kde->pkd", along / self.variances, self.axes)
            squares = (along.square() / self.variances).sum(-1)
        return self.log_peaks[owner] - 0.5 * squares, pulls

    def log_density(self, points: Tensor, owner: Tensor) -> Tensor:
        """log q, P."""
        return torch.logsumexp(self.terms(points, owner)[0], dim=1)

    def precision(self, shares: Tensor) -> Tensor:
        """Σ_k s_k·C_k⁻¹ of shares P×K, P×D×D."""
        if self.axes is None:
            mean = (shares / self.variances[:, 0]).sum(1)[:, None, None]
            return mean * torch.eye(self.means.shape[2], dtype=torch.float64)
        return torch.einsum("pk,kde->pde", shares, self.precisions)


def _highest(posteriors: _Posteriors) -> Mode:
    """The mode of each posterior with its gap."""
    count, components, dimension = posteriors.means.shape
    every, peaks = torch.arange(count), posteriors.log_peaks
    # Where g_k is the largest component, q ≤ K·g_k: components too low for that are never looked at.
    bounds = peaks + math.log(components)
    heights = torch.full_like(peaks, -math.inf)
    for k in (bounds >= peaks.amax(1, keepdim=True)).any(0).nonzero()[:, 0].tolist():
        bounds[:, k] = torch.minimum(bounds[:, k], _component_bound(posteriors, k))
        heights[:, k] = posteriors.log_density(posteriors.means[:, k], every)
    values, first = heights.max(dim=1)
    points = posteriors.means[every, first]
    owner, component = (bounds >= values[:, None]).nonzero(as_tuple=True)
    size = max(1, _AT_ONCE // (dimension * max(components, dimension)))
    for whose, which in zip(owner.split(size), component.split(size), strict=True):
        _improve(posteriors, points, values, posteriors.means[whose, which], whose)
    upper = torch.maximum(bounds.amax(1), values)
    if dimension <= 2:
        upper = torch.minimum(upper, _box_bounds(posteriors, points, values, upper))
    return Mode(points, values, (upper - values).clamp(min=0.0))


def _improve(posteriors: _Posteriors, points: Tensor, values: Tensor, starts: Tensor, owner: Tensor) -> None:
    """Ascend from starts P×D of the posteriors `owner`; what is higher replaces points N×D and values N."""
    ends = _ascend(posteriors, starts, owner)
    heights = posteriors.log_density(ends, owner)
    best = _leaders(heights, owner, values)
    points[owner[best]], values[owner[best]] = ends[best], heights[best]


def _leaders(heights: Tensor, owner: Tensor, values: Tensor) -> Tensor:
    """The first of the highest of each owner, where it is above the owner's value."""
    highest = values.scatter_reduce(0, owner, heights, "amax")
    candidates = ((heights > values[owner]) & (heights == highest[owner])).nonzero()[:, 0]
    none = len(heights)
    first = torch.full((len(values),), none).scatter_reduce(0, owner[candidates], candidates, "amin")
    return first[first < none]


def _ascend(posteriors: _Posteriors, points: Tensor, owner: Tensor) -> Tensor:
    """Where steps that never lower log q lead from points P×D."""
    points = points.clone()
    active = torch.arange(len(points))
    for _ in range(_ITERATIONS):
        here, whose = points[active], owner[active]
        terms, pulls = posteriors.terms(here, whose)
        before = torch.logsumexp(terms, dim=1)
        shares = torch.softmax(terms, dim=1)
        gradient = torch.einsum("pk,pkd->pd", shares, pulls)
        precision = posteriors.precision(shares)
        spread = (
            torch.einsum("pk,pkd,pke->pde", shares, pulls, pulls) - gradient[:, :, None] * gradient[:, None]
        )
        fixed_point = here + torch.linalg.solve(precision, gradient)
        # A singular system gives no number, and such a step is never the better one.
        newton = here + torch.linalg.solve_ex(precision - spread, gradient)[0]
        height = posteriors.log_density(fixed_point, whose)
        other = posteriors.log_density(newton, whose)
        better = other > height
        points[active] = torch.where(better[:, None], newton, fixed_point)
        rise = torch.where(better, other, height) - before
        points[active[rise < 0]] = here[rise < 0]
        active = active[rise > _RISE]
        if len(active) == 0:
            break
    return points


def _component_bound(posteriors: _Posteriors, k: int) -> Tensor:
    """At least log q wherever g_k is the largest component, N: the first proof of `HighDensityPurifier`."""
    peaks, variances = posteriors.log_peaks, posteriors.variances
    offsets = posteriors.means - posteriors.means[:, k : k + 1]
    # In coordinates in which C_k is the identity and C_j diagonal.
    if posteriors.axes is None:
        squares = offsets.square().sum(-1, keepdim=True) / variances[k]
        ratios = variances / variances[k]
    else:
        whitening = posteriors.axes[k] / variances[k].sqrt()
        ratios, axes = torch.linalg.eigh(whitening.mT @ posteriors.covariances @ whitening)
        squares = torch.einsum("nkd,kdf->nkf", offsets, whitening @ axes).square()
    overlap = torch.minimum(peaks, peaks[:, k : k + 1])
    for power in torch.linspace(0, 1, 17, dtype=torch.float64)[1:-1].tolist():
        # log g_k^λ·g_j^(1−λ) peaks ½·λ(1−λ)·dᵀ(λ·C_j + (1−λ)·C_k)⁻¹d below the mean of the peaks.
        distance = (squares / (power * ratios + 1 - power)).sum(-1)
        mean = power * peaks[:, k : k + 1] + (1 - power) * peaks
        overlap = torch.minimum(overlap, mean - 0.5 * power * (1 - power) * distance)
    overlap[:, k] = peaks[:, k]
    return torch.logsumexp(overlap, dim=1)


def _box_bounds(posteriors: _Posteriors, points: Tensor, values: Tensor, upper: Tensor) -> Tensor:
    """Upper bounds of log q by boxes, N; better points on the way replace points N×D and values N.

    Only the boxes of those whose upper bound leaves a gap are searched.
    """
    components, dimension = posteriors.means.shape[1:]
    # The ellipsoids g_k ≥ density/K reach this far along the coordinates; some are empty.
    depths = posteriors.log_peaks - values[:, None] + math.log(components)
    reach = (2 * depths.clamp(min=0.0)[:, :, None] * posteriors.coordinate_variances).sqrt()
    empty = (depths < 0)[:, :, None]
    low = (posteriors.means - reach).masked_fill(empty, math.inf).amin(1)
    high = (posteriors.means + reach).masked_fill(empty, -math.inf).amax(1)
    owner = (upper - values > _TOLERANCE).nonzero()[:, 0]
    centres, half = ((low + high) / 2)[owner], (high - low) / 2
    corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], dtype=torch.float64)] * dimension)
    corners = corners.reshape(-1, dimension)
    room = len(values) * _BOXES
    for _ in range(_HALVINGS):
        heights = posteriors.log_density(centres, owner)
        best = _leaders(heights, owner, values + _TOLERANCE)
        _improve(posteriors, points, values, centres[best], owner[best])
        tops = _tops(posteriors, centres, half[owner], owner, values)
        kept = tops > values[owner] + _TOLERANCE
        centres, owner, tops = centres[kept], owner[kept], tops[kept]
        if len(owner) == 0 or len(owner) * len(corners) > room:
            break
        centres = (centres[:, None] + corners * half[owner][:, None]).flatten(0, 1)
        owner = owner.repeat_interleave(len(corners))
        tops = tops.repeat_interleave(len(corners))
        half = half / 2
    return (values + _TOLERANCE).scatter_reduce(0, owner, tops, "amax")


def _tops(posteriors: _Posteriors, centres: Tensor, half: Tensor, owner: Tensor, values: Tensor) -> Tensor:
    """At least log q on boxes of centres P×D and half-widths P×D, P: the second proof."""
    terms, pulls = posteriors.terms(centres, owner)
    ceilings = terms + (pulls.abs() * half[:, None]).sum(-1)
    ceilings = torch.minimum(ceilings, posteriors.log_peaks[owner])
    far = ceilings < values[owner][:, None] - _FAR - math.log(terms.shape[1])
    near_terms = terms.masked_fill(far, -math.inf)
    shares = torch.softmax(near_terms, dim=1)
    mean_pull = torch.einsum("pk,pkd->pd", shares, pulls)
    deviations = (pulls - mean_pull[:, None]).abs()
    largest = (deviations.masked_fill(far[:, :, None], 0.0) * half[:, None]).sum(-1).amax(1)
    variance = (torch.einsum("pk,pkd->pd", shares, deviations.square()).sqrt() * half).sum(1).square()
    rise = (mean_pull.abs() * half).sum(1) + 0.5 * variance * largest.exp()
    near = torch.logsumexp(near_terms, dim=1) + rise
    rest = torch.logsumexp(ceilings.masked_fill(~far, -math.inf), dim=1)
    return torch.fmin(torch.logsumexp(ceilings, dim=1), torch.logaddexp(near, rest))
