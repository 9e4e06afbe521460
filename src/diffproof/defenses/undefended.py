"""No denoiser: plain randomized smoothing (Cohen et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffproof.defenses.base import CertifiableDefense, Defense
from diffproof.defenses.labelling import Batches, Labelled, Labeller
from diffproof.noise import Noise


class Undefended(CertifiableDefense):
    """The classifier alone: the baseline of purification, and on noisy images that of randomized smoothing.

    Args:
        classifier: see Defense.
        sigma: standard deviation of the noise that calling the module adds first, in [0, 1] pixels; None adds
            none.
    """

    method = "none"

    def __init__(self, classifier: nn.Module, *, sigma: float | None = None) -> None:
        super().__init__(classifier, None, sigma)
        self.classifier: nn.Module
        self.random = sigma is not None or (isinstance(classifier, Defense) and classifier.random)

    def classify(self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int) -> Labelled:
        """One classifier evaluation an image."""
        parts = zip(noisy.split(batch_size), noise.split(batch_size), strict=True)
        labels = torch.cat([self.classifier_labels(*part) for part in parts])
        return Labelled(labels, 0, len(noisy))

    def labeller(self, sigma: float, batch_size: int) -> Labeller:
        """See CertifiableDefense."""
        return Batches(
            lambda noisy, noise, size: self.classify(noisy, sigma, noise, size), batch_size, mixed=True
        )

    def logits(self, noisy: Tensor, sigma: float, noise: Noise) -> Tensor:
        """The classifier's logits on the noisy image."""
        return self.classifier_logits(noisy, noise)

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        """The classifier's logits, on noisy images if the defence has a sigma."""
        if self.sigma is None:
            return self.classifier_logits(images, noise)
        return super().respond(images, noise)
