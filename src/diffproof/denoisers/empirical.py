"""The optimal denoiser of a finite data set (Chen et al. 2023, Theorem 3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from diffproof.checks import check_finite, check_levels, check_tensor, shown
from diffproof.denoisers.base import EXACT_SIGMAS, INTEGERS, Denoiser, Estimate, Sigma
from diffproof.errors import ArgumentError

# Values of images that are brought to another precision at once: 32 MiB of float64.
_AT_ONCE = 2**22


class EmpiricalDenoiser(Denoiser):
    """E[x | x + sigma·N(0, I)] for x uniform over given images: a softmax-weighted mean of them.

    The weight of image x_i is softmax(−‖noisy − x_i‖²/(2·sigma²)). With labels it is conditional; without a
    label it averages over all images. `DiffusionClassifier` of it is the optimal diffusion classifier
    (Corollary 3.3).

    Weights are computed in float64 whatever the dtype of `noisy`. Of N noisy images it holds N×M weights and
    never a copy of the images, in gradients of any order too, which flow to `noisy` and `sigma`.

    Args:
        images: M×C×H×W finite floats.
        labels: M integers, or None for an unconditional denoiser.
        sigmas: ascending noise levels to pretend a timestep grid; None for continuous.

    Raises:
        ValueError: images or sigmas are not such, shapes do not fit, or a class below the largest label has
            no image.
    """

    sigma_min, sigma_max = EXACT_SIGMAS

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        sigmas: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        if len(check_finite(images)) == 0:
            raise ArgumentError("images", f"expected M×C×H×W with M ≥ 1, got shape {tuple(images.shape)}")
        self._counts = [len(images)]
        if labels is not None:
            check_tensor("labels", labels, "a torch tensor of integers")
            if labels.shape != images.shape[:1] or labels.dtype not in INTEGERS:
                raise ArgumentError("labels", f"expected {len(images)} integers, got {shown(labels)}")
            self.num_classes = int(labels.max()) + 1
            self.null_label = self.num_classes
            if int(labels.min()) < 0 or len(labels.unique()) != self.num_classes:
                raise ArgumentError(
                    "labels", f"expected every class of 0…{self.num_classes - 1} at least once"
                )
            # The images of a class lie together, so that what concerns one class is a slice.
            labels, order = torch.sort(labels.long(), stable=True)
            images = images[order]
            self._counts = torch.bincount(labels).tolist()
        self.image_shape = (images.shape[1], images.shape[2], images.shape[3])
        if sigmas is not None:
            self.sigmas = torch.tensor(check_levels("sigmas", sigmas), dtype=torch.float64)
            self.sigma_min, self.sigma_max = float(self.sigmas[0]), float(self.sigmas[-1])
        self.register_buffer("images", images.flatten(1))
        self.register_buffer("labels", labels)
        self.images: Tensor
        self.labels: Tensor | None

    def estimate(self, noisy: Tensor, sigma: Sigma, label: Tensor | None) -> Estimate:
        """The posterior mean over the images, or over those of a label."""
        if label is None or self.num_classes is None:
            label = torch.full((len(noisy),), len(self._counts), device=noisy.device)
        values = (
            torch.as_tensor(sigma, dtype=torch.float64, device=noisy.device).reshape(-1).expand(len(noisy))
        )
        # Empty ones first, since there may be no row and so no label.
        parts, indices = [noisy[:0]], [torch.arange(0, device=noisy.device)]
        for one in label.unique().tolist():
            index = (label == one).nonzero()[:, 0]
            parts.append(self._means(noisy[index], values[index], [one])[:, 0])
            indices.append(index)
        return Estimate(torch.cat(parts)[torch.cat(indices).argsort()])

    def estimate_per_class(self, noisy: Tensor, sigma: Sigma, classes: Tensor) -> Tensor:
        """One pass over the images serves all classes."""
        return self._means(noisy, sigma, classes.tolist())

    def _means(self, noisy: Tensor, sigma: Sigma, classes: Sequence[int]) -> Tensor:
        """Posterior means N×K×C×H×W over the images of classes, or over all for the one after the last."""
        every, flat = len(self._counts), noisy.flatten(1)
        variance = torch.as_tensor(sigma, dtype=torch.float64, device=noisy.device).reshape(-1, 1) ** 2
        asked = range(every) if every in classes else sorted(set(classes))
        images = dict(enumerate(self.images.split(self._counts))) | {every: self.images}
        scores = {one: _scores(flat.double(), images[one]) / variance for one in asked}
        if every in classes:
            scores[every] = torch.cat([scores[one] for one in asked], dim=1)
        means = [_mix(torch.softmax(scores[one], dim=1), images[one]) for one in classes]
        stacked = torch.stack(means, dim=1).to(noisy.dtype)
        return stacked.reshape(len(noisy), len(classes), *noisy.shape[1:])


def _scores(noisy: Tensor, images: Tensor) -> Tensor:
    """‖noisy‖²/2 − ‖noisy − image‖²/2 of N×D and M×D, N×M float64.

    ‖noisy‖² is the same for every image and drops out of the softmax. In float32 the rest would not do: norms
    of a thousand are known to 1e-4 there, which over a small sigma² decides between images.
    """
    squares = [0.5 * chunk.square().sum(1) for chunk in _chunks(images)]
    return _products(noisy, images) - torch.cat(squares)


def _products(noisy: Tensor, images: Tensor) -> Tensor:
    """noisy @ images.T of N×D and M×D in float64."""
    product: Tensor = _Products.apply(noisy, images)  # type: ignore[no-untyped-call]
    return product


def _mix(weights: Tensor, images: Tensor) -> Tensor:
    """weights @ images of N×M and M×D in float64."""
    mixed: Tensor = _Mixture.apply(weights, images)  # type: ignore[no-untyped-call]
    return mixed


def _chunks(images: Tensor) -> Iterator[Tensor]:
    for chunk in images.split(max(1, _AT_ONCE // images.shape[1])):
        yield chunk.double()


# The two are linear, and each is the other's gradient: so gradients of any order keep no chunk.
class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, noisy: Tensor, images: Tensor) -> Tensor:
        ctx.save_for_backward(images)
        return torch.cat([noisy @ chunk.T for chunk in _chunks(images)], dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _mix(grads[0], ctx.saved_tensors[0]), None


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, images: Tensor) -> Tensor:
        ctx.save_for_backward(images)
        total, start = weights.new_zeros(len(weights), images.shape[1]), 0
        for chunk in _chunks(images):
            total += weights[:, start : start + len(chunk)] @ chunk
            start += len(chunk)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _products(grads[0], ctx.saved_tensors[0]), None
