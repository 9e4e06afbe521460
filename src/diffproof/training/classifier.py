"""Training a classifier: on clean images, for randomized smoothing, or adversarially."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.checks import check_at_least
from diffproof.classifiers.base import Classifier
from diffproof.classifiers.cnn import SmallCNN
from diffproof.classifiers.saved import build_classifier
from diffproof.data.images import ImageData
from diffproof.errors import ArgumentError
from diffproof.memory import trainable
from diffproof.training.adversarial import LARGEST, Adversary
from diffproof.training.batches import Batch, Mixture, measured_together
from diffproof.training.checkpoint import Part
from diffproof.training.loop import LossOfBatch, Progress, TrainSettings, fit
from diffproof.training.objectives.base import Objective, check_can, loss_of_batches
from diffproof.training.objectives.gaussian import Gaussian
from diffproof.training.perceptual import PerceptualAdversary
from diffproof.weights import hash_tensors

# Most images that normalisation is measured on, and how many are in work at once.
_MEASURED = 10_000
_AT_ONCE = 256
# Of wider networks torch cannot count the numbers.
_WIDEST = 10**8


def describe_classifier(data: ImageData, width: int) -> dict[str, Any]:
    """What a weights file says of the network it holds; normalisation from up to 10,000 images."""
    check_at_least("width", width, 1, _WIDEST)
    with trainable("width"):
        SmallCNN(data.image_shape[0], len(data.class_names), width)
    mean, std = _mean_and_std(data)
    return {
        "kind": "classifier",
        "image_shape": list(data.image_shape),
        "num_classes": len(data.class_names),
        "width": width,
        "mean": [round(value, 6) for value in mean.tolist()],
        "std": [round(value, 6) for value in std.tolist()],
        **named_classes(data),
    }


def named_classes(data: ImageData, start: Classifier | None = None) -> dict[str, Any]:
    """What a weights file says of the names of its classes: those of the classifier that it began with, or
    of the data; nothing where neither has any.
    """
    names = None if start is None else start.class_names
    if names is None and data.classes_named:
        names = data.class_names
    return {} if names is None else {"class_names": list(names)}


def _mean_and_std(data: ImageData) -> tuple[Tensor, Tensor]:
    """Of each channel, over evenly spaced images."""
    chosen = range(0, len(data), -(-len(data) // _MEASURED))
    count, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for start in range(0, len(chosen), _AT_ONCE):
        images = data.batch(chosen[start : start + _AT_ONCE]).double()
        count += images[:, 0].numel()
        total = total + images.sum((0, 2, 3))
        squares = squares + images.square().sum((0, 2, 3))
    mean = total / count
    return mean, ((squares - count * mean.square()) / (count - 1)).clamp(min=1e-12).sqrt()


def train_classifier(
    data: Mixture,
    description: dict[str, Any],
    settings: TrainSettings,
    *,
    noise_sigma: float = 0.0,
    objective: Objective | None = None,
    adversary: Adversary | PerceptualAdversary | None = None,
    start: Classifier | None = None,
    progress: Progress | None = None,
) -> Classifier:
    """Train the classifier that `description` describes.

    Args:
        data: training images.
        description: from `describe_classifier`; with `start`, what describes that one.
        settings: see TrainSettings.
        noise_sigma: standard deviation of the Gaussian noise added to each image, in [0, 1] pixels; 0 for
            none. With it the classifier is one for plain randomized smoothing.
        objective: what is minimised, most of them under noise, which those need; None for Gaussian. Its
            `described` tells which description a new network for it has.
        adversary: what to train against, in place of noise; None for ordinary training.
        start: a classifier to train further, in place; None for a new one of the description.
        progress: see Progress.

    Raises:
        ValueError: bad settings, noise and an adversary together, an objective without noise, data that
            cannot be read, or a loss that is not finite.
    """
    if not 0.0 <= noise_sigma <= LARGEST:
        raise ArgumentError("noise_sigma", f"expected a number in [0, {LARGEST:g}], got {noise_sigma}")
    identity: dict[str, Any] = {"description": description, "noise_sigma": noise_sigma}
    if start is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            classifier = build_classifier(description)
    else:
        classifier = start
        identity["start"] = hash_tensors(start.state_dict(), start.describe())
    loss_of_batch: LossOfBatch = _cross_entropy
    parts: Mapping[str, Part] = {}
    if adversary is not None:
        if noise_sigma or objective is not None:
            given = "objective" if objective is not None else "noise_sigma"
            raise ArgumentError(f"{given}, adversarial", "expected one of them")
        adversary.check_images(data.sources[0].image_shape)
        loss_of_batch = _against(adversary)
        identity["adversary"] = adversary.describe()
    elif noise_sigma or objective is not None:
        objective = objective or Gaussian()
        check_can(objective, "train")
        identity["objective"] = objective.describe()
        objective = objective.begin(data.sources[0].image_shape, settings.seed, classifier)
        loss_of_batch, parts = loss_of_batches(objective, noise_sigma), objective.parts()
    trained = fit(classifier, data, loss_of_batch, settings, progress, identity=identity, parts=parts)
    assert isinstance(trained, Classifier)
    return trained


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    answer: Tensor = network(images)
    return answer.float()


def _cross_entropy(network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    return nn.functional.cross_entropy(_logits(network, batch.images), batch.labels)


def _against(adversary: Adversary | PerceptualAdversary) -> LossOfBatch:
    """The loss of adversarial training."""

    def loss_of_batch(network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        normal = batch.mine(torch.randn((batch.size, *batch.images.shape[1:]), generator=generator))
        uniform = batch.mine(torch.rand(batch.size, generator=generator))
        # The search needs no exchange between processes.
        bare = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        found = adversary.search(bare, partial(_logits, bare), batch, normal, uniform)
        return adversary.loss(partial(_logits, network), batch, found)

    return loss_of_batch


def accuracy(classifier: nn.Module, data: ImageData, noise_sigma: float = 0.0, seed: int = 0) -> float:
    """Share of images classified correctly, with Gaussian noise of `noise_sigma` if it is not 0."""
    generator = torch.Generator().manual_seed(seed)
    device = next(classifier.parameters()).device
    correct = 0
    with torch.no_grad():
        for chosen in measured_together(data):
            images = data.batch(chosen)
            if noise_sigma:
                images = images + noise_sigma * torch.randn(images.shape, generator=generator)
            labels = classifier(images.to(device)).argmax(1).cpu()
            correct += int((labels == data.labels[chosen.start : chosen.stop]).sum())
    return correct / len(data)
