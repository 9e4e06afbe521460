"""diffproof export and verify: what to do with run folders."""

from __future__ import annotations

from pathlib import Path

import click

from diffproof.cli.flags import check_force, command, device_option, json_option, refuse_given
from diffproof.cli.paths import PATH
from diffproof.cli.screen import echo, print_json, printed, said
from diffproof.errors import ArgumentError
from diffproof.wording import counted


@command()
@click.argument("run", type=PATH)
@click.option(
    "--format",
    "form",
    help="Write csv, json, of certifications cohen (the TSV of Cohen et al. 2019) or of attacks robustbench"
    " (an entry of its leaderboards)."
    " [default: cohen, csv for attacks]",
)
@click.option("--out", type=PATH, help="Write to this file instead of standard output.")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
def export(run: Path, form: str | None, out: Path | None, force: bool) -> None:
    """Write the results of RUN, image by image; docs/runs.md says what the columns mean."""
    from diffproof.files import check_out_file, replacing
    from diffproof.runs.export import export as export_run

    check_force(out)
    text = export_run(run, form)
    if out is None:
        echo(text, nl=False)
        return
    check_out_file(out, force=force)
    with replacing(out) as fresh:
        fresh.write_text(text, encoding="utf-8")
    printed(f"written: {out}")


@command()
@click.argument("run", type=PATH)
@click.option("--counts", is_flag=True, help="Check the stored counts alone, without data and networks.")
@click.option("--data", help="Take the data from here. [default: where the run says]")
@click.option("--denoiser", help="Take the diffusion model from here. [default: where the run says]")
@click.option("--classifier", help="Take the classifier from here. [default: where the run says]")
@click.option("--guide", help="Take the guide from here. [default: where the run says]")
@click.option("--chooser", help="Take the chooser of noise levels from here. [default: where the run says]")
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
