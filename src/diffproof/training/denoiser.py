"""Training a class-conditional denoiser (Ho et al. 2020, algorithm 1; Ho & Salimans 2022, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.checks import check_at_least, check_member, check_positive
from diffproof.classifiers.base import Classifier
from diffproof.data.images import ImageData
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.denoisers.saved import build_denoiser
from diffproof.denoisers.schedules import named_schedule
from diffproof.denoisers.unet import MOST_LAYERS, UNet2D
from diffproof.errors import ArgumentError
from diffproof.memory import trainable
from diffproof.training.batches import Batch, Mixture, measured_together
from diffproof.training.denoised_smoothing import DenoiserObjective, classified_loss
from diffproof.training.loop import Progress, TrainSettings, fit
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
) -> dict[str, Any]:
    """What a weights file says of the network it holds, enough to build it again.

    Args:
        data: what it is to be trained on.
        unet: its size.
        schedule: name of its noise schedule.
        timesteps: of that.
        single_sigma: in place of both the one noise level of [0, 1] pixels that it is for, without labels;
            None for a schedule.

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
        "prediction": "epsilon",
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
    objective: DenoiserObjective | str = DenoiserObjective.MSE,
    classifier: Classifier | None = None,
    progress: Progress | None = None,
) -> NetworkDenoiser:
    """Train the denoiser that `description` describes, predicting ε at uniformly drawn timesteps.

    The second data set of a mixture has class embeddings or heads of its own, which are dropped in the end:
    it teaches the network, but does not mark what is denoised with the labels of the first. Without labels,
    for which there is no second data set, the denoiser is unconditional.

    Args:
        data: training images.
        description: from `describe_denoiser`.
        settings: see TrainSettings.
        label_dropout: probability with which a label is replaced by the null label.
        objective: what is minimised; other than MSE of a denoiser of one noise level.
        classifier: what STAB, CLF and ATOP train it for, and only they.
        progress: see Progress.

    Raises:
        ValueError: bad settings, an objective without its classifier or the other way round, data that cannot
            be read, or a loss that is not finite.
    """
    if not 0.0 <= label_dropout <= 1.0:
        raise ArgumentError("label_dropout", f"expected a number in [0, 1], got {label_dropout}")
    per_label = "out_channels" if description.get("multi_head") else "num_class_embeds"
    labels = description["network"][per_label]
    network = description["network"] | {per_label: labels and labels * len(data.sources)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        denoiser = build_denoiser(description)
        trained = build_denoiser(description | {"network": network}) if len(data.sources) > 1 else denoiser

    objective = check_member("objective", objective, DenoiserObjective)
    identity: dict[str, Any] = {"description": description, "label_dropout": label_dropout}
    if objective is not DenoiserObjective.MSE:
        if classifier is None or description["schedule"]["name"] != "single":
            raise ArgumentError("objective", f"{objective} needs a classifier, and one noise level")
        loss_of_batch = classified_loss(denoiser, classifier, objective)
        identity["objective"] = str(objective)
        identity["classifier"] = hash_tensors(classifier.state_dict(), classifier.describe())
    elif classifier is not None:
        raise ArgumentError("classifier", "is for the objectives stab, clf and atop")
    else:

        def loss_of_batch(network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
            return epsilon_loss(denoiser, network, batch, label_dropout, generator)

    state = fit(trained.network, data, loss_of_batch, settings, progress, identity=identity).state_dict()
    # The labels of the first source lie first in whatever is longer than it has to be.
    own = denoiser.network.state_dict()
    denoiser.network.load_state_dict({name: state[name][: len(own[name])] for name in own})
    return denoiser.eval()


def epsilon_loss(
    denoiser: NetworkDenoiser,
    network: nn.Module,
    batch: Batch,
    label_dropout: float,
    generator: torch.Generator,
) -> Tensor:
    """Mean of ‖ε_θ(x_t, t, y) − ε‖² over pixels and batch, t uniform on the grid (Ho et al. 2020, eq. 14).

    Images of source s have the labels y + s·(number of classes + 1).
    """
    schedule = denoiser.schedule
    assert schedule.sigmas is not None
    images, shape = batch.images, batch.images.shape
    timestep = batch.mine(torch.randint(len(schedule.sigmas), (batch.size,), generator=generator))
    dropped = batch.mine(torch.rand(batch.size, generator=generator) < label_dropout)
    epsilon = batch.mine(torch.randn((batch.size, *shape[1:]), generator=generator))
    sigma = schedule.sigmas.to(images.device)[timestep]
    scale = schedule.input_scale(sigma).to(images.dtype).reshape(-1, 1, 1, 1)
    low, high = denoiser.data_range
    noisy = images * (high - low) + low + sigma.to(images.dtype).reshape(-1, 1, 1, 1) * epsilon
    given = None
    if denoiser.num_classes is not None and denoiser.null_label is not None:
        given = torch.where(dropped, torch.full_like(batch.labels, denoiser.null_label), batch.labels)
        given = given + batch.sources * (denoiser.num_classes + 1)
    predicted: Tensor = network(noisy * scale, timestep, given)
    return torch.nn.functional.mse_loss(predicted.float(), epsilon)


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
