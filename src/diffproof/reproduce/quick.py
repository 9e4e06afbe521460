"""Methods cut down to sizes that end in seconds, to try a table out."""

from __future__ import annotations

from typing import Any

from diffproof.methods import MethodSpec, describe, parse

# Of a quick run: images, draws of noise of a certificate and of its choice of a class; members of ensembles.
IMAGES, DRAWS, CHOICE, MEMBERS = 2, 40, 10, 2
# Of its trainings: images of a step, channels of a denoiser.
BATCH, CHANNELS = 16, "8"
_MOST = {"votes": 3, "consensus": 2, "steps": 2, "iterations": 2, "eot": 2, "rounds": 1, "depth": 1}
_LEVELS = "uniform:2"


def quick(kind: str, text: str) -> str:
    """A method with few steps, votes, levels and iterations.

    Args:
        kind: "defense", "attack" or "objective".
        text: the method with its settings.
    """
    if kind == "attack" and text.partition(":")[0] == "autoattack":
        # Its own numbers of iterations are fixed.
        return "pgd:iterations=2,eot=2"
    spec = parse(kind, text)
    return str(MethodSpec(kind, spec.name, {**spec.settings, **_cut(kind, spec)}))


def _cut(kind: str, spec: MethodSpec) -> dict[str, Any]:
    cut: dict[str, Any] = {}
    for setting in describe(kind, spec.name).settings:
        name, value = setting.name, spec.settings.get(setting.name, setting.default)
        if name == "likelihood_timesteps" and spec.settings.get("variant") == "authors":
            # It draws one level a step.
            continue
        if name in ("timesteps", "likelihood_timesteps"):
            cut[name] = _LEVELS
        elif name == "t_star" and isinstance(value, list):
            cut[name] = value[:1]
        elif name == "steps" and isinstance(setting.default, list | None) and spec.name == "gradual":
            cut[name] = [_MOST[name]]
        elif name in _MOST and isinstance(value, int):
            cut[name] = min(value, _MOST[name])
        elif value is None and (name == "steps" or (name == "iterations" and kind == "defense")):
            # One a timestep; as many as the variant of likelihood maximisation takes.
            cut[name] = _MOST[name]
    return cut
