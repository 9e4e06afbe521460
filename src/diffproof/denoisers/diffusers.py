"""diffusers.UNet2DModel as a denoiser, with the β table and prediction type of its scheduler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from diffproof.checks import check_at_least
from diffproof.denoisers.multi_head import MultiHead
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.denoisers.pipeline_configs import check_parts, check_unet, read_training
from diffproof.denoisers.schedules import Schedule
from diffproof.errors import ArgumentError
from diffproof.formats import check_fetched
from diffproof.hub import snapshot
from diffproof.optional import one_line
from diffproof.weights import no_larger_than, stored_bytes


class UNet(nn.Module):
    """Calls a diffusers.UNet2DModel as network(x, timestep, label) → tensor.

    Args:
        unet: the model.
        patch: it sees squares of patch × patch pixels as channels.
    """

    def __init__(self, unet: nn.Module, patch: int = 1) -> None:
        super().__init__()
        self.unet = unet
        self.patch = patch

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        """The model's output, N×C×H×W or N×2C×H×W."""
        labels = {} if label is None else {"class_labels": label}
        x = functional.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        output: Tensor = self.unet(x, timestep, return_dict=False, **labels)[0]
        return functional.pixel_shuffle(output, self.patch) if self.patch > 1 else output


def from_unet(
    unet: nn.Module,
    schedule: Schedule,
    *,
    prediction: str = "epsilon",
    data_range: tuple[float, float] = (-1.0, 1.0),
    num_classes: int | None = None,
    null_label: int | None = None,
    patch: int = 1,
    multi_head: bool = False,
) -> NetworkDenoiser:
    """A diffusers.UNet2DModel as a denoiser.

    Args:
        unet: the model; twice as many output as input channels means a learned variance.
        schedule: its noise schedule.
        prediction: "epsilon", "sample" or "v_prediction".
        data_range: (low, high), the pixel range of its training data.
        num_classes: labels it takes; None reads it off the model (its embeddings or heads, less the null
            label).
        null_label: the label trained as "unconditional".
        patch: the model's channels are squares of patch × patch pixels (torch's pixel_unshuffle).
        multi_head: the model has no class embedding but as many output as input channels for each label (see
            MultiHead).

    Raises:
        ValueError: the labels do not fit the model's class embedding or heads, or patch is no integer ≥ 1.
    """
    check_at_least("patch", patch, 1)
    config: Any = unet.config
    labels: int | None = config.num_class_embeds
    if multi_head:
        if labels is not None or config.out_channels % config.in_channels:
            raise ArgumentError(
                "multi_head",
                "expected a U-Net without class embedding and with a multiple of"
                f" {config.in_channels} output channels, got {labels} embeddings and {config.out_channels}",
            )
        labels = int(config.out_channels) // int(config.in_channels)
    if labels is None and (num_classes is not None or null_label is not None):
        raise ArgumentError("num_classes", "this U-Net has no class embedding, expected None")
    if labels is not None:
        kind = "heads" if multi_head else "embeddings"
        if null_label is not None and not 0 <= null_label < labels:
            raise ArgumentError("null_label", f"expected 0 ≤ null_label < {labels}, got {null_label}")
        num_classes = labels - (null_label is not None) if num_classes is None else num_classes
        if not 1 <= num_classes <= labels:
            raise ArgumentError("num_classes", f"expected 1 to {labels} (the {kind}), got {num_classes}")
    size: int | list[int] | tuple[int, int] | None = config.sample_size
    shape = None
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        shape = (int(config.in_channels) // patch**2, int(height) * patch, int(width) * patch)
    network: nn.Module = UNet(unet, patch)
    if multi_head:
        assert labels is not None
        network = MultiHead(network, labels)
    return NetworkDenoiser(
        network,
        schedule,
        prediction=prediction,
        data_range=data_range,
        image_shape=shape,
        num_classes=num_classes,
        null_label=null_label,
    )


_FILES = ("*.json", "*.safetensors")
_WEIGHTS = "diffusion_pytorch_model"


def load(source: str) -> NetworkDenoiser:
    """A pipeline with a UNet2DModel as diffusers saves it, from a folder or from the Hub (or its cache).

    All that its configurations say of training is honoured, by the scheduler's own class, or refused by name.
    Weights must be safetensors; where there is only a copy in float16 or bfloat16, that is taken.

    Args:
        source: a folder, or a Hub id ("owner/name").

    Raises:
        ValueError: not found, no such pipeline, a latent one, a scheduler that is no chain of β, a setting
            that is unknown or not supported, or weights that do not fit.
    """
    if not source:
        raise ArgumentError(
            "denoiser", f"expected diffusers:FOLDER or diffusers:HUB_ID, got 'diffusers:{source}'"
        )
    if Path(source).is_dir():
        return _load_folder(Path(source))
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ArgumentError("denoiser", f"expected a folder or a Hub id (owner/name), got {source!r}")
    return _load_folder(snapshot(source, _FILES))


def _part(folder: Path, subfolder: str, config: str) -> Path:
    """Where a part of the pipeline lies: in its subfolder, or beside everything else."""
    for place in (folder / subfolder, folder):
        if (place / config).is_file():
            return place
    raise ArgumentError(
        "denoiser", f"{folder} is no diffusers pipeline of a UNet2DModel: {subfolder}/{config} is missing"
    )


def _load_folder(folder: Path) -> NetworkDenoiser:
    unet_folder = _part(folder, "unet", "config.json")
    scheduler_folder = _part(folder, "scheduler", "scheduler_config.json")
    kind = check_parts(folder)
    config = check_unet(unet_folder / "config.json")
    schedule, prediction, variance = read_training(scheduler_folder / "scheduler_config.json", kind)
    embedded = config.get("num_train_timesteps")
    if config.get("time_embedding_type") == "learned" and (embedded or 0) < len(schedule.sigmas):
        raise ArgumentError(
            "denoiser",
            f"the U-Net in {folder} embeds {embedded} timesteps, its scheduler has {len(schedule.sigmas)}",
        )
    unet: Any = _load_unet(unet_folder)
    inputs, outputs = unet.config.in_channels, unet.config.out_channels
    if outputs not in (inputs, 2 * inputs):
        raise ArgumentError(
            "denoiser",
            f"expected {inputs} or {2 * inputs} output channels of the U-Net in {folder}, got {outputs}",
        )
    if outputs == 2 * inputs and variance != "learned_range":
        raise ArgumentError(
            "denoiser", f"learned variance in {folder}: expected learned_range, got {variance}"
        )
    denoiser = from_unet(unet, schedule, prediction=prediction).eval()
    stated = {key: value for key, value in config.items() if not key.startswith("_")}
    denoiser.structure = json.dumps(stated, sort_keys=True, default=str)
    return denoiser


def _load_unet(folder: Path) -> nn.Module:
    """The network with the weights of its folder, in float32."""
    from diffusers import UNet2DModel

    whole = (folder / f"{_WEIGHTS}.safetensors").is_file() or any(
        folder.glob(f"{_WEIGHTS}.safetensors.index.json")
    )
    # Where only a copy in half precision was downloaded, that is the model.
    halves = [name for name in ("fp16", "bf16") if any(folder.glob(f"{_WEIGHTS}.{name}*.safetensors"))]
    if not whole and not halves:
        problem = f"no {_WEIGHTS}.safetensors in {folder}"
        for pickled in folder.glob(f"{_WEIGHTS}.bin"):
            target = folder / f"{_WEIGHTS}.safetensors"
            problem += f"; convert the pickle that is there: diffproof convert {pickled} {target}"
        raise ArgumentError("denoiser", problem)
    try:
        with no_larger_than(stored_bytes(folder)):
            unet, loading = UNet2DModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
                variant=None if whole else halves[0],
            )
    except MemoryError:
        raise
    except Exception as error:  # a damaged or foreign file ends in almost any exception
        check_fetched("denoiser", folder)
        raise ArgumentError("denoiser", f"cannot load {folder}: {one_line(error)}") from None
    # diffusers fills missing weights with random ones and only logs it.
    for problem in ("missing_keys", "unexpected_keys"):
        if loading[problem]:
            keys = f"{problem.replace('_', ' ')} {', '.join(sorted(loading[problem])[:3])}"
            raise ArgumentError("denoiser", f"the weights in {folder} do not fit: {keys}")
    return unet.float()  # type: ignore[no-any-return]
