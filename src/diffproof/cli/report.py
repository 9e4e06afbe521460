"""diffproof report: tables, comparisons and pictures of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click

from diffproof.catalog import BOUNDS
from diffproof.cli.documents import Document, of_ablation, of_attack_report, of_report
from diffproof.cli.flags import Names, check_force, command, json_option, refuse_given
from diffproof.cli.paths import PATH
from diffproof.cli.report_files import Files
from diffproof.cli.screen import print_json, printed
from diffproof.errors import ArgumentError
from diffproof.wording import counted


@command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option(
    "--at",
    help="Show certified accuracy at these ℓ2 radii ε, ≥ 0; certification runs only."
    " [default: 0,0.25,0.5,0.75,1]",
)
@click.option(
    "--bound",
    type=Names(BOUNDS),
    help="Bound the radii of certification runs in this way from their counts, such as by pixeldp, the bound"
    " before randomized smoothing. [default: each run's own]",
)
@click.option(
    "--over",
    type=Names(("votes", "draws")),
    help="Show what one run with --keep-ballots would have certified with fewer votes or draws.",
)
@click.option(
    "--against",
    type=PATH,
    help="Compare all others with this one of RUNS. [default: the first of each sigma or threat]",
)
@click.option("--out", type=PATH, help="Write tables (CSV) and pictures to this folder.")
@click.option("--html", type=PATH, help="Write a page for the browser, with every image, to this file.")
@click.option("--data", help="Take the images of --html from here. [default: packaged data of the runs]")
@click.option("--trust", is_flag=True, help="Open the data that RUNS name, for the images of --html.")
@click.option("--csv", type=PATH, help="Write the table to this file as CSV.")
@click.option("--latex", type=PATH, help="Write the table to this file as LaTeX; it needs booktabs.")
@click.option(
    "--figure",
    type=PATH,
    help="Draw a figure of one column's width to this file, a .pdf, .svg or .png: curves of all sigmas on one"
    " axis, or bars of clean and attacked accuracy.",
)
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@json_option
def report(
    runs: tuple[Path, ...],
    at: str | None,
    bound: str | None,
    over: str | None,
    against: Path | None,
    out: Path | None,
    data: str | None,
    trust: bool,
    force: bool,
    as_json: bool,
    **single: Path | None,
) -> None:
    """Compare RUNS, of `certify` or of `attack`.

    Runs of certification are compared by certified accuracy and average certified radius (ACR), and drawn as
    curves (curve.png). Runs of attacks are compared by robust accuracy beside that on clean images, with what
    the diagnostics found and sheets of pictures (clean, perturbed, difference, purified; pictures-RUN.png).

    Two runs are compared on the images that both have: the difference in points with its 95% score interval
    (Tango 1998), and the p-value of the exact McNemar test, corrected for all comparisons (Holm).

    The page of --html is one file that loads nothing: charts, tables, every image with its certificate or
    attack, settings, hashes, the command that repeats each run. Pictures of certified images are read from
    packaged data, from --data or, with --trust, from what RUNS name, and shown if their hashes are the runs'.
    """
    from diffproof.runs.reports import RADII, are_attacks

    given = {name: path for name, path in single.items() if path is not None}
    files = Files(out, given, force, data, trust)
    _check_files(files, over)
    radii = RADII if at is None else _radii(at)
    if over is not None:
        refuse_given("bound", "is of whole runs, not of fewer votes or draws, got --over too")
        refuse_given("against", "compares several runs, --over takes one")
        tell, document = _report_ablation(runs, radii, over, out, force)
    elif not are_attacks(runs):
        tell, document = _report_certified(runs, radii, against, files, bound)
    elif bound is not None:
        raise ArgumentError("bound", "radii are for certification runs, got attack runs")
    elif at is not None:
        raise ArgumentError("at", "radii are for certification runs, got attack runs")
    else:
        tell, document = _report_attacks(runs, against, files)
    if as_json:
        print_json(document)
        return
    tell()
    for path in document["written"]:
        printed(f"written: {path}")


# What prints a report for people, and what programs get.
Told = tuple[Callable[[], None], Document]


def _check_files(files: Files, over: str | None) -> None:
    check_force(files.out or next(iter(files.single), None))
    if "html" not in files.single:
        for name in ("data", "trust"):
            refuse_given(name, "is for --html, which is not given")
    for name in files.single if over is not None else ():
        raise ArgumentError(name, "shows whole runs, not what fewer votes or draws do, got --over too")
    files.check()


def _report_certified(
    runs: tuple[Path, ...], radii: Sequence[float], against: Path | None, files: Files, bound: str | None
) -> Told:
    from diffproof.cli.tables import print_report
    from diffproof.runs.certify.report import load_report

    loaded = load_report(runs, radii, against, bound)
    return partial(print_report, loaded), of_report(loaded, files.write_certified(loaded))


def _radii(at: str) -> list[float]:
    try:
        radii = [float(radius) for radius in at.encode("ascii").split(b",")]
    except ValueError:
        raise ArgumentError("at", f"expected numbers with commas between, got {at!r}") from None
    if len(set(radii)) != len(radii):
        raise ArgumentError("at", f"expected each radius once, got {at!r}")
    return radii


def _report_ablation(
    runs: tuple[Path, ...], radii: Sequence[float], over: str, out: Path | None, force: bool
) -> Told:
    from diffproof.cli.tables import print_ablation
    from diffproof.runs.attack.store import AttackStore
    from diffproof.runs.certify.ablation import Over, load_ablation, write_ablation
    from diffproof.runs.certify.report import check_at

    if len(runs) != 1 or AttackStore.holds(runs[0]):
        got = "an attack run" if len(runs) == 1 else counted(len(runs), "run")
        raise ArgumentError("over", f"expected one certification run, got {got}")
    ablation = load_ablation(runs[0], Over(over), check_at(radii))
    written = () if out is None else write_ablation(ablation, out, force=force)
    return partial(print_ablation, ablation), of_ablation(ablation, written)


def _report_attacks(runs: tuple[Path, ...], against: Path | None, files: Files) -> Told:
    from diffproof.cli.tables import print_attack_report
    from diffproof.runs.attack.report import load_attack_report

    loaded = load_attack_report(runs, against)
    return partial(print_attack_report, loaded), of_attack_report(loaded, files.write_attacked(loaded))
