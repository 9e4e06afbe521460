"""The squared error of what the network predicts (Ho et al. 2020, eq. 14; Karras et al. 2022, eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffproof.classifiers.base import Classifier
from diffproof.denoisers.network import NetworkDenoiser, Prediction
from diffproof.errors import ArgumentError
from diffproof.reverse.levels import WIDTH
from diffproof.training.batches import Batch
from diffproof.training.denoising.base import DenoiserObjective
from diffproof.training.loop import LossOfBatch

# Of ln σ in [−1, 1] pixels (Karras et al. 2022, table 1: P_mean, P_std).
_MEAN, _DEVIATION = -1.2, 1.2


@dataclass(frozen=True)
class MSE(DenoiserObjective):
    """Mean of ‖F_θ(x_t, t, y) − target‖², at one noise level up to a factor that of the restored pixels.

    The target is ε or v, whichever the network predicts. With EDM's preconditioning, which is v of data in
    units of its standard deviation, that is EDM's loss under its weights.

    Attributes:
        levels: timesteps are "uniform" on the schedule's grid, or those next to noise levels that are drawn
            "log-normal", as EDM does.
    """

    name = "mse"
    classified = False
    levels: str = "uniform"

    def timesteps(self, denoiser: NetworkDenoiser, number: int, generator: torch.Generator) -> Tensor:
        """Of each image the index of its noise level on the grid, int64."""
        schedule = denoiser.schedule
        assert schedule.sigmas is not None
        if self.levels == "uniform":
            return torch.randint(len(schedule.sigmas), (number,), generator=generator)
        normal = torch.randn(number, generator=generator, dtype=torch.float64)
        low, high = denoiser.data_range
        return schedule.timestep((_MEAN + _DEVIATION * normal).exp() * ((high - low) / WIDTH)).long()

    def loss_of_batches(
        self, denoiser: NetworkDenoiser, classifier: Classifier | None, label_dropout: float
    ) -> LossOfBatch:
        """See DenoiserObjective."""
        grid = denoiser.schedule.sigmas
        assert grid is not None
        if self.levels != "uniform" and len(grid) == 1:
            raise ArgumentError(
                "objective", "levels=log-normal is for a schedule, not for a single noise level"
            )

        def loss_of_batch(network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
            images, shape = batch.images, batch.images.shape
            timestep = batch.mine(self.timesteps(denoiser, batch.size, generator))
            dropped = batch.mine(torch.rand(batch.size, generator=generator) < label_dropout)
            epsilon = batch.mine(torch.randn((batch.size, *shape[1:]), generator=generator))
            sigma = grid.to(images.device)[timestep]
            scale = denoiser.schedule.input_scale(sigma).to(images.dtype).reshape(-1, 1, 1, 1)
            sigma = sigma.to(images.dtype).reshape(-1, 1, 1, 1)
            low, high = denoiser.data_range
            data = images * (high - low) + low
            given = labels_with_null(denoiser, batch, dropped)
            predicted: Tensor = network((data + sigma * epsilon) * scale, timestep, given)
            target = epsilon
            if denoiser.prediction is Prediction.V:
                # √ᾱ is the input scale, √(1−ᾱ) that times σ' (Salimans & Ho 2022, appendix D).
                target = scale * epsilon - scale * sigma * data
            return nn.functional.mse_loss(predicted.float(), target)

        return loss_of_batch


def labels_with_null(denoiser: NetworkDenoiser, batch: Batch, dropped: Tensor) -> Tensor | None:
    """The labels that the network is given, None for an unconditional one; null where they are dropped.

    Images of source s have the labels y + s·(number of classes + 1).
    """
    if denoiser.num_classes is None or denoiser.null_label is None:
        return None
    null = torch.full_like(batch.labels, denoiser.null_label)
    return torch.where(dropped, null, batch.labels) + batch.sources * (denoiser.num_classes + 1)
