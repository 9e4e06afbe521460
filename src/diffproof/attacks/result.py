"""What an attack found for an image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AttackResult:
    """What an attack found for one image.

    Attributes:
        image_index: the image's number in its data set.
        label: its true class.
        adversarial: C×H×W in [0, 1]; which iterate it is, the attack says.
        norm: norm of the perturbation, in the threat's own norm; for StAdv the largest movement of a pixel.
        first_success: first iteration (for AutoAttack and Square: evaluation) at which some draw of what the
            attack saw was wrong within the threat; None if there was none. The clean image, or the random
            start, is iteration 0.
        forwards: evaluations of the defence that the attack spent on this image, every draw of noise counted.
        backwards: gradients of the defence that it spent, every draw counted; recomputation inside a gradient
            is not.
        draws: draws of noise that the attack saw, each once; a draw may be evaluated several times.
        zero_gradients: share of the iterations whose gradient was exactly zero; None if it asked for none.
        seed: of all noise that the attack saw; None in a run, whose settings state it.
    """

    image_index: int
    label: int
    adversarial: Tensor
    norm: float
    first_success: int | None
    forwards: int
    backwards: int
    draws: int
    zero_gradients: float | None
    seed: int | None = None

    @property
    def success(self) -> bool:
        """A wrong answer was seen during the attack: no score, since a random defence errs now and then."""
        return self.first_success is not None
