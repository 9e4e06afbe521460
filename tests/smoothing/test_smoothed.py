"""Randomized smoothing against theory: a linear classifier, whose certified radius is known exactly."""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom, norm
from torch import Tensor, nn

import diffproof as dp
from diffproof.errors import is_out_of_memory
from diffproof.noise import Noise, Stream
from helpers.classifiers import steep_classifier
from helpers.denoisers import CountingMixture, mixture
from helpers.processes import exit_status, forked

WEIGHT = torch.tensor([3.0, -4.0], dtype=torch.float64)
BIAS = 0.5
SIGMA = 0.2


def linear(noisy: Tensor) -> Tensor:
    """Label 1 where w·x + b > 0; its exact radius under Gaussian smoothing is |w·x + b|/‖w‖."""
    return (noisy.flatten(1) @ WEIGHT + BIAS > 0).long()


def point(signed_distance: float) -> Tensor:
    """The image at that distance from the decision boundary, on label 1's side if positive."""
    centre = torch.tensor([0.5, 0.5], dtype=torch.float64)  # w·centre + b = 0
    return (centre + signed_distance * WEIGHT / 5).reshape(1, 1, 2)


class Theory(NamedTuple):
    """Exact mean and variance of the radius of one certification, and the probability that it is wrong."""

    mean: float
    variance: float
    failure: float


def theory(distance: float, label: int, n0: int, n: int, alpha: float) -> Theory:
    """By summing over the binomial pmf of both samples; `label` is the true one of two."""
    p = norm.cdf(distance / SIGMA)
    # A tie in the selection goes to label 0.
    right = binom.sf(n0 // 2, n0, p) if label == 1 else binom.sf((n0 - 1) // 2, n0, p)
    count = np.arange(1, n + 1)
    radius = np.maximum(SIGMA * norm.ppf(beta.ppf(alpha, count, n - count + 1)), 0.0)
    pmf_right, pmf_wrong = right * binom.pmf(count, n, p), (1 - right) * binom.pmf(count, n, 1 - p)
    mean = ((pmf_right + pmf_wrong) * radius).sum()
    square = ((pmf_right + pmf_wrong) * radius**2).sum()
    failure = (pmf_right * (radius > distance)).sum() + (pmf_wrong * (radius > 0)).sum()
    return Theory(float(mean), float(square - mean**2), float(failure))


@pytest.mark.slow
def test_linear_classifier_has_its_exact_radius() -> None:
    # As many failures among 720 as this alpha lets happen tell as much as one of 5% would among 13,000.
    n0, n, alpha, each = 50, 300, 0.5, 120
    smoothed = dp.Smoothed(linear, sigma=SIGMA, num_classes=2)
    places = [
        (label, SIGMA * float(norm.ppf(p)))
        for label, p in [(0, 0.51), (1, 0.6), (0, 0.75), (1, 0.9), (0, 0.97), (1, 0.99)]
    ]
    wrong, index, expected, apart, variance = 0, 0, [], 0.0, 0.0
    for label, distance in places:
        image = point(distance if label == 1 else -distance)
        assert abs(float(WEIGHT @ image.flatten()) + BIAS) / float(WEIGHT.norm()) == pytest.approx(distance)
        radii = []
        for _ in range(each):
            certificate = smoothed.certify(
                image, n0=n0, n=n, alpha=alpha, seed=7, image_index=index, batch_size=n
            )
            index += 1
            radii.append(certificate.radius)
            exact = distance if certificate.selected == label else 0.0
            wrong += certificate.radius > exact
        truth = theory(distance, label, n0, n, alpha)
        # Six groups and all of them together, five standard errors, two-sided: false-alarm rate below 5e-6.
        assert sum(radii) / each == pytest.approx(truth.mean, abs=5 * math.sqrt(truth.variance / each))
        apart += sum(radii) / each - truth.mean
        variance += truth.variance / each
        expected.append(truth.failure)
    assert abs(apart) < 5 * math.sqrt(variance)
    total = each * len(places)
    # At a true failure rate of alpha, five standard errors: false-alarm rate below 1e-6.
    assert wrong / total <= alpha + 5 * math.sqrt(alpha * (1 - alpha) / total)
    # The failures are not fewer than theory says either (false-alarm rate below 1e-6, two-sided).
    spread = math.sqrt(each * sum(rate * (1 - rate) for rate in expected))
    assert wrong == pytest.approx(each * sum(expected), abs=5 * spread)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "label"), [(0.5, 0), (0.6, 1), (0.68, 0), (0.8, 1)])
def test_predict_abstains_as_often_as_theory_says(share: float, label: int) -> None:
    n, alpha, runs = 100, 0.05, 150
    smoothed = dp.Smoothed(linear, sigma=SIGMA, num_classes=2)
    distance = SIGMA * float(norm.ppf(share))
    image = point(distance if label == 1 else -distance)
    given = [smoothed.predict(image, n=n, alpha=alpha, seed=seed) for seed in range(runs)]
    count = np.arange(n + 1)
    # Reject where the two-sided tail of Bin(n, 1/2) beyond the larger count is at most alpha.
    decided = 2 * binom.sf(np.maximum(count, n - count) - 1, n, 0.5) <= alpha
    pmf = binom.pmf(count, n, share)
    right, none = float(pmf[decided & (count > n / 2)].sum()), float(pmf[~decided].sum())
    # Eight comparisons at five standard errors: false-alarm rate below 5e-6 in all.
    for rate, seen in ((none, given.count(None)), (right, given.count(label))):
        assert seen == pytest.approx(runs * rate, abs=5 * math.sqrt(runs * rate * (1 - rate)) + 1e-9)


IMAGE = torch.tensor([[[0.2, 0.7], [0.55, 0.4]]], dtype=torch.float64)


def densepure(**settings: Any) -> dp.DensePure:
    return dp.DensePure(mixture(count=4), steep_classifier(hidden=8), **{"steps": 3, "votes": 9, **settings})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["none", "dds", "densepure", "consensus"])
def test_certificates_are_bit_identical_at_any_batch_size(method: str) -> None:
    defense: dp.CertifiableDefense
    if method == "none":
        defense = dp.Undefended(steep_classifier(hidden=8))
    elif method == "dds":
        defense = dp.DDS(mixture(count=4), steep_classifier(hidden=8))
    else:
        defense = densepure(consensus=3 if method == "consensus" else None)
    smoothed = dp.Smoothed(defense, sigma=0.5)
    one, seven, many = (
        smoothed.certify(IMAGE, n0=5, n=25, alpha=0.05, seed=3, image_index=5, batch_size=size)
        for size in (1, 7, 256)
    )
    assert one == seven == many
    assert len([count for count in many.counts if count]) > 1
    predictions = {smoothed.predict(IMAGE, n=12, alpha=0.3, seed=3, batch_size=size) for size in (1, 7, 256)}
    assert len(predictions) == 1


def test_a_defence_and_a_function_give_the_same_counts() -> None:
    model = steep_classifier(hidden=8)
    by_function = dp.Smoothed(lambda noisy: model(noisy).argmax(1), sigma=0.5, num_classes=3)
    arguments: dict[str, Any] = {"n0": 20, "n": 300, "alpha": 0.05, "seed": 1, "image_index": 2}
    first = dp.Smoothed(dp.Undefended(model), sigma=0.5).certify(IMAGE, **arguments)
    second = by_function.certify(IMAGE, **arguments)
    assert first.counts == second.counts
    assert first.selection_counts == second.selection_counts
    assert first.radius == second.radius
    assert (first.settings, second.settings) == ({"method": "none"}, {"method": "function"})
    assert second.weights_hash is None
    assert first.weights_hash is not None


class Recorder:
    """A base function that keeps the noise it was shown."""

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self.noise: list[Tensor] = []

    def __call__(self, noisy: Tensor) -> Tensor:
        self.noise.append(noisy - self.image)
        return torch.zeros(len(noisy), dtype=torch.int64)


def test_selection_estimation_and_prediction_draw_independently() -> None:
    image = torch.full((1, 8, 8), 0.5, dtype=torch.float64)
    base = Recorder(image)
    smoothed = dp.Smoothed(base, sigma=0.7, num_classes=2)
    smoothed.certify(image, n0=256, n=256, seed=4, image_index=1)
    smoothed.predict(image, n=256, seed=4, image_index=1)
    smoothed.predict(image, n=256, seed=5, image_index=1)
    smoothed.predict(image, n=256, seed=4, image_index=2)
    # Its first draw was asked for twice.
    drawn = torch.stack([noise.flatten() for noise in base.noise if len(noise) == 256])
    assert drawn.shape == (5, 256 * 64)
    # The level is exactly the one asked for, and no two of the five draws are correlated: 5 + 10 comparisons
    # at five standard errors, false-alarm rate below 1e-5.
    size = drawn.shape[1]
    assert drawn.std(1).tolist() == pytest.approx([0.7] * 5, abs=5 * 0.7 / math.sqrt(2 * size))
    correlation = torch.corrcoef(drawn) - torch.eye(5)
    assert float(correlation.abs().max()) < 5 / math.sqrt(size)


@pytest.mark.parametrize(("noise", "levels"), [("continuous", None), ("grid", 100)])
def test_noise_is_added_at_the_level_asked_for_not_the_denoiser_s(noise: str, levels: int | None) -> None:
    seen: list[Tensor] = []

    class Watched(dp.DDS):
        def classify(self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int) -> Any:
            seen.append(noisy)
            assert sigma == 0.302
            return super().classify(noisy, sigma, noise, batch_size)

    base = Watched(mixture(count=4), steep_classifier(hidden=8))
    smoothed = dp.Smoothed(base, sigma=0.302, noise=noise, levels=levels)
    certificate = smoothed.certify(IMAGE, n0=4, n=8, seed=6, image_index=9)
    assert certificate.sigma == 0.302
    assert certificate.grid_sigma == pytest.approx(0.3)
    for stream, noisy in zip((Stream.SELECTION, Stream.ESTIMATION), seen, strict=True):
        normal = Noise.for_draws(6, stream, 9, 0, len(noisy)).normal(IMAGE.shape, 0, torch.float64)
        if noise == "continuous":
            assert torch.equal(noisy, IMAGE + 0.302 * normal)
        else:
            whole = (100 * IMAGE).round() + (100 * 0.302 * normal).round()
            assert torch.equal(noisy, whole / 100)


def test_evaluations_are_those_spent() -> None:
    defense = densepure()
    classified = 0

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal classified
        classified += len(output)

    defense.classifier.register_forward_hook(count)
    certificate = dp.Smoothed(defense, sigma=0.5).certify(IMAGE, n0=10, n=90, batch_size=32)
    assert isinstance(defense.denoiser, CountingMixture)
    assert certificate.denoiser_evaluations == defense.denoiser.spent
    assert certificate.classifier_evaluations == classified
    assert certificate.naive_denoiser_evaluations == 100 * 9 * 3
    assert certificate.naive_classifier_evaluations == 100 * 9
    assert 100 < certificate.denoiser_evaluations < certificate.naive_denoiser_evaluations


@pytest.mark.parametrize(("method", "naive"), [("none", (0, 30)), ("dds", (30, 30))])
def test_evaluations_of_the_baselines(method: str, naive: tuple[int, int]) -> None:
    defense = (
        dp.Undefended(steep_classifier(hidden=8))
        if method == "none"
        else dp.DDS(mixture(count=4), steep_classifier(hidden=8))
    )
    made = dp.Smoothed(defense, sigma=0.5).certify(IMAGE, n0=10, n=20)
    assert (made.denoiser_evaluations, made.classifier_evaluations) == naive
    assert (made.naive_denoiser_evaluations, made.naive_classifier_evaluations) == naive


def test_certificate_states_all_that_it_needs() -> None:
    defense = densepure(consensus=4)
    smoothed = dp.Smoothed(defense, sigma=0.5)
    made = smoothed.certify(IMAGE, n0=10, n=200, alpha=0.01, seed=8, image_index=77, bound="two-sided")
    assert (made.n0, made.n, made.alpha, made.bound) == (10, 200, 0.01, "two-sided")
    assert (made.seed, made.image_index, made.sigma, made.grid_sigma) == (8, 77, 0.5, 0.5)
    assert sum(made.selection_counts) == 10
    assert sum(made.counts) == 200
    assert made.selected == made.selection_counts.index(max(made.selection_counts))
    assert made.settings == {
        "method": "densepure",
        "votes": 9,
        "steps": 3,
        "step_rule": "authors",
        "consensus": 4,
        "eta": 1.0,
    }
    assert made.version == version("diffproof")
    with pytest.raises(dataclasses.FrozenInstanceError, match="radius"):
        made.radius = 1.0  # type: ignore[misc]


def test_hashes_follow_image_and_weights() -> None:
    defense = densepure()
    first = dp.Smoothed(defense, sigma=0.5).certify(IMAGE, n0=1, n=1)
    again = dp.Smoothed(densepure(), sigma=0.5).certify(IMAGE.clone(), n0=1, n=1)
    assert (first.image_hash, first.weights_hash) == (again.image_hash, again.weights_hash)
    other = dp.Smoothed(defense, sigma=0.5).certify(IMAGE.flip(-1), n0=1, n=1)
    assert other.image_hash != first.image_hash
    assert other.weights_hash == first.weights_hash
    with torch.no_grad():
        next(defense.classifier.parameters())[0, 0] += 1e-9
    changed = dp.Smoothed(defense, sigma=0.5).certify(IMAGE, n0=1, n=1)
    assert changed.weights_hash != first.weights_hash


@pytest.mark.parametrize("bound", ["one-sided", "two-sided"])
@pytest.mark.parametrize("distance", [0.31, 0.0])
def test_certificate_survives_json_and_recomputes_itself(distance: float, bound: str) -> None:
    smoothed = dp.Smoothed(linear, sigma=SIGMA, num_classes=2)
    made = smoothed.certify(point(distance), n0=10, n=300, alpha=0.01, bound=bound)
    back = dp.Certificate.from_json(made.to_json())
    assert back == made
    assert isinstance(back.counts, tuple)
    assert made.recompute() == (made.p_a_lower, made.p_b_upper, made.radius)
    assert made.abstained == (distance == 0.0) == (made.label is None) == (made.radius == 0.0)
    # The same from the counts, in scipy's words.
    alpha = 0.01 if bound == "one-sided" else 0.005
    count = made.counts[made.selected]
    assert made.p_a_lower == pytest.approx(beta.ppf(alpha, count, 301 - count), rel=1e-10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "certificate: not readable"),
        ("3", "certificate: not readable"),
        ("{}", "certificate: not readable: label is missing"),
        (json.dumps({"selection_counts": [1], "counts": [1]}), "certificate: not readable: .*missing"),
        (json.dumps({"selected": 1, "radius": 2}), "certificate: not readable: .*missing"),
    ],
)
def test_unreadable_certificates(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dp.Certificate.from_json(text)


@pytest.mark.parametrize(("sigma", "nearest"), [(0.25, 0.25), (0.2524, 0.25), (0.2476, 0.25), (0.6, 0.6)])
def test_grid_sigma_within_one_percent(sigma: float, nearest: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        smoothed = dp.Smoothed(densepure(), sigma=sigma)
    assert smoothed.grid_sigma == pytest.approx(nearest)
    assert smoothed.sigma == sigma


@pytest.mark.parametrize(("sigma", "distance"), [(0.2526, r"1\.0%"), (0.275, r"9\.1%"), (0.31, r"3\.2%")])
def test_grid_sigma_further_away_warns(sigma: float, distance: str) -> None:
    with pytest.warns(UserWarning, match=f"nearest trained level is .* {distance} from {sigma}"):
        dp.Smoothed(dp.DDS(mixture(count=4), steep_classifier(hidden=8)), sigma=sigma)


def test_grid_sigma_of_continuous_denoisers_and_of_none() -> None:
    assert (
        dp.Smoothed(dp.DDS(mixture(None, count=4), steep_classifier(hidden=8)), sigma=0.3333).grid_sigma
        == 0.3333
    )
    assert dp.Smoothed(dp.Undefended(steep_classifier(hidden=8)), sigma=0.3333).grid_sigma is None
    assert dp.Smoothed(linear, sigma=0.3333, num_classes=2).grid_sigma is None


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ((IMAGE * 255).to(torch.uint8), r"image: expected floats in \[0, 1\], got torch.uint8; divide"),
        (IMAGE * math.nan, "image: expected finite pixels, got NaN or infinity"),
        (IMAGE * 2, r"image: expected pixels in \[0, 1\], got \[0.4, 1.4\]"),
        (IMAGE - 0.5, r"image: expected pixels in \[0, 1\], got \[-0.3, 0.2\]"),
        (IMAGE / 0, "image: expected finite pixels, got NaN or infinity"),
        (IMAGE[0], r"image: expected C×H×W, got shape \(2, 2\)"),
        (IMAGE[None], r"image: expected C×H×W, got shape \(1, 1, 2, 2\)"),
        (IMAGE[:0], r"image: expected at least one image, got shape \(1, 0, 2, 2\)"),
        (IMAGE.repeat(3, 1, 1), "the model takes 1×2×2 .*, got 3×2×2"),
        (IMAGE.repeat(1, 2, 1), "the model takes 1×2×2 .*, got 1×4×2"),
    ],
)
def test_images_that_are_refused(image: Tensor, message: str) -> None:
    smoothed = dp.Smoothed(dp.Undefended(steep_classifier(hidden=8)), sigma=0.5)
    with pytest.raises(ValueError, match=message):
        smoothed.certify(image, n0=1, n=1)
    with pytest.raises(ValueError, match=message):
        smoothed.predict(image, n=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n0": 0}, "n0: expected an integer ≥ 1, got 0"),
        ({"n": 0}, "n: expected an integer ≥ 1, got 0"),
        ({"n": 10.5}, "n: expected an integer ≥ 1, got 10.5"),
        ({"n": True}, "n: expected an integer ≥ 1, got True"),
        ({"alpha": 0.0}, r"alpha: expected a number in \(0, 1\), got 0.0"),
        ({"alpha": 1}, r"alpha: expected a number in \(0, 1\), got 1"),
        ({"batch_size": 0}, "batch_size: expected an integer ≥ 1, got 0"),
        ({"seed": -1}, r"seed: expected 0 ≤ seed < 2\^64, got -1"),
        ({"seed": 2**64}, r"seed: expected 0 ≤ seed < 2\^64"),
        ({"image_index": -1}, "image_index: expected 0 ≤ image_index ≤ 268435455, got -1"),
        ({"image_index": 2**28}, "image_index: expected 0 ≤ image_index ≤ 268435455"),
        ({"bound": "best"}, "bound: expected one of one-sided, two-sided, pixeldp, got 'best'"),
    ],
)
def test_arguments_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    shown = 0

    def base(noisy: Tensor) -> Tensor:
        nonlocal shown
        shown += len(noisy)
        return linear(noisy)

    smoothed = dp.Smoothed(base, sigma=SIGMA, num_classes=2)
    with pytest.raises(ValueError, match=message):
        smoothed.certify(point(0.1), **{"n0": 5, "n": 5, **arguments})
    # Nothing is computed before the arguments are known to be good.
    assert shown == 0
    if not {"n0", "bound"} & arguments.keys():
        with pytest.raises(ValueError, match=message):
            smoothed.predict(point(0.1), **{"n": 5, **arguments})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 2, 0]), r"base: expected labels in \[0, 2\), got 0 to 2"),
        (torch.tensor([0, -1, 1, 0]), r"base: expected labels in \[0, 2\), got -1 to 1"),
        (torch.tensor([0.0, 1.0, 0.0, 0.0]), r"expected 4 integer labels, got shape \(4,\), torch.float32"),
        (torch.tensor([False] * 4), r"expected 4 integer labels, got shape \(4,\), torch.bool"),
        (torch.zeros(4, 2), r"expected 4 integer labels, got shape \(4, 2\), torch.float32"),
        (torch.zeros(4, 1, dtype=torch.int64), r"expected 4 integer labels, got shape \(4, 1\), torch.int64"),
        (torch.zeros(3, dtype=torch.int64), r"expected 4 integer labels, got shape \(3,\), torch.int64"),
        (np.zeros(4, dtype=np.int64), "base: expected a tensor of 4 labels, got ndarray"),
        ([0, 1, 0, 1], "base: expected a tensor of 4 labels, got list"),
    ],
)
def test_outputs_of_a_base_function_that_are_refused(labels: Any, message: str) -> None:
    smoothed = dp.Smoothed(lambda noisy: labels, sigma=SIGMA, num_classes=2)
    with pytest.raises(ValueError, match=message):
        smoothed.predict(point(0.1), n=4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_labels_of_any_integer_type_count(dtype: torch.dtype) -> None:
    smoothed = dp.Smoothed(lambda noisy: linear(noisy).to(dtype), sigma=SIGMA, num_classes=2)
    expected = dp.Smoothed(linear, sigma=SIGMA, num_classes=2).certify(point(0.1), n0=10, n=50)
    assert smoothed.certify(point(0.1), n0=10, n=50) == expected


@pytest.mark.parametrize("sigma", [0.0, -0.5, math.nan, math.inf])
def test_sigma_that_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma: expected a finite number > 0"):
        dp.Smoothed(linear, sigma=sigma, num_classes=2)


@pytest.mark.parametrize("sigma", [0.04, 0.61])
def test_sigma_outside_the_denoiser_s_range(sigma: float) -> None:
    with pytest.raises(ValueError, match=r"sigma: expected 0.05 ≤ sigma ≤ 0.6"):
        dp.Smoothed(densepure(), sigma=sigma)


def test_steps_beyond_the_grid() -> None:
    with pytest.raises(ValueError, match=r"steps: the grid has 10 levels up to sigma = 0.5, got 11 steps"):
        dp.Smoothed(densepure(steps=11), sigma=0.5)


def test_number_of_classes() -> None:
    with pytest.raises(ValueError, match="num_classes: expected the number of labels of the base function"):
        dp.Smoothed(linear, sigma=SIGMA)
    with pytest.raises(ValueError, match="num_classes: expected an integer ≥ 2, got 1"):
        dp.Smoothed(linear, sigma=SIGMA, num_classes=1)
    with pytest.raises(ValueError, match="num_classes: the defence has 3, got 2"):
        dp.Smoothed(dp.Undefended(steep_classifier(hidden=8)), sigma=0.5, num_classes=2)
    assert dp.Smoothed(dp.Undefended(steep_classifier(hidden=8)), sigma=0.5, num_classes=3).num_classes == 3


def test_a_classifier_that_returns_nan() -> None:
    model = dp.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3).double()), 3)
    with torch.no_grad():
        next(model.parameters())[0, 0] = math.nan
    with pytest.raises(ValueError, match="classifier: expected finite logits, got NaN"):
        dp.Smoothed(dp.Undefended(model), sigma=0.5).certify(IMAGE, n0=1, n=1)


def test_other_errors_of_the_base_pass_through() -> None:
    def base(noisy: Tensor) -> Tensor:
        return noisy.reshape(-1, 3)

    with pytest.raises(RuntimeError, match="shape"):
        dp.Smoothed(base, sigma=SIGMA, num_classes=2).predict(point(0.1), n=1)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("unable to mmap 8 bytes from file <w>: Cannot allocate memory (12)"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_errors_that_mean_no_memory(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


class Hungry(torch.nn.Module):
    """Labels by brightness; each image takes `row` bytes meanwhile, of torch or numpy."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.row = 1

    def labels(self, noisy: Tensor) -> Tensor:
        if self.kind == "numpy":
            np.empty((len(noisy), self.row), dtype=np.uint8)
        else:
            torch.empty((len(noisy), self.row), dtype=torch.uint8)
        return (noisy.mean((1, 2, 3)) > 0.5).long()

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(self.labels(images), 2).float()


def run_out_of_memory(kind: str, row: int, found: Path) -> tuple[str, str, list[str]]:
    """What a process certifies with room for all, and with 1.6 GB more than it has, and its warnings then."""
    base = Hungry(kind)

    def certify() -> str:
        given = dp.Undefended(dp.Classifier(base, 2)) if kind == "defence" else base.labels
        smoothed = dp.Smoothed(given, sigma=0.5, num_classes=2)
        image = torch.full((1, 4, 4), 0.6)
        try:
            return smoothed.certify(image, n0=100, n=600, alpha=0.01, batch_size=256).to_json()
        except MemoryError as error:
            return f"MemoryError: {error}"

    def work() -> int:
        unlimited = certify()
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 1600 * 2**20,) * 2)
        base.row = row
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            limited = certify()
        messages = [str(warning.message) for warning in caught]
        found.write_text(json.dumps([unlimited, limited, messages]))
        return 0

    assert exit_status(forked(work)) == 0
    unlimited, limited, messages = json.loads(found.read_text())
    return unlimited, limited, messages


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
@pytest.mark.parametrize("kind", ["torch", "numpy", "defence"])
def test_batch_is_halved_when_memory_runs_out(kind: str, tmp_path: Path) -> None:
    # 32 MB an image, never touched: a batch of 64 needs more than there is, and more than what earlier tests
    # in this process have freed beside it; one of 32 needs 1 GB.
    unlimited, limited, messages = run_out_of_memory(kind, 32 * 2**20, tmp_path / "found")
    assert dp.Certificate.from_json(limited) == dp.Certificate.from_json(unlimited)
    # Estimation starts from what selection found to fit.
    halvings = [f"no memory for the batch: going on with {size} images" for size in (128, 64, 32)]
    assert messages == halvings


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_not_even_one_image_fits(kind: str, tmp_path: Path) -> None:
    _, limited, messages = run_out_of_memory(kind, 3200 * 2**20, tmp_path / "found")
    assert limited == "MemoryError: no memory for a batch of one image"
    assert messages[-1] == "no memory for the batch: going on with 1 images"


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(1), nn.Dropout(0.5)])
def test_networks_in_training_mode_are_refused(layer: nn.Module) -> None:
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(4, 3)).double()
    smoothed = dp.Smoothed(dp.Undefended(dp.Classifier(network, 3)), sigma=0.5)
    with pytest.raises(ValueError, match=f"classifier: {type(layer).__name__} is in training mode"):
        smoothed.certify(IMAGE, n0=1, n=1)
    network.eval()
    first, second = (smoothed.certify(IMAGE, n0=8, n=40, batch_size=size) for size in (3, 40))
    assert first.counts == second.counts


def test_weights_hash_covers_normalisation() -> None:
    network = steep_classifier(hidden=8).network
    hashes = {
        dp.Smoothed(
            dp.Undefended(dp.Classifier(network, 3, mean=[mean], std=[std])), sigma=0.5
        ).weights_hash()
        for mean, std in ((0.0, 1.0), (0.1, 1.0), (0.0, 2.0))
    }
    assert len(hashes) == 3


def test_certificates_name_the_weights_that_they_were_drawn_with() -> None:
    network = steep_classifier(hidden=8).network
    smoothed = dp.Smoothed(dp.Undefended(dp.Classifier(network.eval(), 3)), sigma=0.5)
    first, again = (smoothed.certify(IMAGE, n0=2, n=2).weights_hash for _ in range(2))
    # Not even a version counter of torch's tells of `data`.
    next(network.parameters()).data.mul_(1.5)
    assert smoothed.certify(IMAGE, n0=2, n=2).weights_hash == smoothed.weights_hash() != first == again
    before, weight = smoothed.weights_hash(), next(network.parameters())
    weight.data.copy_(weight.flip(0))
    assert smoothed.certify(IMAGE, n0=2, n=2).weights_hash == smoothed.weights_hash() != before


def test_certificates_can_be_hashed() -> None:
    smoothed = dp.Smoothed(linear, sigma=SIGMA, num_classes=2)
    made = [smoothed.certify(point(0.3), n0=5, n=20, seed=seed) for seed in (0, 0, 1)]
    assert len(set(made)) == 2
