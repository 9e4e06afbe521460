"""How much faster compiled networks label than others, in turn in one process: medians of one-shot denoising
with the `cifar10` denoiser and a ResNet-56 with random weights, 128 images at once.

python benchmarks/compile.py
"""

from __future__ import annotations

import copy
import statistics
import time

import torch

import diffproof as dp
from diffproof.classifiers import resnet
from diffproof.defenses.named import compile_networks, set_precision
from diffproof.noise import Noise, Stream

SIGMA = 0.25
ROWS = 128
ROUNDS = 7


def main() -> None:
    """Print a line for each precision."""
    shape = (3, 32, 32)
    noise = Noise.for_draws(0, Stream.ESTIMATION, 0, 0, ROWS)
    noisy = 0.5 + SIGMA * noise.normal(shape, 0, torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        plain = set_precision(dp.DDS(dp.load_denoiser("cifar10"), resnet.build("resnet56", 10).eval()), dtype)
        compiled = compile_networks(copy.deepcopy(plain))
        seconds: dict[str, list[float]] = {"plain": [], "compiled": []}
        for turn in range(ROUNDS + 1):
            for name, defense in (("plain", plain), ("compiled", compiled)):
                started = time.perf_counter()
                with torch.no_grad():
                    defense.classify(noisy, SIGMA, noise, ROWS)
                # The first turn compiles.
                if turn > 0:
                    seconds[name].append(time.perf_counter() - started)
        slow, fast = (statistics.median(seconds[name]) for name in ("plain", "compiled"))
        print(f"{str(dtype).removeprefix('torch.')}: compiled networks label {slow / fast:.2f}× as fast")


if __name__ == "__main__":
    main()
