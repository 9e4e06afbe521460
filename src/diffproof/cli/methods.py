"""diffproof methods: what there is, and its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from diffproof.cli.flags import command
from diffproof.cli.screen import echo, screen_width

if TYPE_CHECKING:
    from diffproof.catalog import Method, Setting


# Lines that are longer are hard to read.
_WIDEST = 100
# Of kinds whose plural is not their name's.
_TITLES = {"defense": "defences"}


def _names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from diffproof.methods import KINDS

    return [name for table in KINDS.values() for name in table if name.startswith(incomplete)]


@command()
@click.argument("name", required=False, shell_complete=_names)
def methods(name: str | None) -> None:
    """List defences, attacks and objectives of trainings, or the settings of one.

    NAME is one of the list, or a class of your own, package.module:Class. The settings are those of
    --defense, --attack and --objective NAME:setting=value,setting=[value,value].
    """
    from diffproof.methods import KINDS
    from diffproof.own_code import plugins

    pages = click.HelpFormatter(width=min(screen_width(), _WIDEST))
    if name is None:
        for kind, table in KINDS.items():
            rows = [(method.name, _line(method)) for method in table.values()]
            further = [(plug_in, "(of an installed package)") for plug_in in plugins(f"diffproof.{kind}s")]
            pages.write(f"{_TITLES.get(kind, f'{kind}s')}:\n")
            with pages.indentation():
                pages.write_dl([*rows, *further])
    else:
        method = _described(name)
        pages.write_text(f"{method.name}: {method.line}")
        for title, networks in (("needs", method.networks), ("takes", method.optional)):
            if networks:
                pages.write_text(f"{title}: {', '.join(networks)}")
        if method.settings:
            with pages.indentation():
                pages.write_dl([(setting.name, _explained(setting)) for setting in method.settings])
    echo(pages.getvalue(), nl=False)


def _line(method: Method) -> str:
    can = ", ".join(sorted(method.can))
    return f"{method.line}{f' [{can}]' * bool(can)}"


def _explained(setting: Setting) -> str:
    from diffproof.methods import written_as

    usual = "needed" if setting.required else f"default {written_as(setting, setting.default)}"
    return f"{setting.meaning} ({setting.value.says()}; {usual})".strip()


def _described(name: str) -> Method:
    """The method of this name, or of a class of the user's or a plug-in."""
    from diffproof.checks import unknown_name
    from diffproof.errors import ArgumentError
    from diffproof.methods import KINDS, describe, own_class
    from diffproof.own_code import find, plugins

    for kind, table in KINDS.items():
        if name in table:
            return describe(kind, name)
    for kind in KINDS:
        where = own_class(kind, name)
        if where is None:
            continue
        # What cannot be imported is no more of one kind than of the other.
        found = find("method", where, "class")
        if getattr(found, "kind", None) == kind:
            return describe(kind, name)
        if kind == [*KINDS][-1]:
            bases = " or ".join(f"diffproof.{kind.capitalize()}" for kind in KINDS)
            raise ArgumentError("method", f"expected a class of {bases}, got {found!r}")
    known = [name for kind, table in KINDS.items() for name in (*table, *plugins(f"diffproof.{kind}s"))]
    raise unknown_name("method", name, known)
