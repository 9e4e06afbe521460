"""Training an ordinary classifier: cross-entropy on clean images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffproof.checks import check_at_least
from diffproof.classifiers.protocol import Classifier
from diffproof.classifiers.saved import build_classifier
from diffproof.data import ImageData
from diffproof.training.loop import OnStep, TrainSettings, fit


def describe_classifier(data: ImageData, width: int) -> dict[str, Any]:
    """What a weights file says of the network it holds; normalisation from the training images."""
    check_at_least("width", width, 1)
    return {
        "kind": "classifier",
        "image_shape": list(data.image_shape),
        "num_classes": len(data.class_names),
        "width": width,
        "mean": [round(value, 6) for value in data.images.mean((0, 2, 3)).tolist()],
        "std": [round(value, 6) for value in data.images.std((0, 2, 3)).tolist()],
    }


def train_classifier(
    data: ImageData,
    description: dict[str, Any],
    settings: TrainSettings,
    on_step: OnStep = lambda step, loss: None,
) -> Classifier:
    """Train the classifier that `description` describes.

    Raises:
        ValueError: bad settings, or a loss that is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        classifier = build_classifier(description)

    def loss_of_batch(network: nn.Module, images: Tensor, labels: Tensor, _: torch.Generator) -> Tensor:
        normalised = (images - classifier.mean) / classifier.std
        return torch.nn.functional.cross_entropy(network(normalised), labels)

    classifier.network = fit(classifier.network, data.images, data.labels, loss_of_batch, settings, on_step)
    return classifier.eval()


def accuracy(classifier: nn.Module, data: ImageData) -> float:
    """Share of clean images classified correctly."""
    with torch.no_grad():
        return float((classifier(data.images).argmax(1) == data.labels).float().mean())
