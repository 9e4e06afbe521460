"""Defences by name, and how their networks run: precision and compilation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diffproof.checks import unknown_name
from diffproof.defenses.dds import DDS
from diffproof.defenses.densepure import DensePure
from diffproof.defenses.protocol import Defense
from diffproof.defenses.undefended import Undefended
from diffproof.denoisers.protocol import Denoiser

METHODS: dict[str, type[Defense]] = {cls.method: cls for cls in (Undefended, DDS, DensePure)}


def load_defense(
    method: str, *, classifier: nn.Module, denoiser: Denoiser | None = None, **settings: Any
) -> Defense:
    """A defence by name.

    Args:
        method: "none", "dds" or "densepure".
        classifier: see Defense. denoiser: needed by all methods but "none".
        settings: the method's own keyword arguments.

    Raises:
        ValueError: unknown method, a missing denoiser, or a setting out of range.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if method == Undefended.method:
        return Undefended(classifier, **settings)
    if denoiser is None:
        raise ValueError(f"denoiser: the method {method!r} needs one, got None")
    return (
        DDS(denoiser, classifier, **settings)
        if method == "dds"
        else DensePure(denoiser, classifier, **settings)
    )


def set_precision(defense: Defense, dtype: torch.dtype) -> Defense:
    """Run both networks in `dtype`; images, noise, votes and statistics stay as they are."""
    for network in _networks(defense):
        network.to(dtype)
    return defense


def compile_networks(defense: Defense) -> Defense:
    """Compile both networks for any batch size when they first run (torch.compile, channels last).

    The weights and their hash stay as they are; outputs differ by rounding.
    """
    for network in _networks(defense):
        # Inductor's convolutions on CPUs are fast, and take any batch size, in this layout only.
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Of the forward itself: Dynamo looks into no module class of torch's own, such as Sequential.
        network.forward = torch.compile(network.forward, dynamic=True)
    return defense


def _networks(defense: Defense) -> list[nn.Module]:
    parts = (defense.classifier, defense.denoiser)
    networks = [getattr(part, "network", None) for part in parts]
    return [network for network in networks if isinstance(network, nn.Module)]
