"""COUP: purification guided by the confidence of the classifier behind it (Zhang et al. 2024)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from diffproof.checks import check_flag, check_positive
from diffproof.defenses.base import Defense
from diffproof.defenses.purifying.coordinates import as_image
from diffproof.defenses.purifying.reverse_process import Draw, Purification, potential_gradient
from diffproof.denoisers.base import Denoiser
from diffproof.errors import ArgumentError
from diffproof.noise import Noise
from diffproof.reverse.solvers import INTEGRATORS, Solver


class COUP(Purification):
    """From t* back along ∇log p(x_t) + scale·∇log max_y p(y|x_t) (Zhang et al. 2024).

    The reverse process starts at the image itself, x_t* = x, which is not diffused first: the released code
    does so in all its experiments (image_editing_sample of runners/diffpure_sde.py with `--mode sde`).
    p(y|x_t) is the classifier's own, which sees the papers' x_t mapped to [0, 1].

    Args:
        denoiser: see Purification.
        classifier: see Purification; it guides, too, and may be no defence itself.
        t_star: noise level as a time in (0, 1]; the authors' for ℓ∞ 8/255 on CIFAR-10. Theirs for ℓ2 0.5 is
            0.075.
        steps: denoiser evaluations, ≥ 1; None for one a timestep.
        solver: see Solver.
        scale: weight of the confidence, > 0.
        diffuse: diffuse the image to t* first, as DiffPure does.

    Raises:
        ValueError: an argument is out of range, or the classifier is itself a defence.
    """

    method = "coup"

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: nn.Module,
        *,
        t_star: float = 0.1,
        steps: int | None = None,
        solver: Solver | str = Solver.SDE,
        scale: float = 1.0,
        diffuse: bool = False,
    ) -> None:
        if isinstance(classifier, Defense):
            # Its noise would have to be the same at each step and in each recomputation.
            raise ArgumentError(
                "classifier", f"coup needs a plain one to guide it, got the defence {classifier.method!r}"
            )
        super().__init__(
            denoiser, classifier, t_star=[t_star], steps=None if steps is None else [steps], solver=solver
        )
        self.scale = check_positive("scale", scale)
        self.diffuse = check_flag("diffuse", diffuse)
        self.random = diffuse or INTEGRATORS[self.solver].random

    def diffused(self, images: Tensor, sigma: float, noise: Noise, index: int) -> Tensor:
        """The images themselves, as the papers' x_t, unless the defence diffuses them."""
        if self.diffuse:
            return super().diffused(images, sigma, noise, index)
        return 0.5 + math.sqrt(1 + (2 * sigma) ** 2) * (images - 0.5)

    def score_shift(self, noisy: Tensor, sigma: float, images: Tensor, draw: Draw) -> Tensor:
        """scale·∇log of the largest class probability."""

        def confidence(state: Tensor) -> Tensor:
            return self.classifier_logits(as_image(state, sigma)).log_softmax(1).amax(1)

        return self.scale * potential_gradient(confidence, noisy)

    def settings(self) -> dict[str, Any]:
        """Those of the purification, the weight, and whether it diffuses."""
        return super().settings() | {"scale": self.scale, "diffuse": self.diffuse}
