"""A plain function as a base classifier: its labels checked, and that it gives them again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffproof.defenses.labelling import Labelled
from diffproof.defenses.repeatability import not_repeatable
from diffproof.errors import ArgumentError
from diffproof.noise import Noise
from diffproof.wording import kind_of

# A function of chance with two labels gives them all again once in 2^16 times.
_ASKED_AGAIN = 16


class LabelFunction:
    """Labels noisy images by a function.

    Args:
        function: noisy images N×C×H×W to N integer labels.
        num_classes: labels are below it.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], num_classes: int) -> None:
        self._function, self._num_classes = function, num_classes
        # Whether it has proved to give the same labels again.
        self._repeats = False

    def classify(self, noisy: Tensor, noise: Noise, batch_size: int) -> Labelled:
        """Labels of noisy images by a function."""
        if self._repeats:
            return Labelled(self._labels_of(noisy), 0, len(noisy))
        # It may change what it gets.
        labels = self._labels_of(noisy.clone())
        # Alone, nothing else decides about a draw's label; among others, chance hardly gives all again.
        for last in (1, _ASKED_AGAIN):
            if not labels[-last:].equal(self._labels_of(noisy[-last:].flip(0).clone()).flip(0)):
                raise not_repeatable("base", "gives one image another label when asked again")
        self._repeats = True
        return Labelled(labels, 0, len(noisy))

    def _labels_of(self, noisy: Tensor) -> Tensor:
        """What a function says of noisy images, checked."""
        labels = self._function(noisy)
        if not isinstance(labels, Tensor):
            raise ArgumentError("base", f"expected a tensor of {len(noisy)} labels, got {kind_of(labels)}")
        if labels.shape != (len(noisy),) or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ArgumentError(
                "base",
                f"expected {len(noisy)} integer labels, got shape {tuple(labels.shape)}, {labels.dtype}",
            )
        if not 0 <= int(labels.min()) <= int(labels.max()) < self._num_classes:
            found = f"{int(labels.min())} to {int(labels.max())}"
            raise ArgumentError("base", f"expected labels in [0, {self._num_classes}), got {found}")
        return labels
