"""Numbers and texts of flags, read as those of settings are: no 1_000, no digits but 0 to 9, no blanks."""

from __future__ import annotations

import re
from typing import Any

import click

from diffproof.checks import shown
from diffproof.values import number

# Longer ones are beyond every range.
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")
# What is no finite number is refused in the words of its range.
_NOT_FINITE = re.compile(r"[+-]?(nan|inf)", re.IGNORECASE)


class Integer(click.types.IntParamType):
    """A whole number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        if isinstance(value, str) and not _INTEGER.fullmatch(value):
            self.fail(f"{shown(value)} is not a valid integer.", param, ctx)
        return super().convert(value, param, ctx)


class _Number(click.types.FloatParamType):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or _NOT_FINITE.fullmatch(value):
            return super().convert(value, param, ctx)
        try:
            return number(value)
        except ValueError:
            self.fail(f"{shown(value)} is not a valid float.", param, ctx)


class _Text(click.types.StringParamType):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = super().convert(value, param, ctx)
        if not text.strip():
            self.fail(f"expected a text, got {text!r}.", param, ctx)
        return text


# Lists say themselves what they are.
_LISTS = ("indices", "at", "channels", "radii")
_STRICT: dict[type, Any] = {
    click.types.IntParamType: Integer(),
    click.types.FloatParamType: _Number(),
    click.types.StringParamType: _Text(),
}


def strict(command: click.Command) -> None:
    """Make every flag of a command, and of those below it, read its text strictly."""
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        strict(below)
    for parameter in command.params:
        if parameter.name not in _LISTS:
            parameter.type = _STRICT.get(type(parameter.type), parameter.type)
