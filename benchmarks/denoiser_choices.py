"""What a denoiser learns in an equal time, by what it predicts, which noise levels it sees, and its width.

    python benchmarks/denoiser_choices.py --out runs/choices [--iterations 250]

Each choice is trained by `diffproof train denoiser` on all but the last --held-out of the lossless images,
beside the compressed ones (which those are among, too), as the packaged CIFAR-10 denoiser was. The first one
takes --iterations steps, each other as many as fit into the seconds of that, measured on the network. On
the held-out images it prints the root-mean-square error of one shot and the accuracy of a classifier behind
it, one draw an image. What is in the folder is kept, and an interrupted training continues.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

import diffproof as dp
from diffproof.cli.main import run
from diffproof.data.images import ImageData
from diffproof.denoisers.saved import build_denoiser
from diffproof.training.denoiser import UNetSettings, denoising_errors, describe_denoiser
from diffproof.training.finetune import denoised_accuracy

SHARED = Path("../shared")
SIGMAS = (0.12, 0.25, 0.5, 1.0)
CHOICES = {
    "noise": ("96,128,192", ""),
    "noise, log-normal": ("96,128,192", "--objective mse:levels=log-normal"),
    "edm": ("96,128,192", "--preconditioning edm"),
    "edm, log-normal": ("96,128,192", "--preconditioning edm --objective mse:levels=log-normal"),
    "edm, wider": ("128,192,256", "--preconditioning edm"),
    "edm, narrower": ("64,96,128", "--preconditioning edm"),
}
ROUNDS = 5


def seconds_a_step(data: ImageData, widths: str, batch_size: int) -> float:
    """Of a network of these widths, one thread's processor time there and back in bfloat16."""
    settings = UNetSettings([int(width) for width in widths.split(",")], patch=2, attention=True)
    network = build_denoiser(describe_denoiser(data, settings, "cosine", 1000)).network
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(batch_size, *data.image_shape)
    labels = torch.zeros(batch_size, dtype=torch.int64)
    spent = []
    for _ in range(ROUNDS + 1):
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(images, labels, labels).float().square().mean()
        loss.backward()
        spent.append(time.process_time() - start)
    # The first one is slower than all others.
    return statistics.median(spent[1:])


def measured(path: Path, held_out: ImageData, classifier: Any) -> dict[str, list[float]]:
    """Errors and accuracies of a trained denoiser at SIGMAS, from the file beside it if they are there."""
    file = path.with_suffix(".json")
    if not file.exists():
        denoiser = dp.load_denoiser(str(path))
        assert isinstance(denoiser, dp.NetworkDenoiser)
        found = {
            "errors": denoising_errors(denoiser, held_out, SIGMAS, seed=0),
            "accuracies": [denoised_accuracy(classifier, denoiser, held_out, at, seed=0) for at in SIGMAS],
        }
        file.write_text(json.dumps(found))
    loaded: dict[str, list[float]] = json.loads(file.read_text())
    return loaded


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of all weights")
    parser.add_argument("--data", default=f"{SHARED}/data/cifar10/train-lossless5085.parquet")
    parser.add_argument("--extra-data", default=f"{SHARED}/data/cifar10/train-jpeg50000.parquet")
    parser.add_argument(
        "--classifier", default=f"resnet56@{SHARED}/models/cifar10/resnet56-4bfd9763.th", help="behind it"
    )
    parser.add_argument("--held-out", type=int, default=509, help="images to measure on")
    parser.add_argument("--iterations", type=int, default=250, help="steps of the first choice")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--choices", nargs="+", choices=list(CHOICES), default=list(CHOICES))
    given = parser.parse_args(arguments)
    data, classifier = dp.load_data(given.data), dp.load_classifier(given.classifier)
    known = len(data) - given.held_out
    held_out = data.select(range(known, len(data)))
    first = seconds_a_step(data, CHOICES[given.choices[0]][0], given.batch_size)
    print("| choice | steps | " + " | ".join(f"error at σ = {at:g}" for at in SIGMAS), end=" | ")
    print(" | ".join(f"right at σ = {at:g}" for at in SIGMAS) + " |")
    print("|---" * (2 + 2 * len(SIGMAS)) + "|")
    given.out.mkdir(parents=True, exist_ok=True)
    for choice in given.choices:
        widths, flags = CHOICES[choice]
        out = given.out / f"{choice.replace(', ', '-')}.safetensors"
        steps = given.iterations
        if widths != CHOICES[given.choices[0]][0]:
            steps = max(1, round(steps * first / seconds_a_step(data, widths, given.batch_size)))
        line = (
            f"train denoiser --data {shlex.quote(given.data)} --indices 0:{known}"
            f" --extra-data {shlex.quote(given.extra_data)} --flip"
            f" --extra-share 0.6 --patch 2 --attention --channels {widths} --precision bfloat16"
            f" {flags} --iterations {steps} --batch-size {given.batch_size} --ema-decay 0.99 --seed 0"
            f" --out {shlex.quote(str(out))}"
        )
        if not out.exists() and (status := run(shlex.split(line))):
            sys.exit(f"{choice}: status {status}")
        found = measured(out, held_out, classifier)
        cells = [f"{error:.4f}" for error in found["errors"]] + [f"{one:.1%}" for one in found["accuracies"]]
        print(f"| {choice} | {steps} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
