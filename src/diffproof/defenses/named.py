"""Defences by name, and how their networks run: precision and compilation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from diffproof.checks import unknown_name
from diffproof.defenses.agdm import AGDM
from diffproof.defenses.coup import COUP
from diffproof.defenses.dds import DDS
from diffproof.defenses.densepure import DensePure
from diffproof.defenses.diffpure import DiffPure
from diffproof.defenses.gdmp import GDMP
from diffproof.defenses.gradual import GradualNoise
from diffproof.defenses.protocol import CertifiableDefense, Defense
from diffproof.defenses.purification import Purification
from diffproof.defenses.undefended import Undefended
from diffproof.denoisers.protocol import Denoiser

CERTIFIABLE: dict[str, type[CertifiableDefense]] = {cls.method: cls for cls in (Undefended, DDS, DensePure)}
PURIFYING: dict[str, type[Purification]] = {
    cls.method: cls for cls in (DiffPure, GDMP, GradualNoise, COUP, AGDM)
}
METHODS: dict[str, type[Defense]] = {**CERTIFIABLE, **PURIFYING}


D = TypeVar("D", bound=Defense)


def load_defense(
    method: str,
    *,
    classifier: nn.Module,
    denoiser: Denoiser | None = None,
    guide: nn.Module | None = None,
    **settings: Any,
) -> Defense:
    """A defence by name.

    Args:
        method: "none", "dds" or "densepure", which can be certified; "diffpure", "gdmp", "gradual", "coup" or
            "agdm".
        classifier: see Defense. denoiser: needed by all methods but "none".
        guide: the robust classifier of "agdm", needed by it alone.
        settings: the method's own keyword arguments.

    Raises:
        ValueError: unknown method, a missing or idle network, or a setting that is unknown or out of range.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    make: Callable[..., Defense] = METHODS[method]
    takes = inspect.signature(make).parameters
    networks = {"denoiser": denoiser, "guide": guide}
    for name in ("denoiser", "guide"):
        if name in takes and networks[name] is None:
            raise ValueError(f"{name}: the method {method!r} needs one, got None")
    if guide is not None and "guide" not in takes:
        raise ValueError(f"guide: the method {method!r} takes none")
    for name in settings:
        if name not in takes:
            own = sorted({*takes} - {"classifier", "denoiser", "guide"})
            raise ValueError(f"{name}: no setting of the method {method!r}, which takes {', '.join(own)}")
    given = {name: network for name, network in networks.items() if name in takes}
    return make(classifier=classifier, **given, **settings)


def set_precision(defense: D, dtype: torch.dtype) -> D:
    """Run all networks in `dtype`; images, noise, votes and statistics stay as they are."""
    for network in _networks(defense):
        network.to(dtype)
    return defense


def compile_networks(defense: D) -> D:
    """Compile all networks for any batch size when they first run (torch.compile, channels last).

    The weights and their hash stay as they are; outputs differ by rounding.
    """
    for network in _networks(defense):
        # Inductor's convolutions on CPUs are fast, and take any batch size, in this layout only.
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Of the forward itself: Dynamo looks into no module class of torch's own, such as Sequential.
        network.forward = torch.compile(network.forward, dynamic=True)
    return defense


def _networks(defense: Defense) -> list[nn.Module]:
    parts = (defense.classifier, defense.denoiser, getattr(defense, "guide", None))
    networks = [getattr(part, "network", None) for part in parts]
    return [network for network in networks if isinstance(network, nn.Module)]
