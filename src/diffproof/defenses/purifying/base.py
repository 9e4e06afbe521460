"""What every defence is that makes another image first: purified by a diffusion model, then classified."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffproof.checks import MOST_ROWS, check_at_least
from diffproof.defenses.base import Defense, noise_for
from diffproof.denoisers.base import Denoiser, check_denoiser
from diffproof.noise import Noise

# Images and the noise of each → purified images.
Purify = Callable[[Tensor, Noise], Tensor]


class Purifier(Defense):
    """Images → purified images → logits. Subclasses write `purify` and `evaluations`.

    Args:
        denoiser: the diffusion model.
        classifier: see Defense; it may be a defence itself, such as a diffusion classifier.
    """

    can = frozenset({"purify"})

    denoiser: Denoiser
    classifier: nn.Module

    def __init__(self, denoiser: Denoiser, classifier: nn.Module) -> None:
        super().__init__(classifier, check_denoiser(denoiser))

    @property
    def evaluations(self) -> int:
        """Denoiser evaluations that purify one image. Written by subclasses."""
        raise TypeError(f"{type(self).__name__} does not define evaluations")

    def purify(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Purified images, N×C×H×W in [0, 1]; exact gradients flow to `images` in constant memory.

        Written by subclasses.

        Args:
            images: N×C×H×W in [0, 1].
            noise: one row an image; None draws afresh.

        Raises:
            ValueError: as calling the defence, or see `check_networks`.
        """
        raise TypeError(f"{type(self).__name__} does not define purify()")

    def predict_labels(
        self, images: Tensor, noise: Noise | None = None, batch_size: int | None = None
    ) -> Tensor:
        """As any defence's; a classifier that is a defence labels the purified images its own way."""
        if not isinstance(self.classifier, Defense):
            return super().predict_labels(images, noise, batch_size)
        noise = noise_for(images, noise)
        self.check_networks(images)
        size = (
            max(1, len(images))
            if batch_size is None
            else check_at_least("batch_size", batch_size, 1, MOST_ROWS)
        )
        with torch.no_grad():  # a label has no gradient
            parts = zip(images.split(size), noise.split(size), strict=True)
            purified = torch.cat([self.purify(part, own) for part, own in parts])
        return self.classifier.predict_labels(purified, noise.nested(), batch_size)

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        """The classifier's logits of purified images."""
        return self.respond_by(self.purify, images, noise)

    def respond_by(self, purify: Purify, images: Tensor, noise: Noise) -> Tensor:
        """As `respond`, with another function in the place of `purify`, such as one with another gradient.

        Args:
            purify: images N×C×H×W and the noise of each → purified images.
            images: N×C×H×W in [0, 1].
            noise: one row an image.
        """
        return self.classifier_logits(purify(images, noise), noise)
