"""Adversarial training of classifiers: the inner maximisation, and the losses of PGD-AT and TRADES."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from diffproof.attacks.base import MOST_GRADIENTS
from diffproof.attacks.threat import Linf, PixelThreat
from diffproof.checks import check_at_least, check_member, check_number
from diffproof.data.images import ImageData
from diffproof.errors import ArgumentError
from diffproof.modes import evaluation_mode
from diffproof.training.batches import Batch, measured_together
from diffproof.wording import counted

# Standard deviation of TRADES's start around the image.
_TRADES_START = 1e-3
# What float32 can still add and multiply; the range of a setting above 0, and its words.
LARGEST = 1e30
_POSITIVE = (lambda number: 0.0 < number <= LARGEST), f"a number in (0, {LARGEST:g}]"

# N×C×H×W → N×num_classes.
Logits = Callable[[Tensor], Tensor]
# N×C×H×W → N values.
Objective = Callable[[Tensor], Tensor]


class Method(StrEnum):
    """What is minimised.

    PGD: cross-entropy on adversarial images (Madry et al. 2018).
    TRADES: cross-entropy on clean images + λ·KL(f(x) ‖ f(x + δ)), δ maximising the latter (Zhang et al.
        2019, as the authors' code has it). It is the loss of AGDM's guide, too.
    """

    PGD = "pgd"
    TRADES = "trades"


@dataclass(frozen=True)
class Ascent:
    """The inner maximisation: projected gradient ascent (Madry et al. 2018, section 2.1).

    Attributes:
        threat: the perturbations to search, ℓ∞ or ℓ2.
        steps: gradient steps.
        step_size: length of a step in the threat's norm; None for a quarter of the budget, as Madry et al.
            have it for ℓ∞ on CIFAR-10.

    Raises:
        ValueError: an attribute out of range.
    """

    threat: PixelThreat = field(default_factory=lambda: Linf(8 / 255))
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        check_at_least("inner_steps", self.steps, 1, MOST_GRADIENTS)
        if self.step_size is not None:
            check_number("inner_step_size", self.step_size, *_POSITIVE)

    def start(self, images: Tensor, normal: Tensor, uniform: Tensor) -> Tensor:
        """A point uniform in the ball around each image, clamped to [0, 1].

        Args:
            images: N×C×H×W in [0, 1].
            normal: like images, standard normal.
            uniform: N values in (0, 1).
        """
        return self.threat.clip(images + self.threat.spread(normal, uniform), images)

    def maximise(self, objective: Objective, images: Tensor, start: Tensor) -> Tensor:
        """Ascend each image's objective. Parameters get no gradient from it.

        Args:
            objective: N×C×H×W → N values.
            images: N×C×H×W in [0, 1], the centres of the balls.
            start: like images, a point of each ball.

        Returns:
            N×C×H×W in the ball and in [0, 1], without a graph.
        """
        length = self.threat.budget / 4 if self.step_size is None else self.step_size
        found = start.detach()
        for _ in range(self.steps):
            with torch.enable_grad():
                point = found.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(objective(point).sum(), point)
            found = self.threat.clip(found + length * self.threat.steepest(gradient), images)
        return found


def kl_divergence(logits: Tensor, others: Tensor) -> Tensor:
    """KL(softmax(logits) ‖ softmax(others)), N values."""
    divergence = nn.functional.kl_div(
        others.log_softmax(1), logits.log_softmax(1), reduction="none", log_target=True
    )
    return divergence.sum(1)


@dataclass(frozen=True)
class Adversary:
    """What a classifier is trained against.

    Attributes:
        method: "pgd" or "trades".
        ascent: how perturbations are found.
        weight: λ of TRADES, the weight of the divergence; not used by PGD-AT.
        label_smoothing: share of the label that the loss spreads evenly over all classes; not used by the
            search.

    Raises:
        ValueError: an attribute out of range.
    """

    method: Method | str
    ascent: Ascent = field(default_factory=Ascent)
    weight: float = 6.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", check_member("adversarial", self.method, Method))
        check_number("trades_weight", self.weight, *_POSITIVE)
        check_number(
            "label_smoothing", self.label_smoothing, lambda share: 0 <= share < 1, "a number in [0, 1)"
        )

    def search(
        self, network: nn.Module, logits: Logits, batch: Batch, normal: Tensor, uniform: Tensor
    ) -> Tensor:
        """The adversarial images of a batch, without a graph; `network` is left as it was.

        PGD-AT starts uniformly in the ball and searches in training mode, where batch normalisation goes by
        the batch; its running statistics follow the images trained on, not the search. TRADES starts at
        x + 0.001·N(0, I) and searches in evaluation mode, as its authors' code does.

        Args:
            network: what `logits` calls.
            logits: N×C×H×W in [0, 1] → N×num_classes, float32.
            batch: N images and labels.
            normal: like the images, standard normal.
            uniform: N values in (0, 1).
        """
        images, labels, ascent = batch.images, batch.labels, self.ascent
        if self.method is Method.PGD:
            with _running_statistics_kept(network):
                return ascent.maximise(
                    lambda point: nn.functional.cross_entropy(logits(point), labels, reduction="none"),
                    images,
                    ascent.start(images, normal, uniform),
                )
        with evaluation_mode(network):
            # Not under no_grad: autocast would keep weights without a graph for the loss.
            clean = logits(images).detach()
            return ascent.maximise(
                lambda point: kl_divergence(clean, logits(point)),
                images,
                ascent.threat.clip(images + _TRADES_START * normal, images),
            )

    def loss(self, logits: Logits, batch: Batch, adversarial: Tensor) -> Tensor:
        """The scalar to minimise.

        PGD-AT: mean cross-entropy on adversarial images. TRADES: mean of cross-entropy on clean ones +
        weight·KL(f(x) ‖ f(x + δ)), with gradients through both arguments of the divergence.
        """
        if self.method is Method.PGD:
            return self._entropy(logits(adversarial), batch)
        clean = logits(batch.images)
        divergence = kl_divergence(clean, logits(adversarial)).mean()
        return self._entropy(clean, batch) + self.weight * divergence

    def _entropy(self, logits: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)

    def accuracy(self, classifier: nn.Module, data: ImageData, seed: int = 0) -> float:
        """Share of images still classified correctly after the same search; see `robust_accuracy`."""
        return robust_accuracy(classifier, data, self.ascent, seed)

    def told(self) -> str:
        """The search in words."""
        threat = self.ascent.threat
        return f"{counted(self.ascent.steps, 'gradient step')} within {threat.name} {threat.budget:.4g}"

    def check_images(self, shape: Sequence[int]) -> None:
        """Raise ValueError if the budget reaches from any image of C×H×W pixels to any other."""
        threat = self.ascent.threat
        diameter = float(threat.norm(torch.ones(1, *shape)))
        if threat.budget >= diameter:
            raise ArgumentError(
                "budget",
                f"expected {threat.name} below {diameter:g} for images {tuple(shape)} in [0, 1], got"
                f" {threat.budget:g}; does {threat.budget:g} mean {threat.budget:g}/255?",
            )

    def describe(self) -> dict[str, Any]:
        """What must be the same for a training to continue."""
        threat = self.ascent.threat
        return {
            "method": str(self.method),
            "weight": self.weight,
            "label_smoothing": self.label_smoothing,
            "threat": threat.name,
            "budget": threat.budget,
            "steps": self.ascent.steps,
            "step_size": self.ascent.step_size,
        }


def robust_accuracy(classifier: nn.Module, data: ImageData, ascent: Ascent, seed: int = 0) -> float:
    """Share of images still classified correctly after a search of the ball for a larger cross-entropy.

    The search starts at random; a stronger attack finds more.
    """

    def search(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        normal = torch.randn(images.shape, generator=generator).to(images.device)
        uniform = torch.rand(len(images), generator=generator).to(images.device)

        def objective(point: Tensor) -> Tensor:
            return nn.functional.cross_entropy(classifier(point), labels, reduction="none")

        return ascent.maximise(objective, images, ascent.start(images, normal, uniform))

    return accuracy_after(search, classifier, data, seed)


def accuracy_after(
    search: Callable[[Tensor, Tensor, torch.Generator], Tensor],
    classifier: nn.Module,
    data: ImageData,
    seed: int,
) -> float:
    """Share of images still classified correctly after a search.

    Args:
        search: images and labels, both where the classifier is, and what draws to adversarial images.
        classifier: in evaluation mode.
        data: the images.
        seed: of what draws.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(classifier.parameters()).device
    correct = 0
    for chosen in measured_together(data):
        labels = data.labels[chosen.start : chosen.stop].to(device)
        found = search(data.batch(chosen).to(device), labels, generator)
        with torch.no_grad():
            correct += int((classifier(found).argmax(1) == labels).sum())
    return correct / len(data)


@contextmanager
def _running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Batch normalisation as in training, its buffers untouched."""
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
