"""What a device makes of certification: noise and counts against the CPU's, speed against bare networks.

    python benchmarks/device.py --out device.json

DDS and DensePure (K = 40, b = 10) run with OpenAI's 50-million-parameter CIFAR-10 network with random
weights. Each line is kept in the file as soon as it is measured, and a later call goes on after the last one.
After `--seconds` no new line is begun.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from overhead import bare_calls
from torch import nn

import diffproof as dp
from diffproof.classifiers import resnet
from diffproof.defenses.named import set_precision
from diffproof.denoisers.openai import PRESETS, RescaledUNet, build_unet
from diffproof.noise import Noise, Stream

SIGMA = 0.25
ROUNDS = 5
Line = tuple[str, Callable[[], str]]


def large() -> tuple[dp.Denoiser, nn.Module]:
    """The preset's network and a ResNet-56, with random weights."""
    torch.manual_seed(0)
    preset = PRESETS["cifar10_uncond"]
    network = RescaledUNet(build_unet(preset), preset.timestep_scale)
    denoiser = dp.NetworkDenoiser(network, preset.schedule, image_shape=(3, 32, 32))
    return denoiser.eval(), resnet.build("resnet56", 10).eval()


def small() -> tuple[dp.Denoiser, nn.Module]:
    """The packaged networks of digits."""
    return dp.load_denoiser("digits"), dp.load_classifier("digits")


class Bench:
    """The lines, each measured when asked.

    Args:
        device: what is measured.
        networks: what makes a denoiser and a classifier.
        batches: batch sizes.
        draws: of DensePure.
        votes: of DensePure (K).
        steps: of DensePure (b).
    """

    def __init__(
        self,
        device: torch.device,
        networks: Callable[[], tuple[dp.Denoiser, nn.Module]],
        batches: list[int],
        draws: int,
        votes: int,
        steps: int,
    ) -> None:
        self.device, self.networks, self.batches = device, networks, batches
        self.draws, self.votes, self.steps = draws, votes, steps
        shape = networks()[0].image_shape
        assert shape is not None
        self.image = torch.rand(shape, generator=torch.Generator().manual_seed(0))

    def lines(self) -> Iterator[Line]:
        """Names and measurements, the cheap ones first."""
        for kind in ("grid", "continuous"):
            yield f"{kind} noise of the device, equal to the CPU's", partial(self.same_noise, kind)
        yield "counts of DDS on digits, device and CPU", self.same_counts
        for precision in ("float32", "bfloat16"):
            for batch in self.batches:
                name = f"DDS, {precision}, batch {batch}"
                yield name, partial(self.speed, dp.DDS, precision, batch, 2 * batch)
        batch = self.batches[len(self.batches) // 2]
        densepure = partial(dp.DensePure, steps=self.steps, votes=self.votes, step_rule="log-sigma")
        name = f"DensePure K={self.votes}, b={self.steps}, bfloat16, batch {batch}"
        yield name, partial(self.speed, densepure, "bfloat16", batch, self.draws)

    def same_noise(self, kind: str) -> str:
        """Whether all numbers of a batch are the same bits."""
        smoothing = dp.Smoothed(lambda noisy: noisy[:, 0, 0, 0].long() * 0, SIGMA, num_classes=2, noise=kind)
        noise = Noise.for_draws(0, Stream.ESTIMATION, 0, 0, max(self.batches))
        here = smoothing.noise.added(self.image, noise)
        there = smoothing.noise.added(self.image.to(self.device), noise.to(self.device)).cpu()
        return f"{int((here != there).sum())} of {here.numel():,} numbers differ"

    def same_counts(self) -> str:
        """How far apart counts are."""
        image = dp.load_data("digits").images[0]
        counts = []
        for device in (torch.device("cpu"), self.device):
            defense = dp.DDS(*small()).to(device)
            smoothed = dp.Smoothed(defense, 0.5, levels=240)
            made = smoothed.certify(image.to(device), n0=64, n=max(self.batches), seed=0)
            counts.append(made.counts)
        flips = sum(abs(a - b) for a, b in zip(*counts, strict=True)) // 2
        return f"at least {flips} of {max(self.batches):,} labels differ"

    def speed(
        self,
        make: Callable[..., dp.CertifiableDefense],
        precision: str,
        batch: int,
        draws: int,
    ) -> str:
        """Draws a second, time over that of the bare network calls, share of the noise, memory."""
        defense = set_precision(make(*self.networks()), getattr(torch, precision)).to(self.device)
        smoothed, image = dp.Smoothed(defense, SIGMA), self.image.to(self.device)
        noise = Noise.for_draws(0, Stream.ESTIMATION, 0, 0, batch)
        parts = (defense.classifier, defense.denoiser)
        networks = [part.network for part in parts if isinstance(part, dp.Classifier | dp.NetworkDenoiser)]

        def certify() -> None:
            smoothed.certify(image, n0=batch, n=draws, seed=0, batch_size=batch)

        replay = bare_calls(networks, certify)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = [self._seconds(work) for work in (certify, replay) for _ in range(ROUNDS)]
        whole, bare = statistics.median(seconds[:ROUNDS]), statistics.median(seconds[ROUNDS:])
        added = statistics.median(
            self._seconds(lambda: smoothed.noise.added(image, noise.to(self.device))) for _ in range(ROUNDS)
        )
        share = added * (batch + draws) / batch / whole
        said = (
            f"{(batch + draws) / whole:,.1f} draws/s, {whole / bare:.3f} of bare networks, noise {share:.1%}"
        )
        if self.device.type == "cuda":
            said += f", {torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB"
        return said

    def _seconds(self, work: Callable[[], object]) -> float:
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def main(arguments: list[str] | None = None) -> None:
    """Measure what the file does not hold yet, and print all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="file of the lines so far")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--networks", choices=["large", "small"], default="large")
    parser.add_argument("--batches", default="256,1024,4096")
    parser.add_argument("--draws", type=int, default=64, help="of DensePure")
    parser.add_argument("--votes", type=int, default=40, help="of DensePure")
    parser.add_argument("--steps", type=int, default=10, help="of DensePure")
    parser.add_argument("--seconds", type=float, default=420.0)
    asked = parser.parse_args(arguments)
    batches = [int(size) for size in asked.batches.split(",")]
    networks = {"large": large, "small": small}[asked.networks]
    bench = Bench(torch.device(asked.device), networks, batches, asked.draws, asked.votes, asked.steps)
    lines: dict[str, str] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    until = time.monotonic() + asked.seconds
    for name, measure in bench.lines():
        if name not in lines and time.monotonic() < until:
            lines[name] = measure()
            asked.out.write_text(json.dumps(lines, indent=1) + "\n")
        print(f"{name}: {lines.get(name, 'not measured yet')}", flush=True)


if __name__ == "__main__":
    main()
