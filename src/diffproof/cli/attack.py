"""diffproof attack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from diffproof.catalog import GRADIENTS, PROTOCOLS, THREATS
from diffproof.cli.config import config_option
from diffproof.cli.defense_options import defense_options
from diffproof.cli.flags import MethodText, Names, command
from diffproof.cli.run_options import (
    applied,
    data_options,
    run_options,
    settle_seed,
    shard_option,
    tell_layout,
    tell_shard,
    worker_options,
    workforce,
)
from diffproof.cli.screen import printed


def attack_options(command: Any) -> Any:
    """The attack, what it may change, and how the defence is scored after it."""
    return applied(
        command,
        [
            click.option(
                "--threat",
                type=Names(THREATS),
                required=True,
                help="Let pixels change (linf, l2) or move (stadv), or features change (perceptual).",
            ),
            click.option(
                "--budget",
                required=True,
                help="Allow at most this, > 0: 8/255 of [0, 1] pixels, of half the width for stadv, or a"
                " distance of features for perceptual.",
            ),
            click.option(
                "--attack",
                type=MethodText("attack"),
                help="Run this attack with its settings, such as pgd:iterations=200,eot=20; `diffproof"
                " methods` lists them. [default: the protocol's, or pgd]",
            ),
            click.option(
                "--gradient",
                type=Names(GRADIENTS),
                help="Follow this gradient. [default: the protocol's, or exact]",
            ),
            click.option(
                "--surrogate-share",
                type=float,
                help="Let the surrogate take this share of the steps, in (0, 1]. [default: 0.1]",
            ),
            click.option(
                "--protocol",
                type=Names(PROTOCOLS),
                help="Attack and score as this paper does. [default: none]",
            ),
            click.option(
                "--draws",
                type=int,
                help="Score an image under this many fresh draws of noise, ≥ 1. [default: the protocol's, or"
                " 10]",
            ),
            click.option(
                "--majority-of",
                type=int,
                help="Let this many draws vote on its label, ≥ 1. [default: the protocol's, or 10]",
            ),
            click.option(
                "--fixed-noise",
                is_flag=True,
                help="Attack once more, knowing the noise of the answer: how much of the robustness is the"
                " randomness. [default: do not]",
            ),
            click.option(
                "--diagnose", default=4, help="Test the evaluation itself on this many images, 0 for none."
            ),
        ],
    )


@command()
@config_option
@data_options
@defense_options("diffpure:t_star=0.1,steps=20")
@attack_options
@shard_option
@run_options(batch_size=64)
@worker_options
def attack(out: Path, **flags: Any) -> None:
    """Attack a defence on images of a data set, and score it, into a run folder.

    \b
    --data        digits, cifar10, cifar100, imagenet, a Hub id (owner/name),
                  a folder of class folders, a .parquet or .npz file
    --denoiser, --classifier, --guide   see diffproof certify --help

    Images that the defence gets wrong without an attack are not attacked, and count as wrong. Every score is
    reported beside the same score on the clean images; the noise it is scored under is not the attack's. The
    evaluation itself is tested first, on a few images: whether the gradient is that of the defence, whether a
    larger budget helps the attack, and so on; `diffproof report` says what did not pass.

    The same command continues an interrupted run; nothing finished is done again. The folder's settings.yaml
    repeats the run: diffproof attack --config settings.yaml --out elsewhere.
    """
    from diffproof.runs.folder import check_free

    # Before torch and the networks are loaded.
    check_free(out)
    from diffproof.cli.progress import attack_with_progress
    from diffproof.cli.tables import print_attack_report
    from diffproof.runs.attack.job import prepare
    from diffproof.runs.attack.report import load_attack_report
    from diffproof.runs.attack.store import AttackStore
    from diffproof.runs.settings import AttackRequest

    asked = workforce(flags)
    settle_seed(flags, out, AttackStore)
    job = prepare(AttackRequest(**flags), here=asked is None)
    tell_layout(job.data)
    try:
        attack_with_progress(job, out, asked)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command continues where it stopped") from None
    print_attack_report(load_attack_report([out]))
    tell_shard(job.settings.shard, len(job.part), len(job.indices))
    printed(f"run folder: {out}")
