"""Gaussian noise as a pure function of (seed, stream, image index, draw, vote, step).

The bits come from the counter-based generator Philox4x32-10, see `philox`: a value is the same bits for any
batch size, device, thread count or moment of interruption.

The counter's four words: which four numbers of a tensor; vote and step; draw; image and stream. The key is
the seed, or what `Noise.nested` derives from both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffproof.checks import check_at_least, check_integer, check_listed, check_tensor, shown
from diffproof.errors import ArgumentError
from diffproof.philox import MASK, normal_from_bits, philox4x32

# Elements drawn at a time: the float64 temporaries then stay in a core's cache.
_CHUNK = 1 << 16

# In the counter's first word, above what tensors need: further bits of each number, keys of nested noise.
_LOW_WORDS = 1 << 31
_NESTED = MASK
_LARGEST_BLOCK = 1 << 28

MAX_IMAGE_INDEX = 2**28 - 1
MAX_DRAW = 2**32 - 1
MAX_VOTE = 2**16 - 1
MAX_STEP = 2**16 - 1


class Stream(IntEnum):
    """Independent families of draws, so that no purpose ever reuses another's noise.

    SELECTION, ESTIMATION, PREDICTION: draws of randomized smoothing.
    FORWARD: calls of a defence that are given no noise.
    ATTACK: what an attack sees of a random defence, and its random starts.
    SCORING: what a defence is scored under after an attack.
    CONTROL: what it is scored under without one.
    DIAGNOSTICS: the checks of an attack evaluation: their points, directions, frozen noise and scores.
    """

    SELECTION = 0
    ESTIMATION = 1
    PREDICTION = 2
    FORWARD = 3
    ATTACK = 4
    SCORING = 5
    CONTROL = 6
    DIAGNOSTICS = 7


@dataclass(frozen=True)
class Noise:
    """Where the noise of each row of a batch comes from.

    Args:
        seed: the run's seed, in [0, 2^64).
        stream: what the draws are for; of `joined` rows perhaps N int64, one each.
        image_index: int64 tensor of N image indices, in [0, 2^28).
        draw: int64 tensor of N draw indices, in [0, 2^32).
        vote: int64 tensor of N vote indices, in [0, 2^16); 0 is the noise that is added to the image.
        key: N×2 int64 words in the place of the seed's, of `nested`; None at the top.
        taken: whether step 0 of vote 0 was added to the images already, so that nothing else may draw it.

    Raises:
        ValueError: the seed or an index lies outside its range, or the tensors differ in shape.
    """

    seed: int
    stream: Stream | Tensor
    image_index: Tensor
    draw: Tensor
    vote: Tensor
    key: Tensor | None = None
    taken: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        if not isinstance(self.stream, Stream | Tensor):
            raise ArgumentError("stream", f"expected a diffproof.Stream, got {shown(self.stream)}")
        for name in ("image_index", "draw", "vote"):
            # Other integers overflow in the arithmetic, which would be another noise.
            _check_int64(name, getattr(self, name))
        indices = [
            ("image_index", self.image_index, MAX_IMAGE_INDEX),
            ("draw", self.draw, MAX_DRAW),
            ("vote", self.vote, MAX_VOTE),
        ]
        if isinstance(self.stream, Tensor):
            # A number beyond would reach into the bits of the image.
            _check_int64("stream", self.stream)
            indices.append(("stream", self.stream, max(Stream)))
        if self.key is not None:
            _check_key(self.key, len(self.draw))
        for name, index, largest in indices:
            if index.shape != self.draw.shape or index.ndim != 1:
                raise ArgumentError(name, f"expected one index a row, got shape {tuple(index.shape)}")
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) <= largest:
                raise ArgumentError(name, f"expected 0 ≤ {name} ≤ {largest}, got {index.tolist()[:3]}…")

    @classmethod
    def for_draws(cls, seed: int, stream: Stream, image_index: int, start: int, stop: int) -> Noise:
        """Noise of the draws start ≤ draw < stop of one image, vote 0.

        Args:
            seed: the run's seed, in [0, 2^64).
            stream: what the draws are for.
            image_index: the image's number, in [0, 2^28).
            start: the first draw, in [0, 2^32).
            stop: the draw after the last, at most 2^32.

        Raises:
            ValueError: an argument is out of range.
        """
        check_image_index(image_index)
        if not 0 <= check_integer("draws", start) < check_integer("draws", stop) <= MAX_DRAW + 1:
            raise ArgumentError("draws", f"expected 0 ≤ start < stop ≤ 2^32, got {start} and {stop}")
        draw = torch.arange(start, stop, dtype=torch.int64)
        return cls.for_rows(seed, stream, torch.full_like(draw, image_index), draw)

    @classmethod
    def for_rows(cls, seed: int, stream: Stream, image_index: Tensor, draw: Tensor) -> Noise:
        """Noise of N rows given by their image and draw indices, vote 0.

        Args:
            seed: the run's seed, in [0, 2^64).
            stream: what the draws are for.
            image_index: N int64, in [0, 2^28).
            draw: N int64, in [0, 2^32).

        Raises:
            ValueError: an argument is out of range.
        """
        _check_int64("draw", draw)
        return cls(seed, stream, image_index, draw, torch.zeros_like(draw))

    @classmethod
    def joined(cls, parts: Sequence[Noise]) -> Noise:
        """The rows of several noises one after another.

        Args:
            parts: at least one; of one seed, device and nesting.
        """
        first = parts[0]
        if any(
            (one.seed, one.taken, one.key is None) != (first.seed, first.taken, first.key is None)
            for one in parts
        ):
            raise ArgumentError("parts", "expected noises of one seed and nesting, got several")
        streams = {one.stream if isinstance(one.stream, Stream) else None for one in parts}
        keys = [one.key for one in parts if one.key is not None]
        return first._changed(
            stream=first.stream
            if len(streams) == 1 and None not in streams
            else torch.cat([one._streams() for one in parts]),
            image_index=torch.cat([one.image_index for one in parts]),
            draw=torch.cat([one.draw for one in parts]),
            vote=torch.cat([one.vote for one in parts]),
            key=torch.cat(keys) if keys else None,
        )

    def __len__(self) -> int:
        return len(self.draw)

    def to(self, device: torch.device) -> Noise:
        """The same noise, generated on another device."""
        if self.draw.device == device:
            return self
        return self._changed(
            image_index=self.image_index.to(device),
            draw=self.draw.to(device),
            vote=self.vote.to(device),
            key=None if self.key is None else self.key.to(device),
            stream=self.stream.to(device) if isinstance(self.stream, Tensor) else self.stream,
        )

    def rows(self, index: Tensor, vote: Tensor) -> Noise:
        """The rows `index` of this batch (repeats allowed), each with its own vote index."""
        key = None if self.key is None else self.key[index]
        # On another device the look at the votes would make the program wait for it, each time.
        change = partial(replace, self) if vote.device.type == "cpu" else self._changed
        stream = self.stream[index] if isinstance(self.stream, Tensor) else self.stream
        own = {"stream": stream, "image_index": self.image_index[index], "draw": self.draw[index]}
        return change(**own, vote=vote, key=key)

    def nested(self) -> Noise:
        """Noise for a defence inside the one that this noise is for: independent of it, and vote by vote.

        Each row's key is what Philox gives for that row, as keys are split in Claessen and Pałka, "Splittable
        Pseudorandom Number Generators using Cryptographic Hashing" (Haskell 2013).
        """
        last = torch.full_like(self.draw, _NESTED)
        words = philox4x32(
            (last, self.vote << 16, self.draw, self._image_word()), self._key_words(slice(None))
        )
        key = torch.stack(words[:2], dim=1)
        return self._changed(vote=torch.zeros_like(self.vote), key=key, taken=False)

    def after_first(self) -> Noise:
        """The same noise for what works on images that step 0 of vote 0 was added to."""
        return self._changed(taken=True)

    def _changed(self, **fields: Any) -> Noise:
        """With other fields, which need no check."""
        made = object.__new__(Noise)
        vars(made).update(vars(self) | fields)
        return made

    def split(self, size: int) -> list[Noise]:
        """The rows in order, in portions of at most `size`."""
        parts = torch.arange(len(self), device=self.draw.device).split(size)
        return [self.rows(index, self.vote[index]) for index in parts]

    def normal(self, shape: torch.Size | tuple[int, ...], step: int | Tensor, dtype: torch.dtype) -> Tensor:
        """Standard normal values, N × `shape`, on the device of the indices.

        Args:
            shape: shape of one row.
            step: which of a row's noise tensors, in [0, 2^16), one for all rows or an int64 tensor of one
                each; 0 is the forward noise.
            dtype: floating dtype of the result; the values are rounded from float64.

        Raises:
            ValueError: an argument is out of range or of another type.
        """
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ArgumentError("dtype", f"expected a floating one of torch, got {shown(dtype)}")
        sizes = [check_at_least("shape", length, 0) for length in check_listed("shape", shape)]
        if self.draw.device.type == "mps":
            # It has no float64, in which the values are made.
            there, step = self.draw.device, step.cpu() if isinstance(step, Tensor) else step
            return self.to(torch.device("cpu")).normal(shape, step, dtype).to(there)
        size = math.prod(sizes)
        out = torch.empty(len(self), size, dtype=dtype, device=self.draw.device)
        for rows, bits in self.words(size, step):
            out[rows] = torch.as_tensor(normal_from_bits(_array(bits)))
        return out.reshape(len(self), *sizes)

    def words(self, size: int, step: int | Tensor, low: bool = False) -> Iterator[tuple[slice, Tensor]]:
        """Uniform 32-bit words, `size` a row, some rows at a time: their slice and int64 values.

        Args:
            size: words a row, in [0, 2^30).
            step: see `normal`.
            low: another 32 bits of each number, independent of the first.

        Raises:
            ValueError: as in `normal`.
        """
        step = self._checked_step(step)
        if size > 4 * _LARGEST_BLOCK:
            raise ArgumentError("shape", f"expected at most 2^30 numbers a row, got {size}")
        block = torch.arange((size + 3) // 4, dtype=torch.int64, device=self.draw.device)[None, :]
        counter = [self.vote << 16 | step, self.draw, self._image_word()]
        parts = [block | _LOW_WORDS if low else block, *(part[:, None] for part in counter)]
        if self.key is not None:
            parts += [self.key[:, :1], self.key[:, 1:]]
        arrays = [_array(part) for part in parts]
        if not all(isinstance(array, np.ndarray) for array in arrays):
            arrays = parts
        stack: Any = torch.stack if arrays is parts else np.stack
        # Elsewhere few large kernels are faster than many small ones.
        rows_at_once = max(1, len(self))
        if block.device.type == "cpu":
            rows_at_once = max(1, _CHUNK // max(1, block.shape[1] * 4))
        for start in range(0, len(self), rows_at_once):
            rows = slice(start, start + rows_at_once)
            vote, draw, image, *key = (array[rows] for array in arrays[1:])
            words = philox4x32((arrays[0], vote, draw, image), tuple(key) or self._seed_words)
            bits = stack(words, -1).reshape(len(words[0]), 4 * block.shape[1])[:, :size]
            yield rows, torch.as_tensor(bits)

    def low_words(self, row: Tensor, column: Tensor, step: int) -> Tensor:
        """What `words` with `low` gives at some of its places.

        Args:
            row: M int64.
            column: M int64.
            step: see `normal`.
        """
        position = (self.vote << 16 | self._checked_step(step))[row]
        counter = (column >> 2 | _LOW_WORDS, position, self.draw[row], self._image_word()[row])
        words = torch.stack(philox4x32(counter, self._key_words(row)), dim=-1)
        return words.gather(1, (column & 3)[:, None])[:, 0]

    def _image_word(self) -> Tensor:
        return self.image_index << 4 | self._streams()

    def _streams(self) -> Tensor:
        """The stream of each row."""
        if isinstance(self.stream, Tensor):
            return self.stream
        return torch.full_like(self.image_index, int(self.stream))

    @property
    def _seed_words(self) -> tuple[Any, Any]:
        return self.seed & MASK, self.seed >> 32

    def _key_words(self, rows: slice | Tensor) -> tuple[Any, Any]:
        return self._seed_words if self.key is None else (self.key[rows, 0], self.key[rows, 1])

    def _checked_step(self, step: int | Tensor) -> int | Tensor:
        """The step, on the indices' device, or ValueError."""
        if isinstance(step, Tensor):
            _check_int64("step", step)
            if step.shape != self.draw.shape:
                raise ArgumentError("step", f"expected one a row, got shape {tuple(step.shape)}")
            least, largest = (int(step.min()), int(step.max())) if len(step) else (0, 0)
        else:
            least = largest = step = check_at_least("step", step, 0)
        if not 0 <= least <= largest <= MAX_STEP:
            raise ArgumentError("step", f"expected 0 ≤ step < 2^16, got {step}")
        if self.taken and least == 0 and bool(((self.vote == 0) & torch.as_tensor(step == 0)).any()):
            raise ArgumentError(
                "step", "step 0 of vote 0 is the noise in the images; draw from another step or vote, got 0"
            )
        return step


def check_seed(seed: int) -> int:
    """A seed in [0, 2^64) as Python's integer, or ValueError."""
    number = check_integer("seed", seed, "an integer, 0 ≤ seed < 2^64")
    if not 0 <= number < 2**64:
        raise ArgumentError("seed", f"expected 0 ≤ seed < 2^64, got {shown(seed)}")
    return number


def check_image_index(index: int) -> int:
    """An image's index in [0, 2^28) as Python's integer, or ValueError."""
    number = check_integer("image_index", index)
    if not 0 <= number <= MAX_IMAGE_INDEX:
        raise ArgumentError(
            "image_index", f"expected 0 ≤ image_index ≤ {MAX_IMAGE_INDEX}, got {shown(number)}"
        )
    return number


def check_image_indices(indices: Sequence[int] | None, number: int) -> list[int]:
    """So many different indices of images in their data set, 0, 1, … for None; ValueError for others."""
    given = range(number) if indices is None else check_listed("image_indices", indices)
    chosen = [check_integer("image_indices", index, "integers") for index in given]
    if len(chosen) != number or not all(0 <= index <= MAX_IMAGE_INDEX for index in chosen):
        raise ArgumentError("image_indices", f"expected {number} numbers in [0, 2^28), got {chosen[:3]}…")
    if len(set(chosen)) != number:
        # They would share their noise, and count as images of their own.
        raise ArgumentError("image_indices", f"expected one index an image, got some twice: {shown(chosen)}")
    return chosen


def _array(tensor: Tensor) -> Any:
    """As NumPy's array where the CPU holds it, else the tensor: another device, a transform of torch.func."""
    try:
        return tensor.numpy() if tensor.device.type == "cpu" else tensor
    except RuntimeError:
        return tensor


def _check_key(key: Tensor, rows: int) -> None:
    _check_int64("key", key)
    if key.shape != (rows, 2) or (rows and not 0 <= int(key.min()) <= int(key.max()) <= MASK):
        raise ArgumentError("key", f"expected {rows}×2 words in [0, 2^32), got {shown(key)}")


def _check_int64(name: str, index: Tensor) -> None:
    if check_tensor(name, index, "an int64 tensor").dtype != torch.int64:
        raise ArgumentError(name, f"expected an int64 tensor, got {shown(index)}")
