"""The radius of a union region by mixed-integer programming, straight from Theorem 3.3.

The theorem writes the region as a union of intersections of half-spaces, an intersection for each point of
the class. A point lies outside if it violates some half-space of every intersection: binary variables choose
which. This does not use that the outside of the union falls into convex pieces, as `union_radius` does, and
is there to check it; the price is a search that grows exponentially with the support.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from diffproof.checks import check_positive
from diffproof.errors import ArgumentError
from diffproof.theory.finite_support import FiniteSupport
from diffproof.theory.robust_regions import Array, least_distance, sub_region, union_region

# Points of the class times other points, a binary variable each: 8 and 8 in 8 dimensions take 2 s on a core.
MAX_PAIRS = 64


def union_radius_mip(support: FiniteSupport, index: int, sigma: float, *, tolerance: float = 1e-6) -> float:
    """Radius in pixels (ℓ2) of the largest open ball round x0 in D(G(x0); t), by HiGHS.

    Minimises ‖z‖ over z and binary b with Σ_j b_ij = 1 for every point i of the class and n_ij·z ≥ h_ij where
    b_ij = 1: x0 + z violates half-space j of D_sub(x_i; t). The norm is bounded from below by tangents (outer
    approximation): after each solution, one at the nearest point of the chosen half-spaces. That point bounds
    the radius from above and HiGHS from below, so that a wrong one would leave a gap, not a wrong radius.

    Args:
        support: points with labels, of which (points of the class)·(other points) ≤ 64.
        index: which of them is x0.
        sigma: noise level, in pixels.
        tolerance: largest relative gap between the bounds; the upper one is returned.

    Returns:
        The radius; 0 where x0 is not in the region, infinity where the region is everything.

    Raises:
        ValueError: the support is too large; or as `sub_region`.
        RuntimeError: HiGHS failed or the gap did not close.
    """
    check_positive("tolerance", tolerance)
    own = sub_region(support, index, sigma)
    assert support.labels is not None
    members = len(support.points) - len(own.offsets)
    if members * len(own.offsets) > MAX_PAIRS:
        raise ArgumentError(
            "support",
            f"mixed-integer programming takes (points of the class)·(other points) ≤ {MAX_PAIRS},"
            f" got {members}·{len(own.offsets)}; union_radius has no limit",
        )
    center = support.points[index]
    if len(own.offsets) == 0:
        return float("inf")
    parts = union_region(support, int(support.labels[index]), sigma).parts
    if not any(bool(part.contains(center[None])) for part in parts):
        return 0.0
    # Unit normals I×J×D and signed distances I×J of the hyperplanes from x0.
    normals = np.stack([part.normals.numpy() for part in parts])
    heights = np.stack([(part.offsets - part.normals @ center).numpy() for part in parts])
    lengths = np.linalg.norm(normals, axis=2)
    normals, heights = normals / lengths[..., None], heights / lengths
    reach = _reach(normals, heights)
    return reach if reach == float("inf") else reach * _solve(normals, heights / reach, tolerance)


def _reach(normals: Array, heights: Array) -> float:
    """A distance within which the outside begins: what loses to one rival, found by linear programs.

    Infinity where no point loses to one: each point has a best rival, so that then nothing is outside.
    """
    dimension, scale = normals.shape[2], heights.max()
    best = float("inf")
    cost = np.append(np.zeros(dimension), 1.0)
    box = np.block(
        [[np.eye(dimension), -np.ones((dimension, 1))], [-np.eye(dimension), -np.ones((dimension, 1))]]
    )
    for rival in range(normals.shape[1]):
        lose = np.column_stack([-normals[:, rival], np.zeros(len(normals))])
        limits = np.concatenate([-heights[:, rival] / scale, np.zeros(2 * dimension)])
        result = linprog(cost, A_ub=np.vstack([lose, box]), b_ub=limits, bounds=(None, None), method="highs")
        if result.status not in (0, 2):
            raise RuntimeError(f"linear program: {result.message}")
        if result.status == 0:
            best = min(best, scale * float(np.linalg.norm(result.x[:-1])))
    # HiGHS may miss a half-space by 1e-7, and a larger ball does no harm.
    return best * 1.001


def _solve(normals: Array, heights: Array, tolerance: float) -> float:
    """The smallest norm ≤ 1 of a point that violates a half-space of every part."""
    dimension = normals.shape[2]
    # What cannot be violated in the unit ball is no choice.
    member, rival = np.nonzero(heights <= 1.0)
    count = len(member)
    rows, limits = normals[member, rival], heights[member, rival]
    # n·z ≥ −1 holds in the unit ball, so this says n·z ≥ h where b = 1, and nothing where b = 0.
    chosen = sparse.hstack([rows, np.zeros((count, 1)), -sparse.diags(limits + 1.0)])
    one_each = sparse.hstack(
        [
            sparse.csr_array((len(normals), dimension + 1)),
            sparse.csr_array((np.ones(count), (member, np.arange(count))), shape=(len(normals), count)),
        ]
    )
    fixed = [LinearConstraint(chosen, lb=-1.0), LinearConstraint(one_each, lb=1.0, ub=1.0)]
    variables = Bounds(
        np.concatenate([-np.ones(dimension), np.zeros(1 + count)]), np.ones(dimension + 1 + count)
    )
    cost = np.zeros(dimension + 1 + count)
    cost[dimension] = 1.0
    integrality = np.concatenate([np.zeros(dimension + 1), np.ones(count)])
    tangents = np.vstack([np.eye(dimension), -np.eye(dimension)])
    best, seen = float("inf"), set()
    while True:
        above = np.column_stack([-tangents, np.ones(len(tangents)), np.zeros((len(tangents), count))])
        result = milp(
            cost,
            integrality=integrality,
            bounds=variables,
            constraints=[*fixed, LinearConstraint(above, lb=0.0)],
            options={"mip_rel_gap": tolerance / 10},
        )
        if result.status != 0:
            raise RuntimeError(f"mixed-integer program: {result.message}")
        active = result.x[dimension + 1 :] > 0.5
        point = least_distance(rows[active], limits[active])
        if point is not None:
            best = min(best, float(np.linalg.norm(point)))
        if best - result.mip_dual_bound <= tolerance * best:
            return best
        # A choice is settled by its tangent: only HiGHS's own tolerances can lead to a second visit.
        if point is None or active.tobytes() in seen:
            raise RuntimeError(
                f"mixed-integer program: the radius lies in [{result.mip_dual_bound:.9g}, {best:.9g}] of the"
                f" reach, wider than the relative tolerance {tolerance:g}"
            )
        seen.add(active.tobytes())
        tangents = np.vstack([tangents, point / np.linalg.norm(point)])
