"""The estimates of all classes of an image: one batch, one call a class, one pass of a multi-head network.

python benchmarks/per_class.py [DENOISER] [--images 4] [--runs 15] [--gradient] [--multi-head FILE]

Ratios of seconds, run in turn: the median over the runs. --multi-head takes weights of
`diffproof train denoiser --multi-head` and adds their pass for all classes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import diffproof as dp


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("denoiser", nargs="?", default="digits")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--gradient", action="store_true", help="with the gradient of the images")
    parser.add_argument("--multi-head", metavar="FILE")
    given = parser.parse_args()
    denoiser = dp.load_denoiser(given.denoiser).requires_grad_(False)
    assert denoiser.image_shape is not None
    assert denoiser.null_label is not None
    sigma, classes = denoiser.nearest(0.5), torch.arange(denoiser.null_label + 1)
    noisy = torch.rand(given.images, *denoiser.image_shape, generator=torch.Generator().manual_seed(0))
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "one batch": lambda x: denoiser.per_class(x, sigma, classes),
        "one call a class": lambda x: torch.stack(
            [denoiser.estimate(x, sigma, one.expand(len(x))).clean for one in classes], dim=1
        ),
    }
    if given.multi_head:
        heads = dp.load_denoiser(given.multi_head).requires_grad_(False)
        ways["multi-head"] = lambda x: heads.per_class(x, heads.nearest(sigma), classes)

    def seconds(way: Callable[[Tensor], Tensor]) -> float:
        start = time.perf_counter()
        images = noisy.clone().requires_grad_(given.gradient)
        clean = way(images)
        if given.gradient:
            torch.autograd.grad(clean.square().sum(), images)
        return time.perf_counter() - start

    for way in ways.values():
        seconds(way)
    times = [{name: seconds(way) for name, way in ways.items()} for _ in range(given.runs)]
    median = statistics.median(each["one batch"] for each in times)
    print(f"{given.images} images, {len(classes)} labels: {median:.4f} s")
    for name in ways:
        ratio = statistics.median(t[name] / t["one batch"] for t in times)
        print(f"{name}: {ratio:.3f} of the one batch")


if __name__ == "__main__":
    main()
