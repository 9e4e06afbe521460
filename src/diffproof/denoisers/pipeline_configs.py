"""What the configuration files of a diffusers pipeline say: honoured exactly, or refused by name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffproof.denoisers.network import Prediction
from diffproof.denoisers.schedules import DiscreteSchedule
from diffproof.errors import ArgumentError
from diffproof.files import read_text
from diffproof.optional import one_line

# Schedulers of a variance-preserving chain that is indexed by the network's own timesteps.
_SCHEDULERS = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
)
# Their settings that say what a network was trained for; all others of theirs only guide sampling.
_TRAINED = ("trained_betas", "rescale_betas_zero_snr", "use_flow_sigmas", "prediction_type")
# Those that its noise levels are computed from.
_LEVELS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
# What old versions of diffusers and moving averages of weights leave behind, to no effect.
_OLD = ("predict_epsilon", "tensor_format", "timestep_values", "timesteps")
_AVERAGES = ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step")
_IDLE = (*_OLD, *_AVERAGES, "use_ema_warmup")
# Longer chains than any that is trained take gigabytes.
_MOST_STEPS = 2**16
# Parts that make a pipeline work on latents, by the names that diffusers gives them.
_LATENT = ("vae", "vqvae", "movq", "vqgan")


class Training(NamedTuple):
    """What a pipeline's network was trained for.

    Attributes:
        schedule: its noise levels.
        prediction: what it outputs.
        variance: diffusers' name for the rest of its output channels, None where the scheduler knows none.
    """

    schedule: DiscreteSchedule
    prediction: str
    variance: str | None


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file's settings.

    Raises:
        ValueError: it cannot be read, or holds no table.
    """
    try:
        config = json.loads(read_text("denoiser", path))
    except (OSError, ValueError, RecursionError) as error:
        raise ArgumentError("denoiser", f"cannot read {path}: {one_line(error)}") from None
    if not isinstance(config, dict):
        raise ArgumentError(
            "denoiser", f"expected a table of settings in {path}, got {type(config).__name__}"
        )
    return config


def check_parts(folder: Path) -> str | None:
    """Raise ValueError unless a pipeline is a U-Net on pixels and a scheduler, and nothing besides.

    Returns:
        The class of its scheduler by model_index.json, None where that does not say.
    """
    parts = {name: "its folder" for name in _LATENT if (folder / name / "config.json").is_file()}
    index = folder / "model_index.json"
    if index.is_file():
        # A part that is left out is [null, null]; what is no list is a setting.
        named = {name: one for name, one in read_config(index).items() if not name.startswith("_")}
        parts |= {name: str(one[-1]) for name, one in named.items() if isinstance(one, list) and any(one)}
        if parts.get("unet") != "UNet2DModel":
            got = ", ".join(f"{name} ({kind})" for name, kind in parts.items()) or "nothing"
            raise ArgumentError("denoiser", f"expected a pipeline with unet (UNet2DModel), {index} has {got}")
    for name, kind in parts.items():
        if name in _LATENT:
            problem = (
                f"{folder} is a latent pipeline: its U-Net works on what {name} ({kind}) makes of pixels"
            )
            raise ArgumentError(
                "denoiser", f"{problem}; expected one whose U-Net works on the pixels themselves"
            )
        if name not in ("unet", "scheduler"):
            raise ArgumentError(
                "denoiser", f"expected a pipeline of unet and scheduler alone, {index} has {name} ({kind})"
            )
    return parts.get("scheduler")


def check_unet(path: Path) -> dict[str, Any]:
    """The configuration of a UNet2DModel that can be a denoiser of pixels.

    Raises:
        ValueError: it is of another class, or a setting is unknown or not supported.
    """
    from diffusers import UNet2DModel

    config = read_config(path)
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        text = ", which needs a text or image to go by" if "Condition" in str(kind) else ""
        raise ArgumentError("denoiser", f"expected a UNet2DModel, {path} describes a {kind}{text}")
    _check_known(path, config, inspect.signature(UNet2DModel.__init__).parameters)
    if config.get("time_embedding_type", "positional") not in ("positional", "learned"):
        raise _unsupported(path, config, "time_embedding_type", "positional or learned")
    if config.get("class_embed_type") is not None:
        raise _unsupported(path, config, "class_embed_type", "null (labels with an embedding each)")
    size = config.get("sample_size")
    sizes = size if isinstance(size, list) else [size, size]
    if size is not None and not (len(sizes) == 2 and all(type(one) is int and one > 0 for one in sizes)):
        raise _unsupported(path, config, "sample_size", "null, a number of pixels or [height, width]")
    return config


def read_training(path: Path, kind: str | None) -> Training:
    """What a scheduler's configuration says of training, by the scheduler's own class.

    What a sampler does with the estimates (clipping, thresholding, the spacing of its steps) is left to it.

    Args:
        path: scheduler_config.json.
        kind: the class by model_index.json, where there is one.

    Raises:
        ValueError: a scheduler that is no chain of β, or a setting that is unknown or that it cannot have.
    """
    import diffusers

    config = read_config(path)
    for name in (kind, config.get("_class_name")):
        if name is not None and name not in _SCHEDULERS:
            raise ArgumentError(
                "denoiser", f"the scheduler in {path} is {name}, expected {', '.join(_SCHEDULERS)}"
            )
    kind = kind or config.get("_class_name")
    if kind is None:
        raise ArgumentError("denoiser", f"{path} does not say which scheduler it is of: no _class_name")
    _check_known(path, config, {key for name in _SCHEDULERS for key in _settings(getattr(diffusers, name))})
    own = _settings(getattr(diffusers, kind))
    for name in _TRAINED:
        if config.get(name) and name not in own:
            raise ArgumentError("denoiser", f"{path} sets {name}, which {kind} does not have")
    for name in ("rescale_betas_zero_snr", "use_flow_sigmas"):
        if config.get(name) not in (None, True, False):
            raise _unsupported(path, config, name, "true or false")
    if config.get("use_flow_sigmas"):
        raise _unsupported(path, config, "use_flow_sigmas", "false: a chain of β, no flow")
    prediction = _prediction(path, config)
    steps = config.get("num_train_timesteps", 1)
    if type(steps) is not int or not 1 <= steps <= _MOST_STEPS:
        raise _unsupported(path, config, "num_train_timesteps", f"an integer from 1 to {_MOST_STEPS}")
    try:
        scheduler = getattr(diffusers, kind)(**{name: config[name] for name in own if name in config})
        bar = scheduler.alphas_cumprod
    except MemoryError:
        raise
    except Exception as error:  # whatever the library raises at a value that it does not take
        raise ArgumentError("denoiser", f"{kind} refuses {path}: {one_line(error)}") from None
    if len(bar) != scheduler.config.num_train_timesteps:
        raise _unsupported(
            path, config, "num_train_timesteps", f"{len(bar)}, the number of its trained_betas"
        )
    if config.get("rescale_betas_zero_snr") and float(bar[-1]) == 0:
        # The last timestep sees noise alone, which is no image at any finite sigma.
        bar = bar[:-1]
    try:
        made = {name: scheduler.config[name] for name in _LEVELS if name in scheduler.config}
        schedule = DiscreteSchedule(bar, origin=f"{kind} {made}")
    except ArgumentError as error:
        raise ArgumentError("denoiser", f"the noise levels (ᾱ) by {path}: {error.problem}") from None
    return Training(schedule, prediction, scheduler.config.get("variance_type"))


def _prediction(path: Path, config: Mapping[str, Any]) -> str:
    """What the network outputs, which old versions of diffusers called predict_epsilon."""
    old = config.get("predict_epsilon")
    by_old = "epsilon" if old in (None, True) else "sample"
    prediction = config.get("prediction_type", by_old)
    if old not in (None, True, False) or (old is not None and (prediction == "epsilon") is not old):
        raise _unsupported(path, config, "predict_epsilon", f"what fits prediction_type {prediction!r}")
    if prediction not in list(Prediction):
        raise _unsupported(path, config, "prediction_type", ", ".join(Prediction))
    return str(prediction)


def _settings(scheduler: Any) -> list[str]:
    return [name for name in inspect.signature(scheduler.__init__).parameters if name != "self"]


def _check_known(path: Path, config: Mapping[str, Any], known: Collection[str]) -> None:
    for name, value in config.items():
        if (
            not name.startswith("_")
            and name not in known
            and name not in _IDLE
            and value not in (None, False)
        ):
            raise ArgumentError(
                "denoiser",
                f"{path} sets {name}, which diffusers would ignore; if it changes nothing, take it out there",
            )


def _unsupported(path: Path, config: Mapping[str, Any], name: str, expected: str) -> ArgumentError:
    return ArgumentError("denoiser", f"{name} in {path}: expected {expected}, got {config.get(name)!r}")
