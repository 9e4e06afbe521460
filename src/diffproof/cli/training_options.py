"""What the training commands share: their options, the file they write, the command they record."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffproof.catalog import PRECISIONS
from diffproof.checks import check_positive
from diffproof.cli.flags import MethodText, Names, device_option, refuse_given
from diffproof.cli.paths import PATH
from diffproof.cli.run_options import Command, applied, choice_options, skip_unreadable_option, tell_layout
from diffproof.cli.screen import printed
from diffproof.cli.training_output import claim
from diffproof.errors import ArgumentError
from diffproof.wording import part_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from diffproof.data.images import ImageData
    from diffproof.data.trained_on import TrainedOn
    from diffproof.training.loop import TrainSettings

# Most held-out images that a training is measured on.
_MEASURED = 2000
# Options that say where to compute, not what.
_NOT_RECORDED = ("force", "device", "checkpoint_every")

_HOLDOUT = click.option(
    "--holdout",
    type=float,
    help="Keep this share of each class out of training, in (0, 1), at random, and measure on it."
    " [default: none]",
)


def objective_option(can: str) -> Callable[[Command], Command]:
    """--objective.

    Args:
        can: the command that takes it, a word of Method.can.
    """
    return click.option(
        "--objective",
        type=MethodText("objective", can),
        help="Minimise this under the noise, with its settings, such as consistency:weight=10; `diffproof"
        " methods` lists them. [default: gaussian]",
    )


def training_options(*, iterations: int, learning_rate: float) -> Callable[[Command], Command]:
    """The options of every training command, as one decorator."""
    options: list[Callable[[Any], Any]] = [
        click.option("--data", required=True, help="Train on these images; see diffproof certify --help."),
        click.option("--split", help="Train on this split. [default: train, or the only one]"),
        click.option(
            "--indices",
            help="Train on these: start:stop, start:stop:step or numbers with commas. [default: all]",
        ),
        *choice_options("Train on"),
        _HOLDOUT,
        click.option(
            "--image-size",
            type=int,
            help="Resize images to this shorter side, then crop a square. [default: no; imagenet: 256]",
        ),
        skip_unreadable_option,
        click.option("--flip", is_flag=True, help="Mirror each image with probability ½."),
        click.option(
            "--test-data",
            help="Measure on these images, on 2,000 at most. [default: those of --holdout, or the test split"
            " of a named data set]",
        ),
        click.option(
            "--out",
            required=True,
            type=PATH,
            help="Write the weights to this .safetensors file.",
        ),
        click.option("--half", is_flag=True, help="Write the weights in half precision."),
        click.option("--iterations", default=iterations, help="Take this many optimiser steps, ≥ 1."),
        click.option("--batch-size", default=128, help="Draw this many images a step, ≥ 1."),
        click.option(
            "--learning-rate", default=learning_rate, help="Rise to this learning rate, > 0, then fall to 0."
        ),
        click.option("--ema-decay", default=0.999, help="Average weights with this decay a step, in (0, 1)."),
        click.option(
            "--precision",
            type=Names(PRECISIONS),
            default="float32",
            help="Train in float32, or in bfloat16 (mixed precision).",
        ),
        click.option(
            "--seed",
            default=0,
            help="Seed initialisation, batches, noise and choices of images with this integer, in [0, 2^32):"
            " the same training every time.",
        ),
        device_option,
        click.option(
            "--checkpoint-every", default=180.0, help="Save a checkpoint every so many seconds, > 0."
        ),
        click.option("--force", is_flag=True, help="Overwrite the weights file."),
    ]

    def decorate(command: Command) -> Command:
        return applied(command, options)

    return decorate


def extra_options(command: Command) -> Command:
    """The options of a second set of training images."""
    options: list[Callable[[Command], Command]] = [
        click.option("--extra-data", help="Train on a second set of images, too, with the same classes."),
        click.option(
            "--extra-share", default=0.5, help="Draw this share of images from --extra-data, in (0, 1)."
        ),
    ]
    return applied(command, options)


@dataclass(frozen=True)
class TrainingOptions:
    """The values of these options, as click hands them over."""

    data: str
    split: str | None
    indices: str | None
    per_class: int | None
    limit: int | None
    holdout: float | None
    image_size: int | None
    skip_unreadable: bool
    flip: bool
    test_data: str | None
    out: Path
    half: bool
    iterations: int
    batch_size: int
    learning_rate: float
    ema_decay: float
    precision: str
    seed: int
    device: str
    checkpoint_every: float
    force: bool

    def check(self) -> None:
        """Refuse an output that cannot be written, before anything is computed.

        Raises:
            ValueError: no .safetensors name, no such folder or none that takes files, a file that is there
                already, a link in the place of one, another training of it, or an unknown device.
        """
        if self.out.suffix != ".safetensors":
            raise ArgumentError("out", f"expected a .safetensors file, got {self.out}")
        claim(self.out, force=self.force)
        check_positive("checkpoint_every", self.checkpoint_every)
        self.torch_device()

    @property
    def checkpoint(self) -> Path:
        """Where the state is kept until the training is done."""
        return self.out.with_suffix(".checkpoint")

    def settings(self) -> TrainSettings:
        """The settings of the loop."""
        from diffproof.training.loop import TrainSettings

        return TrainSettings(
            self.iterations, self.batch_size, self.learning_rate, self.ema_decay, self.seed, self.precision
        )

    def images(self, *, labelled: bool = True) -> tuple[ImageData, ImageData | None, TrainedOn]:
        """The training images, those to measure on, if any, 2,000 at most, and the record of the first.

        Args:
            labelled: whether labels are needed.
        """
        from diffproof.checks import renamed
        from diffproof.data.named import HUB_NAMES, SHIPPED, load_data
        from diffproof.data.trained_on import TrainedOn

        whole = load_data(
            self.data, self.split, image_size=self.image_size, default_split="train", labelled=labelled
        )
        names = ("indices", "per_class", "limit", "holdout", "seed")
        record = TrainedOn.of(whole, self.image_size, **{name: getattr(self, name) for name in names})
        chosen, held = record.parted(whole)
        source = self.test_data or (self.data if self.data in (*SHIPPED, *HUB_NAMES) else None)
        test = None
        if held and self.test_data is None:
            test = self._read(whole, held)
        elif source is not None:
            with renamed(dict.fromkeys(("data", "split"), "test_data") if self.test_data else {}):
                test = load_data(
                    source,
                    image_size=self.image_size,
                    labelled=labelled,
                    skip_unreadable=self.skip_unreadable,
                )
        if test is not None:
            test = test.select(range(0, len(test), -(-len(test) // _MEASURED)))
            with renamed({"data": "test_data"} if self.test_data else {}):
                # What is wrong with them shows before the training, not after it.
                test.fingerprint(range(len(test)))
                if test.image_shape[1:] != whole.image_shape[1:]:
                    size, got = ("×".join(map(str, one.image_shape[1:])) for one in (whole, test))
                    raise ArgumentError("data", f"expected images of {size} as in {whole.name}, got {got}")
        return self._read(whole, chosen), test, record

    def _read(self, whole: ImageData, indices: list[int]) -> ImageData:
        if self.skip_unreadable:
            whole, indices = whole.skipping(indices)
        return whole.select(indices)

    def extra_images(self, source: str | None, *, labelled: bool = True) -> ImageData | None:
        """The second set of training images, if any."""
        from diffproof.checks import renamed
        from diffproof.data.named import load_data

        if source is None:
            refuse_given("extra_share", "is for --extra-data, which is not given")
            return None
        with renamed(dict.fromkeys(("data", "split"), "extra_data")):
            return load_data(
                source,
                image_size=self.image_size,
                default_split="train",
                labelled=labelled,
                skip_unreadable=self.skip_unreadable,
            )

    def warn_of_shared(
        self, test: ImageData | None, images: ImageData, extra: ImageData | None = None
    ) -> None:
        """Say how many of the images to measure on are among the training images, if any are.

        Those held out of the only data, and those of its other split, are taken to be none of them.
        """
        from diffproof.data.trained_on import shared_images

        if test is None:
            return
        apart = self.holdout is not None or (test.name, test.split) != (images.name, images.split)
        if self.test_data is None and extra is None and apart:
            return
        shared = shared_images(test, images, extra)
        noun = "image" if self.test_data else "test image"
        if shared:
            warnings.warn(
                f"{'test_data' if self.test_data else 'data'}: {part_of(shared, len(test), noun)} among the"
                " training images: what is measured on them says nothing of other images",
                stacklevel=2,
            )

    def torch_device(self) -> torch.device:
        """Where to compute."""
        from diffproof.runs.prepare import resolve_device

        return resolve_device(self.device)

    def told(
        self, record: TrainedOn, *, start: str | None = None, extra: ImageData | None = None
    ) -> list[dict[str, Any]]:
        """What the weights file tells of all that the network was trained on, before this training, too.

        Args:
            record: of the training images.
            start: spec of the network that it began with.
            extra: the second set of training images.
        """
        from diffproof.data.trained_on import TrainedOn, records_of

        more = [] if extra is None else [TrainedOn.of(extra, self.image_size)]
        return [one.as_dict() for one in (*records_of(start), record, *more)]


def fit_with_progress(
    options: TrainingOptions, images: ImageData, train: Callable[..., Any]
) -> tuple[Any, list[float]]:
    """Call train(progress=…) on images under a progress bar; what it returns, and the losses.

    Where several processes share the training, all but the first end here.
    """
    from diffproof.cli.progress import training_progress
    from diffproof.training.loop import Progress
    from diffproof.training.processes import is_first

    losses: list[float] = []
    if is_first():
        tell_layout(images)
    with training_progress(options.iterations) as show:

        def on_step(step: int, loss: float) -> None:
            losses.append(loss)
            if is_first():
                show(step, loss)

        progress = Progress(on_step, options.checkpoint, options.checkpoint_every, options.torch_device())
        trained = train(progress=progress)
    if not is_first():
        click.get_current_context().exit()
    if options.half:
        round_to_half(trained.network)
    return trained.to(options.torch_device()), losses


def round_to_half(network: nn.Module) -> None:
    """Round weights to half precision in place, so that what is measured is what is written.

    Raises:
        ValueError: one is too large for it.
    """
    import torch

    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
            if not bool(torch.isfinite(tensor).all()):
                raise ArgumentError("half", f"{name} has values beyond half precision; leave --half out")


def write_weights(
    options: TrainingOptions,
    tensors: dict[str, Any],
    description: dict[str, Any],
    losses: list[float],
    metrics: dict[str, float],
    images: list[dict[str, Any]],
    objective: str | None = None,
) -> None:
    """Write the weights with how they were made and the loss curve; then the checkpoint is not needed."""
    from diffproof.files import remove
    from diffproof.training.sheets import save_losses
    from diffproof.weights import save_weights

    if options.half:
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    training = {"command": recorded_command(), "seed": options.seed, "test": metrics, "images": images}
    if objective is not None:
        from diffproof.methods import parse

        # All settings, which the command need not tell.
        training["objective"] = str(parse("objective", objective).filled())
    save_losses(options.out.with_suffix(".loss.csv"), losses)
    save_weights(options.out, tensors, description | {"training": training})
    remove(options.checkpoint)
    printed(f"written: {options.out}")


def recorded_command() -> str:
    """The running command with every option that is not at its default, as one could type it."""
    context = click.get_current_context()
    words = [context.command_path]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name in _NOT_RECORDED or value is None or value == parameter.get_default(context):
            continue
        flag = parameter.opts[0]
        # The folder that the weights went to is no part of how they were made.
        value = value.name if isinstance(value, Path) else value
        words.append(flag if value is True else f"{flag} {shlex.quote(str(value))}")
    return " ".join(words)
