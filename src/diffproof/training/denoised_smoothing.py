"""A denoiser of one noise level, for the classifier behind it: denoised smoothing (Salman et al. 2020), AToP
(Lin et al. 2024).
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor, nn

from diffproof.classifiers.base import Classifier
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.training.adversarial import Ascent
from diffproof.training.batches import Batch
from diffproof.training.loop import LossOfBatch


class DenoiserObjective(StrEnum):
    """What a denoiser of one noise level is trained with.

    MSE: mean (R(x + δ) − x)², up to a factor.
    STAB: cross-entropy of the classifier on the denoised image with its own label of the clean one.
    CLF: cross-entropy of the classifier on the denoised image with the true label.
    ATOP: mean (R(x' + δ) − x)² + 0.05·CLF of x' + δ, x' by PGD on the classifier alone, ℓ∞ 8/255, ten steps:
        AToP's loss with a denoiser for its purifier and the clean image for its target.
    """

    MSE = "mse"
    STAB = "stab"
    CLF = "clf"
    ATOP = "atop"


# Of AToP's authors.
_CLASSIFIED = 0.05
_ASCENT = Ascent()


def classified_loss(
    denoiser: NetworkDenoiser, classifier: Classifier, objective: DenoiserObjective
) -> LossOfBatch:
    """The loss of STAB, CLF or ATOP; the classifier, in evaluation mode, is not trained.

    The estimate goes to the classifier as it is, as in the authors' code: clipping to [0, 1], as the defence
    does, would end the gradient there.

    Args:
        denoiser: of one noise level, predicting ε; its network is what is trained.
        classifier: behind it.
        objective: STAB, CLF or ATOP.
    """
    classifier.eval().requires_grad_(False)
    sigma, (low, high) = denoiser.sigma_max, denoiser.data_range
    assert denoiser.schedule.sigmas is not None
    scale = float(denoiser.schedule.input_scale(denoiser.schedule.sigmas)[0])

    def loss_of_batch(network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        normal = batch.mine(torch.randn((batch.size, *batch.images.shape[1:]), generator=generator))
        behind, labels = classifier.to(batch.images.device), batch.labels
        images = batch.images
        if objective is DenoiserObjective.ATOP:
            images = _adversarial(behind, batch, generator)
        noisy = images + sigma * normal
        timestep = torch.zeros(len(noisy), dtype=torch.int64, device=noisy.device)
        # ε is the noise in units of its level, whatever the pixels' range.
        clean = noisy - sigma * network((noisy * (high - low) + low) * scale, timestep, None).float()
        if objective is DenoiserObjective.STAB:
            with torch.no_grad():  # a label has no gradient
                labels = behind(batch.images).argmax(1)
        entropy = nn.functional.cross_entropy(behind(clean).float(), labels)
        if objective is DenoiserObjective.ATOP:
            return nn.functional.mse_loss(clean, batch.images) + _CLASSIFIED * entropy
        return entropy

    return loss_of_batch


def _adversarial(classifier: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    """Images of the batch under PGD on the classifier alone, from a random start."""
    normal = batch.mine(torch.randn((batch.size, *batch.images.shape[1:]), generator=generator))
    uniform = batch.mine(torch.rand(batch.size, generator=generator))

    def entropies(points: Tensor) -> Tensor:
        return nn.functional.cross_entropy(classifier(points).float(), batch.labels, reduction="none")

    return _ASCENT.maximise(entropies, batch.images, _ASCENT.start(batch.images, normal, uniform))
