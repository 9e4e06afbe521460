"""The user's own code that a run executes, for the record of what it was made with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffproof.classifiers import spec as classifiers
from diffproof.denoisers import named as denoisers
from diffproof.methods import own_class
from diffproof.own_code import Address, source_hash
from diffproof.runs.flags import Flags


def own_code_of(settings: Flags) -> dict[str, str | None]:
    """The modules outside diffproof that the settings name, each with the hash of its source.

    Args:
        settings: of a run.
    """
    named = own_places(settings.as_dict())
    return {where.module: source_hash(where.module) for places in named.values() for where in places}


def own_places(named: Mapping[str, Any]) -> dict[str, list[Address]]:
    """Where the code outside diffproof is that methods and networks name; nothing is imported.

    Args:
        named: texts by the names of the settings that they are of.

    Raises:
        ValueError: one has none of the forms that it may have.
    """
    found: dict[str, list[Address]] = {}
    for name, text in named.items():
        if name in ("defense", "attack"):
            places = [own_class(name, text)]
        elif name in ("classifier", "guide", "chooser"):
            places = [*classifiers.own_factories(text)]
        else:
            places = [denoisers.own_factory(text)] if name == "denoiser" else []
        if kept := [where for where in places if where is not None]:
            found[name] = kept
    return found
