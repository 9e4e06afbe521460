"""The U-Net that `diffproof train denoiser` trains (Ho et al. 2020, appendix B).

It computes what diffusers' UNet2DModel of DownBlock2D and UpBlock2D computes, under the same names of
weights. diffusers itself takes longer to import than everything else that a run needs together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffproof.errors import ArgumentError

# A file may say any number.
MOST_LAYERS = 1000


@dataclass(frozen=True)
class Architecture:
    """Sizes of a U-Net, in diffusers' words.

    Attributes:
        sample_size: height and width of the images.
        in_channels: channels of the images.
        out_channels: channels of the output.
        block_out_channels: width of each level; levels halve the resolution.
        layers_per_block: residual blocks of a level on the way down; there is one more on the way up.
        dropout: share of features dropped inside the residual blocks, in training.
        norm_num_groups: groups of every GroupNorm.
        add_attention: self-attention between the two blocks of the middle.
        num_class_embeds: labels, None for an unconditional network.
        down_block_types: "DownBlock2D" for each level, the only kind that there is here.
        up_block_types: likewise "UpBlock2D".
        attention_head_dim: channels of a head of self-attention.

    Raises:
        ValueError: another kind of block, or sizes that do not fit one another.
    """

    sample_size: int
    in_channels: int
    out_channels: int
    block_out_channels: Sequence[int]
    layers_per_block: int
    dropout: float
    norm_num_groups: int
    add_attention: bool
    num_class_embeds: int | None
    down_block_types: Sequence[str]
    up_block_types: Sequence[str]
    attention_head_dim: int = 8

    def __post_init__(self) -> None:
        if self.layers_per_block > MOST_LAYERS:
            raise ValueError(f"layers_per_block: expected at most {MOST_LAYERS}, got {self.layers_per_block}")
        levels = len(self.block_out_channels)
        for name, kind in (("down_block_types", "DownBlock2D"), ("up_block_types", "UpBlock2D")):
            if list(getattr(self, name)) != [kind] * levels:
                raise ValueError(f"expected {name} of {levels} times {kind}, got {getattr(self, name)!r}")
        if self.add_attention and self.block_out_channels[-1] % self.attention_head_dim:
            raise ValueError(
                f"heads of {self.attention_head_dim} do not divide {self.block_out_channels[-1]}"
            )


class ResidualBlock(nn.Module):
    """Two convolutions, the embedding added in between."""

    def __init__(self, channels_in: int, channels_out: int, a: Architecture) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(a.norm_num_groups, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * a.block_out_channels[0], channels_out)
        self.norm2 = nn.GroupNorm(a.norm_num_groups, channels_out)
        self.dropout = nn.Dropout(a.dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """N×C×H×W and N×E to N×C'×H×W."""
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(embedding))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        result: Tensor = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return result


class Attention(nn.Module):
    """Self-attention over pixels, added to its input."""

    def __init__(self, channels: int, a: Architecture) -> None:
        super().__init__()
        self.heads = channels // a.attention_head_dim
        self.group_norm = nn.GroupNorm(a.norm_num_groups, channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to the same."""
        pixels = self.group_norm(x.flatten(2)).transpose(1, 2)  # N×HW×C
        query, key, value = (
            part(pixels).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q, self.to_k, self.to_v)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        change: Tensor = self.to_out[0](mixed).transpose(1, 2).reshape(x.shape)
        return change + x


class Level(nn.Module):
    """Residual blocks of one resolution, and the convolution after them by which it halves or doubles.

    Args:
        blocks: channels into each block and out of it.
        a: the sizes of the network.
        down: resolution is halved.
        up: resolution is doubled.
    """

    def __init__(
        self, blocks: Sequence[tuple[int, int]], a: Architecture, *, down: bool = False, up: bool = False
    ) -> None:
        super().__init__()
        width = blocks[-1][1]
        self.resnets = nn.ModuleList(ResidualBlock(*channels, a) for channels in blocks)
        self.downsamplers = nn.ModuleList(_Downsample(width) for _ in range(down))
        self.upsamplers = nn.ModuleList(_Upsample(width) for _ in range(up))


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.conv(x)
        return halved


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled


class Middle(nn.Module):
    """Two residual blocks, attention between them if asked for."""

    def __init__(self, channels: int, a: Architecture) -> None:
        super().__init__()
        first = ResidualBlock(channels, channels, a)
        self.attentions = nn.ModuleList([Attention(channels, a)] if a.add_attention else [])
        self.resnets = nn.ModuleList([first, ResidualBlock(channels, channels, a)])

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """N×C×H×W and N×E to N×C×H×W."""
        x = self.resnets[0](x, embedding)
        for attention in self.attentions:
            x = attention(x)
        mixed: Tensor = self.resnets[1](x, embedding)
        return mixed


class TimestepEmbedding(nn.Module):
    """Cosines and sines of a timestep, through two layers."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(features, 4 * features)
        self.linear_2 = nn.Linear(4 * features, 4 * features)

    def forward(self, timestep: Tensor) -> Tensor:
        """N timesteps to N×E, the waves in float32."""
        half = self.linear_1.in_features // 2
        index = torch.arange(half, dtype=torch.float32, device=timestep.device)
        phase = timestep[:, None].float() * torch.exp(-math.log(10_000) * index / half)
        waves = torch.cat([phase.cos(), phase.sin()], 1).to(self.linear_1.weight.dtype)
        embedding: Tensor = self.linear_2(F.silu(self.linear_1(waves)))
        return embedding


class UNet2D(nn.Module):
    """The network, called as diffusers' model is; layers are made, and so initialised, in the same order.

    Args:
        sizes: of its Architecture, which becomes its `config`.

    Raises:
        ValueError: see Architecture.
        TypeError: a size is missing or unknown.
    """

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        a = self.config = Architecture(**sizes)
        widths = list(a.block_out_channels)
        self.conv_in = nn.Conv2d(a.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0])
        labels = a.num_class_embeds
        self.class_embedding = None if labels is None else nn.Embedding(labels, 4 * widths[0])

        # The order of the parameters is diffusers', too.
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        skips, width = [widths[0]], widths[0]
        for number, own in enumerate(widths):
            halves = number < len(widths) - 1
            blocks = [(width, own), *[(own, own)] * (a.layers_per_block - 1)]
            self.down_blocks.append(Level(blocks, a, down=halves))
            skips += [own] * (a.layers_per_block + halves)
            width = own
        self.mid_block = Middle(width, a)
        for number, own in reversed(list(enumerate(widths))):
            blocks = []
            for _ in range(a.layers_per_block + 1):
                blocks.append((width + skips.pop(), own))
                width = own
            self.up_blocks.append(Level(blocks, a, up=number > 0))
        self.conv_norm_out = nn.GroupNorm(a.norm_num_groups, width)
        self.conv_out = nn.Conv2d(width, a.out_channels, 3, padding=1)

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = False
    ) -> tuple[Tensor]:
        """N×C×H×W, N timesteps and N labels (None without classes) to N×C'×H×W, in a tuple of one.

        Raises:
            ValueError: labels for a network without classes, or none for one with classes.
        """
        if (class_labels is None) != (self.class_embedding is None):
            raise ArgumentError(
                "class_labels", "expected labels for a network with classes, and only for one"
            )
        embedding = self.time_embedding(timestep)
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(class_labels)
        x = self.conv_in(sample)
        skips = [x]
        for level in cast("Iterable[Level]", self.down_blocks):
            for block in level.resnets:
                x = block(x, embedding)
                skips.append(x)
            for downsample in level.downsamplers:
                x = downsample(x)
                skips.append(x)
        x = self.mid_block(x, embedding)
        for level in cast("Iterable[Level]", self.up_blocks):
            for block in level.resnets:
                x = block(torch.cat([x, skips.pop()], 1), embedding)
            for upsample in level.upsamplers:
                x = upsample(x)
        return (self.conv_out(F.silu(self.conv_norm_out(x))),)
