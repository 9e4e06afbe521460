"""Paths among the arguments of commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class _Expanded(click.Path):
    """A path in which "~" is the home folder, also where no shell has seen it: in --out=~/a, in a file."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip() or "\0" in str(value):
            self.fail(f"expected a path, got {str(value)!r}.", param, ctx)
        return super().convert(os.path.expanduser(value), param, ctx)


PATH = _Expanded(path_type=Path)
