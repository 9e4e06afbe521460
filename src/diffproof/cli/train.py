"""diffproof train: denoisers, classifiers and guides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from diffproof.catalog import ADVERSARIAL, DENOISER_OBJECTIVES, NORMS, SCHEDULES
from diffproof.cli.flags import Group, Names, refuse_given
from diffproof.cli.run_options import class_map_option
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
    from diffproof.training.adversarial import Adversary

_HELD_OUT_SIGMAS = (0.1, 0.25, 0.5, 1.0)


@click.group(cls=Group)
def train() -> None:
    """Train a denoiser, a classifier or a guide on a data set.

    An interrupted training continues when the same command is given again. For several GPUs:

    \b
      accelerate launch --multi_gpu -m diffproof train denoiser …
    """


@train.command("denoiser", context_settings={"show_default": True})
@training_options(iterations=10_000, learning_rate=0.001)
@click.option("--extra-data", help="Train on a second set of images, too, with the same classes.")
@click.option("--extra-share", default=0.5, help="Draw this share of images from --extra-data, in (0, 1).")
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
    help="At that level, restore pixels (mse), or for --classifier its label of the clean image (stab) or"
    " the true one (clf).",
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
    images, held_out, record = options.images(labelled=objective == "clf")
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
    click.echo(f"root-mean-square error on {counted(images, 'test image')}: {shown}")


def _check_single(single_sigma: float | None, objective: str, classifier: str | None) -> None:
    """Raise ValueError for options that do not go together with --single-sigma, or need it."""
    if single_sigma is None:
        for name in ("objective", "classifier"):
            refuse_given(name, "needs --single-sigma")
        return
    for name in ("schedule", "timesteps", "multi_head", "label_dropout"):
        refuse_given(name, "is not for --single-sigma")
    if (objective == "mse") != (classifier is None):
        raise ArgumentError("classifier", "is for --objective stab and clf, which need one")


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


def classifier_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of both kinds of classifiers: the network, and the search for perturbations."""
    options: list[Callable[..., Any]] = [
        click.option("--width", default=16, help="Give a new network's first layer this many channels, ≥ 1."),
        click.option(
            "--classifier", help="Train this one further, no new network; see diffproof certify --help."
        ),
        class_map_option,
        click.option("--trades-weight", default=6.0, help="Weigh TRADES's divergence by this λ, > 0."),
        click.option("--norm", type=Names(NORMS), default="linf", help="Bound perturbations in this norm."),
        click.option("--budget", default="8/255", help="Bound them by this, > 0, for pixels in [0, 1]."),
        click.option("--inner-steps", default=10, help="Search for them in this many gradient steps, ≥ 1."),
        click.option(
            "--inner-step-size",
            type=float,
            help="Give such a step this length, > 0, in that norm. [default: a quarter of the budget]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@train.command("classifier", context_settings={"show_default": True})
@training_options(iterations=1000, learning_rate=0.002)
@click.option(
    "--noise-sigma", default=0.0, help="Add noise of this standard deviation, ≥ 0; pixels lie in [0, 1]."
)
@objective_option("train")
@click.option(
    "--adversarial",
    type=Names(ADVERSARIAL),
    help="Train against perturbations by pgd (PGD-AT) or trades. [default: neither]",
)
@classifier_options
def classifier(
    noise_sigma: float,
    objective: str | None,
    adversarial: str | None,
    width: int,
    classifier: str | None,
    class_map: str | None,
    trades_weight: float,
    norm: str,
    budget: str,
    inner_steps: int,
    inner_step_size: float | None,
    **common: Any,
) -> None:
    """Train a classifier: on clean images, under noise for randomized smoothing, or adversarially.

    It is a new small network, or that of --classifier, trained further; a file of module.path:factory is then
    given as module.path:factory@FILE. --norm to --inner-step-size are for --adversarial. Beside the weights
    comes the loss, .loss.csv and .loss.png.
    """
    options = TrainingOptions(**common)
    options.check()
    idle = () if adversarial == "trades" else ("trades_weight",)
    if adversarial is None:
        idle = (*idle, "norm", "budget", "inner_steps", "inner_step_size")
    for name in idle:
        refuse_given(name, f"needs --adversarial{' trades' * (name == 'trades_weight')}")
    if objective is not None and not noise_sigma:
        refuse_given("objective", "needs --noise-sigma, above 0")
    adversary = None
    if adversarial is not None:
        adversary = _adversary(adversarial, norm, budget, inner_steps, inner_step_size, trades_weight)
    _train_classifier(options, width, classifier, class_map, noise_sigma, objective, adversary)


@train.command("guide", context_settings={"show_default": True})
@training_options(iterations=1000, learning_rate=0.002)
@classifier_options
def guide(
    width: int,
    classifier: str | None,
    class_map: str | None,
    trades_weight: float,
    norm: str,
    budget: str,
    inner_steps: int,
    inner_step_size: float | None,
    **common: Any,
) -> None:
    """Train the robust classifier that guides the defence agdm.

    It minimises cross-entropy on clean images + λ·max KL(f(x) ‖ f(x + δ)), as train classifier --adversarial
    trades does, and loads as a classifier. It is a new small network, or that of --classifier, trained
    further. Beside the weights comes the loss, .loss.csv and .loss.png.
    """
    options = TrainingOptions(**common)
    options.check()
    adversary = _adversary("trades", norm, budget, inner_steps, inner_step_size, trades_weight)
    _train_classifier(options, width, classifier, class_map, adversary=adversary)


def _adversary(
    method: str, norm: str, budget: str, steps: int, step_size: float | None, weight: float
) -> Adversary:
    from diffproof.attacks.threat import PixelThreat, load_threat
    from diffproof.training.adversarial import Adversary, Ascent

    threat = load_threat(norm, budget)
    assert isinstance(threat, PixelThreat)
    return Adversary(method, Ascent(threat, steps, step_size), weight)


def _matched_to_new(images: ImageData, held_out: ImageData | None) -> ImageData | None:
    """The images that a new network is measured on, with the labels that it learns; ValueError for others."""
    from diffproof.data.classes import match_names

    refuse_given("class_map", "is for --classifier; a new network takes the classes of the data")
    if len(images.class_names) < 2:
        found = "; ".join(filter(None, [f"{images.class_names[0]!r} alone", images.layout]))
        raise ArgumentError("data", f"expected several classes, got {found}")
    return held_out and match_names(held_out, images, "test_data")


def _further(options: TrainingOptions, spec: str) -> tuple[Classifier, dict[str, Any]]:
    """A classifier to train further, and what a weights file says of it."""
    from diffproof.checks import loading
    from diffproof.classifiers.named import load_classifier
    from diffproof.classifiers.saved import describe_base

    refuse_given("width", "is for a new network, not with --classifier")
    with loading("classifier"):
        return load_classifier(spec).to(options.torch_device()), describe_base(spec)


def _train_classifier(
    options: TrainingOptions,
    width: int,
    spec: str | None,
    class_map: str | None,
    noise_sigma: float = 0.0,
    objective: str | None = None,
    adversary: Adversary | None = None,
) -> None:
    """Train, measure, write and report a classifier: a new network, or that of a spec."""
    from diffproof.data.classes import match_classes
    from diffproof.training.adversarial import robust_accuracy
    from diffproof.training.batches import Mixture
    from diffproof.training.classifier import accuracy, describe_classifier, named_classes, train_classifier
    from diffproof.training.objectives.named import load_objective

    if noise_sigma and adversary is None:
        objective = objective or "gaussian"
    settings = options.settings()
    images, held_out, record = options.images()
    options.warn_of_shared(held_out, images)
    if spec is None:
        held_out = _matched_to_new(images, held_out)
        start, description = None, describe_classifier(images, width)
    else:
        start, base = _further(options, spec)
        images = match_classes(images, start, class_map).fitting(start)
        held_out = held_out and match_classes(held_out, start, class_map)
        description = base | named_classes(images, start)
    data = Mixture(images, flip=options.flip)
    train_it = partial(
        train_classifier,
        data,
        description,
        settings,
        noise_sigma=noise_sigma,
        objective=None if objective is None else load_objective(objective),
        adversary=adversary,
        start=start,
    )
    trained, losses = fit_with_progress(options, images, train_it)
    metrics = {}
    if held_out is not None:
        held_out = held_out.fitting(trained)
        metrics["accuracy"] = round(accuracy(trained, held_out), 6)
        if noise_sigma:
            metrics["noisy_accuracy"] = round(accuracy(trained, held_out, noise_sigma, options.seed), 6)
        if adversary is not None:
            robust = robust_accuracy(trained, held_out, adversary.ascent, options.seed)
            metrics["robust_accuracy"] = round(robust, 6)
    told, tensors = options.told(record, start=spec), trained.network.state_dict()
    write_weights(options, tensors, description, losses, metrics, told, objective)
    if held_out is not None:
        _tell(metrics, len(held_out), noise_sigma, adversary)


def _tell(metrics: dict[str, float], images: int, noise_sigma: float, adversary: Adversary | None) -> None:
    click.echo(f"accuracy on {counted(images, 'clean test image')}: {metrics['accuracy']:.2%}")
    if noise_sigma:
        click.echo(f"with noise of sigma = {noise_sigma:g}: {metrics['noisy_accuracy']:.2%}")
    if adversary is not None:
        steps, threat = counted(adversary.ascent.steps, "gradient step"), adversary.ascent.threat
        click.echo(
            f"after {steps} within {threat.name} {threat.budget:.4g}: {metrics['robust_accuracy']:.2%}"
        )
