"""diffproof merge."""

from __future__ import annotations

from pathlib import Path

import click

from diffproof.cli.flags import command, json_option
from diffproof.cli.paths import PATH
from diffproof.cli.screen import print_json, said
from diffproof.wording import counted


@command()
@click.argument("out", type=PATH)
@click.argument("shards", nargs=-1, required=True, type=PATH)
@json_option
def merge(out: Path, shards: tuple[Path, ...], as_json: bool) -> None:
    """Join all SHARDS of a run, made with --shard, to the run folder OUT of the whole run.

    Each shard must be finished and there once, in any order; they are only read. OUT is the folder of a run
    without --shard: the same certificates, ballots, attacked images and findings. It appears whole or not at
    all.
    """
    from diffproof.runs.merge import merge as merge_shards

    try:
        merged = merge_shards(out, shards)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("nothing was merged; the same command begins again") from None
    if as_json:
        print_json(merged)
        return
    what = f"{counted(merged.shards, 'shard')}, {counted(merged.images, 'image')}"
    said(f"merged to one {merged.kind}: {what}")
    said(f"run folder: {out}")
