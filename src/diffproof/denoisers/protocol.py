"""The one form every diffusion model takes here: (noisy, sigma, label) to a clean estimate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffproof.checks import check_shape

Sigma = float | Tensor


class Estimate(NamedTuple):
    """What one network evaluation says.

    Attributes:
        clean: the estimate of E[image | noisy], N×C×H×W, in pixels but not clipped.
        log_variance_mix: learned interpolation between log β̃ (0) and log β (1), same shape, or None where
            the variance is not learned.
    """

    clean: Tensor
    log_variance_mix: Tensor | None = None


class Denoiser(nn.Module):
    """A diffusion model as a denoiser for noisy = image + sigma·N(0, I), pixels in [0, 1].

    Subclasses set the attributes below and write `estimate`; calling the module validates first. Gradients
    flow through `noisy` and the parameters.

    Attributes:
        image_shape: (C, H, W) that the model takes, or None for any.
        num_classes: how many labels it takes, or None if it is unconditional.
        null_label: the label that stands for "unconditional", or None if there is none.
        sigmas: the noise levels it was trained at, ascending float64, or None if continuous.
        first_timestep: the number that sigmas[0] has in the model's own counting of timesteps.
        sigma_min, sigma_max: the range of sigma, inclusive.
    """

    image_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    null_label: int | None = None
    sigmas: Tensor | None = None
    first_timestep: int = 0
    sigma_min: float = 0.0
    sigma_max: float = float("inf")

    def estimate(self, noisy: Tensor, sigma: Sigma, label: Tensor | None) -> Estimate:
        """The kernel that a subclass writes; arguments are valid already, `label` None or N integers."""
        raise TypeError(f"{type(self).__name__} does not define estimate()")

    def forward(self, noisy: Tensor, sigma: Sigma, label: Tensor | None = None) -> Tensor:
        """The estimate of E[image | noisy].

        Args:
            noisy: N×C×H×W, image + sigma·N(0, I), unbounded.
            sigma: noise level in [0, 1] pixels, one for all or N of them.
            label: N integers in [0, num_classes), or None for the unconditional estimate.

        Returns:
            N×C×H×W pixels, not clipped.

        Raises:
            ValueError: wrong shape, sigma outside [sigma_min, sigma_max], or a label the model cannot take.
        """
        return self.checked_estimate(noisy, sigma, label).clean

    def checked_estimate(self, noisy: Tensor, sigma: Sigma, label: Tensor | None = None) -> Estimate:
        """As calling the module, with the learned variance where there is one."""
        check_shape(noisy, self.image_shape, "denoiser")
        if isinstance(sigma, Tensor) and (sigma.ndim > 1 or sigma.numel() not in (1, len(noisy))):
            raise ValueError(f"sigma: expected one or {len(noisy)} values, got shape {tuple(sigma.shape)}")
        self.check_sigma(sigma)
        if label is None:
            if self.num_classes is not None and self.null_label is None:
                raise ValueError("label: this denoiser has no null label, so a label is needed, got None")
        elif self.num_classes is None:
            raise ValueError("label: this denoiser is unconditional, expected None, got labels")
        elif label.shape != noisy.shape[:1] or label.is_floating_point():
            raise ValueError(
                f"label: expected {len(noisy)} integers, got shape {tuple(label.shape)}, {label.dtype}"
            )
        elif label.numel() and not 0 <= int(label.min()) <= int(label.max()) < self.num_classes:
            raise ValueError(f"label: expected 0 ≤ label < {self.num_classes}, got {label.tolist()[:5]}")
        return self.estimate(noisy, sigma, label)

    def check_sigma(self, sigma: Sigma) -> None:
        """Raise ValueError unless every sigma lies in [sigma_min, sigma_max]."""
        if isinstance(sigma, Tensor):
            low, high = float(sigma.detach().min()), float(sigma.detach().max())
        else:
            low = high = sigma
        # One part in 10^9 of slack: a grid end that went through float32 or text is still the grid's end.
        slack = 1e-9
        if not (low > 0.0 and self.sigma_min * (1 - slack) <= low and high <= self.sigma_max * (1 + slack)):
            got = f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
            raise ValueError(
                f"sigma: expected {self.sigma_min:.6g} ≤ sigma ≤ {self.sigma_max:.6g} and > 0"
                f" (the denoiser's range), got {got}"
            )

    def nearest_index(self, sigma: float) -> int:
        """Index into `sigmas` of the level nearest to sigma; a tie goes to the lower one.

        Raises:
            ValueError: the model is continuous, or sigma lies outside its range.
        """
        if self.sigmas is None:
            raise ValueError("sigmas: this denoiser is continuous and has no timestep grid")
        self.check_sigma(sigma)
        return int(torch.argmin((self.sigmas - sigma).abs()))

    def nearest(self, sigma: float) -> float:
        """The noise level nearest to sigma that the model was trained at; sigma itself if continuous."""
        if self.sigmas is None:
            self.check_sigma(sigma)
            return sigma
        return float(self.sigmas[self.nearest_index(sigma)])

    def start_timestep(self, sigma: float) -> float:
        """The timestep of sigma in the model's own counting, fractional where its schedule has a formula."""
        return self.nearest_index(sigma) + self.first_timestep

    def describe(self) -> str:
        """What defines the function besides its tensors, for the hash in certificates."""
        levels = None if self.sigmas is None else self.sigmas.tolist()
        return (
            f"classes {self.num_classes}, null {self.null_label}, images {self.image_shape}, sigmas {levels}"
        )

    def learned_variance(self, estimate: Estimate, sigma: float, next_sigma: float) -> Tensor | None:
        """Variance of the reverse step from sigma to next_sigma where the network learned it, else None."""
        return None


def per_row(sigma: Sigma, like: Tensor) -> Tensor:
    """Sigma as a tensor that broadcasts against the rows of `like` (N×C×H×W), in its dtype."""
    value = torch.as_tensor(sigma, dtype=like.dtype, device=like.device)
    return value.reshape(-1, 1, 1, 1)
