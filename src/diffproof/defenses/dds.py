"""Diffusion denoised smoothing: one-shot denoising, then the classifier (Carlini et al. 2023)."""

from __future__ import annotations

from torch import Tensor, nn

from diffproof.defenses.base import CertifiableDefense
from diffproof.defenses.labelling import Labelled, Labeller, label_all
from diffproof.defenses.vote_labeller import VoteLabeller
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
        return label_all(self.labeller(sigma, batch_size), noisy, noise)[0]

    def labeller(self, sigma: float, batch_size: int) -> Labeller:
        """See CertifiableDefense: a vote of one sample in one step."""
        return VoteLabeller(
            self.denoiser,
            self.classifier_labels,
            sigmas=[sigma],
            votes=1,
            num_classes=self.num_classes,
            batch_size=batch_size,
            first_vote=0,
        )

    def logits(self, noisy: Tensor, sigma: float, noise: Noise) -> Tensor:
        """The classifier's logits on the denoised image."""
        return self.classifier_logits(first_estimate(self.denoiser, noisy, sigma).clean, noise)
