"""Options of every command that makes a run folder: which images, and how the networks run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]


def applied(command: Command, options: list[Callable[[Command], Command]]) -> Command:
    """The command with these options, in this order in its help."""
    for option in reversed(options):
        command = option(command)
    return command


def data_options(command: Command) -> Command:
    """--data and which of its images."""
    return applied(
        command,
        [
            click.option("--data", required=True, help="Images; see above."),
            click.option("--split", help="Split of the data. [default: test, or the only one]"),
            click.option(
                "--indices", help="Images: start:stop, start:stop:step, numbers, commas. [default: all]"
            ),
            click.option("--limit", type=int, help="At most so many of these images."),
            click.option(
                "--image-size", type=int, help="Bring images to this size: shorter side, then the centre."
            ),
        ],
    )


def run_options(batch_size: int) -> Callable[[Command], Command]:
    """--seed, how the networks run, and --out."""

    def decorate(command: Command) -> Command:
        return applied(
            command,
            [
                click.option("--seed", default=0, help="Seed of all noise."),
                click.option(
                    "--batch-size",
                    default=batch_size,
                    help="Most rows in a network at once, one image's votes and classes at least; changes no"
                    " result.",
                ),
                click.option("--device", default="auto", help="cpu, cuda or auto."),
                click.option("--precision", default="float32", help="Of the networks: float32 or bfloat16."),
                click.option(
                    "--out",
                    required=True,
                    type=click.Path(path_type=Path),
                    help="Run folder, new or to continue.",
                ),
            ],
        )

    return decorate
