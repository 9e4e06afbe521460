"""How often a label falls otherwise with the size of its batch, the number of threads, and the precision.

Each draw is labelled again under every condition; flips are counted over all draws, and over the draws of an
image that do not have its most frequent label: only what lies near a boundary of the classifier can flip.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from scipy.stats import beta
from torch import Tensor

import diffproof as dp
from diffproof.defenses.named import compile_networks, set_precision
from diffproof.noise import Noise, Stream

# Of the upper end that is printed besides.
CONFIDENCE = 0.95


def labels(
    defense: dp.CertifiableDefense, images: Tensor, *, sigma: float, draws: int, batch_size: int
) -> Tensor:
    """The labels of all draws, one row an image."""
    found = []
    with torch.no_grad():
        for index, image in enumerate(images):
            noise = Noise.for_draws(0, Stream.ESTIMATION, index, 0, draws)
            noisy = image + sigma * noise.normal(image.shape, 0, image.dtype)
            parts = zip(noisy.split(batch_size), noise.split(batch_size), strict=True)
            found.append(torch.cat([defense.labels(part, sigma, own) for part, own in parts]))
    return torch.stack(found)


def conditions(batch_sizes: list[int], compiled: bool) -> Iterator[tuple[str, bool, int, int]]:
    """Precision, whether compiled, batch size, threads; for each precision the largest batch comes first."""
    for precision in ("float32", "bfloat16"):
        for batch_size in sorted(batch_sizes, reverse=True):
            yield precision, False, batch_size, 1
        yield precision, False, max(batch_sizes), 2
        if compiled:
            yield precision, True, max(batch_sizes), 1


def line(first: Tensor, again: Tensor) -> str:
    """Flips between two labellings, of a million draws and of a thousand uncertain ones."""
    flips = int((first != again).sum())
    top = torch.stack([row.bincount().max() for row in first])
    uncertain = int((first.shape[1] - top).sum())
    upper = beta.ppf(CONFIDENCE, flips + 1, first.numel() - flips) * 1e6
    share = f"{1e3 * flips / uncertain:.2f}" if uncertain else "–"
    return (
        f"{flips:>6} of {first.numel():,} draws: {1e6 * flips / first.numel():,.0f} in a million"
        f" (at most {upper:,.0f}), {share} of a thousand uncertain ones"
    )


def main() -> None:
    """Print flips against the largest batch on one thread, and between the precisions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--draws", type=int, default=1000, help="of an image")
    parser.add_argument("--sigma", type=float, default=0.5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 7, 64, 256])
    parser.add_argument("--defenses", nargs="+", default=["dds", "densepure:steps=2,votes=5"])
    parser.add_argument("--compile", action="store_true")
    asked = parser.parse_args()
    images = dp.load_data("digits").images[:: 514 // asked.images][: asked.images]
    for method in asked.defenses:
        print(f"{method}, digits, sigma = {asked.sigma:g}")
        reference: dict[str, Tensor] = {}
        for precision, compiled, batch_size, threads in conditions(asked.batch_sizes, asked.compile):
            torch.set_num_threads(threads)
            defense = dp.load_defense(
                method, denoiser=dp.load_denoiser("digits"), classifier=dp.load_classifier("digits")
            )
            assert isinstance(defense, dp.CertifiableDefense)
            set_precision(defense, getattr(torch, precision))
            if compiled:
                compile_networks(defense)
            found = labels(defense, images, sigma=asked.sigma, draws=asked.draws, batch_size=batch_size)
            first = reference.setdefault(precision, found)
            told = f"{precision}{', compiled' * compiled}, batch {batch_size}, threads {threads}"
            if first is not found:
                print(f"  {told:<40} {line(first, found)}", flush=True)
        print(
            f"  {'bfloat16 for float32':<40} {line(reference['float32'], reference['bfloat16'])}", flush=True
        )


if __name__ == "__main__":
    main()
