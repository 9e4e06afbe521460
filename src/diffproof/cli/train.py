"""diffproof train: denoisers, classifiers and guides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from diffproof.catalog import ADVERSARIAL, DENOISER_OBJECTIVES, SCHEDULES
from diffproof.cli.classifier_training import ClassifierOptions, classifier_options, train_and_write
from diffproof.cli.flags import Group, Names, refuse_given
from diffproof.cli.screen import printed
from diffproof.cli.training_options import (
    TrainingOptions,
    fit_with_progress,
    objective_option,
    training_options,
    write_weights,
)
from diffproof.errors import ArgumentError
from diffproof.wording import counted

if TYPE_CHECKING:
    from diffproof.classifiers.base import Classifier
    from diffproof.data.images import ImageData

_HELD_OUT_SIGMAS = (0.1, 0.25, 0.5, 1.0)


@click.group(cls=Group)
def train() -> None:
    """Train a denoiser, a classifier or a guide on a data set.

    An interrupted training continues when the same command is given again. For several GPUs:

    \b
      accelerate launch --multi_gpu -m diffproof train denoiser …
    """


def extra_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a second set of training images."""
    options = (
        click.option("--extra-data", help="Train on a second set of images, too, with the same classes."),
        click.option(
            "--extra-share", default=0.5, help="Draw this share of images from --extra-data, in (0, 1)."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@train.command("denoiser", context_settings={"show_default": True})
@training_options(iterations=10_000, learning_rate=0.001)
@extra_options
@click.option("--channels", default="16,32,48", help="Give the resolutions these channels, multiples of 8.")
@click.option("--layers", default=1, help="Give each resolution this many residual blocks, ≥ 1.")
@click.option("--patch", default=1, help="Feed squares of this many pixels a side as channels, ≥ 1.")
@click.option("--attention", is_flag=True, help="Add self-attention at the lowest resolution.")
@click.option("--multi-head", is_flag=True, help="Serve all classes in one pass, each by an output head.")
@click.option("--dropout", default=0.0, help="Drop this share in the residual blocks, in [0, 1).")
@click.option("--schedule", type=Names(SCHEDULES), default="cosine", help="Add noise on this schedule.")
@click.option("--timesteps", default=1000, help="Divide the schedule into this many timesteps, ≥ 1.")
@click.option(
    "--label-dropout", default=0.1, help="Replace this share of labels by the null label, in [0, 1]."
)
@click.option(
    "--single-sigma", type=float, help="Train for this noise level alone, > 0, without labels. [default: no]"
)
@click.option(
    "--objective",
    type=Names(DENOISER_OBJECTIVES),
    default="mse",
    help="At that level, restore pixels (mse), or for --classifier its label of the clean image (stab),"
    " the true one (clf), or that and the pixels from adversarial images (atop).",
)
@click.option("--classifier", help="Train for this one behind it; see diffproof certify --help.")
def denoiser(
    extra_data: str | None,
    extra_share: float,
    channels: str,
    layers: int,
    patch: int,
    attention: bool,
    multi_head: bool,
    dropout: float,
    schedule: str,
    timesteps: int,
    label_dropout: float,
    single_sigma: float | None,
    objective: str,
    classifier: str | None,
    **common: Any,
) -> None:
    """Train a class-conditional denoiser, with a null label for unconditional use.

    On a folder without class folders it is unconditional. With --single-sigma it is one of denoised
    smoothing (Salman et al. 2020), for dds at this noise level alone.

    Beside the weights come a sheet of samples, .samples.png (a row for each class, the last without a
    label), and the loss, .loss.csv and .loss.png.
    """
    from diffproof.pictures import save_grid
    from diffproof.training.batches import Mixture
    from diffproof.training.denoiser import UNetSettings, denoising_errors, describe_denoiser, train_denoiser
    from diffproof.training.sheets import draw_samples

    options = TrainingOptions(**common)
    options.check()
    try:
        widths = [int(width) for width in channels.split(",")]
    except ValueError:
        raise ArgumentError("channels", f"expected numbers with commas between, got {channels!r}") from None
    settings = options.settings()
    _check_single(single_sigma, objective, classifier)
    images, held_out, record = options.images(labelled=objective in ("clf", "atop"))
    behind, images = _behind(options, images, classifier)
    if not images.labelled:
        refuse_given("label_dropout", f"needs classes, but {images.name} has none")
    extra = options.extra_images(extra_data, labelled=images.labelled)
    options.warn_of_shared(held_out, images, extra)
    data = Mixture(images, extra, extra_share=extra_share, flip=options.flip)
    unet = UNetSettings(widths, layers, dropout, patch, attention, multi_head)
    description = describe_denoiser(images, unet, schedule, timesteps, single_sigma)
    aims: dict[str, Any] = {"label_dropout": label_dropout, "objective": objective, "classifier": behind}
    train_it = partial(train_denoiser, data, description, settings, **aims)
    trained, losses = fit_with_progress(options, images, train_it)
    sigmas = [sigma for sigma in _HELD_OUT_SIGMAS if trained.sigma_min <= sigma <= trained.sigma_max]
    if single_sigma is None:
        save_grid(options.out.with_suffix(".samples.png"), draw_samples(trained, options.seed))
    else:
        sigmas = [single_sigma]
    errors = []
    if held_out is not None:
        errors = denoising_errors(trained, held_out.fitting(trained), sigmas, options.seed)
    metrics = {f"rms_error_at_{at:g}": round(error, 6) for at, error in zip(sigmas, errors, strict=False)}
    told = options.told(record, extra=extra)
    write_weights(options, trained.network.state_dict(), description, losses, metrics, told)
    if held_out is not None:
        _tell_errors(sigmas, errors, len(held_out))


def _tell_errors(sigmas: list[float], errors: list[float], images: int) -> None:
    shown = ", ".join(
        f"{error:.4f} at sigma = {sigma:g}" for sigma, error in zip(sigmas, errors, strict=True)
    )
    shown = shown or f"none at sigma = {', '.join(map('{:g}'.format, _HELD_OUT_SIGMAS))}, off the schedule"
    printed(f"root-mean-square error on {counted(images, 'test image')}: {shown}")


def _check_single(single_sigma: float | None, objective: str, classifier: str | None) -> None:
    """Raise ValueError for options that do not go together with --single-sigma, or need it."""
    if single_sigma is None:
        for name in ("objective", "classifier"):
            refuse_given(name, "needs --single-sigma")
        return
    for name in ("schedule", "timesteps", "multi_head", "label_dropout"):
        refuse_given(name, "is not for --single-sigma")
    if (objective == "mse") != (classifier is None):
        raise ArgumentError("classifier", "is for --objective stab, clf and atop, which need one")


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
