"""Pictures of a training: what the denoiser samples, and the loss over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffproof.denoisers.base import Denoiser
from diffproof.errors import ArgumentError
from diffproof.files import replacing
from diffproof.noise import Noise, Stream
from diffproof.pictures import save_chart
from diffproof.training.generated import STEPS, sample_levels, samples

# Steps of a sample, and samples of a class.
_STEPS = STEPS
_COLUMNS = 8
_MOST_ROWS = 10
# Several rows of small images are sampled together.
_PIXELS_AT_ONCE = 2**18


def draw_samples(denoiser: Denoiser, seed: int) -> Tensor:
    """Samples from pure noise: a row for each class (ten at most) and one without a label.

    Returns:
        R×8×C×H×W in [0, 1].

    Raises:
        ValueError: the denoiser has no image shape.
    """
    if denoiser.image_shape is None:
        raise ArgumentError("denoiser", "expected one with an image shape to draw samples of")
    classes: list[int | None] = list(range(min(denoiser.num_classes or 0, _MOST_ROWS)))
    _, height, width = denoiser.image_shape
    at_once = max(1, _PIXELS_AT_ONCE // (_COLUMNS * height * width))
    groups = [classes[start : start + at_once] for start in range(0, len(classes), at_once)] + [[None]]
    sigmas = sample_levels(denoiser, _STEPS)
    found, first_row = [], 0
    for group in groups:
        row = torch.arange(first_row, first_row + len(group)).repeat_interleave(_COLUMNS)
        column = torch.arange(_COLUMNS).repeat(len(group))
        noise = Noise(seed, Stream.FORWARD, image_index=row, draw=column, vote=column)
        # The row of a class has its number.
        found.append(samples(denoiser, sigmas, noise, None if group == [None] else row))
        first_row += len(group)
    return torch.cat(found).reshape(-1, _COLUMNS, *denoiser.image_shape)


def save_losses(path: Path, losses: Sequence[float]) -> None:
    """Write the loss of every step as CSV, and its curve as PNG beside it."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

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
    # Powers set as formulas take most of the time of a chart.
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.0, 0.4)))
    axes.legend()
    save_chart(path.with_suffix(".png"), figure, dpi=120)
