"""diffproof theory: the theorems of certified purification as pictures."""

from __future__ import annotations

from pathlib import Path

import click

from diffproof.cli.flags import command
from diffproof.cli.paths import PATH
from diffproof.cli.screen import said


@command()
@click.option(
    "--density",
    type=PATH,
    help="Take the density of this JSON file; see above. [default: one of 3 classes]",
)
@click.option("--t-star", default=0.1, help="Diffuse to this time of DiffPure's schedule, in (0, 1].")
@click.option(
    "--points",
    default=12,
    help="Draw regions of this many points, at least one a class.",
)
@click.option(
    "--seed", default=0, help="Seed all noise with this integer, in [0, 2^64): the same pictures every time."
)
@click.option("--out", required=True, type=PATH, help="Write the pictures to this folder.")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
def theory(density: Path | None, t_star: float, points: int, seed: int, out: Path, force: bool) -> None:
    """Draw what the theory says, on classes of two pixels and on digits.

    Eight pictures, computed from a density that is known exactly: the density and its diffused form
    (density.png), the posterior under an attack (posterior.png), robust regions (regions.png), decision
    regions of DDS, DensePure and the high-density purifier (decisions.png), DensePure's votes
    (agreement.png), the reverse process's order (convergence.png), the bound on learned denoisers (bound.png)
    and robust radii of digits (digits.png). It prints a line of figures on each and takes half a minute.

    The density is a Gaussian mixture in [0, 1]²:

    \b
      {"means": [[0.3, 0.4], [0.7, 0.6]], "covariances": [0.002, 0.004],
       "weights": [0.6, 0.4], "labels": [0, 1]}

    Covariances are variances, or 2×2 matrices; without weights, all are equal.
    """
    from diffproof.theory.figures.draw import draw_theory
    from diffproof.theory.figures.setting import make_setting

    for path, shown in draw_theory(make_setting(density, t_star, seed), points, out, force=force):
        said(f"{path}: {shown}")
