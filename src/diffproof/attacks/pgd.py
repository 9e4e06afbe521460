"""Projected gradient descent (Madry et al. 2018), in expectation over a defence's noise."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from diffproof.attacks.base import Attack, Job, check_draws
from diffproof.attacks.expectation import Expectation, MeanOf, Respond
from diffproof.attacks.losses import Loss
from diffproof.attacks.result import AttackResult
from diffproof.attacks.threat import L2, Linf, PixelThreat, Threat
from diffproof.attacks.views import AttackedDefense
from diffproof.checks import check_flag, check_member, check_positive
from diffproof.noise import MAX_DRAW, Noise, Stream


class Direction(StrEnum):
    """Where a step goes.

    STEEPEST: where the loss grows fastest in the threat's norm: the sign of the gradient for ℓ∞, the gradient
        at unit length for ℓ2.
    SIGN: the sign of the gradient for any norm, as the code of Lee & Kim (2023) does for ℓ2.
    """

    STEEPEST = "steepest"
    SIGN = "sign"


@dataclass(frozen=True)
class PGD(Attack):
    """PGD with EOT. Returns the last iterate, as Lee & Kim (2023) do, successful or not.

    BPDA+EOT (Hill et al. 2021) is this attack with the gradient `bpda`, eot=15 and mean_of="logits".

    Args:
        iterations: gradient steps, ≥ 1. The iterate after the last is looked at once more.
        eot: draws of noise an iteration, ≥ 1.
        step: length of a step in the threat's norm; None for 2.5·budget/iterations (Madry et al. 2018, 4).
        loss: what is raised; see Loss.
        mean_of: what is averaged over the draws; see MeanOf.
        direction: where a step goes; see Direction.
        random_start: start uniformly in the ball instead of at the image.

    Raises:
        ValueError: an argument is out of range.
    """

    iterations: int = 100
    eot: int = 1
    step: float | None = None
    loss: Loss | str = Loss.CE
    mean_of: MeanOf | str = MeanOf.LOSS
    direction: Direction | str = Direction.STEEPEST
    random_start: bool = False

    name = "pgd"
    threats = (Linf, L2)

    def __post_init__(self) -> None:
        check_draws(self.iterations, self.eot)
        if self.step is not None:
            check_positive("step", self.step)
        check_member("loss", self.loss, Loss)
        check_member("mean_of", self.mean_of, MeanOf)
        check_member("direction", self.direction, Direction)
        check_flag("random_start", self.random_start)

    def most_evaluations(self, num_classes: int) -> tuple[int, int]:
        """Those of every iteration, whatever it finds; twice for the gradient of the loss of mean logits."""
        forwards, backwards = super().most_evaluations(num_classes)
        return forwards + (backwards if self.mean_of == MeanOf.LOGITS else 0), backwards

    def find(self, job: Job, threat: Threat) -> list[AttackResult]:
        """Step, project, look."""
        assert isinstance(threat, PixelThreat)
        expectation = self.expectation(job)
        points = self.climb(expectation, job, threat)
        expectation.look(points, self.iterations)
        return expectation.results(points, threat.norm(points - job.images))

    def expectation(self, job: Job) -> Expectation:
        """What gives the gradients."""
        return Expectation(
            job,
            eot=self.eot,
            loss=Loss(self.loss),
            mean_of=MeanOf(self.mean_of),
            respond=self.responding(job.view),
        )

    def climb(self, expectation: Expectation, job: Job, threat: PixelThreat) -> Tensor:
        """The last iterate, N×C×H×W.

        Args:
            expectation: gives the gradients, and keeps account of what was seen.
            job: what is attacked.
            threat: the ball to stay within.
        """
        step = 2.5 * threat.budget / self.iterations if self.step is None else self.step
        points = self._start(job, threat)
        for iteration in range(self.iterations):
            gradient = expectation.gradient(points, iteration)
            points = self.advance(points, gradient, step, job.images, threat)
        return points

    def responding(self, view: AttackedDefense) -> Respond | None:
        """What the loss is a function of; None for the logits of the view."""
        return None

    def advance(
        self, points: Tensor, gradient: Tensor, step: float, images: Tensor, threat: PixelThreat
    ) -> Tensor:
        """The next iterate, N×C×H×W, within the threat.

        Args:
            points: N×C×H×W, the iterate.
            gradient: gradient of the loss there, like `points`.
            step: length of the step in the threat's norm.
            images: N×C×H×W in [0, 1], the images that are attacked.
            threat: the ball around them.
        """
        return threat.clip(points + step * self.heading(gradient, threat), images)

    def heading(self, gradient: Tensor, threat: PixelThreat) -> Tensor:
        """The direction of a step."""
        return gradient.sign() if self.direction == Direction.SIGN else threat.steepest(gradient)

    def _start(self, job: Job, threat: PixelThreat) -> Tensor:
        if not self.random_start:
            return job.images
        # The last draw of all belongs to no iteration.
        draw = torch.full_like(job.image_indices, MAX_DRAW)
        noise = Noise.for_rows(job.seed, Stream.ATTACK, job.image_indices, draw).to(job.images.device)
        normal = noise.normal(job.images.shape[1:], 0, job.images.dtype)
        uniform = torch.special.ndtr(noise.normal((1,), 1, job.images.dtype))[:, 0]
        return threat.clip(job.images + threat.spread(normal, uniform), job.images)
