"""What may be smoothed; of a plain function its labels are checked, and that it gives them again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from diffproof.checks import check_at_least, shown
from diffproof.defenses.base import CertifiableDefense, Defense
from diffproof.defenses.labelling import Labelled
from diffproof.defenses.repeatability import check_unchanged, not_repeatable, weights_of
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
        # Draws that it has proved to give the same labels again, and these.
        self._proved: tuple[Tensor, Tensor] | None = None

    def classify(self, noisy: Tensor, noise: Noise, batch_size: int) -> Labelled:
        """Labels of noisy images by a function."""
        if self._proved is not None:
            return Labelled(self._labels_of(noisy), 0, len(noisy))
        # It may change what it gets.
        labels = self._labels_of(noisy.clone())
        # Alone, nothing else decides about a draw's label; among others, chance hardly gives all again.
        for last in (1, _ASKED_AGAIN):
            again = noisy[-last:].flip(0)
            said = self._labels_of(again.clone()).clone()
            if not labels[-last:].equal(said.flip(0)):
                raise not_repeatable("base", "gives one image another label when asked again")
        self._proved = again, said
        return Labelled(labels, 0, len(noisy))

    def check_unchanged(self) -> None:
        """Raise ValueError if it gives draws other labels by now than at first."""
        if self._proved is not None:
            noisy, said = self._proved
            if not said.equal(self._labels_of(noisy.clone())):
                raise not_repeatable("base", "gives an image another label by now than at first")

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


class Constancy:
    """Whether what labels draws is one function from the first of them to the last.

    Args:
        labelling: all that labels some.
    """

    def __init__(self, labelling: Iterable[CertifiableDefense | LabelFunction]) -> None:
        self._labelling = list(dict.fromkeys(labelling))
        self._began: list[tuple[object, ...] | None] = [None for _ in self._labelling]

    def begin(self) -> None:
        """Note the weights, before the first draw."""
        self._began = [None if isinstance(one, LabelFunction) else weights_of(one) for one in self._labelling]

    def check(self) -> None:
        """Raise ValueError unless weights and answers are what they were."""
        for one, began in zip(self._labelling, self._began, strict=True):
            if isinstance(one, LabelFunction):
                one.check_unchanged()
            else:
                check_unchanged(one, began)


def check_base(
    base: CertifiableDefense | Callable[[Tensor], Tensor], num_classes: int | None, name: str = "base"
) -> int:
    """The number of labels of what is smoothed, a defence that labels noisy draws or a function.

    Raises:
        ValueError: it is neither, or the number is missing or another one.
    """
    if isinstance(base, CertifiableDefense):
        if num_classes is not None and num_classes != base.num_classes:
            raise ArgumentError("num_classes", f"the defence has {base.num_classes}, got {num_classes}")
        return check_at_least("num_classes", base.num_classes, 2)
    if isinstance(base, Defense) or not callable(base):
        raise ArgumentError(
            name, f"expected a diffproof.CertifiableDefense or a function to labels, got {shown(base)}"
        )
    if num_classes is None:
        raise ArgumentError("num_classes", "expected the number of labels of the base function, got None")
    return check_at_least("num_classes", num_classes, 2)


def trained_level(base: object, sigma: float) -> float | None:
    """The trained noise level of a defence's denoiser that is nearest to sigma; None without a denoiser.

    Raises:
        ValueError: the defence cannot label images with this noise.

    Warns:
        UserWarning: it is over 1% from sigma.
    """
    if not isinstance(base, CertifiableDefense):
        return None
    base.check_sigma(sigma)
    if base.denoiser is None:
        return None
    level = base.denoiser.nearest(sigma)
    distance = abs(level - sigma) / sigma
    if distance > 0.01:
        told = f"sigma: the denoiser's nearest trained level is {level:.5g}, {distance:.1%} from {sigma:g}"
        warnings.warn(told, stacklevel=3)
    return level
