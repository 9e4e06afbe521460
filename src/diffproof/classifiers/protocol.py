"""Image classifiers: modules from images in [0, 1] to logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffproof.checks import check_at_least, check_shape


class Classifier(nn.Module):
    """Any torch module with its input normalisation, as a classifier of [0, 1] pixels.

    Args:
        network: N×C×H×W (normalised) → N×num_classes logits. It runs in the dtype of its parameters.
        num_classes: number of classes.
        image_shape: (C, H, W) that the network takes, None for any.
        mean, std: per-channel normalisation (x − mean)/std of [0, 1] pixels, if the network wants one.

    Raises:
        ValueError: mean and std do not come together or have another number of channels than image_shape.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        *,
        image_shape: tuple[int, int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.num_classes = check_at_least("num_classes", num_classes, 2)
        self.image_shape = image_shape
        if (mean is None) != (std is None):
            raise ValueError("mean, std: expected both or neither")
        means, stds = list(mean or [0.0]), list(std or [1.0])
        channels = len(means) if image_shape is None else image_shape[0]
        if mean is not None and not len(means) == len(stds) == channels:
            raise ValueError(f"mean, std: expected {channels} values each, got {len(means)} and {len(stds)}")
        if not all(value > 0 for value in stds):
            raise ValueError(f"std: expected positive values, got {stds}")
        self.register_buffer("mean", torch.tensor(means).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(stds).reshape(1, -1, 1, 1))
        self.mean: Tensor
        self.std: Tensor

    def describe(self) -> str:
        """What defines the function besides its tensors."""
        return f"classes {self.num_classes}, images {self.image_shape}"

    def forward(self, images: Tensor) -> Tensor:
        """Logits N×num_classes.

        Raises:
            ValueError: the images' shape does not fit, or the network returns no N×num_classes logits.
        """
        check_shape(images, self.image_shape, "classifier")
        parameter = next(self.network.parameters(), None)
        dtype = images.dtype if parameter is None else parameter.dtype
        normalised = (images - self.mean.to(images.dtype)) / self.std.to(images.dtype)
        logits: Tensor = self.network(normalised.to(dtype))
        return check_logits(logits, len(images), self.num_classes).to(images.dtype)


def check_logits(logits: Tensor, rows: int, num_classes: int) -> Tensor:
    """Floating-point logits of shape rows × num_classes, or ValueError."""
    if not logits.is_floating_point():
        raise ValueError(
            f"classifier: expected {num_classes} logits an image, got {logits.dtype} (labels?); to smooth a"
            " function that returns labels, pass it to Smoothed directly"
        )
    if logits.shape != (rows, num_classes):
        raise ValueError(f"classifier: expected logits {rows}×{num_classes}, got shape {tuple(logits.shape)}")
    return logits


def predicted_labels(logits: Tensor) -> Tensor:
    """The largest logit of each row.

    Raises:
        ValueError: a logit is NaN, or a whole row is infinite.
    """
    if bool(torch.isnan(logits).any()):
        raise ValueError("classifier: expected finite logits, got NaN")
    if bool(torch.isinf(logits).all(1).any()):
        raise ValueError("classifier: expected finite logits, got a row of infinities")
    return logits.argmax(dim=1)
