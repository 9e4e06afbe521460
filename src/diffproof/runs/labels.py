"""How reports name networks and data: without where they lie on a machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from diffproof.files import members


def short_spec(spec: str) -> str:
    """A network's name without its folders: "resnet56@models/resnet56.th" is "resnet56"."""
    if (parts := members(spec)) != [spec]:
        return f"ensemble of {', '.join(map(short_spec, parts))}"
    family, at, _ = spec.partition("@")
    # A file's own name may have an "@", too.
    return family if at and (":" in family or "/" not in family) else Path(spec).stem


def short_source(data: str) -> str:
    """A data set's name: a file's or folder's without where it lies, a Hub id as it is."""
    is_path = data.count("/") > 1 or data.startswith((".", "/", "~")) or data.endswith((".parquet", ".npz"))
    return (is_path and Path(data).name) or data


def differing(settings: object, twins: Sequence[object], names: Iterable[str]) -> list[str]:
    """What tells settings from those of runs that are called the same: "n = 500"; nothing where all agree.

    Drawn seeds always differ, and are named only where nothing else tells these runs apart.
    """
    found = [name for name in names if len({getattr(other, name) for other in twins}) > 1]
    if all(getattr(other, "seed_drawn", False) for other in twins):
        rest = [name for name in found if name != "seed"]
        if len({tuple(getattr(other, name) for name in rest) for other in twins}) == len(twins):
            found = rest
    return [f"{name} = {getattr(settings, name)}" for name in found]
