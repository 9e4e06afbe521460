"""Ballots of draws, as a run folder keeps them."""

from __future__ import annotations

import io
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffproof.defenses.voting import NOT_CAST
from diffproof.noise import Stream
from diffproof.smoothing.schedule import Unit

# In bytes: what may come out of a row.
_LARGEST = 2**31


class Ballots:
    """Ballots by image and stream that wait to be recorded."""

    def __init__(self) -> None:
        self._parts: defaultdict[tuple[int, Stream], list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def add(self, unit: Unit, draw: Tensor, ballots: Tensor) -> None:
        """Ballots M×K of draws of a unit, by their numbers; see `Finished`."""
        self._parts[unit.image_index, unit.stream].append((draw, ballots))

    def packed(self) -> Iterator[tuple[int, int, bytes]]:
        """Images, streams and bytes of what waits."""
        for (image_index, stream), parts in self._parts.items():
            draw, ballots = (torch.cat(one) for one in zip(*parts, strict=True))
            yield image_index, int(stream), _packed(draw, ballots)

    def clear(self) -> None:
        """Let go what waits."""
        self._parts.clear()


def _packed(draw: Tensor, ballots: Tensor) -> bytes:
    """Numbers and ballots, compressed: most votes agree."""
    file = io.BytesIO()
    # The votes of a place in the order stand together.
    table = torch.cat([draw[:, None], ballots], 1).T.numpy()
    np.save(file, table.astype("<u4"), allow_pickle=False)
    return zlib.compress(file.getvalue(), 1)


def unpacked(rows: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    """Numbers of draws, ascending, and their ballots, from all bytes of an image and stream.

    Raises:
        ValueError: bytes that no run writes.
    """
    parts: list[np.ndarray[Any, Any]] = []
    for row in rows:
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(row, _LARGEST)
            table = np.load(io.BytesIO(data), allow_pickle=False)
        except (zlib.error, TypeError, ValueError, EOFError, OSError) as error:
            raise ValueError(f"expected ballots as they were written, got {error}") from None
        if table.dtype != np.dtype("<u4") or table.ndim != 2 or len(table) < 2:
            raise ValueError(f"expected a table of ballots, got {table.dtype}, {table.shape}")
        if len({len(table), *(len(part) for part in parts)}) > 1:
            raise ValueError("expected as many votes of each draw")
        parts.append(table)
    every = np.concatenate(parts, 1)
    # A draw that was voted on again after an interruption has the same ballots.
    draw, place = np.unique(every[0], return_index=True)
    # What was not cast was saved as the largest number.
    votes = every[1:, place].T.astype("<i4")
    if votes.min(initial=0) < NOT_CAST:
        raise ValueError("expected labels, got negative ones")
    return torch.from_numpy(draw.astype(np.int64)), torch.from_numpy(votes.astype(np.int64))
