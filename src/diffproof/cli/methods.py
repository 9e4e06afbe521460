"""diffproof methods: what there is, and its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from diffproof.catalog import Method


@click.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List defences and attacks, or the settings of one.

    NAME is a defence or an attack of the list, or a class of your own, package.module:Class. The settings
    are those of --defense and --attack NAME:setting=value,setting=[value,value].
    """
    from diffproof.catalog import ATTACKS, DEFENSES
    from diffproof.methods import written_as
    from diffproof.own_code import plugins

    if name is None:
        for kind, title, table in (("defenses", "defences", DEFENSES), ("attacks", "attacks", ATTACKS)):
            click.echo(f"{title}:")
            for method in table.values():
                can = ", ".join(sorted(method.can))
                click.echo(f"  {method.name:14}{method.line}{f' [{can}]' * bool(can)}")
            for plug_in in plugins(f"diffproof.{kind}"):
                click.echo(f"  {plug_in:14}(of an installed package)")
        return
    method = _described(name)
    click.echo(f"{method.name}: {method.line}")
    for title, networks in (("needs", method.networks), ("takes", method.optional)):
        if networks:
            click.echo(f"{title}: {', '.join(networks)}")
    for setting in method.settings:
        usual = "needed" if setting.required else f"default {written_as(setting, setting.default)}"
        click.echo(f"  {setting.name} ({setting.value.says()}; {usual}): {setting.meaning}".rstrip(": "))


def _described(name: str) -> Method:
    """The defence or attack of this name, or of a class of the user's or a plug-in."""
    from diffproof.catalog import ATTACKS, DEFENSES
    from diffproof.checks import unknown_name
    from diffproof.errors import ArgumentError
    from diffproof.methods import describe, own_class
    from diffproof.own_code import find, plugins

    tables = {"defense": DEFENSES, "attack": ATTACKS}
    for kind, table in tables.items():
        if name in table:
            return describe(kind, name)
    for kind in tables:
        where = own_class(kind, name)
        if where is None:
            continue
        # What cannot be imported is no more of one kind than of the other.
        found = find("method", where, "class")
        if getattr(found, "kind", None) == kind:
            return describe(kind, name)
        if kind == "attack":
            raise ArgumentError(
                "method", f"expected a class of diffproof.Defense or diffproof.Attack, got {found!r}"
            )
    known = [*DEFENSES, *ATTACKS, *plugins("diffproof.defenses"), *plugins("diffproof.attacks")]
    raise unknown_name("method", name, known)
