"""Labels of noisy draws batch by batch: draws come in as others leave, so that networks stay full."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from diffproof.noise import Noise


class Labelled(NamedTuple):
    """Labels of a batch of noisy draws and what they cost.

    Attributes:
        labels: N int64.
        denoiser_evaluations: images that went through the denoiser.
        classifier_evaluations: images that went through the classifier.
    """

    labels: Tensor
    denoiser_evaluations: int
    classifier_evaluations: int


class Finished(NamedTuple):
    """Draws that are labelled, in any order.

    Attributes:
        tags: M int64, as they came in.
        labels: M int64.
        denoiser_evaluations: M int64, of each draw.
        classifier_evaluations: M int64, of each draw.
        draw: M int64, their numbers.
        ballots: M×votes labels in the order of voting, NOT_CAST where they were not needed; None where there
            is no vote.
    """

    tags: Tensor
    labels: Tensor
    denoiser_evaluations: Tensor
    classifier_evaluations: Tensor
    draw: Tensor
    ballots: Tensor | None = None


class Labeller(ABC):
    """Labels noisy draws of any images, at most `batch_size` in a network at once.

    What it holds changes between two calls of its methods only, and never in place: tensors of `state` stay
    what they were.

    Args:
        batch_size: most rows in a network at once, ≥ 1; it may be lowered at any time, and changes no label.

    Attributes:
        noisy: draws that have no label yet, N×C×H×W, those that came first in front.
        noise: theirs.
        tags: N int64, by which who sent them knows them again; draws of one tag came together.
        rows: images that went through a network so far.
        slots: how many there might have been in as many calls.
    """

    noisy: Tensor
    noise: Noise
    tags: Tensor

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.rows = self.slots = 0

    def __len__(self) -> int:
        return len(self.tags) if hasattr(self, "tags") else 0

    @property
    def votes(self) -> bool:
        """Whether there is a vote on each draw, of more than one."""
        return False

    @property
    @abstractmethod
    def wanted(self) -> int:
        """How many more draws the next network call has room for."""

    @property
    @abstractmethod
    def begun(self) -> int:
        """Evaluations that were spent on draws without a label."""

    @abstractmethod
    def step(self) -> Finished | None:
        """Call one network with what there is, and return the draws that have labels now, if any.

        Raises:
            ValueError: the networks cannot take the images, or give no labels.
            MemoryError, RuntimeError: the networks'; nothing has changed, and a lower batch size may do.
        """

    def add(self, noisy: Tensor, noise: Noise, tags: Tensor) -> None:
        """Take further draws.

        Args:
            noisy: M×C×H×W.
            noise: M rows, on the same device; see `CertifiableDefense.labels`.
            tags: M int64.
        """
        if len(self):
            noisy = torch.cat([self.noisy, noisy])
            noise = Noise.joined([self.noise, noise])
            tags = torch.cat([self.tags, tags])
        self.noisy, self.noise, self.tags = noisy, noise, tags

    def state(self) -> dict[str, Tensor]:
        """What was computed of the draws without a label, to go on from."""
        return {}

    def lean(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What takes little of a state, to go on from with what is missing computed again."""
        return state

    def resume(self, noisy: Tensor, noise: Noise, tags: Tensor, state: Mapping[str, Tensor]) -> None:
        """Take draws with what was computed of them, instead of `add`, before all others.

        Args:
            noisy: see `add`.
            noise: see `add`.
            tags: see `add`.
            state: what `state`, or `lean`, of a labeller of the same defence gave for the same draws.

        Raises:
            ValueError: no labeller gives such a state.
        """
        self.add(noisy, noise, tags)

    def _called(self, rows: int) -> None:
        """A network was called with so many images."""
        self.rows, self.slots = self.rows + rows, self.slots + self.batch_size

    def _drop(self, kept: Tensor) -> None:
        """Keep only the draws at these places."""
        # Together: if memory runs out before, nothing has changed.
        noise = self.noise.rows(kept, self.noise.vote[kept])
        self.noisy, self.tags, self.noise = self.noisy[kept], self.tags[kept], noise


class Batches(Labeller):
    """Labels whole batches by a function.

    Args:
        classify: noisy draws, their noise and the batch size to Labelled.
        batch_size: see Labeller.
        mixed: whether every draw costs the same, so that draws of other tags may share its batch.
    """

    def __init__(
        self, classify: Callable[[Tensor, Noise, int], Labelled], batch_size: int, *, mixed: bool = False
    ) -> None:
        super().__init__(batch_size)
        self._classify, self._mixed = classify, mixed

    @property
    def wanted(self) -> int:
        """A batch, or what is missing in it."""
        return max(0, self.batch_size - len(self)) if self._mixed or not len(self) else 0

    @property
    def begun(self) -> int:
        """None: a batch is labelled at once."""
        return 0

    def step(self) -> Finished | None:
        """See Labeller."""
        size = min(self.batch_size, len(self))
        if not self._mixed:
            size = min(size, int((self.tags == self.tags[0]).sum()))
        rows = torch.arange(len(self), device=self.tags.device)
        part, rest = rows[:size], rows[size:]
        noise = self.noise.rows(part, self.noise.vote[part])
        labels, *spent = self._classify(self.noisy[part], noise, self.batch_size)
        each = [self._shared(one, size, labels.device) for one in spent]
        tags = self.tags[part]
        self._called(size)
        self._drop(rest)
        return Finished(tags, labels, each[0], each[1], noise.draw)

    def _shared(self, spent: int, size: int, device: torch.device) -> Tensor:
        """What was spent on each of some draws; on draws of one tag together, no matter on which."""
        each = torch.zeros(size, dtype=torch.int64, device=device)
        if self._mixed:
            return each + spent // size
        each[0] = spent
        return each


def part_of_state(
    state: Mapping[str, Tensor], name: str, shape: tuple[int | None, ...], *, whole: bool = False
) -> Tensor:
    """A tensor of a labeller's state.

    Args:
        state: what a labeller resumes from.
        name: the tensor's.
        shape: its; None for any length.
        whole: of int64, not of a floating dtype.

    Raises:
        ValueError: it is missing, or another one.
    """
    found = state.get(name)
    if found is None:
        raise ValueError(f"{name} is missing")
    fits = found.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, found.shape, strict=True))
    if not fits or not (found.dtype == torch.int64 if whole else found.is_floating_point()):
        kind = "int64" if whole else "floats"
        raise ValueError(f"{name}: expected {kind}, {shape}, got {found.dtype}, {tuple(found.shape)}")
    return found


# A label has no gradient.
@torch.no_grad()
def label_all(labeller: Labeller, noisy: Tensor, noise: Noise) -> tuple[Labelled, Tensor | None]:
    """The labels of draws in their order, and their ballots where there was a vote.

    Args:
        labeller: an empty one.
        noisy: N×C×H×W.
        noise: N rows.
    """
    order = torch.arange(len(noisy), device=noisy.device)
    if not len(noisy):
        return Labelled(order, 0, 0), None
    labeller.add(noisy, noise.to(noisy.device), order)
    parts = []
    while len(labeller):
        if (done := labeller.step()) is not None:
            parts.append(done)
    tags, labels, *spent = (torch.cat(one) for one in zip(*(part[:4] for part in parts), strict=True))
    place = tags.argsort()
    ballots = [part.ballots for part in parts if part.ballots is not None]
    denoiser, classifier = (int(one.sum()) for one in spent)
    return (
        Labelled(labels[place], denoiser, classifier),
        torch.cat(ballots)[place] if ballots else None,
    )
