"""ADBM: a bridge from the diffused adversary back to the clean image (Li et al. 2025)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffproof.attacks.threat import Linf
from diffproof.classifiers.base import Classifier
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.denoisers.schedules import VariancePreservingSchedule
from diffproof.errors import ArgumentError
from diffproof.modes import evaluation_mode
from diffproof.reverse.levels import WIDTH
from diffproof.training.adversarial import Ascent
from diffproof.training.batches import Batch
from diffproof.training.denoising.base import DenoiserObjective, bare, frozen
from diffproof.training.loop import LossOfBatch

_PROCESS = VariancePreservingSchedule()


class Draw(NamedTuple):
    """The noise of a step, which the search for the adversary holds still.

    Attributes:
        epsilon: N×C×H×W, standard normal.
        sigma: N×1×1×1, noise levels σ_t of [0, 1] pixels, float64.
        highest: σ_T, of the diffused adversary.
    """

    epsilon: Tensor
    sigma: Tensor
    highest: Tensor


@dataclass(frozen=True)
class ADBM(DenoiserObjective):
    """‖ε_θ(z, t) − (ε + a·σ_t/σ_T²)‖² with z = x + σ_t·ε + a·σ_t²/σ_T², which at T is the diffused x + a.

    In the paper's coordinates √ᾱ_t·z that is its loss: a has the factor ᾱ_T(1 − ᾱ_t)/((1 − ᾱ_T)√ᾱ_t) in what
    the network sees, and √(1/ᾱ_t − 1)·ᾱ_T/(1 − ᾱ_T) in its target. T is uniform between the two times, one a
    step, and t uniform from the time of the denoiser's lowest level up to T, one an image. The adversary
    x + a maximises the classifier's cross-entropy on the one-step estimate, under the same t and ε, by signs
    of gradients whose steps are as long as the budget, from a uniform start. The network is in evaluation
    mode in that search; the released code clips its start not before the first step.

    Attributes:
        t_star: the times of the papers' VP-SDE between which T is drawn; one time alone is T itself.
        budget: ℓ∞ norm of a, in [0, 1] pixels.
        steps: gradient steps of the search.
    """

    name = "adbm"
    labelled = True
    published = True
    t_star: Sequence[float] = (0.1, 0.2)
    budget: float = 8 / 255
    steps: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.t_star) > 2 or self.t_star[0] > self.t_star[-1]:
            raise ArgumentError("t_star", f"expected one time or two ascending ones, got {self.t_star}")

    def draw(self, denoiser: NetworkDenoiser, batch: Batch, generator: torch.Generator) -> Draw:
        """Times and noise of one step."""
        low, high = self.t_star[0], self.t_star[-1]
        last = low + (high - low) * torch.rand((), dtype=torch.float64, generator=generator)
        share = torch.rand(batch.size, dtype=torch.float64, generator=generator)
        epsilon = torch.randn((batch.size, *batch.images.shape[1:]), generator=generator)
        first = _PROCESS.time(torch.tensor(denoiser.sigma_min * WIDTH, dtype=torch.float64))
        sigma = _PROCESS.sigma(first + (last - first) * share) / WIDTH
        sigma = sigma.clamp(min=denoiser.sigma_min).reshape(-1, 1, 1, 1)
        return Draw(batch.mine(epsilon), batch.mine(sigma), _PROCESS.sigma(last) / WIDTH)

    def loss_of_batches(
        self, denoiser: NetworkDenoiser, classifier: Classifier | None, label_dropout: float
    ) -> LossOfBatch:
        """See DenoiserObjective."""
        behind = frozen(classifier)
        self.check_predicts_noise(denoiser)
        if denoiser.num_classes is not None and denoiser.null_label is None:
            raise ArgumentError("denoiser", "adbm asks it without a label, which it was never trained for")
        ends = _PROCESS.sigma(torch.tensor([self.t_star[0], self.t_star[-1]], dtype=torch.float64)) / WIDTH
        lowest, highest = ends.tolist()
        if not denoiser.sigma_min < lowest <= highest <= denoiser.sigma_max:
            raise ArgumentError(
                "objective",
                f"adbm needs the noise levels {lowest:.3g} to {highest:.3g}, the denoiser has"
                f" {denoiser.sigma_min:.3g} to {denoiser.sigma_max:.3g}",
            )
        ascent = Ascent(Linf(self.budget), self.steps, self.budget)

        def loss_of_batch(network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
            images, labels = batch.images, batch.labels
            drawn = self.draw(denoiser, batch, generator)
            normal = batch.mine(torch.randn((batch.size, *images.shape[1:]), generator=generator))
            searched = bare(network)
            behind.to(images.device)

            def objective(adversary: Tensor) -> Tensor:
                noisy, predicted = bridged(denoiser, searched, images, adversary, drawn)
                estimate = noisy - drawn.sigma.to(noisy.dtype) * predicted
                return nn.functional.cross_entropy(behind(estimate).float(), labels, reduction="none")

            with evaluation_mode(searched):
                # ℓ∞ balls need no uniform numbers beside the normal ones.
                start = ascent.start(images, normal, images.new_empty(0))
                adversary = ascent.maximise(objective, images, start)
            _, predicted = bridged(denoiser, network, images, adversary, drawn)
            change = drawn.sigma / drawn.highest.to(images.device) ** 2 * (adversary - images)
            return nn.functional.mse_loss(predicted, (drawn.epsilon + change).to(predicted.dtype))

        return loss_of_batch


def bridged(
    denoiser: NetworkDenoiser,
    network: Callable[..., Tensor],
    images: Tensor,
    adversary: Tensor,
    drawn: Draw,
) -> tuple[Tensor, Tensor]:
    """A point of the bridge in [0, 1] pixels, and the noise that the network sees in it.

    Args:
        denoiser: says what the network is given.
        network: (scaled pixels, timestep, label) → ε.
        images: x, N×C×H×W in [0, 1].
        adversary: x + a, like images.
        drawn: the step's noise.
    """
    (low, high), dtype = denoiser.data_range, images.dtype
    sigma, share = drawn.sigma, (drawn.sigma / drawn.highest.to(images.device)) ** 2
    noisy = images + sigma.to(dtype) * drawn.epsilon + share.to(dtype) * (adversary - images)
    level = sigma.flatten() * (high - low)
    scale = denoiser.schedule.input_scale(level).to(dtype).reshape(-1, 1, 1, 1)
    label = None
    if denoiser.null_label is not None:
        label = torch.full((len(images),), denoiser.null_label, device=images.device)
    data = noisy * (high - low) + low
    # Behind ε there may be a learned variance, which stays what it is.
    predicted = network(data * scale, denoiser.schedule.timestep(level), label)[:, : data.shape[1]]
    return noisy, predicted if predicted.dtype == torch.float64 else predicted.float()
