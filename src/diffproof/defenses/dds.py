"""Diffusion denoised smoothing: one-shot denoising, then the classifier (Carlini et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffproof.defenses.base import CertifiableDefense, Labelled
from diffproof.denoisers.base import Denoiser
from diffproof.noise import Noise
from diffproof.reverse.sampling import one_shot


class DDS(CertifiableDefense):
    """classifier(denoiser(noisy, sigma)), the estimate clipped to [0, 1] (Carlini et al. 2023, algorithm 2).

    The noise is N(0, sigma²) exactly as asked, where the authors draw it at the grid's level above sigma.

    Args:
        denoiser: any denoiser; its unconditional estimate is used.
        classifier: see Defense.
        sigma: see CertifiableDefense.
    """

    method = "dds"

    def __init__(self, denoiser: Denoiser, classifier: nn.Module, *, sigma: float | None = None) -> None:
        super().__init__(classifier, denoiser, sigma)
        self.denoiser: Denoiser
        self.classifier: nn.Module

    def classify(self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int) -> Labelled:
        """One denoiser and one classifier evaluation an image."""
        parts = zip(noisy.split(batch_size), noise.split(batch_size), strict=True)
        labels = [self.classifier_labels(one_shot(self.denoiser, part, sigma), own) for part, own in parts]
        return Labelled(torch.cat(labels), len(noisy), len(noisy))

    def logits(self, noisy: Tensor, sigma: float, noise: Noise) -> Tensor:
        """The classifier's logits on the denoised image."""
        return self.classifier_logits(one_shot(self.denoiser, noisy, sigma), noise)
