"""How full networks are when draws of many images share batches, beside one image after another.

Fill is the share of the rows of all network calls, each of a batch at most, that held a draw; what is in vain
are evaluations for draws that turned out to be needless. Both are counts, the same on every machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import diffproof as dp
from diffproof.smoothing.schedule import Counting, Schedule
from diffproof.smoothing.sequential import RadiusTest
from diffproof.smoothing.tally import Looking, Looks

SIGMA, ALPHA, N0, BATCH = 0.5, 0.001, 100, 256


def counted(
    smoothed: dp.Smoothed, data: dp.ImageData, groups: Sequence[Sequence[int]], looks: Looking
) -> None:
    """Count the draws of groups of images, and print what that took."""
    rows = slots = vain = evaluations = 0
    for images in groups:
        schedule = Schedule(images, lambda index: Counting(index, N0, looks, smoothed.num_classes))
        packing = smoothed.packing(schedule, data.pixels.__getitem__, seed=0, batch_size=BATCH)
        while packing.step():
            for index in schedule.finished():
                evaluations += schedule.close(index).counted.evaluations
        rows, slots = rows + packing.labeller.rows, slots + packing.labeller.slots
        vain += schedule.vain
    name = "images together" if len(groups) == 1 else "one image after another"
    calls = f"{slots // BATCH:,} network calls"
    print(f"  {name}: {rows / slots:.1%} full, {vain / (evaluations + vain):.2%} in vain, {calls}")


def main() -> None:
    """Print fill and what is in vain."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--images", type=int, default=32, help="images of the digits, spread evenly (default: 32)"
    )
    parser.add_argument("--n", type=int, default=5_000, help="most draws of an image (default: 5000)")
    asked = parser.parse_args()
    data = dp.load_data("digits")
    indices = range(0, len(data), max(1, len(data) // asked.images))[: asked.images]
    denoiser, classifier = dp.load_denoiser("digits"), dp.load_classifier("digits")
    radii = RadiusTest([0.0, 0.25, 0.5, 0.75], sigma=SIGMA, alpha=ALPHA, n=asked.n)
    ways: dict[str, Looking] = {"sequential": radii, f"n = {N0 * 5}": Looks((N0 * 5,))}
    for text in ("dds", "densepure:steps=2,votes=10,consensus=3"):
        defense = dp.load_defense(text, classifier=classifier, denoiser=denoiser)
        assert isinstance(defense, dp.CertifiableDefense)
        smoothed = dp.Smoothed(defense, SIGMA)
        for way, looks in ways.items():
            print(f"{text}, {way}, {len(indices)} images, batch {BATCH}:")
            counted(smoothed, data, [indices], looks)
            counted(smoothed, data, [[index] for index in indices], looks)


if __name__ == "__main__":
    main()
