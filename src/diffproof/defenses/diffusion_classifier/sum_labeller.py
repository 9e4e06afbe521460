"""Labels of noisy draws by the whole sums of a diffusion classifier, a denoiser batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from diffproof.classifiers.base import predicted_labels
from diffproof.defenses.labelling import Finished, Labeller, part_of_state
from diffproof.errors import ArgumentError
from diffproof.gradients import Term
from diffproof.noise import Noise

Terms = Callable[[Tensor, Noise, Tensor], list[Term]]


class SumLabeller(Labeller):
    """Adds up the terms of some draws' losses for some classes after another, then labels them.

    Args:
        terms: images, their noise and classes to the terms of their losses.
        logits: N×num_classes losses to logits.
        num_classes: number of classes.
        one_row: whether a row of the denoiser gives the terms of all classes.
        batch_size: see Labeller.
    """

    def __init__(
        self,
        terms: Terms,
        logits: Callable[[Tensor], Tensor],
        *,
        num_classes: int,
        one_row: bool,
        batch_size: int,
    ) -> None:
        super().__init__(batch_size)
        self._terms_of, self._logits = terms, logits
        self._num_classes, self._one_row = num_classes, one_row
        self._begin()

    def _begin(self) -> None:
        """Forget what was computed."""
        # For how many rows at once it was; the losses of the first draws for the first classes.
        self._size, self._losses = self.batch_size, torch.empty(0, 0)
        # The sum of the first terms for the next classes, and the terms.
        self._sum: Tensor | None = None
        self._done = self._begun = 0
        self._terms: list[Term] | None = None

    @property
    def _at_once(self) -> int:
        """Draws that the denoiser takes together."""
        return self.batch_size if self._one_row else max(1, self.batch_size // self._num_classes)

    @property
    def wanted(self) -> int:
        """See Labeller; none for draws in work."""
        return 0 if self._begun else max(0, self._at_once - len(self))

    @property
    def begun(self) -> int:
        """See Labeller."""
        return self._begun

    def step(self) -> Finished | None:
        """See Labeller."""
        if self._size != self.batch_size:
            # Other batches would add the terms up in other pieces.
            self._begin()
        images = self.noisy[: self._at_once]
        if not self._begun:
            self._losses = images.new_empty(len(images), 0)
        some = torch.arange(self._num_classes)[self._losses.shape[1] :]
        some = some[: self._num_classes if self._one_row else self.batch_size]
        if self._terms is None:
            rows = torch.arange(len(images), device=images.device)
            self._terms = self._terms_of(images, self.noise.rows(rows, self.noise.vote[rows]), some)
            if self._done >= len(self._terms):
                raise ArgumentError("run", f"expected a sum of {len(self._terms)} terms, got {self._done}")
        value = self._terms[self._done](images)
        rows_in = len(images) * (1 if self._one_row else len(some))
        self._called(rows_in)
        self._sum = value if self._sum is None else self._sum + value
        self._done, self._begun = self._done + 1, self._begun + rows_in
        if self._done < len(self._terms):
            return None
        self._losses = torch.cat([self._losses, self._sum], 1)
        self._sum, self._done, self._terms = None, 0, None
        return self._finish() if self._losses.shape[1] == self._num_classes else None

    def _finish(self) -> Finished:
        """The labels that whole sums give."""
        rows = len(self._losses)
        labels, tags = predicted_labels(self._logits(self._losses)), self.tags[:rows]
        draw = self.noise.draw[:rows]
        each = torch.full_like(labels, self._begun // rows)
        self._begin()
        self._drop(torch.arange(rows, len(self), device=labels.device))
        return Finished(tags, labels, each, torch.zeros_like(labels), draw)

    def state(self) -> dict[str, Tensor]:
        """Losses for the first classes, and the sum of the first terms for the next ones."""
        if not self._begun:
            return {}
        numbers = torch.tensor([self._size, self._done, self._begun])
        tensors = {"losses": self._losses, "numbers": numbers}
        return tensors if self._sum is None else tensors | {"sum": self._sum}

    def resume(self, noisy: Tensor, noise: Noise, tags: Tensor, state: Mapping[str, Tensor]) -> None:
        """See Labeller."""
        super().resume(noisy, noise, tags, state)
        if not state or (now := part_of_state(state, "numbers", (3,), whole=True).tolist())[0] != self._size:
            # Other batches would add the terms up in other pieces.
            return
        self._size, self._done, self._begun = now
        rows = min(len(noisy), self._at_once)
        self._losses = part_of_state(state, "losses", (rows, None)).to(noisy.device)
        classes = self._num_classes if self._one_row else self.batch_size
        left = min(self._num_classes - self._losses.shape[1], classes)
        if self._done:
            self._sum = part_of_state(state, "sum", (rows, left)).to(noisy.device)
        if left < 1 or self._begun < 1 or self._done < 0:
            raise ValueError("numbers: expected those of an unfinished sum, got others")
