"""diffproof methods: what there is, and its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from diffproof.catalog import Method, Setting


@click.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List defences and attacks, or the settings of one.

    NAME is a defence or an attack of the list, or a class of your own, package.module:Class. The settings
    are those of --defense and --attack NAME:setting=value,setting=[value,value].
    """
    from diffproof.catalog import ATTACKS, DEFENSES

    if name is None:
        for kind, table in (("defences", DEFENSES), ("attacks", ATTACKS)):
            click.echo(f"{kind}:")
            for method in table.values():
                can = ", ".join(sorted(method.can))
                click.echo(f"  {method.name:14}{method.line}{f' [{can}]' * bool(can)}")
        return
    method = _described(name)
    click.echo(f"{method.name}: {method.line}")
    if method.takes:
        click.echo(f"needs: {', '.join(method.networks)}")
    for setting in method.settings:
        usual = "needed" if setting.required else f"default {_written(setting)}"
        click.echo(f"  {setting.name} ({setting.value.says()}; {usual}): {setting.meaning}".rstrip(": "))


def _described(name: str) -> Method:
    from diffproof.catalog import ATTACKS, DEFENSES
    from diffproof.checks import unknown_name
    from diffproof.methods import describe
    from diffproof.own_code import address

    for kind, table in (("defense", DEFENSES), ("attack", ATTACKS)):
        if name in table:
            return describe(kind, name)
    if address(name) is None:
        raise unknown_name("method", name, [*DEFENSES, *ATTACKS])
    try:
        return describe("defense", name)
    except ValueError:
        return describe("attack", name)


def _written(setting: Setting) -> str:
    from diffproof.values import Optional, written

    if setting.default is None and isinstance(setting.value, Optional):
        return setting.value.word
    return written(setting.default)
