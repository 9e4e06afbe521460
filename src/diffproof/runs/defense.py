"""Defences of runs: from specs to a module with its networks."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from diffproof.checks import loading
from diffproof.classifiers.named import load_classifier
from diffproof.defenses.base import Defense
from diffproof.defenses.diffusion_classifier.levels import edm_levels
from diffproof.defenses.named import load_defense, set_precision
from diffproof.denoisers.base import Denoiser
from diffproof.denoisers.named import load_denoiser
from diffproof.errors import ArgumentError
from diffproof.methods import MethodSpec, check_networks, describe

# Noise levels of a diffusion loss where the denoiser is continuous.
_LEVELS = 1000


class Networks(Protocol):
    """What settings say of a defence and its networks; perhaps with a `guide`, the spec of a classifier."""

    @property
    def method(self) -> MethodSpec:
        """The defence with its settings."""

    @property
    def classifier(self) -> str | None:
        """Its spec; None for a method that takes none, or that only purifies and cannot be called then."""

    @property
    def denoiser(self) -> str | None:
        """Its spec; None for a method that takes none."""

    @property
    def precision(self) -> str:
        """The dtype of the networks."""


def load_networks_and_defense(settings: Networks, device: torch.device) -> Defense:
    """A defence with its networks, in evaluation mode.

    Args:
        settings: what is asked for.
        device: where they are.

    Raises:
        ValueError: unreadable networks, or what does not fit together.
    """
    method, classifier, denoiser = settings.method, settings.classifier, settings.denoiser
    guide: str | None = getattr(settings, "guide", None)
    own = describe("defense", method.name)
    only_purifies = classifier is None and "classifier" in own.takes
    if not only_purifies or "purify" not in own.can or "ask" in own.can:
        check_networks(method.name, classifier=classifier)
    with loading("guide"):
        guiding = None if guide is None else load_classifier(guide)
    answering: nn.Module | None = None
    if classifier is not None:
        with loading("classifier"):
            answering = load_classifier(classifier)
    elif only_purifies:
        # A guide has to have the classes of the classifier.
        answering = _NoClassifier(0 if guiding is None else guiding.num_classes)
    with loading("denoiser"):
        diffusion = None if denoiser is None else load_denoiser(denoiser)
    defense = load_defense(
        with_levels(method, diffusion), classifier=answering, denoiser=diffusion, guide=guiding
    )
    return set_precision(defense, getattr(torch, settings.precision)).to(device)


def with_levels(method: MethodSpec, denoiser: Denoiser | None) -> MethodSpec:
    """The method with noise levels for its diffusion loss, if the denoiser has none of its own.

    They are those of Chen et al. 2023 for EDM, of 1000 those that the denoiser takes.
    """
    own = describe("defense", method.name)
    needed = own.setting("sigmas") is not None and method.settings.get("sigmas") is None
    if not needed or denoiser is None or denoiser.sigmas is not None:
        return method
    # Where all that it does is the released code's maximisation, the loss has one level of its own.
    if "classifier" in own.takes and method.settings.get("variant") == "authors":
        return method
    return MethodSpec(method.kind, method.name, {**method.settings, "sigmas": edm_levels(denoiser, _LEVELS)})


class _NoClassifier(nn.Module):
    """Stands in the place of the classifier of a defence that only purifies; asking it is an error."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images: Tensor) -> Tensor:
        raise ArgumentError("classifier", "this defence only purifies; expected a classifier, got None")
