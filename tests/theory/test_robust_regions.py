"""Theorem 3.3 and the radii of its regions, against the posterior in the paper's coordinates and sampling."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import diffproof as dp
from diffproof.theory import robust_regions
from diffproof.theory.finite_support import FiniteSupport
from diffproof.theory.mixed_integer import union_radius_mip
from diffproof.theory.robust_regions import (
    HalfSpaces,
    least_distance,
    nearest_outside,
    radii,
    sub_region,
    union_radius,
    union_radius_lower_bound,
    union_region,
)
from helpers.tensors import normal

INSTANCES = 240


def randint(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


def support_of(
    generator: torch.Generator, dimension: int, largest: int, equal: bool
) -> tuple[FiniteSupport, float]:
    """A random support of 2–4 classes, each with a point, and a noise level.

    Half of them have a point of the first one's class near the middle between it and its nearest rival:
    without, the union would seldom reach farther than the first point's own region.
    """
    classes = randint(2, 4, generator)
    count = randint(classes + 1, max(classes + 1, largest), generator)
    points = normal(generator, count, dimension)
    labels = torch.cat(
        [torch.arange(classes), torch.randint(classes, (count - classes,), generator=generator)]
    )
    if randint(0, 1, generator):
        labels[-1] = labels[0]
        rivals = points[labels != labels[0]]
        nearest = rivals[(rivals - points[0]).norm(dim=1).argmin()]
        points[-1] = (points[0] + nearest) / 2 + 0.2 * normal(generator, dimension)
    weights = None if equal else torch.softmax(1.5 * normal(generator, count), dim=0)
    # σ² log p against squared distances of about 2·dimension.
    sigma = 0.1 * 10 ** float(torch.rand((), generator=generator)) * math.sqrt(dimension)
    return FiniteSupport(points, weights, labels), sigma


def instances(
    seed: int, largest: int = 12, dimensions: int = 64
) -> Iterator[tuple[FiniteSupport, float, torch.Generator]]:
    """Every dimension 1–64 several times, half of them with equal weights."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(INSTANCES):
        support, sigma = support_of(generator, 1 + number % dimensions, largest, equal=number % 2 == 0)
        yield support, sigma, generator


def log_posterior(support: FiniteSupport, points: Tensor, sigma: float) -> Tensor:
    """log p(x0 = x_i | x_t = √α·point) + constant, N×M, in the paper's coordinates with σ² = (1 − α)/α."""
    alpha = 1.0 / (1.0 + sigma**2)
    noisy = math.sqrt(alpha) * points
    away = noisy[:, None] - math.sqrt(alpha) * support.points
    return support.log_weights - away.square().sum(2) / (2 * (1 - alpha))


def advantage(support: FiniteSupport, points: Tensor, sigma: float, own: Tensor) -> Tensor:
    """log posterior of the best point of a set over the best of another class than theirs."""
    assert support.labels is not None
    scores = log_posterior(support, points, sigma)
    others = support.labels != support.labels[own][0]
    return scores[:, own].amax(1) - scores[:, others].amax(1)


def class_advantage(support: FiniteSupport, points: Tensor, sigma: float, label: int) -> Tensor:
    assert support.labels is not None
    return advantage(support, points, sigma, support.labels == label)


def crossings(support: FiniteSupport, points: Tensor, sigma: float, label: int) -> Tensor:
    """Boundary points of a class's region, on segments from points in it to points outside: bisection."""
    inside = class_advantage(support, points, sigma, label) > 0
    count = min(int(inside.sum()), int((~inside).sum()), 10)
    low, high = points[inside][:count], points[~inside][:count]
    for _ in range(30 if count else 0):
        middle = (low + high) / 2
        mask = (class_advantage(support, middle, sigma, label) > 0)[:, None]
        low, high = torch.where(mask, middle, low), torch.where(mask, high, middle)
    return low


def sphere(center: Tensor, radius: float, count: int, generator: torch.Generator) -> Tensor:
    direction = normal(generator, count, len(center))
    points: Tensor = center + radius * direction / direction.norm(dim=1, keepdim=True)
    return points


@pytest.mark.slow
def test_the_union_is_where_the_argmax_posterior_has_the_class() -> None:
    """Theorem 3.3, both directions, far from boundaries and 1e-6 from them."""
    inside = outside = close = 0
    for support, sigma, generator in instances(0):
        assert support.labels is not None
        spread = 6 * torch.rand(30, support.points.shape[1], dtype=torch.float64, generator=generator) - 3
        near = support.points[torch.randint(len(support.points), (30,), generator=generator)]
        points = torch.cat([spread, near + 0.7 * normal(generator, *near.shape)])
        label = int(support.labels[randint(0, len(support.points) - 1, generator)])
        border = crossings(support, points, sigma, label)
        asked = torch.cat([points, border + 1e-6 * normal(generator, *border.shape)])
        margin = class_advantage(support, asked, sigma, label)
        clear = margin.abs() * sigma**2 > 1e-10
        got = union_region(support, label, sigma).contains(asked)
        assert torch.equal(got[clear], (margin > 0)[clear])
        assert clear.double().mean() > 0.9
        inside, outside = inside + int(got.sum()), outside + int((~got).sum())
        close += int(clear[len(points) :].sum())
    assert min(inside, outside, close) > 1_500


@pytest.mark.slow
def test_a_sub_region_is_convex_and_part_of_the_union() -> None:
    checked = 0
    for support, sigma, generator in instances(1):
        assert support.labels is not None
        index = randint(0, len(support.points) - 1, generator)
        region = sub_region(support, index, sigma)
        union = union_region(support, int(support.labels[index]), sigma)
        points = torch.cat(
            [
                support.points[index] + scale * normal(generator, 20, support.points.shape[1])
                for scale in (0.1, 0.5, 2.0, 10.0)
            ]
        )
        beats = advantage(support, points, sigma, torch.tensor([index]))
        assert torch.equal(region.contains(points), beats > 0)
        members = points[region.contains(points)]
        assert union.contains(members).all()
        if len(members):
            pair = members[torch.randint(len(members), (2, 100), generator=generator)]
            share = torch.rand(100, 1, dtype=torch.float64, generator=generator)
            assert region.contains(share * pair[0] + (1 - share) * pair[1]).all()
            checked += 1
    assert checked > 200


@pytest.mark.slow
def test_the_single_radius_is_that_of_the_largest_ball() -> None:
    positive = 0
    for support, sigma, generator in instances(2):
        index = randint(0, len(support.points) - 1, generator)
        own, center = torch.tensor([index]), support.points[index]
        region = sub_region(support, index, sigma)
        radius = region.radius(center)
        if advantage(support, center[None], sigma, own) <= 0:
            assert radius == 0.0
            continue
        assert advantage(support, sphere(center, radius * (1 - 1e-9), 200, generator), sigma, own).min() > 0
        # Straight towards each point of another class: the nearest boundary is on one of these ways.
        ways = region.normals / region.normals.norm(dim=1, keepdim=True)
        assert advantage(support, center + radius * (1 - 1e-9) * ways, sigma, own).min() > 0
        assert advantage(support, center + radius * (1 + 1e-9) * ways, sigma, own).min() < 0
        positive += 1
    assert positive > 200


@pytest.mark.slow
def test_the_union_radius_is_never_below_the_single_radius() -> None:
    larger = 0
    for support, sigma, _ in instances(3):
        got = radii(support, [0, 1], sigma)
        for index, (single, union) in enumerate(zip(got.single.tolist(), got.union.tolist(), strict=True)):
            bound = union_radius_lower_bound(support, index, sigma)
            assert single <= bound <= union
            assert union == union_radius(support, index, sigma)
            region = sub_region(support, index, sigma)
            assert single == pytest.approx(region.radius(support.points[index]), rel=1e-10, abs=1e-12)
            larger += union > single * (1 + 1e-6)
    assert larger > 100


@pytest.mark.slow
def test_the_ball_of_the_union_radius_touches_a_tie() -> None:
    touched = 0
    for support, sigma, generator in instances(4, largest=24):
        assert support.labels is not None
        index = randint(0, len(support.points) - 1, generator)
        center, label = support.points[index], int(support.labels[index])
        nearest = nearest_outside(support, index, sigma)
        if nearest is None:
            assert union_radius(support, index, sigma) == math.inf
            continue
        assert nearest.distance == union_radius(support, index, sigma)
        assert float((nearest.point - center).norm()) == pytest.approx(nearest.distance, rel=1e-9, abs=1e-12)
        scores = log_posterior(support, nearest.point[None], sigma)[0] * sigma**2
        best = scores[support.labels == label].max()
        size = 1e-8 * (1 + float(nearest.point.square().sum()))
        assert int(support.labels[nearest.rival]) != label
        if nearest.distance == 0.0:
            assert scores[nearest.rival] >= best
            continue
        assert abs(float(scores[nearest.rival] - best)) < size
        assert float(scores.max() - best) < size
        ball = sphere(center, nearest.distance * (1 - 1e-7), 300, generator)
        inner = center + (1 - 1e-7) * (nearest.point - center)
        assert class_advantage(support, torch.cat([ball, inner[None]]), sigma, label).min() > 0
        touched += 1
    assert touched > 200


def test_least_distance_finds_known_solutions() -> None:
    """Problems made backwards from their Karush–Kuhn–Tucker conditions."""
    generator = np.random.default_rng(5)
    for number in range(INSTANCES):
        dimension = 1 + number % 64
        active, idle = int(generator.integers(1, dimension + 1)), int(generator.integers(0, 150))
        normals = generator.normal(size=(active + idle, dimension)) * generator.uniform(
            0.1, 10, (active + idle, 1)
        )
        point = generator.uniform(0.1, 1.0, active) @ normals[:active]
        slack = np.concatenate([np.zeros(active), generator.exponential(size=idle)])
        got = least_distance(normals, normals @ point - slack * np.linalg.norm(normals, axis=1))
        assert got is not None
        np.testing.assert_allclose(got, point, rtol=0, atol=1e-8 * float(np.linalg.norm(point)))


def test_least_distance_knows_nothing_from_everything() -> None:
    assert least_distance(np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([1.0, 0.5])) is None
    np.testing.assert_array_equal(least_distance(np.eye(3), -np.ones(3)), np.zeros(3))
    np.testing.assert_array_equal(least_distance(np.zeros((0, 3)), np.zeros(0)), np.zeros(3))


def test_a_projection_that_cannot_be_verified_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust_regions, "nnls", lambda matrix, target: (np.array([0.3, 0.1]), 0.0))
    with pytest.raises(RuntimeError, match="misses a half-space"):
        least_distance(np.eye(2), np.array([1.0, 1.0]))


def sampled_radius(support: FiniteSupport, index: int, sigma: float) -> float:
    """Union radius in the plane over 12,000 rays: along one, log posteriors are lines plus one parabola."""
    assert support.labels is not None
    center = support.points[index]
    own = support.labels == support.labels[index]
    offset = log_posterior(support, center[None], sigma)[0] * sigma**2

    def exits(angles: Tensor) -> Tensor:
        slope = torch.stack([angles.cos(), angles.sin()], dim=1) @ (support.points - center).T
        # Rival j beats i from where s·rise ≥ deficit; it is outside while it beats all i.
        rise = slope[:, ~own, None] - slope[:, None, own]
        deficit = (offset[own] - offset[~own, None]).expand_as(rise)
        cross = deficit / rise
        first = torch.where(rise > 0, cross, -math.inf).amax(2).clamp(min=0.0)
        last = torch.where(rise < 0, cross, math.inf).amin(2)
        never = ((rise == 0) & (deficit > 0)).any(2) | (first > last)
        return torch.where(never, math.inf, first).amin(1)

    angles = torch.linspace(0, 2 * math.pi, 8_000, dtype=torch.float64)
    distance = exits(angles)
    best = float(angles[distance.argmin()])
    around = best + torch.linspace(-2e-3, 2e-3, 4_000, dtype=torch.float64)
    return min(float(distance.min()), float(exits(around).min()))


@pytest.mark.slow
def test_the_union_radius_in_the_plane_against_sampling() -> None:
    generator = torch.Generator().manual_seed(6)
    for number in range(INSTANCES):
        plane, sigma = support_of(generator, 2, 10, equal=number % 2 == 0)
        sampled, exact = sampled_radius(plane, 0, sigma), union_radius(plane, 0, sigma)
        if sampled == math.inf:
            assert exact > 1e3
            continue
        assert exact - 1e-9 <= sampled <= exact + 1e-3


@pytest.mark.slow
def test_mixed_integer_programming_in_the_plane_against_sampling() -> None:
    generator = torch.Generator().manual_seed(7)
    for number in range(16):
        plane, sigma = support_of(generator, 2, 7, equal=number % 2 == 0)
        sampled = sampled_radius(plane, 0, sigma)
        assert union_radius_mip(plane, 0, sigma) == pytest.approx(sampled, abs=1e-3)


def surrounded(generator: torch.Generator, dimension: int) -> tuple[FiniteSupport, float]:
    """Four points of a class within four of another: the nearest tie often is a corner."""
    own = 0.5 * normal(generator, 4, dimension)
    rivals = normal(generator, 4, dimension)
    points = torch.cat([own, 1.5 * rivals / rivals.norm(dim=1, keepdim=True)])
    weights = torch.softmax(0.5 * normal(generator, 8), dim=0)
    return FiniteSupport(points, weights, torch.arange(8) // 4), 0.3


@pytest.mark.slow
def test_mixed_integer_programming_agrees_with_projections() -> None:
    generator, larger, corners = torch.Generator().manual_seed(8), 0, 0
    for number in range(32):
        if number % 2:
            support, sigma = surrounded(generator, 2 + number % 3)
        else:
            support, sigma = support_of(generator, 1 + number // 2 % 8, 7, equal=number % 4 == 0)
        expected = union_radius(support, 0, sigma)
        assert union_radius_mip(support, 0, sigma) == pytest.approx(expected, rel=1e-5)
        larger += expected > sub_region(support, 0, sigma).radius(support.points[0]) * (1 + 1e-6)
        corners += expected > union_radius_lower_bound(support, 0, sigma) * (1 + 1e-6)
    assert larger > 5
    assert corners > 2


def line(*points: float, labels: list[int], weights: list[float] | None = None) -> FiniteSupport:
    return FiniteSupport(
        torch.tensor(points, dtype=torch.float64)[:, None],
        None if weights is None else torch.tensor(weights, dtype=torch.float64),
        torch.tensor(labels),
    )


def test_known_radii() -> None:
    # From 0 the boundary to a rival at 2 is at 1, but there the point 1 of the class wins, until 1.5.
    support = line(0.0, 1.0, 2.0, labels=[0, 0, 1])
    assert sub_region(support, 0, 0.5).radius(support.points[0]) == 1.0
    assert union_radius(support, 0, 0.5) == pytest.approx(1.5, rel=1e-12)
    assert union_radius_mip(support, 0, 0.5) == pytest.approx(1.5, rel=1e-6)
    # Weights move both by σ²·log(p/p')/distance.
    support = line(0.0, 1.0, 2.0, labels=[0, 0, 1], weights=[0.2, 0.3, 0.5])
    shift = 0.25 * math.log(0.2 / 0.5) / 2
    assert sub_region(support, 0, 0.5).radius(support.points[0]) == pytest.approx(1 + shift, rel=1e-12)
    assert union_radius(support, 0, 0.5) == pytest.approx(1.5 + 0.25 * math.log(0.3 / 0.5), rel=1e-12)
    # A corner: the rival (2, 0) has to beat (1.2, ±0.3), which it does at once at (1.235/0.8, 0).
    corner = FiniteSupport(
        torch.tensor([[0.0, 0.0], [1.2, 0.3], [1.2, -0.3], [2.0, 0.0]], dtype=torch.float64),
        None,
        torch.tensor([0, 0, 0, 1]),
    )
    nearest = nearest_outside(corner, 0, 1.0)
    assert nearest is not None
    assert nearest.rival == 3
    torch.testing.assert_close(nearest.point, torch.tensor([1.235 / 0.8, 0.0], dtype=torch.float64))


def test_no_rival_no_boundary() -> None:
    alone = line(0.0, 1.0, labels=[0, 0])
    # So light that its neighbours hide it: no point is purified to 0.
    hidden = line(-1.0, 0.0, 1.0, labels=[0, 1, 0], weights=[0.5 - 5e-7, 1e-6, 0.5 - 5e-7])
    for support in (alone, hidden):
        assert nearest_outside(support, 0, 0.5) is None
        assert union_radius(support, 0, 0.5) == math.inf
        assert union_radius_mip(support, 0, 0.5) == math.inf
    assert union_radius_lower_bound(alone, 0, 0.5) == math.inf
    assert sub_region(alone, 0, 0.5).radius(alone.points[0]) == math.inf
    # And the hidden point itself is not in its region.
    assert radii(hidden, [1], 0.5).union.tolist() == [0.0]
    assert radii(hidden, [1], 0.5).single.tolist() == [0.0]
    assert union_radius_mip(hidden, 1, 0.5) == 0.0
    assert union_radius_lower_bound(hidden, 1, 0.5) == 0.0


def test_equal_weights_make_sigma_irrelevant() -> None:
    support, _ = support_of(torch.Generator().manual_seed(9), 5, 12, equal=True)
    everyone = range(len(support.points))
    torch.testing.assert_close(
        radii(support, everyone, 0.1).union, radii(support, everyone, 3.0).union, rtol=1e-12, atol=0
    )


@pytest.mark.slow
def test_digits() -> None:
    images, labels = dp.load_data("digits", split="train")
    support = FiniteSupport(images.double().flatten(1), None, labels)
    got = radii(support, [0, 22], 0.5)
    generator = torch.Generator().manual_seed(10)
    for index, union in zip((0, 22), got.union.tolist(), strict=True):
        ball = sphere(support.points[index], union * (1 - 1e-9), 200, generator)
        assert class_advantage(support, ball, 0.5, int(labels[index])).min() > 0
        nearest = nearest_outside(support, index, 0.5)
        assert nearest is not None
        # Uniform weights: from the tie on, straight to the rival, it wins.
        beyond = nearest.point + 1e-6 * (support.points[nearest.rival] - nearest.point)
        assert class_advantage(support, beyond[None], 0.5, int(labels[index])) < 0
    # One hyperplane decides for the first image: nobody else of its class is near the midpoint to the rival.
    assert float(got.union[0]) == pytest.approx(float(got.single[0]), rel=1e-12)
    assert got.union[1] > got.single[1] * (1 + 1e-6)


@pytest.mark.parametrize(
    "function", [sub_region, nearest_outside, union_radius, union_radius_lower_bound, union_radius_mip]
)
@pytest.mark.parametrize(
    ("index", "sigma", "message"),
    [
        (3, 0.5, r"index: expected an integer in \[0, 3\), got 3"),
        (-1, 0.5, "index: expected an integer ≥ 0, got -1"),
        (0, 0.0, "sigma: expected a finite number > 0, got 0.0"),
        (0, math.nan, "sigma: expected a finite number > 0, got nan"),
    ],
)
def test_bad_arguments(function: object, index: int, sigma: float, message: str) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match=message):
        function(line(0.0, 1.0, 2.0, labels=[0, 0, 1]), index, sigma)


def test_bad_supports_and_points() -> None:
    unlabelled = FiniteSupport(torch.zeros(1, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="support: expected labels"):
        sub_region(unlabelled, 0, 0.5)
    with pytest.raises(ValueError, match="support: expected labels"):
        union_region(unlabelled, 0, 0.5)
    with pytest.raises(ValueError, match=r"label: expected one of \[0, 1\], got 2"):
        union_region(line(0.0, 1.0, labels=[0, 1]), 2, 0.5)
    large = FiniteSupport(normal(torch.Generator(), 40, 2), None, torch.arange(40) % 2)
    with pytest.raises(ValueError, match=r"support: mixed-integer programming takes .* ≤ 64, got \d+·\d+"):
        union_radius_mip(large, 0, 0.5)
    with pytest.raises(ValueError, match="tolerance: expected a finite number > 0"):
        union_radius_mip(line(0.0, 1.0, labels=[0, 1]), 0, 0.5, tolerance=0.0)
    region = HalfSpaces(torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="points: expected points of 2 coordinates"):
        region.contains(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="center: expected finite coordinates, got NaN"):
        region.radius(torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match="center: expected points of 2 coordinates"):
        region.radius(torch.zeros(3))
