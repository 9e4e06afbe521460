"""The squared error of the noise: what denoisers are trained with (Ho et al. 2020, eq. 14)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffproof.classifiers.base import Classifier
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.training.batches import Batch
from diffproof.training.denoising.base import DenoiserObjective
from diffproof.training.loop import LossOfBatch


@dataclass(frozen=True)
class MSE(DenoiserObjective):
    """Mean of ‖ε_θ(x_t, t, y) − ε‖², at one noise level up to a factor that of the restored pixels."""

    name = "mse"
    classified = False

    def loss_of_batches(
        self, denoiser: NetworkDenoiser, classifier: Classifier | None, label_dropout: float
    ) -> LossOfBatch:
        """See DenoiserObjective."""

        def loss_of_batch(network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
            return epsilon_loss(denoiser, network, batch, label_dropout, generator)

        return loss_of_batch


def epsilon_loss(
    denoiser: NetworkDenoiser,
    network: nn.Module,
    batch: Batch,
    label_dropout: float,
    generator: torch.Generator,
) -> Tensor:
    """Mean of ‖ε_θ(x_t, t, y) − ε‖² over pixels and batch, t uniform on the grid (Ho et al. 2020, eq. 14).

    Images of source s have the labels y + s·(number of classes + 1).
    """
    schedule = denoiser.schedule
    assert schedule.sigmas is not None
    images, shape = batch.images, batch.images.shape
    timestep = batch.mine(torch.randint(len(schedule.sigmas), (batch.size,), generator=generator))
    dropped = batch.mine(torch.rand(batch.size, generator=generator) < label_dropout)
    epsilon = batch.mine(torch.randn((batch.size, *shape[1:]), generator=generator))
    sigma = schedule.sigmas.to(images.device)[timestep]
    scale = schedule.input_scale(sigma).to(images.dtype).reshape(-1, 1, 1, 1)
    low, high = denoiser.data_range
    noisy = images * (high - low) + low + sigma.to(images.dtype).reshape(-1, 1, 1, 1) * epsilon
    given = None
    if denoiser.num_classes is not None and denoiser.null_label is not None:
        given = torch.where(dropped, torch.full_like(batch.labels, denoiser.null_label), batch.labels)
        given = given + batch.sources * (denoiser.num_classes + 1)
    predicted: Tensor = network(noisy * scale, timestep, given)
    return torch.nn.functional.mse_loss(predicted.float(), epsilon)
