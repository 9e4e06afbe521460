"""No denoiser: plain randomized smoothing (Cohen et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffproof.defenses.protocol import Defense, Labelled
from diffproof.noise import Noise


class Undefended(Defense):
    """The classifier alone on the noisy image, the baseline of randomized smoothing.

    Args:
        classifier: see Defense. sigma: see Defense.
    """

    method = "none"

    def __init__(self, classifier: nn.Module, *, sigma: float | None = None) -> None:
        super().__init__(classifier, None, sigma)

    def classify(self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int) -> Labelled:
        """One classifier evaluation an image."""
        labels = torch.cat([self.classifier_labels(part) for part in noisy.split(batch_size)])
        return Labelled(labels, 0, len(noisy))

    def logits(self, noisy: Tensor, sigma: float, noise: Noise) -> Tensor:
        """The classifier's logits on the noisy image."""
        return self.classifier_logits(noisy)
