"""Cross-entropy under noise: the baseline of randomized smoothing (Cohen et al. 2019, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffproof.training.objectives.base import Objective, Step, cross_entropies


@dataclass(frozen=True)
class Gaussian(Objective):
    """CE(f(x + δ), y), one draw an image and step."""

    name = "gaussian"

    def loss(self, step: Step) -> Tensor:
        """See Objective."""
        return cross_entropies(step.log_probabilities(step.images), step.labels).mean()
