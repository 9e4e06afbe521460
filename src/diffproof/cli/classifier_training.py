"""What the trainings of classifiers share: their options, and the training itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import click

from diffproof.catalog import NORMS
from diffproof.cli.flags import Names, refuse_given
from diffproof.cli.run_options import applied, class_map_option
from diffproof.cli.screen import printed
from diffproof.cli.training_options import TrainingOptions, fit_with_progress, write_weights
from diffproof.errors import ArgumentError
from diffproof.wording import counted

if TYPE_CHECKING:
    from diffproof.classifiers.base import Classifier
    from diffproof.data.images import ImageData
    from diffproof.training.adversarial import Adversary
    from diffproof.training.objectives.base import Objective
    from diffproof.training.perceptual import PerceptualAdversary


def classifier_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of both kinds of classifiers: the network, and the search for perturbations."""
    options: list[Callable[..., Any]] = [
        click.option("--width", default=16, help="Give a new network's first layer this many channels, ≥ 1."),
        click.option(
            "--classifier", help="Train this one further, no new network; see diffproof certify --help."
        ),
        class_map_option,
        click.option("--trades-weight", default=6.0, help="Weigh TRADES's divergence by this λ, > 0."),
        click.option(
            "--label-smoothing",
            default=0.0,
            help="Spread this share of each label evenly over the classes, in [0, 1), against perturbations.",
        ),
        click.option("--norm", type=Names(NORMS), default="linf", help="Bound perturbations in this norm."),
        click.option(
            "--budget",
            help="Bound them by this, > 0, for pixels in [0, 1]; for pat, a distance of features."
            " [default: 8/255; pat: 0.5]",
        ),
        click.option("--inner-steps", default=10, help="Search for them in this many gradient steps, ≥ 1."),
        click.option(
            "--inner-step-size",
            type=float,
            help="Give such a step this length, > 0, in that norm. [default: a quarter of the budget]",
        ),
    ]
    return applied(command, options)


@dataclass(frozen=True)
class ClassifierOptions:
    """The values of these options, and of those that some commands have besides, as click hands them over."""

    width: int
    classifier: str | None
    class_map: str | None
    trades_weight: float
    label_smoothing: float
    norm: str
    budget: str | None
    inner_steps: int
    inner_step_size: float | None
    noise_sigma: float = 0.0
    objective: str | None = None
    adversarial: str | None = "trades"
    extra_data: str | None = None
    extra_share: float = 0.5

    @classmethod
    def parted(cls, given: dict[str, Any]) -> tuple[Self, TrainingOptions]:
        """These options, and those of every training, of all that click hands over."""
        own = {one.name: given[one.name] for one in fields(cls) if one.name in given}
        return cls(**own), TrainingOptions(
            **{name: value for name, value in given.items() if name not in own}
        )

    def check(self) -> None:
        """Refuse what is given for another training."""
        idle = () if self.adversarial == "trades" else ("trades_weight",)
        if self.adversarial is None:
            idle = (*idle, "label_smoothing", "norm", "budget", "inner_steps", "inner_step_size")
        for name in idle:
            refuse_given(name, f"needs --adversarial{' trades' * (name == 'trades_weight')}")
        for name in ("norm", "inner_step_size") if self.adversarial == "pat" else ():
            refuse_given(name, "is not for --adversarial pat")

    def loss(self) -> Objective | None:
        """What is minimised in place of cross-entropy, if anything.

        Raises:
            ValueError: an objective without the noise that it needs, or an option of another network.
        """
        from diffproof.training.objectives.named import load_objective

        if self.objective is None:
            noisy = self.noise_sigma and self.adversarial is None
            return load_objective("gaussian") if noisy else None
        found = load_objective(self.objective)
        if found.noisy and not self.noise_sigma:
            refuse_given("objective", "needs --noise-sigma, above 0")
        if "width" in vars(found):
            refuse_given("width", f"is a setting of --objective {found.name}")
        return found

    def adversary(self) -> Adversary | PerceptualAdversary | None:
        """What the classifier is trained against, if anything."""
        from diffproof.attacks.threat import PixelThreat, load_threat, parse_budget
        from diffproof.training.adversarial import Adversary, Ascent
        from diffproof.training.perceptual import PerceptualAdversary

        if self.adversarial is None:
            return None
        if self.adversarial == "pat":
            budget = parse_budget(self.budget or "0.5")
            return PerceptualAdversary(budget, self.inner_steps, self.label_smoothing)
        threat = load_threat(self.norm, self.budget or "8/255")
        assert isinstance(threat, PixelThreat)
        ascent = Ascent(threat, self.inner_steps, self.inner_step_size)
        return Adversary(self.adversarial, ascent, self.trades_weight, self.label_smoothing)


def _check_new(images: ImageData) -> None:
    """Raise ValueError for images that a new network cannot learn."""
    refuse_given("class_map", "is for --classifier; a new network takes the classes of the data")
    if len(images.class_names) < 2:
        found = "; ".join(filter(None, [f"{images.class_names[0]!r} alone", images.layout]))
        raise ArgumentError("data", f"expected several classes, got {found}")


def _further(options: TrainingOptions, spec: str) -> tuple[Classifier, dict[str, Any]]:
    """A classifier to train further, and what a weights file says of it."""
    from diffproof.checks import loading
    from diffproof.classifiers.named import load_classifier
    from diffproof.classifiers.saved import describe_base

    refuse_given("width", "is for a new network, not with --classifier")
    with loading("classifier"):
        return load_classifier(spec).to(options.torch_device()), describe_base(spec)


def train_and_write(kind: ClassifierOptions, options: TrainingOptions) -> None:
    """Train, measure, write and report a classifier: a new network, or that of --classifier."""
    from diffproof.training.batches import Mixture
    from diffproof.training.classifier import train_classifier

    options.check()
    kind.check()
    adversary, loss = kind.adversary(), kind.loss()
    settings = options.settings()
    images, held_out, record = options.images()
    extra = options.extra_images(kind.extra_data)
    options.warn_of_shared(held_out, images, extra)
    start, description, images, others = _begun(kind, options, images, [extra, held_out])
    if loss is not None:
        description = loss.described(description, new=start is None)
    extra, held_out = others
    data = Mixture(images, extra, extra_share=kind.extra_share, flip=options.flip)
    train_it = partial(
        train_classifier,
        data,
        description,
        settings,
        noise_sigma=kind.noise_sigma,
        objective=loss,
        adversary=adversary,
        start=start,
    )
    trained, losses = fit_with_progress(options, images, train_it)
    held_out = held_out and held_out.fitting(trained)
    metrics = {} if held_out is None else _measured(trained, held_out, kind, adversary, options.seed)
    told, tensors = options.told(record, start=kind.classifier, extra=extra), trained.network.state_dict()
    write_weights(options, tensors, description, losses, metrics, told, _text(kind, loss))
    if held_out is not None:
        _tell(metrics, len(held_out), kind.noise_sigma, adversary)


def _text(kind: ClassifierOptions, loss: Objective | None) -> str | None:
    """The objective as the weights file names it."""
    return kind.objective or (None if loss is None else loss.name)


def _begun(
    kind: ClassifierOptions, options: TrainingOptions, images: ImageData, others: list[ImageData | None]
) -> tuple[Classifier | None, dict[str, Any], ImageData, list[ImageData | None]]:
    """The classifier to begin with, if any, its description, and all images with its labels."""
    from diffproof.data.classes import match_classes, match_names
    from diffproof.training.classifier import describe_classifier, named_classes

    if kind.classifier is None:
        _check_new(images)
        named = zip(others, ("extra_data", "test_data"), strict=True)
        others = [one and match_names(one, images, name) for one, name in named]
        return None, describe_classifier(images, kind.width), images, others
    start, base = _further(options, kind.classifier)
    images = match_classes(images, start, kind.class_map).fitting(start)
    others = [one and match_classes(one, start, kind.class_map) for one in others]
    return start, base | named_classes(images, start), images, others


def _measured(
    trained: Classifier,
    held_out: ImageData,
    kind: ClassifierOptions,
    adversary: Adversary | PerceptualAdversary | None,
    seed: int,
) -> dict[str, float]:
    """Accuracies on held-out images: of clean ones, under the noise of the training, under its search."""
    from diffproof.training.classifier import accuracy

    metrics = {"accuracy": accuracy(trained, held_out)}
    if kind.noise_sigma:
        metrics["noisy_accuracy"] = accuracy(trained, held_out, kind.noise_sigma, seed)
    if adversary is not None:
        metrics["robust_accuracy"] = adversary.accuracy(trained, held_out, seed)
    return {name: round(value, 6) for name, value in metrics.items()}


def _tell(
    metrics: dict[str, float],
    images: int,
    noise_sigma: float,
    adversary: Adversary | PerceptualAdversary | None,
) -> None:
    printed(f"accuracy on {counted(images, 'clean test image')}: {metrics['accuracy']:.2%}")
    if noise_sigma:
        printed(f"with noise of sigma = {noise_sigma:g}: {metrics['noisy_accuracy']:.2%}")
    if adversary is not None:
        printed(f"after {adversary.told()}: {metrics['robust_accuracy']:.2%}")
