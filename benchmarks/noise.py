"""Processor time of smoothing noise on the grid over that of continuous noise, drawn in turn."""

from __future__ import annotations

import statistics
import time

import torch

from diffproof.noise import Noise, Stream
from diffproof.smoothing.grid_noise import ContinuousNoise, GridNoise

ROUNDS = 21
DRAWS = 256


def ratio(shape: tuple[int, int, int], sigma: float, levels: int) -> float:
    """The median over rounds."""
    image = torch.rand(shape)
    kinds = (GridNoise(sigma, levels), ContinuousNoise(sigma))
    ratios = []
    for number in range(ROUNDS):
        noise = Noise.for_draws(0, Stream.ESTIMATION, 0, number * DRAWS, (number + 1) * DRAWS)
        times = []
        for kind in kinds:
            started = time.process_time()
            kind.added(image, noise)
            times.append(time.process_time() - started)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def main() -> None:
    """Print the ratio for pictures at several noise levels, and for digits."""
    torch.set_num_threads(1)
    print(f"noise on the grid / continuous noise, median of {ROUNDS}")
    for shape, sigma, levels in (
        ((3, 32, 32), 0.12, 255),
        ((3, 32, 32), 0.25, 255),
        ((3, 32, 32), 1.0, 255),
        ((3, 224, 224), 0.5, 255),
        ((1, 8, 8), 0.5, 240),
    ):
        print(
            f"{'×'.join(map(str, shape))}, {levels} levels, sigma = {sigma:g}:"
            f" {ratio(shape, sigma, levels):.3f}"
        )


if __name__ == "__main__":
    main()
