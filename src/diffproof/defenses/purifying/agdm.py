"""AGDM: purification guided by an adversarially trained classifier (Lin et al. 2024)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from torch import Tensor, nn

from diffproof.checks import check_instance, check_member, check_positive, renamed
from diffproof.classifiers.base import Classifier, check_logits
from diffproof.data.classes import check_names
from diffproof.defenses.base import Defense
from diffproof.defenses.purifying.coordinates import as_image
from diffproof.defenses.purifying.reverse_process import Draw, Purification, potential_gradient
from diffproof.denoisers.base import Denoiser
from diffproof.errors import ArgumentError, failing_network
from diffproof.reverse.solvers import Solver


class Where(StrEnum):
    """What the guide sees of a step's state.

    STATE: the papers' x_t itself, [−1, 1] mapped to [0, 1].
    CLEAN: the denoiser's clean estimate of it, clipped to [0, 1]; a second denoiser evaluation, whose
        gradient is part of the guidance.
    """

    STATE = "state"
    CLEAN = "clean"


class Label(StrEnum):
    """The y of log p(y|x_t).

    GUIDE: the guide's label of the defence's input, the same at each step.
    STEP: the guide's label of what it sees at the step.
    NONE: no such term.
    """

    GUIDE = "guide"
    STEP = "step"
    NONE = "none"


class Distance(StrEnum):
    """The D between the guide's answers to the input, f(x'), and to a step's state, f(x_t).

    KL: of probabilities, KL(f(x') ‖ f(x_t)), as in the guide's training.
    L2: squared Euclidean distance of logits.
    """

    KL = "kl"
    L2 = "l2"


class AGDM(Purification):
    """Reverse process with s·∇log p_φ(y|x_t) − s·∇D(f_φ(x'), f_φ(x_t)) added to the score (Lin et al. 2024).

    The paper does not say where the guide f_φ is evaluated, which y is meant nor what D is. The defaults are
    within chance of the choices under which most digits withstood an attack with exact gradients
    (`benchmarks/agdm_choices.py`, docs/attacks.md); STATE costs a third of the time.

    Args:
        denoiser: see Purification.
        classifier: see Purification.
        guide: the robust classifier f_φ, of `diffproof train guide`; images in [0, 1] → logits.
        t_star: noise level as a time in (0, 1]; the paper's for ℓ∞ 8/255 on CIFAR-10.
        steps: denoiser evaluations of the reverse process, ≥ 1; None for one a timestep.
        solver: DDPM, or SDE for the continuous-time form; see Solver.
        scale: strength s of the guidance, > 0.
        where: what the guide sees of a state; see Where.
        label: the y of log p(y|x_t); see Label.
        distance: D; see Distance.

    Raises:
        ValueError: an argument is out of range, the guide is itself a defence, or it and the classifier
            differ in classes, in their order as far as both name them, or in images.
    """

    method = "agdm"

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: nn.Module,
        *,
        guide: nn.Module,
        t_star: float = 0.07,
        steps: int | None = None,
        solver: Solver | str = Solver.DDPM,
        scale: float = 1.0,
        where: Where | str = Where.CLEAN,
        label: Label | str = Label.GUIDE,
        distance: Distance | str = Distance.L2,
    ) -> None:
        super().__init__(
            denoiser, classifier, t_star=[t_star], steps=None if steps is None else [steps], solver=solver
        )
        self.guide = check_instance("guide", guide, nn.Module, "a classifier")
        if isinstance(guide, Defense):
            # Its noise would have to be the same at each step and in each recomputation.
            raise ArgumentError("guide", f"expected a plain classifier, got the defence {guide.method!r}")
        classes = getattr(guide, "num_classes", None)
        if classes != self.num_classes:
            raise ArgumentError(
                "guide", f"expected the classifier's {self.num_classes} classes, got {classes}"
            )
        own, wanted = (getattr(network, "class_names", None) for network in (guide, classifier))
        if own is not None and wanted is not None:
            check_names("guide", own, wanted, "the classifier")
        takes = getattr(guide, "image_shape", None)
        if None not in (takes, self.image_shape) and takes != self.image_shape:
            raise ArgumentError("guide", f"takes {takes} images, but the defence {self.image_shape}")
        self.scale = check_positive("scale", scale)
        self.where = check_member("where", where, Where)
        self.label = check_member("label", label, Label)
        self.distance = check_member("distance", distance, Distance)

    @property
    def evaluations(self) -> int:
        """Denoiser evaluations of one image; the guide's clean estimates are further ones."""
        return super().evaluations * (2 if self.where is Where.CLEAN else 1)

    def score_shift(self, noisy: Tensor, sigma: float, images: Tensor, draw: Draw) -> Tensor:
        """s·∇(log p(y|x_t) − D(f(x'), f(x_t)))."""
        wanted = self._logits(images)

        def agreement(state: Tensor) -> Tensor:
            if self.where is Where.CLEAN:
                seen = self.denoiser.checked_estimate(state, sigma).clean.clamp(0.0, 1.0)
            else:
                seen = as_image(state, sigma)
            logits = self._logits(seen)
            potential = -self._distance(wanted, logits)
            if self.label is Label.NONE:
                return potential
            label = (wanted if self.label is Label.GUIDE else logits).argmax(1, keepdim=True)
            return potential + logits.log_softmax(1).gather(1, label)[:, 0]

        return self.scale * potential_gradient(agreement, noisy)

    def settings(self) -> dict[str, Any]:
        """Those of the purification, and of its guidance."""
        return super().settings() | {
            "scale": self.scale,
            "where": self.where.value,
            "label": self.label.value,
            "distance": self.distance.value,
        }

    def describe(self) -> str:
        """What defines the function besides its tensors and settings, the guide's part included."""
        mine = self.guide.describe() if isinstance(self.guide, Classifier) else ""
        return f"{super().describe()}; guide {mine}"

    def _logits(self, images: Tensor) -> Tensor:
        with renamed({"classifier": "guide"}), failing_network("guide", self.guide):
            return check_logits(self.guide(images), len(images), self.num_classes)

    def _distance(self, wanted: Tensor, logits: Tensor) -> Tensor:
        """N distances between the guide's logits of the input and of the state."""
        if self.distance is Distance.L2:
            return (wanted - logits).square().sum(1)
        divergence = nn.functional.kl_div(
            logits.log_softmax(1), wanted.log_softmax(1), reduction="none", log_target=True
        )
        return divergence.sum(1)
