"""The options of a defence, shared by the commands that run one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from diffproof.cli.run_options import applied

Command = Callable[..., Any]


def defense_options(
    example: str, *, guide: bool = True, only_purify: bool = False
) -> Callable[[Command], Command]:
    """--defense and its networks.

    Args:
        example: a defence with settings, for the help.
        guide: whether a defence may have one.
        only_purify: the denoiser is always needed then, and the classifier is not.
    """
    if only_purify:
        denoiser = click.option(
            "--denoiser", required=True, help="Diffusion model; see diffproof certify --help."
        )
        classifier = click.option("--classifier", help="To label pictures before and after; coup needs it.")
    else:
        denoiser = click.option("--denoiser", help="Diffusion model; see above.")
        classifier = click.option("--classifier", help="Classifier; see above.")
    options: list[Callable[[Command], Command]] = [
        click.option(
            "--defense",
            required=True,
            help=f"Defence with its settings, such as {example}; `diffproof methods` lists them.",
        ),
        denoiser,
        classifier,
    ]
    if guide:
        options.append(click.option("--guide", help="Classifier of `diffproof train guide`, for agdm."))
    return lambda command: applied(command, options)
