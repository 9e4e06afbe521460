"""Attacks of pyautoattack, the authors' own package, on one image at a time."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.attacks.protocol import Job
from diffproof.attacks.result import AttackResult
from diffproof.attacks.threat import PixelThreat
from diffproof.classifiers.optional import import_optional
from diffproof.noise import Noise, Stream

NORMS = {"linf": "Linf", "l2": "L2"}

# The package computes in float32, and may pass a budget by its rounding.
_ROUNDING = 1e-5


def package(module: str = "pyautoattack") -> ModuleType:
    """The package or one of its modules.

    Raises:
        ValueError: it is not installed.
    """
    return import_optional(module, "attacks")


class WatchedDefense(nn.Module):
    """The defence of one image as the package calls it: every call is the image's next draws of noise.

    Args:
        job: what is attacked. row: which of its images.
        threat: a wrong answer counts as success within it only.
        repeats: the package asks for so many gradients in a row at the same point and adds them up (EOT).
            They are evaluated as one batch, of at most the job's batch size.
    """

    def __init__(self, job: Job, row: int, threat: PixelThreat, repeats: int = 1) -> None:
        super().__init__()
        self.job, self.row, self.threat, self.repeats = job, row, threat, repeats
        self.forwards = self.backwards = self.gradients = self.zeros = 0
        self.first: int | None = None
        self._group: _Group | None = None
        self._turn = 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits of perturbations of the image, a draw of noise each, in the dtype that the package gives."""
        dtype = images.dtype
        images = images.to(self.job.images.dtype)
        return self._respond(images).to(dtype)

    def _respond(self, images: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and images.requires_grad):
            return self.evaluate(images)
        if self.repeats == 1:
            counted: Tensor = _Counted.apply(images, self)  # type: ignore[no-untyped-call]
            return self.evaluate(counted)
        if self._group is None:
            size = min(self.job.images_at_once, self.repeats - self._turn)
            self._group = _Group(self, images, size)
        logits, done = self._group.next(images)
        self._turn += 1
        if done:
            self._group, self._turn = None, self._turn % self.repeats
        return logits

    def evaluate(self, images: Tensor) -> Tensor:
        """Logits of each row under the next draws."""
        draw = torch.arange(self.forwards, self.forwards + len(images))
        index = self.job.image_indices[self.row].expand(len(images))
        logits: Tensor = self.job.view(images, Noise.for_rows(self.job.seed, Stream.ATTACK, index, draw))
        if self.first is None:
            within = (
                self.threat.norm(images.detach() - self.job.images[self.row])
                <= self.threat.budget + _ROUNDING
            )
            wrong = (logits.detach().argmax(1) != self.job.labels[self.row]) & within
            if bool(wrong.any()):
                self.first = self.forwards + int(wrong.nonzero()[0])
        self.forwards += len(images)
        return logits

    def account(self, gradient: Tensor, draws: int) -> None:
        """Count a gradient, the sum over so many draws."""
        self.backwards += draws
        self.gradients += 1
        self.zeros += int(not bool(gradient.any()))

    def result(self, adversarial: Tensor) -> AttackResult:
        """The account, with the image that the attack returns, C×H×W."""
        image = self.job.images[self.row]
        adversarial = adversarial.detach().to(image.dtype)
        return AttackResult(
            image_index=int(self.job.image_indices[self.row]),
            label=int(self.job.labels[self.row]),
            adversarial=adversarial,
            norm=float(self.threat.norm((adversarial - image)[None])),
            first_success=self.first,
            forwards=self.forwards,
            backwards=self.backwards,
            draws=self.forwards,
            zero_gradients=self.zeros / self.gradients if self.gradients else None,
        )


class _Counted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, watched: WatchedDefense) -> Tensor:
        ctx.watched = watched
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.watched.account(grads[0], len(grads[0]))
        return grads[0], None


class _Group:
    """Repeats of a point that are evaluated as one batch, and handed out one call at a time.

    The package adds up the gradients of the calls. So the last call of the group returns the sum of all its
    gradients, of one backward pass, and the others return zero.
    """

    def __init__(self, watched: WatchedDefense, images: Tensor, size: int) -> None:
        self.watched, self.at, self.size = watched, images.detach().clone(), size
        with torch.enable_grad():
            self.rows = self.at.repeat(size, 1, 1, 1).requires_grad_()
            self.logits = watched.evaluate(self.rows).split(len(images))
        self.weights: list[Tensor] = []
        self.handed = 0

    def next(self, images: Tensor) -> tuple[Tensor, bool]:
        """The logits of the next repeat, and whether it is the last."""
        if len(self.weights) != self.handed or not torch.equal(images.detach(), self.at):
            raise RuntimeError("pyautoattack asked for another sequence of gradients than EOT's")
        self.handed += 1
        logits: Tensor = _Repeat.apply(images, self.logits[self.handed - 1].detach(), self)  # type: ignore[no-untyped-call]
        return logits, self.handed == self.size

    def gradient(self, weight: Tensor) -> Tensor:
        self.weights.append(weight)
        if len(self.weights) < self.size:
            return torch.zeros_like(self.at)
        (gradient,) = torch.autograd.grad(self.logits, self.rows, self.weights)
        total: Tensor = gradient.unflatten(0, (self.size, -1)).sum(0)
        self.watched.account(total, self.size)
        return total


class _Repeat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, logits: Tensor, group: _Group) -> Tensor:
        ctx.group = group
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.group.gradient(grads[0]), None, None


@contextlib.contextmanager
def contained(job: Job) -> Iterator[None]:
    """Put back what the package changes outside itself: torch's generators, the trace function, parameters.

    Its warnings come out as Python warnings, each once.
    """
    messages: dict[str, None] = {}

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages[record.getMessage()] = None

    logger, handler, trace = logging.getLogger("auto-attack"), Collect(logging.WARNING), sys.gettrace()
    propagate = logger.propagate
    trained = [parameter for parameter in job.view.parameters() if parameter.requires_grad]
    device = job.images.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        logger.addHandler(handler)
        logger.propagate = False
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagate
            for parameter in trained:
                parameter.requires_grad_()
            sys.settrace(trace)
    for message in messages:
        warnings.warn(f"pyautoattack: {message}", RuntimeWarning, stacklevel=2)


def one_row(job: Job, row: int) -> tuple[Tensor, Tensor]:
    """An image and its label as the package wants them: a batch of one, in float32."""
    return job.images[row : row + 1].float(), job.labels[row : row + 1]


def package_seed(job: Job, row: int) -> int:
    """Seed of the package's generator for an image."""
    return (job.seed * 2**28 + int(job.image_indices[row])) % 2**63
