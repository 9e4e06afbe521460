"""diffproof purify."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffproof.cli.config import config_option
from diffproof.cli.defense_options import defense_options
from diffproof.cli.flags import command, device_option, precision_option
from diffproof.cli.paths import PATH
from diffproof.cli.run_options import (
    seed_option,
    settle_seed,
    skip_unreadable_option,
    worker_options,
    workforce,
)
from diffproof.cli.screen import Rows, said, show
from diffproof.wording import counted

if TYPE_CHECKING:
    from diffproof.runs.purify.job import Purified, PurifyRun
    from diffproof.scale.workforce import Workforce


@command()
@config_option
@click.argument("pictures", nargs=-1, required=True, type=PATH)
@defense_options("diffpure:t_star=0.1,steps=20", only_purify=True, can="purify")
@click.option(
    "--image-size",
    type=int,
    help="Resize pictures to this shorter side, then crop a square. [default: no]",
)
@skip_unreadable_option
@seed_option(chooses=False)
@click.option(
    "--batch-size", default=64, help="Purify at most this many at once, ≥ 1; this changes no result."
)
@device_option
@precision_option
@click.option("--out", required=True, type=PATH, help="Write to this folder.")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@worker_options
def purify(pictures: tuple[Path, ...], out: Path, force: bool, **flags: Any) -> None:
    """Purify PICTURES of your own with a diffusion model.

    PICTURES are files, and folders to search for png, jpg, webp, gif, tif and other pictures; subfolders
    keep their names in --out, hidden files are left out. Each picture is turned as its EXIF data says, put
    over white where it is transparent and read with 8 bits a channel. It must have the denoiser's size,
    unless --image-size brings it there.

    Purified pictures are PNG files with the names they had, beside sheet.png, which shows some of them before
    and after, and settings.yaml, which repeats the work: diffproof purify --config settings.yaml PICTURES
    --out elsewhere. With a classifier comes the label of each picture before and after, under a single draw
    of the noise.

    \b
      diffproof purify holiday --denoiser cifar10 --image-size 32 \\
          --defense diffpure:t_star=0.1,solver=ddpm,steps=20 --out purified
    """
    from diffproof.runs.database import SETTINGS, SHEET
    from diffproof.runs.purify.job import PurifySettings, prepare_purify

    asked = workforce(flags)
    settle_seed(flags)
    settings = PurifySettings(**flags)
    purified = _purify(prepare_purify(settings, pictures, out, force=force, here=asked is None), asked)
    if settings.classifier is not None:
        _print_labels(purified)
    said(f"written: {counted(len(purified), 'purified picture')}, {SHEET} and {SETTINGS} in {out}")


def _purify(job: PurifyRun, asked: Workforce | None) -> list[Purified]:
    """Here or on workers, with progress that counts denoiser evaluations."""
    from diffproof.cli.progress import shown_once_started
    from diffproof.runs.purify.networks import hired
    from diffproof.runs.purify.run import run_purify

    with shown_once_started(job.settings.defense, job.evaluations, "denoiser evaluations") as advance:
        if asked is None:
            return run_purify(job, advance)
        with hired(job, asked) as fleet:
            return run_purify(job, advance, fleet)


def _print_labels(purified: Sequence[Purified]) -> None:
    """A table on standard output, and how many labels changed."""
    rows = [(row.picture.name, row.before or "", row.after or "") for row in purified]
    show(Rows(("picture", "before", "after"), rows, numeric=False))
    changed = sum(row.before != row.after for row in purified)
    said(f"{changed} of {counted(len(purified), 'label')} changed, under one draw of the noise")
