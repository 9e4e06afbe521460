"""Defences against plain implementations: one vote at a time, nothing shared or stopped."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.attacks.scoring import draw_labels
from diffproof.catalog import DEFENSES, able
from diffproof.checks import (
    check_at_least,
    check_pixels,
    check_positive,
    check_probability,
    check_shape,
    unknown_name,
)
from diffproof.classifiers.base import check_logits, predicted_labels
from diffproof.defenses.named import set_precision
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.denoisers.unet import UNet2D
from diffproof.noise import Noise, Stream
from diffproof.reverse.levels import select_sigmas
from helpers.classifiers import steep_classifier
from helpers.denoisers import GRID, CountingMixture, mixture

SIGMA = 0.5
# Those that end in a classifier; diffusion_classifier/ has the others.
METHODS = [method for method in able(DEFENSES, "certify") if "classifier" in DEFENSES[method].networks]
SHAPE = (1, 2, 2)


class GriddedData(dp.EmpiricalDenoiser):
    """The optimal denoiser of a few images, on a grid of timesteps."""

    spent = 0

    def __init__(self, images: Tensor) -> None:
        super().__init__(images)
        self.sigmas = GRID
        self.sigma_min, self.sigma_max = float(GRID[0]), float(GRID[-1])

    def estimate(self, noisy: Tensor, sigma: Any, label: Tensor | None) -> Any:
        self.spent += len(noisy)
        return super().estimate(noisy, sigma, label)


def data() -> GriddedData:
    return GriddedData(torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(6)).double())


def unet_denoiser() -> NetworkDenoiser:
    """A random U-Net in float64 with a learned variance: 6 output for 3 input channels."""
    torch.manual_seed(3)
    unet = UNet2D(
        sample_size=4,
        in_channels=3,
        out_channels=6,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        dropout=0.0,
        norm_num_groups=4,
        add_attention=True,
        num_class_embeds=None,
    ).double()
    return dp.from_unet(unet, dp.DiscreteSchedule.linear(100, 1e-4, 0.1)).eval()


def scattered_noise(rows: int, seed: int = 0) -> Noise:
    """Rows of two images with draws that are no simple range."""
    index = torch.arange(rows)
    return Noise.for_rows(seed, Stream.ESTIMATION, 3 + index % 2, 5 * index + 1)


def noisy_images(
    rows: int, noise: Noise, shape: tuple[int, int, int] = SHAPE, sigma: float = SIGMA
) -> Tensor:
    clean = torch.full((rows, *shape), 0.5, dtype=torch.float64)
    return clean + sigma * noise.normal(shape, 0, torch.float64)


def plain_samples(defense: dp.DensePure, noisy: Tensor, sigma: float, noise: Noise, vote: int) -> Tensor:
    """A full reverse run of each row by the formula of DDPM's ancestral step, noisy = image + sigma·N(0, I).

    x ← x̂0 + √(s² − v)·(x − x̂0)/sigma + √w·z with v = w = eta²·s²(1 − s²/sigma²), but w learned where the
    denoiser has it.
    """
    own = Noise(
        noise.seed, noise.stream, noise.image_index, noise.draw, torch.full_like(noise.draw, vote + 1)
    )
    x = noisy
    levels = select_sigmas(defense.denoiser, sigma, defense.steps, defense.step_rule)
    for step, (high, low) in enumerate(itertools.pairwise([*levels, 0.0]), start=1):
        estimate = defense.denoiser.checked_estimate(x, high)
        clean = estimate.clean.clip(0, 1)
        if low == 0.0:
            return clean
        v = defense.eta**2 * low**2 * (1 - low**2 / high**2)
        learned = defense.denoiser.learned_variance(estimate, high, low) if defense.eta == 1.0 else None
        scale = torch.tensor(v).sqrt() if learned is None else learned.sqrt()
        z = own.normal(noisy.shape[1:], step, noisy.dtype)
        x = clean + math.sqrt(low**2 - v) / high * (x - clean) + scale * z
    raise AssertionError("no last level")


def plain_ballots(defense: dp.DensePure, noisy: Tensor, sigma: float, noise: Noise) -> list[list[int]]:
    with torch.no_grad():
        votes = [
            defense.classifier(plain_samples(defense, noisy, sigma, noise, vote)).argmax(1)
            for vote in range(defense.votes)
        ]
    return torch.stack(votes, dim=1).tolist()


def plain_label(ballot: list[int], consensus: int | None) -> int:
    """The first run of `consensus` equal votes, else the majority; Counter keeps the order of appearance."""
    for end in range(consensus or len(ballot) + 1, len(ballot) + 1):
        if consensus is not None and len(set(ballot[end - consensus : end])) == 1:
            return ballot[end - 1]
    counts = Counter(ballot)
    return max(counts, key=lambda label: counts[label])


def load(method: str, **settings: Any) -> dp.CertifiableDefense:
    """`load_defense` where it gives a defence that can be certified; "none" goes without the denoiser."""
    if method == "none":
        settings.pop("denoiser", None)
    defense = dp.load_defense(method, **settings)
    assert isinstance(defense, dp.CertifiableDefense)
    return defense


def counted(defense: dp.Defense) -> Callable[[], tuple[int, int]]:
    """Images that went through denoiser and classifier since, by forward hooks on the networks."""
    spent = {"denoiser": 0, "classifier": 0}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            spent[name] += len(output)

        return add

    assert defense.classifier is not None
    defense.classifier.register_forward_hook(hook("classifier"))
    if isinstance(defense.denoiser, NetworkDenoiser):
        defense.denoiser.network.register_forward_hook(hook("denoiser"))
        return lambda: (spent["denoiser"], spent["classifier"])
    denoiser = defense.denoiser
    assert isinstance(denoiser, CountingMixture | GriddedData)
    before = denoiser.spent
    return lambda: (denoiser.spent - before, spent["classifier"])


SETTINGS: list[dict[str, Any]] = [
    {"steps": 3, "votes": 9},
    {"steps": 4, "votes": 8, "step_rule": "paper"},
    {"steps": 5, "votes": 6, "step_rule": "log-sigma"},
    {"steps": None, "votes": 4},
    {"steps": 3, "votes": 10, "consensus": 3},
    {"steps": 3, "votes": 5, "consensus": 5},
    {"steps": 3, "votes": 5, "consensus": 1},
    {"steps": 3, "votes": 1},
    {"steps": 3, "votes": 7, "eta": 0.5},
    {"steps": 3, "votes": 7, "eta": 0.0},
    {"steps": 3, "votes": 7, "eta": 0.0, "consensus": 3},
    {"steps": 1, "votes": 7},
]


@pytest.mark.parametrize(
    ("denoiser", "settings"),
    [*(("mixture", settings) for settings in SETTINGS), *(("data", SETTINGS[at]) for at in (0, 3, 4))],
    ids=str,
)
def test_densepure_is_the_vote_over_full_reverse_runs(denoiser: str, settings: dict[str, Any]) -> None:
    defense = dp.DensePure(mixture() if denoiser == "mixture" else data(), steep_classifier(), **settings)
    noise = scattered_noise(12)
    noisy = noisy_images(12, noise)
    ballots = plain_ballots(defense, noisy, SIGMA, noise)
    if settings.get("eta") != 0.0 and settings["steps"] != 1 and settings["votes"] > 1:
        assert sum(len(set(ballot)) > 1 for ballot in ballots) >= 3, "votes differ, so the vote matters"
    expected = [plain_label(ballot, defense.consensus) for ballot in ballots]
    assert len(set(expected)) > 1
    assert defense.labels(noisy, SIGMA, noise).tolist() == expected

    read = counted(defense)
    steps = len(defense.sigmas(SIGMA))
    for batch_size, rows in ((1, 3), (7, 12), (256, 12)):
        before = read()
        made = defense.classify(noisy[:rows], SIGMA, scattered_noise(rows), batch_size)
        after = read()
        assert made.labels.tolist() == expected[:rows]
        spent = (after[0] - before[0], after[1] - before[1])
        assert (made.denoiser_evaluations, made.classifier_evaluations) == spent
        assert defense.evaluations_per_draw(SIGMA) == (defense.votes * steps, defense.votes)
        assert spent[0] <= rows * defense.votes * steps
        assert spent[1] <= rows * defense.votes
        if settings.get("eta") == 0.0 or settings["steps"] == 1:
            # All votes are the same sample, so one is enough.
            assert spent == (rows * steps, rows)
        else:
            # Each vote takes b − 1 evaluations beyond the shared first one.
            assert spent[0] == rows + (steps - 1) * spent[1]


@pytest.mark.parametrize("consensus", [None, 2])
def test_densepure_on_a_unet_with_learned_variance(consensus: int | None) -> None:
    denoiser = unet_denoiser()
    shape, sigma = (3, 4, 4), 0.8
    defense = dp.DensePure(denoiser, steep_classifier(4, shape), steps=3, votes=5, consensus=consensus)
    noise = scattered_noise(6, seed=2)
    noisy = noisy_images(6, noise, shape, sigma)
    with torch.no_grad():
        ballots = plain_ballots(defense, noisy, sigma, noise)
        assert sum(len(set(ballot)) > 1 for ballot in ballots) >= 3
        read = counted(defense)
        for batch_size, rows in ((1, 2), (7, 6), (256, 6)):
            before = read()
            made = defense.classify(noisy[:rows], sigma, scattered_noise(rows, seed=2), batch_size)
            assert made.labels.tolist() == [plain_label(ballot, consensus) for ballot in ballots[:rows]]
            spent = tuple(now - then for now, then in zip(read(), before, strict=True))
            assert (made.denoiser_evaluations, made.classifier_evaluations) == spent
            assert spent[0] == rows + 2 * spent[1] < rows * 5 * 3
        # A label may survive a wrong variance, the probabilities do not.
        samples = [plain_samples(defense, noisy, sigma, noise, vote) for vote in range(5)]
        mean = torch.stack([defense.classifier(sample).softmax(1) for sample in samples]).mean(0)
        assert torch.allclose(
            defense.logits(noisy[:1], sigma, scattered_noise(1, seed=2)).exp(), mean[:1], rtol=1e-9
        )


def test_early_stop_spends_what_the_one_by_one_rule_would() -> None:
    defense = dp.DensePure(mixture(), steep_classifier(), steps=3, votes=9)
    noise = scattered_noise(40)
    noisy = noisy_images(40, noise)
    ballots = plain_ballots(defense, noisy, SIGMA, noise)

    def cast(ballot: list[int]) -> int:
        # The first moment at which the leader wins even if all outstanding votes go to one rival.
        for length in range(1, 10):
            leader = plain_label(ballot[:length], None)
            if all(plain_label(ballot[:length] + [c] * (9 - length), None) == leader for c in range(3)):
                return length
        raise AssertionError("undecided")

    made = defense.classify(noisy, SIGMA, noise, 256)
    assert made.classifier_evaluations == sum(cast(ballot) for ballot in ballots)


def test_vote_shares_are_those_of_all_votes() -> None:
    defense = dp.DensePure(mixture(), steep_classifier(), steps=3, votes=8, consensus=2)
    noise = scattered_noise(12)
    noisy = noisy_images(12, noise)
    expected = [
        [ballot.count(label) / 8 for label in range(3)]
        for ballot in plain_ballots(defense, noisy, SIGMA, noise)
    ]
    assert defense.vote_shares(noisy, SIGMA, noise).tolist() == expected
    sure = dp.DensePure(mixture(), steep_classifier(), steps=3, votes=8, eta=0.0)
    assert sure.vote_shares(noisy, SIGMA, noise).amax(1).tolist() == [1.0] * 12


@pytest.mark.parametrize(
    "settings", [{"steps": 3, "votes": 5}, {"steps": 1, "votes": 3}, {"steps": 3, "eta": 0.0}]
)
def test_densepure_logits_are_the_log_of_the_mean_probability(settings: dict[str, Any]) -> None:
    defense = dp.DensePure(mixture(), steep_classifier(), **{"votes": 4, **settings})
    noise = scattered_noise(6)
    noisy = noisy_images(6, noise)
    probabilities = defense.logits(noisy, SIGMA, noise).detach().exp()
    samples = [plain_samples(defense, noisy, SIGMA, noise, vote) for vote in range(defense.votes)]
    mean = torch.stack([defense.classifier(sample).softmax(1) for sample in samples]).mean(0)
    assert torch.allclose(probabilities, mean, rtol=1e-10)
    assert probabilities.sum(1).tolist() == pytest.approx([1.0] * 6)


def test_one_step_is_diffusion_denoised_smoothing() -> None:
    noise = scattered_noise(30)
    noisy = noisy_images(30, noise)
    one = dp.DensePure(mixture(), steep_classifier(), steps=1, votes=6)
    dds = dp.DDS(mixture(), steep_classifier())
    assert one.classify(noisy, SIGMA, noise, 7).labels.equal(dds.classify(noisy, SIGMA, noise, 4).labels)
    # And that is the classifier on the clipped posterior mean.
    clean = mixture()(noisy, SIGMA).clip(0, 1)
    assert dds.labels(noisy, SIGMA, noise).equal(steep_classifier()(clean).argmax(1))
    assert torch.allclose(dds.logits(noisy, SIGMA, noise), steep_classifier()(clean), rtol=1e-12)
    shares = one.logits(noisy, SIGMA, noise)
    assert torch.allclose(shares, dds.logits(noisy, SIGMA, noise).log_softmax(1), rtol=1e-10)
    assert len(set(dds.labels(noisy, SIGMA, noise).tolist())) > 1


@pytest.mark.parametrize("method", ["none", "dds"])
def test_baselines_spend_one_evaluation_a_draw(method: str) -> None:
    denoiser = mixture()
    defense = load(method, classifier=steep_classifier(), denoiser=denoiser)
    noise = scattered_noise(23)
    noisy = noisy_images(23, noise)
    made = [defense.classify(noisy, SIGMA, noise, batch_size) for batch_size in (1, 7, 256)]
    each = 23 if method == "dds" else 0
    assert denoiser.spent == 3 * each
    assert all(m.labels.equal(made[0].labels) for m in made)
    assert {m[1:] for m in made} == {(each, 23)}
    assert defense.evaluations_per_draw(SIGMA) == (each // 23, 1)
    assert defense.settings() == {"method": method}


def test_undefended_is_the_classifier_on_noise() -> None:
    network = nn.Linear(4, 3).double()
    defense = dp.Undefended(dp.Classifier(nn.Sequential(nn.Flatten(), network), 3), sigma=0.3)
    images = torch.rand(5, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = scattered_noise(5)
    x = (images + 0.3 * noise.normal(SHAPE, 0, torch.float64)).flatten(1)
    expected = x @ network.weight.T + network.bias
    assert torch.allclose(defense(images, noise), expected, rtol=1e-12)
    assert defense.labels(x.reshape(5, *SHAPE), 0.3, noise).equal(expected.argmax(1))


def built(method: str, sigma: float | None = SIGMA) -> dp.CertifiableDefense:
    settings = {"steps": 3, "votes": 4} if method == "densepure" else {}
    denoiser = None if method == "none" else mixture()
    return load(method, classifier=steep_classifier(), denoiser=denoiser, sigma=sigma, **settings)


@pytest.mark.parametrize("method", METHODS)
def test_same_noise_same_logits_and_no_noise_is_random(method: str) -> None:
    defense = built(method)
    images = torch.rand(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = scattered_noise(3)
    assert torch.equal(defense(images, noise), defense(images, noise))
    assert torch.equal(
        defense(images, noise),
        defense.logits(images + SIGMA * noise.normal(SHAPE, 0, images.dtype), SIGMA, noise),
    )
    assert not torch.equal(defense(images, noise), defense(images, scattered_noise(3, seed=1)))
    torch.manual_seed(0)
    first, second = defense(images), defense(images)
    assert not torch.equal(first, second)
    # The rows of one call get different noise, and torch's seed fixes it.
    same = defense(images[:1].repeat(3, 1, 1, 1))
    assert len(same.unique(dim=0)) == 3
    torch.manual_seed(0)
    assert torch.equal(defense(images), first)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_the_call_against_central_differences(method: str) -> None:
    defense = built(method)
    images = torch.rand(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    noise = scattered_noise(2)
    labels = torch.tensor([1, 0])

    def loss(x: Tensor) -> Tensor:
        return nn.functional.cross_entropy(defense(x, noise), labels, reduction="sum")

    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    assert float(gradient.abs().min()) > 1e-6
    width = 1e-6
    for index in range(images.numel()):
        offset = torch.zeros(images.numel(), dtype=torch.float64)
        offset[index] = width
        offset = offset.reshape(images.shape)
        with torch.no_grad():
            slope = float(loss(images + offset) - loss(images - offset)) / (2 * width)
        assert slope == pytest.approx(float(gradient.flatten()[index]), rel=1e-6, abs=1e-8)


def test_a_batch_of_densepure_is_of_votes_and_changes_nothing() -> None:
    images = torch.rand(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found, drawn = {}, {}
    for batch_size in (8, 24, 1000):
        largest: list[int] = []
        defense = built("densepure")
        assert isinstance(defense, dp.DensePure)
        assert defense.votes == 4
        defense.denoiser.register_forward_pre_hook(lambda _, given, to=largest: to.append(len(given[0])))
        defense.classifier.register_forward_pre_hook(lambda _, given, to=largest: to.append(len(given[0])))
        indices = range(3)
        found[batch_size] = dp.attack(
            defense,
            images,
            torch.tensor([1, 0, 2]),
            attack="pgd",
            threat=dp.Linf(0.1),
            iterations=2,
            eot=2,
            image_indices=indices,
            batch_size=batch_size,
        )
        # Two images and draws of noise at a time, six, and all.
        assert max(largest) == min(batch_size, 3 * 2 * 4)
        largest.clear()
        drawn[batch_size] = draw_labels(
            defense, images, draws=5, seed=0, image_indices=indices, batch_size=batch_size
        )
        assert max(largest) == min(batch_size, 3 * 5 * 4)
    for batch_size in (8, 24):
        assert torch.equal(drawn[batch_size], drawn[1000])
        for one, other in zip(found[batch_size], found[1000], strict=True):
            assert torch.allclose(one.adversarial, other.adversarial, rtol=0, atol=1e-12)
            assert (one.first_success, one.forwards) == (other.first_success, other.forwards)


def test_rows_of_densepure_before_a_defence() -> None:
    # Each sample of a vote is a row for each class of the classifier behind.
    denoiser = dp.GaussianMixtureDenoiser(
        torch.rand(3, *SHAPE).double(), torch.full((3,), 0.02), component_labels=[0, 1, 2], sigmas=GRID
    )
    inner = dp.DiffusionClassifier(denoiser)
    defense = dp.DensePure(mixture(), inner, steps=3, votes=5, sigma=SIGMA)
    assert (inner.rows_per_image, defense.rows_per_image) == (3, 15)
    assert dp.AttackedDefense(defense).images_at_once(64) == 4


def test_gradients_reach_networks_through_the_learned_variance() -> None:
    defense = dp.DensePure(unet_denoiser(), steep_classifier(4, (3, 4, 4)), steps=3, votes=2, sigma=0.8)
    noise = scattered_noise(1)
    images = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)

    def loss() -> Tensor:
        logits: Tensor = defense(images, noise)
        return logits[0, 0]

    parameters = dict(defense.named_parameters())
    # The last layer's biases: three of the prediction and three of the variance.
    bias = parameters["denoiser.network.unet.conv_out.bias"]
    gradient = torch.autograd.grad(loss(), [bias, *defense.classifier.parameters()])
    assert all(bool(part.abs().sum() > 0) for part in gradient)
    width = 1e-6
    for index in range(6):
        with torch.no_grad():
            bias[index] += width
            above = float(loss())
            bias[index] -= 2 * width
            slope = (above - float(loss())) / (2 * width)
            bias[index] += width
        assert slope == pytest.approx(float(gradient[0][index]), rel=1e-4, abs=1e-8)
    assert float(gradient[0][3:].abs().max()) > 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_mode_of_autograd_is_the_callers(method: str) -> None:
    defense = built(method)
    images = torch.full((2, *SHAPE), 0.5, dtype=torch.float64)
    assert defense(images).requires_grad
    assert defense.logits(images, SIGMA, scattered_noise(2)).requires_grad
    with torch.no_grad():
        assert not defense(images).requires_grad


def test_load_defense() -> None:
    kinds = {"none": dp.Undefended, "dds": dp.DDS, "densepure": dp.DensePure}
    for method, kind in kinds.items():
        defense = built(method, sigma=0.25)
        assert type(defense) is kind
        assert defense.method == method
        assert defense.sigma == 0.25
    made = dp.load_defense("densepure", classifier=steep_classifier(), denoiser=mixture(), votes=3, steps=2)
    assert isinstance(made, dp.DensePure)
    assert (made.votes, made.steps) == (3, 2)
    plain = dp.DensePure(mixture(), steep_classifier())
    assert (plain.steps, plain.votes, plain.consensus) == (10, 40, None)


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_networks(method: str) -> None:
    torch.manual_seed(0)
    shape = (3, 4, 4)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    model = dp.Classifier(network, 3, image_shape=shape, mean=[0.5] * 3, std=[0.25] * 3)
    denoiser = unet_denoiser().float()
    settings = {"steps": 2, "votes": 3} if method == "densepure" else {}
    defense = load(method, classifier=model, denoiser=denoiser, sigma=0.8, **settings)
    noise = scattered_noise(40)
    images = torch.full((40, *shape), 0.5)
    noisy = images + 0.8 * noise.normal(shape, 0, torch.float32)
    with torch.no_grad():
        exact, labels = defense(images, noise), defense.labels(noisy, 0.8, noise)
        assert set_precision(defense, torch.bfloat16) is defense
        rounded, again = defense(images, noise), defense.labels(noisy, 0.8, noise)
    assert {p.dtype for p in defense.parameters()} == {torch.bfloat16}
    assert rounded.dtype == torch.float32
    # bfloat16 has 8 significant bits: other values, the same function.
    assert not torch.equal(rounded, exact)
    assert torch.allclose(rounded, exact, atol=0.2)
    assert float((labels == again).double().mean()) > 0.8


def test_precision_leaves_closed_forms_alone() -> None:
    defense = dp.DDS(mixture(), steep_classifier())
    set_precision(defense, torch.bfloat16)
    noise = scattered_noise(2)
    assert defense.logits(noisy_images(2, noise), SIGMA, noise).dtype == torch.float64
    assert isinstance(defense.denoiser, CountingMixture)
    assert defense.denoiser.means.dtype == torch.float64


class Returns(nn.Module):
    """A classifier that answers with whatever it is told to."""

    num_classes = 3

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Tensor:
        return self.answer(images)


WRONG_ANSWERS: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (lambda x: torch.full((len(x), 3), math.nan), "classifier: expected finite logits, got NaN"),
    (lambda x: torch.tensor([[0.0, math.nan, 1.0]]).repeat(len(x), 1), "expected finite logits, got NaN"),
    (lambda x: torch.full((len(x), 3), -math.inf), "expected finite logits, got a row of infinities"),
    (
        lambda x: torch.zeros(len(x), dtype=torch.int64),
        r"expected 3 logits an image, got torch.int64 \(labels\?\)",
    ),
    (lambda x: torch.zeros(len(x), 3, dtype=torch.int64), r"expected 3 logits an image, got torch.int64"),
    (lambda x: torch.zeros(len(x), 4), r"expected logits \d+×3, got shape \(\d+, 4\)"),
    (lambda x: torch.zeros(len(x)), r"expected logits \d+×3, got shape \(\d+,\)"),
    (lambda x: torch.zeros(len(x), 3, 1), r"expected logits \d+×3, got shape \(\d+, 3, 1\)"),
    (lambda x: torch.zeros(len(x) + 1, 3), r"expected logits \d+×3, got shape \(\d+, 3\)"),
]


@pytest.mark.parametrize(("answer", "message"), WRONG_ANSWERS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrapped", [True, False])
def test_answers_of_a_classifier_that_are_refused(
    answer: Callable[[Tensor], Tensor], message: str, method: str, wrapped: bool
) -> None:
    model: nn.Module = Returns(answer)
    if wrapped:
        model = dp.Classifier(model, 3)
    settings = {"steps": 2, "votes": 3} if method == "densepure" else {}
    defense = load(method, classifier=model, denoiser=mixture(), **settings)
    noise = scattered_noise(4)
    with pytest.raises(ValueError, match=message):
        defense.labels(noisy_images(4, noise), SIGMA, noise)
    if "finite" not in message:
        with pytest.raises(ValueError, match=message):
            defense.logits(noisy_images(4, noise), SIGMA, noise)


def test_infinite_logits_that_still_say_a_label() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf], [math.inf, 0.0, 1.0]])
    assert predicted_labels(logits).tolist() == [1, 0]


@pytest.mark.parametrize("method", METHODS)
def test_images_of_another_shape_are_refused(method: str) -> None:
    defense = built(method)
    owner = "classifier" if method == "none" else "denoiser"
    for shape, got in (((2, 3, 2, 2), "3×2×2"), ((2, 1, 4, 2), "1×4×2")):
        message = rf"images: the {owner} takes 1×2×2 \(channels×height×width\), got {got}"
        with pytest.raises(ValueError, match=message):
            defense.labels(torch.zeros(shape, dtype=torch.float64), SIGMA, scattered_noise(2))
        with pytest.raises(ValueError, match=message):
            defense(torch.zeros(shape, dtype=torch.float64), scattered_noise(2))
    with pytest.raises(ValueError, match=r"images: expected N×C×H×W, got shape \(2, 4\)"):
        defense.labels(torch.zeros(2, 4, dtype=torch.float64), SIGMA, scattered_noise(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"votes": 0}, "votes: expected an integer ≥ 1, got 0"),
        ({"votes": 2.5}, "votes: expected an integer ≥ 1, got 2.5"),
        ({"votes": 65_536}, "votes: expected at most 65535, got 65536"),
        ({"steps": 0}, "steps: expected an integer ≥ 1, got 0"),
        ({"steps": -3}, "steps: expected an integer ≥ 1, got -3"),
        ({"consensus": 0}, "consensus: expected an integer ≥ 1, got 0"),
        ({"votes": 5, "consensus": 6}, "consensus: expected consensus ≤ votes = 5, got 6"),
        ({"eta": -0.1}, r"eta: expected a number in \[0, 1\], got -0.1"),
        ({"eta": 1.1}, r"eta: expected a number in \[0, 1\], got 1.1"),
        ({"eta": math.nan}, r"eta: expected a number in \[0, 1\], got nan"),
        ({"step_rule": "fast"}, "step_rule: expected one of authors, paper, log-sigma, got 'fast'"),
        ({"sigma": 0.0}, "sigma: expected a finite number > 0, got 0.0"),
    ],
)
def test_settings_of_densepure_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dp.DensePure(mixture(), steep_classifier(), **settings)
    with pytest.raises(ValueError, match=message):
        dp.load_defense("densepure", classifier=steep_classifier(), denoiser=mixture(), **settings)


@pytest.mark.parametrize(
    ("settings", "sigma", "message"),
    [
        ({"steps": 11}, 0.5, "steps: the grid has 10 levels up to sigma = 0.5, got 11 steps"),
        ({"steps": 12}, 0.6, "steps: 12 steps from sigma = 0.6 repeat a level of the grid"),
        ({"steps": 3}, 0.7, "sigma: expected 0.05 ≤ sigma ≤ 0.6"),
        ({"steps": 3}, 0.04, "sigma: expected 0.05 ≤ sigma ≤ 0.6"),
        ({"steps": 3}, 0.0, "sigma: expected a finite number > 0, got 0"),
        ({"steps": 3}, math.inf, "sigma: expected a finite number > 0, got inf"),
    ],
)
def test_sigma_and_steps_that_do_not_fit_the_grid(
    settings: dict[str, Any], sigma: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dp.DensePure(mixture(), steep_classifier(), **settings).check_sigma(sigma)
    if 0 < sigma < math.inf:
        noise = scattered_noise(1)
        with pytest.raises(ValueError, match=message):
            dp.DensePure(mixture(), steep_classifier(), **settings).labels(
                noisy_images(1, noise, sigma=sigma), sigma, noise
            )


def test_authors_rule_needs_timesteps() -> None:
    defense = dp.DensePure(mixture(None), steep_classifier(), steps=3)
    with pytest.raises(ValueError, match="step_rule: this denoiser has no timesteps"):
        defense.check_sigma(SIGMA)


def test_sigma_of_the_baselines() -> None:
    with pytest.raises(ValueError, match=r"sigma: expected 0\.05 ≤ sigma ≤ 0\.6"):
        dp.DDS(mixture(), steep_classifier()).check_sigma(0.7)
    with pytest.raises(ValueError, match="sigma: expected a finite number > 0, got -1"):
        dp.Undefended(steep_classifier()).check_sigma(-1)
    dp.Undefended(steep_classifier()).check_sigma(0.7)


def test_defences_that_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="classifier: expected a module with num_classes; wrap yours"):
        dp.Undefended(nn.Linear(4, 3))
    other = dp.Classifier(nn.Flatten(), 4, image_shape=(3, 2, 2))
    with pytest.raises(
        ValueError, match=r"classifier: takes \(3, 2, 2\) images, but the denoiser gives \(1, 2, 2\)"
    ):
        dp.DDS(mixture(), other)
    with pytest.raises(ValueError, match="sigma: expected a finite number > 0, got nan"):
        dp.DDS(mixture(), steep_classifier(), sigma=math.nan)
    with pytest.raises(ValueError, match="defense: unknown name 'densepur'; did you mean densepure"):
        dp.load_defense("densepur", classifier=steep_classifier(), denoiser=mixture())
    with pytest.raises(ValueError, match="defense: unknown name 'xyz'; known: adp, agdm, apndc, coup, dc, d"):
        dp.load_defense("xyz", classifier=steep_classifier(), denoiser=mixture())
    for method in ("dds", "densepure"):
        with pytest.raises(ValueError, match=f"denoiser: the method '{method}' needs one, got None"):
            dp.load_defense(method, classifier=steep_classifier())


def test_calling_a_defence_without_sigma() -> None:
    with pytest.raises(ValueError, match="sigma: calling 'dds' needs its setting sigma"):
        built("dds", sigma=None)(torch.zeros(1, *SHAPE))


def test_a_defence_without_its_parts() -> None:
    bare = dp.CertifiableDefense(steep_classifier(), sigma=SIGMA)
    with pytest.raises(TypeError, match=r"CertifiableDefense does not define classify\(\)"):
        bare.labels(torch.zeros(1, *SHAPE), SIGMA, scattered_noise(1))
    with pytest.raises(TypeError, match=r"CertifiableDefense does not define logits\(\)"):
        bare(torch.zeros(1, *SHAPE), scattered_noise(1))
    with pytest.raises(TypeError, match=r"^Defense does not define respond\(\)"):
        dp.Defense(steep_classifier())(torch.zeros(1, *SHAPE), scattered_noise(1))


def test_classifier_normalises() -> None:
    model = dp.Classifier(nn.Flatten(), 8, image_shape=(2, 2, 2), mean=[0.5, 0.25], std=[0.5, 2.0])
    images = torch.rand(3, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([(images[:, 0] - 0.5) / 0.5, (images[:, 1] - 0.25) / 2.0], 1).flatten(1)
    assert torch.allclose(model(images), expected)
    grey = dp.Classifier(nn.Flatten(), 4)
    assert torch.equal(grey(images[:, :1]), images[:, :1].flatten(1))
    assert grey(images[:, :1].float()).dtype == torch.float32


def test_classifier_runs_in_the_dtype_of_its_parameters() -> None:
    model = dp.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 3)
    assert model(torch.zeros(1, *SHAPE, dtype=torch.float64)).dtype == torch.float64
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1}, "num_classes: expected an integer ≥ 2, got 1"),
        ({"num_classes": 3, "mean": [0.5]}, "mean, std: expected both or neither"),
        ({"num_classes": 3, "std": [0.5]}, "mean, std: expected both or neither"),
        (
            {"num_classes": 3, "image_shape": (3, 2, 2), "mean": [0.5], "std": [0.5]},
            "mean, std: expected 3 values each, got 1 and 1",
        ),
        (
            {"num_classes": 3, "mean": [0.5, 0.5], "std": [0.5]},
            "mean, std: expected 2 values each, got 2 and 1",
        ),
        ({"num_classes": 3, "mean": [0.5], "std": [0.0]}, r"std: expected positive values, got \[0.0\]"),
    ],
)
def test_classifiers_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dp.Classifier(nn.Flatten(), **settings)


def test_check_logits_returns_good_ones() -> None:
    logits = torch.rand(2, 3)
    assert check_logits(logits, 2, 3) is logits
    assert check_logits(logits.bfloat16(), 2, 3).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            torch.zeros(1, 1, 2, 2, dtype=torch.uint8),
            r"x: expected floats in \[0, 1\], got torch.uint8; divide 8-bit",
        ),
        (torch.zeros(1, 2, 2), r"x: expected N×C×H×W, got shape \(1, 2, 2\)"),
        (torch.zeros(0, 1, 2, 2), r"x: expected at least one image, got shape \(0, 1, 2, 2\)"),
        (torch.full((1, 1, 2, 2), math.nan), "x: expected finite pixels, got NaN or infinity"),
        (torch.full((1, 1, 2, 2), math.inf), "x: expected finite pixels, got NaN or infinity"),
        (torch.full((1, 1, 2, 2), 1.01), r"x: expected pixels in \[0, 1\], got \[1.01, 1.01\]"),
        (torch.full((1, 1, 2, 2), -0.01), r"x: expected pixels in \[0, 1\], got \[-0.01, -0.01\]"),
    ],
)
def test_check_pixels(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_pixels(images, "x")


def test_checks_return_what_is_good() -> None:
    images = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    assert check_pixels(images) is images
    check_shape(images, (1, 1, 2), "model")
    check_shape(images, None, "model")
    assert check_at_least("x", 3, 3) == 3
    assert check_positive("x", 1e-300) == 1e-300
    assert check_probability("x", 0.5) == 0.5


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_at_least("x", 2, 3), "x: expected an integer ≥ 3, got 2"),
        (lambda: check_at_least("x", True, 0), "x: expected an integer ≥ 0, got True"),
        (lambda: check_at_least("x", 3.0, 0), "x: expected an integer ≥ 0, got 3.0"),  # type: ignore[arg-type]
        (lambda: check_probability("x", 0.0), "x: expected a number in (0, 1), got 0.0"),
        (lambda: check_probability("x", 1.0), "x: expected a number in (0, 1), got 1.0"),
        (lambda: check_positive("x", 0.0), "x: expected a finite number > 0, got 0.0"),
        (lambda: check_positive("x", math.inf), "x: expected a finite number > 0, got inf"),
        (lambda: check_positive("x", math.nan), "x: expected a finite number > 0, got nan"),
        (lambda: check_shape(torch.zeros(2), None, "y"), "images: expected N×C×H×W, got shape (2,)"),
        (
            lambda: check_shape(torch.zeros(1, 1, 2, 3), (1, 3, 2), "y"),
            "images: the y takes 1×3×2 (channels×height×width), got 1×2×3",
        ),
    ],
)
def test_checks_refuse(check: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check()


def test_unknown_names_come_with_the_nearest_known() -> None:
    assert str(unknown_name("kind", "digit", ["digits", "cifar10"])) == (
        "kind: unknown name 'digit'; did you mean digits?"
    )
    assert str(unknown_name("kind", "qqq", ["b", "a"])) == "kind: unknown name 'qqq'; known: a, b"


class Broken(dp.GaussianMixtureDenoiser):
    """Estimates NaN."""

    def estimate(self, noisy: Tensor, sigma: Any, label: Tensor | None) -> Any:
        return super().estimate(noisy * math.nan, sigma, label)


@pytest.mark.parametrize("method", ["dds", "densepure"])
def test_a_denoiser_that_gives_nan_is_named(method: str) -> None:
    broken = Broken(torch.zeros(1, *SHAPE), torch.ones(1), sigmas=GRID)
    # A classifier whose logits stay finite would hide it.
    deaf = Returns(lambda images: torch.ones(len(images), 3))
    settings = {"steps": 3} if method == "densepure" else {}
    defense = load(method, denoiser=broken, classifier=deaf, **settings)
    with pytest.raises(ValueError, match="denoiser: expected finite estimates, got NaN"):
        defense.labels(torch.rand(2, *SHAPE, dtype=torch.float64), SIGMA, scattered_noise(2))


@pytest.mark.parametrize("method", ["none", "dds", "densepure"])
def test_calls_with_bad_images_or_noise_are_refused(method: str) -> None:
    defense = built(method)
    with pytest.raises(ValueError, match=r"images: expected floats in .*, got torch.uint8"):
        defense(torch.zeros(2, *SHAPE, dtype=torch.uint8))
    with pytest.raises(ValueError, match="images: expected finite pixels"):
        defense(torch.full((2, *SHAPE), math.nan, dtype=torch.float64))
    with pytest.raises(ValueError, match="noise: expected one row for each of 4 images, got 1"):
        defense(torch.rand(4, *SHAPE, dtype=torch.float64), scattered_noise(1))
