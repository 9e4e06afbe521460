"""The options of a defence, shared by the commands that run one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from diffproof.cli.flags import MethodText
from diffproof.cli.run_options import applied

Command = Callable[..., Any]


def defense_options(
    example: str, *, guide: bool = True, only_purify: bool = False, can: str | None = None
) -> Callable[[Command], Command]:
    """--defense and its networks.

    Args:
        example: a defence with settings, for the help.
        guide: whether a defence may have one.
        only_purify: the denoiser is always needed then, and the classifier is not.
        can: what the defence must be able to do, see Method; None for no matter what.
    """
    if only_purify:
        denoiser = click.option(
            "--denoiser", required=True, help="Use this diffusion model; see diffproof certify --help."
        )
        classifier = click.option(
            "--classifier", help="Label pictures before and after by this classifier; some defences need one."
        )
    else:
        denoiser = click.option("--denoiser", help="Use this diffusion model; see above.")
        classifier = click.option("--classifier", help="Use this classifier; see above.")
    options: list[Callable[[Command], Command]] = [
        click.option(
            "--defense",
            type=MethodText("defense", can),
            required=True,
            help=f"Run this defence with its settings, such as {example}; `diffproof methods` lists them.",
        ),
        denoiser,
        classifier,
    ]
    if guide:
        options.append(
            click.option(
                "--guide",
                help="Guide the defence by this classifier, such as one of `diffproof train guide`.",
            )
        )
    return lambda command: applied(command, options)
