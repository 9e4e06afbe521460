"""Noise of the rows of a batch."""

from __future__ import annotations

import torch

from diffproof.noise import Noise, Stream


def noise_of(rows: int = 2, seed: int = 0, *, image: int = 0, first: int = 0) -> Noise:
    """Successive draws of one image."""
    return Noise.for_draws(seed, Stream.FORWARD, image, first, first + rows)


def noise_of_images(
    rows: int, seed: int = 0, *, stream: Stream = Stream.PREDICTION, first: int = 0, draw: int = 0
) -> Noise:
    """The same draw of successive images."""
    index = torch.arange(first, first + rows)
    return Noise.for_rows(seed, stream, index, torch.full_like(index, draw))


def attack_noise(rows: int, draw: int, seed: int = 7, first: int = 5) -> Noise:
    """What an attack draws for the images of attacks.job_of."""
    return noise_of_images(rows, seed, stream=Stream.ATTACK, first=first, draw=draw)
