"""A vision transformer that is a classifier and a denoiser at once (Yang et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffproof.checks import check_at_least
from diffproof.classifiers.base import Classifier
from diffproof.errors import ArgumentError

# How weights files name it, and what they say of its size.
NAME, SIZE = "hybrid-vit", ("patch", "width", "depth", "heads")
# Sizes beyond these are of no network, and torch says so in words of its memory.
_MOST_LAYERS, _MOST = 1000, 2**20
# The longest period of the sines that a timestep is written in.
_PERIOD = 10_000


class Block(nn.Module):
    """Self-attention and two layers on each token, both added to what comes in, normalised first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """N×T×width → N×T×width."""
        rows, count, width = tokens.shape
        # N×T×3×heads×d → 3×N×heads×T×d.
        parts = self.mixed(self.norm1(tokens)).reshape(rows, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(rows, count, width)
        tokens = tokens + self.out(attended)
        answer: Tensor = tokens + self.mlp(self.norm2(tokens))
        return answer


class HybridViT(nn.Module):
    """Patches and a class token through one transformer; the class token answers with logits, without a time,
    and the patches with ε, with one.

    The authors lead the time into the layers of each block; here it is added to the tokens before the first.

    Args:
        image_shape: C, H, W.
        num_classes: of the logits.
        patch: pixels of a side of a patch; divides H and W.
        width: of a token, an even number; a multiple of heads.
        depth: blocks.
        heads: of attention.

    Raises:
        ValueError: a size is out of range, or does not fit the others.
    """

    def __init__(
        self, image_shape: Sequence[int], num_classes: int, *, patch: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        channels, height, self.patch = image_shape[0], image_shape[1], check_at_least("patch", patch, 1)
        if height % patch or image_shape[2] % patch:
            size = "×".join(map(str, image_shape[1:]))
            raise ArgumentError("patch", f"expected a divisor of the image's sides, {size}, got {patch}")
        check_at_least("width", width, 4, _MOST)
        if check_at_least("heads", heads, 1) > width or width % heads or width % 2:
            raise ArgumentError("width", f"expected an even multiple of heads = {heads}, got {width}")
        pixels, self.rows = channels * patch**2, height // patch
        patches = self.rows * (image_shape[2] // patch)
        self.embed = nn.Linear(pixels, width)
        self.token = nn.Parameter(0.02 * torch.randn(width))
        self.place = nn.Parameter(0.02 * torch.randn(patches + 1, width))
        self.time = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.blocks = nn.Sequential(
            *(Block(width, heads) for _ in range(check_at_least("depth", depth, 1, _MOST_LAYERS)))
        )
        self.classify = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))
        self.denoise = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, pixels))

    def forward(self, images: Tensor, timestep: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """Logits N×num_classes of images N×C×H×W in [−1, 1], or the noise ε, like images, of noisy ones.

        Args:
            images: those, or noisy ones times √ᾱ.
            timestep: N values of the noisy ones; None for images to classify.
            label: not used: as a denoiser it is unconditional.
        """
        parts = F.pixel_unshuffle(images, self.patch).flatten(2).transpose(1, 2)
        embedded = self.embed(parts)
        tokens = torch.cat([self.token.expand(len(images), 1, -1), embedded], 1) + self.place
        if timestep is None:
            logits: Tensor = self.classify(self.blocks(tokens)[:, 0])
            return logits
        tokens = tokens + self.time(self._waves(timestep).to(tokens.dtype))[:, None]
        noise = self.denoise(self.blocks(tokens)[:, 1:]).transpose(1, 2)
        return F.pixel_shuffle(noise.unflatten(2, (self.rows, -1)), self.patch)

    def _waves(self, timestep: Tensor) -> Tensor:
        """N×width sines and cosines of a timestep, in float32 or its own precision."""
        half = self.place.shape[1] // 2
        times = timestep if timestep.is_floating_point() else timestep.float()
        exponents = torch.arange(half, dtype=times.dtype, device=times.device) / half
        angles = times[:, None] * torch.exp(-math.log(_PERIOD) * exponents)
        return torch.cat([angles.sin(), angles.cos()], 1)


class HybridClassifier(Classifier):
    """The network as a classifier of [0, 1] pixels, which a training calls as a denoiser, too.

    Args:
        network: the transformer.
        num_classes: of its logits.
        image_shape: C, H, W.
        size: its patch, width, depth and heads.
    """

    def __init__(
        self, network: HybridViT, num_classes: int, image_shape: Sequence[int], size: Mapping[str, int]
    ) -> None:
        channels, height, width = image_shape
        half = [0.5] * channels
        super().__init__(network, num_classes, image_shape=(channels, height, width), mean=half, std=half)
        self.size, self.structure = dict(size), structure(size)

    def forward(self, images: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Logits of images in [0, 1]; with a timestep the noise in what the network is given."""
        if timestep is None:
            return super().forward(images)
        noise: Tensor = self.network(images, timestep)
        return noise


def structure(size: Mapping[str, int]) -> str:
    """What tensors do not say of the network, for hashes."""
    return f"{NAME} {', '.join(f'{name} {size[name]}' for name in SIZE)}"


def build(description: Mapping[str, Any]) -> tuple[HybridViT, dict[str, int]]:
    """The network that a weights file describes, with fresh weights, and its size.

    Raises:
        KeyError: the description is incomplete.
        ValueError: a size is out of range.
    """
    channels, height, width = description["image_shape"]
    size = {name: check_at_least(name, description[name], 1, _MOST) for name in SIZE}
    shape = [check_at_least("image_shape", side, 1, _MOST) for side in (channels, height, width)]
    return HybridViT(shape, description["num_classes"], **size), size
