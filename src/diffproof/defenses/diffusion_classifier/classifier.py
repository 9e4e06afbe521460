"""The diffusion classifier: the class under which the diffusion model explains the image best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffproof.checks import (
    check_at_least,
    check_flag,
    check_listed,
    check_number,
    check_positive,
    check_probability,
)
from diffproof.defenses.base import CertifiableDefense, noise_for
from diffproof.defenses.diffusion_classifier.levels import Weighting
from diffproof.defenses.diffusion_classifier.loss import DiffusionLoss, Reduction
from diffproof.defenses.diffusion_classifier.racing import Race, race
from diffproof.defenses.diffusion_classifier.sum_labeller import SumLabeller
from diffproof.defenses.labelling import Labelled, Labeller, label_all
from diffproof.denoisers.base import Denoiser, check_denoiser
from diffproof.errors import ArgumentError
from diffproof.gradients import Term
from diffproof.noise import Noise


class DiffusionClassifier(CertifiableDefense):
    """logits_y = log p(y) − (diffusion loss of class y)/temperature (Chen et al. 2023, Theorem 3.1).

    Prediction and attack run the same function of images and noise, with exact gradients, which may be
    differentiated once more, in memory that does not grow with the number of levels.

    Args:
        denoiser: a class-conditional denoiser.
        sigmas: see DiffusionLoss.
        timesteps: see DiffusionLoss.
        weighting: see DiffusionLoss.
        samples: see DiffusionLoss.
        reduction: see DiffusionLoss.
        shared_noise: all classes see the same ε, in one denoiser batch; else each its own, as with the
            authors' predictions.
        log_prior: log p(y) of each class, up to a constant; None for equal ones.
        temperature: divides the losses, > 0; above 1 for probabilities that are less sure of them.
        race_error: labels come from racing, and differ from the full sum's with at most about this
            probability an image, which needs shared noise; None sums in full. Logits always do.

    Attributes:
        loss: the diffusion loss.

    Raises:
        ValueError: the denoiser is unconditional, or an argument is out of range.
    """

    method = "dc"

    def __init__(
        self,
        denoiser: Denoiser,
        *,
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
        if check_denoiser(denoiser).num_classes is None:
            raise ArgumentError("denoiser", "expected a class-conditional one, got one without classes")
        super().__init__(None, denoiser, num_classes=denoiser.num_classes)
        self.denoiser: Denoiser
        self.loss = DiffusionLoss(
            denoiser,
            sigmas=sigmas,
            timesteps=timesteps,
            weighting=weighting,
            samples=samples,
            reduction=reduction,
        )
        self.shared_noise = check_flag("shared_noise", shared_noise)
        self.log_prior = None
        if log_prior is not None:
            given = check_listed("log_prior", log_prior)
            self.log_prior = [
                float(check_number("log_prior", value, lambda _: True, "numbers")) for value in given
            ]
        if self.log_prior is not None and len(self.log_prior) != self.num_classes:
            raise ArgumentError("log_prior", f"expected {self.num_classes} values, got {len(self.log_prior)}")
        if self.log_prior is not None and not all(math.isfinite(value) for value in self.log_prior):
            raise ArgumentError("log_prior", f"expected finite values, got {self.log_prior}")
        self.temperature = check_positive("temperature", temperature)
        self.race_error = None if race_error is None else check_probability("race_error", race_error)
        if race_error is not None and not shared_noise:
            raise ArgumentError(
                "race_error",
                "racing compares classes under the same noise; expected shared_noise=True, got False",
            )

    @property
    def rows_per_image(self) -> int:
        """A row for each class, which go through the denoiser in one batch, unless one row gives all."""
        return 1 if self.denoiser.one_pass and self.shared_noise else self.num_classes

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        """N×num_classes logits."""
        return self._logits(images, noise, 0.0)

    def logits(self, noisy: Tensor, sigma: float, noise: Noise) -> Tensor:
        """Logits of noisy images from the levels above their own; see `DiffusionLoss.losses`."""
        return self._logits(noisy, noise, sigma)

    def predict_labels(
        self, images: Tensor, noise: Noise | None = None, batch_size: int | None = None
    ) -> Tensor:
        """N int64 labels, by racing where the classifier has a `race_error`.

        Args:
            images: N×C×H×W in [0, 1].
            noise: one row an image; None draws afresh.
            batch_size: rows in the denoiser at once, ≥ 1; None for one of each class and image.

        Raises:
            ValueError: as calling the defence, or batch_size < 1.
        """
        self.check_evaluation_mode()
        noise = noise_for(images, noise)
        size = max(1, len(images)) * self.num_classes if batch_size is None else batch_size
        return self._labelled(images, 0.0, noise, size).labels

    def classify(self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int) -> Labelled:
        """The label of each noisy image, by racing where the classifier has a `race_error`."""
        return self._labelled(noisy, sigma, noise.to(noisy.device), batch_size)

    def labeller(self, sigma: float, batch_size: int) -> Labeller:
        """See CertifiableDefense; a race labels a batch at once."""
        if self.race_error is not None:
            return super().labeller(sigma, batch_size)

        def terms(images: Tensor, noise: Noise, classes: Tensor) -> list[Term]:
            return self.loss.terms(images, noise, classes, sigma, shared=self.shared_noise)

        return SumLabeller(
            terms,
            self.logits_of,
            num_classes=self.num_classes,
            one_row=self.rows_per_image == 1,
            batch_size=batch_size,
        )

    def check_sigma(self, sigma: float) -> None:
        """Raise ValueError unless there is a noise level above sigma."""
        check_positive("sigma", sigma)
        self.loss.above(sigma)

    def evaluations_per_draw(self, sigma: float) -> tuple[int, int]:
        """Denoiser evaluations of all levels above sigma, one a class where no row gives all."""
        return self._evaluations(sigma), 0

    def settings(self) -> dict[str, Any]:
        """Method, and what fixes the loss and the logits."""
        return {
            "method": self.method,
            **self.loss.settings(),
            "shared_noise": self.shared_noise,
            "log_prior": self.log_prior,
            "temperature": self.temperature,
            "race_error": self.race_error,
        }

    def race(
        self, images: Tensor, noise: Noise, *, error: float, batch_size: int, sigma: float = 0.0
    ) -> Race:
        """The labels of the whole sum with fewer network evaluations; see `racing.race`.

        Args:
            images: N×C×H×W in [0, 1], or noisy ones at noise level `sigma`.
            noise: one row an image.
            error: risk of another label than the whole sum's, in (0, 1).
            batch_size: rows in the denoiser at once, ≥ 1, of an image and a class each.
            sigma: noise level of the images in [0, 1] pixels, 0 for clean ones.

        Raises:
            ValueError: as `racing.race`, or the classes do not share their noise.
        """
        if not self.shared_noise:
            raise ArgumentError(
                "shared_noise", "racing compares classes under the same noise, expected True, got False"
            )
        # The losses are raced as they are, and the temperature divides them, not the prior.
        prior = self.temperature * self.prior(images)
        return race(self.loss, images, noise, prior=prior, error=error, batch_size=batch_size, sigma=sigma)

    def logits_of(self, losses: Tensor) -> Tensor:
        """The logits N×num_classes that the losses N×num_classes of all classes make."""
        return self.prior(losses) - losses / self.temperature

    def prior(self, like: Tensor) -> Tensor:
        """log p(y) of each class, in the dtype and on the device of `like`; 0 where none was given."""
        if self.log_prior is None:
            return like.new_zeros(self.num_classes)
        return torch.tensor(self.log_prior, dtype=like.dtype, device=like.device)

    def _logits(self, images: Tensor, noise: Noise, sigma: float) -> Tensor:
        return self.logits_of(self.loss.losses(images, noise, sigma=sigma, shared=self.shared_noise))

    def _labelled(self, images: Tensor, sigma: float, noise: Noise, batch_size: int) -> Labelled:
        check_at_least("batch_size", batch_size, 1)
        if self.race_error is not None:
            raced = self.race(images, noise, error=self.race_error, batch_size=batch_size, sigma=sigma)
            return Labelled(raced.labels, int(raced.evaluations.sum()), 0)
        return label_all(self.labeller(sigma, batch_size), images, noise)[0]

    def _evaluations(self, sigma: float) -> int:
        return self.rows_per_image * len(self.loss.above(sigma)) * self.loss.samples
