"""Objectives by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffproof.methods import MethodSpec, build, parse
from diffproof.training.objectives.base import Objective


def load_objective(objective: str | Mapping[str, Any] | MethodSpec, **settings: Any) -> Objective:
    """An objective of a training by name.

    Args:
        objective: a name of the catalog (`diffproof methods`), or "package.module:Class" for a class of your
            own, each perhaps with settings: "macer:weight=4"; or a mapping with `name` and settings.
        settings: further settings of the objective, as Python's values; see its class.

    Raises:
        ValueError: unknown name, or a setting that is unknown, given twice or out of range.
    """
    spec = objective if isinstance(objective, MethodSpec) else parse("objective", objective)
    loaded: Objective = build(spec, {}, settings)
    return loaded
