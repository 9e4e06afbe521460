"""Certification time over the time of the bare network calls it makes.

The calls of one certification are recorded, then certification and a replay of exactly these calls (same
inputs, same precision) run in turn; the median of the ratios is printed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.training.denoiser import UNetSettings

ROUNDS = 7


def bare_calls(networks: list[nn.Module], certify: Callable[[], object]) -> Callable[[], None]:
    """What repeats just the network calls that `certify` makes."""
    calls: list[tuple[nn.Module, tuple[Any, ...]]] = []
    hooks = [
        network.register_forward_pre_hook(lambda module, inputs: calls.append((module, inputs)))
        for network in networks
    ]
    certify()
    for hook in hooks:
        hook.remove()

    def replay() -> None:
        with torch.no_grad():
            for network, inputs in calls:
                network(*inputs)

    return replay


def ratio(
    defense: dp.CertifiableDefense, image: Tensor, sigma: float, n: int, batch_size: int
) -> list[float]:
    """Certification over bare calls, once a round."""
    smoothed = dp.Smoothed(defense, sigma)
    parts = (defense.classifier, defense.denoiser)
    networks = [part.network for part in parts if isinstance(part, dp.Classifier | dp.NetworkDenoiser)]

    def certify() -> None:
        smoothed.certify(image, n0=batch_size, n=n, batch_size=batch_size)

    replay = bare_calls(networks, certify)
    ratios = []
    for _ in range(ROUNDS):
        times = []
        for work in (certify, replay):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        ratios.append(times[0] / times[1])
    return ratios


def unet_32() -> tuple[dp.Denoiser, nn.Module]:
    """A U-Net of about a million parameters on 3×32×32 pixels and a small classifier, random weights."""
    from diffproof.classifiers.cnn import SmallCNN
    from diffproof.data.images import ImageData
    from diffproof.denoisers.saved import build_denoiser
    from diffproof.training.denoiser import describe_denoiser

    empty = ImageData(
        "random", "train", torch.zeros(1, 3, 32, 32), torch.zeros(1).long(), tuple("0123456789")
    )
    denoiser = build_denoiser(describe_denoiser(empty, UNetSettings((32, 48, 80)), "cosine", 1000)).eval()
    classifier = dp.Classifier(SmallCNN(3, 10, 16), 10, image_shape=(3, 32, 32)).eval()
    return denoiser, classifier


def main() -> None:
    """Print the ratios."""
    torch.manual_seed(0)
    digits = dp.load_data("digits").images[0]
    small = dp.load_denoiser("digits"), dp.load_classifier("digits")
    large = unet_32()
    picture = torch.rand(3, 32, 32)
    print("certification time / time of its bare network calls, median of", ROUNDS, "(range)")
    for name, (denoiser, classifier), image, n, batch_size in (
        ("digits 8×8", small, digits, 1024, 256),
        ("U-Net 32×32", large, picture, 64, 32),
    ):
        count = sum(parameter.numel() for parameter in denoiser.parameters())
        for defense in (dp.DDS(denoiser, classifier), dp.DensePure(denoiser, classifier, steps=2, votes=10)):
            ratios = ratio(defense, image, 0.5, n, batch_size)
            spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
            print(
                f"{name}, {count:,} parameters, {defense.method}: {statistics.median(ratios):.3f} ({spread})"
            )


if __name__ == "__main__":
    main()
