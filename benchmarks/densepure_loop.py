"""What a certification costs against the plain loop of DensePure's authors, and whether it certifies as much.

    python benchmarks/densepure_loop.py --out runs/loop
    python benchmarks/densepure_loop.py --data ../shared/data/cifar10/test-first512.parquet \\
        --denoiser cifar10 --classifier resnet56@../shared/models/cifar10/resnet56-4bfd9763.th \\
        --images 64 --block 8 --out runs/loop-cifar10

The loop labels n0 + n draws an image by K separate reverse runs of b steps: (n0 + n)·K·b evaluations of the
denoiser. Ours ends the draws when each of `--radii` is proved or hopeless, a vote when its winner is known,
and shares the first step of all votes. Three things are measured, and kept in the folder:

- what `diffproof certify --stop sequential` spends on a block of images, in evaluations and in seconds;
- right after it, the seconds that one of the loop's K reverse runs takes for a full batch of draws: the
  loop's wall-clock is that, K times, for all its draws;
- on the first `--fixed-images`, what the loop certifies by all n draws. Its labels are those of the same
  defence under the same noise (checked by running both on `--checked-draws` draws), so they are counted with
  that, until the chance that further draws change any of its decisions is below one in a million.

A method with `consensus` is held against the loop without. A later call goes on where this one ended; a block
that was interrupted counts, but for its seconds. After `--seconds` no measurement is begun.
"""

from __future__ import annotations

import argparse
import bisect
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.stats import betabinom
from torch import Tensor
from torch.nn.functional import one_hot

import diffproof as dp
from diffproof.cli.main import run
from diffproof.defenses.densepure import DensePure
from diffproof.noise import Noise, Stream
from diffproof.runs.certify.store import CertifyStore, ImageResult
from diffproof.smoothing.bounds import radius_bound
from diffproof.smoothing.grid_noise import LEVELS, SmoothingNoise, as_noise

METHODS = [
    "dds",
    "densepure:steps=2,votes=10",
    "densepure:steps=10,votes=40",
    "densepure:steps=10,votes=40,consensus=3",
]
ROUNDS = 3
# Of the loop's noise and ours, which are the same.
SEED = 0
UNSETTLED = 1e-6
SLUG = str.maketrans(":=,", "---")
Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Loop:
    """The plain loop, of a denoiser without learned variances, on our networks and our noise.

    Args:
        defense: whose networks, noise levels and number of votes it uses.
        sigma: of the draws.
    """

    defense: dp.CertifiableDefense
    sigma: float

    @property
    def levels(self) -> list[float]:
        """The noise levels of a reverse run."""
        return self.defense.sigmas(self.sigma) if isinstance(self.defense, DensePure) else [self.sigma]

    @property
    def votes(self) -> int:
        """Reverse runs a draw, K."""
        return self.defense.votes if isinstance(self.defense, DensePure) else 1

    def run(self, noisy: Tensor, noise: Noise, vote: int) -> Tensor:
        """One reverse run of each draw from its noisy image to a label."""
        denoiser, rows = self.defense.denoiser, torch.arange(len(noisy))
        assert denoiser is not None
        own = noise.rows(rows, torch.full_like(rows, vote + 1))
        x, clean = noisy, denoiser(noisy, self.levels[0]).clamp(0.0, 1.0)
        for step, (level, lower) in enumerate(pairwise(self.levels), start=1):
            share = (lower / level) ** 2
            normal = own.normal(x.shape[1:], step, x.dtype)
            x = clean + share * (x - clean) + lower * (1 - share) ** 0.5 * normal
            clean = denoiser(x, lower).clamp(0.0, 1.0)
        return self.defense.classifier_labels(clean, own)

    def ballots(self, noisy: Tensor, noise: Noise) -> Tensor:
        """The labels of K reverse runs of each draw."""
        return torch.stack([self.run(noisy, noise, vote) for vote in range(self.votes)], 1)


class Bench:
    """All measurements, each made when asked.

    Args:
        asked: the command line.
        rows: those that were made, by their names.
    """

    def __init__(self, asked: argparse.Namespace, rows: dict[str, Row]) -> None:
        self.asked = asked
        self.data = dp.load_data(asked.data)
        chosen = np.random.default_rng(0).permutation(len(self.data))[: asked.images]
        self.images: list[int] = chosen.tolist()
        self.rows = rows
        self.noise = as_noise(SmoothingNoise.GRID, asked.sigma, self.data.levels or LEVELS)

    def loop(self, method: str) -> Loop:
        """The loop that a method is held against."""
        denoiser = dp.load_denoiser(self.asked.denoiser)
        classifier = dp.load_classifier(self.asked.classifier)
        defense = dp.load_defense(without_consensus(method), denoiser=denoiser, classifier=classifier)
        assert isinstance(defense, dp.CertifiableDefense)
        return Loop(defense, self.asked.sigma)

    def blocks(self) -> list[list[int]]:
        """The images in blocks."""
        size = self.asked.block
        return [self.images[start : start + size] for start in range(0, len(self.images), size)]

    def folder(self, method: str, block: list[int]) -> Path:
        """The run folder of a block."""
        return Path(self.asked.out) / f"{method.translate(SLUG)}-{block[0]}"

    def ours(self, method: str, block: list[int]) -> Row:
        """The seconds of our certification of a block, and the loop's a draw beside them."""
        asked, folder = self.asked, self.folder(method, block)
        flags = {
            **{name: getattr(asked, name) for name in ("data", "denoiser", "classifier", "sigma")},
            **{name: getattr(asked, name) for name in ("n0", "n", "alpha")},
            "defense": method,
            "batch-size": asked.batch,
            "indices": ",".join(map(str, sorted(block))),
            "radii": ",".join(map(str, asked.radii)),
            "stop": "sequential",
            "exact-share": asked.exact_share,
            "seed": SEED,
            "out": folder,
        }
        interrupted = folder.exists()
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        status, seconds = timed(lambda: run(["certify", *words]))
        if status != 0:
            raise SystemExit(status)
        loop = self.loop(method)
        noisy, noise = self.draws(block[0], Stream.ESTIMATION, 0, asked.batch)
        runs = []
        for _ in range(ROUNDS):
            with torch.no_grad():
                runs.append(timed(lambda: loop.run(noisy, noise, 0))[1])
        beside = [loop.votes * statistics.median(of) / len(noisy) for of in zip(*runs, strict=True)]
        return {"seconds": None if interrupted else seconds, "loop seconds a draw": beside}

    def certified(self, method: str) -> dict[int, ImageResult]:
        """What our certification found, of the images in complete blocks."""
        found: dict[int, ImageResult] = {}
        for block in self.blocks():
            if block_key(method, block) in self.rows:
                with CertifyStore.reading(self.folder(method, block)) as store:
                    found |= {one.image_index: one for one in store.results()}
        return found

    def needed(self) -> list[int]:
        """The hits among n draws that prove each radius."""
        n, failures = self.asked.n, self.noise.failure_mass(self.data.images[0].numel())

        def proves(hits: int, radius: float) -> bool:
            counts = [hits, n - hits]
            proved = radius_bound(counts, 0, self.asked.alpha, self.asked.sigma, failure_mass=failures)
            return proved.p_a_lower > 0.5 and proved.radius >= radius

        numbers = range(n + 1)
        return [
            bisect.bisect_left(numbers, True, key=partial(proves, radius=radius))
            for radius in self.asked.radii
        ]

    def fixed(self, method: str, index: int) -> Row:
        """What the loop certifies of an image by all n draws."""
        n, loop, needed = self.asked.n, self.loop(method), np.array(self.needed())
        selection = self.labels(loop, index, Stream.SELECTION, 0, self.asked.n0)
        selected = int(selection.bincount().argmax())
        hits = done = 0
        settled = False
        while not settled:
            # A look at every tenth more.
            stop = min(n, done + max(self.asked.batch, done // 10))
            hits += int((self.labels(loop, index, Stream.ESTIMATION, done, stop) == selected).sum())
            done = stop
            # Of a probability of which no more is known than these draws tell (Jeffreys).
            reached = betabinom.sf(needed - hits - 1, n - done, hits + 0.5, done - hits + 0.5)
            settled = done == n or bool((np.minimum(reached, 1 - reached) < UNSETTLED).all())
        right = selected == int(self.data.labels[index])
        return {"certified": [right and chance > 0.5 for chance in reached.tolist()], "draws": done}

    def labels(self, loop: Loop, index: int, stream: Stream, start: int, stop: int) -> Tensor:
        """The defence's labels of an image's draws from start to stop."""
        found = []
        for first in range(start, stop, self.asked.batch):
            noisy, noise = self.draws(index, stream, first, min(first + self.asked.batch, stop))
            with torch.no_grad():
                found.append(loop.defense.labels(noisy, loop.sigma, noise))
        return torch.cat(found)

    def check(self, method: str, index: int) -> Row:
        """On how many draws the loop's votes and label are the defence's."""
        loop = self.loop(method)
        defense, sigma = loop.defense, loop.sigma
        noisy, noise = self.draws(index, Stream.ESTIMATION, 0, self.asked.checked_draws)
        with torch.no_grad():
            ballots = loop.ballots(noisy, noise)
            # Of tied labels the first one wins, here as there.
            winners = torch.tensor([Counter(row).most_common(1)[0][0] for row in ballots.tolist()])
            same = winners == defense.labels(noisy, sigma, noise)
            if isinstance(defense, DensePure):
                shares = defense.vote_shares(noisy, sigma, noise)
                cast = one_hot(ballots, defense.num_classes).to(noisy.dtype).mean(1)
                same &= (cast == shares).all(1)
        return {"same": int(same.sum()), "draws": len(same)}

    def draws(self, index: int, stream: Stream, start: int, stop: int) -> tuple[Tensor, Noise]:
        """Noisy draws of an image, and the noise of their reverse runs."""
        noise = Noise.for_draws(SEED, stream, index, start, stop)
        return self.noise.added(self.data.images[index], noise), noise.after_first()

    def jobs(self) -> list[tuple[str, Callable[[], Row]]]:
        """All measurements by their names, block by block."""
        jobs: dict[str, Callable[[], Row]] = {}
        for block, method in product(self.blocks(), self.asked.methods):
            plain = without_consensus(method)
            jobs[key("check", plain, block[0])] = partial(self.check, plain, block[0])
            jobs[block_key(method, block)] = partial(self.ours, method, block)
        for index, method in product(self.images[: self.asked.fixed_images], self.asked.methods):
            plain = without_consensus(method)
            jobs[key("fixed", plain, index)] = partial(self.fixed, plain, index)
        return list(jobs.items())

    def lines(self, method: str) -> list[str]:
        """What is to be said of a method."""
        found = self.certified(method)
        if not found:
            return [f"{method}: nothing measured yet"]
        plain, loop = without_consensus(method), self.loop(method)
        of_image = (self.asked.n0 + self.asked.n) * loop.votes * len(loop.levels)
        spent = np.array([one.certificate.denoiser_evaluations for one in found.values()])
        draws = sum(one.certificate.n0 + one.certificate.n for one in found.values())
        fewer = of_image * len(spent) / spent.sum()
        of_draws = (self.asked.n0 + self.asked.n) * len(spent) / draws
        dearest = np.sort(spent)[::-1][: -(-len(spent) // 10)].sum() / spent.sum()
        lines = [
            f"{method}, {len(spent)} images: {fewer:.1f}× fewer denoiser evaluations than the loop's"
            f" {of_image:,}, {of_draws:.1f}× by draws, {fewer / of_draws:.2f}× by votes and steps",
            f"  the dearest tenth of the images takes {dearest:.0%} of them, the median image"
            f" {np.median(spent):,.0f}",
            *self.speed(method, fewer),
        ]
        pairs = [
            (
                [one.correct and one.certificate.radius >= radius for radius in self.asked.radii],
                row["certified"],
            )
            for index, one in found.items()
            if (row := self.rows.get(key("fixed", plain, index))) is not None
        ]
        if pairs:
            ours, loops = np.array(pairs).swapaxes(0, 1)
            told = [
                f"{radius:g}: {100 * mine.mean():.1f} against {100 * theirs.mean():.1f}"
                f" (+{int((mine & ~theirs).sum())} −{int((~mine & theirs).sum())})"
                for radius, mine, theirs in zip(self.asked.radii, ours.T, loops.T, strict=True)
            ]
            lines.append(f"  certified (%) of {len(pairs)} images: {', '.join(told)}")
        names = [key("check", plain, block[0]) for block in self.blocks()]
        checks = [self.rows[name] for name in names if name in self.rows]
        same, of = (sum(check[part] for check in checks) for part in ("same", "draws"))
        lines.append(f"  the loop's votes and labels are the defence's on {same} of {of} draws")
        return lines

    def speed(self, method: str, fewer: float) -> list[str]:
        """A line on the seconds of the blocks that were not interrupted."""
        timings = [
            (self.rows[name], len(block))
            for block in self.blocks()
            if (name := block_key(method, block)) in self.rows and self.rows[name]["seconds"] is not None
        ]
        if not timings:
            return []
        draws = self.asked.n0 + self.asked.n
        images = sum(size for _, size in timings)
        wall, processor = (
            statistics.median(row["loop seconds a draw"][clock] for row, _ in timings)
            * draws
            * images
            / sum(row["seconds"][clock] for row, _ in timings)
            for clock in (0, 1)
        )
        return [
            f"  {wall:.1f}× the speed by the clock ({wall / fewer:.2f} of that), {processor:.1f}× by"
            f" processor time ({processor / fewer:.2f}), on {images} images"
        ]


def timed(work: Callable[[], T]) -> tuple[T, list[float]]:
    """What a function returns, and the seconds it takes: of the wall clock, and of the processor."""
    clocks = (time.perf_counter, time.process_time)
    started = [clock() for clock in clocks]
    done = work()
    return done, [clock() - start for clock, start in zip(clocks, started, strict=True)]


def key(what: str, method: str, index: int | str) -> str:
    """The name of a measurement in the file."""
    return f"{what} {method} {index}"


def block_key(method: str, block: list[int]) -> str:
    """The name of the measurement of a block, which a larger one of the same first image goes on with."""
    return key("ours", method, f"{block[0]}+{len(block)}")


def without_consensus(method: str) -> str:
    """The method that votes until the majority is known."""
    name, _, settings = method.partition(":")
    kept = [setting for setting in settings.split(",") if setting and not setting.startswith("consensus=")]
    return ":".join([name, ",".join(kept)]) if kept else name


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits")
    parser.add_argument("--denoiser", default="digits")
    parser.add_argument("--classifier", default="digits")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--images", type=int, default=200, help="at random, the same each time")
    parser.add_argument("--fixed-images", type=int, default=200, help="the first so many of them")
    parser.add_argument("--sigma", type=float, default=0.5)
    parser.add_argument("--radii", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75])
    parser.add_argument("--n0", type=int, default=100)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--alpha", type=float, default=0.001)
    parser.add_argument("--exact-share", type=float, default=0.5, help="see diffproof certify --help")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--checked-draws", type=int, default=32)
    parser.add_argument("--block", type=int, default=25, help="images certified together")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not in the folder yet, then print a few lines for each method."""
    asked = parsed(arguments)
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / "loop.json"
    same = ("data", "denoiser", "classifier", "sigma", "radii", "n0", "n", "alpha", "batch", "block")
    settings = {name: getattr(asked, name) for name in same}
    kept = json.loads(file.read_text()) if file.exists() else {"settings": settings, "rows": {}}
    if kept["settings"] != settings:
        raise SystemExit(f"{asked.out} was made with other settings: {kept['settings']}")
    bench = Bench(asked, kept["rows"])
    ends = time.monotonic() + asked.seconds
    for name, measure in bench.jobs():
        if name not in bench.rows and time.monotonic() < ends:
            bench.rows[name] = measure()
            written = file.with_suffix(".part")
            written.write_text(json.dumps(kept))
            written.replace(file)
    print(f"sigma = {asked.sigma:g}, n = {asked.n:,}, radii {', '.join(map('{:g}'.format, asked.radii))}")
    for method in asked.methods:
        print("\n".join(bench.lines(method)), flush=True)


if __name__ == "__main__":
    main()
