"""Steps of a training, and what one leaves behind."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from diffproof.training.batches import Batch


def batch(images: Tensor, labels: Tensor) -> Batch:
    """These images as one whole step."""
    return Batch(images, labels, torch.zeros_like(labels), len(labels), torch.arange(len(labels)))


def losses_of(out: Path) -> list[float]:
    """The losses that a training wrote beside its weights."""
    return [float(line.split(",")[1]) for line in out.with_suffix(".loss.csv").read_text().splitlines()[1:]]
