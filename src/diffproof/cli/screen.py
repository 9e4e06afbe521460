"""What goes on standard output: sentences and tables of any width for people, JSON for programs."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import click

from diffproof.errors import printable

# Beside a column's text: a space on both sides and a line.
_BETWEEN = 3


# What is written into a pipe is as wide as it is.
_ENDLESS = 100_000
_WIDEST_CELL = 250


def screen_width() -> int:
    """Characters of a line of standard output."""
    # A shell can close standard output: >&-
    if (sys.stdout is not None and sys.stdout.isatty()) or "COLUMNS" in os.environ:
        return max(shutil.get_terminal_size().columns, 20)
    return _ENDLESS


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print what is safe already; a question mark stands for what the screen's encoding lacks.

    Args:
        text: what is printed.
        err: whether it goes on standard error.
        nl: whether the line ends.
    """
    # Where it is given no file, click prints UTF-8 on screens that have ASCII.
    click.echo(text, file=sys.stderr if err else sys.stdout, nl=nl)


def said(text: str) -> None:
    """Print a sentence on standard output, safely; lines break between words, further ones are indented."""
    width, text = screen_width(), printable(text)
    echo(textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


def printed(text: object, *, err: bool = False, indent: str = "") -> None:
    """Print one line safely, unbroken, so that a path in it can be copied.

    Args:
        text: what it says.
        err: whether it goes on standard error.
        indent: before it.
    """
    echo(indent + printable(text), err=err)


def print_json(document: object) -> None:
    """Print what a program reads, which must be all that goes on standard output.

    Args:
        document: dataclasses and named tuples become objects with the names of their fields, in that order;
            numbers keep all digits, and what is no finite number is null.
    """
    echo(json.dumps(_plain(document), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, str | Path):
        return str(value)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def _safe(cell: str) -> str:
    return "\n".join(printable(line, _WIDEST_CELL) for line in cell.splitlines())


@dataclass(frozen=True)
class Rows:
    """What a table says.

    Attributes:
        header: names of the columns.
        rows: a text for each column, perhaps of several lines.
        names: so many columns, the first ones, name a row.
        repeated: further columns, behind the names, that each part of a divided table has.
        sections: which rows a line separates from those before.
        title: above the table.
        numeric: whether what is not repeated are numbers, which end at the right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    repeated: int = 0
    sections: Sequence[bool] = ()
    title: str | None = None
    numeric: bool = True

    def __post_init__(self) -> None:
        rows = [[_safe(cell) for cell in row] for row in self.rows]
        object.__setattr__(self, "rows", rows)

    def width(self, column: int) -> int:
        """Characters that a column takes."""
        from rich.cells import cell_len

        texts = [self.header[column], *(row[column] for row in self.rows)]
        return max(cell_len(line) for text in texts for line in text.splitlines() or [""]) + _BETWEEN

    def parts(self, width: int) -> list[list[int]]:
        """The columns of each of the tables, no wider than this, that it is divided into.

        One with only a single column beside the names may be wider.
        """
        keys = list(range(self.names + self.repeated))
        taken = 1 + sum(map(self.width, keys))
        parts: list[list[int]] = []
        used = width
        for column in range(len(keys), len(self.header)):
            if used + self.width(column) > width:
                parts.append([*keys])
                used = taken
            parts[-1].append(column)
            used += self.width(column)
        return parts

    def numbered(self) -> Rows:
        """The same table with numbers for the rows' names."""
        rows = [[str(number), *row[self.names :]] for number, row in enumerate(self.rows, 1)]
        return replace(self, header=["row", *self.header[self.names :]], rows=rows, names=1)


def show(table: Rows) -> None:
    """Print a table on standard output.

    What is wider than the screen is divided into tables below one another; where it saves some, or names are
    too wide, numbers take the place of the rows' names, which follow. Into a pipe it goes as wide as it is.
    """
    shown, parts = table, table.parts(screen_width())
    if len(parts) > 1:
        numbered = table.numbered()
        fewer = numbered.parts(screen_width())
        if len(fewer) < len(parts) or sum(map(table.width, parts[0])) >= screen_width():
            shown, parts = numbered, fewer
    for number, columns in enumerate(parts):
        _print(shown, columns, table.title if number == 0 else None)
    if shown is not table:
        for number, row in enumerate(table.rows, 1):
            said(f"{number}: {', '.join(row[: table.names])}")


def _print(table: Rows, columns: Sequence[int], title: str | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(title) if title else None)
    for column in columns:
        left = column < table.names + table.repeated or not table.numeric
        made.add_column(Text(table.header[column]), justify="left" if left else "right", no_wrap=True)
    for number, row in enumerate(table.rows):
        if number and number < len(table.sections) and table.sections[number]:
            made.add_section()
        # Text, so that brackets are no markup.
        made.add_row(*(Text(row[column]) for column in columns))
    wide = 1 + sum(map(table.width, columns))
    Console(width=max(min(screen_width(), _ENDLESS), wide)).print(made)
