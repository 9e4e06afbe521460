"""The Lagrange attack: adversarial images that likelihood maximisation leaves alone (Chen et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffproof.attacks.base import Job
from diffproof.attacks.expectation import Expectation, MeanOf, Respond
from diffproof.attacks.losses import Loss
from diffproof.attacks.pgd import PGD
from diffproof.attacks.result import AttackResult
from diffproof.attacks.threat import PixelThreat, Threat
from diffproof.attacks.views import AttackedDefense, GradientMode
from diffproof.checks import check_listed, check_not_negative
from diffproof.defenses.base import Defense
from diffproof.defenses.diffusion_classifier.classifier import DiffusionClassifier
from diffproof.defenses.purifying.likelihood import LikelihoodMaximization
from diffproof.errors import ArgumentError
from diffproof.noise import Noise


@dataclass(frozen=True)
class Lagrange(PGD):
    """PGD that lowers log p_θ(y|x) + l·(unconditional diffusion loss of x) (Chen et al. 2023, eq. 10).

    p_θ(y|x) is that of the diffusion classifier alone: an image that it gets wrong and whose unconditional
    loss is low leaves the likelihood maximisation before it nothing to undo. Gradients are of first order.

    The result is the union over l: each is tried from the start, under the same noise. The defence,
    likelihood maximisation included, is asked about the last iterate of each alone, under the same `eot`
    draws. It is random, so a wrong answer ends nothing: returned is the strongest, the iterate of the largest
    mean margin (Loss.MARGIN) over these draws. `first_success` is that of the first l with a wrong draw, and
    counts iterations on from l to l. The
    other settings are those of PGD: the loss CE is −log p_θ(y|x), and another one stands in its place.

    Args:
        weights: the values of l, finite and ≥ 0. The unconditional loss is the one that the likelihood
            maximisation lowers; without one, or with that of the variant authors, it is the classifier's.

    Raises:
        ValueError: an argument is out of range.
    """

    weights: Sequence[float] = (0.0, 1.0, 10.0)

    name = "lagrange"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not [check_not_negative("weights", weight) for weight in check_listed("weights", self.weights)]:
            raise ArgumentError("weights", "expected finite numbers ≥ 0, got none")
        if self.mean_of != MeanOf.LOSS:
            raise ArgumentError("mean_of", f"lagrange averages losses, got {self.mean_of}")

    def check(self, view: AttackedDefense, threat: Threat) -> None:
        """As any attack's; besides, a diffusion model must classify, and the gradient be exact."""
        super().check(view, threat)
        classifier = _classifier(view.defense)
        if classifier is None or view.gradient is not GradientMode.EXACT:
            raise ArgumentError(
                "attack",
                "lagrange needs the exact gradient of dc or rdc, got"
                f" {view.gradient.value} of {view.defense.method!r}",
            )
        if any(self.weights) and classifier.denoiser.null_label is None:
            raise ArgumentError(
                "denoiser", "lagrange needs a null label, for the unconditional loss, got none"
            )

    def most_draws(self, result: AttackResult, num_classes: int) -> int:
        """Those of the last iterate, at which alone it looks for an error."""
        return self.eot

    def most_evaluations(self, num_classes: int) -> tuple[int, int]:
        """Those of a climb, for each l."""
        forwards, backwards = super().most_evaluations(num_classes)
        return len(self.weights) * forwards, len(self.weights) * backwards

    def find(self, job: Job, threat: Threat) -> list[AttackResult]:
        """One climb an l."""
        assert isinstance(threat, PixelThreat)
        climbs = [self._climb_and_look(job, threat, weight) for weight in self.weights]
        return [self._union([results[row] for results in climbs]) for row in range(len(job.images))]

    def _climb_and_look(
        self, job: Job, threat: PixelThreat, weight: float
    ) -> list[tuple[AttackResult, float]]:
        """The results of one l, with the mean margin of each."""
        defense = job.view.defense
        rows, part = defense.rows_per_image, job
        if weight > 0 and rows > 1:
            # The null label is a row of an image besides those of its classes.
            part = replace(job, batch_size=job.batch_size * rows // (rows + 1))
        climbing = Expectation(part, eot=self.eot, loss=Loss(self.loss), respond=penalised(defense, weight))
        points = self.climb(climbing, job, threat)
        looking = Expectation(job, eot=self.eot, loss=Loss.MARGIN)
        margins = looking.value(points, self.iterations)
        climbed = climbing.results(points, threat.norm(points - job.images))
        return [
            (
                replace(
                    result,
                    first_success=None if first < 0 else first,
                    forwards=result.forwards + self.eot,
                    draws=result.draws + self.eot,
                ),
                margin,
            )
            for result, first, margin in zip(climbed, looking.first.tolist(), margins.tolist(), strict=True)
        ]

    def _union(self, found: Sequence[tuple[AttackResult, float]]) -> AttackResult:
        """The strongest result of an image, with what all l spent on it."""
        strongest, _ = max(found, key=lambda one: one[1])
        results = [result for result, _ in found]
        successes = [
            place * (self.iterations + 1) + result.first_success
            for place, result in enumerate(results)
            if result.first_success is not None
        ]
        return replace(
            strongest,
            first_success=min(successes, default=None),
            forwards=sum(result.forwards for result in results),
            backwards=sum(result.backwards for result in results),
            zero_gradients=sum(result.zero_gradients or 0.0 for result in results) / len(results),
        )


def penalised(defense: Defense, weight: float) -> Respond:
    """The diffusion classifier's logits, and −weight·(unconditional diffusion loss) of each row.

    Where both are of one loss, under the same noise, the null label is in the batch of the classes.
    """
    classifier = _classifier(defense)
    assert classifier is not None
    loss = classifier.loss
    if isinstance(defense, LikelihoodMaximization) and defense.loss is not None:
        loss = defense.loss

    def apart(images: Tensor, noise: Noise) -> tuple[Tensor, Tensor | None]:
        noise = noise.to(images.device)
        logits: Tensor = classifier(images, noise)
        return logits, None if weight == 0 else -weight * loss.unconditional(images, noise)

    def together(images: Tensor, noise: Noise) -> tuple[Tensor, Tensor | None]:
        losses = loss.losses(images, noise.to(images.device), torch.tensor(classes))
        return classifier.logits_of(losses[:, :-1]), -weight * losses[:, -1]

    classes = [*range(classifier.num_classes), classifier.denoiser.null_label]
    one_loss = loss.denoiser is classifier.denoiser and loss.settings() == classifier.loss.settings()
    return together if weight > 0 and one_loss and classifier.shared_noise else apart


def _classifier(defense: Defense) -> DiffusionClassifier | None:
    """The diffusion classifier that answers, or None."""
    answering = defense if isinstance(defense, DiffusionClassifier) else defense.classifier
    return answering if isinstance(answering, DiffusionClassifier) else None
