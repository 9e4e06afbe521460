"""Defences by name, and how their networks run: precision and compilation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from diffproof.defenses.base import Defense
from diffproof.denoisers.base import Denoiser
from diffproof.methods import MethodSpec, build, check_networks, describe, parse

D = TypeVar("D", bound=Defense)


def load_defense(
    method: str | Mapping[str, Any] | MethodSpec,
    *,
    classifier: nn.Module | None = None,
    denoiser: Denoiser | None = None,
    guide: nn.Module | None = None,
    **settings: Any,
) -> Defense:
    """A defence by name.

    Args:
        method: a name of the catalog (`diffproof methods`), "package.module:Class" for a class of your own,
            or the name of a plug-in, each perhaps with settings: "densepure:steps=10,votes=40"; or a mapping
            with `name` and settings.
        classifier: see Defense; methods that classify by the denoiser take none.
        denoiser: the diffusion model, where the method needs one.
        guide: a robust classifier, for a method that is guided by one.
        settings: further keyword arguments of the method, as Python's values.

    Raises:
        ValueError: unknown method, a missing or idle network, or a setting that is unknown, given twice or
            out of range.
    """
    spec = method if isinstance(method, MethodSpec) else parse("defense", method)
    networks = {"classifier": classifier, "denoiser": denoiser, "guide": guide}
    check_networks(spec.name, **networks)
    takes = describe("defense", spec.name).takes
    given = {name: network for name, network in networks.items() if network is not None and name in takes}
    defense: Defense = build(spec, given, settings)
    return defense


def set_precision(defense: D, dtype: torch.dtype) -> D:
    """Run all networks in `dtype`; images, noise, votes and statistics stay as they are."""
    for network in defense.networks():
        network.to(dtype)
    return defense


def compile_networks(defense: D) -> D:
    """Compile all networks for any batch size when they first run (torch.compile, channels last).

    The weights and their hash stay as they are; outputs differ by rounding.
    """
    for network in defense.networks():
        # Inductor's convolutions on CPUs are fast, and take any batch size, in this layout only.
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Of the forward itself: Dynamo looks into no module class of torch's own, such as Sequential.
        network.forward = torch.compile(network.forward, dynamic=True)
    return defense
