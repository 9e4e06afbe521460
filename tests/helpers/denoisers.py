"""Small denoisers: Gaussian mixtures and a network in float64, a U-Net of two blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.defenses.repeatability import checking
from diffproof.denoisers.base import Estimate
from diffproof.denoisers.diffusers import UNet
from diffproof.denoisers.unet import UNet2D
from helpers.images import SHAPE, pictures

# Twelve noise levels, as a network on timesteps has them.
GRID = torch.linspace(0.05, 0.6, 12, dtype=torch.float64)


class CountingMixture(dp.GaussianMixtureDenoiser):
    """Keeps the number of images of each batch that it denoises."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.batches: list[int] = []

    def estimate(self, noisy: Tensor, sigma: Any, label: Tensor | None) -> Estimate:
        self.batches.append(len(noisy))
        return super().estimate(noisy, sigma, label)

    @property
    def spent(self) -> int:
        return sum(self.batches)

    @property
    def largest(self) -> int:
        return max(self.batches, default=0)


def mixture_around(images: Tensor, variance: float = 0.02, **settings: Any) -> CountingMixture:
    """A round component around each image."""
    return CountingMixture(images, torch.full((len(images),), variance), **settings)


def mixture(sigmas: Tensor | None = GRID, *, count: int = 5, **settings: Any) -> CountingMixture:
    """Narrow components around random 1×2×2 images."""
    return mixture_around(pictures(count, 1, (1, 2, 2)), sigmas=sigmas, **settings)


def one_gaussian() -> dp.GaussianMixtureDenoiser:
    """Data N(½, 0.01·I): its estimate is linear in the state, and stays in [0, 1] here."""
    middle = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    return dp.GaussianMixtureDenoiser(middle, torch.tensor([0.01], dtype=torch.float64))


class ToyNetwork(nn.Module):
    """A smooth random network that depends on its timestep; half of 2 output channels is a variance."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.last = nn.Conv2d(4, channels, 3, padding=1)

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        hidden = torch.tanh(2 * self.first(x) + 0.01 * timestep[:, None, None, None])
        output: Tensor = torch.tanh(2 * self.last(hidden))
        return output


class ToyDenoiser(dp.NetworkDenoiser):
    """Keeps what it estimated."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__(ToyNetwork(channels).double(), dp.DiscreteSchedule.linear(), image_shape=SHAPE)
        self.estimates: list[Tensor] = []

    def estimate(self, noisy: Tensor, sigma: Any, label: Tensor | None) -> Estimate:
        estimate = super().estimate(noisy, sigma, label)
        if not checking():
            self.estimates.append(estimate.clean)
        return estimate


def two_convolutions() -> dp.NetworkDenoiser:
    """A random network for digits that compiles in seconds."""
    return dp.NetworkDenoiser(ToyNetwork(), dp.DiscreteSchedule.linear(), image_shape=(1, 8, 8))


class _Same(nn.Module):
    """In the place of the blocks in the middle of a U-Net."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return x


def two_blocks() -> dp.NetworkDenoiser:
    """A random U-Net for digits with a block on the way down and one on the way up: every kind of layer."""
    torch.manual_seed(0)
    unet = UNet2D(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=[8],
        layers_per_block=1,
        dropout=0.0,
        norm_num_groups=4,
        add_attention=False,
        num_class_embeds=11,
        down_block_types=["DownBlock2D"],
        up_block_types=["UpBlock2D"],
    )
    unet.mid_block = _Same()  # type: ignore[assignment]
    (up,) = unet.up_blocks
    up.resnets = up.resnets[:1]  # type: ignore[index]
    schedule = dp.DiscreteSchedule.linear()
    return dp.NetworkDenoiser(UNet(unet), schedule, image_shape=(1, 8, 8), num_classes=10, null_label=10)
