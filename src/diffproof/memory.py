"""What this machine's memory can hold, asked before it is filled."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from diffproof.errors import ArgumentError
from diffproof.weights import parameters_within

# What training holds of a parameter, in bytes: itself, its gradient, two moments and its average, in float32.
_PER_PARAMETER = 5 * 4
# How often the images of a batch are there at once, in float32: with noise, and as a network takes them.
_PER_PIXEL = 3 * 4
_GIGABYTE = 1e9
_LIMIT = Path("/sys/fs/cgroup/memory.max")


@functools.cache
def memory() -> float:
    """Bytes of the machine's memory, or of those that this process may have; infinite where nothing tells."""
    found = float("inf")
    with suppress(AttributeError, ValueError, OSError):
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        found = min(found, int(_LIMIT.read_text()))
    return found


def check_batch(rows: int, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a batch of so many images C×H×W can be in memory at once."""
    pixels = 1
    for size in shape:
        pixels *= size
    needed = rows * pixels * _PER_PIXEL
    if needed > memory():
        images = f"{rows:,} images of {'×'.join(map(str, shape))} (channels×height×width)"
        told = f"{images} take {needed / _GIGABYTE:,.1f} GB, the memory has {memory() / _GIGABYTE:,.1f} GB"
        raise ArgumentError("batch_size", told)


@contextmanager
def trainable(arguments: str) -> Iterator[None]:
    """Within this block networks are built without memory, to find whether training one would fit into it.

    Args:
        arguments: what sets their size, such as "width".

    Raises:
        ValueError: it would not.
    """
    most = memory() / _PER_PARAMETER
    problem = f"training so large a network does not fit into memory, which bears {most:,.0f} parameters"
    with torch.device("meta"), parameters_within(most, ArgumentError(arguments, problem)):
        yield
