"""diffproof certify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffproof.catalog import BOUNDS, NOISES, STOPS
from diffproof.cli.config import config_option
from diffproof.cli.defense_options import defense_options
from diffproof.cli.flags import Names, command
from diffproof.cli.run_options import (
    data_options,
    run_options,
    settle_seed,
    shard_option,
    tell_layout,
    tell_shard,
    worker_options,
    workforce,
)
from diffproof.wording import counted

if TYPE_CHECKING:
    from diffproof.smoothing.certificate import Certificate


@command()
@config_option
@data_options
@defense_options("densepure:steps=10,votes=40", guide=False, can="certify")
@click.option(
    "--sigma",
    required=True,
    type=float,
    help="Add noise of this standard deviation, > 0; pixels lie in [0, 1].",
)
@click.option("--n0", default=100, help="Choose the class by this many draws of noise, ≥ 1.")
@click.option("--n", default=10_000, help="Bound its probability by this many further draws, ≥ 1.")
@click.option(
    "--alpha", default=0.001, help="Let a certificate be wrong with at most this probability, in (0, 1)."
)
@click.option(
    "--bound",
    type=Names(BOUNDS),
    default="one-sided",
    help="Bound p_A alone (one-sided), or p_A and p_B (two-sided); pixeldp takes differential privacy's"
    " far smaller radius.",
)
@click.option(
    "--stop",
    type=Names(STOPS),
    default="fixed",
    help="End the --n draws when all are made (fixed), or as soon as what is asked is proved or hopeless"
    " (sequential).",
)
@click.option(
    "--radii",
    help="Ask a sequential run for these ℓ2 radii, ascending, ≥ 0, as in 0.25,0.5. [default: the largest]",
)
@click.option(
    "--tolerance",
    type=float,
    help="Without --radii, end a sequential run's draws when the radius will hardly grow by more, > 0."
    " [default: 0.01]",
)
@click.option(
    "--futility",
    type=float,
    help="End a sequential run's draws when what is lacking has at most this chance, in [0, 1]."
    " [default: 0.02]",
)
@click.option(
    "--exact-share",
    type=float,
    help="Give this share of alpha to an exact test of all n draws in a sequential run, in [0, 1); more of it"
    " takes more draws. [default: 0.5, or what a run was begun with]",
)
@click.option(
    "--scales",
    help="Smooth at several noise levels, ascending, > 0, as in 0.25,0.5,1 (--sigma the largest): the largest"
    " at which a class is likelier than --threshold answers. Draws are shared between them. [default: one]",
)
@click.option(
    "--threshold", type=float, help="With --scales, the probability to answer, in [0.5, 1). [default: 0.5]"
)
@click.option(
    "--chooser",
    help="Let this classifier, whose classes are the --scales and whose noise is --sigma, choose one for each"
    " image.",
)
@click.option(
    "--until-half-width",
    type=float,
    help="Take images in random order until certified accuracy of all, at radius 0 and --radii, is known to"
    " ± this at 95%, in (0, 0.5). [default: take all]",
)
@click.option(
    "--keep-ballots",
    is_flag=True,
    help="Keep every vote of a defence that votes, for `diffproof report --over`. [default: do not]",
)
@click.option(
    "--noise",
    type=Names(NOISES),
    default="grid",
    help="Add noise in whole levels of a pixel, exactly (grid), or as in the literature (continuous),"
    " whose certificates rounding can break.",
)
@click.option(
    "--levels",
    type=int,
    help="Take images as multiples of 1 / this, ≥ 1; those of the data by default, 255 for pictures.",
)
@click.option("--compile/--no-compile", help="Compile the networks, to start minutes later and run faster.")
@shard_option
@run_options(batch_size=256)
@worker_options
def certify(out: Path, **flags: Any) -> None:
    """Certify images of a data set into a run folder.

    \b
    --data        digits, cifar10, cifar100, imagenet, a Hub id (owner/name),
                  a folder of class folders, a .parquet or .npz file
    --denoiser    digits, cifar10, a file of `diffproof train denoiser`, the folder or
                  Hub id of a diffusers pipeline, openai:PRESET@FILE,
                  score_sde:PRESET@FILE, edm:PRESET@FILE, or
                  empirical:DATA[:SPLIT[:COUNT]], the exact one of a data set
    --classifier  digits, a file of `diffproof train classifier` or `finetune`,
                  hf:FOLDER or hf:HUB_ID, resnet56@FILE, timm:NAME,
                  torchvision:NAME, robustbench:NAME, module.path:factory@FILE,
                  or ensemble:A,B,…, the sum of the logits of two of these or more

    The Hub's data sets, .parquet files and hf: need the extra hf (pip install 'diffproof[hf]'); timm:,
    torchvision: and robustbench: the extras of these names; workers the extra ray.

    Of the defence dc, the denoiser itself classifies: it must be class-conditional, and the data's labels are
    its labels.

    The same command continues an interrupted run; nothing finished is done again. The folder's settings.yaml
    repeats the run: diffproof certify --config settings.yaml --out elsewhere.
    """
    from diffproof.runs.folder import check_free

    # Before torch and the networks are loaded.
    check_free(out)
    from diffproof.cli.progress import run_with_progress
    from diffproof.cli.screen import printed, said
    from diffproof.runs.certify.accuracy import accuracies, told
    from diffproof.runs.certify.job import prepare
    from diffproof.runs.certify.report import draws_saved
    from diffproof.runs.certify.store import CertifyStore, certification
    from diffproof.runs.settings import CertifySettings

    asked = workforce(flags)
    stored = settle_seed(flags, out, CertifyStore)
    if flags["exact_share"] is None and flags["stop"] != "fixed" and isinstance(stored, CertifySettings):
        # Runs that were begun before there was an exact test go on without.
        flags["exact_share"] = stored.exact_share
    settings = CertifySettings(**flags)
    job = prepare(settings, here=asked is None)
    tell_layout(job.data)
    n = "n" if settings.stop == "fixed" else f"{settings.stop} n"
    limit = f"{n} = {settings.n} and alpha = {settings.alpha:g} allow radii up to {job.largest_radius:.4f}"
    if settings.radii is not None and settings.stop != "fixed":
        limit = f"asked for radii {settings.radii}"
    elif job.largest_radius <= 0.0:
        printed(f"diffproof: warning: {limit}: n is too small to certify any radius", err=True)
    try:
        results = run_with_progress(job, out, asked)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command continues where it stopped") from None
    certified = certification(results)
    said(
        f"{settings.describe()}, sigma = {settings.sigma:g}: {counted(len(results), 'image')}, certified"
        f" accuracy {certified.certified_accuracy().value:.1%}, average certified radius"
        f" {certified.average_radius:.3f}, abstained {certified.abstained.value:.1%} ({limit})"
    )
    first = results[0].certificate
    if first.image_size is not None and first.classifier_size not in (None, first.image_size):
        noised, seen = ("×".join(map(str, size)) for size in (first.image_size, first.classifier_size))
        said(f"radii are ℓ2 at {noised}, where noise was added; the classifier works at {seen}")
    said(_held_for(first, sum(result.certificate.moved > _MOVED for result in results)))
    if not first.seed_drawn:
        said(f"the {first.seed_told}")
    shares = accuracies({result.image_index: result for result in results}, job.indices, job.settings)
    if shares:
        said(told(shares, len(job.indices)))
    if settings.stop != "fixed":
        said(draws_saved(settings, sum(result.certificate.n for result in results) / len(results)))
    spent = [sum(getattr(r.certificate, name) for r in results) for name in _EVALUATIONS]
    parts = [
        f"{name} {used:,} instead of {naive:,} ({used / naive:.0%})"
        for name, used, naive in (("denoiser", *spent[:2]), ("classifier", *spent[2:]))
        if used != naive
    ]
    if parts:
        said(f"evaluations: {', '.join(parts)}")
    tell_shard(settings.shard, len(job.part), len(job.indices))
    said(f"run folder: {out}")


# ℓ2 distance that rounding of pixels to floating point does not explain.
_MOVED = 1e-4


def _held_for(certificate: Certificate, moved: int) -> str:
    """What images a run's radii hold for; `moved` of its own were not among them."""
    if certificate.levels is None:
        return "continuous noise: radii hold for real numbers, not for floating point; --noise grid is sound"
    to_grid = f"; {counted(moved, 'image')} brought there first" if moved else ""
    return (
        f"radii hold for images in steps of 1/{certificate.levels}{to_grid}; for any other, less"
        f" {certificate.off_grid:.3f}"
    )


_EVALUATIONS = (
    "denoiser_evaluations",
    "naive_denoiser_evaluations",
    "classifier_evaluations",
    "naive_classifier_evaluations",
)
