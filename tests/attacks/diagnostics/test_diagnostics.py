"""Checks of an attack evaluation: what is broken on purpose must be found, what is honest must pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import diffproof as dp
from diffproof.attacks.autoattack import AutoAttack
from diffproof.attacks.base import Attack, Job, Traits
from diffproof.attacks.diagnostics.diagnose import _loses, diagnose, randomness_without_eot
from diffproof.attacks.diagnostics.finding import Finding
from diffproof.attacks.diagnostics.gradient_checks import LONGEST, gradient_agreement
from diffproof.attacks.diagnostics.probe import FROZEN, Probe, ascent
from diffproof.attacks.losses import Loss, loss_values
from diffproof.attacks.pgd import PGD
from diffproof.attacks.square import Square
from diffproof.attacks.stadv import StAdv
from diffproof.attacks.threat import L2, Flow, Linf, Threat
from diffproof.defenses.named import set_precision
from diffproof.defenses.purifying.reverse_process import Draw
from diffproof.gradients import Step, plain
from diffproof.noise import Noise, Stream
from helpers.attacks import labels_of
from helpers.classifiers import curved_classifier
from helpers.denoisers import mixture_around
from helpers.images import inner_pictures
from helpers.tensors import random

pytestmark = pytest.mark.usefixtures("small_digits")

CHECKS = [
    "gradient-agreement",
    "vanishing-gradient",
    "larger-budget",
    "unbounded",
    "randomness-without-eot",
    "probabilities",
    "black-box",
]


class Scale(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def purifier(seed: int = 0, *, kind: type[dp.DiffPure] = dp.DiffPure, solver: str = "ddpm") -> dp.DiffPure:
    return kind(
        mixture_around(inner_pictures(4, seed=100 + seed)),
        curved_classifier(seed=seed),
        t_star=0.05,
        steps=4,
        solver=solver,
    )


def guided(seed: int = 0, *, kind: type[dp.AGDM] = dp.AGDM) -> dp.AGDM:
    guide = curved_classifier(seed=500 + seed, gain=1.0)
    return kind(
        mixture_around(inner_pictures(4, seed=100 + seed)),
        curved_classifier(seed=seed),
        guide=guide,
        t_star=0.05,
        steps=4,
    )


def undefended(*after: nn.Module, seed: int = 0) -> dp.Undefended:
    return dp.Undefended(curved_classifier(*after, seed=seed))


def pgd(defense: dp.Defense, **settings: Any) -> PGD:
    return PGD(iterations=6, eot=3 if defense.random else 1, **settings)


def seen(defense: dp.Defense, gradient: str) -> dp.AttackedDefense:
    """The defence as an attack sees it; a surrogate has half of its steps."""
    return dp.AttackedDefense(defense, gradient, surrogate_share=0.5 if gradient == "surrogate" else None)


def check(
    defense: dp.Defense,
    *,
    gradient: str = "exact",
    threat: Threat | None = None,
    attack: Attack | None = None,
    seed: int = 1,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    batch_size: int = 64,
) -> dict[str, Finding]:
    images = inner_pictures(4, seed=seed) if images is None else images
    findings = diagnose(
        seen(defense, gradient),
        images,
        labels_of(defense, images) if labels is None else labels,
        threat=threat or Linf(0.03),
        attack=attack or pgd(defense),
        seed=seed,
        image_indices=range(len(images)),
        batch_size=batch_size,
    )
    return {finding.name: finding for finding in findings}


def probe_of(defense: dp.Defense, images: Tensor | None = None, gradient: str = "exact") -> Probe:
    """What the checks of `check` measure with."""
    images = inner_pictures(4, seed=1) if images is None else images
    index = torch.arange(len(images))
    job = Job(seen(defense, gradient), images, labels_of(defense, images), index, 1, 64)
    return Probe(job, Linf(0.03), pgd(defense))


def measured_at(defense: dp.Defense, images: Tensor) -> Tensor:
    """Where they compare gradients."""
    return probe_of(defense, images).beside(LONGEST)


def failed(findings: dict[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if not finding.passed}


# Honest evaluations raise no alarm: none did over 24 seeds of each of these, and 33 sets of 6 digits.

HONEST: dict[str, Callable[[int], dp.Defense]] = {
    "none": lambda seed: undefended(seed=seed),
    "ddpm": lambda seed: purifier(seed),
    "ode": lambda seed: purifier(seed, solver="ode"),
    "sde": lambda seed: purifier(seed, solver="sde"),
    "agdm": lambda seed: guided(seed),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HONEST)
def test_honest_evaluations_pass(name: str) -> None:
    findings = check(HONEST[name](1), seed=1)
    assert list(findings) == CHECKS
    assert not failed(findings)
    # In float64 nothing but rounding is between the gradient and the differences.
    assert findings["gradient-agreement"].measured["error"] < 1e-7
    # Smooth at the scale of the budget: the gradient tells the change almost whole.
    assert findings["vanishing-gradient"].measured["ratio"] == pytest.approx(1, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("threat", "attack"),
    [(L2(0.12), PGD(iterations=6, eot=3)), (Flow(0.2), StAdv(iterations=10, eot=2))],
)
def test_other_threats_pass(threat: Threat, attack: Attack) -> None:
    findings = check(purifier(), threat=threat, attack=attack)
    assert list(findings) == CHECKS
    assert not failed(findings)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_digits_pass(dtype: torch.dtype) -> None:
    # With the kinks of ReLUs and pixels at 0 and 1.
    data, model = dp.load_data("digits", indices="0:4"), dp.load_classifier("digits").eval()
    purified = dp.DiffPure(dp.load_denoiser("digits"), model, t_star=0.1, steps=2, solver="ddpm").eval()
    for defense, images in ((dp.Undefended(model), slice(0, 3)), (purified, slice(3, 4))):
        set_precision(defense, dtype)
        findings = check(
            defense,
            images=data.images[images],
            labels=data.labels[images],
            threat=Linf(0.15),
            attack=PGD(iterations=5, eot=2 if defense.random else 1),
        )
        assert list(findings) == CHECKS
        assert not failed(findings)
        assert 0 < findings["gradient-agreement"].measured["error"] < 1e-7
        assert ", in float64" in findings["gradient-agreement"].message
        assert next(defense.parameters()).dtype == dtype


class Stiff(nn.Module):
    """Its numbers are float32 whatever it is asked to be."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.float())
        return logits


def plain_network(pool: nn.Module, bias: bool, seed: int) -> dp.Undefended:
    """A CNN with fresh float32 weights: thousands of kinks, and on digits equal pixels on all sides."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1, bias=bias),
        nn.LeakyReLU(),
        pool,
        nn.Conv2d(64, 64, 3, padding=1, bias=bias),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    return dp.Undefended(dp.Classifier(network, 10, image_shape=(1, 8, 8)).eval())


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2)])
def test_kinks_are_no_wrong_gradient(pool: nn.Module, bias: bool) -> None:
    data = dp.load_data("digits", limit=4)
    for seed in range(4):
        defense = plain_network(pool, bias, seed)
        for image in data.images.split(1):
            finding = agreement(defense, image)
            assert finding.passed, finding.message
            assert finding.measured["error"] < 1e-6


def test_a_network_of_float32_alone_is_measured_in_it() -> None:
    defense = plain_network(nn.AvgPool2d(2), True, 1)
    assert isinstance(defense.classifier, dp.Classifier)
    defense.classifier.network = Stiff(defense.classifier.network)
    finding = agreement(defense, dp.load_data("digits", limit=1).images)
    assert ", in float64" not in finding.message
    assert 1e-6 < finding.measured["error"] < 0.05


def agreement(defense: dp.Defense, images: Tensor | None = None, gradient: str = "exact") -> Finding:
    """The first check alone."""
    finding = gradient_agreement(probe_of(defense, images, gradient), pgd(defense).traits())
    assert finding is not None
    return finding


def randomness(defense: dp.Defense, attack: PGD, gradient: str = "exact") -> Finding:
    """The check of the noise alone."""
    return randomness_without_eot(probe_of(defense, gradient=gradient), attack.traits())


class Clamped(dp.Undefended):
    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        return super().respond(images.clamp(0.0, 1.0), noise)


def test_the_edge_of_the_pixel_range_is_no_alarm() -> None:
    # There a clamp has half the slope that autograd gives it.
    finding = agreement(Clamped(curved_classifier()), inner_pictures(4).round())
    assert finding.passed
    assert finding.measured["error"] < 1e-7


# Gradients that are not those of the defence.


class _OtherNoise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, chain: list[Step], other: list[Step]) -> Tensor:
        ctx.save_for_backward(images)
        ctx.other = other
        return plain(images, chain)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        with torch.enable_grad():
            at = ctx.saved_tensors[0].detach().requires_grad_()
            (gradient,) = torch.autograd.grad(plain(at, ctx.other), at, grads[0])
        return gradient, None, None


class Redrawn(dp.DiffPure):
    """Runs again going backward, as checkpointing does, under noise drawn again."""

    def purify(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        assert noise is not None
        again = replace(noise, draw=noise.draw + 1000)
        purified: Tensor = _OtherNoise.apply(images, self.chain(noise), self.chain(again))  # type: ignore[no-untyped-call]
        return purified


class Detached(dp.DiffPure):
    """The diffusion is left out of the graph; what remains is a shortcut around the purification."""

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        purified = self.purify(images.detach(), noise)
        return self.classifier_logits(purified + 0.1 * (images - images.detach()))


class NoDirectPath(dp.AGDM):
    """The guidance takes its input for a constant."""

    def score_shift(self, noisy: Tensor, sigma: float, images: Tensor, draw: Draw) -> Tensor:
        return super().score_shift(noisy, sigma, images.detach(), draw)


class _Negated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


class Misled(dp.Undefended):
    """The gradient points the other way."""

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        turned: Tensor = _Negated.apply(images)  # type: ignore[no-untyped-call]
        return super().respond(turned, noise)


WRONG: dict[str, Callable[[int], dp.Defense]] = {
    "redrawn": lambda seed: purifier(seed, kind=Redrawn),
    "redrawn-ode": lambda seed: purifier(seed, kind=Redrawn, solver="ode"),
    "detached": lambda seed: purifier(seed, kind=Detached),
    "no-direct-path": lambda seed: guided(seed, kind=NoDirectPath),
    "misled": lambda seed: Misled(curved_classifier(seed=seed)),
}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_gradients_are_found(name: str, seed: int) -> None:
    finding = agreement(WRONG[name](seed), inner_pictures(4, seed=seed))
    assert not finding.passed
    assert finding.measured["error"] > 0.01
    assert finding.measured["spread"] < 1e-7
    assert "the gradient is not that of the defence" in finding.message


@pytest.mark.parametrize("gradient", ["bpda", "surrogate", "blind", "adjoint"])
def test_how_far_other_gradients_are_from_the_true_one(gradient: str) -> None:
    defense, images = purifier(solver="ode"), inner_pictures(4, seed=1)
    labels = labels_of(defense, images)
    finding = agreement(defense, gradient=gradient)
    assert finding.passed
    # The cosine as one writes it down: both gradients of the cross-entropy in full.
    noise = Noise.for_rows(1, Stream.DIAGNOSTICS, torch.arange(4), torch.full((4,), FROZEN))
    gradients = []
    for mode in (gradient, "exact"):
        at = measured_at(defense, images).requires_grad_()
        logits = seen(defense, mode)(at, noise)
        (pulled,) = torch.autograd.grad(nn.functional.cross_entropy(logits, labels, reduction="sum"), at)
        gradients.append(pulled.flatten(1))
    cosine = float(torch.cosine_similarity(gradients[0], gradients[1]).median())
    assert 0 < cosine < 0.9999
    assert finding.measured["cosine"] == pytest.approx(cosine, abs=1e-5)
    # Four random directions tell the length of a gradient in 16 dimensions roughly.
    assert finding.measured["difference_cosine"] == pytest.approx(cosine, rel=0.6)


@pytest.mark.parametrize("solver", ["ddpm", "ode"])
def test_how_far_bpda_would_be_from_an_exact_gradient(solver: str) -> None:
    defense, images = purifier(solver=solver), inner_pictures(4, seed=1)
    labels = labels_of(defense, images)
    finding = agreement(defense)
    assert finding.passed
    # By hand, of the cross-entropy: the classifier's gradient at the purified image, and autograd's in full.
    noise = Noise.for_rows(1, Stream.DIAGNOSTICS, torch.arange(4), torch.full((4,), FROZEN))
    start = measured_at(defense, images).requires_grad_()
    purified = plain(start, defense.chain(noise))
    loss = nn.functional.cross_entropy(defense.classifier_logits(purified), labels, reduction="sum")
    bpda, exact = torch.autograd.grad(loss, (purified, start))
    cosine = float(torch.cosine_similarity(bpda.flatten(1), exact.flatten(1)).median())
    assert 0 < cosine < 0.999
    assert finding.measured["bpda_cosine"] == pytest.approx(cosine, rel=1e-9)
    assert finding.message.endswith(
        f"; the bpda gradient has the cosine {cosine:.2f} with the exact one (median over images)"
    )


def test_only_an_exact_gradient_of_a_purifier_is_compared_with_bpda() -> None:
    for defense, gradient in ((undefended(), "exact"), (purifier(), "blind")):
        finding = agreement(defense, gradient=gradient)
        assert "bpda_cosine" not in finding.measured
        assert "the bpda gradient" not in finding.message


def test_a_misleading_gradient_shows_in_what_it_finds() -> None:
    # It descends, at the size of the whole range too: a random point does better.
    findings = check(Misled(curved_classifier()), threat=Linf(0.06))
    assert failed(findings) == {"gradient-agreement", "unbounded", "black-box"}
    assert "gradients mislead" in findings["black-box"].message


# Gradients that are not there.


class Rounded(dp.Undefended):
    """Pixels are rounded to 16 levels first."""

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        return super().respond((15 * images).round() / 15, noise)


def test_rounding_is_found() -> None:
    findings = check(Rounded(curved_classifier()), threat=Linf(0.06))
    assert {"vanishing-gradient", "unbounded", "black-box"} <= failed(findings)
    assert findings["vanishing-gradient"].measured == {"vanished": 1.0, "zero": 1.0, "ratio": 0.0}
    assert "masked" in findings["vanishing-gradient"].message
    assert "finer floats (float32; from Python float64, too)" in findings["vanishing-gradient"].message


def test_saturation_is_found() -> None:
    # e^−745 is the smallest number of float64. The margin does not saturate.
    defense = undefended(Scale(1e5))
    findings = check(defense)
    assert {"vanishing-gradient", "unbounded"} <= failed(findings)
    assert findings["gradient-agreement"].passed
    assert findings["vanishing-gradient"].measured["zero"] == 1
    assert not failed(check(defense, attack=pgd(defense, loss="margin")))


def test_a_small_gradient_has_not_vanished() -> None:
    # Of a loss near 1e-40, but every step is as long as of any other.
    defense = undefended(Scale(20.0))
    images = inner_pictures(4, seed=1)
    loss = nn.functional.cross_entropy(defense(images), labels_of(defense, images), reduction="none")
    assert float(loss.min()) < 1e-20
    assert not failed(check(defense))


# Answers of the wrong kind.


@pytest.mark.parametrize(
    ("after", "found"),
    [
        ((nn.Softmax(1),), True),
        ((nn.Softmax(1), nn.Softmax(1)), True),
        ((nn.LogSoftmax(1),), False),
        ((nn.LogSoftmax(1), nn.LogSoftmax(1)), False),
        ((nn.Sigmoid(),), False),
    ],
)
def test_probabilities(after: tuple[nn.Module, ...], found: bool) -> None:
    finding = check(undefended(*after))["probabilities"]
    assert finding.passed is not found
    assert ("before softmax" in finding.message) is found


# Randomness.


class Noisy(dp.Undefended):
    """Says that it is not random."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__(classifier, sigma=0.1)
        self.random = False


class Hidden(dp.Undefended):
    """Draws noise that it is not given."""

    generator = torch.Generator().manual_seed(0)

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        drawn = torch.randn(images.shape, generator=self.generator, dtype=images.dtype)
        return super().respond(images + 0.1 * drawn, noise)


def test_randomness_without_eot() -> None:
    defense = purifier()
    finding = randomness(defense, PGD(iterations=5))
    assert not finding.passed
    assert "raise its eot" in finding.message
    # A transfer attack sees nothing random.
    finding = randomness(defense, PGD(iterations=5), "blind")
    assert finding.passed
    assert finding.measured["change_seen"] == 0


def test_findings_of_a_random_defence_repeat() -> None:
    """Calls without noise draw from torch's global generator, wherever that is."""
    first, second = (randomness(purifier(), PGD(iterations=1)) for _ in range(2))
    assert first.measured == second.measured
    assert first.measured["change_defense"] > 0


def test_randomness_that_is_not_declared() -> None:
    defense = Noisy(curved_classifier())
    finding = randomness(defense, pgd(defense))
    assert not finding.passed
    assert "says it is not random" in finding.message
    findings = check(Hidden(curved_classifier()))
    assert "draws some of its own" in findings["randomness-without-eot"].message
    # No difference can be taken of it, which is something else than a wrong gradient.
    assert {"gradient-agreement", "randomness-without-eot"} <= failed(findings)
    message = findings["gradient-agreement"].message
    assert "nothing is known" in message
    assert message.endswith("or, if that is rounding, let it run in float64")


# Attacks that find less than they should.


class Window(dp.Undefended):
    """Fooled where the mean pixel is between 0.03 and 0.05 above that of the clean image, 0.5."""

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        mean = images.flatten(1).mean(1)
        rise = mean - 0.54
        return torch.stack([100 * rise**2, torch.full_like(rise, 0.01), mean - 2, mean - 3], 1)


def test_a_larger_budget_that_finds_less() -> None:
    # One step goes to the edge of either ball.
    images, labels = torch.full((3, 1, 4, 4), 0.5, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    attack = PGD(iterations=1, step=0.04)
    findings = check(
        Window(curved_classifier()), threat=Linf(0.04), attack=attack, images=images, labels=labels
    )
    assert {"larger-budget", "unbounded"} <= failed(findings)
    measured = findings["larger-budget"].measured
    assert (measured["wrong"], measured["wrong_larger"]) == (1, 0)
    assert "stuck" in findings["larger-budget"].message


def test_sign_test_of_a_random_defence() -> None:
    # The p-values are scipy's; a few lost draws of a random defence are no finding, one of another is.
    for lost, gained in itertools.product((0, 1, 5, 10, 14), (0, 1, 3)):
        first, second = torch.zeros(2, 16, dtype=torch.bool), torch.zeros(2, 16, dtype=torch.bool)
        second.view(-1)[:lost] = True
        first.view(-1)[lost : lost + gained] = True
        p = stats.binomtest(lost, lost + gained, alternative="greater").pvalue if lost + gained else 1.0
        random_loses, measured = _loses(first, second, True)
        assert measured["p"] == pytest.approx(p, rel=1e-9)
        assert random_loses is bool(p < 1e-3)
        assert _loses(first, second, False)[0] is (lost > gained)


# What is left out, and what checks are measured with.


def test_checks_that_do_not_apply_are_left_out() -> None:
    defense = undefended()
    assert "larger-budget" not in check(defense, threat=Linf(1.0))
    images = inner_pictures(2).float()
    findings = check(
        dp.Undefended(curved_classifier().float()), attack=Square(queries=30), images=images, threat=Linf(0.5)
    )
    assert list(findings) == ["larger-budget", "unbounded", "randomness-without-eot", "probabilities"]


def test_traits() -> None:
    assert PGD(iterations=7, eot=3, loss="dlr").traits() == Traits(Loss.DLR, 3, 7)
    assert StAdv(iterations=9, eot=2).traits() == Traits(Loss.MARGIN, 2, 9)
    package = ("eot, in its version rand", "take its version rand")
    assert AutoAttack().traits() == Traits(Loss.CE, 1, 100, *package)
    assert AutoAttack(version="rand", eot=5).traits() == Traits(Loss.CE, 5, 100, *package)
    assert Square(queries=11).traits() == Traits(None, 1, 11, "queries")


@pytest.mark.parametrize("loss", Loss)
def test_ascent_is_the_unit_gradient(loss: Loss) -> None:
    logits, labels = random(5, 4, seed=3), torch.tensor([0, 1, 2, 3, 0])
    direction, slope = ascent(loss, logits, labels)
    width = 1e-6
    for row in range(5):
        rows = logits[row] + width * torch.cat([torch.eye(4), -torch.eye(4)]).double()
        ends = loss_values(loss, rows, labels[row].expand(8))
        wanted = (ends[:4] - ends[4:]) / (2 * width)
        assert torch.allclose(slope[row] * direction[row], wanted, atol=1e-8)
    assert torch.allclose(direction.norm(dim=1), torch.ones(5).double())
    # Flat to the last bit: the margin's.
    flat, zero = ascent(Loss.CE, torch.tensor([[2000.0, 0.0, 10.0]]), torch.tensor([0]))
    assert flat[0].tolist() == pytest.approx([-math.sqrt(0.5), 0, math.sqrt(0.5)])
    assert zero.tolist() == [0]


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.3)])
def test_random_points_lie_at_the_edge_of_the_ball(threat: Linf | L2) -> None:
    images = inner_pictures(3)
    view = dp.AttackedDefense(undefended())
    probe = Probe(Job(view, images, labels_of(view.defense, images), torch.arange(3), 0, 64), threat, PGD())
    points = probe.points(200)
    norms = threat.norm((points - images).flatten(0, 1))
    assert torch.allclose(norms, torch.full_like(norms, threat.budget))
    # Symmetric: means of 600 signs or coordinates, at 4.5 standard errors; 16 of them, false alarm 1e-4.
    moves = (points - images).flatten(0, 1).flatten(1)
    assert bool((moves.mean(0).abs() < 4.5 * moves.std(0) / math.sqrt(600)).all())


@pytest.mark.slow
def test_batches_change_nothing() -> None:
    images = inner_pictures(2)
    attack = PGD(iterations=2, eot=2)
    findings, again = (check(purifier(), images=images, attack=attack, batch_size=size) for size in (64, 3))
    for name in CHECKS:
        assert findings[name].passed is again[name].passed
        for figure, value in findings[name].measured.items():
            # Not of rounding itself, nor of calls that are given no noise.
            if figure not in ("error", "spread", "allowed", "change_defense"):
                assert again[name].measured[figure] == pytest.approx(value, rel=1e-6, abs=1e-12)


def test_refused_arguments() -> None:
    defense = undefended()
    with pytest.raises(ValueError, match=r"^threat: pgd attacks within l2, linf, got stadv"):
        check(defense, threat=Flow(0.1))
    with pytest.raises(ValueError, match=r"^labels: expected 0 ≤ label < 4"):
        check(defense, labels=torch.tensor([0, 1, 2, 4]))
