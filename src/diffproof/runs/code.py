"""The user's own code that a run executes, for the record of what it was made with."""

from __future__ import annotations

from diffproof.classifiers import spec as classifiers
from diffproof.denoisers import named as denoisers
from diffproof.methods import own_class
from diffproof.own_code import source_hash
from diffproof.runs.flags import Flags


def own_code_of(settings: Flags) -> dict[str, str | None]:
    """The modules outside diffproof that the settings name, each with the hash of its source.

    Args:
        settings: of a run.
    """
    named = settings.as_dict()
    places = [own_class(kind, named[kind]) for kind in ("defense", "attack") if kind in named]
    for name in ("classifier", "guide", "chooser"):
        places += classifiers.own_factories(named[name]) if named.get(name) is not None else []
    places += [denoisers.own_factory(named[name]) for name in ("denoiser",) if name in named]
    return {where.module: source_hash(where.module) for where in places if where is not None}
