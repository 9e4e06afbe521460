"""Defences of runs: from the values of flags to a module with its networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.attacks.threat import parse_budget
from diffproof.catalog import DEFENSES
from diffproof.checks import renamed, unknown_name
from diffproof.classifiers.named import load_classifier
from diffproof.defenses.base import Defense
from diffproof.defenses.diffusion_classifier.loss import edm_sigmas
from diffproof.defenses.diffusion_classifier.rdc import RDC
from diffproof.defenses.named import check_networks, load_defense, set_precision
from diffproof.defenses.purifying.coup import COUP
from diffproof.defenses.purifying.gradual import GradualNoise
from diffproof.defenses.purifying.likelihood import Variant
from diffproof.denoisers.base import Denoiser
from diffproof.denoisers.named import load_denoiser
from diffproof.errors import ArgumentError
from diffproof.runs.settings import DEFENSE_FIELDS

# Noise levels of a diffusion loss where the denoiser is continuous.
_LEVELS = 1000
# Flags that other settings of a command leave no room for under the name that the defence has for them.
_OTHER_NAMES = {
    "defense_sigma": "sigma",
    "purify_budget": "budget",
    "likelihood_iterations": "iterations",
    "likelihood_norm": "norm",
}
_FLAGS = {setting: flag for flag, setting in _OTHER_NAMES.items()}


def load_networks_and_defense(
    method: str,
    settings: Mapping[str, Any],
    *,
    classifier: str | None,
    denoiser: str | None,
    guide: str | None,
    precision: str,
    device: torch.device,
) -> Defense:
    """A defence with its networks, in evaluation mode.

    Args:
        method: see load_defense.
        settings: its own keyword arguments, see `defense_settings`.
        classifier: spec; None for a method that takes none, or that purifies without asking one, which cannot
            be called then.
        denoiser, guide: specs of a denoiser and of a classifier.
        precision: dtype of the networks. device: where they are.

    Raises:
        ValueError: unknown names, unreadable networks, settings that the method does not take, or what does
            not fit together.
    """
    if method not in DEFENSES:
        raise unknown_name("defense", method, DEFENSES)
    only_purifies = classifier is None and "classifier" in DEFENSES[method].takes
    if not only_purifies or "purify" not in DEFENSES[method].can or method == COUP.method:
        check_networks(method, classifier=classifier)
    guiding = None if guide is None else load_classifier(guide)
    answering: nn.Module | None = None
    if classifier is not None:
        answering = load_classifier(classifier)
    elif only_purifies:
        # A guide has to have the classes of the classifier.
        answering = _NoClassifier(0 if guiding is None else guiding.num_classes)
    diffusion = None if denoiser is None else load_denoiser(denoiser)
    if settings.get("variant") != Variant.AUTHORS or method == RDC.method:
        settings = {**settings, **noise_levels(method, diffusion)}
    # An error about what no flag has given is not one of a flag.
    with renamed({setting: flag for setting, flag in _FLAGS.items() if setting in settings}):
        defense = load_defense(method, classifier=answering, denoiser=diffusion, guide=guiding, **settings)
    return set_precision(defense, getattr(torch, precision)).to(device)


def noise_levels(method: str, denoiser: Denoiser | None) -> dict[str, Any]:
    """The setting `sigmas` of a method with a diffusion loss, for a denoiser that has no levels of its own.

    They are those of Chen et al. 2023 for EDM, 1000 of them.
    """
    needed = DEFENSES[method].setting("sigmas") is not None
    if not needed or denoiser is None or denoiser.sigmas is not None:
        return {}
    return {"sigmas": edm_sigmas(_LEVELS)}


class _NoClassifier(nn.Module):
    """Stands in the place of the classifier of a defence that only purifies; asking it is an error."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images: Tensor) -> Tensor:
        raise ArgumentError("classifier", "this defence only purifies; expected a classifier, got None")


def defense_settings(method: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a method, from the flags that are given.

    Args:
        method: its name.
        flags: values as the command line has them: t_star and steps are texts, with commas between numbers
            where the method takes one a round, and steps may be "full"; purify_budget is a number or a text.

    Raises:
        ValueError: a text is no number, or several numbers where the method takes one, or a flag is none of
            the method's.
    """
    parsers: dict[str, Callable[[Any], Any]] = {
        "t_star": lambda text: _a_round("t_star", text, float, method),
        "steps": lambda text: None if text == "full" else _a_round("steps", text, int, method),
        "purify_budget": parse_budget,
    }
    if method in DEFENSES:
        takes = [setting.name for setting in DEFENSES[method].settings]
        own = [flag for flag in DEFENSE_FIELDS if _OTHER_NAMES.get(flag, flag) in takes]
        for flag in flags:
            if flag not in own:
                raise ArgumentError(
                    flag, f"no setting of the method {method!r}, which takes {', '.join(own)}"
                )
    with renamed(_FLAGS):
        return {
            _OTHER_NAMES.get(flag, flag): parsers[flag](value) if flag in parsers else value
            for flag, value in flags.items()
        }


def _a_round(name: str, text: Any, kind: type[int] | type[float], method: str) -> Any:
    """A list of numbers for the method that takes one a round, one number for all others."""
    if method == GradualNoise.method:
        return numbers(name, text, kind)
    try:
        return kind(text)
    except ValueError:
        raise ArgumentError(name, f"expected one number for the method {method!r}, got {text!r}") from None


def numbers(name: str, text: Any, kind: type[int] | type[float]) -> list[Any]:
    """The numbers of a text with commas between.

    Raises:
        ValueError: it is none.
    """
    try:
        return [kind(part) for part in str(text).split(",")]
    except ValueError:
        raise ArgumentError(name, f"expected numbers with commas between, got {text!r}") from None
