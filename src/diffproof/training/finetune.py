"""Fine-tuning a classifier on denoised images (Carlini et al. 2023, section 4, "+finetuning")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffproof.checks import check_positive
from diffproof.classifiers.base import Classifier
from diffproof.data.images import ImageData
from diffproof.denoisers.base import Denoiser
from diffproof.reverse.sampling import one_shot
from diffproof.training.batches import Mixture
from diffproof.training.classifier import accuracy
from diffproof.training.loop import Progress, TrainSettings, fit
from diffproof.training.objectives.base import Objective, check_can, loss_of_batches
from diffproof.training.objectives.gaussian import Gaussian
from diffproof.weights import hash_tensors


def finetune(
    classifier: Classifier,
    denoiser: Denoiser,
    data: Mixture,
    settings: TrainSettings,
    *,
    sigma: float,
    objective: Objective | None = None,
    progress: Progress | None = None,
) -> Classifier:
    """Train a classifier further, on images with noise of `sigma` that the denoiser took off in one shot.

    The denoiser stays as it is. Batch normalisation measures the denoised images anew.

    Args:
        classifier: trained in place, and returned in evaluation mode.
        denoiser: its null label is used if it has labels.
        data: training images at the size where noise will be added.
        settings: see TrainSettings.
        sigma: standard deviation of the noise, in [0, 1] pixels.
        objective: what is minimised; None for Gaussian, cross-entropy.
        progress: see Progress.

    Raises:
        ValueError: bad settings, sigma outside the denoiser's range, networks that do not fit the data, or
            a loss that is not finite.
    """
    check_positive("sigma", sigma)
    denoiser.eval()

    objective = objective or Gaussian()
    check_can(objective, "finetune")

    def denoise(noisy: Tensor) -> Tensor:
        # Nothing in the denoiser is trained; a search for noise goes through it.
        with torch.set_grad_enabled(noisy.requires_grad):
            return one_shot(denoiser.to(noisy.device), noisy, sigma).float()

    identity = {
        "classifier": hash_tensors(classifier.state_dict(), classifier.describe()),
        "denoiser": hash_tensors(denoiser.state_dict(), denoiser.describe()),
        "sigma": sigma,
        "objective": objective.describe(),
    }
    loss_of_batch = loss_of_batches(objective, sigma, denoise)
    tuned = fit(classifier, data, loss_of_batch, settings, progress, identity=identity)
    denoiser.cpu()
    assert isinstance(tuned, Classifier)
    return tuned


def denoised_accuracy(
    classifier: Classifier, denoiser: Denoiser, data: ImageData, sigma: float, seed: int
) -> float:
    """Share of images classified correctly after noise of `sigma` and one-shot denoising, one draw each."""
    return accuracy(_Denoised(classifier, denoiser, sigma), data, sigma, seed)


class _Denoised(nn.Module):
    """The classifier behind one-shot denoising."""

    def __init__(self, classifier: Classifier, denoiser: Denoiser, sigma: float) -> None:
        super().__init__()
        self.classifier, self.denoiser, self.sigma = classifier, denoiser, sigma

    def forward(self, noisy: Tensor) -> Tensor:
        logits: Tensor = self.classifier(one_shot(self.denoiser, noisy, self.sigma))
        return logits
