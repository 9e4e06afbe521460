"""Perceptual adversarial training: perturbations within a distance of features (Laidlaw et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.attacks.base import MOST_GRADIENTS
from diffproof.attacks.losses import Loss, loss_values
from diffproof.checks import check_at_least, check_number
from diffproof.data.images import ImageData
from diffproof.errors import ArgumentError
from diffproof.modes import evaluation_mode
from diffproof.training.adversarial import LARGEST, Logits, accuracy_after
from diffproof.training.batches import Batch
from diffproof.wording import counted

# Of the authors' Fast-LPA: the deviation of the start, where the features' rate of change is measured, what
# keeps divisions finite, and the weight of what is beyond the budget, which rises tenfold.
_START, _PROBE, _RATE_FLOOR, _NORM_FLOOR, _LAST_WEIGHT = 0.01, 0.1, 1e-4, 1e-10, 10.0


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
        with evaluation_mode(network), torch.no_grad():
            answers, features = classified(network, batch.images)
            found = fast_lpa(
                lambda points: classified(network, points),
                batch.images,
                batch.labels,
                batch.images + _START * normal,
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


def classified(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The logits N×K of images and their features φ(x), N×D, float32 or float64.

    φ puts together the last map of each resolution, each divided by its norm over channels at every place and
    by the root of the number of places: what AlexNet's five layers are to LPIPS.

    Raises:
        ValueError: the network has no maps.
    """
    with _maps(network, len(images)) as maps:
        logits = network(images)
    if not maps:
        raise ArgumentError("adversarial", "pat needs a network with maps of features, got one without")
    parts = []
    for one in maps.values():
        wide = one if one.dtype == torch.float64 else one.float()
        unit = wide / (torch.linalg.vector_norm(wide, dim=1, keepdim=True) + _NORM_FLOOR)
        parts.append((unit / one[0, 0].numel() ** 0.5).flatten(1))
    return logits if logits.dtype == torch.float64 else logits.float(), torch.cat(parts, 1)


@contextmanager
def _maps(network: nn.Module, count: int) -> Iterator[dict[tuple[int, int], Tensor]]:
    """The last N×C×H×W that a part of the network gives at each resolution, of one call within."""
    maps: dict[tuple[int, int], Tensor] = {}

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and len(output) == count:
            height, width = output.shape[2:]
            if height * width > 1:
                maps[height, width] = output

    hooks = [part.register_forward_hook(keep) for part in network.modules() if part is not network]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def fast_lpa(
    answer: Callable[[Tensor], tuple[Tensor, Tensor]],
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    features: Tensor,
    *,
    budget: float,
    steps: int,
) -> Tensor:
    """Fast Lagrangian perceptual attack: descend −margin + λ_k·max(0, ‖φ(x + δ) − φ(x)‖ − ε).

    A step along the unit gradient is as long as changes the features by ε·0.1^{k/T}, measured at 0.1 from
    where it starts; λ_k rises from 1 to 10. What is found is not projected, as in the authors' training.

    Args:
        answer: images → logits N×K and features N×D.
        images: N×C×H×W in [0, 1].
        labels: N integers.
        start: like images, where it begins.
        features: N×D of the images.
        budget: ε.
        steps: T.

    Returns:
        N×C×H×W in [0, 1], without a graph.
    """
    found = start.detach()
    for k in range(steps):
        weight, change = _LAST_WEIGHT * 0.1 ** (1 - k / steps), budget * 0.1 ** (k / steps)
        with torch.enable_grad():
            point = found.clone().requires_grad_()
            logits, here = answer(point)
            distance = torch.linalg.vector_norm(here - features, dim=1)
            beyond = (distance - budget).clamp(min=0.0)
            (gradient,) = torch.autograd.grad(
                (weight * beyond - loss_values(Loss.MARGIN, logits, labels)).sum(), point
            )
        norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        unit = gradient / torch.where(norm > 0, norm, 1.0)[:, None, None, None]
        with torch.no_grad():
            there = answer(found - _PROBE * unit)[1]
        rate = torch.linalg.vector_norm(there - here.detach(), dim=1) / _PROBE
        length = change / (rate + _RATE_FLOOR)
        found = (found - length[:, None, None, None] * unit).clamp(0.0, 1.0)
    return found
