"""What AGDM's paper leaves open: where the guide is evaluated, which label, which distance.

Trains a guide on digits, then attacks each choice by PGD with exact gradients through the whole defence, its
noise held fixed, and prints accuracy on clean images and on attacked ones, the latter under that very noise
("fixed") and under fresh noise.

    python benchmarks/agdm_choices.py [--images 64] [--budget 0.15] [--scale 1] [--guide FILE]
"""

from __future__ import annotations

import argparse
import itertools
import math
import time

import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.attacks.threat import Linf
from diffproof.defenses.agdm import Distance, Label, Where
from diffproof.training.adversarial import Adversary, Ascent
from diffproof.training.batches import Mixture
from diffproof.training.classifier import describe_classifier, train_classifier
from diffproof.training.loop import TrainSettings

FRESH = 4


def trained_guide(ascent: Ascent) -> nn.Module:
    """A guide with the paper's loss, as `diffproof train guide` trains it."""
    data = dp.load_data("digits", split="train")
    settings = TrainSettings(200, learning_rate=0.005, ema_decay=0.98)
    return train_classifier(
        Mixture(data), describe_classifier(data, 16), settings, adversary=Adversary("trades", ascent)
    )


def noise(seed: int, images: Tensor) -> dp.Noise:
    """The noise of every image, of one seed."""
    index = torch.arange(len(images))
    return dp.Noise.for_rows(seed, dp.Stream.FORWARD, index, torch.zeros_like(index))


def row(
    name: str, defense: dp.Defense, images: Tensor, labels: Tensor, starts: Tensor, attack: Ascent
) -> list[float]:
    """Clean accuracy on fresh noise; robust accuracy of the fixed function and on fresh noise."""
    began = time.perf_counter()
    fixed = noise(0, images)

    def objective(point: Tensor) -> Tensor:
        return nn.functional.cross_entropy(defense(point, fixed), labels, reduction="none")

    perturbed = attack.maximise(objective, images, starts)
    with torch.no_grad():
        correct = [
            float((defense(found, noise(seed, images)).argmax(1) == labels).double().mean())
            for found, seed in [
                *((images, seed) for seed in range(1, FRESH + 1)),
                (perturbed, 0),
                *((perturbed, seed) for seed in range(1, FRESH + 1)),
            ]
        ]
    values = [sum(correct[:FRESH]) / FRESH, correct[FRESH], sum(correct[FRESH + 1 :]) / FRESH]
    seconds = time.perf_counter() - began
    print(f"{name:32s}" + "".join(f"{value:10.1%}" for value in values) + f"{seconds:9.1f}", flush=True)
    return values


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--budget", type=float, default=0.15)
    parser.add_argument("--t-star", type=float, default=0.15)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--guide", help="weights of a guide, in place of training one")
    given = parser.parse_args()

    data = dp.load_data("digits", split="test").select(range(given.images))
    images, labels = data.images, data.labels
    attack = Ascent(Linf(given.budget))
    generator = torch.Generator().manual_seed(0)
    normal, uniform = (
        torch.randn(images.shape, generator=generator),
        torch.rand(len(images), generator=generator),
    )
    starts = attack.start(images, normal, uniform)
    denoiser, classifier = dp.load_denoiser("digits"), dp.load_classifier("digits")
    guide = dp.load_classifier(given.guide) if given.guide else trained_guide(Ascent(Linf(given.budget), 7))
    for module in (denoiser, classifier, guide):
        module.requires_grad_(False)

    worst = 100 * math.sqrt(0.25 / given.images)
    print(
        f"{given.images} digits, linf {given.budget:g}, {attack.steps} steps; t* = {given.t_star:g},"
        f" {given.steps} reverse steps, s = {given.scale:g}; one standard error is at most {worst:.0f} points"
    )
    print(f"{'':32s}{'clean':>10s}{'fixed':>10s}{'fresh':>10s}{'seconds':>9s}")
    for name, model in (("classifier alone", classifier), ("guide alone", guide)):
        row(name, dp.load_defense("none", classifier=model), images, labels, starts, attack)
    common = {"denoiser": denoiser, "classifier": classifier, "t_star": given.t_star, "steps": given.steps}
    row(
        "diffpure ddpm",
        dp.load_defense("diffpure", solver="ddpm", **common),
        images,
        labels,
        starts,
        attack,
    )
    for where, label, distance in itertools.product(Where, Label, Distance):
        choice = {"where": where, "label": label, "distance": distance, "scale": given.scale}
        defense = dp.load_defense("agdm", guide=guide, **common, **choice)
        row(f"agdm {where} {label} {distance}", defense, images, labels, starts, attack)


if __name__ == "__main__":
    main()
