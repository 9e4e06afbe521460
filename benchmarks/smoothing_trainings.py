"""Trainings for randomized smoothing at equal cost, each certified: average radius and certified accuracy.

python benchmarks/smoothing_trainings.py --out DIR [--sigmas 0.25,0.5] [--seeds 0,1,2,3,4] [--rows …]

Every row's network gets the same number of passes, an image going forward and backward through it once: a
row whose objective needs more of them a step takes fewer steps. As in the papers, the images of a step times
their draws are the same for all. The rows of denoisers take the one of the data's name, which was trained
before and is not counted; a fine-tuned classifier gets the passes of a training beyond those it starts from,
and each member of an ensemble, Gaussian networks of other seeds, gets those of a training. The denoisers of
denoised smoothing, before a classifier that was trained without noise, get as many passes of their own. The
row multi-scale is dds at σ/2 and σ.
All that is in DIR already is kept, and an interrupted training or certification continues.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t
from torch import Tensor, nn

import diffproof as dp
from diffproof.catalog import able
from diffproof.catalog_objectives import OBJECTIVES
from diffproof.cli.main import run
from diffproof.runs.opened import CertifiedRun
from diffproof.training.batches import Batch
from diffproof.training.objectives.base import loss_of_batches

RADII = (0.0, 0.25, 0.5, 0.75, 1.0)
# Noisy images of a step: images times draws.
NOISY = 128
# Members of an ensemble.
MEMBERS = 3
# Rows whose classifier stands behind a denoiser: trained without noise, or fine-tuned on denoised images.
DENOISED = ("dds", "densepure", "multi-scale")
# Denoised smoothing: denoisers of that level, by what they are trained with.
SINGLE = ("denoised-mse", "denoised-stab", "denoised-clf")
FINETUNED = (
    "finetune-gaussian",
    *(name for name in able(OBJECTIVES, "finetune") if name not in able(OBJECTIVES, "train")),
)
ROWS = ("clean", *able(OBJECTIVES, "train"), "ensemble", *SINGLE, *DENOISED, *FINETUNED)


class Counting(nn.Module):
    """Counts the images that go through it, each of which is later gone back through."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.linear, self.seen = nn.Linear(pixels, 10), 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        self.seen += len(images)
        logits: Tensor = self.linear(images.flatten(1))
        return logits


def passes(objective: str, sigma: float) -> tuple[int, int]:
    """Draws of an image, and passes that it takes in a step of an objective at full strength."""
    loaded, network = dp.load_objective(objective), Counting(64)
    batch = Batch(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), torch.zeros(2), 2, torch.arange(2), done=0.9)
    loss_of_batches(loaded, sigma)(network, batch, torch.Generator().manual_seed(0))
    return loaded.draws_at(sigma), network.seen // 2


class Bench:
    """The trainings and certifications of one call.

    Args:
        given: the arguments of the command line.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.out = given, Path(given.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.seconds: dict[str, float] = {}

    def ran(self, what: str, line: str) -> None:
        """Run a command of diffproof in this process; what fails ends all."""
        start = time.perf_counter()
        status = run(shlex.split(line))
        if status:
            sys.exit(f"{what}: status {status}")
        self.seconds[what] = time.perf_counter() - start

    def network(self, row: str, sigma: float, seed: int) -> Path:
        """The weights of a row's classifier, trained if they are not there."""
        objective = row.removeprefix("finetune-")
        noise = 0.0 if row == "clean" else sigma
        out = self.out / f"{row}-{noise:g}-{seed}.safetensors"
        if out.exists():
            return out
        draws, cost = (1, 1) if row == "clean" else passes(objective, sigma)
        batch = max(1, NOISY // draws)
        iterations = max(1, round(self.given.passes / (batch * cost)))
        common = (
            f"--data {self.given.data} --batch-size {batch} --iterations {iterations} --seed {seed}"
            f" --learning-rate {self.given.learning_rate} --out {shlex.quote(str(out))}"
        )
        if row in FINETUNED:
            start = shlex.quote(str(self.network("clean", sigma, seed)))
            line = (
                f"finetune {common} --classifier {start} --denoiser {self.given.data} --sigma {sigma}"
                f" --objective {objective}"
            )
        else:
            noisy = "" if row == "clean" else f" --noise-sigma {sigma} --objective {objective}"
            line = f"train classifier {common} --width {self.given.width}{noisy}"
        self.ran(f"train {row} σ={sigma:g} seed {seed}", line)
        return out

    def denoiser(self, row: str, sigma: float, seed: int) -> Path:
        """The weights of a denoiser of one noise level, trained if they are not there."""
        out = self.out / f"{row}-{sigma:g}-{seed}.denoiser.safetensors"
        if not out.exists():
            objective = row.removeprefix("denoised-")
            behind = "" if objective == "mse" else f" --classifier {self.network('clean', sigma, seed)}"
            line = (
                f"train denoiser --data {self.given.data} --batch-size {NOISY} --seed {seed}"
                f" --iterations {max(1, self.given.passes // NOISY)} --out {shlex.quote(str(out))}"
                f" --single-sigma {sigma} --objective {objective}{behind}"
            )
            self.ran(f"train {row} σ={sigma:g} seed {seed}", line)
        return out

    def certified(self, row: str, sigma: float, seed: int) -> Path:
        """The run folder of a row."""
        defense, n, denoiser = "none", self.given.n, ""
        if row in DENOISED or row in FINETUNED:
            defense, denoiser = "dds", f" --denoiser {self.given.data}"
        if row == "densepure":
            defense, n = f"densepure:steps={self.given.steps},votes={self.given.votes}", self.given.votes_n
        if row == "multi-scale":
            denoiser += f" --scales {sigma / 2:g},{sigma:g}"
        if row in SINGLE:
            defense, denoiser = "dds", f" --denoiser {shlex.quote(str(self.denoiser(row, sigma, seed)))}"
        if row == "ensemble":
            members = [self.network("gaussian", sigma, seed + 1000 * number) for number in range(MEMBERS)]
            classifier = f"ensemble:{','.join(map(str, members))}"
        else:
            classifier = str(self.network("clean" if row in (*DENOISED, *SINGLE) else row, sigma, seed))
        folder = self.out / f"{row}-{sigma:g}-{seed}"
        line = (
            f"certify --data {self.given.data} --indices {self.given.indices} --defense {defense}{denoiser}"
            f" --classifier {shlex.quote(classifier)} --sigma {sigma} --n0 100 --n {n} --seed {seed}"
            f" --batch-size 1000 --out {shlex.quote(str(folder))}"
        )
        self.ran(f"certify {row} σ={sigma:g} seed {seed}", line)
        return folder


def figures(folder: Path) -> list[float]:
    """ACR and certified accuracy at the radii of one run."""
    found = dp.open_run(folder)
    assert isinstance(found, CertifiedRun)
    accuracies = [found.certification.certified_accuracy(at).value for at in RADII]
    return [found.certification.average_radius, *accuracies]


def interval(values: list[float], style: str) -> str:
    """Mean ± half the 95% interval of the mean over seeds, by Student's t."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return format(mean, style)
    half = t.ppf(0.975, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return f"{mean:{style}} ± {half:{style}}"


def table(rows: dict[tuple[float, str], list[list[float]]]) -> Iterator[str]:
    """The rows as Markdown."""
    yield "| σ | row | seeds | ACR | " + " | ".join(f"ε = {at:g}" for at in RADII) + " |"
    yield "|---|---|---|---|" + "---|" * len(RADII)
    for (sigma, row), runs in rows.items():
        acr, *accuracies = (list(column) for column in zip(*runs, strict=True))
        cells = [interval(acr, ".3f"), *(interval(one, ".1%") for one in accuracies)]
        yield f"| {sigma:g} | {row} | {len(runs)} | " + " | ".join(cells) + " |"


def main(arguments: list[str] | None = None) -> None:
    """Train, certify, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of weights, runs and the table")
    parser.add_argument("--data", default="digits", help="data set with a denoiser of its name")
    parser.add_argument("--indices", default="0:514:5", help="test images to certify")
    parser.add_argument("--sigmas", default="0.25,0.5", help="noise levels, with commas between")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="seeds, with commas between")
    parser.add_argument("--rows", default=",".join(ROWS), help="what to do")
    parser.add_argument("--passes", type=int, default=512_000, help="passes of each training")
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--n", type=int, default=10_000, help="draws of a certificate")
    parser.add_argument("--steps", type=int, default=2, help="of densepure")
    parser.add_argument("--votes", type=int, default=10, help="of densepure")
    parser.add_argument("--votes-n", type=int, default=1000, help="draws of a certificate of densepure")
    given = parser.parse_args(arguments)
    chosen = given.rows.split(",")
    if unknown := set(chosen) - set(ROWS):
        parser.error(f"unknown rows {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    bench = Bench(given)
    rows: dict[tuple[float, str], list[list[float]]] = {}
    # Seed by seed, so that what is there after hours is a table of every row.
    for seed in map(int, given.seeds.split(",")):
        for sigma in map(float, given.sigmas.split(",")):
            for row in chosen:
                rows.setdefault((sigma, row), []).append(figures(bench.certified(row, sigma, seed)))
        (bench.out / "table.md").write_text("\n".join(table(rows)) + "\n", encoding="utf-8")
    print("\n".join(table(rows)))
    print(f"\n{given.passes:,} passes a training, {NOISY} noisy images a step, 95% intervals over seeds")
    for what, seconds in bench.seconds.items():
        print(f"{what}: {seconds:.0f} s")


if __name__ == "__main__":
    main()
