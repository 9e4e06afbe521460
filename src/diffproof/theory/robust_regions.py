"""Where the high-density purifier keeps a label: Theorem 3.3 of Xiao et al. 2023, "DensePure".

A noisy point x_a is purified to P(x_a; t), the point x of a finite support with the largest
log p(x) − ‖x − x_a‖²/(2σ²). So the noisy points that go to one x are a cell of a power diagram, bounded by
hyperplanes. D_sub(x0; t) keeps only the hyperplanes towards points of other classes, and D(G(x0); t), the
union of the D_sub of all points of the class, is exactly the set that is purified into the class; ties, on
its boundary, count as outside.

Points are float64 in pixels, x_a is in the coordinates x_a = x0 + σ·N(0, I), and the paper's noisy point is
√α_t·x_a with σ² = (1 − α_t)/α_t. p are the weights of the support. Equal weights cancel, so that no region
depends on σ; others, such as a density at each point, shift every hyperplane by σ²·log(p(x0)/p(x0')).

The radius of the union is a minimum over convex sets. A point lies outside the union exactly if some point x'
of another class beats or ties all points of the class, and for one x' this is a closed polyhedron. So the
distance from x0 to the outside is the smallest of its distances to these polyhedra, each a least-distance
problem that Lawson and Hanson ("Solving Least Squares Problems", chapter 23) solve by non-negative least
squares. `union_radius_mip` computes the same number from the union of half-spaces as the theorem states it,
without that argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from diffproof.checks import check_at_least, check_positive, check_tensor
from diffproof.errors import ArgumentError
from diffproof.theory.finite_support import FiniteSupport

Array = NDArray[np.float64]

# A polyhedron is empty in float64 if it is so many times farther than the farthest of its half-spaces.
_EMPTY = 1e8
# Violation of a half-space that a nearest point may have, relative to its distance.
_FEASIBLE = 1e-9


@dataclass(frozen=True, eq=False)
class HalfSpaces:
    """An open convex region {x: normals @ x < offsets}.

    Args:
        normals: M×D, float64, none of them zero. M = 0 is the whole space.
        offsets: M.
    """

    normals: Tensor
    offsets: Tensor

    def contains(self, points: Tensor) -> Tensor:
        """Which of N×D points lie inside: N booleans."""
        _check_points("points", points, self.normals.shape[1])
        return (points.double() @ self.normals.T < self.offsets).all(dim=1)

    def radius(self, center: Tensor) -> float:
        """Radius of the largest open ball round a point D that lies inside: min (offset − n·c)/‖n‖.

        0 where the centre is outside, infinity where there is no half-space.
        """
        _check_points("center", check_tensor("center", center)[None], self.normals.shape[1])
        if len(self.offsets) == 0:
            return float("inf")
        distance = (self.offsets - self.normals @ center.double()) / self.normals.norm(dim=1)
        return max(0.0, float(distance.min()))


@dataclass(frozen=True, eq=False)
class UnionRegion:
    """A union of convex regions, D(G(x0); t): a part for each point of the class, in the support's order."""

    parts: list[HalfSpaces]

    def contains(self, points: Tensor) -> Tensor:
        """Which of N×D points lie in a part: N booleans."""
        inside = torch.zeros(len(points), dtype=torch.bool)
        for part in self.parts:
            inside |= part.contains(points)
        return inside


class Nearest(NamedTuple):
    """The point outside a union region that is nearest to a point of the support.

    Attributes:
        distance: its distance from the point of the support, in pixels (ℓ2).
        point: D, where the largest ball inside the union touches its boundary.
        rival: index of the point of another class that ties there with the best of the class.
    """

    distance: float
    point: Tensor
    rival: int


class Radii(NamedTuple):
    """Radii in pixels (ℓ2) of the largest balls round N points of a support.

    Attributes:
        single: N, inside D_sub(x0; t).
        union: N, inside D(G(x0); t); never below `single`.
    """

    single: Tensor
    union: Tensor


def sub_region(support: FiniteSupport, index: int, sigma: float) -> HalfSpaces:
    """D_sub(x0; t) of Theorem 3.3: where x0 beats every point of another class.

    The x_a with (x_a − x0)ᵀ(x0' − x0) < σ²·log(p(x0)/p(x0')) + ‖x0' − x0‖²/2 for all x0' of other classes.
    Convex; with equal weights it does not depend on σ.

    Args:
        support: points M×D with labels.
        index: which of them is x0.
        sigma: noise level of x_a, in pixels.

    Returns:
        A half-space for each point of another class, in the support's order.

    Raises:
        ValueError: no labels, index out of range, sigma not above 0.
    """
    labels, index = _checked(support, index, sigma)
    rivals = labels != labels[index]
    center = support.points[index]
    normals = support.points[rivals] - center
    shift = sigma**2 * (support.log_weights[index] - support.log_weights[rivals])
    return HalfSpaces(normals, normals @ center + shift + normals.square().sum(1) / 2)


def union_region(support: FiniteSupport, label: int, sigma: float) -> UnionRegion:
    """D(G(x0); t) of Theorem 3.3: x_a is purified into the class if and only if it lies here, but for ties.

    Holds a half-space for each pair of a point of the class and one of another class, of D numbers each.

    Raises:
        ValueError: no labels, a label that no point has, sigma not above 0.
    """
    labels = _labels(support)
    members = (labels == label).nonzero()[:, 0].tolist()
    if not members:
        raise ArgumentError("label", f"expected one of {labels.unique().tolist()}, got {label!r}")
    return UnionRegion([sub_region(support, index, sigma) for index in members])


def nearest_outside(support: FiniteSupport, index: int, sigma: float) -> Nearest | None:
    """The nearest point to x0 that is not in D(G(x0); t), exactly; None where every point is in it.

    x0 itself, at distance 0, where x0 is not in the region. Arguments and errors as `sub_region`.

    Raises:
        RuntimeError: a projection could not be verified, by feasibility and duality, to a relative 1e-9.
    """
    return _nearest(_Seen(support, index, sigma))


def union_radius(support: FiniteSupport, index: int, sigma: float) -> float:
    """Radius in pixels (ℓ2) of the largest open ball round x0 in D(G(x0); t), exactly.

    0 where x0 is not in the region, infinity where the region is everything. Arguments and errors as
    `nearest_outside`.
    """
    nearest = nearest_outside(support, index, sigma)
    return float("inf") if nearest is None else nearest.distance


def union_radius_lower_bound(support: FiniteSupport, index: int, sigma: float) -> float:
    """A lower bound of `union_radius` without optimisation, never below the radius of `sub_region`.

    Where a point x' of another class wins, the hyperplanes between x' and all points of the class are
    crossed. The distance to the farthest of them is a bound for x', and the smallest such bound is one for
    the union.
    """
    seen, best = _Seen(support, index, sigma), float("inf")
    for rival in seen.order:
        if seen.own[rival] >= best:
            break
        best = min(best, seen.farthest(rival))
    return max(0.0, best)


def radii(support: FiniteSupport, indices: Sequence[int], sigma: float) -> Radii:
    """The radius round each of N points of a support, in its own region and in the union of its class.

    Both are exact, and the union's is never the smaller one. Arguments and errors as `nearest_outside`.
    """
    single, union = [], []
    for index in indices:
        seen = _Seen(support, index, sigma)
        nearest = _nearest(seen)
        single.append(max(0.0, float(seen.own.min(initial=np.inf))))
        union.append(float("inf") if nearest is None else nearest.distance)
    return Radii(torch.tensor(single, dtype=torch.float64), torch.tensor(union, dtype=torch.float64))


def least_distance(normals: Array, offsets: Array) -> Array | None:
    """The point z nearest to the origin with normals @ z ≥ offsets: Lawson and Hanson's problem LDP.

    With u ≥ 0 from non-negative least squares, z is along normalsᵀu, and offsetsᵀu/‖normalsᵀu‖ bounds the
    norm of every feasible point from below. z is scaled to meet this bound: it is optimal if it is feasible.

    Args:
        normals: numpy M×D, no row zero.
        offsets: numpy M.

    Returns:
        numpy D; None where no point is feasible, or none within 1e8 times the distance to the farthest
        half-space, which float64 cannot tell apart.

    Raises:
        RuntimeError: z misses a half-space by more than a relative 1e-9.
    """
    lengths = np.linalg.norm(normals, axis=1)
    scale = float((offsets / lengths).max(initial=0.0))
    if scale == 0.0:
        return np.zeros(normals.shape[1])
    rows, heights = normals / lengths[:, None], offsets / lengths / scale
    target = np.zeros(normals.shape[1] + 1)
    target[-1] = 1.0
    multipliers, _ = nnls(np.vstack([rows.T, heights]), target)
    direction, height = multipliers @ rows, float(multipliers @ heights)
    length = float(np.linalg.norm(direction))
    if height >= _EMPTY * length:
        return None
    distance = height / length
    point = direction * (distance / length)
    missed = float((heights - rows @ point).max()) / distance
    if missed > _FEASIBLE:
        raise RuntimeError(f"least distance: the solution misses a half-space by a relative {missed:.1e}")
    return np.asarray(point * scale)


class _Seen:
    """A support seen from x0, one of its points: x0 is the origin.

    Point i loses to a rival j at z if (z_j − z_i)·z ≥ power_j − power_i with power = ‖z_i‖²/2 − σ²·log p_i.

    Attributes:
        own: signed distance of the origin to the hyperplane between it and each rival.
        order: the rivals by `own`. What is beyond one of them costs no more than sorting.
    """

    def __init__(self, support: FiniteSupport, index: int, sigma: float) -> None:
        labels, index = _checked(support, index, sigma)
        same = (labels == labels[index]).numpy()
        self.center = support.points[index]
        points = (support.points - self.center).numpy()
        power = np.square(points).sum(axis=1) / 2 - sigma**2 * support.log_weights.numpy()
        self.members, self.rivals = points[same], points[~same]
        self.power, self.rival_power = power[same], power[~same]
        self.rival_indices = np.flatnonzero(~same)
        self.own = (self.rival_power - power[index]) / np.linalg.norm(self.rivals, axis=1)
        self.order = np.argsort(self.own, kind="stable").tolist()

    def polyhedron(self, rival: int) -> tuple[Array, Array]:
        """Where a rival beats or ties all points of the class: normals @ z ≥ offsets."""
        return self.rivals[rival] - self.members, self.rival_power[rival] - self.power

    def farthest(self, rival: int) -> float:
        """Signed distance of the origin to the farthest hyperplane of a rival."""
        normals, offsets = self.polyhedron(rival)
        # One of them is x0's own, and rounding must not put the others' maximum below it.
        return max(float(self.own[rival]), float((offsets / np.linalg.norm(normals, axis=1)).max()))


def _nearest(seen: _Seen) -> Nearest | None:
    """The nearest of the rivals' polyhedra; none is projected on that a bound puts out of reach."""
    nearest: Nearest | None = None
    best = float("inf")
    for rival in seen.order:
        if seen.own[rival] >= best:
            break
        bound = max(0.0, seen.farthest(rival))
        if bound >= best:
            continue
        point = least_distance(*seen.polyhedron(rival))
        if point is None:
            continue
        # Rounding of the projection must not put it below what x0's own hyperplane says.
        distance = max(bound, float(np.linalg.norm(point)))
        if distance < best:
            best = distance
            nearest = Nearest(best, seen.center + torch.from_numpy(point), int(seen.rival_indices[rival]))
    return nearest


def _labels(support: FiniteSupport) -> Tensor:
    if support.labels is None:
        raise ArgumentError("support", "expected labels, got a support without classes")
    return support.labels


def _checked(support: FiniteSupport, index: int, sigma: float) -> tuple[Tensor, int]:
    labels = _labels(support)
    check_positive("sigma", sigma)
    index = check_at_least("index", index, 0)
    if index >= len(labels):
        raise ArgumentError("index", f"expected an integer in [0, {len(labels)}), got {index!r}")
    return labels, index


def _check_points(name: str, points: Tensor, dimension: int) -> None:
    if check_tensor(name, points).ndim != 2 or points.shape[1] != dimension:
        raise ArgumentError(
            name, f"expected points of {dimension} coordinates, got shape {tuple(points.shape)}"
        )
    if not bool(torch.isfinite(points).all()):
        raise ArgumentError(name, "expected finite coordinates, got NaN or infinity")
