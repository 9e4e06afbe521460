"""How results look in a notebook: tables of HTML, escaped, and without colours, so that dark pages do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from diffproof.errors import printable


def table(title: str, rows: Iterable[Sequence[object]], header: Sequence[object] = ()) -> str:
    """A table of HTML below a line of text.

    Args:
        title: the line.
        rows: what the cells say; the first of each names its row.
        header: what the columns are called; none for no such line.
    """
    head = f"<thead><tr>{''.join(map(_name, header))}</tr></thead>" if header else ""
    body = "".join(f"<tr>{_name(name)}{''.join(map(_cell, cells))}</tr>" for name, *cells in rows)
    return f"<div><p>{_text(title)}</p><table>{head}<tbody>{body}</tbody></table></div>"


def _name(value: object) -> str:
    return f'<th style="text-align: left">{_text(value)}</th>'


def _cell(value: object) -> str:
    return f'<td style="text-align: left">{_text(value)}</td>'


def _text(value: object) -> str:
    return escape(printable(value))
