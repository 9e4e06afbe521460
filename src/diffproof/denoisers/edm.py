"""EDM's checkpoints (Karras et al. 2022): DDPM++ ("vp") and NCSN++ ("ve") networks with EDM preconditioning.

With σ in units of the data's standard deviation, EDM's preconditioning (their table 1) is c_in = 1/√(1 + σ²),
c_skip = c_in², c_out = σ·c_in: that of a network that predicts −v on variance-preserved inputs. So they are
v-predictors here, of data in [−2, 2] (σ_data = ½ of [−1, 1] pixels), told ln(σ/2)/4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from diffproof.checks import unknown_name
from diffproof.denoisers.checkpoints import check_keys
from diffproof.denoisers.ncsnpp import Architecture, Block, NCSNpp, SmoothConv
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.errors import ArgumentError
from diffproof.weights import load_into, load_weights

DATA_STD = 0.5

_CIFAR_VP = (2, 2, 2)
_LARGE = (1, 2, 2, 2)

# Under the names of the published files, edm-NAME.pkl.
PRESETS = {
    "cifar10-32x32-uncond-vp": Architecture(multipliers=_CIFAR_VP),
    "cifar10-32x32-cond-vp": Architecture(multipliers=_CIFAR_VP, num_classes=10),
    "cifar10-32x32-uncond-ve": Architecture(multipliers=_CIFAR_VP, smooth=True, fourier=True),
    "cifar10-32x32-cond-ve": Architecture(multipliers=_CIFAR_VP, smooth=True, fourier=True, num_classes=10),
    "ffhq-64x64-uncond-vp": Architecture(image_size=64, multipliers=_LARGE),
    "ffhq-64x64-uncond-ve": Architecture(image_size=64, multipliers=_LARGE, smooth=True, fourier=True),
    "afhqv2-64x64-uncond-vp": Architecture(image_size=64, multipliers=_LARGE),
    "afhqv2-64x64-uncond-ve": Architecture(image_size=64, multipliers=_LARGE, smooth=True, fourier=True),
}

_AUGMENT = "map_augment.weight"  # of training's augmentation labels, which are all zero for real images


@dataclass(frozen=True)
class EDMSchedule:
    """EDM's continuous noise levels, σ' in units of the data's standard deviation.

    The network is conditioned on ln(σ)/4 with σ in [−1, 1] pixels. Args: the range of σ, as EDM samples.
    """

    sigma_low: float = 0.002
    sigma_high: float = 80.0
    sigmas: None = field(default=None, init=False)
    first_timestep: int = field(default=0, init=False)

    @property
    def origin(self) -> str:
        """Its settings."""
        return repr(self)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The two ends, over σ_data."""
        return self.sigma_low / DATA_STD, self.sigma_high / DATA_STD

    def start_timestep(self, sigma: float) -> float:
        """σ in [−1, 1] pixels: EDM's time is the noise level itself."""
        return sigma * DATA_STD

    def timestep(self, sigma: Tensor) -> Tensor:
        """c_noise = ln(σ)/4."""
        return torch.log(sigma * DATA_STD) / 4

    def input_scale(self, sigma: Tensor) -> Tensor:
        """c_in = 1/√(1 + σ'²)."""
        return torch.rsqrt(1 + sigma**2)


class NegativeV(nn.Module):
    """EDM's network F, which is trained to output −v, as a predictor of v."""

    def __init__(self, network: NCSNpp) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        """N×C×H×W, N values of c_noise and N labels or None to N×C×H×W."""
        predicted: Tensor = self.network(x, timestep, label)
        return -predicted


def load(preset: str, path: Path) -> NetworkDenoiser:
    """A state dict of EDM's networks as a denoiser, in evaluation mode.

    Class-conditional checkpoints give an estimate without a label too, as the authors' code does with a label
    vector of zeros; but the published ones were trained with a label always, so nothing taught them that.

    Args:
        preset: name of a published file without "edm-" and ".pkl", such as "cifar10-32x32-cond-vp".
        path: state dict with or without the prefix "model."; `diffproof convert` makes one of their pickles.

    Raises:
        ValueError: unknown preset, unreadable file, or weights that do not fit.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    state = load_weights(path).tensors
    tensors = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    augmented = _AUGMENT in tensors
    expected = key_shapes(PRESETS[preset], augmented=augmented)
    others = ((name, key_shapes(other, augmented=augmented)) for name, other in PRESETS.items())
    check_keys(tensors, expected, source=str(path), preset=preset, others=others)
    return denoiser(PRESETS[preset], tensors, str(path))


def denoiser(architecture: Architecture, tensors: Mapping[str, Tensor], source: str) -> NetworkDenoiser:
    """A denoiser from weights under the authors' keys without "model.", all there and of the right shape.

    Raises:
        ValueError: a resampling filter in the file is not the architecture's.
    """
    network = NCSNpp(architecture)
    own: dict[str, Tensor] = {}
    for theirs, ours in _names(network):
        tensor = tensors[theirs].float()
        if not ours:
            _check_filter(theirs, tensor, source)
        elif len(ours) == 3:
            # Query, key and value alternate from one channel to the next.
            for part, name in enumerate(ours):
                own[name] = tensor[part::3].flatten(1) if tensor.ndim == 4 else tensor[part::3]
        else:
            own[ours[0]] = tensor.flatten(1) if ours[0].endswith("attention.out.weight") else tensor
    load_into(network, own, source)
    size, classes = architecture.image_size, architecture.num_classes or None
    low, high = -1.0 / DATA_STD, 1.0 / DATA_STD
    return NetworkDenoiser(
        NegativeV(network),
        EDMSchedule(),
        prediction="v_prediction",
        data_range=(low, high),
        image_shape=(architecture.image_channels, size, size),
        num_classes=classes,
        null_label=classes,
    ).eval()


def key_shapes(architecture: Architecture, *, augmented: bool) -> dict[str, tuple[int, ...]]:
    """Shapes under the authors' keys without "model.", for training with their augmentation or without."""
    network = NCSNpp(architecture)
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    taps = 4 if architecture.smooth else 2
    shapes: dict[str, tuple[int, ...]] = {_AUGMENT: (network.map0.in_features, 9)} if augmented else {}
    for theirs, ours in _names(network):
        if not ours:
            shapes[theirs] = (1, 1, taps, taps)
            continue
        shape = own[ours[0]]
        if ".attention." in ours[0] and len(shape) == 2:
            shape = (*shape, 1, 1)
        shapes[theirs] = (len(ours) * shape[0], *shape[1:])
    return shapes


def _names(network: NCSNpp) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Pairs (their key, our keys): none for a resampling filter, three for query, key and value in one."""
    architecture = network.architecture

    def tensors(theirs: str, *ours: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        for kind in ("weight", "bias"):
            yield f"{theirs}.{kind}", tuple(f"{name}.{kind}" for name in ours)

    def block(theirs: str, ours: str, layer: Block) -> Iterator[tuple[str, tuple[str, ...]]]:
        for name in ("norm0", "conv0", "affine", "norm1", "conv1"):
            yield from tensors(f"{theirs}.{name}", f"{ours}.{name}")
        if layer.resample is not None:
            yield f"{theirs}.conv0.resample_filter", ()
            yield f"{theirs}.skip.resample_filter", ()
        if layer.skip is not None:
            yield from tensors(f"{theirs}.skip", f"{ours}.skip")
        if layer.attention is not None:
            parts = (f"{ours}.attention.{part}" for part in ("query", "key", "value"))
            yield from tensors(f"{theirs}.norm2", f"{ours}.attention.norm")
            yield from tensors(f"{theirs}.qkv", *parts)
            yield from tensors(f"{theirs}.proj", f"{ours}.attention.out")

    if architecture.fourier:
        yield "map_noise.freqs", ("frequencies",)
    if network.map_label is not None:
        yield from tensors("map_label", "map_label")
    yield from tensors("map_layer0", "map0")
    yield from tensors("map_layer1", "map1")

    size = architecture.image_size
    yield from tensors(f"enc.{size}x{size}_conv", "first")
    for path, layers in (("enc", "encoder"), ("dec", "middle"), ("dec", "decoder")):
        count = 0
        for index, layer in enumerate(getattr(network, layers)):
            ours = f"{layers}.{index}"
            if isinstance(layer, SmoothConv):
                theirs = f"{path}.{size}x{size}_aux_residual"
                yield f"{theirs}.resample_filter", ()
                yield from tensors(theirs, f"{ours}.conv")
            elif layer.resample is not None:
                down = layer.resample.direction == "down"
                size, count = (size // 2 if down else size * 2), 0
                yield from block(f"{path}.{size}x{size}_{'down' if down else 'up'}", ours, layer)
            else:
                kind = "in" if layers == "middle" else "block"
                yield from block(f"{path}.{size}x{size}_{kind}{count}", ours, layer)
                count += 1
    yield from tensors(f"dec.{size}x{size}_aux_norm", "last_norm")
    yield from tensors(f"dec.{size}x{size}_aux_conv", "last")


def _check_filter(key: str, found: Tensor, source: str) -> None:
    taps = torch.tensor([1.0, 1.0] if found.shape[-1] == 2 else [1.0, 3.0, 3.0, 1.0], device=found.device)
    expected = torch.outer(taps, taps) / taps.sum() ** 2
    if not torch.allclose(found.reshape(expected.shape), expected):
        raise ArgumentError("weights", f"{source}: {key} is not the filter of DDPM++ or NCSN++ but another")
