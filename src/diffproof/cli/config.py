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
        loaded: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise click.UsageError(f"config: cannot read {path}: {error}") from None
    if not isinstance(loaded, dict):
        raise click.UsageError(f"config: expected names and values in {path}, got {type(loaded).__name__}")
    known = {option.name for option in context.command.params if option.name} - {"config", "help"}
    values = {str(name).replace("-", "_"): value for name, value in loaded.items()}
    for name in values:
        if name not in known:
            raise click.UsageError(str(unknown_name("config", name, known)))
    context.default_map = {**(context.default_map or {}), **values}
    return path


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_load,
    help="YAML file with the same names as these flags; flags on the command line win.",
)
