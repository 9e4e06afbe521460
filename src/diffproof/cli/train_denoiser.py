"""diffproof train denoiser."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from diffproof.catalog import PRECONDITIONINGS, SCHEDULES
from diffproof.cli.flags import MethodText, Names, command, refuse_given
from diffproof.cli.screen import printed
from diffproof.cli.training_options import (
    TrainingOptions,
    extra_options,
    fit_with_progress,
    training_options,
    write_weights,
)
from diffproof.errors import ArgumentError
from diffproof.wording import counted

if TYPE_CHECKING:
    from diffproof.classifiers.base import Classifier
    from diffproof.data.images import ImageData
    from diffproof.denoisers.network import NetworkDenoiser
    from diffproof.training.denoising.base import DenoiserObjective

_HELD_OUT_SIGMAS = (0.1, 0.25, 0.5, 1.0)
# What describes a new network, and its noise levels.
_NETWORK = ("channels", "layers", "patch", "attention", "multi_head", "dropout")
_LEVELS = ("schedule", "timesteps", "single_sigma", "preconditioning")


@command()
@training_options(iterations=10_000, learning_rate=0.001)
@extra_options
@click.option(
    "--denoiser",
    help="Train this one further, no new network: a file of this command, or for adbm openai:PRESET@FILE or"
    " score_sde:PRESET@FILE.",
)
@click.option("--channels", default="16,32,48", help="Give the resolutions these channels, multiples of 8.")
@click.option("--layers", default=1, help="Give each resolution this many residual blocks, ≥ 1.")
@click.option("--patch", default=1, help="Feed squares of this many pixels a side as channels, ≥ 1.")
@click.option("--attention", is_flag=True, help="Add self-attention at the lowest resolution.")
@click.option("--multi-head", is_flag=True, help="Serve all classes in one pass, each by an output head.")
@click.option("--dropout", default=0.0, help="Drop this share in the residual blocks, in [0, 1).")
@click.option("--schedule", type=Names(SCHEDULES), default="cosine", help="Add noise on this schedule.")
@click.option(
    "--preconditioning",
    type=Names(PRECONDITIONINGS),
    default="none",
    help="Let the network predict the noise (none), or as EDM's (Karras et al. 2022).",
)
@click.option("--timesteps", default=1000, help="Divide the schedule into this many timesteps, ≥ 1.")
@click.option(
    "--label-dropout", default=0.1, help="Replace this share of labels by the null label, in [0, 1]."
)
@click.option(
    "--single-sigma", type=float, help="Train for this noise level alone, > 0, without labels. [default: no]"
)
@click.option(
    "--objective",
    type=MethodText("objective", "denoiser"),
    default="mse",
    help="Restore pixels (mse), or for --classifier, at a single sigma, keep its label (stab) or the true one"
    " (clf) or restore adversarial images (atop), or lead back from adversaries (adbm); `diffproof methods`"
    " lists their settings.",
)
@click.option("--classifier", help="Train for this one behind it; see diffproof certify --help.")
def denoiser(
    extra_data: str | None,
    extra_share: float,
    denoiser: str | None,
    label_dropout: float,
    objective: str,
    classifier: str | None,
    **others: Any,
) -> None:
    """Train a class-conditional denoiser, with a null label for unconditional use.

    On a folder without class folders it is unconditional. With --single-sigma it is one of denoised
    smoothing (Salman et al. 2020), for dds at this noise level alone.

    Beside the weights come a sheet of samples, .samples.png (a row for each class, the last without a
    label), and the loss, .loss.csv and .loss.png.
    """
    from diffproof.training.batches import Mixture
    from diffproof.training.denoiser import train_denoiser

    size = {name: others.pop(name) for name in (*_NETWORK, *_LEVELS)}
    options = TrainingOptions(**others)
    options.check()
    settings, aim = options.settings(), _objective(objective, classifier)
    start, description = _start(denoiser)
    conditional = start is not None and start.num_classes is not None
    images, held_out, record = options.images(labelled=aim.labelled or conditional)
    behind, images = _behind(options, images, classifier)
    images = _fitting(images, start)
    if not images.labelled:
        refuse_given("label_dropout", f"needs classes, but {images.name} has none")
    extra = options.extra_images(extra_data, labelled=images.labelled)
    options.warn_of_shared(held_out, images, extra)
    data = Mixture(images, extra, extra_share=extra_share, flip=options.flip)
    description = description or _described(images, **size)
    single = description.get("schedule", {}).get("name") == "single"
    if single:
        refuse_given("label_dropout", "is not for a single noise level")
    aims: dict[str, Any] = {"label_dropout": label_dropout, "objective": aim, "classifier": behind}
    train_it = partial(train_denoiser, data, description, settings, **aims, start=start)
    trained, losses = fit_with_progress(options, images, train_it)
    measured = _measured(options, trained, held_out, single=single)
    told = options.told(record, start=denoiser, extra=extra)
    metrics = {f"rms_error_at_{at:g}": round(error, 6) for at, error in measured.items()}
    write_weights(options, trained.network.state_dict(), description, losses, metrics, told, objective)
    if held_out is not None:
        _tell_errors(measured, len(held_out))


def _objective(text: str, classifier: str | None) -> DenoiserObjective:
    """The objective, before anything is loaded.

    Raises:
        ValueError: it is of another training, or its classifier is lacking, or one too many.
    """
    from diffproof.training.denoising.base import denoiser_objective

    aim = denoiser_objective(text)
    aim.check_classifier(classifier is not None)
    return aim


def _start(spec: str | None) -> tuple[NetworkDenoiser | None, dict[str, Any] | None]:
    """The denoiser to train further and what describes it, if any.

    Raises:
        ValueError: it is no file of this command, or an option of a new network stands beside it.
    """
    from diffproof.denoisers.named import load_described

    if spec is None:
        return None, None
    for name in (*_NETWORK, *_LEVELS):
        refuse_given(name, "is for a new network, not with --denoiser")
    return load_described(spec)


def _behind(
    options: TrainingOptions, images: ImageData, spec: str | None
) -> tuple[Classifier | None, ImageData]:
    """The classifier that a denoiser is trained for, and the images with its labels, if they have any."""
    from diffproof.checks import loading
    from diffproof.classifiers.named import load_classifier
    from diffproof.data.classes import match_classes

    if spec is None:
        return None, images
    with loading("classifier"):
        found = load_classifier(spec).to(options.torch_device())
    return found, match_classes(images, found, None) if images.labelled else images


def _fitting(images: ImageData, start: NetworkDenoiser | None) -> ImageData:
    """The images as the denoiser that is trained further takes them.

    Raises:
        ValueError: it has other classes, or takes images of another size.
    """
    from diffproof.data.classes import match_classes

    if start is None:
        return images
    images = images.fitting(start)
    if start.image_shape not in (None, images.image_shape):
        raise ArgumentError(
            "denoiser",
            f"takes images {start.image_shape}, but those of {images.name} are {images.image_shape}",
        )
    return images if start.num_classes is None else match_classes(images, start, None, owner="denoiser")


def _described(
    images: ImageData,
    schedule: str,
    timesteps: int,
    single_sigma: float | None,
    preconditioning: str,
    **unet: Any,
) -> dict[str, Any]:
    """What describes a new network."""
    from diffproof.training.denoiser import UNetSettings, describe_denoiser

    if single_sigma is not None:
        for name in ("schedule", "timesteps", "multi_head", "preconditioning"):
            refuse_given(name, "is not for --single-sigma")
    try:
        widths = [int(width) for width in unet["channels"].split(",")]
    except ValueError:
        got = unet["channels"]
        raise ArgumentError("channels", f"expected numbers with commas between, got {got!r}") from None
    return describe_denoiser(
        images,
        UNetSettings(**unet | {"channels": widths}),
        schedule,
        timesteps,
        single_sigma,
        preconditioning,
    )


def _measured(
    options: TrainingOptions, trained: NetworkDenoiser, held_out: ImageData | None, *, single: bool
) -> dict[float, float]:
    """The errors at some noise levels, if there is anything to measure on; a sheet of samples on the way."""
    from diffproof.pictures import save_grid
    from diffproof.training.denoiser import denoising_errors
    from diffproof.training.sheets import draw_samples

    sigmas = [sigma for sigma in _HELD_OUT_SIGMAS if trained.sigma_min <= sigma <= trained.sigma_max]
    if single:
        sigmas = [round(trained.sigma_max, 12)]
    else:
        save_grid(options.out.with_suffix(".samples.png"), draw_samples(trained, options.seed))
    if held_out is None:
        return {}
    errors = denoising_errors(trained, held_out.fitting(trained), sigmas, options.seed)
    return dict(zip(sigmas, errors, strict=True))


def _tell_errors(measured: dict[float, float], images: int) -> None:
    shown = ", ".join(f"{error:.4f} at sigma = {sigma:g}" for sigma, error in measured.items())
    shown = shown or f"none at sigma = {', '.join(map('{:g}'.format, _HELD_OUT_SIGMAS))}, off the schedule"
    printed(f"root-mean-square error on {counted(images, 'test image')}: {shown}")
