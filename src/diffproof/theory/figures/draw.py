"""The pictures of `diffproof theory`, computed and written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from matplotlib.figure import Figure

from diffproof.files import check_out
from diffproof.pictures import save_chart
from diffproof.theory.figures.bound import bounds
from diffproof.theory.figures.charts import draw_agreement, draw_bounds, draw_convergence, draw_digits
from diffproof.theory.figures.converging import converge
from diffproof.theory.figures.planes import draw_attack, draw_decisions, draw_overlap, draw_regions
from diffproof.theory.figures.results import (
    agreement,
    attack,
    decisions,
    digit_radii,
    overlap,
    regions,
)
from diffproof.theory.figures.setting import Setting

T = TypeVar("T")

PICTURES = (
    "density.png",
    "posterior.png",
    "regions.png",
    "decisions.png",
    "agreement.png",
    "convergence.png",
    "bound.png",
    "digits.png",
)


def draw_theory(setting: Setting, points: int, out: Path, *, force: bool) -> list[tuple[Path, str]]:
    """Compute all pictures, then write them.

    Args:
        setting: what they are of.
        points: how many points the support has whose regions are drawn.
        out: folder, made if it is not there.
        force: overwrite pictures that are there.

    Returns:
        Each file and what it shows.

    Raises:
        ValueError: a picture is there already and `force` is not given, or as `regions` and `converge`.
        OSError: the folder cannot be written.
    """
    check_out(out, PICTURES, force=force)
    # First what may refuse its arguments.
    drawn_regions = regions(setting, points)
    attacked = attack(setting)
    noisy = attacked.points[1]
    converged = converge(setting, noisy)
    bounded = bounds(setting.marginal(), float(noisy[0]), setting.sigma, setting.generator(7))
    pictures: list[tuple[str, Figure]] = [
        _drawn(overlap(setting), draw_overlap),
        _drawn(attacked, draw_attack),
        _drawn(drawn_regions, draw_regions),
        _drawn(decisions(setting), draw_decisions),
        _drawn(agreement(setting), draw_agreement),
        _drawn(converged, draw_convergence),
        _drawn(bounded, draw_bounds),
        _drawn(digit_radii(), draw_digits),
    ]
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (shown, figure) in zip(PICTURES, pictures, strict=True):
        save_chart(out / name, figure, dpi=120)
        written.append((out / name, shown))
    return written


def _drawn(result: T, draw: Callable[[T], Figure]) -> tuple[str, Figure]:
    return str(result), draw(result)
