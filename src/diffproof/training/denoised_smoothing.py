"""Denoised smoothing: a denoiser of one noise level, for the classifier behind it (Salman et al. 2020)."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor, nn

from diffproof.classifiers.base import Classifier
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.training.batches import Batch
from diffproof.training.loop import LossOfBatch


class DenoiserObjective(StrEnum):
    """What a denoiser of one noise level is trained with.

    MSE: mean (R(x + δ) − x)², up to a factor.
    STAB: cross-entropy of the classifier on the denoised image with its own label of the clean one.
    CLF: cross-entropy of the classifier on the denoised image with the true label.
    """

    MSE = "mse"
    STAB = "stab"
    CLF = "clf"


def classified_loss(
    denoiser: NetworkDenoiser, classifier: Classifier, objective: DenoiserObjective
) -> LossOfBatch:
    """The loss of STAB or CLF; the classifier, in evaluation mode, is not trained.

    The estimate goes to the classifier as it is, as in the authors' code: clipping to [0, 1], as the defence
    does, would end the gradient there.

    Args:
        denoiser: of one noise level, predicting ε; its network is what is trained.
        classifier: behind it.
        objective: STAB or CLF.
    """
    classifier.eval().requires_grad_(False)
    sigma, (low, high) = denoiser.sigma_max, denoiser.data_range
    assert denoiser.schedule.sigmas is not None
    scale = float(denoiser.schedule.input_scale(denoiser.schedule.sigmas)[0])

    def loss_of_batch(network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        normal = batch.mine(torch.randn((batch.size, *batch.images.shape[1:]), generator=generator))
        noisy = batch.images + sigma * normal
        timestep = torch.zeros(len(noisy), dtype=torch.int64, device=noisy.device)
        # ε is the noise in units of its level, whatever the pixels' range.
        clean = noisy - sigma * network((noisy * (high - low) + low) * scale, timestep, None).float()
        behind, labels = classifier.to(noisy.device), batch.labels
        if objective is DenoiserObjective.STAB:
            with torch.no_grad():  # a label has no gradient
                labels = behind(batch.images).argmax(1)
        return nn.functional.cross_entropy(behind(clean).float(), labels)

    return loss_of_batch
