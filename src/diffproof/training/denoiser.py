"""Training a class-conditional denoiser (Ho et al. 2020, algorithm 1; Ho & Salimans 2022, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.checks import check_at_least
from diffproof.data import ImageData
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.denoisers.saved import build_denoiser
from diffproof.denoisers.schedules import named_schedule
from diffproof.training.loop import OnStep, TrainSettings, fit


@dataclass(frozen=True)
class UNetSettings:
    """Size of a U-Net without attention.

    Attributes:
        channels: channels at each resolution, halving it from one to the next; multiples of 8.
        layers: residual blocks at each resolution.
        dropout: dropout inside the residual blocks.
    """

    channels: Sequence[int] = (16, 32, 48)
    layers: int = 1
    dropout: float = 0.0


def describe_denoiser(data: ImageData, unet: UNetSettings, schedule: str, timesteps: int) -> dict[str, Any]:
    """What a weights file says of the network it holds, enough to build it again.

    Raises:
        ValueError: a setting out of range, or images that cannot be halved as often as the U-Net has
            resolutions.
    """
    channels, height, width = data.image_shape
    factor = 2 ** (len(unet.channels) - 1)
    if height != width or height % factor:
        raise ValueError(
            f"channels: {len(unet.channels)} resolutions need images of k·{factor} square pixels"
        )
    if any(width_ % 8 or width_ < 8 for width_ in unet.channels):
        raise ValueError(f"channels: expected multiples of 8, got {list(unet.channels)}")
    check_at_least("layers", unet.layers, 1)
    if not 0.0 <= unet.dropout < 1.0:
        raise ValueError(f"dropout: expected a number in [0, 1), got {unet.dropout}")
    named_schedule(schedule, timesteps=timesteps)
    num_classes = len(data.class_names)
    return {
        "kind": "denoiser",
        "network": {
            "sample_size": height,
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": list(unet.channels),
            "down_block_types": ["DownBlock2D"] * len(unet.channels),
            "up_block_types": ["UpBlock2D"] * len(unet.channels),
            "layers_per_block": unet.layers,
            "dropout": unet.dropout,
            "norm_num_groups": 8,
            "add_attention": False,
            "num_class_embeds": num_classes + 1,
        },
        "schedule": {"name": schedule, "timesteps": timesteps},
        "prediction": "epsilon",
        "null_label": num_classes,
    }


def train_denoiser(
    data: ImageData,
    description: dict[str, Any],
    settings: TrainSettings,
    *,
    label_dropout: float = 0.1,
    on_step: OnStep = lambda step, loss: None,
) -> NetworkDenoiser:
    """Train the denoiser that `description` describes, predicting ε at uniformly drawn timesteps.

    Args:
        data: training images.
        description: from `describe_denoiser`.
        settings: see TrainSettings.
        label_dropout: probability with which a label is replaced by the null label.
        on_step: called after each step with its number and loss.

    Raises:
        ValueError: bad settings, or a loss that is not finite.
    """
    if not 0.0 <= label_dropout <= 1.0:
        raise ValueError(f"label_dropout: expected a number in [0, 1], got {label_dropout}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        denoiser = build_denoiser(description)

    def loss_of_batch(
        network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        return epsilon_loss(denoiser, network, images, labels, label_dropout, generator)

    denoiser.network = fit(denoiser.network, data.images, data.labels, loss_of_batch, settings, on_step)
    return denoiser.eval()


def epsilon_loss(
    denoiser: NetworkDenoiser,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    label_dropout: float,
    generator: torch.Generator,
) -> Tensor:
    """Mean of ‖ε_θ(x_t, t, y) − ε‖² over pixels and batch, t uniform on the grid (Ho et al. 2020, eq. 14)."""
    schedule = denoiser.schedule
    assert schedule.sigmas is not None
    timestep = torch.randint(len(schedule.sigmas), (len(images),), generator=generator)
    dropped = torch.rand(len(images), generator=generator) < label_dropout
    epsilon = torch.randn(images.shape, generator=generator)
    sigma = schedule.sigmas[timestep]
    scale = schedule.input_scale(sigma).to(images.dtype).reshape(-1, 1, 1, 1)
    low, high = denoiser.data_range
    noisy = images * (high - low) + low + sigma.to(images.dtype).reshape(-1, 1, 1, 1) * epsilon
    given = torch.where(dropped, torch.full_like(labels, denoiser.null_label or 0), labels)
    predicted: Tensor = network(noisy * scale, timestep, given)
    return torch.nn.functional.mse_loss(predicted, epsilon)


def denoising_errors(
    denoiser: NetworkDenoiser, data: ImageData, sigmas: Sequence[float], seed: int
) -> list[float]:
    """Root-mean-square pixel error of the unconditional denoiser on held-out images, at each sigma."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(data.images.shape, generator=generator)
    with torch.no_grad():
        return [
            float((denoiser(data.images + sigma * noise, sigma) - data.images).pow(2).mean().sqrt())
            for sigma in sigmas
        ]
