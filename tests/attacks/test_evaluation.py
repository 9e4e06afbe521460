"""An honest evaluation: which images are attacked, under which noise they are scored, and beside what."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import diffproof as dp
from diffproof.attacks.evaluation import Evaluated, evaluate, scores
from diffproof.attacks.views import FixedNoise
from diffproof.defenses.base import Defense
from diffproof.defenses.purifying.base import Purifier
from diffproof.noise import Noise, Stream

LINF = dp.Linf(0.2)


class Watched(Defense):
    """Two classes by the mean pixel against a threshold that noise moves; writes down what it is asked."""

    method = "watched"

    def __init__(self, spread: float) -> None:
        super().__init__(dp.Classifier(torch.nn.Flatten(), 2))
        self.spread = spread
        self.random = spread > 0
        self.asked: list[tuple[Stream, int, int]] = []

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        assert isinstance(noise.stream, Stream)
        indices, draws = noise.image_index.tolist(), noise.draw.tolist()
        self.asked += [(noise.stream, *pair) for pair in zip(indices, draws, strict=True)]
        move = self.spread * noise.normal((1,), 0, images.dtype)[:, 0]
        mean = images.flatten(1).mean(1) + move
        return torch.stack([0.5 - mean, mean - 0.5], 1)


class Shifted(Purifier):
    """Moves all pixels by one random amount, and asks another defence."""

    method = "shifted"

    def __init__(self, classifier: Defense, spread: float) -> None:
        denoiser = dp.GaussianMixtureDenoiser(flat(0.5), torch.ones(1, dtype=torch.float64))
        super().__init__(denoiser, classifier)
        self.spread = spread

    def purify(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        assert noise is not None
        return images + self.spread * noise.normal((1,), 0, images.dtype)[:, :, None, None]


def flat(*levels: float) -> Tensor:
    """Images of one grey each, 1×2×2."""
    return torch.tensor(levels, dtype=torch.float64)[:, None, None, None].expand(-1, 1, 2, 2).clone()


def made(defense: Defense, images: Tensor, labels: Tensor, **changes: object) -> tuple[Evaluated, ...]:
    settings: dict[str, object] = {"draws": 3, "votes": 5, "seed": 2, "batch_size": 64, **changes}
    view = dp.AttackedDefense(defense)
    attack = dp.PGD(iterations=4, eot=3 if defense.random else 1)
    return evaluate(view, images, labels, attack=attack, threat=LINF, **settings).images  # type: ignore[arg-type]


def test_what_is_wrong_already_is_not_attacked_and_counts_as_wrong() -> None:
    # Within 0.2 of 0.55 and 0.6 lies the threshold, of 0.9 it does not; 0.3 is wrong from the start.
    images, labels = flat(0.55, 0.9, 0.3, 0.6), torch.tensor([1, 1, 1, 1])
    found = made(Watched(0.0), images, labels)
    assert [one.result is None for one in found] == [False, False, True, False]
    assert [one.labels for one in found] == [(0,) * 5, (1,) * 5, (), (0,) * 5]
    clean, attacked = scores(found, 2, draws=3, votes=5)
    for name in ("fresh", "majority", "worst", "optimisation"):
        assert getattr(clean, name).value == 0.75
        assert getattr(attacked, name).value == 0.25
    # Without noise the clean image is looked at once.
    assert [one.control_wrong for one in found] == [False, False, True, False]


def test_the_three_noises_are_different_and_labels_are_drawn_of_the_attacked_image() -> None:
    defense = Watched(0.05)
    images, labels = flat(0.9, 0.52), torch.tensor([1, 1])
    found = made(defense, images, labels, image_indices=[7, 3])
    asked = {stream: {(i, d) for s, i, d in defense.asked if s is stream} for stream in Stream}
    assert asked[Stream.SCORING] == {(i, d) for i in (7, 3) for d in range(5)}
    assert asked[Stream.ATTACK] == {(i, d) for i in (7, 3) for d in range(5 * 3)}
    assert {d for i, d in asked[Stream.CONTROL] if i == 7} == set(range(15))
    assert set(asked) - {stream for stream in asked if not asked[stream]} == {
        Stream.SCORING,
        Stream.ATTACK,
        Stream.CONTROL,
    }
    for one, level in zip(found, (0.9, 0.52), strict=True):
        normal = {
            stream: 0.05
            * Noise.for_draws(2, stream, one.image_index, 0, 5).normal((1,), 0, torch.float64)[:, 0]
            for stream in (Stream.CONTROL, Stream.SCORING)
        }
        assert one.clean_labels == tuple((level + normal[Stream.CONTROL] > 0.5).long().tolist())
        assert one.result is not None
        reached = float(one.result.adversarial.mean())
        assert reached == pytest.approx(level - 0.2)
        assert one.labels == tuple((reached + normal[Stream.SCORING] > 0.5).long().tolist())


@pytest.mark.parametrize("gradient", ["exact", "bpda", "blind"])
def test_an_attack_that_knows_the_noise(gradient: str) -> None:
    """Whoever knows z wins where level − 0.2 + spread·z lies below the threshold, and only there."""
    levels = [0.55 + 0.01 * step for step in range(30)]
    images, labels = flat(*levels), torch.ones(30, dtype=torch.int64)
    defense: Defense = Watched(0.1)
    if gradient != "exact":
        defense = Shifted(Watched(0.0), 0.1)
    view = dp.AttackedDefense(defense, gradient)
    attack = dp.PGD(iterations=4, eot=3)
    found = evaluate(
        view, images, labels, attack=attack, threat=LINF, draws=3, votes=5, seed=2, fixed_noise=True
    ).images
    for one, level in zip(found, levels, strict=True):
        normal = Noise.for_draws(2, Stream.SCORING, one.image_index, 0, 1).normal((1,), 0, torch.float64)
        move = 0.1 * float(normal[0, 0])
        assert one.fixed_clean is (level + move > 0.5)
        attacked = one.result is not None
        assert one.fixed_right is (attacked and level - 0.2 + move > 0.5)
    clean, attacked_scores = scores(found, 2, draws=3, votes=5)
    assert clean.fixed is not None
    assert attacked_scores.fixed is not None
    assert attacked_scores.fixed.value == sum(bool(one.fixed_right) for one in found) / 30
    # The same without: nothing else changes.
    plain = evaluate(view, images, labels, attack=attack, threat=LINF, draws=3, votes=5, seed=2).images
    assert _plain(plain) == _plain(found)
    assert {one.fixed_right for one in plain} == {None}
    assert scores(plain, 2, draws=3, votes=5)[1].fixed is None


def test_fixed_noise_takes_one_draw_a_gradient() -> None:
    assert dp.PGD(eot=20).of_fixed_noise() == dp.PGD(eot=1)
    assert dp.AutoAttack(version="rand").of_fixed_noise() == dp.AutoAttack()
    known = FixedNoise(dp.AttackedDefense(Watched(0.1)), 2)
    rows = flat(0.6, 0.6)
    found = [known(rows, Noise.for_draws(seed, Stream.ATTACK, 4, seed, seed + 2)) for seed in (0, 7)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0][0], found[0][1])
    assert not known.random


@pytest.mark.slow
def test_the_control_finds_images_that_noise_alone_makes_wrong() -> None:
    # At 0.6 the answer is wrong in Φ(−2) = 2% of draws: seldom in 3, nearly always in 20·25 = 500.
    images, labels = flat(*[0.6] * 40), torch.ones(40, dtype=torch.int64)
    view = dp.AttackedDefense(Watched(0.05))
    attack = dp.PGD(iterations=19, eot=25, step=1e-9)
    found = evaluate(view, images, labels, attack=attack, threat=LINF, draws=3, votes=3, seed=0).images
    assert all(one.result is not None and one.result.forwards == 500 for one in found)
    clean, attacked = scores(found, 2, draws=3, votes=3)
    # An attack that does not move: what it "found" it found by looking often, and the control says so.
    assert clean.optimisation.value == attacked.optimisation.value == 0.0
    # 120 draws, each right with 0.977: below 0.9 with probability 3e-6.
    assert attacked.fresh.value > 0.9
    assert attacked.majority.value > 0.9


def test_neither_batch_size_nor_neighbours_change_a_result() -> None:
    images, labels = flat(0.55, 0.9, 0.3, 0.62), torch.ones(4, dtype=torch.int64)
    whole = made(Watched(0.05), images, labels)
    for batch_size in (1, 5):
        assert _plain(made(Watched(0.05), images, labels, batch_size=batch_size)) == _plain(whole)
    alone = made(Watched(0.05), images[3:], labels[3:], image_indices=[3])
    assert _plain(alone) == _plain(whole)[3:]


def _plain(found: Sequence[Evaluated]) -> list[object]:
    return [
        (
            one.clean_labels,
            one.labels,
            one.control_wrong,
            one.result and one.result.first_success,
            one.image_index,
        )
        for one in found
    ]


def test_a_transfer_attack_is_controlled_by_what_it_saw() -> None:
    # The classifier alone is not random: one look at the clean image.
    class Threshold(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            mean = images.flatten(1).mean(1)
            return torch.stack([0.5 - mean, mean - 0.5], 1)

    class Blurred(Watched):
        def __init__(self) -> None:
            super().__init__(0.05)
            self.classifier = dp.Classifier(Threshold(), 2)

    defense = Blurred()
    view = dp.AttackedDefense(defense, "blind")
    assert not view.random
    assert dp.AttackedDefense(defense).random
    attack = dp.PGD(iterations=3)
    (one,) = evaluate(
        view, flat(0.55), torch.tensor([1]), attack=attack, threat=LINF, draws=10, votes=10, seed=0
    ).images
    assert not one.control_wrong
    assert sum(stream is Stream.CONTROL for stream, *_ in defense.asked) == 10


class Careless(Defense):
    """Wrong in a tenth of draws, whatever the image."""

    method = "careless"

    def __init__(self) -> None:
        super().__init__(dp.Classifier(torch.nn.Flatten(), 4))

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        wrong = noise.normal((1,), 0, torch.float64)[:, 0] > 1.2816
        answer = torch.nn.functional.one_hot(wrong.long(), 4).to(images.dtype)
        # A trace of the image, so that there is a gradient.
        return 5 * answer + 1e-3 * images.flatten(1)[:, :4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        # 10 draws: two an iteration, and two of the last iterate; evaluated twice with mean_of="logits".
        (dp.PGD(iterations=4, eot=2), 0.9**10),
        (dp.PGD(iterations=4, eot=2, mean_of="logits"), 0.9**10),
        # Stops at the first success: the control must not stop there.
        (dp.Square(queries=7), 0.9**10),
    ],
    ids=["loss", "logits", "square"],
)
def test_an_attack_that_does_nothing_finds_what_the_control_finds(attack: dp.PGD, expected: float) -> None:
    images = torch.rand(70, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(len(images), dtype=torch.int64)
    view, threat = dp.AttackedDefense(Careless()), dp.Linf(0.01)
    found = evaluate(view, images, labels, attack=attack, threat=threat, draws=3, votes=3, seed=0).images
    attacked = [one for one in found if one.result is not None]
    # Two shares of 70 images about 0.35: 4.5 standard errors are 0.26; false alarm below 1e-5 each. A control
    # that stops where Square does would find 0.76.
    assert len(attacked) > 55
    control = sum(not one.control_wrong for one in attacked) / len(attacked)
    seen = sum(one.result is not None and not one.result.success for one in attacked) / len(attacked)
    assert abs(control - expected) < 0.26
    assert abs(seen - expected) < 0.26


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "classes"),
    [
        (dp.PGD(iterations=3, eot=2), 4),
        (dp.PGD(iterations=3, eot=2, mean_of="logits"), 6),
        (dp.Square(queries=20), 4),
        (dp.AutoAttack(version="rand", eot=1), 6),
        (dp.AutoAttack(version="rand", eot=2), 4),
    ],
    ids=["pgd", "logits", "square", "rand-1", "rand-2"],
)
def test_attacks_say_how_often_they_would_have_looked(attack: dp.Square, classes: int) -> None:
    class Sure(Defense):
        method = "sure"

        def respond(self, images: Tensor, noise: Noise) -> Tensor:
            trace = 1e-2 * images.flatten(1)[:, :classes] + 1e-3 * noise.normal((classes,), 0, images.dtype)
            return trace + 5 * torch.nn.functional.one_hot(torch.zeros(len(images)).long(), classes)

    images = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    (result,) = dp.attack(
        Sure(dp.Classifier(torch.nn.Flatten(), classes)),
        images,
        torch.zeros(1, dtype=torch.int64),
        attack=attack,
        threat=dp.Linf(0.05),
    )
    assert not result.success
    assert result.draws == attack.most_draws(result, classes)
    assert (result.forwards, result.backwards) == attack.most_evaluations(classes)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (flat(0.9) * 255, [1], r"images: expected pixels in \[0, 1\]"),
        (flat(0.9), [20], "labels: expected 0 ≤ label < 2"),
        (flat(0.9)[:0], [], "images: expected at least one image"),
    ],
)
def test_evaluations_check_what_they_are_given(images: Tensor, labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(Watched(0.0), images, torch.tensor(labels, dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"draws": 0}, "draws: expected an integer ≥ 1"), ({"votes": 0}, "votes: expected an integer ≥ 1")],
)
def test_evaluations_refuse(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(Watched(0.0), flat(0.9), torch.tensor([1]), **changes)


def test_scores_refuse() -> None:
    with pytest.raises(ValueError, match="images: expected an integer ≥ 1, got 0"):
        scores([], 2, draws=1, votes=1)
    found = made(Watched(0.0), flat(0.9), torch.tensor([1]))
    with pytest.raises(ValueError, match="votes: expected at most the 5 labels drawn, got 6"):
        scores(found, 2, draws=3, votes=6)
