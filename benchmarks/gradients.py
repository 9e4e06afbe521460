"""Exact gradients of a purification: errors, and memory and time beside full-graph backpropagation.

Memory is the peak of resident memory as Linux counts it, each pass in a process of its own, so that
fragmented memory counts too. What the process held before the pass (Python, torch, weights) is taken off: the
ratio of whole processes would look better than it is.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from overhead import unet_32
from torch import Tensor

import diffproof as dp
from diffproof.gradients import Step, checkpointed, plain
from diffproof.noise import Noise, Stream

FEW, MANY = 10, 100
BATCH = 4
ROUNDS = 5
WAYS: dict[str, Callable[[Tensor, Sequence[Step]], Tensor]] = {"checkpointed": checkpointed, "plain": plain}


def noise_of(rows: int) -> Noise:
    """Noise of a row for each image."""
    return Noise.for_draws(0, Stream.FORWARD, 0, 0, rows)


def large(steps: int) -> tuple[Tensor, list[Step]]:
    """Images and a purification of them by a U-Net of about a million parameters."""
    torch.manual_seed(0)
    denoiser, classifier = unet_32()
    # An attack needs no gradient of the parameters, either way.
    defense = dp.DiffPure(denoiser, classifier, t_star=0.1, steps=steps).requires_grad_(False)
    return torch.rand(BATCH, 3, 32, 32), defense.chain(noise_of(BATCH))


def gradient(way: str, images: Tensor, chain: Sequence[Step], by: Tensor | None = None) -> Tensor:
    """The product of `by` (ones) with the Jacobian."""
    leaf = images.clone().requires_grad_()
    output = WAYS[way](leaf, chain)
    (pulled,) = torch.autograd.grad(output, leaf, torch.ones_like(output) if by is None else by)
    return pulled


def status(name: str) -> int:
    """An entry of this process's status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def memory_of_a_pass(way: str, steps: int) -> int:
    """Bytes by which a forward and backward pass raises this process's resident memory at its peak."""
    images, chain = large(steps)
    with torch.no_grad():
        plain(images, chain[:3])
    # What loading and warming up have freed goes back, and the peak starts again from here.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    gradient(way, images, chain)
    return status("VmHWM") - before


def times(steps: int) -> dict[str, list[float]]:
    """Seconds of a forward and backward pass either way, in turn."""
    images, chain = large(steps)
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(1 + ROUNDS):
        for way in WAYS:
            started = time.perf_counter()
            gradient(way, images, chain)
            spent[way].append(time.perf_counter() - started)
    # The first of each warms up.
    return {way: seconds[1:] for way, seconds in spent.items()}


def errors(solver: dp.Solver) -> tuple[float, float]:
    """Largest relative error against the full graph and against central differences, digits in float64."""
    denoiser = dp.load_denoiser("digits").double()
    defense = dp.DiffPure(
        denoiser, dp.load_classifier("digits").double(), t_star=0.1, solver=solver, steps=FEW
    )
    images = dp.load_data("digits").images[:1].double()
    chain = defense.chain(noise_of(1))
    generator = torch.Generator().manual_seed(1)
    by = torch.randn(images.shape, dtype=torch.float64, generator=generator)
    exact, full = gradient("checkpointed", images, chain, by), gradient("plain", images, chain, by)
    slopes = torch.empty(images[0].numel(), dtype=torch.float64)
    width = 1e-6
    with torch.no_grad():
        for index in range(len(slopes)):
            offset = torch.zeros_like(images)
            offset[0].view(-1)[index] = width
            slopes[index] = ((plain(images + offset, chain) - plain(images - offset, chain)) * by).sum()
    slopes = slopes.reshape(images[0].shape) / (2 * width)
    against_full = (exact - full).abs().max() / full.abs().max()
    against_differences = (exact[0] - slopes).abs().max() / slopes.abs().max()
    return float(against_full), float(against_differences)


def main() -> None:
    """Print errors and ratios."""
    if len(sys.argv) == 3:
        print(memory_of_a_pass(sys.argv[1], int(sys.argv[2])))
        return
    print("largest relative error of the gradient, float64: full graph, central differences")
    for solver in dp.Solver:
        print(
            f"  digits, {solver.value}, {FEW} steps: " + ", ".join(f"{error:.1e}" for error in errors(solver))
        )

    used = {
        (way, steps): int(
            subprocess.run(
                [sys.executable, __file__, way, str(steps)], capture_output=True, check=True, text=True
            ).stdout
        )
        for way in WAYS
        for steps in (FEW, MANY)
    }
    state = BATCH * 3 * 32 * 32 * 4
    mebi = 2**20
    print(f"U-Net, {BATCH}×3×32×32 images, peak memory of a pass in MiB: {FEW} steps, {MANY} steps, ratio")
    for way in WAYS:
        few, many = used[way, FEW], used[way, MANY]
        print(f"  {way}: {few / mebi:.1f}, {many / mebi:.1f}, {many / few:.3f}")
    few, many = (used["checkpointed", steps] - steps * state for steps in (FEW, MANY))
    print(
        f"  checkpointed without its one state a step ({state / mebi:.3f} MiB): {few / mebi:.1f},"
        f" {many / mebi:.1f}, {many / few:.3f}"
    )

    spent = times(FEW)
    ratios = [one / other for one, other in zip(spent["checkpointed"], spent["plain"], strict=True)]
    middle = statistics.median(spent["checkpointed"]) / statistics.median(spent["plain"])
    print(
        f"time of a pass, checkpointed over plain, {FEW} steps, ratio of medians of {ROUNDS}: {middle:.3f}"
        f" ({min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
