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

from diffproof.attacks.base import Job
from diffproof.attacks.losses import Loss, loss_values
from diffproof.attacks.result import AttackResult
from diffproof.attacks.threat import PixelThreat
from diffproof.noise import Noise, Stream
from diffproof.optional import import_optional

NORMS = {"linf": "Linf", "l2": "L2"}

# The package computes in float32, and may pass a budget by its rounding.
_ROUNDING = 1e-5

# A random defence that is right under half of the draws is not attacked in as many runs once in 40 images.
_RUNS = 10


def package(module: str = "pyautoattack") -> ModuleType:
    """The package or one of its modules.

    Raises:
        ValueError: it is not installed.
    """
    return import_optional(module, "attacks")


class WatchedDefense(nn.Module):
    """The defence of one image as the package calls it: every call is the image's next draws of noise.

    The package takes one draw of a random defence for its answer. It leaves an image alone that one draw gets
    wrong, and drops what it found where one draw gets that right. So where the defence is random, the
    strongest perturbation within the threat is kept: that of the largest margin (Loss.MARGIN), a mean over
    the draws of its gradient.

    Args:
        job: what is attacked.
        row: which of its images.
        threat: a wrong answer counts as success within it only.
        repeats: the package asks for so many gradients in a row at the same point and adds them up (EOT).
            They are evaluated as one batch, of at most the job's batch size.
        by_looks: the margin is that of a draw without a gradient, for an attack that asks for none.

    Attributes:
        runs: how often at most the package is run, until it has attacked the image: see `attacked`.
        strongest: the perturbation kept, 1×C×H×W; None where there is none.
        margin: its mean margin.
    """

    def __init__(
        self, job: Job, row: int, threat: PixelThreat, repeats: int = 1, *, by_looks: bool = False
    ) -> None:
        super().__init__()
        self.job, self.row, self.threat, self.repeats, self.by_looks = job, row, threat, repeats, by_looks
        self.forwards = self.backwards = self.gradients = self.zeros = 0
        self.first: int | None = None
        self.runs = _RUNS if job.view.random else 1
        self.strongest: Tensor | None = None
        self.margin = -torch.inf
        self._margins: list[Tensor] = []
        self._group: _Group | None = None
        self._turn = 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits of perturbations of the image, a draw of noise each, in the dtype that the package gives."""
        dtype = images.dtype
        images = images.to(self.job.images.dtype)
        return self._respond(images).to(dtype)

    def _respond(self, images: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and images.requires_grad):
            logits = self.evaluate(images)
            if self.by_looks:
                self.compare(images, logits)
            return logits
        if self.repeats == 1:
            counted: Tensor = _Counted.apply(images, self)  # type: ignore[no-untyped-call]
            logits = self.evaluate(counted)
            self.compare(images, logits)
            return logits
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
            wrong = (logits.detach().argmax(1) != self.job.labels[self.row]) & self._within(images)
            if bool(wrong.any()):
                self.first = self.forwards + int(wrong.nonzero()[0])
        self.forwards += len(images)
        return logits

    def compare(self, point: Tensor, logits: Tensor) -> None:
        """Keep a point, 1×C×H×W, if its mean margin is the largest; logits are those of its next draws."""
        if not self.job.view.random:
            return
        labels = self.job.labels[self.row].expand(len(logits))
        self._margins.append(loss_values(Loss.MARGIN, logits.detach(), labels))
        margins = torch.cat(self._margins)
        if len(margins) < self.repeats:
            return
        self._margins = []
        margin = float(margins.double().mean())
        if margin > self.margin and self._changed(point) and bool(self._within(point).all()):
            self.strongest, self.margin = point.detach().clone(), margin

    def attacked(self, adversarial: Tensor) -> bool:
        """Whether a run that returns this image, C×H×W, has attacked: it returns or has kept another one."""
        return self._changed(adversarial) or self.strongest is not None

    def _within(self, images: Tensor) -> Tensor:
        norms = self.threat.norm(images.detach() - self.job.images[self.row])
        return norms <= self.threat.budget + _ROUNDING

    def _changed(self, image: Tensor) -> bool:
        # The package has rounded the image to float32.
        return bool((image.detach().float() != self.job.images[self.row].float()).any())

    def account(self, gradient: Tensor, draws: int) -> None:
        """Count a gradient, the sum over so many draws."""
        self.backwards += draws
        self.gradients += 1
        self.zeros += int(not bool(gradient.any()))

    def result(self, adversarial: Tensor) -> AttackResult:
        """The account, with the image that the package returns, C×H×W; if it is unchanged, the strongest."""
        image = self.job.images[self.row]
        if self.strongest is not None and not self._changed(adversarial):
            adversarial = self.strongest[0]
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
            logits = watched.evaluate(self.rows)
        watched.compare(self.at, logits)
        self.logits = logits.split(len(images))
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
