"""Distances of a classifier's features: what perceptual attacks stay within (Laidlaw et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.defenses.base import Defense
from diffproof.errors import ArgumentError

_NORM_FLOOR = 1e-10
# Halvings of a way into the ball: what is left of it is below float32's precision.
_HALVINGS = 24


def classified(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The logits N×K of images and their features φ(x), N×D, float32 or float64.

    φ puts together the last map of each resolution, each divided by its norm over channels at every place and
    by the root of the number of places: what AlexNet's five layers are to LPIPS.

    Raises:
        ValueError: the network has no maps.
    """
    with _maps(network, len(images)) as maps:
        logits = network(images)
    if not maps:
        raise ArgumentError("network", "expected one with maps of features, got one without")
    parts = []
    for one in maps.values():
        wide = one if one.dtype == torch.float64 else one.float()
        unit = wide / (torch.linalg.vector_norm(wide, dim=1, keepdim=True) + _NORM_FLOOR)
        parts.append((unit / one[0, 0].numel() ** 0.5).flatten(1))
    return logits if logits.dtype == torch.float64 else logits.float(), torch.cat(parts, 1)


@contextmanager
def _maps(network: nn.Module, count: int) -> Iterator[dict[tuple[int, int], Tensor]]:
    """The last N×C×H×W that a part of the network gives at each resolution, of one call within."""
    maps: dict[tuple[int, int], Tensor] = {}

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and len(output) == count:
            height, width = output.shape[2:]
            if height * width > 1:
                maps[height, width] = output

    hooks = [part.register_forward_hook(keep) for part in network.modules() if part is not network]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def features_of(defense: Defense) -> Callable[[Tensor], Tensor]:
    """φ of the classifier behind a defence, N×C×H×W → N×D: distances are of the images that it is given, not
    of what it purifies them to.

    Raises:
        ValueError: the defence has no classifier. A classifier without maps of features raises when called.
    """
    network = defense.classifier
    while isinstance(network, Defense):
        network = network.classifier
    if network is None:
        raise ArgumentError(
            "threat", f"perceptual distances are of a classifier's features, and {defense.method!r} has none"
        )
    return lambda images: classified(network, images)[1]


def distances(features: Callable[[Tensor], Tensor], points: Tensor, images: Tensor) -> Tensor:
    """‖φ(x) − φ(x′)‖₂ of each pair, N float64 values, without a graph."""
    with torch.no_grad():  # only its size is asked for
        far: Tensor = torch.linalg.vector_norm(features(points) - features(images), dim=1)
    # Beside float32, a budget would be rounded.
    return far.double()


def pulled(
    features: Callable[[Tensor], Tensor], points: Tensor, images: Tensor, budget: float
) -> tuple[Tensor, Tensor]:
    """Points that lie too far are moved straight towards their images until they are within the budget.

    Returns:
        The points N×C×H×W, and their distances, N values of at most the budget.
    """
    far = distances(features, points, images)
    inside, outside = torch.zeros_like(far), torch.ones_like(far)
    if bool((far > budget).any()):
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            within = distances(features, _between(images, points, middle), images) <= budget
            inside, outside = torch.where(within, middle, inside), torch.where(within, outside, middle)
    found = torch.where((far <= budget)[:, None, None, None], points, _between(images, points, inside))
    return found, distances(features, found, images)


def _between(images: Tensor, points: Tensor, share: Tensor) -> Tensor:
    return (images + share.to(images.dtype)[:, None, None, None] * (points - images)).clamp(0.0, 1.0)
