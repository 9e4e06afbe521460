"""The Lagrange attack: adversarial images that likelihood maximisation leaves alone (Chen et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from diffproof.attacks.expectation import Expectation, MeanOf, Respond
from diffproof.attacks.losses import Loss
from diffproof.attacks.pgd import PGD
from diffproof.attacks.protocol import Job
from diffproof.attacks.result import AttackResult
from diffproof.attacks.threat import PixelThreat, Threat
from diffproof.attacks.views import AttackedDefense, GradientMode
from diffproof.defenses.diffusion_classifier import DiffusionClassifier
from diffproof.defenses.likelihood import LikelihoodMaximization
from diffproof.defenses.protocol import Defense
from diffproof.noise import Noise


@dataclass(frozen=True)
class Lagrange(PGD):
    """PGD that lowers log p_θ(y|x) + l·(unconditional diffusion loss of x) (Chen et al. 2023, eq. 10).

    p_θ(y|x) is that of the diffusion classifier alone: an image that it gets wrong and whose unconditional
    loss is low leaves the likelihood maximisation before it nothing to undo. Gradients are of first order.

    The result is the union over l: each is tried from the start, under the same noise, on the images that no
    earlier one has succeeded on. It has succeeded where the defence, likelihood maximisation included, errs
    on its last iterate under one of `eot` draws; the defence is asked nothing else. Returns the first iterate
    that succeeded, else that of the last l; `first_success` counts iterations on from l to l.

    Args:
        weights: the values of l. The unconditional loss is the one that the likelihood maximisation lowers;
            without one, or with that of the variant authors, it is the classifier's.
        loss: what stands for −log p_θ(y|x), which is CE.

    Raises:
        ValueError: an argument is out of range.
    """

    weights: Sequence[float] = (0.0, 1.0, 10.0)

    name = "lagrange"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weights or any(not 0.0 <= weight < float("inf") for weight in self.weights):
            raise ValueError(f"weights: expected finite numbers ≥ 0, got {self.weights!r}")
        if self.mean_of != MeanOf.LOSS:
            raise ValueError(f"mean_of: lagrange averages losses, got {self.mean_of}")

    def check(self, view: AttackedDefense, threat: Threat) -> None:
        """As any attack's; besides, a diffusion model must classify, and the gradient be exact."""
        super().check(view, threat)
        classifier = _classifier(view.defense)
        if classifier is None or view.gradient is not GradientMode.EXACT:
            raise ValueError(
                "attack: lagrange needs the exact gradient of dc or rdc, got"
                f" {view.gradient.value} of {view.defense.method!r}"
            )
        if any(self.weights) and classifier.denoiser.null_label is None:
            raise ValueError("denoiser: lagrange needs a null label, for the unconditional loss, got none")

    def most_draws(self, result: AttackResult, num_classes: int) -> int:
        """Those of the last iterate, at which alone it looks for an error."""
        return self.eot

    def find(self, job: Job, threat: Threat) -> list[AttackResult]:
        """One climb an l, each on what is left."""
        assert isinstance(threat, PixelThreat)
        results: dict[int, AttackResult] = {}
        left = list(range(len(job.images)))
        for place, weight in enumerate(self.weights):
            part = replace(
                job, images=job.images[left], labels=job.labels[left], image_indices=job.image_indices[left]
            )
            found = self._climb_and_look(part, threat, weight)
            for row, result in zip(left, found, strict=True):
                results[row] = self._after(results.get(row), result, place)
            left = [row for row in left if not results[row].success]
            if not left:
                break
        return [results[row] for row in range(len(job.images))]

    def _climb_and_look(self, job: Job, threat: PixelThreat, weight: float) -> list[AttackResult]:
        """The results of one l."""
        respond = penalised(job.view.defense, weight)
        climbing = Expectation(job, eot=self.eot, loss=Loss(self.loss), respond=respond)
        points = self.climb(climbing, job, threat)
        looking = Expectation(job, eot=self.eot, loss=Loss(self.loss))
        looking.look(points, self.iterations)
        climbed = climbing.results(points, threat.norm(points - job.images))
        return [
            replace(
                result,
                first_success=None if first < 0 else first,
                forwards=result.forwards + self.eot,
                draws=result.draws + self.eot,
            )
            for result, first in zip(climbed, looking.first.tolist(), strict=True)
        ]

    def _after(self, earlier: AttackResult | None, result: AttackResult, place: int) -> AttackResult:
        """The result of an l with what the `place` earlier ones spent on the image."""
        if earlier is None:
            return result
        first = result.first_success
        assert earlier.zero_gradients is not None
        assert result.zero_gradients is not None
        return replace(
            result,
            first_success=None if first is None else place * (self.iterations + 1) + first,
            forwards=earlier.forwards + result.forwards,
            backwards=earlier.backwards + result.backwards,
            zero_gradients=(place * earlier.zero_gradients + result.zero_gradients) / (place + 1),
        )


def penalised(defense: Defense, weight: float) -> Respond:
    """The diffusion classifier's logits, and −weight·(unconditional diffusion loss) of each row."""
    classifier = _classifier(defense)
    assert classifier is not None
    loss = classifier.loss
    if isinstance(defense, LikelihoodMaximization) and defense.loss is not None:
        loss = defense.loss

    def respond(images: Tensor, noise: Noise) -> tuple[Tensor, Tensor | None]:
        noise = noise.to(images.device)
        logits: Tensor = classifier(images, noise)
        return logits, None if weight == 0 else -weight * loss.unconditional(images, noise)

    return respond


def _classifier(defense: Defense) -> DiffusionClassifier | None:
    """The diffusion classifier that answers, or None."""
    answering = defense if isinstance(defense, DiffusionClassifier) else defense.classifier
    return answering if isinstance(answering, DiffusionClassifier) else None
