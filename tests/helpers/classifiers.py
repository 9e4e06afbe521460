"""Small classifiers in float64, and one in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import diffproof as dp
from helpers.images import SHAPE
from helpers.tensors import random


def linear_classifier() -> dp.Classifier:
    torch.manual_seed(1)
    return dp.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).double(), 3, image_shape=SHAPE)


def small_digits() -> dp.Classifier:
    """A random one in float32 that compiles in seconds."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Tanh())
    return dp.Classifier(network, 10, image_shape=(1, 8, 8))


def steep_classifier(
    classes: int = 3, shape: tuple[int, int, int] = (1, 2, 2), hidden: int = 16
) -> dp.Classifier:
    """A small smooth network, steep around the middle of the pixel range so that all labels occur."""
    torch.manual_seed(2)
    first, last = nn.Linear(math.prod(shape), hidden), nn.Linear(hidden, classes)
    with torch.no_grad():
        first.weight *= 4
        first.bias.copy_(-first.weight.sum(1) / 2)
        last.bias.zero_()
    network = nn.Sequential(nn.Flatten(), first, nn.Tanh(), last).double()
    return dp.Classifier(network, classes, image_shape=shape)


def curved_classifier(*after: nn.Module, classes: int = 4, seed: int = 0, gain: float = 3.0) -> dp.Classifier:
    """A smooth one of 1×4×4 images, whose weights are none of torch's usual ones."""
    first, last = nn.Linear(16, 8).double(), nn.Linear(8, classes).double()
    with torch.no_grad():
        first.weight.copy_(random(8, 16, seed=2 * seed))
        last.weight.copy_(gain * random(classes, 8, seed=2 * seed + 1))
        first.bias.copy_(-first.weight.sum(1) / 2)
        last.bias.zero_()
    network = nn.Sequential(nn.Flatten(), first, nn.Tanh(), last, *after)
    return dp.Classifier(network, classes, image_shape=(1, 4, 4)).requires_grad_(False)


def mapped_classifier(classes: int = 4) -> dp.Classifier:
    """A smooth one of 1×4×4 images with maps of features at two resolutions."""
    torch.manual_seed(3)
    first, second, last = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 2), nn.Linear(36, classes)
    with torch.no_grad():
        last.weight *= 8
    network = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Flatten(), last)
    return dp.Classifier(network.double(), classes, image_shape=(1, 4, 4)).requires_grad_(False)


class SmoothClassifier(nn.Module):
    """A classifier without kinks."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.last = nn.Linear(9, 6).double(), nn.Linear(6, 3).double()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.tanh(3 * self.first(images.flatten(1))))
        return logits


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with every tensor drawn afresh, running statistics included."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(drawn + 0.5 if "var" in name else (drawn - 0.5) * 0.5)
    return module.eval()
