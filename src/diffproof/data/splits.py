"""Names of splits: which words mean the same one."""

from __future__ import annotations

from collections.abc import Collection

from diffproof.checks import unknown_name
from diffproof.errors import ArgumentError

# In any case, and the split that each means.
SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
}


def meaning(name: str) -> str | None:
    """The split that a name means, None if it is no such name."""
    return SPLITS.get(name.casefold())


def choose_split(names: Collection[str], split: str | None, default: str, source: object) -> str:
    """The name of the split that a user's word means.

    Args:
        names: of all splits.
        split: its name or another word for it (test for testing); None for `default`, or the only split.
        default: "train" or "test".
        source: whose splits they are, for messages.

    Raises:
        ValueError: no such split, or several.
    """
    wanted = split or (next(iter(names)) if len(names) == 1 else default)
    if wanted in names:
        return wanted
    meant = [name for name in names if meaning(name) == (meaning(wanted) or wanted)]
    if len(meant) == 1:
        return meant[0]
    if split is None:
        raise ArgumentError("split", f"expected one of {', '.join(names)}; {source} has no {wanted!r}")
    raise unknown_name("split", split, names)
