"""The figures behind the pictures of `diffproof theory`.

Every function computes those of one picture, and its result says them in a line.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from scipy.stats import binom
from torch import Tensor

from diffproof.checks import check_at_least
from diffproof.data.digits import load_digits
from diffproof.errors import ArgumentError
from diffproof.intervals import Share
from diffproof.theory.densities import GaussianMixture
from diffproof.theory.figures.setting import Setting
from diffproof.theory.finite_support import FiniteSupport
from diffproof.theory.high_density import HighDensityPurifier
from diffproof.theory.mixed_integer import MAX_PAIRS, union_radius_mip
from diffproof.theory.robust_regions import Nearest, Radii, nearest_outside, radii

# Cells along a side of the plane of decision regions, and how far it goes beyond [0, 1].
_CELLS = 64
_MARGIN = 0.25
_VOTES = (1, 5, 40)
# The numbers of votes whose agreement is drawn, odd ones; bins of the top class's mass.
AGREEMENT_VOTES = (1, 3, 5, 11, 21, 41)
_BINS = (0.5, 0.6, 0.75, 0.9, 1.0)
_PER_BIN = 100
# Kernel bandwidth and noise level of the digits' picture, in pixels.
_DIGITS = (0.5, 1.0)


@dataclass(frozen=True)
class Overlap:
    """How much of the density the best classifier gets wrong, without noise and with it."""

    setting: Setting
    clean_error: float
    noisy_error: float

    def __str__(self) -> str:
        s = self.setting
        return (
            f"density p of {s.num_classes} classes and p_t at σ = {s.sigma:.3f}: the best classifier errs on"
            f" {self.clean_error:.2%} of clean points and {self.noisy_error:.2%} of noisy ones"
        )


def overlap(setting: Setting) -> Overlap:
    """The Bayes errors, each from 50,000 samples."""

    def error(density: GaussianMixture) -> float:
        samples = density.sample(50_000, setting.generator(1))
        return 1 - float(density.class_shares(samples).amax(1).mean())

    return Overlap(setting, error(setting.density), error(setting.density.diffused(setting.sigma)))


@dataclass(frozen=True)
class Attacked:
    """A clean point before and after a step towards another class.

    Attributes:
        setting: what it is of.
        points: 2×2, clean and attacked.
        sigmas: the three noise levels, the setting's in the middle.
        modes: 3×2×2, the points of highest posterior density, by noise level and point.
        posterior_means: 3×2×2, likewise.
        masses: 3×2×classes, posterior masses.
        labels: 3×2, those of the high-density purifier.
        towards: the class of the step.
    """

    setting: Setting
    points: Tensor
    sigmas: list[float]
    modes: Tensor
    posterior_means: Tensor
    masses: Tensor
    labels: Tensor
    towards: int

    def __str__(self) -> str:
        own, sigma = int(self.setting.density.class_shares(self.points[:1])[0].argmax()), self.sigmas[1]
        before, after = self.masses[1, :, own].tolist()
        first, second = self.labels[1].tolist()
        apart = float((self.modes[1, 1] - self.posterior_means[1, 1]).norm())
        step = float((self.points[1] - self.points[0]).norm())
        return (
            f"posterior p(x0 | x_t) of a point of class {own} moved by {step:.3f} towards class"
            f" {self.towards}: at σ = {sigma:.3f} the mass of its class goes from {before:.2f} to"
            f" {after:.2f}, the high-density label from {first} to {second}; there the high-density point"
            f" and the posterior mean are {apart:.3f} apart"
        )


def attack(setting: Setting) -> Attacked:
    """From one component's mean to the nearest of another class, until the high-density label changes."""
    density, labels = setting.density, setting.density.check_labels()
    distances = torch.cdist(density.means, density.means).masked_fill(labels[:, None] == labels, math.inf)
    start, target = divmod(int(distances.argmin()), len(labels))
    way = torch.linspace(0, 1, 201, dtype=torch.float64)[:, None]
    path = density.means[start] + way * (density.means[target] - density.means[start])
    purifier = HighDensityPurifier(density)
    changed = purifier.labels(path, setting.sigma)
    changed = (changed != changed[0]).nonzero()[:, 0]
    points = path[[0, int(changed[0]) if len(changed) else -1]]
    sigmas = [setting.sigma / 2, setting.sigma, 2 * setting.sigma]
    return Attacked(
        setting,
        points,
        sigmas,
        torch.stack([purifier.purify(points, s).points for s in sigmas]),
        torch.stack([points + s**2 * density.score(points, s) for s in sigmas]),
        torch.stack([density.posterior_classes(points, s) for s in sigmas]),
        torch.stack([purifier.labels(points, s) for s in sigmas]),
        int(labels[target]),
    )


@dataclass(frozen=True)
class Regions:
    """A point of a finite support, the largest ball in its own region and that in its class's.

    Attributes:
        setting: what it is of.
        support: the points.
        index: which of them.
        single: radius of the ball in its own region.
        union: radius of the ball in its class's region.
        nearest: where the larger ball touches.
        checked: the union's radius by mixed-integer programming.
    """

    setting: Setting
    support: FiniteSupport
    index: int
    single: float
    union: float
    nearest: Nearest
    checked: float

    def __str__(self) -> str:
        label = int(self.support.check_labels()[self.index])
        return (
            f"robust regions of {len(self.support.points)} points at σ = {self.setting.sigma:.3f}, x0 of"
            f" class {label}: union radius {self.union:.4f} ="
            f" {self.union / self.single:.2f} × that of the largest ball in D_sub, {self.single:.4f};"
            f" mixed-integer programming {self.checked:.4f}"
        )


def regions(setting: Setting, count: int) -> Regions:
    """A support drawn from the density with masses ∝ p, and its point whose class gains it most.

    Args:
        setting: the density and the noise level.
        count: points, shared equally by the classes.

    Raises:
        ValueError: fewer points than classes, or too many for mixed-integer programming.
    """
    classes, generator = setting.num_classes, setting.generator(3)
    if check_at_least("points", count, 1) < classes:
        raise ArgumentError("points", f"expected one of each of {classes} classes at least, got {count}")
    counts = [count // classes + (label < count % classes) for label in range(classes)]
    if counts[0] * (count - counts[0]) > MAX_PAIRS:
        raise ArgumentError(
            "points",
            f"{count} points of {classes} classes are too many for mixed-integer programming, which"
            f" takes (points of a class)·(other points) ≤ {MAX_PAIRS}, got {counts[0]}·{count - counts[0]}",
        )
    points = torch.cat([setting.of_class(c).sample(n, generator) for c, n in enumerate(counts)])
    labels = torch.repeat_interleave(torch.arange(classes), torch.tensor(counts))
    support = FiniteSupport(points, torch.softmax(setting.density.log_density(points), 0), labels)
    single, union = radii(support, range(count), setting.sigma)
    gain = (union - single).masked_fill((single == 0) | ~union.isfinite(), -math.inf)
    index = int(gain.argmax())
    nearest = nearest_outside(support, index, setting.sigma)
    if nearest is None or single[index] == 0:
        raise ArgumentError(
            "points", f"at sigma = {setting.sigma:.3g} none of {count} points has a bounded region round it"
        )
    checked = union_radius_mip(support, index, setting.sigma)
    return Regions(setting, support, index, float(single[index]), float(union[index]), nearest, checked)


@dataclass(frozen=True)
class Decisions:
    """Labels of noisy points on the cells of a square.

    Attributes:
        setting: what they are of.
        side: the coordinates of the cells' centres.
        labels: labels by name, cells×cells (pixel 2, pixel 1); the first is the high-density purifier.
    """

    setting: Setting
    side: Tensor
    labels: dict[str, Tensor]

    def agreement(self, name: str) -> float:
        """Share of the cells where these labels are the high-density purifier's."""
        return float((self.labels[name] == next(iter(self.labels.values()))).double().mean())

    def __str__(self) -> str:
        _, *others = self.labels
        shares = ", ".join(f"{name} {self.agreement(name):.1%}" for name in others)
        low, high = self.ends
        return (
            f"decision regions at σ = {self.setting.sigma:.3f}: share of the plane [{low:g}, {high:g}]² with"
            f" the high-density label: {shares}"
        )

    @property
    def ends(self) -> tuple[float, float]:
        """The sides of the square."""
        half = float(self.side[1] - self.side[0]) / 2
        return round(float(self.side[0]) - half, 9), round(float(self.side[-1]) + half, 9)


def decisions(setting: Setting) -> Decisions:
    """The labels of real defences with the exact denoiser, the purifier's, and the posterior's top class."""
    width = 1 + 2 * _MARGIN
    side = -_MARGIN + width * (torch.arange(_CELLS, dtype=torch.float64) + 0.5) / _CELLS
    points = torch.cartesian_prod(side, side).flip(1)
    labels = {"high density": HighDensityPurifier(setting.density).labels(points, setting.sigma)}
    labels["DDS"] = setting.defense_labels(points, None)
    for votes in _VOTES:
        labels[f"DensePure, K = {votes}"] = setting.defense_labels(points, votes)
    labels["posterior's top class"] = setting.density.posterior_classes(points, setting.sigma).argmax(1)
    return Decisions(setting, side, {name: one.reshape(_CELLS, _CELLS) for name, one in labels.items()})


@dataclass(frozen=True)
class Agreement:
    """How DensePure's label depends on K.

    Attributes:
        setting: what it is of.
        bins: (low, high) posterior mass of the top class, low < mass ≤ high, where there are such points.
        top: by bin and K, share of points with the posterior's top class.
        dense: by bin and K, share of points with the high-density label.
        expected: by bin and K, mean probability that the top class has more than half of the votes.
        same: by bin, share of the points whose top class is the high-density label.
    """

    setting: Setting
    bins: list[tuple[float, float]]
    top: list[list[Share]] = field(default_factory=list)
    dense: list[list[Share]] = field(default_factory=list)
    expected: list[list[float]] = field(default_factory=list)
    same: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.bins:
            return f"votes: at σ = {self.setting.sigma:.3f} no point's top class has more than half the mass"
        sizes = [shares[0].images for shares in self.top]

        def overall(values: Sequence[float]) -> float:
            return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)

        first, last = (
            tuple(overall([s[k].value for s in shares]) for shares in (self.top, self.dense)) for k in (0, -1)
        )
        return (
            f"votes of DensePure at {sum(sizes)} points with a top class above 1/2: it gets {first[0]:.1%} at"
            f" K = {AGREEMENT_VOTES[0]} and {last[0]:.1%} at K = {AGREEMENT_VOTES[-1]} (binomial: at least"
            f" {overall([e[-1] for e in self.expected]):.1%}), the high-density label {first[1]:.1%} and"
            f" {last[1]:.1%}: the vote tends to the class of most mass, which is not that of highest density"
            f" at {1 - overall(self.same):.1%} of the points, whatever K"
        )


def agreement(setting: Setting) -> Agreement:
    """DensePure at up to 100 noisy points in each bin of the top class's mass, drawn from p_t."""
    pool = setting.density.diffused(setting.sigma).sample(20_000, setting.generator(5))
    mass, top = setting.density.posterior_classes(pool, setting.sigma).max(dim=1)
    chosen, bins = [], []
    for low, high in itertools.pairwise(_BINS):
        rows = ((mass > low) & (mass <= high)).nonzero()[:_PER_BIN, 0]
        if len(rows):
            chosen.append(rows)
            bins.append((low, high))
    result = Agreement(setting, bins)
    if not bins:
        return result
    every = torch.cat(chosen)
    dense = HighDensityPurifier(setting.density).labels(pool[every], setting.sigma)
    voted = [setting.defense_labels(pool[every], votes) for votes in AGREEMENT_VOTES]
    start = 0
    for rows in chosen:
        part = slice(start, start + len(rows))
        start += len(rows)

        def shares(wanted: Tensor, part: slice = part, count: int = len(rows)) -> list[Share]:
            return [Share.of(float((v[part] == wanted).double().mean()), count) for v in voted]

        result.top.append(shares(top[rows]))
        result.dense.append(shares(dense[part]))
        result.expected.append(
            [float(binom.sf(k // 2, k, mass[rows].numpy()).mean()) for k in AGREEMENT_VOTES]
        )
        result.same.append(float((top[rows] == dense[part]).double().mean()))
    return result


@dataclass(frozen=True)
class DigitRadii:
    """Radii round all training digits, by the weights of the support."""

    radii: dict[str, Radii]

    @staticmethod
    def larger(found: Radii) -> float:
        """Share of all digits where the union's radius is larger."""
        return float((found.union > found.single * (1 + 1e-6)).double().mean())

    @staticmethod
    def gains(found: Radii) -> Tensor:
        """union / single where the single region holds the digit."""
        return (found.union / found.single)[found.single > 0]

    def __str__(self) -> str:
        bandwidth, sigma = _DIGITS
        parts = []
        for name, found in self.radii.items():
            gains, without = self.gains(found), int((found.single == 0).sum())
            parts.append(
                f"with {name} weights larger for {self.larger(found):.1%}"
                f" (at most {float(gains.max()):.2f} ×; {without} outside their own D_sub)"
            )
        count = len(next(iter(self.radii.values())).union)
        return (
            f"union radius / radius in D_sub of {count} training digits at σ = {sigma:g}: {'; '.join(parts)};"
            f" kernel bandwidth {bandwidth:g}"
        )


def digit_radii() -> DigitRadii:
    """The training digits as support, with equal weights and with those of a kernel density."""
    data = load_digits("train")
    points, (bandwidth, sigma) = data.images.double().flatten(1), _DIGITS
    weights = torch.softmax(GaussianMixture.kernel_density(points, bandwidth).log_density(points), 0)
    every = range(len(points))
    return DigitRadii(
        {
            "equal": radii(FiniteSupport(points, None, data.labels), every, sigma),
            "kernel-density": radii(FiniteSupport(points, weights, data.labels), every, sigma),
        }
    )
