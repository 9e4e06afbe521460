"""Options of every command that makes a run folder: which images, and how the networks run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffproof.cli.flags import device_option, precision_option
from diffproof.cli.numbers import Integer
from diffproof.cli.paths import PATH
from diffproof.cli.screen import printed, said
from diffproof.errors import ArgumentError
from diffproof.wording import counted

if TYPE_CHECKING:
    from diffproof.data.images import ImageData
    from diffproof.runs.settings import RunSettings
    from diffproof.runs.store import RunStore
    from diffproof.scale.workforce import Workforce

Command = Callable[..., Any]


def applied(command: Command, options: list[Callable[[Command], Command]]) -> Command:
    """The command with these options, in this order in its help."""
    for option in reversed(options):
        command = option(command)
    return command


skip_unreadable_option = click.option(
    "--skip-unreadable", is_flag=True, help="Leave out pictures that cannot be read, and say which."
)


def tell_layout(data: ImageData) -> None:
    """Say on standard error what was found where the data lies, if there is anything to say."""
    if data.layout:
        printed(f"data: {data.layout}", err=True)


def choice_options(verb: str) -> list[Callable[[Command], Command]]:
    """--per-class and --limit, which choose at random by --seed."""
    return [
        click.option(
            "--per-class",
            type=int,
            help=f"{verb} at most this many of them of each class, ≥ 1, at random. [default: all]",
        ),
        click.option(
            "--limit", type=int, help=f"{verb} at most this many of them, ≥ 1, at random. [default: all]"
        ),
    ]


def data_options(command: Command) -> Command:
    """--data and which of its images."""
    return applied(
        command,
        [
            click.option("--data", required=True, help="Take the images of this data set; see above."),
            click.option(
                "--split",
                help="Take this split of the data. [default: test (imagenet: validation), or the only one]",
            ),
            click.option(
                "--indices",
                help="Take these images: start:stop, start:stop:step or numbers with commas. [default: all]",
            ),
            *choice_options("Take"),
            click.option(
                "--held-out",
                is_flag=True,
                help="Take only images that the networks were not trained on, as their weights files tell.",
            ),
            click.option(
                "--image-size",
                type=int,
                help="Resize images to this shorter side, then crop a square. [default: no; imagenet: 256]",
            ),
            class_map_option,
            skip_unreadable_option,
        ],
    )


shard_option = click.option(
    "--shard",
    help="Do part i of N of the images, as in 3/16 (0/16 to 15/16), for `diffproof merge`. [default: all]",
)


def tell_shard(shard: str | None, images: int, of: int) -> None:
    """Say what part of a run a shard is."""
    if shard is not None:
        said(f"shard {shard}: {images:,} of {counted(of, 'image')}; `diffproof merge` joins all shards")


def class_map_option(command: Command) -> Command:
    """--class-map."""
    return click.option(
        "--class-map",
        help="Take classes of the data for those of the model that this YAML or JSON file names, as in"
        " `tabby: cat` or `tabby: 3`. [default: labels as they are, names compared]",
    )(command)


def seed_option(*, chooses: bool) -> Callable[[Command], Command]:
    """--seed of what is certified, attacked or purified, and whether it chooses images, too."""
    of, otherwise = (", and choices of images,", "; images chosen by 0") if chooses else ("", "")
    return click.option(
        "--seed",
        type=Integer(),
        help=f"Seed noise{of} with this integer, in [0, 2^64), to repeat a run. [default: drawn for the run"
        f" and kept in it{otherwise}]",
    )


def settle_seed(
    flags: dict[str, Any], out: Path | None = None, store: type[RunStore[Any]] | None = None
) -> RunSettings | None:
    """Put the seed among the flags, and whether it was drawn: given, that of the run in the folder, or drawn.

    Args:
        flags: of the command, which are changed.
        out: the run folder, None for a command that makes none.
        store: of the runs that it makes.

    Returns:
        the settings of the run in the folder, None where there is none.

    Raises:
        ValueError: a new shard without a seed; or the folder's run cannot be read.
    """
    from diffproof.checks import renamed
    from diffproof.runs.folder import is_there
    from diffproof.seeds import settled_seed

    seed = flags["seed"]
    stored: RunSettings | None = None
    if out is not None and store is not None and is_there(out):
        with renamed({"run": "out"}), store.reading(out) as found:
            stored = found.settings
        if seed in (None, stored.seed):
            flags.update(seed=stored.seed, seed_drawn=stored.seed_drawn)
            return stored
    if seed is None and out is not None and flags.get("shard") is not None:
        raise ArgumentError("seed", "shards of a run share one; expected the same integer for each of them")
    flags["seed"], flags["seed_drawn"] = settled_seed(seed)
    return stored


def run_options(batch_size: int) -> Callable[[Command], Command]:
    """--seed, how the networks run, and --out."""

    def decorate(command: Command) -> Command:
        return applied(
            command,
            [
                seed_option(chooses=True),
                click.option(
                    "--batch-size",
                    default=batch_size,
                    help="Run at most this many rows at once, one image's at least; it changes no result.",
                ),
                device_option,
                precision_option,
                click.option(
                    "--out",
                    required=True,
                    type=PATH,
                    help="Write to this run folder, or continue the run in it.",
                ),
            ],
        )

    return decorate


class WorkerCount(click.ParamType[int | str]):
    """A number of workers, or auto."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """See click."""
        try:
            return value if value == "auto" else int(value)
        except ValueError:
            self.fail(f"expected a whole number or auto, got {value!r}.", param, ctx)


WORKER_FLAGS = ("workers", "ray", "gpus_per_worker", "cpus_per_worker", "ship")


def worker_options(command: Command) -> Command:
    """Flags that share the work among processes; see `workforce`."""
    return applied(
        command,
        [
            click.option(
                "--workers",
                type=WorkerCount(),
                help="Share the work among this many processes of this machine, ≥ 1; auto: one a GPU, or one"
                " a core; extra diffproof[ray]. [default: do it here]",
            ),
            click.option(
                "--ray",
                help="Share it among workers of the Ray cluster at HOST:PORT, or auto; extra diffproof[ray].",
            ),
            click.option(
                "--gpus-per-worker",
                type=float,
                help="Let each worker have this many GPUs, or a share as in 0.5."
                " [default: 1 if there are any]",
            ),
            click.option(
                "--cpus-per-worker",
                type=int,
                help="Let each worker have this many processor cores, ≥ 1. [default: 1, or its share of this"
                " machine's]",
            ),
            click.option(
                "--ship",
                is_flag=True,
                help="Send weights and images to the workers, which read their own files otherwise.",
            ),
        ],
    )


def workforce(flags: dict[str, Any]) -> Workforce | None:
    """What the flags of `worker_options` ask for, which are taken out; None for work in this process.

    Raises:
        ValueError: a flag for workers where none are asked for, or one out of range.
    """
    from diffproof.scale.workforce import Workforce

    asked = {name: flags.pop(name) for name in WORKER_FLAGS}
    given = {name: value for name, value in asked.items() if value is not None and value is not False}
    if "workers" in given or "ray" in given:
        return Workforce(**given)
    for name in given:
        raise ArgumentError(name, "there are no workers without --workers or --ray")
    return None
