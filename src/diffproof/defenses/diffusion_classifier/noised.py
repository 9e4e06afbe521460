"""Noised diffusion classifiers: classes of noisy images by bounds on likelihoods (Chen et al. 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffproof.checks import check_at_least, check_member, check_positive, check_probability
from diffproof.defenses.base import CertifiableDefense
from diffproof.defenses.diffusion_classifier.classifier import DiffusionClassifier
from diffproof.defenses.diffusion_classifier.levels import Weighting, weight_of
from diffproof.defenses.diffusion_classifier.loss import DiffusionLoss
from diffproof.defenses.labelling import Labelled, Labeller
from diffproof.denoisers.base import Denoiser, check_denoiser
from diffproof.errors import ArgumentError
from diffproof.noise import Noise
from diffproof.reverse.sampling import first_estimate

# σ' = 3 of [−1, 1] data is where the authors' levels end.
_HIGHEST = 3.0 / 2
# The weights of EPNDC blow up towards the images' own level: the terms of the lowest σ_i are left out.
_LEFT_OUT = 5


class Noised(CertifiableDefense):
    """A diffusion classifier of images at noise level τ on levels of its own, from τ to 1.5 in equal steps.

    Subclasses write `classifier_at`, `logits` and `classify` or `labeller`.

    Args:
        denoiser: a class-conditional denoiser that takes the noise level 1.5.
        levels: how many noise levels, τ and 1.5 among them.
        weighting: `edm`, or `edm-authors` as the released code has it; see Weighting.
        race_error: see DiffusionClassifier: labels by racing, in the place of the paper's sift-and-refine.
        sigma: see CertifiableDefense.

    Raises:
        ValueError: the denoiser is unconditional, or an argument is out of range.
    """

    # With fewer no term is left.
    fewest = 2

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        levels: int = 126,
        weighting: Weighting | str = Weighting.EDM,
        race_error: float | None = None,
        sigma: float | None = None,
    ) -> None:
        if check_denoiser(denoiser).num_classes is None:
            raise ArgumentError("denoiser", "expected a class-conditional one, got one without classes")
        super().__init__(None, denoiser, sigma, num_classes=denoiser.num_classes)
        self.denoiser: Denoiser
        self.levels = check_at_least("levels", levels, self.fewest, 2**16)
        self.weighting = check_member("weighting", weighting, Weighting)
        if self.weighting not in (Weighting.EDM, Weighting.EDM_AUTHORS):
            raise ArgumentError("weighting", f"expected edm or edm-authors, got {self.weighting.value}")
        self.race_error = None if race_error is None else check_probability("race_error", race_error)
        # By τ; no modules of this one, whose denoiser they share.
        self._classifiers: dict[float, DiffusionClassifier] = {}

    @property
    def rows_per_image(self) -> int:
        """A row for each class, which go through the denoiser in one batch, unless one row gives all."""
        return 1 if self.denoiser.one_pass else self.num_classes

    def classifier_at(self, sigma: float) -> DiffusionClassifier:
        """The diffusion classifier of the levels for images at noise level sigma."""
        if sigma not in self._classifiers:
            self._classifiers[sigma] = self._made(self.grid(sigma))
        return self._classifiers[sigma]

    def grid(self, sigma: float) -> list[float]:
        """The levels from sigma to 1.5.

        Raises:
            ValueError: sigma is not below 1.5.
        """
        if not 0.0 < sigma < _HIGHEST:
            raise ArgumentError(
                "sigma", f"expected 0 < sigma < {_HIGHEST:g}, the highest level, got {sigma!r}"
            )
        last = self.levels - 1
        return [*(sigma + (_HIGHEST - sigma) * step / last for step in range(last)), _HIGHEST]

    def check_sigma(self, sigma: float) -> None:
        """Raise ValueError unless the levels are above sigma and the denoiser takes them."""
        check_positive("sigma", sigma)
        self.classifier_at(sigma)

    def settings(self) -> dict[str, Any]:
        """Method, levels, their weights and the race."""
        return {
            "method": self.method,
            "levels": self.levels,
            "weighting": self.weighting.value,
            "race_error": self.race_error,
        }

    def _made(self, grid: list[float]) -> DiffusionClassifier:
        return DiffusionClassifier(
            self.denoiser, sigmas=grid, weighting=self.weighting, race_error=self.race_error
        )


class APNDC(Noised):
    """The approximated posterior's noised diffusion classifier, in its ensemble form: `dc` after `dds`.

    The image at noise level τ is denoised in one shot, unconditionally, clipped to [0, 1], and classified as
    a clean one on the levels from τ to 1.5. (The released code does not clip.) Chen et al. 2024, the variant
    of `APNDC_certify.py`.

    Args:
        denoiser: see Noised; it needs a null label, for the estimate without a class.
        levels: see Noised.
        weighting: see Noised.
        race_error: see Noised.
        sigma: see Noised.

    Raises:
        ValueError: see Noised, or there is no null label.
    """

    method = "apndc"

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        levels: int = 126,
        weighting: Weighting | str = Weighting.EDM,
        race_error: float | None = None,
        sigma: float | None = None,
    ) -> None:
        super().__init__(denoiser, levels=levels, weighting=weighting, race_error=race_error, sigma=sigma)
        if denoiser.null_label is None:
            raise ArgumentError("denoiser", "expected a null label, to denoise without a class, got none")

    def classify(self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int) -> Labelled:
        """One-shot denoising, then the whole sums or a race."""
        clean = torch.cat([self._denoised(part, sigma) for part in noisy.split(batch_size)])
        found = self.classifier_at(sigma).classify(clean, 0.0, noise, batch_size)
        return found._replace(denoiser_evaluations=found.denoiser_evaluations + len(noisy))

    def logits(self, noisy: Tensor, sigma: float, noise: Noise) -> Tensor:
        """Those of the diffusion classifier for the denoised image."""
        return self.classifier_at(sigma).logits(self._denoised(noisy, sigma), 0.0, noise)

    def evaluations_per_draw(self, sigma: float) -> tuple[int, int]:
        """One to denoise, and one a level, of each class where no row gives all."""
        return 1 + self.rows_per_image * self.levels, 0

    def _denoised(self, noisy: Tensor, sigma: float) -> Tensor:
        return first_estimate(self.denoiser, noisy, sigma).clean


class EPNDC(Noised):
    """The exact posterior's noised diffusion classifier (Chen et al. 2024).

    With z = x_τ + √(σ_{i+1}² − τ²)·ε, p = ((σ_{i+1}² − σ_i²)·D + σ_i²·z)/σ_{i+1}² the model's mean of the
    image at level σ_i and q = ((σ_{i+1}² − σ_i²)·x_τ + (σ_i² − τ²)·z)/(σ_{i+1}² − τ²) the true one, the loss
    is Σ_i w_i·σ_{i+1}²(σ_{i+1}² − τ²)/(4(σ_{i+1} − σ_i)²(σ_i² − τ²))·‖p − q‖², w_i the weight of EDM at σ_i.
    For τ = 0 and small steps that is EDM's own loss. The terms of the five lowest σ_i are left out, as in
    the released code: their weights grow without bound towards σ_i = τ.

    Its arguments are those of Noised, with at least seven levels.
    """

    method = "epndc"
    fewest = _LEFT_OUT + 2

    def classify(self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int) -> Labelled:
        """The whole sums or a race."""
        return self.classifier_at(sigma).classify(noisy, sigma, noise, batch_size)

    def labeller(self, sigma: float, batch_size: int) -> Labeller:
        """See DiffusionClassifier."""
        return self.classifier_at(sigma).labeller(sigma, batch_size)

    def logits(self, noisy: Tensor, sigma: float, noise: Noise) -> Tensor:
        """Minus the losses of all classes."""
        return self.classifier_at(sigma).logits(noisy, sigma, noise)

    def evaluations_per_draw(self, sigma: float) -> tuple[int, int]:
        """One a term, of each class where no row gives all."""
        return self.rows_per_image * (self.levels - 1 - _LEFT_OUT), 0

    def _made(self, grid: list[float]) -> DiffusionClassifier:
        found = super()._made(grid)
        found.loss = _PosteriorLoss(self.denoiser, sigmas=grid, weighting=self.weighting)
        return found


class _PosteriorLoss(DiffusionLoss):
    """EPNDC's, a term for each level σ_{i+1} of the grid but the lowest ones, for images at the lowest."""

    def above(self, sigma: float) -> list[int]:
        """The levels that have a term."""
        return [index for index in super().above(sigma) if index > _LEFT_OUT]

    def share(self, index: int, sigma: float = 0.0) -> float:
        """The factor of ‖(s/σ)·ε_θ − ε‖², s² = σ_{i+1}² − τ², which is ‖p − q‖² but for the steps' lengths.

        p − q = (σ_{i+1}² − σ_i²)/s·(ε − (s/σ)·ε_θ), so that w_i·σ_{i+1}²·(σ_{i+1} + σ_i)²/(4(σ_i² − τ²)) is
        left; w_i and σ_{i+1}² are of [−1, 1] data, and in the quotient the width of pixels cancels.
        """
        upper, lower = self.grid[index], self.grid[index - 1]
        # `weight_of` has w_i·σ_i'², the factor of the error of ε_θ, times the number of levels.
        own = weight_of(self.weighting, self.grid, index - 1, sigma) / len(self.grid) / (2 * lower) ** 2
        step = (2 * upper) ** 2 * (upper + lower) ** 2 / (4 * (lower**2 - sigma**2))
        return own * step
