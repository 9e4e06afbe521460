"""What an attack is asked for, with all that its protocol and the attack itself fill in."""

from __future__ import annotations

from diffproof.attacks.base import Attack
from diffproof.attacks.named import load_attack
from diffproof.attacks.papers import load_protocol
from diffproof.errors import ArgumentError
from diffproof.methods import MethodSpec, own_class, parse
from diffproof.runs.settings import AttackRequest, AttackSettings


def settle(request: AttackRequest, image_size: int) -> tuple[AttackSettings, Attack]:
    """The settings with all that the protocol and the attack fill in, and the attack.

    Raises:
        ValueError: a setting that the attack does not have, or that contradicts the protocol.
    """
    asked = None if request.attack is None else parse("attack", request.attack)
    gradient, draws, votes = request.gradient, request.draws, request.majority_of
    if request.protocol is not None:
        protocol = load_protocol(request.protocol)
        name, given = (None, {}) if asked is None else (asked.name, asked.settings)
        fixed = protocol.settings(name, given, request.threat, image_size)
        asked = parse("attack", {"name": protocol.attack_on(request.threat), **fixed})
        for what, wanted, was in (
            ("gradient", protocol.gradient.value, gradient),
            ("draws", protocol.draws, draws),
            ("majority_of", protocol.votes, votes),
        ):
            if was is not None and was != wanted:
                raise ArgumentError(what, f"protocol {protocol.name} fixes {wanted}, got {was}")
        gradient, draws, votes = protocol.gradient.value, protocol.draws, protocol.votes
    asked = asked or MethodSpec("attack", "pgd", {})
    attack = load_attack(asked)
    filled = dict(asked.settings)
    if own_class("attack", asked.name) is None:
        # As the attack has them: its constructor may fill in what was left open.
        filled = {name: getattr(attack, name) for name in asked.filled().settings}
    settled = {
        **request.as_dict(),
        "attack": str(MethodSpec("attack", asked.name, filled)),
        "gradient": gradient,
        "draws": draws,
        "majority_of": votes,
    }
    return AttackSettings(**{name: value for name, value in settled.items() if value is not None}), attack
