"""AGDM: purification guided by an adversarially trained classifier (Lin et al. 2024)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.checks import check_flag, check_instance, check_member, check_positive, renamed
from diffproof.classifiers.base import Classifier, check_logits
from diffproof.data.classes import check_names
from diffproof.defenses.base import Defense
from diffproof.defenses.purifying.coordinates import as_image
from diffproof.defenses.purifying.reverse_process import Draw, Purification, StepLevels, potential_gradient
from diffproof.denoisers.base import Denoiser, Estimate
from diffproof.errors import ArgumentError, failing_network
from diffproof.reverse.solvers import Solver, last_variance


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


class Variant(StrEnum):
    """Whose choices stand where none are asked for.

    MEASURED: CLEAN, L2, and no guidance in DDPM's step to the image, whose β̃ is 0. Within chance of what
        withstood an attack with exact gradients best on digits (`benchmarks/agdm_choices.py`).
    PAPER: STATE (its algorithm 1 evaluates the guide at x_t), KL (its appendix B), and guidance in every
        step, the last included, where Σ is improved-diffusion's: β̃ of the step before, or the learned
        mixture with it. A third of the time of MEASURED.
    """

    MEASURED = "measured"
    PAPER = "paper"


class AGDM(Purification):
    """Reverse process with s·∇log p_φ(y|x_t) − s·∇D(f_φ(x'), f_φ(x_t)) added to the score (Lin et al. 2024).

    The paper leaves one thing open: which y is meant. GUIDE stands for it in both variants.

    Args:
        denoiser: see Purification.
        classifier: see Purification.
        guide: the robust classifier f_φ, of `diffproof train guide`; images in [0, 1] → logits.
        t_star: noise level as a time in (0, 1]; the paper's for ℓ∞ 8/255 on CIFAR-10.
        steps: denoiser evaluations of the reverse process, ≥ 1; None for one a timestep.
        solver: DDPM, or SDE for the continuous-time form; see Solver.
        scale: strength s of the guidance, > 0.
        variant: what the three that follow are where they are None; see Variant.
        where: what the guide sees of a state; see Where.
        distance: D; see Distance.
        guide_last: whether DDPM's step to the image is guided, too; the other solvers guide every step.
        label: the y of log p(y|x_t); see Label.

    Raises:
        ValueError: an argument is out of range, the guide is itself a defence, it and the classifier
            differ in classes, in their order as far as both name them, or in images, or guide_last is given
            for a solver that guides every step.
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
        variant: Variant | str = Variant.MEASURED,
        where: Where | str | None = None,
        distance: Distance | str | None = None,
        guide_last: bool | None = None,
        label: Label | str = Label.GUIDE,
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
        of_paper = check_member("variant", variant, Variant) is Variant.PAPER
        usual = (Where.STATE, Distance.KL) if of_paper else (Where.CLEAN, Distance.L2)
        self.where = check_member("where", usual[0] if where is None else where, Where)
        self.distance = check_member("distance", usual[1] if distance is None else distance, Distance)
        if guide_last is not None and self.solver is not Solver.DDPM:
            given = f"the solver {self.solver.value} guides every step; expected None, got {guide_last}"
            raise ArgumentError("guide_last", given)
        self.guide_last = of_paper if guide_last is None else check_flag("guide_last", guide_last)
        self.label = check_member("label", label, Label)

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

    def step_variance(self, estimate: Estimate, levels: StepLevels) -> Tensor | None:
        """See Purification; that of the step to the image where it is guided."""
        if levels.next_sigma > 0.0 or not self.guide_last:
            return super().step_variance(estimate, levels)
        return torch.as_tensor(last_variance(levels.sigma, levels.before, estimate.log_variance_mix))

    def settings(self) -> dict[str, Any]:
        """Those of the purification, and of its guidance."""
        return super().settings() | {
            "scale": self.scale,
            "where": self.where.value,
            "label": self.label.value,
            "distance": self.distance.value,
            "guide_last": self.guide_last or self.solver is not Solver.DDPM,
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
