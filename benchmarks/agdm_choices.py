"""What AGDM's paper leaves open: where the guide is evaluated, which label, which distance; and its scale s.

Attacks each choice on digits by PGD with EOT and exact gradients, and prints accuracy on clean images and on
attacked ones, under fresh draws of noise: of one draw, of the majority, and under the worst.

    python benchmarks/agdm_choices.py --guide FILE [--images 64] [--budget 0.2] [--scales 1,4]

FILE is a guide of: diffproof train guide --data digits --budget 0.2 --iterations 300 --learning-rate 0.005
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from typing import Any

import diffproof as dp
from diffproof.defenses.purifying.agdm import Distance, Label, Where

ITERATIONS, EOT, DRAWS = 10, 4, 10


def row(name: str, defense: dp.Defense, data: dp.ImageData, threat: dp.Linf) -> None:
    """Attack a defence and print its scores."""
    began = time.perf_counter()
    evaluation = dp.evaluate(
        defense.requires_grad_(False),
        data.images,
        data.labels,
        attack=dp.PGD(iterations=ITERATIONS, eot=EOT if defense.random else 1),
        threat=threat,
        draws=DRAWS,
        votes=DRAWS,
        batch_size=256,
        seed=0,
    )
    both = evaluation.clean, evaluation.attacked
    shares = [share.value for scores in both for share in (scores.fresh, scores.majority, scores.worst)]
    seconds = time.perf_counter() - began
    print(f"{name:32s}" + "".join(f"{share:9.1%}" for share in shares) + f"{seconds:9.1f}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--guide", required=True, help="weights of the guide")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--t-star", type=float, default=0.15)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--scales", default="1,4", help="values of s, with commas between")
    given = parser.parse_args()

    whole = dp.load_data("digits", split="test")
    data = whole.select(range(0, len(whole), len(whole) // given.images)[: given.images])
    threat = dp.Linf(given.budget)
    denoiser, classifier = dp.load_denoiser("digits"), dp.load_classifier("digits")
    guide = dp.load_classifier(given.guide)
    print(
        f"{given.images} digits, linf {given.budget:g}, {ITERATIONS} steps, EOT {EOT}; t* = {given.t_star:g},"
        f" {given.steps} reverse steps; a standard error is at most {50 / math.sqrt(given.images):.0f} points"
    )
    columns = ("one draw", "majority", "worst")
    print(f"{'':32s}{'clean':>27s}{'attacked':>27s}")
    print(f"{'':32s}" + "".join(f"{name:>9s}" for name in columns * 2) + f"{'seconds':>9s}")
    for name, model in (("classifier alone", classifier), ("guide alone", guide)):
        row(name, dp.load_defense("none", classifier=model), data, threat)
    common = {"denoiser": denoiser, "classifier": classifier, "t_star": given.t_star, "steps": given.steps}
    row("diffpure ddpm", dp.load_defense("diffpure", solver="ddpm", **common), data, threat)
    scales = [float(scale) for scale in given.scales.split(",")]
    for scale, where, label, distance in itertools.product(scales, Where, Label, Distance):
        choice: dict[str, Any] = {"where": where, "label": label, "distance": distance, "scale": scale}
        defense = dp.load_defense("agdm", guide=guide, **common, **choice)
        row(f"agdm s={scale:g} {where} {label} {distance}", defense, data, threat)


if __name__ == "__main__":
    main()
