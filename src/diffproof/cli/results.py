"""diffproof report, export and verify: what to do with run folders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from diffproof.cli.documents import Document, of_ablation, of_attack_report, of_report
from diffproof.cli.flags import Names, command, device_option, json_option, refuse_given
from diffproof.cli.paths import PATH
from diffproof.cli.screen import print_json, said
from diffproof.errors import ArgumentError, printable
from diffproof.wording import counted


@command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option(
    "--at",
    help="Show certified accuracy at these ℓ2 radii ε, ≥ 0; certification runs only."
    " [default: 0,0.25,0.5,0.75,1]",
)
@click.option(
    "--over",
    type=Names(("votes", "draws")),
    help="Show what one run with --keep-ballots would have certified with fewer votes or draws.",
)
@click.option("--out", type=PATH, help="Write tables (CSV) and pictures to this folder.")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@json_option
def report(
    runs: tuple[Path, ...], at: str | None, over: str | None, out: Path | None, force: bool, as_json: bool
) -> None:
    """Compare RUNS, of `certify` or of `attack`.

    Runs of certification are compared by certified accuracy and average certified radius (ACR), and drawn as
    curves (curve.png). Runs of attacks are compared by robust accuracy beside that on clean images, with what
    the diagnostics found and sheets of pictures (clean, perturbed, difference, purified; pictures-RUN.png).
    """
    from diffproof.runs.attack.store import AttackStore

    _check_force(out)
    attacks = [AttackStore.holds(run) for run in runs]
    radii = "0,0.25,0.5,0.75,1" if at is None else at
    if over is not None:
        tell, document = _report_ablation(runs, attacks, radii, over, out, force)
    elif not any(attacks):
        tell, document = _report_certified(runs, radii, out, force)
    elif not all(attacks):
        raise ArgumentError("runs", "expected runs of one kind, got certification and attack runs")
    elif at is not None:
        raise ArgumentError("at", "radii are for certification runs, got attack runs")
    else:
        tell, document = _report_attacks(runs, out, force)
    if as_json:
        print_json(document)
        return
    tell()
    for path in document["written"]:
        click.echo(printable(f"written: {path}"))


# What prints a report for people, and what programs get.
Told = tuple[Callable[[], None], Document]


def _check_force(out: Path | None) -> None:
    if out is None:
        refuse_given("force", "is for --out, which is not given")


def _report_certified(runs: tuple[Path, ...], at: str, out: Path | None, force: bool) -> Told:
    from diffproof.cli.progress import print_report
    from diffproof.runs.certify.figures import write_report
    from diffproof.runs.certify.report import load_report

    loaded = load_report(runs, _radii(at))
    written = () if out is None else write_report(loaded, out, force=force)
    return partial(print_report, loaded), of_report(loaded, written)


def _radii(at: str) -> list[float]:
    try:
        radii = [float(radius) for radius in at.encode("ascii").split(b",")]
    except ValueError:
        raise ArgumentError("at", f"expected numbers with commas between, got {at!r}") from None
    if len(set(radii)) != len(radii):
        raise ArgumentError("at", f"expected each radius once, got {at!r}")
    return radii


def _report_ablation(
    runs: tuple[Path, ...], attacks: list[bool], at: str, over: str, out: Path | None, force: bool
) -> Told:
    from diffproof.cli.progress import print_ablation
    from diffproof.runs.certify.ablation import Over, load_ablation, write_ablation
    from diffproof.runs.certify.report import check_at

    if len(runs) != 1 or any(attacks):
        got = "an attack run" if len(runs) == 1 else counted(len(runs), "run")
        raise ArgumentError("over", f"expected one certification run, got {got}")
    ablation = load_ablation(runs[0], Over(over), check_at(_radii(at)))
    written = () if out is None else write_ablation(ablation, out, force=force)
    return partial(print_ablation, ablation), of_ablation(ablation, written)


def _report_attacks(runs: tuple[Path, ...], out: Path | None, force: bool) -> Told:
    from diffproof.cli.progress import print_attack_report
    from diffproof.runs.attack.report import load_attack_report, write_attack_report

    loaded = load_attack_report(runs)
    written = () if out is None else write_attack_report(loaded, out, force=force)
    return partial(print_attack_report, loaded), of_attack_report(loaded, written)


@command()
@click.argument("run", type=PATH)
@click.option(
    "--format",
    "form",
    help="Write cohen (the TSV of Cohen et al. 2019, for certifications), csv or json."
    " [default: cohen, csv for attacks]",
)
@click.option("--out", type=PATH, help="Write to this file instead of standard output.")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
def export(run: Path, form: str | None, out: Path | None, force: bool) -> None:
    """Write the results of RUN, image by image; docs/runs.md says what the columns mean."""
    from diffproof.files import check_out_file, replacing
    from diffproof.runs.export import export as export_run

    _check_force(out)
    text = export_run(run, form)
    if out is None:
        click.echo(text, nl=False)
        return
    check_out_file(out, force=force)
    with replacing(out) as fresh:
        fresh.write_text(text, encoding="utf-8")
    click.echo(printable(f"written: {out}"))


@command()
@click.argument("run", type=PATH)
@click.option("--counts", is_flag=True, help="Check the stored counts alone, without data and networks.")
@click.option("--data", help="Take the data from here. [default: where the run says]")
@click.option("--denoiser", help="Take the diffusion model from here. [default: where the run says]")
@click.option("--classifier", help="Take the classifier from here. [default: where the run says]")
@click.option("--guide", help="Take the guide from here. [default: where the run says]")
@click.option("--trust", is_flag=True, help="Open the files and run the code that RUN itself names.")
@click.option("--resample", default=0, help="Draw the noise of this many images again, ≥ 0.")
@device_option
@json_option
def verify(
    run: Path, counts: bool, trust: bool, resample: int, device: str, as_json: bool, **given: str | None
) -> int:
    """Check what RUN holds against its data and weights, and draw some images again.

    Of a certification, every radius must follow from its counts. Of an attack, every perturbation of pixels
    must stay within its budget, and the labels after the attack are what is drawn again. The exit status is 1
    if anything does not hold.

    Files and code that RUN names are not touched without --trust, packaged data and networks aside. A path
    that it names is one from the current folder or else from RUN; hashes tell whether what is there is what
    the run was made with.
    """
    from diffproof.runs.attack.store import AttackStore
    from diffproof.runs.attack.verify import verify_attack
    from diffproof.runs.certify.verify import verify as verify_certified
    from diffproof.runs.places import Places

    places = {name: value for name, value in given.items() if value is not None}
    if counts and (places or trust):
        name, got = next(iter(places.items()), ("trust", ""))
        raise ArgumentError(name, f"--counts needs neither data nor networks, got --{name} {got}".rstrip())
    if counts:
        refuse_given("device", f"--counts runs no network, got --device {device}")
    attacked = AttackStore.holds(run)
    outcome = (verify_attack if attacked else verify_certified)(
        run, resample=resample, device=device, places=None if counts else Places(places, trust)
    )
    if as_json:
        print_json(outcome)
        return 1 if outcome.failures else 0
    what = counted(outcome.checked, "attacked image" if attacked else "certificate")
    for line in (*outcome.remarks, *outcome.failures):
        said(line)
    if outcome.covered:
        said(f"checked: {outcome.covered}")
        said(f"not checked: {outcome.left or 'nothing'}")
    again = f", {len(outcome.resampled)} drawn again" if outcome.resampled else ""
    if outcome.failures:
        said(f"{counted(len(outcome.failures), 'failure')} in {what}{again}")
        return 1
    said(f"{what} {'holds' if outcome.checked == 1 else 'hold'}{again}")
    return 0
