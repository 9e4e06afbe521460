"""diffproof train denoiser and diffproof train classifier."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from diffproof.cli.training_options import (
    TrainingOptions,
    fit_with_progress,
    training_options,
    write_weights,
)

_HELD_OUT_SIGMAS = (0.1, 0.25, 0.5, 1.0)


@click.group()
def train() -> None:
    """Train a denoiser or a classifier on a data set.

    An interrupted training continues when the same command is given again. For several GPUs:

    \b
      accelerate launch --multi_gpu -m diffproof train denoiser …
    """


@train.command("denoiser", context_settings={"show_default": True})
@training_options(iterations=10_000, learning_rate=0.001)
@click.option("--extra-data", help="Second set of images with the same classes, e.g. of lesser quality.")
@click.option("--extra-share", default=0.5, help="Share of images drawn from --extra-data.")
@click.option("--channels", default="16,32,48", help="Channels at each resolution, multiples of 8.")
@click.option("--layers", default=1, help="Residual blocks at each resolution.")
@click.option("--patch", default=1, help="Feed squares of patch × patch pixels as channels.")
@click.option("--attention", is_flag=True, help="Self-attention at the lowest resolution.")
@click.option("--dropout", default=0.0, help="Dropout inside the residual blocks.")
@click.option("--schedule", default="cosine", help="cosine, linear or scaled_linear.")
@click.option("--timesteps", default=1000, help="Timesteps of the schedule.")
@click.option("--label-dropout", default=0.1, help="Share of labels replaced by the null label.")
def denoiser(
    extra_data: str | None,
    extra_share: float,
    channels: str,
    layers: int,
    patch: int,
    attention: bool,
    dropout: float,
    schedule: str,
    timesteps: int,
    label_dropout: float,
    **common: Any,
) -> None:
    """Train a class-conditional denoiser, with a null label for unconditional use.

    Beside the weights come a sheet of samples, .samples.png (a row for each class, the last without a
    label), and the loss, .loss.csv and .loss.png.
    """
    from diffproof.training.batches import Mixture
    from diffproof.training.denoiser import UNetSettings, denoising_errors, describe_denoiser, train_denoiser
    from diffproof.training.sheets import draw_samples, save_samples

    options = TrainingOptions(**common)
    options.check()
    try:
        widths = [int(width) for width in channels.split(",")]
    except ValueError:
        raise click.UsageError(f"channels: expected numbers with commas between, got {channels!r}") from None
    settings = options.settings()
    images = options.training_images()
    data = Mixture(images, options.extra_images(extra_data), extra_share=extra_share, flip=options.flip)
    unet = UNetSettings(widths, layers, dropout, patch, attention)
    description = describe_denoiser(images, unet, schedule, timesteps)
    held_out = options.held_out()
    trained, losses = fit_with_progress(
        options, partial(train_denoiser, data, description, settings, label_dropout=label_dropout)
    )
    sigmas = [sigma for sigma in _HELD_OUT_SIGMAS if trained.sigma_min <= sigma <= trained.sigma_max]
    errors = [] if held_out is None else denoising_errors(trained, held_out, sigmas, options.seed)
    metrics = {
        f"rms_error_at_{sigma:g}": round(error, 6) for sigma, error in zip(sigmas, errors, strict=False)
    }
    save_samples(options.out.with_suffix(".samples.png"), draw_samples(trained, options.seed))
    write_weights(options, trained.network.state_dict(), description, losses, metrics)
    if held_out is not None:
        shown = ", ".join(
            f"{error:.4f} at sigma = {sigma:g}" for sigma, error in zip(sigmas, errors, strict=True)
        )
        click.echo(f"root-mean-square error on {len(held_out)} test images: {shown}")


@train.command("classifier", context_settings={"show_default": True})
@training_options(iterations=1000, learning_rate=0.002)
@click.option("--width", default=16, help="Channels of the first layer.")
@click.option("--noise-sigma", default=0.0, help="Gaussian noise added to the images, in [0, 1] pixels.")
def classifier(width: int, noise_sigma: float, **common: Any) -> None:
    """Train a small classifier, on clean images or with Gaussian noise (the baseline of smoothing).

    Beside the weights comes the loss, .loss.csv and .loss.png.
    """
    from diffproof.training.batches import Mixture
    from diffproof.training.classifier import accuracy, describe_classifier, train_classifier

    options = TrainingOptions(**common)
    options.check()
    settings = options.settings()
    images = options.training_images()
    description = describe_classifier(images, width)
    held_out = options.held_out()
    data = Mixture(images, flip=options.flip)
    trained, losses = fit_with_progress(
        options, partial(train_classifier, data, description, settings, noise_sigma=noise_sigma)
    )
    metrics = {}
    if held_out is not None:
        metrics["accuracy"] = round(accuracy(trained, held_out), 6)
        if noise_sigma:
            metrics["noisy_accuracy"] = round(accuracy(trained, held_out, noise_sigma, options.seed), 6)
    write_weights(options, trained.network.state_dict(), description, losses, metrics)
    if held_out is not None:
        click.echo(f"accuracy on {len(held_out)} clean test images: {metrics['accuracy']:.2%}")
        if noise_sigma:
            click.echo(f"with noise of sigma = {noise_sigma:g}: {metrics['noisy_accuracy']:.2%}")
