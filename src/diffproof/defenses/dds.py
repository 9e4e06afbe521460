"""Diffusion denoised smoothing: one-shot denoising, then the classifier (Carlini et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffproof.defenses.base import CertifiableDefense, Labelled, Labelling, Underway, finished
from diffproof.denoisers.base import Denoiser, check_denoiser
from diffproof.noise import Noise
from diffproof.reverse.sampling import first_estimate


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
        super().__init__(classifier, check_denoiser(denoiser), sigma)
        self.denoiser: Denoiser
        self.classifier: nn.Module

    def classify(self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int) -> Labelled:
        """One denoiser and one classifier evaluation an image."""
        return finished(self.classify_in_steps(noisy, sigma, noise, batch_size, None))

    def classify_in_steps(
        self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int, underway: Underway | None
    ) -> Labelling:
        """See CertifiableDefense: `labels` of the first draws, and the estimate `clean` of the next."""
        there = {} if underway is None else underway.tensors
        labels = there.get("labels", torch.empty(0, dtype=torch.int64)).to(noisy.device)
        clean = there.get("clean")
        while len(labels) < len(noisy):
            if clean is None or len(clean) > batch_size:
                rows = noisy[len(labels) :][:batch_size]
                clean = first_estimate(self.denoiser, rows, sigma).clean
            seen = len(labels) + len(clean)
            yield Underway(len(noisy), {"labels": labels, "clean": clean}, seen, len(labels))
            rows = torch.arange(len(labels), seen, device=noisy.device)
            own = noise.to(noisy.device).rows(rows, noise.vote.to(noisy.device)[rows])
            labels, clean = torch.cat([labels, self.classifier_labels(clean.to(noisy.device), own)]), None
            if seen < len(noisy):
                yield Underway(len(noisy), {"labels": labels}, seen, seen)
        return Labelled(labels, len(noisy), len(noisy))

    def logits(self, noisy: Tensor, sigma: float, noise: Noise) -> Tensor:
        """The classifier's logits on the denoised image."""
        return self.classifier_logits(first_estimate(self.denoiser, noisy, sigma).clean, noise)
