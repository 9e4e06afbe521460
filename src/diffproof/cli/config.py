"""--config: a YAML file with the same names as the flags."""

from __future__ import annotations

import json
import re
import reprlib
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from diffproof.cli.paths import PATH
from diffproof.errors import ArgumentError

# That an option is not parsed yet; None is that there is no file.
_UNREAD = object()


def _when_both_are_read(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Load the file once both options are known, whichever stands first."""
    context.meta[f"config.{parameter.name}"] = value
    path, trust = (context.meta.get(f"config.{name}", _UNREAD) for name in ("config", "trust"))
    if trust is True and path is None:
        raise ArgumentError("trust", "is for --config, which is not given")
    if _UNREAD not in (path, trust) and path is not None:
        _load(context, path, trust)
    return value


def _load(context: click.Context, path: Path, trust: bool) -> None:
    import yaml

    from diffproof.checks import unknown_name
    from diffproof.files import read_text
    from diffproof.methods import own_class, parse
    from diffproof.texts import plain

    try:
        # Values stay text, as flags are: YAML's own numbers would turn the indices 10:30 into 630.
        text = read_text("config", path)
        loaded: Any = yaml.load(text, plain(yaml.BaseLoader))
    except ArgumentError as error:
        raise ArgumentError("config", f"cannot read {path}: {error.problem}") from None
    except (OSError, yaml.YAMLError, RecursionError) as error:
        raise ArgumentError("config", f"cannot read {path}: {error}") from None
    if not isinstance(loaded, dict):
        raise ArgumentError("config", f"expected names and values in {path}, got {type(loaded).__name__}")
    # Arguments are typed: a file has one value for a name, they may have many.
    options = (option for option in context.command.params if isinstance(option, click.Option))
    known = {option.name for option in options if option.name} - {"config", "trust", "help"}
    values = {str(name).replace("-", "_"): value for name, value in loaded.items()}
    # That a seed was drawn is told of one run; who repeats that gives it.
    values = {name: one for name, one in values.items() if one not in ("null", "~") and name != "seed_drawn"}
    for kind in ("defense", "attack"):
        if isinstance(values.get(kind), dict) and kind in known:
            try:
                method = _without_null(values[kind])
                where = None if trust else own_class(kind, method)
                # To parse a class's settings imports it.
                values[kind] = str(where or parse(kind, method))
            except ArgumentError as error:
                raise ArgumentError("config", f"{error}") from None
    if isinstance(values.get("class_map"), dict) and "class_map" in known:
        from diffproof.data.classes import load_yaml

        # The map itself, whose numbers are no texts.
        typed = {str(name).replace("-", "_"): value for name, value in load_yaml(text).items()}
        values["class_map"] = json.dumps(typed["class_map"])
    _warn_of_other_code(text)
    if "noise" in known - values.keys() and values.keys() >= _WRITTEN:
        warnings.warn(
            f"config: {path} is of a run whose noise was continuous, as none was on a grid then; here it is"
            " on a grid, if --noise does not say otherwise",
            stacklevel=2,
        )
    if "exact_share" in known - values.keys() and values.keys() >= {*_WRITTEN, "futility"}:
        # Of a sequential run before there was an exact test.
        values["exact_share"] = "0"
    context.meta["config"] = path
    for name, value in values.items():
        if name not in known:
            raise unknown_name("config", name, known)
        if not isinstance(value, str):
            raise ArgumentError("config", f"expected one value for {name}, got {reprlib.repr(value)}")
    given = values if trust else {**values, **_refusals(path, values)}
    context.default_map = {**(context.default_map or {}), **given}


def _refusals(path: Path, values: Mapping[str, str]) -> dict[str, Callable[[], str]]:
    """In place of values that run code or overwrite: what click calls where the command line says nothing."""
    from diffproof.runs.code import own_places

    def refusal(name: str, what: str) -> Callable[[], str]:
        def refuse() -> str:
            raise ArgumentError(
                "config",
                f"{path} names {what}: --trust runs what it names, if you trust who made it; --{name} on the"
                " command line says it anew",
            )

        return refuse

    code: dict[str, str] = {}
    for name, text in values.items():
        # What has no form that it may have, the flag itself refuses.
        with suppress(ArgumentError):
            code |= {one: f"the code {where[0]}" for one, where in own_places({name: text}).items()}
    # Whoever runs a cluster runs code on all that join it.
    if "ray" in values:
        code["ray"] = f"the cluster {values['ray']}"
    # The file says where to write, too, and may lie.
    if values.get("force", "false").lower() not in _NO:
        code["force"] = "files to overwrite"
    return {name: refusal(name, what) for name, what in code.items()}


# What a flag that is not given may be called.
_NO = ("", "0", "f", "false", "n", "no", "off")


def _without_null(method: dict[str, Any]) -> dict[str, Any]:
    """A method's mapping with YAML's null, which stays text here, as None."""
    return {name: None if value in ("null", "~", "") else value for name, value in method.items()}


# What the settings.yaml of every certification says, and hardly one that a user writes.
_WRITTEN = {"data", "defense", "sigma", "n0", "n", "alpha", "bound", "seed", "batch_size", "device"}
# What runs write below their settings; see runs.settings_file.settings_text.
_CODE = re.compile(r"^#   (?P<module>[\w.]+): (?P<digest>[0-9a-f]{64})$", re.MULTILINE)


def _warn_of_other_code(text: str) -> None:
    """Warn where a module of the user's is not the one that a run's settings.yaml was written with."""
    from diffproof.own_code import source_hash

    for match in _CODE.finditer(text):
        if source_hash(match["module"]) != match["digest"]:
            warnings.warn(
                f"config: the code of {match['module']} is not that which these settings were written with",
                stacklevel=2,
            )


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--config and --trust."""
    shared: dict[str, Any] = {
        "is_eager": True,
        "expose_value": False,
        "callback": _when_both_are_read,
    }
    trusting = click.option(
        "--trust",
        is_flag=True,
        help="Run code, join the cluster and overwrite the files that --config names.",
        **shared,
    )
    reading = click.option(
        "--config",
        type=PATH,
        help="Read these flags from a YAML file, under the same names; the command line wins.",
        **shared,
    )
    return reading(trusting(command))
