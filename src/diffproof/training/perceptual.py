"""Perceptual adversarial training: perturbations within a distance of features (Laidlaw et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.attacks.base import MOST_GRADIENTS
from diffproof.attacks.fast_lpa import START, descend, excess
from diffproof.attacks.features import classified
from diffproof.attacks.losses import Loss, loss_values
from diffproof.checks import check_at_least, check_number, renamed
from diffproof.data.images import ImageData
from diffproof.modes import evaluation_mode
from diffproof.training.adversarial import LARGEST, Logits, accuracy_after
from diffproof.training.batches import Batch
from diffproof.wording import counted


@dataclass(frozen=True)
class PerceptualAdversary:
    """Fast-LPA against the network that is trained, self-bounded: distances are of its own features.

    Attributes:
        budget: ε, of ‖φ(x) − φ(x + δ)‖₂, see `classified`.
        steps: gradient steps, T.
        label_smoothing: share of the label that the loss spreads evenly over all classes.

    Raises:
        ValueError: an attribute out of range.
    """

    budget: float = 0.5
    steps: int = 10
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        expected = f"a number in (0, {LARGEST:g}]"
        check_number("budget", self.budget, lambda value: 0 < value <= LARGEST, expected)
        check_at_least("inner_steps", self.steps, 1, MOST_GRADIENTS)
        check_number(
            "label_smoothing", self.label_smoothing, lambda share: 0 <= share < 1, "a number in [0, 1)"
        )

    def search(
        self, network: nn.Module, logits: Logits, batch: Batch, normal: Tensor, uniform: Tensor
    ) -> Tensor:
        """The adversarial images of a batch, in evaluation mode, without a graph; images that are classified
        wrongly stay as they are.

        Args:
            network: what is attacked, on its own.
            logits: not used; features and logits come of one pass.
            batch: N images and labels.
            normal: like the images, standard normal.
            uniform: not used.
        """
        with evaluation_mode(network), torch.no_grad(), renamed({"network": "adversarial"}):
            answers, features = classified(network, batch.images)
            found = fast_lpa(
                lambda points: classified(network, points),
                batch.labels,
                batch.images + START * normal,
                features,
                budget=self.budget,
                steps=self.steps,
            )
        right = answers.argmax(1) == batch.labels
        return torch.where(right[:, None, None, None], found, batch.images)

    def loss(self, logits: Logits, batch: Batch, adversarial: Tensor) -> Tensor:
        """Mean cross-entropy on what the search found."""
        return nn.functional.cross_entropy(
            logits(adversarial), batch.labels, label_smoothing=self.label_smoothing
        )

    def accuracy(self, classifier: nn.Module, data: ImageData, seed: int = 0) -> float:
        """Share of images still classified correctly after the same search, which may pass its budget."""

        def search(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
            normal = torch.randn(images.shape, generator=generator).to(images.device)
            rows = torch.arange(len(images))
            batch = Batch(images, labels, torch.zeros_like(labels), len(images), rows)
            return self.search(classifier, classifier, batch, normal, normal)

        return accuracy_after(search, classifier, data, seed)

    def told(self) -> str:
        """The search in words."""
        return f"{counted(self.steps, 'gradient step')} within a distance of features of {self.budget:.4g}"

    def check_images(self, shape: Sequence[int]) -> None:
        """No budget of features is too large for a shape of images."""

    def describe(self) -> dict[str, Any]:
        """What must be the same for a training to continue."""
        return {"method": "pat", **vars(self)}


def fast_lpa(
    answer: Callable[[Tensor], tuple[Tensor, Tensor]],
    labels: Tensor,
    start: Tensor,
    features: Tensor,
    *,
    budget: float,
    steps: int,
) -> Tensor:
    """What Fast-LPA finds for a network whose logits and features come of one pass; not projected, as in the
    authors' training.

    Args:
        answer: images → logits N×K and features N×D.
        labels: N integers.
        start: N×C×H×W, where it begins.
        features: N×D of the images.
        budget: ε.
        steps: T.

    Returns:
        N×C×H×W in [0, 1], without a graph.
    """

    def slope(step: int, points: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            some = points.clone().requires_grad_()
            logits, here = answer(some)
            loss = weight * excess(here, features, budget) - loss_values(Loss.MARGIN, logits, labels)
            (gradient,) = torch.autograd.grad(loss.sum(), some)
        return gradient, here.detach()

    return descend(slope, lambda points: answer(points)[1], start, budget=budget, steps=steps)
