"""Data sets of a denoiser's own samples, which trainings take beside real images (Wang et al. 2023)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffproof.checks import MOST_ROWS, check_at_least
from diffproof.denoisers.base import Denoiser, check_denoiser
from diffproof.errors import ArgumentError
from diffproof.files import remove, replacing
from diffproof.noise import MAX_IMAGE_INDEX, Noise, Stream, check_seed
from diffproof.reverse.levels import StepRule, select_sigmas
from diffproof.reverse.sampling import posterior_sample
from diffproof.weights import hash_tensors

# Steps of a sample where none are given, of a denoiser with timesteps at most all of them.
STEPS = 50


def sample_levels(denoiser: Denoiser, steps: int = STEPS) -> list[float]:
    """The descending noise levels of a sample from pure noise, even in log σ: at most so many.

    Raises:
        ValueError: as `select_sigmas`.
    """
    most = steps if denoiser.sigmas is None else min(steps, len(denoiser.sigmas))
    return select_sigmas(denoiser, denoiser.sigma_max, most, StepRule.LOG_SIGMA)


def samples(denoiser: Denoiser, sigmas: list[float], noise: Noise, label: Tensor | None) -> Tensor:
    """An ancestral sample from pure noise for each row of the noise, N×C×H×W in [0, 1].

    Args:
        denoiser: one with an image shape.
        sigmas: see `sample_levels`.
        noise: one row a sample.
        label: N integers, or None for unconditional samples.

    Raises:
        ValueError: the denoiser has no image shape.
    """
    if denoiser.image_shape is None:
        raise ArgumentError("denoiser", "expected one with an image shape to draw samples of")
    start = 0.5 + sigmas[0] * noise.normal(denoiser.image_shape, 0, torch.float32)
    with torch.no_grad():
        return posterior_sample(denoiser, start, sigmas, noise, label=label)


def write_samples(
    denoiser: Denoiser,
    out: Path,
    *,
    n: int,
    steps: int = STEPS,
    seed: int = 0,
    batch_size: int = 64,
    on_done: Callable[[int], None] = lambda done: None,
) -> None:
    """Write labelled samples as an .npz file, `images` N×C×H×W in 8 bits and `labels`; sample i has the class
    i modulo the number of classes.

    Samples that are done lie beside it in a .partial file, from which the same call goes on. A sample depends
    on the seed and its number alone, not on the batch; on one machine, rounding apart.

    Args:
        denoiser: a class-conditional one with an image shape, on the device to compute on.
        out: the file.
        n: how many, ≥ 1.
        steps: denoiser evaluations a sample, ≥ 1; at most the denoiser's timesteps.
        seed: of all noise, in [0, 2^64).
        batch_size: samples at once, ≥ 1.
        on_done: called with the number of samples that are done, those of an earlier call first.

    Raises:
        ValueError: an argument is out of range, a denoiser without classes, or a partial file of others.
    """
    check_at_least("n", n, 1, MAX_IMAGE_INDEX)
    check_at_least("batch_size", batch_size, 1, MOST_ROWS)
    check_at_least("steps", steps, 1)
    classes = check_denoiser(denoiser).num_classes
    if classes is None:
        raise ArgumentError("denoiser", "expected one with classes, for labels, got one without")
    sigmas = sample_levels(denoiser, steps)
    shape = denoiser.image_shape
    if shape is None:
        raise ArgumentError("denoiser", "expected one with an image shape to draw samples of")
    identity = {
        "denoiser": hash_tensors(denoiser.state_dict(), denoiser.describe()),
        "seed": check_seed(seed),
        "sigmas": sigmas,
    }
    partial = _Partial(out.with_name(f"{out.name}.partial"), identity, shape)
    device = next((one.device for one in denoiser.state_dict().values()), torch.device("cpu"))
    done = partial.done()
    on_done(min(done, n))
    while done < n:
        number = torch.arange(done, min(done + batch_size, n))
        noise = Noise.for_rows(seed, Stream.FORWARD, number, torch.zeros_like(number)).to(device)
        found = samples(denoiser, sigmas, noise, (number % classes).to(device))
        partial.append((found * 255).round().to(torch.uint8).cpu().numpy())
        done += len(number)
        on_done(done)
    labels: Any = np.arange(n) % classes
    if denoiser.class_names is not None:
        labels = np.array(denoiser.class_names)[labels]
    with replacing(out) as fresh, fresh.open("wb") as file:
        np.savez(file, images=partial.images(n), labels=labels)
    remove(partial.path)


class _Partial:
    """Samples that are done: a line that says what they are of, then their bytes."""

    def __init__(self, path: Path, identity: dict[str, Any], shape: tuple[int, int, int]) -> None:
        self.path, self.shape = path, shape
        self.head = json.dumps(identity).encode() + b"\n"
        self.size = int(np.prod(shape))

    def done(self) -> int:
        """How many whole samples there are, after cutting off the last one if it was cut short."""
        if not self.path.exists():
            with replacing(self.path) as fresh:
                fresh.write_bytes(self.head)
            return 0
        with self.path.open("r+b") as file:
            if file.read(len(self.head)) != self.head:
                raise ArgumentError(
                    "out",
                    f"{self.path} is of another denoiser, seed or steps; delete it to start anew",
                )
            whole = (file.seek(0, 2) - len(self.head)) // self.size
            file.truncate(len(self.head) + whole * self.size)
        return whole

    def append(self, images: np.ndarray) -> None:
        """Write further samples behind those that are done."""
        with self.path.open("ab") as file:
            file.write(images.tobytes())

    def images(self, count: int) -> np.ndarray:
        """The first samples, N×C×H×W."""
        flat = np.fromfile(self.path, np.uint8, count * self.size, offset=len(self.head))
        return flat.reshape(count, *self.shape)
