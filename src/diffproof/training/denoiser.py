"""Training a class-conditional denoiser (Ho et al. 2020, algorithm 1; Ho & Salimans 2022, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffproof.catalog import PRECONDITIONINGS
from diffproof.checks import check_at_least, check_positive, unknown_name
from diffproof.classifiers.base import Classifier
from diffproof.data.images import ImageData
from diffproof.denoisers.edm import DATA_STD
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.denoisers.saved import build_denoiser
from diffproof.denoisers.schedules import named_schedule
from diffproof.denoisers.unet import MOST_LAYERS, UNet2D
from diffproof.errors import ArgumentError
from diffproof.memory import trainable
from diffproof.training.batches import Mixture, measured_together
from diffproof.training.denoising.base import denoiser_objective
from diffproof.training.loop import Progress, TrainSettings, fit
from diffproof.training.objectives.base import Objective
from diffproof.weights import hash_tensors
from diffproof.wording import counted


@dataclass(frozen=True)
class UNetSettings:
    """Size of a U-Net.

    Attributes:
        channels: channels at each resolution, halving it from one to the next; multiples of 8.
        layers: residual blocks at each resolution.
        dropout: dropout inside the residual blocks.
        patch: the network sees squares of patch × patch pixels as channels, at 1/patch of the resolution.
        attention: self-attention at the lowest resolution.
        multi_head: one pass gives the ε of every class (see MultiHead), in place of class embeddings.
    """

    channels: Sequence[int] = (16, 32, 48)
    layers: int = 1
    dropout: float = 0.0
    patch: int = 1
    attention: bool = False
    multi_head: bool = False


def describe_denoiser(
    data: ImageData,
    unet: UNetSettings,
    schedule: str,
    timesteps: int,
    single_sigma: float | None = None,
    preconditioning: str = "none",
) -> dict[str, Any]:
    """What a weights file says of the network it holds, enough to build it again.

    Args:
        data: what it is to be trained on.
        unet: its size.
        schedule: name of its noise schedule.
        timesteps: of that.
        single_sigma: in place of both the one noise level of [0, 1] pixels that it is for, without labels;
            None for a schedule.
        preconditioning: "none", and the network predicts ε; or "edm", and it predicts what EDM's does (Karras
            et al. 2022, table 1), which is v of data in units of its standard deviation, ½ of [−1, 1] pixels.

    Raises:
        ValueError: a setting out of range, or images that cannot be halved as often as the U-Net has
            resolutions.
    """
    channels, height, width = data.image_shape
    check_at_least("patch", unet.patch, 1)
    factor = unet.patch * 2 ** (len(unet.channels) - 1)
    if height != width or height % factor:
        raise ArgumentError(
            "patch" if height % unet.patch else "channels",
            f"{counted(len(unet.channels), 'resolution')} and patch {unet.patch} need images of k·{factor}"
            f" square pixels, got {height}×{width}",
        )
    if any(width_ % 8 or not 8 <= width_ <= _MOST_CHANNELS for width_ in unet.channels):
        raise ArgumentError(
            "channels", f"expected multiples of 8 up to {_MOST_CHANNELS:,}, got {list(unet.channels)}"
        )
    check_at_least("layers", unet.layers, 1, MOST_LAYERS)
    if not 0.0 <= unet.dropout < 1.0:
        raise ArgumentError("dropout", f"expected a number in [0, 1), got {unet.dropout}")
    levels = _levels(schedule, timesteps, single_sigma)
    labelled = data.labelled and single_sigma is None
    if unet.multi_head and not data.labelled:
        raise ArgumentError("multi_head", f"needs classes, but {data.name} has none")
    num_classes = len(data.class_names)
    network: dict[str, Any] = {
        "sample_size": height // unet.patch,
        "in_channels": channels * unet.patch**2,
        "out_channels": channels * unet.patch**2 * (num_classes + 1 if unet.multi_head else 1),
        "block_out_channels": list(unet.channels),
        "down_block_types": ["DownBlock2D"] * len(unet.channels),
        "up_block_types": ["UpBlock2D"] * len(unet.channels),
        "layers_per_block": unet.layers,
        "dropout": unet.dropout,
        "norm_num_groups": 8,
        "add_attention": unet.attention,
        "num_class_embeds": None if unet.multi_head or not labelled else num_classes + 1,
    }
    description: dict[str, Any] = {
        "kind": "denoiser",
        "network": network,
        "schedule": levels,
        **_prediction(preconditioning, single_sigma),
        "null_label": num_classes if labelled else None,
    }
    if unet.attention:
        network["attention_head_dim"] = math.gcd(unet.channels[-1], 64)
    with trainable("channels, layers"):
        UNet2D(**network)
    if unet.patch > 1:
        description["patch"] = unet.patch
    if labelled and data.classes_named:
        description["class_names"] = list(data.class_names)
    if unet.multi_head:
        description["multi_head"] = True
    return description


def _prediction(preconditioning: str, single_sigma: float | None) -> dict[str, Any]:
    """What the network predicts, and of which pixels."""
    if preconditioning not in PRECONDITIONINGS:
        raise unknown_name("preconditioning", preconditioning, PRECONDITIONINGS)
    if preconditioning == "none":
        return {"prediction": "epsilon"}
    if single_sigma is not None:
        raise ArgumentError("preconditioning", "edm is for a schedule, not for a single noise level")
    return {"prediction": "v_prediction", "data_range": [-1 / DATA_STD, 1 / DATA_STD]}


def _levels(schedule: str, timesteps: int, single_sigma: float | None) -> dict[str, Any]:
    """The noise levels as `named_schedule` takes them."""
    levels: dict[str, Any] = {"name": schedule, "timesteps": timesteps}
    if single_sigma is not None:
        # The network sees pixels in [−1, 1].
        levels = {"name": "single", "sigma": 2 * check_positive("single_sigma", single_sigma)}
    named_schedule(**levels)
    return levels


# Wider layers than any published network has, of gigabytes each.
_MOST_CHANNELS = 8192


def train_denoiser(
    data: Mixture,
    description: dict[str, Any],
    settings: TrainSettings,
    *,
    label_dropout: float = 0.1,
    objective: Objective | str = "mse",
    classifier: Classifier | None = None,
    start: NetworkDenoiser | None = None,
    progress: Progress | None = None,
) -> NetworkDenoiser:
    """Train the denoiser that `description` describes.

    The second data set of a mixture has class embeddings or heads of its own, which are dropped in the end:
    it teaches the network, but does not mark what is denoised with the labels of the first. Without labels,
    for which there is no second data set, the denoiser is unconditional.

    Args:
        data: training images.
        description: from `describe_denoiser`; with `start`, what describes that one.
        settings: see TrainSettings.
        label_dropout: probability with which a label is replaced by the null label.
        objective: what is minimised, one of those of denoisers, or its text.
        classifier: what it is trained for, with the objectives that are for one, and only with them.
        start: a denoiser to train further, which is left as it is; None for a new one of the description.
        progress: see Progress.

    Raises:
        ValueError: bad settings, an objective without its classifier or the other way round or for another
            kind of denoiser, data that cannot be read, or a loss that is not finite.
    """
    if not 0.0 <= label_dropout <= 1.0:
        raise ArgumentError("label_dropout", f"expected a number in [0, 1], got {label_dropout}")
    chosen = denoiser_objective(objective)
    chosen.check_classifier(classifier is not None)
    if "checkpoint" in description and not chosen.published:
        raise ArgumentError(
            "objective", f"{chosen.name!r} is for denoisers of `diffproof train`; a published one takes adbm"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        denoiser = build_denoiser(description)
        several = _for_sources(description, len(data.sources))
        trained = denoiser if several is None else build_denoiser(several)
    if settings.precision == "bfloat16":
        # Convolutions in bfloat16 are faster in this layout.
        trained.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    identity: dict[str, Any] = {"description": description, "label_dropout": label_dropout}
    identity["objective"] = chosen.describe()
    if classifier is not None:
        identity["classifier"] = hash_tensors(classifier.state_dict(), classifier.describe())
    # The labels of the first source lie first in whatever is longer than it has to be.
    if start is not None:
        identity["start"] = hash_tensors(start.state_dict(), start.describe())
        state = trained.network.state_dict()
        for name, tensor in start.network.state_dict().items():
            state[name][: len(tensor)] = tensor
    loss_of_batch = chosen.loss_of_batches(denoiser, classifier, label_dropout)
    state = fit(trained.network, data, loss_of_batch, settings, progress, identity=identity).state_dict()
    own = denoiser.network.state_dict()
    denoiser.network.load_state_dict({name: state[name][: len(own[name])] for name in own})
    return denoiser.eval()


def _for_sources(description: dict[str, Any], sources: int) -> dict[str, Any] | None:
    """What describes the network with labels of each data set of its own; None for a single one.

    Raises:
        ValueError: it is a published one, whose labels are fixed.
    """
    if sources == 1:
        return None
    if "checkpoint" in description:
        raise ArgumentError("extra_data", "is for denoisers of `diffproof train`, not for a published one")
    per_label = "out_channels" if description.get("multi_head") else "num_class_embeds"
    labels = description["network"][per_label]
    network = description["network"] | {per_label: labels and labels * sources}
    return description | {"network": network}


def denoising_errors(
    denoiser: NetworkDenoiser, data: ImageData, sigmas: Sequence[float], seed: int
) -> list[float]:
    """Root-mean-square pixel error of the unconditional denoiser on held-out images, at each sigma."""
    generator = torch.Generator().manual_seed(seed)
    device = next(denoiser.parameters()).device
    squares, values = [0.0] * len(sigmas), 0
    with torch.no_grad():
        for chosen in measured_together(data):
            images = data.batch(chosen)
            noise = torch.randn(images.shape, generator=generator).to(device)
            images = images.to(device)
            for i, sigma in enumerate(sigmas):
                squares[i] += float((denoiser(images + sigma * noise, sigma) - images).double().pow(2).sum())
            values += images.numel()
    return [math.sqrt(square / values) for square in squares]
