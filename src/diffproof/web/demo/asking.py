"""What a diffusion classifier thinks of a picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffproof.defenses.base import Defense
from diffproof.errors import ArgumentError
from diffproof.noise import Noise, Stream
from diffproof.web.demo.picture import Picture


@dataclass(frozen=True)
class Answer:
    """Every class as the diffusion model sees it.

    Attributes:
        probabilities: of each class, C.
        noisy: the picture with noise, C×H×W.
        estimates: what the model makes of that under each class, classes×C×H×W in [0, 1].
        errors: their mean squared distances from the picture, classes.
    """

    probabilities: Tensor
    noisy: Tensor
    estimates: Tensor
    errors: Tensor


def asked(defense: Defense, picture: Picture, *, sigma: float, seed: int = 0, draw: int = 0) -> Answer:
    """Ask a diffusion classifier.

    Args:
        defense: one whose diffusion model is the classifier, as dc or rdc.
        picture: what it is asked about.
        sigma: noise level of the estimates that are shown, in [0, 1] pixels.
        seed: fixes the noise, with the picture's index and the draw.
        draw: which draw of the noise.

    Raises:
        ValueError: another defence, or sigma outside the denoiser's range.
    """
    denoiser = defense.denoiser
    if denoiser is None or denoiser.num_classes is None:
        raise ArgumentError(
            "defense", f"expected one whose diffusion model knows classes, as dc or rdc; got {defense.method}"
        )
    denoiser.check_sigma(sigma)
    image = picture.image[None]
    noise = Noise.for_draws(seed, Stream.FORWARD, picture.index, draw, draw + 1).to(image.device)
    with torch.no_grad():
        probabilities = defense.predict_proba(image, noise)[0]
        # The visible draw has a noise of its own.
        noisy = image + sigma * noise.nested().normal(image.shape[1:], 0, image.dtype)
        estimates = denoiser.per_class(noisy, sigma)[0].clamp(0.0, 1.0)
    errors = (estimates - image).square().flatten(1).mean(1)
    return Answer(probabilities.cpu(), noisy[0], estimates, errors.cpu())
