"""All entries by their names."""

from __future__ import annotations

import difflib

from diffproof.errors import ArgumentError
from diffproof.reproduce.entry import Entry
from diffproof.reproduce.papers import agdm, dds, densepure, rdc

ENTRIES: dict[str, Entry] = {
    entry.name: entry for paper in (densepure, dds, rdc, agdm) for entry in paper.ENTRIES
}


def find(name: str) -> Entry:
    """A table or figure by name.

    Raises:
        ValueError: there is none.
    """
    if name in ENTRIES:
        return ENTRIES[name]
    near = difflib.get_close_matches(name, ENTRIES, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ArgumentError("entry", f"unknown name {name!r}{hint}; diffproof reproduce list has all")
