"""The options of a defence, shared by the commands that run one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from diffproof.cli.run_options import applied

Command = Callable[..., Any]

_PURIFYING = "diffpure, gdmp, gradual, coup, agdm, likelihood or rdc"
_WEIGHTINGS = "simple, vlb, edm or edm-authors"
_VOTING: list[Callable[[Command], Command]] = [
    click.option("--votes", type=int, help="Samples that vote on a draw; densepure only."),
    click.option("--consensus", type=int, help="Stop after so many equal votes in a row; densepure only."),
    click.option("--step-rule", help="authors, paper or log-sigma; densepure only."),
]


def defense_options(*, only_purify: bool) -> Callable[[Command], Command]:
    """A defence, its networks and its settings, which have the method's own defaults.

    Args:
        only_purify: leave out what certifiable defences take; the classifier is not needed then.
    """
    if only_purify:
        method, sigma = f"{_PURIFYING}.", "in place of --t-star; diffpure only."
        denoiser = click.option(
            "--denoiser", required=True, help="Diffusion model; see diffproof certify --help."
        )
        classifier = click.option(
            "--classifier", help="To label pictures before and after; coup needs it, rdc takes none."
        )
    else:
        method = f"none, dds, densepure, dc, {_PURIFYING}."
        sigma = "for dds and densepure, or diffpure in place of --t-star."
        denoiser = click.option("--denoiser", help="Diffusion model; see above. Not used by none.")
        classifier = click.option("--classifier", help="Classifier; see above. None for dc and rdc.")
    options: list[Callable[[Command], Command]] = [
        click.option("--defense", required=True, help=method),
        denoiser,
        classifier,
        click.option("--guide", help="Classifier of `diffproof train guide`; agdm only."),
        click.option("--t-star", help="Noise level as a time in (0, 1]; gradual: one a round, with commas."),
        click.option("--defense-sigma", type=float, help=f"Noise level in [0, 1] pixels, {sigma}"),
        click.option("--steps", help="Denoiser evaluations of a round, or full; gradual: as --t-star."),
        click.option("--solver", help="sde, ode or ddpm."),
        click.option("--rounds", type=int, help="How often to diffuse and denoise; gdmp only."),
        click.option("--likeness", help="To the input, mse or ssim; gdmp only."),
        click.option("--scale", type=float, help="Strength of the guidance; gdmp, coup and agdm."),
        click.option(
            "--purify-budget", help="Norm of what to remove, such as 8/255; gdmp (ℓ∞), likelihood and rdc."
        ),
        click.option("--where", help="What the guide sees, state or clean; agdm only."),
        click.option("--label", help="What the guide pulls to, guide, step or none; agdm only."),
        click.option("--distance", help="Between the guide's answers, kl or l2; agdm only."),
        click.option(
            "--diffuse/--no-diffuse", default=None, help="Diffuse the image first; coup only. [default: no]"
        ),
        *diffusion_loss_options("dc, likelihood and rdc"),
        click.option("--samples", type=int, help="Draws a level; dc, likelihood and rdc. [default: 1]"),
        click.option(
            "--shared-noise/--fresh-noise",
            default=None,
            help="Between the classes; dc and rdc. [default: shared]",
        ),
        click.option("--reduction", help="Of pixels' errors, norm or mean; dc and rdc. [default: norm]"),
        click.option(
            "--likelihood-timesteps", help="Of rdc's likelihood maximisation, as --timesteps. [default: all]"
        ),
        click.option("--likelihood-iterations", type=int, help="Likelihood and rdc. [default: 10]"),
        click.option("--likelihood-norm", help="Of its budget, linf or l2; likelihood, rdc. [default: linf]"),
        click.option(
            "--variant", help="Whose maximisation, paper or authors; likelihood and rdc. [default: paper]"
        ),
        *([] if only_purify else _VOTING),
    ]
    return lambda command: applied(command, options)


def diffusion_loss_options(methods: str) -> list[Callable[[Command], Command]]:
    """The noise levels of a diffusion loss and their weights, for these methods."""
    return [
        click.option(
            "--timesteps",
            help=f"Of the loss: all, first:N (the lowest) or uniform:N; {methods}. [default: all]",
        ),
        click.option("--weighting", help=f"Of them: {_WEIGHTINGS}; {methods}. [default: simple]"),
    ]
