"""Classifiers of torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from diffproof.checks import unknown_name
from diffproof.classifiers.base import Classifier
from diffproof.classifiers.preprocessing import Resize, as_interpolation
from diffproof.errors import ArgumentError
from diffproof.optional import import_optional, one_line
from diffproof.weights import CodeInPickleError, load_into, load_weights, only_data


def load(name: str, weights: str | None) -> Classifier:
    """A torchvision model with the preprocessing of its published weights, which load as data only.

    Args:
        name: a name as torchvision.models.get_model takes it ("resnet50").
        weights: one of its published weights ("IMAGENET1K_V2"); or a state dict, of any number of classes,
            whose images are prepared as those of the default weights; None takes the default weights.

    Raises:
        ValueError: torchvision is missing, a name unknown, the weights not to be had, not fitting or a
            pickle with code in it, or the model is no image classifier.
    """
    models = import_optional("torchvision.models", "torchvision")
    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision model", name, known)
    published = models.get_model_weights(name)
    is_file = weights is not None and weights not in published.__members__
    if is_file and not Path(str(weights)).is_file():
        raise unknown_name(f"{name} weights (nor is there a file)", str(weights), published.__members__)
    chosen = published["DEFAULT" if weights is None or is_file else weights]
    try:
        with only_data():
            network: nn.Module = models.get_model(name, weights=None if is_file else chosen)
        names: list[str] | None = chosen.meta["categories"]
        num_classes = len(chosen.meta["categories"])
        if is_file:
            tensors, _ = load_weights(Path(str(weights)))
            # The last tensor of these networks is the classifier's bias.
            head = tensors.get(list(network.state_dict())[-1])
            names = None
            if head is not None and len(head) != num_classes:
                num_classes = len(head)
                network = models.get_model(name, weights=None, num_classes=num_classes)
            load_into(network, tensors, str(weights))
    except CodeInPickleError as error:
        raise ArgumentError("torchvision", f"cannot load {name!r}: {error}") from None
    except (ArgumentError, MemoryError):
        raise
    except Exception as error:  # a failed download, a broken cache, …
        raise ArgumentError("torchvision", f"cannot load {name!r}: {one_line(error)}") from None
    transform = chosen.transforms()
    return Classifier(
        network,
        num_classes,
        mean=transform.mean,
        std=transform.std,
        resize=resize_of(transform),
        class_names=names,
    )


def resize_of(transform: Any) -> Resize:
    """The resizing of a torchvision ImageClassification transform."""
    (size,), (crop,) = transform.resize_size, transform.crop_size
    interpolation = as_interpolation(transform.interpolation.value)
    return Resize(size, crop=(crop, crop), round_crop=True, interpolation=interpolation)
