"""Smoothing noise on a grid of pixels: exact laws, and the theorem in floating point."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

import diffproof as dp
from diffproof.noise import Noise, Stream
from diffproof.smoothing.grid_noise import GridNoise, _law

# (levels, sigma): pictures, digits, images of two values, noise that is hardly any, and a fine grid.
LAWS = [
    (255, 0.25),
    pytest.param(255, 1.0, marks=pytest.mark.slow),
    (240, 0.5),
    (1, 0.3),
    (1, 0.1),
    (16, 0.05),
    pytest.param(4095, 0.3, marks=pytest.mark.slow),
]
WORD = 1 << 32


def exact_tail(k: int, levels: int, sigma: float) -> mpmath.mpf:
    """P(levels·sigma·Z > k − ½) from the distribution function at 50 digits."""
    with mpmath.workdps(50):
        return mpmath.ncdf(-(mpmath.mpf(k) - mpmath.mpf(1) / 2) / (mpmath.mpf(levels) * mpmath.mpf(sigma)))


def noise_of(rows: int, seed: int = 0) -> Noise:
    return Noise.for_draws(seed, Stream.ESTIMATION, 3, 0, rows)


def levels_of(noisy: Tensor, levels: int) -> Tensor:
    """The whole numbers that float(whole / levels) was made of, checked to be so."""
    whole = (noisy.double() * levels).round()
    assert (whole / levels).to(noisy.dtype).equal(noisy)
    return whole.long()


@pytest.mark.parametrize(("levels", "sigma"), LAWS)
def test_the_law_is_the_rounded_normal_but_for_the_failure_mass(levels: int, sigma: float) -> None:
    thresholds = [Fraction(one, 2**64) for one in _law(sigma, levels).thresholds.flip(0).tolist()]
    drawn = [*(a - b for a, b in zip(thresholds, [*thresholds[1:], Fraction(0)], strict=True))]
    with mpmath.workdps(50):
        tails = [exact_tail(k, levels, sigma) for k in range(1, len(drawn) + 2)]
        far = [
            abs(mpmath.mpf(p.numerator) / p.denominator - (tails[k] - tails[k + 1]))
            for k, p in enumerate(drawn)
        ]
        zero = abs(mpmath.mpf(thresholds[0].numerator) / thresholds[0].denominator - tails[0])
        # Both signs; the two halves of zero; what is cut off.
        distance = (2 * mpmath.fsum(far) + 2 * zero + 2 * tails[-1]) / 2
        stated = GridNoise(sigma, levels).failure_mass(1)
        assert distance <= stated < 1e-12
        assert max(far) < mpmath.mpf(2) ** -63


@pytest.mark.parametrize(("levels", "sigma"), LAWS)
def test_each_number_lies_between_its_thresholds(levels: int, sigma: float) -> None:
    law = _law(sigma, levels)
    ascending = law.thresholds.tolist()
    generator = np.random.default_rng(1)
    # At, beside and around every threshold, and anywhere, in every octave.
    near = [one + step for one in ascending for step in (-2, -1, 0, 1, 2, -WORD, WORD)]
    anywhere = [
        int(one) >> int(shift)
        for one, shift in zip(generator.integers(2**63, size=5000), range(5000), strict=True)
        if shift < 63
    ]
    anywhere += generator.integers(2**63, size=5000).tolist()
    tails = [one for one in near + anywhere if 0 <= one < 2**63]
    expected = [len(ascending) - bisect_right(ascending, one) for one in tails]
    high, low = (torch.tensor(part) for part in zip(*(divmod(one, WORD) for one in tails), strict=True))
    assert law.searched_to_the_end(high, low).tolist() == expected
    searched, tied = law.searched(high)
    untied = torch.ones(len(tails), dtype=torch.bool).index_fill(0, tied, False)
    assert searched[untied].tolist() == torch.tensor(expected)[untied].tolist()
    leads = {one >> 32 for one in ascending}
    assert (~untied).tolist() == [one >> 32 in leads for one in tails]
    for sign in (0, 1):
        whole, row, _ = law.whole((high | sign << 31)[:, None])
        sure = torch.ones(len(tails), dtype=torch.bool).index_fill(0, row, False)
        assert whole[sure, 0].tolist() == ((1 - 2 * sign) * torch.tensor(expected)[sure]).tolist()
        assert sure[len(near) :].double().mean() > 0.9


def test_images_and_noise_are_added_as_whole_numbers() -> None:
    image, noise = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(0)), noise_of(40)
    grid = GridNoise(0.25)
    noisy = grid.added(image, noise)
    bits = torch.cat([words for _, words in noise.words(75, 0)])
    low = torch.cat([words for _, words in noise.words(75, 0, low=True)])
    thresholds = _law(0.25, 255).thresholds.tolist()
    start = (image.double() * 255).round().long().flatten().tolist()
    for row in range(40):
        for column in range(75):
            word = int(bits[row, column])
            magnitude = len(thresholds) - bisect_right(
                thresholds, (word % 2**31) * WORD + int(low[row, column])
            )
            whole = start[column] + (-magnitude if word >> 31 else magnitude)
            assert float(noisy[row].flatten()[column]) == np.float32(whole / 255)
    assert noisy.shape == (40, 3, 5, 5)


def test_a_grid_point_is_one_number_whatever_image_and_noise_it_is_the_sum_of() -> None:
    grid, noise = GridNoise(0.25), noise_of(2000)
    values: dict[int, set[float]] = {}
    for level in (0, 1, 85, 254, 255):
        noisy = grid.added(torch.full((1, 4, 4), level / 255), noise).flatten()
        for whole, value in zip(levels_of(noisy, 255).tolist(), noisy.tolist(), strict=True):
            values.setdefault(whole, set()).add(value)
    assert len(values) > 500
    assert {len(found) for found in values.values()} == {1}


def test_draws_follow_the_law() -> None:
    """Chi-squared over magnitudes and signs; a right sampler fails for one seed in 10^6."""
    levels, sigma = 16, 0.25
    drawn = levels_of(
        GridNoise(sigma, levels).added(torch.zeros(1, 20, 25), noise_of(2000)), levels
    ).flatten()
    reach = 14
    tails = [float(exact_tail(k, levels, sigma)) for k in range(1, reach + 2)]
    side = [a - b for a, b in pairwise(tails)]
    shares = [tails[-1], *reversed(side), 1 - 2 * tails[0], *side, tails[-1]]
    counts = torch.bincount(drawn.clamp(-reach - 1, reach + 1) + reach + 1, minlength=2 * reach + 3)
    assert chisquare(counts.numpy(), np.array(shares) * len(drawn)).pvalue > 1e-6


@pytest.mark.parametrize(("levels", "sigma"), LAWS)
def test_devices_that_read_all_bits_draw_the_same(
    levels: int, sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, image, noise = GridNoise(sigma, levels), torch.rand(3, 16, 16), noise_of(200)
    usual = grid.added(image, noise)
    monkeypatch.setattr(grid, "_fill", grid._fill_by_all_bits)
    assert grid.added(image, noise).equal(usual)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_do_not_matter(batch: int) -> None:
    image, noise, grid = torch.rand(1, 33, 17), noise_of(64), GridNoise(0.5)
    parts = [grid.added(image, part) for part in noise.split(batch)]
    assert torch.cat(parts).equal(grid.added(image, noise))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_round_the_same_grid_points(dtype: torch.dtype) -> None:
    image, noise, grid = (torch.arange(64).reshape(1, 8, 8) / 255), noise_of(9), GridNoise(0.5)
    noisy = grid.added(image.to(dtype).float(), noise)
    assert grid.added(image.to(dtype), noise).equal((levels_of(noisy, 255).double() / 255).to(dtype))


def test_an_image_off_the_grid_is_brought_there() -> None:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(2))
    grid = GridNoise(0.25)
    moved = grid.certified(image)
    assert grid.certified(moved).equal(moved)
    assert (
        float((moved.double() - image.double()).norm())
        <= grid.off_grid(192)
        == pytest.approx(math.sqrt(192) / 510)
    )
    smoothed = dp.Smoothed(lambda noisy: (noisy.mean((1, 2, 3)) > 0.5).long(), 0.25, num_classes=2)
    made, same = smoothed.certify(image, n=200), smoothed.certify(moved, n=200)
    assert (made.counts, made.image_hash) == (same.counts, same.image_hash)
    assert same.moved < 1e-6 < made.moved <= made.off_grid
    assert (made.noise, made.levels, made.failure_mass) == ("grid", 255, grid.failure_mass(192))


def last_bits(noisy: Tensor) -> Tensor:
    """Whether some value has bits that no sum with 1/255 has: a function of the float, not of the image."""
    scaled = noisy.double() * 2.0**33
    return (scaled != scaled.round()).flatten(1).any(1).long()


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["continuous", "grid"])
def test_the_last_bits_break_continuous_noise_alone(noise: str) -> None:
    """Two images closer than both radii with two certified labels: one of the certificates is false."""
    first, second = torch.zeros(3, 32, 32), torch.full((3, 32, 32), 1 / 255)
    smoothed = dp.Smoothed(last_bits, 0.25, num_classes=2, noise=noise)
    one, other = (smoothed.certify(image, n=2000) for image in (first, second))
    distance = float((first - second).norm())
    contradict = {one.label, other.label} == {0, 1} and distance < min(one.radius, other.radius)
    assert contradict == (noise == "continuous")


@pytest.mark.parametrize("noise", ["grid", "continuous"])
def test_what_a_certificate_covers_is_exact(noise: str) -> None:
    image = torch.full((1, 4, 4), 1 / 255, dtype=torch.float64)
    smoothed = dp.Smoothed(
        lambda noisy: torch.zeros(len(noisy), dtype=torch.int64), 0.25, num_classes=2, noise=noise
    )
    made = smoothed.certify(image, n=200)
    other = image.clone()
    other[0, 0, 0], other[0, 1, 1] = 4 / 255, 5 / 255
    # (3, 4) levels apart: 5 of them.
    for radius, covered in (
        (5 / 255, None),
        (math.nextafter(5 / 255, 1), True),
        (math.nextafter(5 / 255, 0), False),
    ):
        said = replace(made, radius=radius).covers(image, other)
        # Of continuous noise the images are the floats themselves.
        exact = sum(
            (Fraction(a) - Fraction(b)) ** 2
            for a, b in zip(image.flatten().tolist(), other.flatten().tolist(), strict=True)
        )
        square = Fraction(25, 255**2) if noise == "grid" else exact
        assert said == (square <= Fraction(radius) ** 2)
        assert noise != "grid" or covered in (None, said)
    assert not replace(made, label=None, radius=0.0).covers(image, image)
    if noise == "grid":
        # Both are brought to the grid.
        assert replace(made, radius=5 / 255 * (1 + 1e-12)).covers(image + 0.001, other - 0.001)
    with pytest.raises(ValueError, match=r"^image: expected the image that was certified, got another one$"):
        made.covers(other, image)
    with pytest.raises(ValueError, match=r"^other: expected shape \(1, 4, 4\), got \(4, 4\)$"):
        made.covers(image, other[0])
    for wrong in (image * torch.nan, image + 2.0**60):
        with pytest.raises(ValueError, match=r"^other: expected (finite )?pixels"):
            made.covers(image, wrong)
