"""RDC: likelihood maximisation, then a diffusion classifier (Chen et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffproof.checks import renamed
from diffproof.defenses.diffusion_classifier.classifier import DiffusionClassifier
from diffproof.defenses.diffusion_classifier.levels import Weighting
from diffproof.defenses.diffusion_classifier.loss import Reduction
from diffproof.defenses.purifying.likelihood import LikelihoodMaximization, Norm, Variant
from diffproof.denoisers.base import Denoiser


class RDC(LikelihoodMaximization):
    """The robust diffusion classifier of one denoiser: likelihood maximisation, then classification.

    From Chen et al. 2023, section 3; its experiments take all levels for both.

    Args:
        denoiser: a class-conditional one with a null label.
        iterations: see LikelihoodMaximization.
        budget: see LikelihoodMaximization.
        norm: see LikelihoodMaximization.
        step: see LikelihoodMaximization.
        momentum: see LikelihoodMaximization.
        variant: see LikelihoodMaximization; AUTHORS has a loss of its own.
        likelihood_timesteps: the levels whose loss the maximisation lowers; see `timesteps` of DiffusionLoss.
        sigmas: noise levels of both losses; see DiffusionLoss.
        timesteps: the levels that classify; see DiffusionLoss.
        weighting: the w_t of both losses; see DiffusionLoss.
        samples: draws of ε at a level in both losses; see DiffusionLoss.
        reduction: see DiffusionLoss.
        shared_noise: see DiffusionClassifier.
        log_prior: see DiffusionClassifier.
        temperature: see DiffusionClassifier.
        race_error: see DiffusionClassifier.

    Attributes:
        classifier: the diffusion classifier.

    Raises:
        ValueError: an argument is out of range, or the denoiser is unconditional, or lacks a null label or
            levels.
    """

    method = "rdc"
    classifier: DiffusionClassifier

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        iterations: int | None = None,
        budget: float | None = None,
        norm: Norm | str | None = None,
        step: float | None = None,
        momentum: float = 1.0,
        variant: Variant | str = Variant.PAPER,
        likelihood_timesteps: str = "all",
        sigmas: Sequence[float] | Tensor | str | None = None,
        timesteps: str = "all",
        weighting: Weighting | str = Weighting.SIMPLE,
        samples: int = 1,
        reduction: Reduction | str = Reduction.NORM,
        shared_noise: bool = True,
        log_prior: Sequence[float] | None = None,
        temperature: float = 1.0,
        race_error: float | None = None,
    ) -> None:
        classifier = DiffusionClassifier(
            denoiser,
            sigmas=sigmas,
            timesteps=timesteps,
            weighting=weighting,
            samples=samples,
            reduction=reduction,
            shared_noise=shared_noise,
            log_prior=log_prior,
            temperature=temperature,
            race_error=race_error,
        )
        loss: dict[str, Any] = {"timesteps": likelihood_timesteps}
        if variant != Variant.AUTHORS:
            loss |= {"sigmas": sigmas, "weighting": weighting, "samples": samples}
        # Its timesteps are those of the likelihood maximisation here.
        with renamed({"timesteps": "likelihood_timesteps"}):
            super().__init__(
                denoiser,
                classifier,
                iterations=iterations,
                budget=budget,
                norm=norm,
                step=step,
                momentum=momentum,
                variant=variant,
                **loss,
            )

    def settings(self) -> dict[str, Any]:
        """Those of the likelihood maximisation, and under `classifier` those of the diffusion classifier."""
        return super().settings() | {"classifier": self.classifier.settings()}
