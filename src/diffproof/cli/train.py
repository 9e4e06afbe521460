"""diffproof train: denoisers, classifiers and guides."""

from __future__ import annotations

from typing import Any

import click

from diffproof.catalog import ADVERSARIAL
from diffproof.cli.classifier_training import ClassifierOptions, classifier_options, train_and_write
from diffproof.cli.flags import Group, Names
from diffproof.cli.train_denoiser import denoiser
from diffproof.cli.training_options import extra_options, objective_option, training_options


@click.group(cls=Group)
def train() -> None:
    """Train a denoiser, a classifier or a guide on a data set.

    An interrupted training continues when the same command is given again. For several GPUs:

    \b
      accelerate launch --multi_gpu -m diffproof train denoiser …
    """


train.add_command(denoiser)


@train.command("classifier", context_settings={"show_default": True})
@training_options(iterations=1000, learning_rate=0.002)
@click.option(
    "--noise-sigma", default=0.0, help="Add noise of this standard deviation, ≥ 0; pixels lie in [0, 1]."
)
@objective_option("train")
@click.option(
    "--adversarial",
    type=Names(ADVERSARIAL),
    help="Train against perturbations by pgd (PGD-AT), trades or pat (perceptual). [default: none]",
)
@extra_options
@classifier_options
def classifier(**given: Any) -> None:
    """Train a classifier: on clean images, under noise for randomized smoothing, or adversarially.

    It is a new small network, or that of --classifier, trained further; a file of module.path:factory is then
    given as module.path:factory@FILE. --trades-weight to --inner-step-size are for --adversarial. Beside the
    weights comes the loss, .loss.csv and .loss.png.
    """
    train_and_write(*ClassifierOptions.parted(given))


@train.command("guide", context_settings={"show_default": True})
@training_options(iterations=1000, learning_rate=0.002)
@classifier_options
def guide(**given: Any) -> None:
    """Train the robust classifier that guides the defence agdm.

    It minimises cross-entropy on clean images + λ·max KL(f(x) ‖ f(x + δ)), as train classifier --adversarial
    trades does, and loads as a classifier. It is a new small network, or that of --classifier, trained
    further. Beside the weights comes the loss, .loss.csv and .loss.png.
    """
    train_and_write(*ClassifierOptions.parted(given))
