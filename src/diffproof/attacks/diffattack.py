"""DiffAttack: PGD that also drives the states of the purification apart (Kang et al. 2023)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor

from diffproof import gradients
from diffproof.attacks.expectation import MeanOf, Respond
from diffproof.attacks.pgd import PGD
from diffproof.attacks.views import AttackedDefense, GradientMode
from diffproof.checks import check_positive
from diffproof.defenses.purification import Purification
from diffproof.gradients import StepLoss
from diffproof.noise import Noise


@dataclass(frozen=True)
class DiffAttack(PGD):
    """PGD on loss + weight·deviated-reconstruction loss, with exact gradients. Returns the last iterate.

    Args:
        weight: λ of the deviated-reconstruction loss.
    """

    weight: float = 1.0

    name = "diffattack"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("weight", self.weight)
        if self.mean_of != MeanOf.LOSS:
            raise ValueError(f"mean_of: diffattack averages losses, got {self.mean_of}")

    def responding(self, view: AttackedDefense) -> Respond:
        """Logits, and the weighted deviation of each row.

        Raises:
            ValueError: the defence does not purify, or the gradient is not exact.
        """
        purification = view.seen
        if not isinstance(purification, Purification) or view.gradient is not GradientMode.EXACT:
            raise ValueError(
                "attack: diffattack needs the exact gradient of a defence that purifies, got"
                f" {view.gradient.value} of {view.defense.method!r}"
            )

        def respond(images: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
            purified, deviation = deviated_reconstruction(purification, images, noise.to(images.device))
            return purification.classifier_logits(purified), self.weight * deviation

        return respond


def deviated_reconstruction(defense: Purification, images: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """Purified images, and how far their reverse process strays from the diffusion (Kang et al. 2023, eq. 4).

    The loss is the mean over the states of the reverse process of the mean squared difference, in [0, 1]
    pixels, between that state and the image diffused to its noise level by the same noise. The paper leaves
    the weights α(t) of the states open: they are equal here.

    Returns:
        N×C×H×W and N values. Gradients are exact, in memory that does not grow with the graph of a step.
    """
    losses: list[StepLoss | None] = []
    for levels in defense.levels():
        diffusion = len(losses)
        losses.append(None)
        for _, sigma in itertools.pairwise([*levels, 0.0]):
            losses.append(_distance(sigma, diffusion, defense.evaluations, noise))
    return gradients.checkpointed_with_losses(images, defense.chain(noise), losses)


def _distance(sigma: float, diffusion: int, states: int, noise: Noise) -> StepLoss:
    """Squared distance from the image at noise level sigma, with the noise of chain step `diffusion`."""

    def distance(state: Tensor, images: Tensor) -> Tensor:
        diffused = images
        if sigma > 0:
            diffused = images + sigma * noise.normal(images.shape[1:], 2 * diffusion, images.dtype)
        return (state - diffused).square().flatten(1).mean(1) / states

    return distance
