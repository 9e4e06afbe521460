"""--config: a YAML file with the same names as the flags."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import click

from diffproof.cli.paths import PATH


def _load(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is None:
        return None
    import yaml

    from diffproof.checks import unknown_name
    from diffproof.errors import ArgumentError
    from diffproof.methods import parse

    try:
        # Values stay text, as flags are: YAML's own numbers would turn the indices 10:30 into 630.
        text = path.read_text(encoding="utf-8")
        loaded: Any = yaml.load(text, _once(yaml.BaseLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise click.UsageError(f"config: cannot read {path}: {error}") from None
    if not isinstance(loaded, dict):
        raise click.UsageError(f"config: expected names and values in {path}, got {type(loaded).__name__}")
    # Arguments are typed: a file has one value for a name, they may have many.
    options = (option for option in context.command.params if isinstance(option, click.Option))
    known = {option.name for option in options if option.name} - {"config", "help"}
    values = {str(name).replace("-", "_"): value for name, value in loaded.items()}
    values = {name: value for name, value in values.items() if value not in ("null", "~")}
    for kind in ("defense", "attack"):
        if isinstance(values.get(kind), dict) and kind in known:
            try:
                values[kind] = str(parse(kind, _without_null(values[kind])))
            except ArgumentError as error:
                raise click.UsageError(f"config: {error}") from None
    _warn_of_other_code(text)
    for name, value in values.items():
        if name not in known:
            raise click.UsageError(str(unknown_name("config", name, known)))
        if not isinstance(value, str):
            raise click.UsageError(f"config: expected one value for {name}, got {value}")
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _once(loader: type[Any]) -> type[Any]:
    """The loader, which refuses a name that is given twice."""
    import yaml

    class Once(loader):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [self.construct_object(key, deep=True) for key, _ in node.value]
            for name in names:
                if names.count(name) > 1:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{name} is given twice", node.start_mark
                    )
            return super().construct_mapping(node, deep)

    return Once


def _without_null(method: dict[str, Any]) -> dict[str, Any]:
    """A method's mapping with YAML's null, which stays text here, as None."""
    return {name: None if value in ("null", "~", "") else value for name, value in method.items()}


# What runs write below their settings; see runs.store.settings_text.
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


config_option = click.option(
    "--config",
    type=PATH,
    is_eager=True,
    expose_value=False,
    callback=_load,
    help="Read these flags from a YAML file, under the same names; the command line wins.",
)
