"""A defence as an attack sees it: which function it evaluates, and which gradient it gets."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.checks import check_member
from diffproof.defenses.base import Defense, noise_for
from diffproof.defenses.purifying.base import Purifier
from diffproof.defenses.purifying.diffpure import DiffPure
from diffproof.defenses.purifying.reverse_process import Purification
from diffproof.errors import ArgumentError
from diffproof.noise import Noise
from diffproof.reverse.solvers import Solver


class GradientMode(StrEnum):
    """What an attack differentiates.

    EXACT: the defence itself.
    BPDA: the defence, its purification taken for the identity going backward (Athalye et al. 2018, 4.1.1).
    SURROGATE: the same defence with fewer steps of its reverse process, forward and backward.
    BLIND: the classifier alone, forward and backward: a transfer attack.
    ADJOINT: the defence, with the gradient of the adjoint ODE; DiffPure with the solver ode.

    What an attack sees in SURROGATE and BLIND is not the defence: only scoring tells what it did to that.
    """

    EXACT = "exact"
    BPDA = "bpda"
    SURROGATE = "surrogate"
    BLIND = "blind"
    ADJOINT = "adjoint"


class AttackedDefense(nn.Module):
    """A defence as an attack sees it.

    Args:
        defense: any defence; BPDA needs one that purifies, SURROGATE one that does so by a reverse process.
        gradient: see GradientMode.
        surrogate_share: share of the defence's steps that SURROGATE takes.

    Attributes:
        seen: the defence whose forward pass the attack evaluates.

    Raises:
        ValueError: the defence has no such gradient, or the share lies outside (0, 1].
    """

    def __init__(
        self,
        defense: Defense,
        gradient: GradientMode | str = GradientMode.EXACT,
        *,
        surrogate_share: float = 0.1,
    ) -> None:
        super().__init__()
        self.defense = defense
        self.gradient = check_member("gradient", gradient, GradientMode)
        self.num_classes = defense.num_classes
        self.seen = defense
        if self.gradient is GradientMode.BLIND and defense.classifier is None:
            raise ArgumentError("gradient", f"blind is for defences of a classifier, got {defense.method!r}")
        if self.gradient is GradientMode.BPDA:
            self._purifier()
        if self.gradient is GradientMode.SURROGATE:
            self.seen = self._purification().with_steps(surrogate_share)
        if self.gradient is GradientMode.ADJOINT:
            self._ode()

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits N×num_classes of images N×C×H×W in [0, 1]; see Defense."""
        # One noise for the purification and for a classifier that has noise of its own.
        noise = noise_for(images, noise)
        if self.gradient is GradientMode.BLIND:
            return self.defense.classifier_logits(images, noise)
        if self.gradient is GradientMode.BPDA:
            with torch.no_grad():
                purified = self._purifier().purify(images, noise)
            through: Tensor = _Identity.apply(images, purified)  # type: ignore[no-untyped-call]
            return self.defense.classifier_logits(through, noise)
        if self.gradient is GradientMode.ADJOINT:
            return self.defense.classifier_logits(self._ode().purify_by_adjoint(images, noise), noise)
        logits: Tensor = self.seen(images, noise)
        return logits

    @property
    def random(self) -> bool:
        """Whether what the attack evaluates answers otherwise under another noise."""
        if self.gradient is GradientMode.BLIND:
            return isinstance(self.defense.classifier, Defense) and self.defense.classifier.random
        return self.seen.random

    def images_at_once(self, batch_size: int) -> int:
        """See Defense."""
        return self.defense.images_at_once(batch_size)

    def _purifier(self) -> Purifier:
        if not isinstance(self.defense, Purifier):
            raise ArgumentError(
                "gradient", f"{self.gradient.value} is for defences that purify, got {self.defense.method!r}"
            )
        return self.defense

    def _purification(self) -> Purification:
        if not isinstance(self.defense, Purification):
            raise ArgumentError(
                "gradient",
                f"{self.gradient.value} is for defences that purify by a reverse process, got"
                f" {self.defense.method!r}",
            )
        return self.defense

    def _ode(self) -> DiffPure:
        if not isinstance(self.defense, DiffPure) or self.defense.solver is not Solver.ODE:
            raise ArgumentError(
                "gradient",
                "adjoint is for diffpure with the solver ode, got"
                f" {self.defense.method!r} with {getattr(self.defense, 'solver', 'no solver')}",
            )
        return self.defense


class _Identity(torch.autograd.Function):
    """The purified image, with the gradient of the image."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, purified: Tensor) -> Tensor:
        return purified.view_as(purified)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
