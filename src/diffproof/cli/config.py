"""--config: a YAML file with the same names as the flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


def _load(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is None:
        return None
    import yaml

    from diffproof.checks import unknown_name

    try:
        # Values stay text, as flags are: YAML's own numbers would turn the indices 10:30 into 630.
        loaded: Any = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise click.UsageError(f"config: cannot read {path}: {error}") from None
    if not isinstance(loaded, dict):
        raise click.UsageError(f"config: expected names and values in {path}, got {type(loaded).__name__}")
    # Arguments are typed: a file has one value for a name, they may have many.
    options = (option for option in context.command.params if isinstance(option, click.Option))
    known = {option.name for option in options if option.name} - {"config", "help"}
    values = {str(name).replace("-", "_"): value for name, value in loaded.items()}
    values = {name: value for name, value in values.items() if value not in ("null", "~")}
    values |= {name: _as_text(values[name]) for name in ("defense", "attack") if name in values}
    for name, value in values.items():
        if name not in known:
            raise click.UsageError(str(unknown_name("config", name, known)))
        if not isinstance(value, str):
            raise click.UsageError(f"config: expected one value for {name}, got {value}")
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _as_text(method: Any) -> Any:
    """A method that is a mapping with `name` and settings as its text; anything else as it is."""
    if not isinstance(method, dict) or "name" not in method:
        return method
    settings = [
        f"{name}={'[' + ','.join(map(str, value)) + ']' if isinstance(value, list) else value}"
        for name, value in method.items()
        if name != "name"
    ]
    return method["name"] + f":{','.join(settings)}" * bool(settings)


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_load,
    help="Read these flags from a YAML file, under the same names; the command line wins.",
)
