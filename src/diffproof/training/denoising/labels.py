"""A denoiser of one noise level, for the classifier behind it: denoised smoothing, and AToP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffproof.classifiers.base import Classifier
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.errors import ArgumentError
from diffproof.training.adversarial import Ascent
from diffproof.training.batches import Batch
from diffproof.training.denoising.base import DenoiserObjective, frozen
from diffproof.training.loop import LossOfBatch


class _Classified(DenoiserObjective):
    """Cross-entropy of the classifier on the denoised image (Salman et al. 2020); subclasses say of which.

    The estimate goes to the classifier as it is, as in the authors' code: clipping to [0, 1], as the defence
    does, would end the gradient there.
    """

    def labels(self, behind: Classifier, batch: Batch) -> Tensor:
        """N integers; here the data's."""
        return batch.labels

    def images(self, behind: Classifier, batch: Batch, generator: torch.Generator) -> Tensor:
        """What noise is added to, like the images; here they themselves."""
        return batch.images

    def combined(self, clean: Tensor, entropy: Tensor, batch: Batch) -> Tensor:
        """The loss of estimates and their cross-entropy; here that alone."""
        return entropy

    def loss_of_batches(
        self, denoiser: NetworkDenoiser, classifier: Classifier | None, label_dropout: float
    ) -> LossOfBatch:
        """See DenoiserObjective."""
        self.check_predicts_noise(denoiser)
        behind, levels = frozen(classifier), denoiser.schedule.sigmas
        if levels is None or len(levels) != 1:
            raise ArgumentError("objective", f"{self.name!r} is for a denoiser of one noise level")
        sigma, (low, high) = denoiser.sigma_max, denoiser.data_range
        scale = float(denoiser.schedule.input_scale(levels)[0])

        def loss_of_batch(network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
            shape = (batch.size, *batch.images.shape[1:])
            normal = batch.mine(torch.randn(shape, generator=generator))
            behind.to(batch.images.device)
            noisy = self.images(behind, batch, generator) + sigma * normal
            timestep = torch.zeros(len(noisy), dtype=torch.int64, device=noisy.device)
            # ε is the noise in units of its level, whatever the pixels' range.
            epsilon = network((noisy * (high - low) + low) * scale, timestep, None).float()
            clean, labels = noisy - sigma * epsilon, self.labels(behind, batch)
            return self.combined(clean, nn.functional.cross_entropy(behind(clean).float(), labels), batch)

        return loss_of_batch


@dataclass(frozen=True)
class STAB(_Classified):
    """Cross-entropy of the classifier on the denoised image with its own label of the clean one."""

    name = "stab"

    def labels(self, behind: Classifier, batch: Batch) -> Tensor:
        """The classifier's."""
        with torch.no_grad():  # a label has no gradient
            labels: Tensor = behind(batch.images).argmax(1)
        return labels


@dataclass(frozen=True)
class CLF(_Classified):
    """Cross-entropy of the classifier on the denoised image with the true label."""

    name = "clf"
    labelled = True


# Of AToP's authors.
_CLASSIFIED = 0.05
_ASCENT = Ascent()


@dataclass(frozen=True)
class ATOP(_Classified):
    """Mean (R(x' + δ) − x)² + 0.05·CLF of x' + δ, x' by PGD on the classifier alone, ℓ∞ 8/255, ten steps.

    AToP's loss (Lin et al. 2024) with a denoiser for its purifier and the clean image for its target.
    """

    name = "atop"
    labelled = True

    def images(self, behind: Classifier, batch: Batch, generator: torch.Generator) -> Tensor:
        """Those of PGD, from a random start."""
        shape = (batch.size, *batch.images.shape[1:])
        normal = batch.mine(torch.randn(shape, generator=generator))
        uniform = batch.mine(torch.rand(batch.size, generator=generator))

        def entropies(points: Tensor) -> Tensor:
            return nn.functional.cross_entropy(behind(points).float(), batch.labels, reduction="none")

        return _ASCENT.maximise(entropies, batch.images, _ASCENT.start(batch.images, normal, uniform))

    def combined(self, clean: Tensor, entropy: Tensor, batch: Batch) -> Tensor:
        """The pixels' squared error, too."""
        return nn.functional.mse_loss(clean, batch.images) + _CLASSIFIED * entropy
