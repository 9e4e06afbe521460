"""A defence as an attack sees it: which function it evaluates, and which gradient it gets."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.checks import check_instance, check_member, check_share, renamed
from diffproof.classifiers.base import predicted_labels
from diffproof.defenses.base import Defense, noise_for
from diffproof.defenses.purifying.base import Purifier
from diffproof.defenses.purifying.diffpure import DiffPure
from diffproof.defenses.purifying.reverse_process import Purification
from diffproof.errors import ArgumentError
from diffproof.noise import Noise, Stream
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


class View:
    """The function that an attack evaluates in place of a defence. Subclasses write `logits`.

    Args:
        defense: the defence.
        surrogate_share: see AttackedDefense.

    Raises:
        ValueError: the defence has no such gradient.
    """

    def __init__(self, defense: Defense, surrogate_share: float | None) -> None:
        self.defense = defense

    @property
    def random(self) -> bool:
        """Whether it answers otherwise under another noise."""
        return self.defense.random

    def logits(self, images: Tensor, noise: Noise) -> Tensor:
        """N×num_classes of images N×C×H×W in [0, 1], with the gradient that the attack gets."""
        raise TypeError(f"{type(self).__name__} does not define logits()")


class Exact(View):
    """GradientMode.EXACT."""

    def logits(self, images: Tensor, noise: Noise) -> Tensor:
        """The defence's own."""
        logits: Tensor = self.defense(images, noise)
        return logits


class BackwardPassApproximation(View):
    """GradientMode.BPDA."""

    defense: Purifier

    def __init__(self, defense: Defense, surrogate_share: float | None) -> None:
        if not isinstance(defense, Purifier):
            raise ArgumentError("gradient", f"bpda is for defences that purify, got {defense.method!r}")
        super().__init__(defense, surrogate_share)

    def logits(self, images: Tensor, noise: Noise) -> Tensor:
        """The defence's own, with the gradient of its classifier at the purified images."""
        return self.defense.respond_by(self._through, images, noise)

    def _through(self, images: Tensor, noise: Noise) -> Tensor:
        with torch.no_grad():
            purified = self.defense.purify(images, noise)
        through: Tensor = _Identity.apply(images, purified)  # type: ignore[no-untyped-call]
        return through


class Surrogate(View):
    """GradientMode.SURROGATE."""

    def __init__(self, defense: Defense, surrogate_share: float | None) -> None:
        if not isinstance(defense, Purification):
            raise ArgumentError(
                "gradient",
                f"surrogate is for defences that purify by a reverse process, got {defense.method!r}",
            )
        super().__init__(defense, surrogate_share)
        with renamed({"share": "surrogate_share"}):
            self._shorter = defense.with_steps(0.1 if surrogate_share is None else surrogate_share)

    def logits(self, images: Tensor, noise: Noise) -> Tensor:
        """Those of the defence with fewer steps."""
        logits: Tensor = self._shorter(images, noise)
        return logits


class Blind(View):
    """GradientMode.BLIND."""

    def __init__(self, defense: Defense, surrogate_share: float | None) -> None:
        if defense.classifier is None:
            raise ArgumentError("gradient", f"blind is for defences of a classifier, got {defense.method!r}")
        super().__init__(defense, surrogate_share)

    @property
    def random(self) -> bool:
        """That of a classifier that is a defence itself."""
        return isinstance(self.defense.classifier, Defense) and self.defense.classifier.random

    def logits(self, images: Tensor, noise: Noise) -> Tensor:
        """The classifier's of the images as they are."""
        return self.defense.classifier_logits(images, noise)


class Adjoint(View):
    """GradientMode.ADJOINT."""

    defense: DiffPure

    def __init__(self, defense: Defense, surrogate_share: float | None) -> None:
        if not isinstance(defense, DiffPure) or defense.solver is not Solver.ODE:
            raise ArgumentError(
                "gradient",
                "adjoint is for diffpure with the solver ode, got"
                f" {defense.method!r} with {getattr(defense, 'solver', 'no solver')}",
            )
        super().__init__(defense, surrogate_share)

    def logits(self, images: Tensor, noise: Noise) -> Tensor:
        """The defence's own, with the gradient of the adjoint ODE."""
        return self.defense.classifier_logits(self.defense.purify_by_adjoint(images, noise), noise)


VIEWS: dict[GradientMode, type[View]] = {
    GradientMode.EXACT: Exact,
    GradientMode.BPDA: BackwardPassApproximation,
    GradientMode.SURROGATE: Surrogate,
    GradientMode.BLIND: Blind,
    GradientMode.ADJOINT: Adjoint,
}


class AttackedDefense(nn.Module):
    """A defence as an attack sees it.

    Args:
        defense: any defence; BPDA needs one that purifies, SURROGATE one that does so by a reverse process.
        gradient: see GradientMode.
        surrogate_share: share of the defence's steps that SURROGATE takes, in (0, 1]; None for 0.1.

    Raises:
        ValueError: the defence has no such gradient, or the share lies outside (0, 1], or is for another.
    """

    def __init__(
        self,
        defense: Defense,
        gradient: GradientMode | str = GradientMode.EXACT,
        *,
        surrogate_share: float | None = None,
    ) -> None:
        super().__init__()
        self.defense = check_instance("defense", defense, Defense, "a diffproof.Defense")
        self.gradient = check_member("gradient", gradient, GradientMode)
        if surrogate_share is not None:
            check_share("surrogate_share", surrogate_share)
        if surrogate_share is not None and self.gradient is not GradientMode.SURROGATE:
            raise ArgumentError(
                "surrogate_share", f"is for the gradient surrogate, got {self.gradient.value}"
            )
        self.num_classes = defense.num_classes
        self._view = VIEWS[self.gradient](defense, surrogate_share)

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits N×num_classes of images N×C×H×W in [0, 1]; see Defense."""
        # One noise for the purification and for a classifier that has noise of its own.
        return self._view.logits(images, noise_for(images, noise))

    @property
    def random(self) -> bool:
        """Whether what the attack evaluates answers otherwise under another noise."""
        return self._view.random

    def images_at_once(self, batch_size: int) -> int:
        """See Defense."""
        return self.defense.images_at_once(batch_size)


class FixedNoise(AttackedDefense):
    """A defence as an attack sees it that knows the noise of the answer: one draw an image, always the same.

    Args:
        view: the defence as it sees it otherwise.
        seed: of the draws, the first of the stream SCORING of each image.
    """

    def __init__(self, view: AttackedDefense, seed: int) -> None:
        nn.Module.__init__(self)
        self.defense, self.gradient, self.num_classes = view.defense, view.gradient, view.num_classes
        self._view, self._seed = view._view, seed

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits under the fixed noise, whatever noise is given; see AttackedDefense."""
        return self._view.logits(images, self.fixed(noise_for(images, noise)))

    def answers(self, images: Tensor, image_indices: Tensor) -> Tensor:
        """The labels N of the defence itself under that noise."""
        noise = Noise.for_rows(self._seed, Stream.SCORING, image_indices, torch.zeros_like(image_indices))
        with torch.no_grad():  # a label has no gradient
            return predicted_labels(self.defense(images, noise)).cpu()

    def fixed(self, noise: Noise) -> Noise:
        """The draw of each row's image."""
        first = torch.zeros_like(noise.draw)
        return Noise.for_rows(self._seed, Stream.SCORING, noise.image_index, first).to(noise.draw.device)

    @property
    def random(self) -> bool:
        """No."""
        return False


class _Identity(torch.autograd.Function):
    """The purified image, with the gradient of the image."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, purified: Tensor) -> Tensor:
        return purified.view_as(purified)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
