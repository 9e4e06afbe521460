"""Pictures of a training: what the denoiser samples, and the loss over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffproof.denoisers.protocol import Denoiser
from diffproof.files import replacing
from diffproof.noise import Noise, Stream
from diffproof.reverse import StepRule, posterior_sample, select_sigmas

# Steps of a sample, and samples of a class.
_STEPS = 50
_COLUMNS = 8
_MOST_ROWS = 10


def draw_samples(denoiser: Denoiser, seed: int) -> Tensor:
    """Samples from pure noise: a row for each class (ten at most) and one without a label.

    Returns:
        R×8×C×H×W in [0, 1].

    Raises:
        ValueError: the denoiser has no image shape.
    """
    if denoiser.image_shape is None:
        raise ValueError("denoiser: expected one with an image shape to draw samples of")
    classes = list(range(min(denoiser.num_classes or 0, _MOST_ROWS)))
    sigma = denoiser.sigma_max
    sigmas = select_sigmas(denoiser, sigma, _STEPS, StepRule.LOG_SIGMA)
    rows = []
    with torch.no_grad():
        for row, label in enumerate([*classes, None]):
            count = torch.arange(_COLUMNS)
            noise = Noise(
                seed, Stream.FORWARD, image_index=torch.full((_COLUMNS,), row), draw=count, vote=count
            )
            start = 0.5 + sigma * noise.normal(denoiser.image_shape, 0, torch.float32)
            labels = None if label is None else torch.full((_COLUMNS,), label)
            rows.append(posterior_sample(denoiser, start, sigmas, noise, label=labels))
    return torch.stack(rows)


def save_samples(path: Path, samples: Tensor) -> None:
    """Write a sheet of samples as PNG, R rows of images R×M×C×H×W in [0, 1], small images enlarged."""
    rows, columns, channels, height, width = samples.shape
    factor = max(1, 64 // height)
    pixels = samples.repeat_interleave(factor, 3).repeat_interleave(factor, 4)
    framed = torch.nn.functional.pad(pixels, (1, 1, 1, 1), value=1.0)
    sheet = framed.permute(0, 3, 1, 4, 2).reshape(
        rows * (height * factor + 2), columns * (width * factor + 2), channels
    )
    array = (sheet.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    from matplotlib.image import imsave

    with replacing(path) as fresh:
        imsave(fresh, array if channels == 3 else np.repeat(array, 3, 2), format="png")


def save_losses(path: Path, losses: Sequence[float]) -> None:
    """Write the loss of every step as CSV, and its curve as PNG beside it."""
    from matplotlib.figure import Figure

    steps = np.arange(1, len(losses) + 1)
    with replacing(path) as fresh:
        lines = [f"{step},{loss:.6g}" for step, loss in zip(steps, losses, strict=True)]
        fresh.write_text("\n".join(["iteration,loss", *lines]) + "\n", encoding="utf-8")
    window = max(1, len(losses) // 100)
    means = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="0.85", linewidth=0.5, label="each step")
    axes.plot(steps[window - 1 :], means, color="C0", label=f"mean of {window} steps")
    axes.set(xlabel="iteration", ylabel="loss", yscale="log")
    axes.legend()
    with replacing(path.with_suffix(".png")) as fresh:
        figure.savefig(fresh, format="png", dpi=120)
