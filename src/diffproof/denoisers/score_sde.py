"""score_sde's CIFAR-10 checkpoints (Song et al. 2021): VP DDPM++ and NCSN++, VE NCSN++.

The VP networks predict the noise: the authors' score is −output/std. The VE ones output σ·score = −noise and
take pixels in [0, 1]; the authors divide by σ inside their network, here the division is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from diffproof.checks import check_known
from diffproof.denoisers.checkpoints import check_keys
from diffproof.denoisers.ncsnpp import Architecture, Block, NCSNpp, SmoothConv
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.denoisers.schedules import (
    DiscreteSchedule,
    Schedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)
from diffproof.errors import ArgumentError
from diffproof.weights import load_into, load_nested


class Process(StrEnum):
    """The noising process that a checkpoint was trained with."""

    DISCRETE = "DDPM's chain, integer timesteps"
    VP = "VP-SDE, time·999"
    VE = "VE-SDE, log σ"


class Preset(NamedTuple):
    """A configuration file of the authors."""

    architecture: Architecture
    process: Process


_DDPMPP = Architecture()
_DDPMPP_DEEP = Architecture(blocks=8)
_NCSNPP = Architecture(smooth=True)
_NCSNPP_DEEP = Architecture(smooth=True, blocks=8)
_NCSNPP_FOURIER = Architecture(smooth=True, fourier=True)
_NCSNPP_FOURIER_DEEP = Architecture(smooth=True, fourier=True, blocks=8)

# Under the names that the authors' configuration files have.
PRESETS = {
    "vp/cifar10_ddpmpp": Preset(_DDPMPP, Process.DISCRETE),
    "vp/cifar10_ddpmpp_continuous": Preset(_DDPMPP, Process.VP),
    "vp/cifar10_ddpmpp_deep_continuous": Preset(_DDPMPP_DEEP, Process.VP),
    "vp/cifar10_ncsnpp": Preset(_NCSNPP, Process.DISCRETE),
    "vp/cifar10_ncsnpp_continuous": Preset(_NCSNPP, Process.VP),
    "vp/cifar10_ncsnpp_deep_continuous": Preset(_NCSNPP_DEEP, Process.VP),
    "ve/cifar10_ncsnpp_continuous": Preset(_NCSNPP_FOURIER, Process.VE),
    "ve/cifar10_ncsnpp_deep_continuous": Preset(_NCSNPP_FOURIER_DEEP, Process.VE),
}


class NoiseOfPixels(nn.Module):
    """A VE network, which takes [0, 1] pixels and outputs −noise, as a noise prediction."""

    def __init__(self, network: NCSNpp) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        """N×C×H×W pixels and N values of log σ to N×C×H×W."""
        predicted: Tensor = self.network(2 * x - 1, timestep, label)
        return -predicted


def load(preset: str, path: Path) -> NetworkDenoiser:
    """A checkpoint of the authors' code as a denoiser, in evaluation mode.

    Args:
        preset: name of their configuration, such as "vp/cifar10_ddpmpp_deep_continuous" (DiffPure's).
        path: their checkpoint {model, ema, …}, whose moving averages are used, or a state dict of the model.

    Raises:
        ValueError: unknown preset, unreadable file, or weights that do not fit.
    """
    architecture, process = check_known("preset", preset, PRESETS)
    tensors = _moving_averages(load_nested(path), preset, path)
    return denoiser(architecture, process, tensors, str(path))


def denoiser(
    architecture: Architecture, process: Process, tensors: Mapping[str, Tensor], source: str
) -> NetworkDenoiser:
    """A denoiser from weights under the authors' keys, all of them there and of the right shape."""
    network = NCSNpp(architecture)
    load_into(network, dict(_renamed(network, tensors)), source)
    return _adapted(network, process)


def build(preset: str) -> NetworkDenoiser:
    """A preset's denoiser with fresh weights.

    Raises:
        ValueError: unknown preset.
    """
    architecture, process = check_known("preset", preset, PRESETS)
    return _adapted(NCSNpp(architecture), process)


def _adapted(network: NCSNpp, process: Process) -> NetworkDenoiser:
    architecture = network.architecture
    schedule: Schedule
    if process is Process.DISCRETE:
        schedule = DiscreteSchedule.linear()
    elif process is Process.VP:
        schedule = VariancePreservingSchedule()
    else:
        schedule = VarianceExplodingSchedule()
    explodes = process is Process.VE
    size = architecture.image_size
    return NetworkDenoiser(
        NoiseOfPixels(network) if explodes else network,
        schedule,
        data_range=(0.0, 1.0) if explodes else (-1.0, 1.0),
        image_shape=(architecture.image_channels, size, size),
    ).eval()


def key_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shapes under the authors' keys, in the order of their parameters; without the buffer `sigmas`."""
    network = NCSNpp(architecture)
    own = network.state_dict()
    return {
        theirs: tuple(own[ours].T.shape if _is_transposed(theirs) else own[ours].shape)
        for theirs, ours in _names(network)
    }


def _names(network: NCSNpp) -> Iterator[tuple[str, str]]:
    """Pairs (their key, our key): they number modules in the order in which the network runs them."""
    count = 0

    def numbered(
        theirs: str, ours: str, tensors: tuple[str, str] = ("weight", "bias")
    ) -> Iterator[tuple[str, str]]:
        for their_tensor, our_tensor in zip(tensors, ("weight", "bias"), strict=True):
            dot = "." if theirs else ""
            yield f"all_modules.{count}{dot}{theirs}.{their_tensor}", f"{ours}.{our_tensor}"

    if network.architecture.fourier:
        yield "all_modules.0.W", "frequencies"
        count += 1
    for ours in ("map0", "map1", "first"):
        yield from numbered("", ours)
        count += 1
    for part in ("encoder", "middle", "decoder"):
        for index, layer in enumerate(getattr(network, part)):
            prefix = f"{part}.{index}"
            if isinstance(layer, SmoothConv):
                yield from numbered("Conv2d_0", f"{prefix}.conv")
            elif isinstance(layer, Block):
                for theirs, ours in _BLOCK:
                    yield from numbered(theirs, f"{prefix}.{ours}")
                if layer.skip is not None:
                    yield from numbered("Conv_2", f"{prefix}.skip")
                if layer.attention is not None:
                    count += 1
                    yield from numbered("GroupNorm_0", f"{prefix}.attention.norm")
                    for number, ours in enumerate(("query", "key", "value", "out")):
                        yield from numbered(f"NIN_{number}", f"{prefix}.attention.{ours}", ("W", "b"))
            count += 1
    for ours in ("last_norm", "last"):
        yield from numbered("", ours)
        count += 1


_BLOCK = (
    ("GroupNorm_0", "norm0"),
    ("Conv_0", "conv0"),
    ("Dense_0", "affine"),
    ("GroupNorm_1", "norm1"),
    ("Conv_1", "conv1"),
)


def _is_transposed(key: str) -> bool:
    # Their pointwise layers multiply from the right; the Fourier frequencies are a vector of the same name.
    return ".NIN_" in key and key.endswith(".W")


def _renamed(network: NCSNpp, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for theirs, ours in _names(network):
        tensor = tensors[theirs].float()
        yield ours, tensor.T if _is_transposed(theirs) else tensor


def _moving_averages(checkpoint: Any, preset: str, path: Path) -> dict[str, Tensor]:
    """The weights to use under the authors' keys, checked: moving averages where there are any."""
    averages: Any = None
    state: Any = checkpoint
    if isinstance(checkpoint, dict) and "model" in checkpoint and "ema" in checkpoint:
        state = checkpoint["model"]
        averages = checkpoint["ema"].get("shadow_params") if isinstance(checkpoint["ema"], dict) else None
        if not isinstance(averages, list) or not all(isinstance(value, Tensor) for value in averages):
            raise ArgumentError("weights", f"{path} holds no list of tensors under ema, shadow_params")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ArgumentError(
            "weights", f"expected a score_sde checkpoint (model, ema) or a state dict of its model in {path}"
        )
    tensors = {name.removeprefix("module."): value for name, value in state.items()}
    tensors.pop("sigmas", None)  # a buffer that only their discrete VE models read
    expected = key_shapes(PRESETS[preset].architecture)
    others = ((name, key_shapes(other.architecture)) for name, other in PRESETS.items())
    check_keys(tensors, expected, source=str(path), preset=preset, others=others)
    if averages is None:
        return tensors
    # Fourier frequencies are fixed and have no average.
    trained = [name for name in expected if name != "all_modules.0.W"]
    if len(averages) != len(trained):
        raise ArgumentError(
            "weights", f"expected {len(trained)} tensors in ema, shadow_params of {path}, got {len(averages)}"
        )
    tensors.update(zip(trained, averages, strict=True))
    check_keys(tensors, expected, source=f"{path} (ema, shadow_params)", preset=preset)
    return tensors
