"""diffproof train denoiser and diffproof train classifier."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

_HELD_OUT_SIGMAS = (0.1, 0.25, 0.5, 1.0)


@click.group()
def train() -> None:
    """Train a denoiser or a classifier on a data set."""


def _check_out(out: Path, force: bool) -> None:
    if out.suffix != ".safetensors":
        raise ValueError(f"out: expected a .safetensors file, got {out}")
    if out.exists() and not force:
        raise ValueError(f"out: {out} exists; --force overwrites it")
    if not out.parent.is_dir():
        raise ValueError(f"out: no such folder: {out.parent}")


def _command(name: str, flags: dict[str, object]) -> str:
    words = [f"--{flag} {shlex.quote(str(value))}" for flag, value in flags.items()]
    return f"diffproof train {name} {' '.join(words)}"


@train.command("denoiser", context_settings={"show_default": True})
@click.option("--data", required=True, help="Data set: digits.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Weights file, .safetensors.")
@click.option("--channels", default="16,32,48", help="Channels at each resolution, multiples of 8.")
@click.option("--layers", default=1, help="Residual blocks at each resolution.")
@click.option("--dropout", default=0.0, help="Dropout inside the residual blocks.")
@click.option("--schedule", default="cosine", help="cosine, linear or scaled_linear.")
@click.option("--timesteps", default=1000, help="Timesteps of the schedule.")
@click.option("--label-dropout", default=0.1, help="Share of labels replaced by the null label.")
@click.option("--iterations", default=10_000, help="Optimiser steps.")
@click.option("--batch-size", default=128, help="Images a step.")
@click.option("--learning-rate", default=0.001, help="Peak learning rate.")
@click.option("--seed", default=0, help="Seed of initialisation, batches and noise.")
@click.option("--force", is_flag=True, help="Overwrite the weights file.")
def denoiser(
    data: str,
    out: Path,
    channels: str,
    layers: int,
    dropout: float,
    schedule: str,
    timesteps: int,
    label_dropout: float,
    iterations: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    force: bool,
) -> None:
    """Train a class-conditional denoiser, with a null label for unconditional use."""
    from diffproof.data import load_data
    from diffproof.runs.progress import training_progress
    from diffproof.training.denoiser import UNetSettings, denoising_errors, describe_denoiser, train_denoiser
    from diffproof.training.loop import TrainSettings
    from diffproof.weights import save_weights

    _check_out(out, force)
    try:
        widths = [int(width) for width in channels.split(",")]
    except ValueError:
        raise click.UsageError(f"channels: expected numbers with commas between, got {channels!r}") from None
    settings = TrainSettings(iterations, batch_size, learning_rate, seed=seed)
    images = load_data(data, "train")
    unet = UNetSettings(widths, layers, dropout)
    description = describe_denoiser(images, unet, schedule, timesteps)
    with training_progress(iterations) as on_step:
        trained = train_denoiser(images, description, settings, label_dropout=label_dropout, on_step=on_step)
    held_out = load_data(data, "test")
    sigmas = [sigma for sigma in _HELD_OUT_SIGMAS if trained.sigma_min <= sigma <= trained.sigma_max]
    errors = denoising_errors(trained, held_out, sigmas, seed)
    command = _command(
        "denoiser",
        {
            "data": data,
            "channels": channels,
            "layers": layers,
            "dropout": dropout,
            "schedule": schedule,
            "timesteps": timesteps,
            "label-dropout": label_dropout,
            "iterations": iterations,
            "batch-size": batch_size,
            "learning-rate": learning_rate,
            "seed": seed,
            "out": out.name,
        },
    )
    metrics = {
        f"rms_error_at_{sigma:g}": round(error, 6) for sigma, error in zip(sigmas, errors, strict=True)
    }
    description["training"] = {"command": command, "seed": seed, "test": metrics}
    save_weights(out, trained.network.state_dict(), description)
    shown = ", ".join(
        f"{error:.4f} at sigma = {sigma:g}" for sigma, error in zip(sigmas, errors, strict=True)
    )
    click.echo(f"root-mean-square error on {len(held_out)} test images: {shown}")
    click.echo(f"written: {out}")


@train.command("classifier", context_settings={"show_default": True})
@click.option("--data", required=True, help="Data set: digits.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Weights file, .safetensors.")
@click.option("--width", default=16, help="Channels of the first layer.")
@click.option("--iterations", default=1000, help="Optimiser steps.")
@click.option("--batch-size", default=128, help="Images a step.")
@click.option("--learning-rate", default=0.002, help="Peak learning rate.")
@click.option("--seed", default=0, help="Seed of initialisation and batches.")
@click.option("--force", is_flag=True, help="Overwrite the weights file.")
def classifier(
    data: str,
    out: Path,
    width: int,
    iterations: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    force: bool,
) -> None:
    """Train an ordinary classifier on clean images."""
    from diffproof.data import load_data
    from diffproof.runs.progress import training_progress
    from diffproof.training.classifier import accuracy, describe_classifier, train_classifier
    from diffproof.training.loop import TrainSettings
    from diffproof.weights import save_weights

    _check_out(out, force)
    settings = TrainSettings(iterations, batch_size, learning_rate, seed=seed)
    images = load_data(data, "train")
    description = describe_classifier(images, width)
    with training_progress(iterations) as on_step:
        trained = train_classifier(images, description, settings, on_step)
    held_out = load_data(data, "test")
    share = accuracy(trained, held_out)
    command = _command(
        "classifier",
        {
            "data": data,
            "width": width,
            "iterations": iterations,
            "batch-size": batch_size,
            "learning-rate": learning_rate,
            "seed": seed,
            "out": out.name,
        },
    )
    description["training"] = {"command": command, "seed": seed, "test": {"accuracy": round(share, 6)}}
    save_weights(out, trained.network.state_dict(), description)
    click.echo(f"accuracy on {len(held_out)} clean test images: {share:.2%}")
    click.echo(f"written: {out}")
