"""DDPM++ and NCSN++ (Song et al. 2021, appendix H), the networks of score_sde and of EDM.

Both authors' codes spell the same function; `score_sde` and `edm` map their keys onto this one. diffusers'
blocks cannot express it: they attend after every decoder block and do not let GroupNorm's groups follow the
channels. Dropout is left out, since it does nothing in evaluation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ROOT_HALF = math.sqrt(0.5)  # keeps the variance of a sum of two branches


@dataclass(frozen=True)
class Architecture:
    """Sizes of a network.

    Attributes:
        image_size: height and width of the images, a multiple of 2^(levels − 1).
        channels: width of the first level; the embedding is four times as wide.
        multipliers: width of each level relative to the first; levels halve the resolution.
        blocks: residual blocks of a level in the encoder; the decoder has one more.
        attention: resolutions that have self-attention (one head); the middle always has.
        smooth: NCSN++'s [1, 3, 3, 1] filter in every resampling, and the image fed to every level.
        fourier: random Fourier features of the timestep instead of sinusoids.
        num_classes: labels, 0 if unconditional; label `num_classes` itself stands for none.
        image_channels: channels of input and output.
    """

    image_size: int = 32
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 4
    attention: tuple[int, ...] = (16,)
    smooth: bool = False
    fourier: bool = False
    num_classes: int = 0
    image_channels: int = 3


class _Conv(nn.Conv2d):
    def reset_parameters(self) -> None:
        """Nothing: weights come from a file, and drawing random ones first takes longer than reading them."""


class _Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Nothing, as in _Conv."""


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def _half_pixel_means(x: Tensor, times: int) -> Tensor:
    # The binomial [1, 3, 3, 1]/8 is three means of two neighbours, [1, 2, 1]/4 two of them.
    for _ in range(times):
        x = F.avg_pool2d(x, 2, stride=1)
    return x


class Resample(nn.Module):
    """Halves or doubles the resolution: means and nearest pixels, or [1, 3, 3, 1] zero-padded."""

    def __init__(self, direction: Literal["down", "up"], smooth: bool) -> None:
        super().__init__()
        self.direction = direction
        self.smooth = smooth

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×C×H/2×W/2 or N×C×2H×2W."""
        if self.direction == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if self.smooth:
            x = _half_pixel_means(F.pad(x, (1, 1, 1, 1)), 2)
        return F.avg_pool2d(x, 2) if self.direction == "down" else x


class Attention(nn.Module):
    """Self-attention over pixels, one head, with its residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.query = _Linear(channels, channels)
        self.key = _Linear(channels, channels)
        self.value = _Linear(channels, channels)
        self.out = _Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to the same."""
        pixels = self.norm(x).flatten(2).transpose(1, 2).unsqueeze(1)  # N×1×HW×C
        mixed = F.scaled_dot_product_attention(self.query(pixels), self.key(pixels), self.value(pixels))
        change: Tensor = self.out(mixed).squeeze(1).transpose(1, 2).reshape(x.shape)
        return (x + change) * _ROOT_HALF


class Block(nn.Module):
    """BigGAN's residual block with a timestep embedding, maybe resampling, maybe followed by attention."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int,
        *,
        resample: Resample | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm0 = _norm(channels_in)
        self.conv0 = _Conv(channels_in, channels_out, 3, padding=1)
        self.affine = _Linear(embedding, channels_out)
        self.norm1 = _norm(channels_out)
        self.conv1 = _Conv(channels_out, channels_out, 3, padding=1)
        projects = channels_in != channels_out or resample is not None
        self.skip = _Conv(channels_in, channels_out, 1) if projects else None
        self.attention = Attention(channels_out) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """N×C×H×W and N×E to N×C'×H'×W'."""
        h = F.silu(self.norm0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv0(h) + self.affine(embedding)[:, :, None, None]
        h = self.conv1(F.silu(self.norm1(h)))
        x = (h + (x if self.skip is None else self.skip(x))) * _ROOT_HALF
        return x if self.attention is None else self.attention(x)


class SmoothConv(nn.Module):
    """3×3 convolution of stride 2 after the [1, 3, 3, 1] filter, padded once: NCSN++'s path of the image."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = _Conv(channels_in, channels_out, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×C'×H/2×W/2."""
        smoothed: Tensor = self.conv(_half_pixel_means(F.pad(x, (2, 2, 2, 2)), 3))
        return smoothed


class NCSNpp(nn.Module):
    """The network: (x, timestep, label) → what it was trained to predict, N×C×H×W. Its weights are not set.

    The layers of `encoder`, `middle` and `decoder` stand in the order in which the authors number theirs.
    """

    frequencies: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        features = a.channels * (2 if a.fourier else 1)
        embedding = 4 * a.channels
        if a.fourier:
            self.register_buffer("frequencies", torch.zeros(a.channels))
        self.map_label = _Linear(a.num_classes, features) if a.num_classes else None
        self.map0 = _Linear(features, embedding)
        self.map1 = _Linear(embedding, embedding)

        width = a.channels
        self.first = _Conv(a.image_channels, width, 3, padding=1)
        self.encoder = nn.ModuleList()
        skips = [width]
        image_width = a.image_channels
        for level, multiplier in enumerate(a.multipliers):
            if level > 0:
                self.encoder.append(Block(width, width, embedding, resample=Resample("down", a.smooth)))
                if a.smooth:
                    self.encoder.append(SmoothConv(image_width, width))
                    image_width = width
                skips.append(width)
            attends = a.image_size >> level in a.attention
            for _ in range(a.blocks):
                self.encoder.append(Block(width, multiplier * a.channels, embedding, attention=attends))
                width = multiplier * a.channels
                skips.append(width)

        self.middle = nn.ModuleList(
            [Block(width, width, embedding, attention=True), Block(width, width, embedding)]
        )

        self.decoder = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(a.multipliers))):
            for block in range(a.blocks + 1):
                attends = block == a.blocks and a.image_size >> level in a.attention
                joined = width + skips.pop()
                width = multiplier * a.channels
                self.decoder.append(Block(joined, width, embedding, attention=attends))
            if level > 0:
                self.decoder.append(Block(width, width, embedding, resample=Resample("up", a.smooth)))
        self.last_norm = _norm(width)
        self.last = _Conv(width, a.image_channels, 3, padding=1)

    def embed(self, timestep: Tensor) -> Tensor:
        """[sin, cos] features of N timesteps, computed in at least float32."""
        timestep = timestep.to(torch.promote_types(self.map0.weight.dtype, torch.float32))
        if self.architecture.fourier:
            # In this order of rounding: phases reach hundreds of radians, where it shows.
            phase = timestep[:, None] * self.frequencies.to(timestep.dtype) * (2 * math.pi)
        else:
            half = self.architecture.channels // 2
            index = torch.arange(half, dtype=timestep.dtype, device=timestep.device)
            phase = timestep[:, None] * torch.exp(index * (-math.log(10_000) / (half - 1)))
        return torch.cat([phase.sin(), phase.cos()], 1)

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None = None) -> Tensor:
        """N×C×H×W, N timesteps and N labels or None (only where there are no classes) to N×C×H×W."""
        embedding = self.embed(timestep).to(x.dtype)
        if self.map_label is not None:
            assert label is not None
            classes = self.architecture.num_classes
            one_hot = F.one_hot(label, classes + 1)[:, :classes].to(x.dtype)
            embedding = embedding + self.map_label(one_hot * math.sqrt(classes))
        embedding = F.silu(self.map1(F.silu(self.map0(embedding))))

        image = x
        x = self.first(x)
        skips = [x]
        for layer in self.encoder:
            if isinstance(layer, SmoothConv):
                x = image = skips[-1] = (x + layer(image)) * _ROOT_HALF
            else:
                x = layer(x, embedding)
                skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding)
        for layer in self.decoder:
            if layer.resample is None:
                x = torch.cat([x, skips.pop()], 1)
            x = layer(x, embedding)
        output: Tensor = self.last(F.silu(self.last_norm(x)))
        return output
