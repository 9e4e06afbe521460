"""Racing: the order against its law, the error rate against exact sums, and races against whole sums."""

from __future__ import annotations

import itertools
import math

import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.defenses.diffusion_classifier.racing import (
    Race,
    informative_shares,
    log_evidence,
    race_terms,
    visiting_order,
)
from diffproof.denoisers.multi_head import MultiHead
from diffproof.noise import Noise
from helpers.denoisers import CountingMixture, mixture
from helpers.noise import noise_of_images

SHAPE = (1, 2, 2)
CLASSES = 4
SIGMAS = torch.logspace(-2, 1, 60, dtype=torch.float64)


def class_mixture() -> CountingMixture:
    return mixture(SIGMAS, count=CLASSES, component_labels=range(CLASSES))


def noisy_means(rows: int = 6) -> Tensor:
    """The means of the classes in turn, with some noise."""
    generator = torch.Generator().manual_seed(2)
    images = class_mixture().means.reshape(-1, *SHAPE)[torch.arange(rows) % CLASSES]
    return (images + 0.1 * torch.randn(images.shape, generator=generator).double()).clamp(0, 1)


def exact_labels(classifier: dp.DiffusionClassifier, images: Tensor, noise: Noise, sigma: float) -> Tensor:
    loss = classifier.loss
    total = sum(loss.level_losses(images, noise, index, sigma=sigma) for index in loss.above(sigma))
    return (classifier.prior(images) - total).argmax(1)


def same(first: Race, second: Race) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in vars(first))


def test_order_has_the_law_of_successive_sampling() -> None:
    shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    count = 20_000
    order, left = visiting_order(noise_of_images(count), shares)
    seen, expected = [], []
    for permutation in itertools.permutations(range(3)):
        seen.append(int((order == torch.tensor(permutation)).all(1).sum()))
        first, second = shares[permutation[0]].item(), shares[permutation[1]].item()
        expected.append(count * first * second / (1 - first))
    # False alarm: 1e-6 for the seed.
    assert scipy.stats.chisquare(seen, expected).pvalue > 1e-6
    before = torch.cat([torch.zeros(count, 1), shares[order].cumsum(1)[:, :-1]], 1)
    torch.testing.assert_close(left, 1 - before, rtol=1e-12, atol=1e-12)


def test_order_is_a_function_of_the_row() -> None:
    shares = torch.rand(50, generator=torch.Generator().manual_seed(0)).double() + 0.1
    order, _ = visiting_order(noise_of_images(5), shares)
    alone, _ = visiting_order(noise_of_images(1, first=3), shares)
    assert torch.equal(order[3], alone[0])
    assert not torch.equal(order[3], order[2])
    assert not torch.equal(order, visiting_order(noise_of_images(5, seed=1), shares)[0])


@pytest.mark.parametrize("level", [0.05, 0.3, 2.0])
def test_profile_is_the_integral_over_components(level: float) -> None:
    # All but the defensive tenth is proportional to w·∫ σ²/(v + σ²)² dv up to the variance ¼.
    levels, weights = torch.tensor([level, 1.0]), torch.tensor([3.0, 2.0])

    def profile(sigma: float) -> float:
        return float(scipy.integrate.quad(lambda v: sigma**2 / (v + sigma**2) ** 2, 0, 0.25)[0])

    part = 3 * profile(level) / (3 * profile(level) + 2 * profile(1.0))
    shares = informative_shares(levels, weights)
    assert shares[0].item() == pytest.approx(0.9 * part + 0.1 * 0.6, rel=1e-6)
    assert shares.sum().item() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize(("total", "squares"), [(0.0, 0.0), (3.0, 4.0), (-5.0, 9.0), (30.0, 40.0)])
def test_evidence_is_the_mixture(total: float, squares: float) -> None:
    rate = 8.0

    def term(bet: float) -> float:
        weight = 2 * math.sqrt(rate / (2 * math.pi)) * math.exp(-rate * bet**2 / 2)
        return weight * math.exp(bet * total - bet**2 * squares / 2)

    value = log_evidence(torch.tensor(total).double(), torch.tensor(squares).double())
    assert value.exp().item() == pytest.approx(scipy.integrate.quad(term, 0, 12)[0], rel=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("error", [0.05, 0.3])
@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_error_rate(error: float, kind: str) -> None:
    # The hardest case: the winner is ahead by next to nothing, and anything but it at the end is an error.
    images, terms, classes = 1000, 80, 4
    generator = torch.Generator().manual_seed(3)
    levels = torch.logspace(-2, 1, terms, dtype=torch.float64)
    table = torch.randn(images, terms, classes, generator=generator, dtype=torch.float64)
    if kind == "skewed":
        table = table.square()
    table = table * 0.5 / (0.25 + levels[:, None] ** 2) + 20 * torch.rand(
        images, terms, 1, generator=generator
    )
    table = table - table.mean(1, keepdim=True)
    winner = torch.arange(images) % classes
    table[torch.arange(images), 0, winner] -= 1e-6
    shares = informative_shares(levels, torch.ones(terms))
    raced = race_terms(
        lambda rows, term, _: table[rows, term],
        noise_of_images(images),
        shares,
        torch.zeros(classes, dtype=torch.float64),
        error=error,
    )
    wrong = int((raced.labels != winner).sum())
    # False alarm: 1e-6 at the stated rate. A race that never errs would be no test of it.
    assert 0 < wrong <= scipy.stats.binom.ppf(1 - 1e-6, images, error)


def test_clear_winners_cost_little() -> None:
    images, terms, classes = 100, 500, 10
    levels = torch.logspace(-2, 1, terms, dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    table = torch.randn(images, terms, classes, generator=generator, dtype=torch.float64)
    winner = torch.arange(images) % classes
    table[torch.arange(images), :, winner] -= 1.0
    table = table / (0.25 + levels[:, None] ** 2)
    shares = informative_shares(levels, torch.ones(terms))
    zeros = torch.zeros(classes, dtype=torch.float64)
    noise = noise_of_images(images)
    costs = []
    for error in (0.1, 0.001):
        raced = race_terms(lambda rows, term, _: table[rows, term], noise, shares, zeros, error=error)
        # False alarm: below 1e-6 for a hundredth of the stated error, which so clear winners keep far from.
        assert int((raced.labels != winner).sum()) <= 2
        assert bool(raced.decided.all())
        costs.append(raced.evaluations.double().mean().item())
    assert costs[0] < costs[1] < terms * classes / 8


@pytest.mark.parametrize(
    ("sigma", "samples", "prior"), [(0.0, 1, None), (0.3, 1, None), (0.3, 2, [0.0, 0.3, 0.1, 0.0])]
)
def test_race_finds_the_label_of_the_whole_sum(sigma: float, samples: int, prior: list[float] | None) -> None:
    denoiser, images, noise = class_mixture(), noisy_means(), noise_of_images(6)
    classifier = dp.DiffusionClassifier(denoiser, samples=samples, log_prior=prior)
    noisy = images + sigma * noise.normal(SHAPE, 0, torch.float64)
    expected = exact_labels(classifier, noisy, noise, sigma)
    assert torch.equal(classifier._logits(noisy, noise, sigma).argmax(1), expected)
    denoiser.batches.clear()
    raced = classifier.race(noisy, noise, error=0.01, batch_size=7, sigma=sigma)
    # False alarm: 6·0.01 at most, were a label the hardest case.
    assert torch.equal(raced.labels, expected)
    assert denoiser.spent == int(raced.evaluations.sum()) < CLASSES * int(raced.visited.sum())
    assert denoiser.largest <= 7
    assert int(raced.visited.max()) <= samples * len(classifier.loss.above(sigma))


def test_the_temperature_divides_the_losses_and_not_the_prior() -> None:
    images, noise = noisy_means(), noise_of_images(6)
    losses = dp.DiffusionLoss(class_mixture()).losses(images, noise)
    # Of the first image, half of what would make up for the difference of two undivided losses.
    prior = [0.0, float(losses[0, 1] - losses[0, 0]) / 2, 0.0, 0.0]
    classifier = dp.DiffusionClassifier(class_mixture(), log_prior=prior, temperature=5.0)
    expected = (torch.tensor(prior) - losses / 5.0).argmax(1)
    for other in ((torch.tensor(prior) - losses).argmax(1), (-losses).argmax(1)):
        assert not torch.equal(expected, other)
    assert torch.equal(classifier.predict_labels(images, noise), expected)
    raced = classifier.race(images, noise, error=0.01, batch_size=24)
    # False alarm: 6·0.01 at most, were a label the hardest case.
    assert torch.equal(raced.labels, expected)


@pytest.mark.slow
def test_result_does_not_depend_on_the_batch() -> None:
    classifier, images, noise = dp.DiffusionClassifier(class_mixture()), noisy_means(), noise_of_images(6)
    first, *others = (classifier.race(images, noise, error=0.1, batch_size=size) for size in (5, 500))
    assert all(same(first, other) for other in others)
    alone = classifier.race(images[4:5], noise_of_images(1, first=4), error=0.1, batch_size=1)
    assert alone.labels[0] == first.labels[4]
    assert alone.evaluations[0] == first.evaluations[4]


@pytest.mark.slow
def test_undecided_races_end_in_the_whole_sum() -> None:
    # Two classes alike, which differ only by what the prior says.
    means = torch.rand(1, *SHAPE, dtype=torch.float64).expand(2, -1, -1, -1)
    denoiser = dp.GaussianMixtureDenoiser(
        means, torch.full((2,), 0.02), component_labels=[0, 1], sigmas=SIGMAS
    )
    for prior, label in (([0.0, 1e-9], 1), ([1e-9, 0.0], 0)):
        classifier = dp.DiffusionClassifier(denoiser, log_prior=prior, race_error=1e-6)
        raced = classifier.race(noisy_means(3), noise_of_images(3), error=1e-9, batch_size=8)
        assert raced.labels.tolist() == [label] * 3
        if not bool(raced.decided.any()):
            assert raced.evaluations.tolist() == [2 * len(SIGMAS)] * 3


@pytest.mark.slow
def test_classifier_races() -> None:
    denoiser, images, noise = class_mixture(), noisy_means(), noise_of_images(6)
    whole, raced = dp.DiffusionClassifier(denoiser), dp.DiffusionClassifier(denoiser, race_error=0.01)
    assert torch.equal(raced.predict_labels(images, noise), whole.predict_labels(images, noise))
    exact, found = (one.classify(images, 0.2, noise, 16) for one in (whole, raced))
    assert torch.equal(exact.labels, found.labels)
    assert found.denoiser_evaluations < exact.denoiser_evaluations


@pytest.mark.parametrize("sigma", [0.0, 0.25])
@pytest.mark.parametrize("weighting", ["simple", "vlb", "edm"])
def test_draws_add_up_to_a_level(sigma: float, weighting: str) -> None:
    classifier = dp.DiffusionClassifier(class_mixture(), samples=2, weighting=weighting)
    loss, images, noise = classifier.loss, noisy_means(3), noise_of_images(3)
    levels = torch.tensor([40, 50, 45])
    expected = torch.cat([loss.level_losses(images, noise, int(i), sigma=sigma) for i in levels]).view(
        3, 3, -1
    )
    labels = torch.tensor([2, 0, 3])
    both = [loss.draw_losses(images, noise, levels * 2 + sample, labels, sigma) for sample in range(2)]
    every = [loss.draw_losses(images, noise, levels * 2 + sample, None, sigma) for sample in range(2)]
    row = torch.arange(3)
    torch.testing.assert_close(both[0] + both[1], expected[row, row, labels], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(every[0] + every[1], expected[row, row], rtol=1e-12, atol=1e-12)


class Heads(nn.Module):
    """Three heads; counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(1, 3, 3, padding=1).double()
        self.rows = 0

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        self.rows += len(x)
        output: Tensor = torch.tanh(self.layer(x))
        return output


def test_pass_of_every_class_counts_once() -> None:
    heads = Heads()
    denoiser = dp.NetworkDenoiser(
        MultiHead(heads, 3), dp.DiscreteSchedule.linear(40, 0.01, 0.3), image_shape=SHAPE, num_classes=3
    )
    classifier = dp.DiffusionClassifier(denoiser)
    expected = exact_labels(classifier, noisy_means(4), noise_of_images(4), 0.0)
    heads.rows = 0
    raced = classifier.race(noisy_means(4), noise_of_images(4), error=0.01, batch_size=3)
    # False alarm: 4·0.01 at most.
    assert torch.equal(raced.labels, expected)
    assert heads.rows == int(raced.evaluations.sum()) == int(raced.visited.sum())


def test_one_class_needs_no_race() -> None:
    denoiser = dp.GaussianMixtureDenoiser(
        torch.zeros(1, *SHAPE), torch.ones(1), component_labels=[0], sigmas=SIGMAS
    )
    raced = dp.DiffusionClassifier(denoiser).race(noisy_means(2), noise_of_images(2), error=0.1, batch_size=2)
    assert raced.labels.tolist() == [0, 0]
    assert raced.evaluations.tolist() == [0, 0]


@pytest.mark.parametrize("error", [0.0, 1.0, -0.1, math.nan])
def test_error_outside_its_range(error: float) -> None:
    with pytest.raises(ValueError, match=r"^error: expected a number in \(0, 1\), got [^\n]*$"):
        dp.DiffusionClassifier(class_mixture()).race(
            noisy_means(), noise_of_images(6), error=error, batch_size=8
        )


def test_bad_inputs() -> None:
    classifier = dp.DiffusionClassifier(class_mixture())
    with pytest.raises(ValueError, match=r"^batch_size: expected an integer ≥ 1, got 0$"):
        classifier.race(noisy_means(), noise_of_images(6), error=0.1, batch_size=0)
    with pytest.raises(ValueError, match=r"^sigma: expected 0 ≤ sigma < 10 [^\n]*$"):
        classifier.race(noisy_means(), noise_of_images(6), error=0.1, batch_size=8, sigma=10.0)
    fresh = dp.DiffusionClassifier(class_mixture(), shared_noise=False)
    with pytest.raises(ValueError, match=r"^shared_noise: racing compares [^\n]*expected True, got False$"):
        fresh.race(noisy_means(), noise_of_images(6), error=0.1, batch_size=8)
    draws = torch.tensor([0, 59])
    with pytest.raises(ValueError, match=r"^draws: expected those of levels above sigma = 1, got \[0, 59\]$"):
        classifier.loss.draw_losses(noisy_means(2), noise_of_images(2), draws, torch.zeros(2).long(), 1.0)
    with pytest.raises(ValueError, match=r"^step: expected one a row, got shape \(2,\)$"):
        noise_of_images(3).normal(SHAPE, torch.tensor([1, 2]), torch.float64)


def test_losses_that_are_not_finite() -> None:
    def broken(rows: Tensor, terms: Tensor, wanted: Tensor) -> Tensor:
        return torch.full(wanted.shape, math.nan)

    with pytest.raises(ValueError, match=r"^denoiser: expected finite losses, got NaN or infinity$"):
        race_terms(broken, noise_of_images(2), torch.ones(5).double(), torch.zeros(3), error=0.1)
