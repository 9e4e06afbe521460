"""Classifiers of timm (pytorch-image-models)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn

from diffproof.classifiers.base import Classifier
from diffproof.classifiers.preprocessing import Resize, as_interpolation
from diffproof.errors import ArgumentError
from diffproof.optional import import_optional, one_line
from diffproof.weights import load_into, load_weights, only_data


def load(name: str, weights: str | None) -> Classifier:
    """A timm model with the preprocessing of its own configuration. Its weights load as data only.

    Args:
        name: a name as timm.create_model takes it, perhaps with a tag: "resnet18.a1_in1k", or
            "hf-hub:owner/model".
        weights: a state dict to load in place of timm's own, of any number of classes; None takes timm's.

    Raises:
        ValueError: timm is missing, the name unknown, the weights not to be had, not fitting or a pickle
            with code in it, or a preprocessing that torch cannot do.
    """
    timm = import_optional("timm", "timm")
    try:
        with only_data():
            network: nn.Module = timm.create_model(name, pretrained=weights is None)
    except MemoryError:
        raise
    except Exception as error:  # an unknown name, a failed download, …
        raise ArgumentError("timm", f"cannot load {name!r}: {one_line(error)}") from None
    if weights is not None:
        tensors, _ = load_weights(Path(weights))
        head = getattr(network, "pretrained_cfg", {}).get("classifier")
        bias = tensors.get(f"{head}.bias") if isinstance(head, str) else None
        if bias is not None and len(bias) != network.num_classes:
            network = timm.create_model(name, pretrained=False, num_classes=len(bias))
        load_into(network, tensors, weights)
    config = timm.data.resolve_model_data_config(network)
    return Classifier(
        network,
        int(network.num_classes),  # type: ignore[arg-type]
        mean=config["mean"],
        std=config["std"],
        resize=resize_of(config),
    )


def resize_of(config: dict[str, Any]) -> Resize:
    """The resizing of a timm data configuration: the edge over crop_pct, then the centre.

    Raises:
        ValueError: a crop_mode other than center and squash, or center with a target that is not square.
    """
    _, height, width = config["input_size"]
    scaled = (math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"]))
    mode = config["crop_mode"]
    if mode not in ("center", "squash") or (mode == "center" and scaled[0] != scaled[1]):
        raise ArgumentError(
            "timm", f"expected crop_mode center (square) or squash, got {mode} at {height}×{width}"
        )
    return Resize(
        scaled if mode == "squash" else scaled[0],
        crop=(height, width),
        round_crop=True,
        interpolation=as_interpolation(config["interpolation"]),
    )
