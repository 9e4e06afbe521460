"""The diffusion loss of an image under each class: minus a bound on its log-likelihood (Chen et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from diffproof import gradients
from diffproof.checks import check_at_least, check_finite, check_member
from diffproof.defenses.diffusion_classifier.levels import Weighting, chosen, levels_of, weight_of
from diffproof.denoisers.base import Denoiser, check_denoiser, per_row
from diffproof.errors import ArgumentError
from diffproof.noise import MAX_STEP, Noise

# The votes of a row's noise that belong to a diffusion classifier; its class y under noise of its own has the
# vote CLASSIFIER_VOTE + 1 + y.
CLASSIFIER_VOTE = 2**15


class Reduction(StrEnum):
    """What becomes of the squared error of the pixels.

    NORM: their sum, the squared norm of Theorem 3.1.
    MEAN: their mean, which makes the class probabilities flat by a factor of C·H·W in the logits.
    """

    NORM = "norm"
    MEAN = "mean"


class DiffusionLoss:
    """Mean over noise levels of w_t·E‖ε_θ(x + σ_t·ε, σ_t, y) − ε‖² (Chen et al. 2023, eq. 6 and Theorem 3.1).

    All chosen levels are summed, with `samples` draws of ε each; the draws are those of a row's noise, so the
    loss is a pure function of images and noise. Gradients flow to the images, once and twice, in memory that
    does not grow with the number of levels; none flow to parameters.

    Args:
        denoiser: any denoiser; the loss of a class needs a conditional one.
        sigmas: ascending noise levels in [0, 1] pixels, or "edm:N" for `edm_levels` of a continuous denoiser;
            None for the denoiser's own grid.
        timesteps: which of the T levels: "all", "first:N" for the N lowest, or "uniform:N" for N evenly
            spaced ones (the level in the middle of each N-th part of the grid).
        weighting: w_t of the levels; see Weighting.
        samples: draws of ε at a level, ≥ 1.
        reduction: what becomes of the pixels' squared errors; see Reduction.

    Attributes:
        grid: all T noise levels, ascending.
        levels: the chosen ones.
        weights: w_t of each of these.

    Raises:
        ValueError: an argument is out of range, or a continuous denoiser and no sigmas.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sigmas: Sequence[float] | Tensor | str | None = None,
        timesteps: str = "all",
        weighting: Weighting | str = Weighting.SIMPLE,
        samples: int = 1,
        reduction: Reduction | str = Reduction.NORM,
    ) -> None:
        self.denoiser = check_denoiser(denoiser)
        self.grid = levels_of(denoiser, sigmas)
        self._given = sigmas is not None
        self.timesteps = timesteps
        self.weighting = check_member("weighting", weighting, Weighting)
        self.samples = check_at_least("samples", samples, 1)
        self.reduction = check_member("reduction", reduction, Reduction)
        self._chosen = chosen(timesteps, len(self.grid))
        self.levels = [self.grid[index] for index in self._chosen]
        self.weights = [weight_of(self.weighting, self.grid, index, 0.0) for index in self._chosen]
        if len(self.levels) * samples > MAX_STEP + 1:
            raise ArgumentError(
                "samples", f"expected levels·samples ≤ {MAX_STEP + 1}, got {len(self.levels)}·{samples}"
            )

    def settings(self) -> dict[str, Any]:
        """What fixes the loss; the levels only where they are not the denoiser's own."""
        return {
            "sigmas": self.grid if self._given else None,
            "timesteps": self.timesteps,
            "weighting": self.weighting.value,
            "samples": self.samples,
            "reduction": self.reduction.value,
        }

    def above(self, sigma: float) -> list[int]:
        """Indices of the levels above sigma, those that the loss of images at noise level sigma is made of.

        Raises:
            ValueError: sigma is negative, or there is no level above it.
        """
        if not 0.0 <= sigma < self.levels[-1]:
            raise ArgumentError(
                "sigma",
                f"expected 0 ≤ sigma < {self.levels[-1]:.6g} (the highest noise level), got {sigma!r}",
            )
        return [index for index, level in enumerate(self.levels) if level > sigma]

    def losses(
        self,
        images: Tensor,
        noise: Noise,
        classes: Tensor | None = None,
        sigma: float = 0.0,
        *,
        vote: int = CLASSIFIER_VOTE,
        shared: bool = True,
    ) -> Tensor:
        """The loss of each image under each class.

        Args:
            images: N×C×H×W in [0, 1], or noisy ones at level `sigma`.
            noise: one row an image.
            classes: K labels, under shared noise the null label among them; None for all classes.
            sigma: noise level τ of the images. For τ > 0 only levels above it count, with s² = σ_t² − τ²,
                x_t = x_τ + s·ε and ‖(s/σ_t)·ε_θ − ε‖² in place of ‖ε_θ − ε‖²: that of the noise added to
                x_τ. With VLB it is the bound on −log p_τ(x_τ|y).
            vote: which of a row's noise is used.
            shared: all classes see the same ε, and x_t in one denoiser batch; else class y sees that of the
                vote `vote` + 1 + y.

        Returns:
            N×K.

        Raises:
            ValueError: what the denoiser cannot take, or no level above sigma.
        """
        return gradients.summed(images, self.terms(images, noise, classes, sigma, vote=vote, shared=shared))

    def terms(
        self,
        images: Tensor,
        noise: Noise,
        classes: Tensor | None = None,
        sigma: float = 0.0,
        *,
        vote: int = CLASSIFIER_VOTE,
        shared: bool = True,
    ) -> list[gradients.Term]:
        """What `losses` adds up, in its order: functions of the images, of a denoiser batch each.

        Args:
            images: see `losses`.
            noise: see `losses`.
            classes: see `losses`.
            sigma: see `losses`.
            vote: see `losses`.
            shared: see `losses`.

        Raises:
            ValueError: no level above sigma, or classes that the denoiser does not have.
        """
        labels = self.denoiser.check_classes(classes).to(check_finite(images).device)
        own = self._rows(noise, images, labels, vote=vote, shared=shared)
        return [
            self._term(own, labels, index, sample, sigma, shared=shared)
            for index in self.above(sigma)
            for sample in range(self.samples)
        ]

    def unconditional(self, images: Tensor, noise: Noise, *, vote: int = CLASSIFIER_VOTE) -> Tensor:
        """The loss of the unconditional model, N values.

        Args:
            images: N×C×H×W in [0, 1].
            noise: one row an image.
            vote: see `losses`.

        Raises:
            ValueError: a conditional denoiser without a null label, or what the denoiser cannot take.
        """
        return gradients.summed(images, self._unconditional_terms(images, noise, vote))

    def unconditional_gradient(self, images: Tensor, noise: Noise, *, vote: int = CLASSIFIER_VOTE) -> Tensor:
        """∇ of the sum of `unconditional`, like the images, itself differentiable once.

        Args:
            images: N×C×H×W in [0, 1].
            noise: one row an image.
            vote: see `losses`.

        Raises:
            ValueError: as `unconditional`.
        """
        return gradients.summed_gradient(images, self._unconditional_terms(images, noise, vote))

    def _unconditional_terms(self, images: Tensor, noise: Noise, vote: int) -> list[gradients.Term]:
        if self.denoiser.num_classes is not None and self.denoiser.null_label is None:
            raise ArgumentError(
                "denoiser", "the unconditional loss needs a null label, and this one has none"
            )
        own = self._rows(noise, images, None, vote=vote, shared=True)

        def term(index: int, sample: int) -> gradients.Term:
            conditional = self._term(own, None, index, sample, 0.0, shared=True)
            return lambda images: conditional(images)[:, 0]

        return [term(index, sample) for index in range(len(self.levels)) for sample in range(self.samples)]

    def level_losses(
        self,
        images: Tensor,
        noise: Noise,
        index: int,
        classes: Tensor | None = None,
        sigma: float = 0.0,
        *,
        vote: int = CLASSIFIER_VOTE,
        shared: bool = True,
    ) -> Tensor:
        """What level `index` of `levels` adds to `losses`, N×K.

        Args:
            images: see `losses`.
            noise: see `losses`.
            index: which of `levels`, one above sigma.
            classes: see `losses`.
            sigma: see `losses`.
            vote: see `losses`.
            shared: see `losses`.

        Raises:
            ValueError: as `losses`, or the level is not above sigma.
        """
        if index not in self.above(sigma):
            raise ArgumentError("index", f"expected that of a level above sigma = {sigma:g}, got {index}")
        labels = self.denoiser.check_classes(classes).to(check_finite(images).device)
        own = self._rows(noise, images, labels, vote=vote, shared=shared)
        samples = range(self.samples)
        return gradients.summed(
            images, [self._term(own, labels, index, sample, sigma, shared=shared) for sample in samples]
        )

    def draw_losses(
        self,
        images: Tensor,
        noise: Noise,
        draws: Tensor,
        labels: Tensor | None,
        sigma: float = 0.0,
        *,
        vote: int = CLASSIFIER_VOTE,
    ) -> Tensor:
        """Single draws of ε in `losses` under shared noise: a batch in which each row has a draw of its own.

        Args:
            images: see `losses`.
            noise: see `losses`.
            draws: N int64, each the index of a level above sigma times `samples` plus the sample.
            labels: N labels, one a row; None for all classes of every row.
            sigma: see `losses`.
            vote: see `losses`.

        Returns:
            N, or N×num_classes.

        Raises:
            ValueError: what the denoiser cannot take, or a level that is not above sigma.
        """
        allowed = torch.tensor(self.above(sigma))
        index = draws.cpu() // self.samples
        if not bool(torch.isin(index, allowed).all()):
            raise ArgumentError(
                "draws", f"expected those of levels above sigma = {sigma:g}, got {draws.tolist()[:5]}"
            )
        level = torch.tensor(self.levels, dtype=torch.float64)[index].to(images.device)
        share = torch.tensor([self.share(one, sigma) for one in index.tolist()], dtype=torch.float64)
        spread = (level**2 - sigma**2).sqrt()
        epsilon = self._rows(noise, images, None, vote=vote, shared=True).normal(
            images.shape[1:], draws, images.dtype
        )
        noisy = images + per_row(spread, images) * epsilon
        if labels is None:
            clean = self.denoiser.per_class(noisy, level)
        else:
            clean = self.denoiser(noisy, level, labels)[:, None]
        rows = (per_row(level, images)[:, None], per_row(spread, images)[:, None])
        squared = self._squared(images, clean, epsilon, *rows, sigma)
        found = share.to(squared)[:, None] * squared
        return found if labels is None else found[:, 0]

    def share(self, index: int, sigma: float = 0.0) -> float:
        """The factor of a squared error of level `index` in the loss."""
        weight = weight_of(self.weighting, self.grid, self._chosen[index], sigma)
        return weight / (len(self.levels) * self.samples)

    def _rows(self, noise: Noise, images: Tensor, labels: Tensor | None, *, vote: int, shared: bool) -> Noise:
        """The noise of each row of the denoiser's batch."""
        noise = noise.to(images.device)
        row = torch.arange(len(images), device=images.device)
        if labels is None or shared:
            return noise.rows(row, torch.full_like(row, vote))
        return noise.rows(row.repeat_interleave(len(labels)), vote + 1 + labels.repeat(len(images)))

    def _term(
        self, noise: Noise, labels: Tensor | None, index: int, sample: int, sigma: float, *, shared: bool
    ) -> gradients.Term:
        """Images → N×K, one squared error of each class with its share in the loss; N×1 without labels."""
        level = self.levels[index]
        spread = math.sqrt(level**2 - sigma**2)
        share = self.share(index, sigma)

        def term(images: Tensor) -> Tensor:
            start = images if labels is None or shared else images.repeat_interleave(len(labels), dim=0)
            epsilon = noise.normal(images.shape[1:], index * self.samples + sample, images.dtype)
            noisy = start + spread * epsilon
            clean: Tensor
            if labels is not None and shared:
                clean = self.denoiser.checked_per_class(noisy, level, labels)
            else:
                label = None if labels is None else labels.repeat(len(images))
                clean = self.denoiser(noisy, level, label)[:, None]
            squared = self._squared(start, clean, epsilon, level, spread, sigma)
            return share * squared.reshape(len(images), 1 if labels is None else len(labels))

        return term

    def _squared(
        self,
        start: Tensor,
        clean: Tensor,
        epsilon: Tensor,
        level: float | Tensor,
        spread: float | Tensor,
        sigma: float,
    ) -> Tensor:
        """Squared errors M×K of clean estimates M×K×C×H×W; level and spread broadcast to them."""
        # (spread/level)·ε_θ − ε, of which only this is left: for clean images no ε at all.
        error = (spread / level) * (start[:, None] - clean) / level
        if sigma > 0.0:
            error = error - (sigma / level) ** 2 * epsilon[:, None]
        squared = error.square().flatten(2)
        return squared.sum(2) if self.reduction is Reduction.NORM else squared.mean(2)
