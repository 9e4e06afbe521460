"""The U-Nets of OpenAI's improved-diffusion and guided-diffusion, from their state dicts.

Nichol & Dhariwal 2021, "Improved denoising diffusion probabilistic models" (CIFAR-10, ImageNet 64×64), and
Dhariwal & Nichol 2021, "Diffusion models beat GANs on image synthesis" (ImageNet 64×64 to 512×512). The
networks run as diffusers.UNet2DModel, in float32 even where the authors ran half precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.checks import check_known
from diffproof.denoisers.checkpoints import check_keys
from diffproof.denoisers.diffusers import UNet
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.denoisers.schedules import DiscreteSchedule
from diffproof.weights import load_weights, without_wrapper


@dataclass(frozen=True)
class Preset:
    """What a checkpoint's weights do not say: its flags in the authors' README, all with a learned variance.

    Attributes:
        image_size: height and width of its images, which have 3 channels.
        channels: the base width; the time embedding has 4 times as many.
        multipliers: width of each level, from fine to coarse, over `channels`.
        layers: residual blocks per level.
        attention: resolutions with attention after each residual block.
        schedule: its noise schedule.
        heads: attention heads everywhere; None where `head_channels` fixes their width instead.
        head_channels: width of a head, the number of which then grows with the level's.
        resampling_blocks: up- and downsampling inside residual blocks (guided-diffusion), not convolutions.
        split_first: rows of qkv are [q, k, v] × heads (the newer order), not heads × [q, k, v].
        timestep_scale: factor from the 0-based index to what the network is conditioned on.
        num_classes: labels, or None if unconditional. Labels were never dropped in training.
        dropout: dropout of the residual blocks; it acts only in training.
    """

    image_size: int
    channels: int
    multipliers: tuple[float, ...]
    layers: int
    attention: tuple[int, ...]
    schedule: DiscreteSchedule
    heads: int | None = None
    head_channels: int | None = None
    resampling_blocks: bool = False
    split_first: bool = False
    timestep_scale: float = 1.0
    num_classes: int | None = None
    dropout: float = 0.0

    def head_count(self, width: int) -> int:
        """Attention heads in a layer that is `width` channels wide."""
        return self.heads or width // (self.head_channels or width)


class RescaledUNet(UNet):
    """Calls a diffusers.UNet2DModel at timestep·scale, in floats as the authors do."""

    def __init__(self, unet: nn.Module, scale: float) -> None:
        super().__init__(unet)
        self.scale = scale

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        """The model's output, N×2C×H×W."""
        return super().forward(x, timestep.float() * self.scale, label)


def _improved(image_size: int, channels: int, multipliers: tuple[float, ...], **settings: Any) -> Preset:
    """Improved-diffusion: cosine T = 4000, 4 heads, attention at 16 and 8."""
    settings = {"schedule": DiscreteSchedule.cosine(4000), **settings}
    return Preset(image_size, channels, multipliers, 3, (16, 8), heads=4, **settings)


def _guided(image_size: int, multipliers: tuple[float, ...], **settings: Any) -> Preset:
    """Guided-diffusion: linear T = 1000, attention at 32, 16 and 8, resampling in residual blocks."""
    settings = {"channels": 256, "layers": 2, "schedule": DiscreteSchedule.linear(), **settings}
    return Preset(
        image_size, multipliers=multipliers, attention=(32, 16, 8), resampling_blocks=True, **settings
    )


# Timesteps rescaled to 0…1000, improved-diffusion's default; DensePure's code counts CIFAR-10's from 1.
_CIFAR10 = _improved(
    32,
    128,
    (1, 2, 2, 2),
    schedule=DiscreteSchedule.cosine(4000, first_timestep=1),
    timestep_scale=0.25,
    dropout=0.3,
)
_IMAGENET64 = _improved(64, 128, (1, 2, 3, 4), timestep_scale=0.25)
_GUIDED256 = (1, 1, 2, 2, 4, 4)

# Named after the published files, less their sizes and iterations.
PRESETS: dict[str, Preset] = {
    "cifar10_uncond": _CIFAR10,
    "cifar10_uncond_vlb": _CIFAR10,
    "imagenet64_uncond": _IMAGENET64,
    "imagenet64_uncond_vlb": _IMAGENET64,
    "imagenet64_cond": _improved(64, 192, (1, 2, 3, 4), num_classes=1000),
    "64x64_diffusion": _guided(
        64,
        (1, 2, 3, 4),
        channels=192,
        layers=3,
        schedule=DiscreteSchedule.cosine(1000),
        head_channels=64,
        split_first=True,
        num_classes=1000,
        dropout=0.1,
    ),
    "128x128_diffusion": _guided(128, (1, 1, 2, 3, 4), heads=4, num_classes=1000),
    "256x256_diffusion": _guided(256, _GUIDED256, head_channels=64, num_classes=1000),
    "256x256_diffusion_uncond": _guided(256, _GUIDED256, head_channels=64),
    "512x512_diffusion": _guided(512, (0.5, 1, 1, 2, 2, 4, 4), head_channels=64, num_classes=1000),
}


def build_unet(preset: Preset) -> nn.Module:
    """The preset's network with fresh weights; under torch.device("meta") without memory for them."""
    from diffusers import UNet2DModel
    from diffusers.models.attention_processor import Attention
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    attends = [preset.image_size >> level in preset.attention for level in range(len(preset.multipliers))]
    plain = "Resnet{}sampleBlock2D" if preset.resampling_blocks else "{}Block2D"
    resampling = "resnet" if preset.resampling_blocks else "conv"
    unet = UNet2DModel(
        sample_size=preset.image_size,
        in_channels=3,
        out_channels=6,
        time_embedding_dim=4 * preset.channels,
        down_block_types=tuple("AttnDownBlock2D" if own else plain.format("Down") for own in attends),
        up_block_types=tuple("AttnUpBlock2D" if own else plain.format("Up") for own in reversed(attends)),
        block_out_channels=tuple(int(factor * preset.channels) for factor in preset.multipliers),
        layers_per_block=preset.layers,
        downsample_type=resampling,
        upsample_type=resampling,
        dropout=preset.dropout,
        attention_head_dim=preset.head_channels or 1,
        attn_norm_num_groups=32,
        norm_eps=1e-5,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=preset.num_classes,
    )
    # UNet2DModel would embed the time as wide as its first level, which is half the base width at 512×512.
    unet.time_proj = Timesteps(preset.channels, flip_sin_to_cos=True, downscale_freq_shift=0)
    unet.time_embedding = TimestepEmbedding(preset.channels, 4 * preset.channels)
    # It has no fixed number of heads either.
    for module in unet.modules():
        if isinstance(module, Attention):
            module.heads = preset.head_count(module.inner_dim)
            module.scale = (module.inner_dim // module.heads) ** -0.5
    return unet  # type: ignore[no-any-return]


# Parts of a residual block and of an attention, by their names in diffusers.
_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
    "to_q": "qkv",
    "to_k": "qkv",
    "to_v": "qkv",
    "to_out.0": "proj_out",
}


def _modules(preset: Preset) -> Iterator[tuple[str, str]]:
    """The authors' name of every module that has weights, and diffusers' name."""
    yield from (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"))
    if preset.num_classes is not None:
        yield "label_emb", "class_embedding"
    yield "input_blocks.0.0", "conv_in"
    levels = len(preset.multipliers)
    op, conv, ours = ("", "", "") if preset.resampling_blocks else (".op", ".conv", ".conv")
    # Their input blocks count layers and downsamplings through all levels, after the first convolution.
    block = 1
    for level in range(levels):
        attends = preset.image_size >> level in preset.attention
        for layer in range(preset.layers):
            yield f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{layer}"
            if attends:
                yield f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{layer}"
            block += 1
        if level < levels - 1:
            yield f"input_blocks.{block}.0{op}", f"down_blocks.{level}.downsamplers.0{ours}"
            block += 1
    for number, part in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"middle_block.{number}", f"mid_block.{part}"
    # Upsampling is the last part of the level's last output block.
    for level in range(levels):
        attends = preset.image_size >> (levels - 1 - level) in preset.attention
        for layer in range(preset.layers + 1):
            block = level * (preset.layers + 1) + layer
            yield f"output_blocks.{block}.0", f"up_blocks.{level}.resnets.{layer}"
            if attends:
                yield f"output_blocks.{block}.1", f"up_blocks.{level}.attentions.{layer}"
        if level < levels - 1:
            yield f"output_blocks.{block}.{1 + attends}{conv}", f"up_blocks.{level}.upsamplers.0{ours}"
    yield from (("out.0", "conv_norm_out"), ("out.2", "conv_out"))


def _keys(preset: Preset, unet: nn.Module) -> Iterator[tuple[str, str]]:
    """The authors' key and diffusers' key of every tensor; qkv comes three times."""
    for theirs, ours in _modules(preset):
        for name in unet.get_submodule(ours).state_dict():
            part, _, kind = name.rpartition(".")
            yield ".".join(filter(None, (theirs, _PARTS.get(part), kind))), f"{ours}.{name}"


def expected_shapes(preset: Preset, unet: nn.Module | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes by the authors' keys.

    Args:
        preset: the settings.
        unet: its network, where it is built already.
    """
    if unet is None:
        with torch.device("meta"):
            unet = build_unet(preset)
    own = unet.state_dict()
    shapes = {}
    for theirs, ours in _keys(preset, unet):
        shape = tuple(own[ours].shape)
        if ".qkv." in theirs:
            shape = (3 * shape[0], *shape[1:])
        # Their attention maps channels with convolutions over flattened positions, of kernel size 1.
        is_convolution = theirs.endswith(("qkv.weight", "proj_out.weight"))
        shapes[theirs] = (*shape, 1) if is_convolution else shape
    return shapes


@cache
def preset_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """What `expected_shapes` gives for a name in PRESETS; read only, each network is built once."""
    return expected_shapes(PRESETS[name])


def _converted(preset: Preset, unet: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint under diffusers' keys, float32; at most q, k and v are copied."""
    own = unet.state_dict()
    result = {}
    for theirs, ours in _keys(preset, unet):
        tensor = tensors[theirs].float()
        if ".qkv." in theirs:
            third = next(i for i, part in enumerate(("to_q", "to_k", "to_v")) if part in ours)
            heads = preset.head_count(len(tensor) // 3)
            if preset.split_first:
                tensor = tensor.unflatten(0, (3, heads, -1))[third]
            else:
                tensor = tensor.unflatten(0, (heads, 3, -1))[:, third]
        result[ours] = tensor.reshape(own[ours].shape)
    return result


def load_checkpoint(path: Path, preset: Preset, name: str) -> NetworkDenoiser:
    """A checkpoint with the given settings, in evaluation mode; `name` is what errors call them.

    It never holds more than one copy of the weights besides those of attention.

    Raises:
        ValueError: the file is unreadable or holds code, or its keys and shapes are not the preset's.
    """
    tensors = load_weights(path).tensors
    with torch.device("meta"):
        unet = build_unet(preset)
    others = ((other, preset_shapes(other)) for other in PRESETS)
    expected = expected_shapes(preset, unet)
    tensors = without_wrapper(tensors, expected)
    check_keys(tensors, expected, source=str(path), preset=name, others=others)
    unet.load_state_dict(_converted(preset, unet, tensors), assign=True)
    return _adapted(unet, preset)


def build(preset: str) -> NetworkDenoiser:
    """A preset's denoiser with fresh weights.

    Raises:
        ValueError: unknown preset.
    """
    known = check_known("preset", preset, PRESETS)
    return _adapted(build_unet(known), known)


def _adapted(unet: nn.Module, preset: Preset) -> NetworkDenoiser:
    size = preset.image_size
    return NetworkDenoiser(
        RescaledUNet(unet, preset.timestep_scale),
        preset.schedule,
        image_shape=(3, size, size),
        num_classes=preset.num_classes,
    ).eval()


def load(preset: str, path: Path) -> NetworkDenoiser:
    """A published checkpoint as a denoiser, in evaluation mode.

    Args:
        preset: a name in PRESETS.
        path: the authors' .pt file, or the same state dict as safetensors.

    Raises:
        ValueError: unknown preset, a file that is unreadable or holds code, or keys and shapes that are not
            the preset's; a preset that fits is named.
    """
    return load_checkpoint(path, check_known("preset", preset, PRESETS), preset)
