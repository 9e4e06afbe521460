"""diffproof data."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from diffproof.cli.flags import command
from diffproof.cli.screen import echo, printed

if TYPE_CHECKING:
    from diffproof.data.survey import Survey

_WIDTH = 80
# Rows of a table of classes, and sizes that are named.
_CLASSES, _SIZES = 30, 5


@command()
@click.argument("source", metavar="DATA")
@click.option("--split", help="Look at this split. [default: all of a folder, else test or the only one]")
def data(source: str, split: str | None) -> int:
    """Check every image of DATA before a run: what is there, and what cannot be read.

    DATA is a folder of pictures, a .parquet or .npz file, or any other --data of diffproof certify. Printed
    are the splits and classes that were found, with their images, the modes and sizes of these, how many are
    there twice, and each picture that cannot be read; the exit status is 1 if there is one.
    """
    from diffproof.cli.progress import shown_once_started
    from diffproof.data.survey import open_splits, survey
    from diffproof.wording import counted

    unreadable, seen = 0, dict[str, tuple[str, int]]()
    for images in open_splits(source, split):
        with shown_once_started(images.name, len(images), "images") as advance:
            found = survey(images, advance, seen)
        _print(found)
        unreadable += len(found.unreadable)
    if unreadable:
        printed(
            f"{counted(unreadable, 'picture')} cannot be read; --skip-unreadable leaves such pictures out"
        )
        return 1
    printed("every image can be read")
    return 0


def _print(found: Survey) -> None:
    from diffproof.pictures import is_grey
    from diffproof.wording import counted, shortened

    images = found.data
    about = f"{images.name}: {counted(len(images), 'image')} in split {images.split}"
    about += f", {counted(len(images.class_names), 'class', 'classes')}"
    _line(images.layout or about, "")
    if images.labelled:
        _print_classes(found)
    if found.modes:
        modes = ", ".join(f"{count:,} {mode}" for mode, count in found.modes.most_common())
        channels = 1 if all(is_grey(mode) for mode in found.modes) else 3
        _line(f"modes: {modes}; {counted(channels, 'channel')} where the networks do not say")
    sizes = [f"{count:,} of {width}×{height}" for (width, height), count in found.sizes.most_common()]
    if len(sizes) == 1:
        _line(f"size: all {sizes[0].split()[-1]} (width×height)")
    elif sizes:
        several = f"sizes (width×height): {shortened(sizes, _SIZES)}"
        _line(f"{several}; --image-size brings them to one")
    if found.repeated:
        same = [
            f"{count:,} in split {split}{' with another label' * other}"
            for (split, other), count in found.repeated.items()
        ]
        _line(f"the same as an image before: {', '.join(same)}")
    for problem in found.unreadable:
        printed(f"unreadable: {problem}", indent="  ")


def _print_classes(found: Survey) -> None:
    """Labels, names and images of the classes, within the width."""
    import torch

    from diffproof.errors import printable
    from diffproof.wording import counted

    images = found.data
    counts = torch.bincount(images.labels, minlength=len(images.class_names)).tolist()
    echo("   label    images  class")
    for label, (count, name) in list(enumerate(zip(counts, images.class_names, strict=True)))[:_CLASSES]:
        echo(f"  {label:>6}{count:>10,}  {printable(name, _WIDTH - 20)}")
    if len(counts) > _CLASSES:
        rest = counts[_CLASSES:]
        more = counted(len(rest), "more class", "more classes")
        _line(f"and {more} with {min(rest):,} to {max(rest):,} images, {sum(rest):,} together")


def _line(text: str, indent: str = "  ") -> None:
    """A paragraph, of several lines where it is longer than the width; paths stay whole."""
    broken = textwrap.wrap(text, _WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    for line in broken:
        printed(line, indent=indent)
        indent = "    "
