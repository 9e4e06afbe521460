"""The optimal denoiser of a finite data set (Chen et al. 2023, Theorem 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from diffproof.denoisers.protocol import Denoiser, Estimate, Sigma


class EmpiricalDenoiser(Denoiser):
    """E[x | x + sigma·N(0, I)] for x uniform over given images: a softmax-weighted mean of them.

    The weight of image x_i is softmax(−‖noisy − x_i‖²/(2·sigma²)). With labels it is conditional; without a
    label it averages over all images.

    Args:
        images: M×C×H×W.
        labels: M integers, or None for an unconditional denoiser.

    Raises:
        ValueError: shapes do not fit, or a class below the largest label has no image.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        super().__init__()
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(f"images: expected M×C×H×W with M ≥ 1, got shape {tuple(images.shape)}")
        if labels is not None:
            if labels.shape != images.shape[:1] or labels.is_floating_point():
                raise ValueError(f"labels: expected {len(images)} integers, got shape {tuple(labels.shape)}")
            self.num_classes = int(labels.max()) + 1
            self.null_label = self.num_classes
            if int(labels.min()) < 0 or len(labels.unique()) != self.num_classes:
                raise ValueError(f"labels: expected every class of 0…{self.num_classes - 1} at least once")
        self.image_shape = (images.shape[1], images.shape[2], images.shape[3])
        self.register_buffer("images", images.flatten(1))
        self.register_buffer("labels", labels)
        self.images: Tensor
        self.labels: Tensor | None

    def estimate(self, noisy: Tensor, sigma: Sigma, label: Tensor | None) -> Estimate:
        """The posterior mean over the images."""
        flat = noisy.flatten(1)
        images = self.images.to(flat.dtype)
        variance = torch.as_tensor(sigma, dtype=flat.dtype, device=flat.device).reshape(-1, 1) ** 2
        # ‖noisy‖² is the same for every image and drops out of the softmax.
        log_weight = (flat @ images.T - 0.5 * (images**2).sum(1)) / variance
        if label is not None and self.labels is not None:
            log_weight = log_weight.masked_fill(self.labels != label[:, None], float("-inf"))
        return Estimate((torch.softmax(log_weight, dim=1) @ images).reshape(noisy.shape))
