"""Attacks by name, and the one call that runs one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from diffproof.attacks.autoattack import AutoAttack
from diffproof.attacks.base import Attack
from diffproof.attacks.diffattack import DiffAttack
from diffproof.attacks.lagrange import Lagrange
from diffproof.attacks.low_frequency import LowFrequency
from diffproof.attacks.pgd import PGD
from diffproof.attacks.result import AttackResult
from diffproof.attacks.square import Square
from diffproof.attacks.stadv import StAdv
from diffproof.attacks.threat import Threat, load_threat
from diffproof.attacks.views import AttackedDefense, GradientMode
from diffproof.checks import unknown_name
from diffproof.defenses.base import Defense
from diffproof.errors import ArgumentError

ATTACKS: dict[str, type[Attack]] = {
    cls.name: cls for cls in (PGD, AutoAttack, StAdv, DiffAttack, Lagrange, LowFrequency, Square)
}


def load_attack(name: str, **settings: Any) -> Attack:
    """An attack by name.

    Args:
        name: "pgd", "autoattack", "stadv", "diffattack", "lagrange", "low-frequency" or "square".
        settings: the attack's own, see its class.

    Raises:
        ValueError: unknown name, unknown setting or one out of range.
    """
    if name not in ATTACKS:
        raise unknown_name("attack", name, ATTACKS)
    known = [field.name for field in fields(ATTACKS[name])]
    for setting in settings:
        if setting not in known:
            raise ArgumentError(setting, f"no setting of {name}; it has {', '.join(known)}")
    return ATTACKS[name](**settings)


def attack(
    defense: Defense,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack | str = "pgd",
    threat: Threat | str = "linf",
    budget: str | float | None = None,
    gradient: GradientMode | str = GradientMode.EXACT,
    surrogate_share: float = 0.1,
    seed: int = 0,
    image_indices: Sequence[int] | None = None,
    batch_size: int = 64,
    **settings: Any,
) -> list[AttackResult]:
    """Attack a defence.

    Args:
        defense: any defence.
        images: N×C×H×W in [0, 1]. labels: N int64, the true ones.
        attack: an attack, or the name of one with its `settings`.
        threat: a threat model, or the name of one with its `budget` (a number or like "8/255").
        gradient, surrogate_share: see AttackedDefense.
        seed, image_indices, batch_size: see Attack.run; the indices are 0, 1, … by default.

    Returns:
        One result an image. Whether a random defence withstands the images that it found, only fresh draws of
        noise tell.

    Raises:
        ValueError: an argument is unknown or out of range, or the attack cannot be run on this defence.
    """
    if not isinstance(attack, str) and settings:
        raise ArgumentError("settings", f"expected none beside an attack, got {', '.join(settings)}")
    if isinstance(attack, str):
        attack = load_attack(attack, **settings)
    if isinstance(threat, str):
        if budget is None:
            raise ArgumentError("budget", f"expected one for the threat {threat!r}, got None")
        threat = load_threat(threat, budget)
    elif budget is not None:
        raise ArgumentError("budget", f"the threat has its own, expected None, got {budget!r}")
    return attack.run(
        AttackedDefense(defense, gradient, surrogate_share=surrogate_share),
        images,
        labels,
        threat=threat,
        seed=seed,
        image_indices=range(len(images)) if image_indices is None else image_indices,
        batch_size=batch_size,
    )
