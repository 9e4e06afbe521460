"""DiffAttack: PGD that also drives the states of the purification apart (Kang et al. 2023)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor

from diffproof import gradients
from diffproof.attacks.expectation import MeanOf, Respond
from diffproof.attacks.pgd import PGD
from diffproof.attacks.threat import Threat
from diffproof.attacks.views import AttackedDefense, GradientMode
from diffproof.checks import check_positive
from diffproof.defenses.purifying.coordinates import papers_state
from diffproof.defenses.purifying.reverse_process import Purification
from diffproof.errors import ArgumentError
from diffproof.gradients import StepLoss
from diffproof.noise import Noise


@dataclass(frozen=True)
class DiffAttack(PGD):
    """PGD on loss + weight·deviated-reconstruction loss, with exact gradients (Kang et al. 2023, eq. 11).

    It attacks on after a success and returns the last iterate. The paper takes AutoAttack's APGD for the
    steps, 100 of them with eot=20, once with the loss ce and once with dlr (appendix D).

    Args:
        weight: λ of the deviated-reconstruction loss, > 0; the paper's is 1 (its Table 8).
    """

    weight: float = 1.0

    name = "diffattack"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("weight", self.weight)
        if self.mean_of != MeanOf.LOSS:
            raise ArgumentError("mean_of", f"diffattack averages losses, got {self.mean_of}")

    def check(self, view: AttackedDefense, threat: Threat) -> None:
        """As any attack's; besides, the defence must purify by a reverse process, the gradient be exact."""
        super().check(view, threat)
        if not isinstance(view.defense, Purification) or view.gradient is not GradientMode.EXACT:
            raise ArgumentError(
                "attack",
                "diffattack needs the exact gradient of a defence that purifies by a reverse"
                f" process, got {view.gradient.value} of {view.defense.method!r}",
            )

    def responding(self, view: AttackedDefense) -> Respond:
        """Logits, and the weighted deviation of each row."""
        purification = view.defense
        assert isinstance(purification, Purification)

        def respond(images: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
            noise = noise.to(images.device)
            purified, deviation = deviated_reconstruction(purification, images, noise)
            return purification.classifier_logits(purified, noise), self.weight * deviation

        return respond


def deviated_reconstruction(defense: Purification, images: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """Purified images, and how far their reverse process strays from the diffusion (Kang et al. 2023, eq. 8).

    The loss is the mean over the states of the reverse process (α(t) = 1/their number, appendix D.2) of their
    distance to what entered that round's diffusion, diffused to their noise level by the same noise: the mean
    squared difference of the papers' x_t = √ᾱ·(2x − 1) + √(1 − ᾱ)·z. The paper leaves the distance open.
    Gradients flow through both sides.

    Returns:
        N×C×H×W and N values. Gradients are exact, in memory that does not grow with the graph of a step.
    """
    rounds = defense.levels()
    states = sum(len(levels) for levels in rounds)
    losses: list[StepLoss | None] = []
    for levels in rounds:
        diffusion = len(losses)
        losses.append(None)
        for _, sigma in itertools.pairwise([*levels, 0.0]):
            losses.append(_distance(defense, sigma, noise, diffusion, states))
    return gradients.checkpointed_with_losses(images, defense.chain(noise), losses)


def _distance(defense: Purification, sigma: float, noise: Noise, diffusion: int, states: int) -> StepLoss:
    """Distance to the images at noise level sigma by chain step `diffusion`, over the number of states."""

    def distance(state: Tensor, start: Tensor) -> Tensor:
        diffused = papers_state(defense.diffused(start, sigma, noise, diffusion), sigma)
        return (papers_state(state, sigma) - diffused).square().flatten(1).mean(1) / states

    return distance
