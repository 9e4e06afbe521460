"""Defences by name, and how their networks run: precision and compilation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from diffproof.checks import unknown_name
from diffproof.defenses.base import CertifiableDefense, Defense
from diffproof.defenses.dds import DDS
from diffproof.defenses.densepure import DensePure
from diffproof.defenses.diffusion_classifier.classifier import DiffusionClassifier
from diffproof.defenses.diffusion_classifier.rdc import RDC
from diffproof.defenses.purifying.agdm import AGDM
from diffproof.defenses.purifying.base import Purifier
from diffproof.defenses.purifying.coup import COUP
from diffproof.defenses.purifying.diffpure import DiffPure
from diffproof.defenses.purifying.gdmp import GDMP
from diffproof.defenses.purifying.gradual import GradualNoise
from diffproof.defenses.purifying.likelihood import LikelihoodMaximization
from diffproof.defenses.undefended import Undefended
from diffproof.denoisers.base import Denoiser
from diffproof.errors import ArgumentError

CERTIFIABLE: dict[str, type[CertifiableDefense]] = {
    cls.method: cls for cls in (Undefended, DDS, DensePure, DiffusionClassifier)
}
PURIFYING: dict[str, type[Purifier]] = {
    cls.method: cls for cls in (DiffPure, GDMP, GradualNoise, COUP, AGDM, LikelihoodMaximization, RDC)
}
METHODS: dict[str, type[Defense]] = {**CERTIFIABLE, **PURIFYING}


D = TypeVar("D", bound=Defense)


def load_defense(
    method: str,
    *,
    classifier: nn.Module | None = None,
    denoiser: Denoiser | None = None,
    guide: nn.Module | None = None,
    **settings: Any,
) -> Defense:
    """A defence by name.

    Args:
        method: "none", "dds", "densepure" or "dc", which can be certified; "diffpure", "gdmp", "gradual",
            "coup", "agdm", "likelihood" or "rdc".
        classifier: see Defense; "dc" and "rdc" take none. denoiser: needed by all methods but "none".
        guide: the robust classifier of "agdm", needed by it alone.
        settings: the method's own keyword arguments.

    Raises:
        ValueError: unknown method, a missing or idle network, or a setting that is unknown or out of range.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    networks = {"classifier": classifier, "denoiser": denoiser, "guide": guide}
    check_networks(method, **networks)
    make: Callable[..., Defense] = METHODS[method]
    takes = inspect.signature(make).parameters
    for name in settings:
        if name not in takes:
            own = sorted({*takes} - {*networks})
            raise ArgumentError(name, f"no setting of the method {method!r}, which takes {', '.join(own)}")
    given = {name: network for name, network in networks.items() if name in takes}
    return make(**given, **settings)


def check_networks(method: str, **networks: object) -> None:
    """Raise ValueError for a network that a known method needs and is None, or that it has no use for.

    Args:
        method: a name of METHODS.
        networks: any of classifier, denoiser and guide, or their specs. An idle denoiser is no error.
    """
    takes = inspect.signature(METHODS[method]).parameters
    for name, network in networks.items():
        if name in takes and network is None:
            raise ArgumentError(name, f"the method {method!r} needs one, got None")
        if name not in takes and network is not None and name != "denoiser":
            raise ArgumentError(name, f"the method {method!r} takes none")


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
    networks: list[nn.Module] = []
    for part in parts:
        if isinstance(part, Defense):
            networks += _networks(part)
        elif isinstance(network := getattr(part, "network", None), nn.Module):
            networks.append(network)
    # A diffusion model may purify and classify.
    return list(dict.fromkeys(networks))
