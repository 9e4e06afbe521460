"""Scores of random defences: intervals against scipy, accuracies against counting by hand."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binom, binomtest
from torch import Tensor

import diffproof as dp
from diffproof.attacks.scoring import Scores, draw_labels, hits
from diffproof.defenses.base import Defense
from diffproof.intervals import Share, sign_test
from diffproof.noise import Noise, Stream


@pytest.mark.parametrize(("hits", "images"), [(0, 7), (7, 7), (3, 10), (51, 64)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_interval_is_clopper_and_pearsons(hits: int, images: int, confidence: float) -> None:
    made = Share.of(hits / images, images, confidence)
    exact = binomtest(hits, images).proportion_ci(confidence, "exact")
    assert made.low == pytest.approx(exact.low, abs=1e-12)
    assert made.high == pytest.approx(exact.high, abs=1e-12)
    assert (made.value, made.images) == (hits / images, images)


@pytest.mark.parametrize("n", [0, 1, 2, 17, 1000])
def test_the_sign_test_is_the_binomial_tail(n: int) -> None:
    for more in range(n + 1):
        assert sign_test(more, n - more) == pytest.approx(binom.sf(more - 1, n, 0.5), rel=1e-11, abs=0)


def test_a_fractional_share_lies_between_its_neighbours() -> None:
    low, middle, high = (Share.of(hits / 10, 10) for hits in (3, 3.5, 4))
    assert low.low < middle.low < high.low < middle.value < low.high < middle.high < high.high


@pytest.mark.parametrize(
    ("value", "images", "confidence", "message"),
    [
        (1.1, 5, 0.95, "value: expected a share in"),
        (0.5, 0, 0.95, "images: expected an integer ≥ 1"),
        (0.5, 5, 1.0, "confidence: expected a number in"),
    ],
)
def test_shares_refuse(value: float, images: int, confidence: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Share.of(value, images, confidence)


def test_the_four_accuracies_by_hand() -> None:
    drawn = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 2], [2, 2, 0, 1], [0, 1, 0, 1]])
    labels = torch.tensor([1, 1, 1, 1])
    seen = torch.tensor([False, True, True, False])
    made = Scores.of(hits(drawn, labels, seen, 3, draws=4, votes=4), draws=4, votes=4)
    # Right draws: 4, 2, 1 and 2 of 4; majorities 1, 1, 2 and 0 (a tie goes to the label seen first).
    assert made.fresh.value == pytest.approx(9 / 16)
    assert (made.majority.value, made.worst.value, made.optimisation.value) == (0.5, 0.25, 0.5)
    assert made.draws == 4


class Coin(Defense):
    """Its label is 1 where the noise of a row is above a threshold that the image gives, else 0."""

    method = "coin"

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        above = (noise.normal((1,), 0, torch.float64)[:, 0] > images.flatten(1).mean(1)).double()
        return torch.stack([1 - above, above], 1)


def test_drawn_labels_follow_the_noise_and_no_batch_size() -> None:
    classifier = dp.Classifier(torch.nn.Flatten(), 2)
    images = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64).reshape(3, 1, 1, 1)

    def drawn(seed: int, batch_size: int) -> Tensor:
        return draw_labels(
            Coin(classifier), images, draws=50, seed=seed, image_indices=[4, 9, 2], batch_size=batch_size
        )

    made = [drawn(3, size) for size in (1, 7, 500)]
    assert all(torch.equal(made[0], other) for other in made[1:])
    for row, index in enumerate([4, 9, 2]):
        normal = Noise.for_draws(3, Stream.SCORING, index, 0, 50).normal((1,), 0, torch.float64)[:, 0]
        assert torch.equal(made[0][row], (normal > images[row].mean()).long())
    assert not torch.equal(drawn(4, 9), made[0])


def test_a_defence_without_noise_is_asked_once() -> None:
    class Counting(dp.Undefended):
        asked = 0

        def respond(self, images: Tensor, noise: Noise) -> Tensor:
            self.asked += len(images)
            return super().respond(images, noise)

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    defense = Counting(dp.Classifier(network, 3))
    images = torch.rand(5, 1, 2, 2)
    made = draw_labels(defense, images, draws=6, seed=0, image_indices=range(5), batch_size=2)
    assert defense.asked == 5
    assert torch.equal(made, defense(images).argmax(1)[:, None].expand(5, 6))
