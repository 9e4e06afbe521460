"""Files and folders: what a folder holds, and pickles with code in them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file with its content, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def plain_pickle(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))
