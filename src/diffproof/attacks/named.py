"""Attacks by name, and the two calls that run one: attack and evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from diffproof.attacks import evaluation
from diffproof.attacks.base import Attack
from diffproof.attacks.evaluation import Evaluation
from diffproof.attacks.result import AttackResult
from diffproof.attacks.threat import Threat, load_threat
from diffproof.attacks.views import AttackedDefense, GradientMode
from diffproof.checks import check_pixels, shown
from diffproof.defenses.base import Defense
from diffproof.errors import ArgumentError
from diffproof.methods import MethodSpec, build, parse


def load_attack(attack: str | Mapping[str, Any] | MethodSpec, **settings: Any) -> Attack:
    """An attack by name.

    Args:
        attack: a name of the catalog (`diffproof methods`), "package.module:Class" for a class of your own,
            or the name of a plug-in, each perhaps with settings: "pgd:iterations=200,eot=20"; or a mapping
            with `name` and settings.
        settings: further settings of the attack, as Python's values; see its class.

    Raises:
        ValueError: unknown name, or a setting that is unknown, given twice or out of range.
    """
    spec = attack if isinstance(attack, MethodSpec) else parse("attack", attack)
    loaded: Attack = build(spec, {}, settings)
    return loaded


def attack(
    defense: Defense,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack | str | Mapping[str, Any] | MethodSpec = "pgd",
    threat: Threat | str = "linf",
    budget: str | float | None = None,
    gradient: GradientMode | str = GradientMode.EXACT,
    surrogate_share: float | None = None,
    seed: int = 0,
    image_indices: Sequence[int] | None = None,
    batch_size: int = 64,
    **settings: Any,
) -> list[AttackResult]:
    """Attack a defence.

    Args:
        defense: any defence.
        images: N×C×H×W in [0, 1].
        labels: N int64, the true ones.
        attack: an attack, or a text for `load_attack`.
        threat: a threat model, or the name of one: "linf", "l2" or "stadv".
        budget: the largest norm of a perturbation, as a number or like "8/255", where `threat` is a name.
        gradient: the gradient that the attack gets; see GradientMode.
        surrogate_share: share of the steps that the gradient "surrogate" takes, in (0, 1]; 0.1 by default.
        seed: see Attack.run.
        image_indices: see Attack.run; None for 0, 1, ….
        batch_size: see Attack.run.
        settings: further settings of the attack, where `attack` is a text.

    Returns:
        One result an image. Whether a random defence withstands the images that it found, only fresh draws of
        noise tell.

    Raises:
        ValueError: an argument is unknown or out of range, or the attack cannot be run on this defence.
    """
    view, chosen, within = _resolved(defense, attack, threat, budget, gradient, surrogate_share, settings)
    check_pixels(images)
    return chosen.run(
        view,
        images,
        labels,
        threat=within,
        seed=seed,
        image_indices=range(len(images)) if image_indices is None else image_indices,
        batch_size=batch_size,
    )


def evaluate(
    defense: Defense,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack | str | Mapping[str, Any] | MethodSpec = "pgd",
    threat: Threat | str = "linf",
    budget: str | float | None = None,
    gradient: GradientMode | str = GradientMode.EXACT,
    surrogate_share: float | None = None,
    draws: int = 10,
    votes: int = 10,
    seed: int = 0,
    image_indices: Sequence[int] | None = None,
    batch_size: int = 64,
    **settings: Any,
) -> Evaluation:
    """Attack those images that a defence gets right, and score it before and after.

    Args:
        defense: any defence.
        images: N×C×H×W in [0, 1].
        labels: N int64, the true ones.
        attack: see `attack`.
        threat: see `attack`.
        budget: see `attack`.
        gradient: see `attack`.
        surrogate_share: see `attack`.
        draws: fresh draws of noise that score an image, ≥ 1.
        votes: draws that vote on its label, ≥ 1.
        seed: see `attack`.
        image_indices: see `attack`.
        batch_size: see `attack`.
        settings: see `attack`.

    Raises:
        ValueError: an argument is unknown or out of range, or the attack cannot be run on this defence.
    """
    view, chosen, within = _resolved(defense, attack, threat, budget, gradient, surrogate_share, settings)
    return evaluation.evaluate(
        view,
        images,
        labels,
        attack=chosen,
        threat=within,
        draws=draws,
        votes=votes,
        seed=seed,
        image_indices=image_indices,
        batch_size=batch_size,
    )


def _resolved(
    defense: Defense,
    attack: Attack | str | Mapping[str, Any] | MethodSpec,
    threat: Threat | str,
    budget: str | float | None,
    gradient: GradientMode | str,
    surrogate_share: float | None,
    settings: Mapping[str, Any],
) -> tuple[AttackedDefense, Attack, Threat]:
    """What `attack` and `evaluate` are given, as objects."""
    if isinstance(attack, Attack) and settings:
        raise ArgumentError("settings", f"expected none beside an attack, got {', '.join(settings)}")
    chosen = attack if isinstance(attack, Attack) else load_attack(attack, **settings)
    if isinstance(threat, str):
        if budget is None:
            raise ArgumentError("budget", f"expected one for the threat {threat!r}, got None")
        threat = load_threat(threat, budget)
    elif not isinstance(threat, Threat):
        raise ArgumentError("threat", f"expected a diffproof.Threat or a name of one, got {shown(threat)}")
    elif budget is not None:
        raise ArgumentError("budget", f"the threat has its own, expected None, got {budget!r}")
    return AttackedDefense(defense, gradient, surrogate_share=surrogate_share), chosen, threat
