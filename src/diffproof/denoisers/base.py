"""The one form every diffusion model takes here: (noisy, sigma, label) to a clean estimate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffproof.checks import (
    check_device,
    check_finite,
    check_instance,
    check_number,
    check_shape,
    check_tensor,
    shown,
    unchanged,
)
from diffproof.errors import ArgumentError, failing_network

Sigma = float | Tensor

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Estimate(NamedTuple):
    """What one network evaluation says.

    Attributes:
        clean: the estimate of E[image | noisy], N×C×H×W, in pixels but not clipped.
        log_variance_mix: learned interpolation between log β̃ (0) and log β (1), same shape, or None where
            the variance is not learned.
    """

    clean: Tensor
    log_variance_mix: Tensor | None = None


# Noise levels of exact denoisers: squares of others, and what is divided by them, are no numbers of float32.
EXACT_SIGMAS = (1e-15, 1e15)


class Denoiser(nn.Module):
    """A diffusion model as a denoiser for noisy = image + sigma·N(0, I), pixels in [0, 1].

    Subclasses set the attributes below and write `estimate`; calling the module validates first. Gradients
    flow through `noisy` and the parameters.

    Attributes:
        image_shape: (C, H, W) that the model takes, or None for any.
        num_classes: how many labels it takes, or None if it is unconditional.
        class_names: the name of each label, where known.
        null_label: the label that stands for "unconditional", or None if there is none.
            `estimate` takes it among its labels.
        sigmas: the noise levels it was trained at, ascending float64, or None if continuous.
        origin: the name and settings that the levels are computed from; None where they are given.
        first_timestep: the number that sigmas[0] has in the model's own counting of timesteps.
        sigma_min: the least sigma that it takes, inclusive.
        sigma_max: the largest sigma that it takes, inclusive.
        one_pass: one network evaluation gives the estimates of every class.
        address: where a user's code made it ("module:factory"), None for others; errors name it.
    """

    image_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    null_label: int | None = None
    sigmas: Tensor | None = None
    origin: str | None = None
    first_timestep: int = 0
    sigma_min: float = 0.0
    sigma_max: float = float("inf")
    one_pass: bool = False
    address: str | None = None

    def estimate(self, noisy: Tensor, sigma: Sigma, label: Tensor | None) -> Estimate:
        """The kernel that a subclass writes; arguments are valid already.

        Args:
            noisy: N×C×H×W, image + sigma·N(0, I).
            sigma: noise level in [0, 1] pixels, one for all or N of them.
            label: N integers, or None for the unconditional estimate.
        """
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
        check_finite(noisy)
        check_device(noisy, self, "denoiser")
        return self.checked_estimate(noisy, sigma, label).clean

    def checked_estimate(self, noisy: Tensor, sigma: Sigma, label: Tensor | None = None) -> Estimate:
        """As calling the module, with the learned variance where there is one.

        Args:
            noisy: N×C×H×W, image + sigma·N(0, I), unbounded.
            sigma: noise level in [0, 1] pixels, one for all or N of them.
            label: N integers in [0, num_classes), or None for the unconditional estimate.

        Raises:
            ValueError: as calling the module.
        """
        self._check_noisy(noisy, sigma)
        if label is None:
            if self.num_classes is not None and self.null_label is None:
                raise ArgumentError(
                    "label",
                    "this denoiser has no null label: expected labels, as the defences dc and rdc give them,"
                    " got None",
                )
        elif self.num_classes is None:
            raise ArgumentError("label", "this denoiser is unconditional, expected None, got labels")
        else:
            check_tensor("label", label, f"{len(noisy)} integers")
            if label.shape != noisy.shape[:1] or label.dtype not in INTEGERS:
                raise ArgumentError("label", f"expected {len(noisy)} integers, got {shown(label)}")
            if label.numel() and not 0 <= int(label.min()) <= int(label.max()) < self.num_classes:
                got = label.tolist()[:5]
                raise ArgumentError("label", f"expected 0 ≤ label < {self.num_classes}, got {got}")
            # Embeddings take no bytes.
            label = label.long()
        with unchanged("denoiser", noisy), failing_network("denoiser", self, self.address):
            found = self.estimate(noisy, sigma, label)
        clean = check_instance("denoiser", found, Estimate, "a diffproof Estimate from estimate()").clean
        if check_tensor("denoiser", clean, "a tensor of estimates").shape != noisy.shape:
            shapes = tuple(noisy.shape), tuple(clean.shape)
            raise ArgumentError("denoiser", f"expected estimates of shape {shapes[0]}, got {shapes[1]}")
        return found

    def per_class(self, noisy: Tensor, sigma: Sigma, classes: Tensor | None = None) -> Tensor:
        """The estimates of the same noisy images under each of several labels.

        Args:
            noisy: N×C×H×W, image + sigma·N(0, I), unbounded.
            sigma: noise level in [0, 1] pixels, one for all or N of them.
            classes: K integers, each in [0, num_classes) or the null label; None for all classes.

        Returns:
            N×K×C×H×W pixels, not clipped.

        Raises:
            ValueError: as calling the module, or the denoiser is unconditional.
        """
        check_finite(noisy)
        return self.checked_per_class(noisy, sigma, classes)

    def checked_per_class(self, noisy: Tensor, sigma: Sigma, classes: Tensor | None = None) -> Tensor:
        """As `per_class`, of images that are known to be finite: no device is waited for.

        Args:
            noisy: see `per_class`.
            sigma: see `per_class`.
            classes: see `per_class`.

        Raises:
            ValueError: as `per_class`, but for NaN and infinity.
        """
        self._check_noisy(noisy, sigma)
        return self.estimate_per_class(noisy, sigma, self.check_classes(classes).to(noisy.device))

    def estimate_per_class(self, noisy: Tensor, sigma: Sigma, classes: Tensor) -> Tensor:
        """The kernel of `per_class`; arguments are valid already.

        One batch of N·K rows, the rows of an image together. Overridden where one pass serves all classes.

        Args:
            noisy: see `per_class`.
            sigma: see `per_class`.
            classes: K integers.
        """
        count = len(classes)
        if isinstance(sigma, Tensor) and sigma.numel() > 1:
            sigma = sigma.repeat_interleave(count)
        rows = noisy.repeat_interleave(count, dim=0)
        clean = self.estimate(rows, sigma, classes.repeat(len(noisy))).clean
        return clean.reshape(len(noisy), count, *noisy.shape[1:])

    def check_classes(self, classes: Tensor | None = None) -> Tensor:
        """K labels that `per_class` takes, all classes for None.

        Raises:
            ValueError: the denoiser is unconditional, or a label is no class and not the null label.
        """
        if self.num_classes is None:
            raise ArgumentError("classes", "this denoiser is unconditional and has none")
        if classes is None:
            return torch.arange(self.num_classes)
        check_tensor("classes", classes, "int64 labels")
        if classes.ndim != 1 or len(classes) == 0 or classes.dtype != torch.int64:
            raise ArgumentError(
                "classes", f"expected K ≥ 1 int64 labels, got shape {tuple(classes.shape)}, {classes.dtype}"
            )
        known = (classes >= 0) & (classes < self.num_classes)
        if self.null_label is not None:
            known |= classes == self.null_label
        if not bool(known.all()):
            null = "" if self.null_label is None else f" or the null label {self.null_label}"
            raise ArgumentError(
                "classes",
                f"expected 0 ≤ class < {self.num_classes}{null}, got {classes[~known].tolist()[:5]}",
            )
        return classes

    def _check_noisy(self, noisy: Tensor, sigma: Sigma) -> None:
        check_shape(noisy, self.image_shape, "denoiser")
        if isinstance(sigma, Tensor) and (sigma.ndim > 1 or sigma.numel() not in (1, len(noisy))):
            raise ArgumentError(
                "sigma", f"expected one or {len(noisy)} values, got shape {tuple(sigma.shape)}"
            )
        self.check_sigma(sigma)

    def check_sigma(self, sigma: Sigma) -> None:
        """Raise ValueError unless every sigma lies in [sigma_min, sigma_max]."""
        if isinstance(sigma, Tensor):
            if check_tensor("sigma", sigma).dtype == torch.bool or sigma.is_complex():
                raise ArgumentError("sigma", f"expected real numbers, got {shown(sigma)}")
            if sigma.numel() == 0:
                return
            low, high = float(sigma.detach().min()), float(sigma.detach().max())
        else:
            low = high = check_number("sigma", sigma, lambda _: True, "a number or a tensor")
        # One part in 10^9 of slack: a grid end that went through float32 or text is still the grid's end.
        slack = 1e-9
        if not (low > 0.0 and self.sigma_min * (1 - slack) <= low and high <= self.sigma_max * (1 + slack)):
            if self.sigma_min == self.sigma_max and low == high:
                raise ArgumentError(
                    "sigma",
                    f"expected {self.sigma_min:.6g}, the one noise level of this denoiser, got {low:.6g}",
                )
            got = f"{low:.6g}" if low == high or low != low else f"{low:.6g} to {high:.6g}"
            raise ArgumentError(
                "sigma",
                f"expected {self.sigma_min:.6g} ≤ sigma ≤ {self.sigma_max:.6g} and > 0"
                f" (the denoiser's range), got {got}",
            )

    def nearest_index(self, sigma: float) -> int:
        """Index into `sigmas` of the level nearest to sigma; a tie goes to the lower one.

        Raises:
            ValueError: the model is continuous, or sigma lies outside its range.
        """
        if self.sigmas is None:
            raise ArgumentError("sigmas", "this denoiser is continuous and has no timestep grid")
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
        """What defines the function besides its tensors, for hashes: the same on any machine."""
        levels = None
        if self.sigmas is not None:
            # Whoever gave them may have computed them, with a last bit in float64 that is the machine's own.
            levels = f"{self.origin or self.sigmas.float().tolist()} from {self.first_timestep}"
        return (
            f"classes {self.num_classes}, null {self.null_label}, images {self.image_shape}, sigmas {levels}"
        )

    def learned_variance(self, estimate: Estimate, sigma: float, next_sigma: float) -> Tensor | None:
        """Variance of the reverse step from sigma to next_sigma where the network learned it, else None.

        Args:
            estimate: the denoiser's estimate at sigma.
            sigma: noise level in [0, 1] pixels.
            next_sigma: a lower one, > 0.
        """
        return None


def check_denoiser(denoiser: Denoiser) -> Denoiser:
    """A denoiser, or ValueError."""
    return check_instance("denoiser", denoiser, Denoiser, "a diffproof.Denoiser")


def per_row(sigma: Sigma, like: Tensor) -> Tensor:
    """Sigma as a tensor that broadcasts against the rows of `like` (N×C×H×W), in its dtype."""
    value = torch.as_tensor(sigma, dtype=like.dtype, device=like.device)
    return value.reshape(-1, 1, 1, 1)
