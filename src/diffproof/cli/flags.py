"""Flags as users know them: choices, methods as texts, and errors that name what was typed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from diffproof.catalog import PRECISIONS
from diffproof.errors import ArgumentError


class Command(click.Command):
    """A command whose errors name the flag, the argument or the key of --config that they are about."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click."""
        with _naming_flags(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """See click."""
        with _naming_flags(ctx):
            return super().invoke(ctx)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command


def command() -> Callable[[Callable[..., Any]], Command]:
    """Make a command of a function; its help shows defaults."""
    return click.command(cls=Command, context_settings={"show_default": True})


@contextmanager
def _naming_flags(ctx: click.Context) -> Iterator[None]:
    try:
        yield
    except click.BadParameter as error:
        if error.param is not None and (key := _key(error.param, ctx)):
            raise click.UsageError(f"{key}: {error.message}", ctx) from error
        raise
    except ArgumentError as error:
        method = error.method or _method_with(error.argument, ctx)
        names = [method] if method else error.argument.split(", ")
        flags = {flag: one for one in ctx.command.params for flag in one.opts}
        given = [f"--{name.replace('_', '-')}" for name in names]
        if not flags.keys() >= {*given}:
            raise
        told = ", ".join(_key(flags[flag], ctx) or flag for flag in given)
        inner = f"{error.argument}: " if method and method != error.argument else ""
        raise click.UsageError(f"{told}: {inner}{error.problem}", ctx) from error


def _method_with(setting: str, ctx: click.Context) -> str | None:
    """The option of a kind of methods whose method alone has a setting that is no option itself."""
    from diffproof.methods import describe, parse

    if any(one.name == setting for one in ctx.command.params):
        return None
    kinds = [one.type.kind for one in ctx.command.params if isinstance(one.type, MethodText)]
    given = [(kind, ctx.params[kind]) for kind in kinds if ctx.params.get(kind)]
    having = [kind for kind, text in given if describe(kind, parse(kind, text).name).setting(setting)]
    return having[0] if len(having) == 1 else None


def _key(parameter: click.Parameter, ctx: click.Context) -> str | None:
    """What a parameter is called in the file of --config; None where it does not come from there."""
    if ctx.get_parameter_source(parameter.name or "") is ParameterSource.DEFAULT_MAP:
        return f"{parameter.name} in {ctx.meta['config']}"
    return None


def check_force(out: object) -> None:
    """Raise ValueError if --force is given without something to overwrite."""
    if out is None:
        refuse_given("force", "is for files to write, and none is named")


def refuse_given(name: str, reason: str) -> None:
    """Raise ValueError if the option of this name stands on the command line."""
    if click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE:
        raise ArgumentError(name, reason)


class Names(click.Choice[str]):
    """One of some names; errors tell the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See click."""
        if value in self.choices:
            return str(value)
        near = difflib.get_close_matches(str(value), self.choices, n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        name = (param and param.name) or self.name
        raise ArgumentError(name, f"expected one of {', '.join(self.choices)}, got {value!r}{hint}")


class Open(click.ParamType[str]):
    """Any text, of which a shell completes the most usual."""

    name = "text"

    def __init__(self, *usual: str) -> None:
        self.usual = usual

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """See click."""
        return _starting(incomplete, self.usual)


class MethodText(click.ParamType[str]):
    """A method with its settings, such as densepure:steps=10,votes=40.

    Args:
        kind: "defense", "attack" or "objective".
        can: what it must be able to do, a word of Method.can; None for no matter what. Only for completion.
    """

    name = "NAME[:SETTING=VALUE,…]"

    def __init__(self, kind: str, can: str | None = None) -> None:
        self.kind, self.can = kind, can

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click. The text comes out as it is, once it is known to be right."""
        from diffproof.methods import parse

        if ctx is None or not ctx.resilient_parsing:
            parse(self.kind, value)
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """See click: names, and behind the colon settings."""
        from diffproof.catalog import able
        from diffproof.methods import KINDS
        from diffproof.own_code import plugins

        table = KINDS[self.kind]
        name, colon, settings = incomplete.partition(":")
        if not colon:
            names = [
                *(table if self.can is None else able(table, self.can)),
                *plugins(f"diffproof.{self.kind}s"),
            ]
            return _starting(incomplete, names)
        begun = incomplete[: len(incomplete) - len(settings.rpartition(",")[2])]
        known = table[name].settings if name in table else ()
        return _starting(incomplete, (f"{begun}{setting.name}=" for setting in known))


def _starting(incomplete: str, names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


device_option = click.option(
    "--device",
    type=Open("auto", "cpu", "cuda", "mps"),
    default="auto",
    help="Compute on cpu, cuda, cuda:1 or mps; auto takes cuda if it can.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead, for programs; see docs/runs.md."
)
precision_option = click.option(
    "--precision", type=Names(PRECISIONS), default="float32", help="Run the networks with these numbers."
)
