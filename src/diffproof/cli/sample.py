"""diffproof sample."""

from __future__ import annotations

from pathlib import Path

import click

from diffproof.cli.flags import command, device_option
from diffproof.cli.paths import PATH
from diffproof.cli.screen import said
from diffproof.errors import ArgumentError
from diffproof.wording import counted


@command()
@click.option("--denoiser", required=True, help="Use this diffusion model; see diffproof certify --help.")
@click.option("--n", required=True, type=int, help="Draw this many samples, ≥ 1.")
@click.option("--steps", default=50, help="Take this many denoiser evaluations a sample, ≥ 1.")
@click.option(
    "--seed", default=0, help="Seed all noise with this integer, in [0, 2^64): the same samples every time."
)
@click.option("--batch-size", default=64, help="Draw at most this many at once, ≥ 1.")
@device_option
@click.option("--out", required=True, type=PATH, help="Write them to this .npz file.")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
def sample(
    denoiser: str,
    n: int,
    steps: int,
    seed: int,
    batch_size: int,
    device: str,
    out: Path,
    force: bool,
) -> None:
    """Draw labelled images from a class-conditional diffusion model, as a data set.

    Classes take turns, and samples are ancestral, from pure noise. The same command goes on with a work that
    was interrupted. The file is for --extra-data of `diffproof train`, or any --data.

    \b
      diffproof sample --denoiser cifar10 --n 50000 --out generated.npz
      diffproof train classifier --data cifar10 --adversarial trades --trades-weight 5 \\
          --label-smoothing 0.1 --extra-data generated.npz --extra-share 0.7 \\
          --ema-decay 0.995 --out robust.safetensors
    """
    from diffproof.checks import loading
    from diffproof.cli.progress import shown_once_started
    from diffproof.denoisers.named import load_denoiser
    from diffproof.files import check_out_file
    from diffproof.runs.prepare import resolve_device
    from diffproof.training.generated import write_samples

    if out.suffix != ".npz":
        raise ArgumentError("out", f"expected an .npz file, got {out}")
    check_out_file(out, force=force)
    where = resolve_device(device)
    with loading("denoiser"):
        network = load_denoiser(denoiser).to(where)
    with shown_once_started(denoiser, n, "samples") as advance:
        done = 0

        def on_done(number: int) -> None:
            nonlocal done
            advance(number - done)
            done = number

        write_samples(network, out, n=n, steps=steps, seed=seed, batch_size=batch_size, on_done=on_done)
    said(f"written: {counted(n, 'sample')} in {out}")
