"""Gradients in expectation over a random defence's noise (EOT; Athalye et al. 2018, 4.1.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from diffproof.attacks.base import Job
from diffproof.attacks.losses import Loss, loss_values
from diffproof.attacks.result import AttackResult
from diffproof.errors import ArgumentError
from diffproof.noise import Noise, Stream

# Images and noise → logits, and what is added to the loss of each row, if anything.
Respond = Callable[[Tensor, Noise], tuple[Tensor, Tensor | None]]


class MeanOf(StrEnum):
    """What is averaged over the draws of noise.

    LOSS: the loss of each draw (Athalye et al. 2018).
    LOGITS: the logits, and the loss is that of their mean (BPDA+EOT of Hill et al. 2021). The draws are
        evaluated twice, first for the mean.
    """

    LOSS = "loss"
    LOGITS = "logits"


class Rows(NamedTuple):
    """Gradients and logits of a batch, whose first row is `start` of all; see Expectation."""

    start: int
    gradient: Tensor
    logits: Tensor


class Expectation:
    """The gradients that an iterative attack asks for, and the account of what it saw.

    Draw `iteration·eot + repeat` of an image's attack noise is that of a repeat. All repeats of all images
    are one batch, which is split by the job's batch size; sums run over repeats in order, so that
    splitting changes nothing.

    Args:
        job: what is attacked.
        eot: draws of noise an iteration.
        loss: what the attack raises.
        mean_of: see MeanOf.
        respond: what a batch is evaluated by; None for the logits of the job's view.
    """

    def __init__(
        self,
        job: Job,
        *,
        eot: int,
        loss: Loss,
        mean_of: MeanOf = MeanOf.LOSS,
        respond: Respond | None = None,
    ) -> None:
        self.job, self.eot, self.loss, self.mean_of = job, eot, loss, mean_of
        self.respond = respond or (lambda images, noise: (job.view(images, noise), None))
        self.forwards = self.backwards = self.gradients = 0
        self.zeros = torch.zeros(len(job.images), dtype=torch.int64)
        self.iterations: set[int] = set()
        self.first = torch.full((len(job.images),), -1, dtype=torch.int64)

    def gradient(self, points: Tensor, iteration: int) -> Tensor:
        """∇ of the expected loss at each point, N×C×H×W; points are those of the job's images, perturbed.

        Raises:
            ValueError: the defence gives no gradient, or one that is not finite.
        """
        weights = None
        if self.mean_of is MeanOf.LOGITS:
            with torch.enable_grad():
                logits = self.look(points, iteration).requires_grad_()
                value = loss_values(self.loss, logits, self.job.labels).sum()
            (weights,) = torch.autograd.grad(value, logits)
        mean = self._joined(self._gradients(points, iteration, weights), points)
        if not bool(torch.isfinite(mean).all()):
            raise ArgumentError("defense", "expected finite gradients, got NaN or infinity")
        self.forwards += self.eot
        self.backwards += self.eot
        self.gradients += 1
        self.zeros += (mean.flatten(1) == 0).all(1).cpu()
        return mean

    def _gradients(self, points: Tensor, iteration: int, weights: Tensor | None) -> Iterator[Rows]:
        """The gradient of each draw of each image, batch by batch."""
        for start, image, noise in self._batches(iteration):
            with torch.enable_grad():
                rows = points[image].detach().requires_grad_()
                logits, extra = self.respond(rows, noise)
                if weights is None:
                    values = loss_values(self.loss, logits, self.job.labels[image])
                else:
                    values = (logits * weights[image]).sum(1)
                value = (values if extra is None else values + extra).sum()
            gradient = None
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value, rows, allow_unused=True)
            if gradient is None:
                raise ArgumentError(
                    "defense", "it gives its images no gradient; attack it without one, as square does"
                )
            self._see(logits.detach(), image, iteration)
            yield Rows(start, gradient, logits.detach())

    def _joined(self, parts: Iterator[Rows], points: Tensor) -> Tensor:
        """One gradient an image from those of its draws: their mean."""
        total = torch.zeros_like(points)
        for start, gradient, _ in parts:
            _add(total, gradient, start)
        return total / self.eot

    def look(self, points: Tensor, iteration: int) -> Tensor:
        """Mean logits of each point over the draws of an iteration, N×K, without gradient."""
        return self._mean(points, iteration, lambda logits, image: logits)

    def value(self, points: Tensor, iteration: int) -> Tensor:
        """Mean loss of each point over the draws of an iteration, N values, without gradient."""
        labels = self.job.labels
        return self._mean(
            points, iteration, lambda logits, image: loss_values(self.loss, logits, labels[image])
        )

    def _mean(self, points: Tensor, iteration: int, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The mean of a function of logits and of the rows' images."""
        total: Tensor | None = None
        with torch.no_grad():  # an attack only looks here
            for start, image, noise in self._batches(iteration):
                logits, _ = self.respond(points[image], noise)
                rows = of(logits, image)
                if total is None:
                    total = rows.new_zeros(len(points), *rows.shape[1:])
                _add(total, rows, start)
                self._see(logits, image, iteration)
        assert total is not None
        self.forwards += self.eot
        return total / self.eot

    def results(self, adversarial: Tensor, norms: Tensor) -> list[AttackResult]:
        """The account, with the images that the attack returns and the norms of their perturbations."""
        return [
            AttackResult(
                image_index=int(self.job.image_indices[i]),
                label=int(self.job.labels[i]),
                adversarial=adversarial[i].detach(),
                norm=float(norms[i]),
                first_success=None if self.first[i] < 0 else int(self.first[i]),
                forwards=self.forwards,
                backwards=self.backwards,
                draws=self.eot * len(self.iterations),
                zero_gradients=int(self.zeros[i]) / self.gradients if self.gradients else None,
            )
            for i in range(len(adversarial))
        ]

    def _batches(self, iteration: int) -> Iterator[tuple[int, Tensor, Noise]]:
        """First row, images and noise of each batch; row = repeat·N + image."""
        self.iterations.add(iteration)
        job, number = self.job, len(self.job.images)
        for rows in torch.arange(self.eot * number).split(job.images_at_once):
            image, draw = rows % number, iteration * self.eot + rows // number
            yield int(rows[0]), image, Noise.for_rows(job.seed, Stream.ATTACK, job.image_indices[image], draw)

    def _see(self, logits: Tensor, image: Tensor, iteration: int) -> None:
        wrong = (logits.argmax(1) != self.job.labels[image]).cpu()
        fooled = image[wrong]
        self.first[fooled[self.first[fooled] < 0]] = iteration


def _add(total: Tensor, rows: Tensor, start: int) -> None:
    """Add rows start, start + 1, … to entries start mod N, … of the total, one repeat after the other."""
    number, done = len(total), 0
    while done < len(rows):
        first = (start + done) % number
        count = min(number - first, len(rows) - done)
        total[first : first + count] += rows[done : done + count]
        done += count
