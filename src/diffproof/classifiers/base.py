"""Image classifiers: modules from images in [0, 1] to logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from diffproof.checks import (
    check_at_least,
    check_class_names,
    check_device,
    check_finite,
    check_instance,
    check_listed,
    check_number,
    check_shape,
    check_shape_setting,
    check_tensor,
    shown,
)
from diffproof.classifiers.preprocessing import Resize
from diffproof.errors import ArgumentError, failing_network
from diffproof.wording import kind_of


class Classifier(nn.Module):
    """Any torch module with its input resizing and normalisation, as a classifier of [0, 1] pixels.

    Args:
        network: N×C×H×W (normalised) → N×num_classes logits. It runs in the dtype of its parameters.
        num_classes: number of classes, ≥ 2.
        image_shape: (C, H, W) of the images it takes, None for any size.
        mean: per-channel mean of the normalisation (x − mean)/std of [0, 1] pixels, in [0, 1]; None for none.
        std: per-channel standard deviation of it, in (0, 10]; comes together with `mean`.
        resize: brings images of any size to the network's own, inside the classifier, so that a radius stays
            one of the images that noise was added to. Not together with image_shape.
        class_names: the name of each class, where known.

    Attributes:
        channels: channels of the images, None if neither image_shape nor mean says. Images of another number
            are refused: a grey image is not silently made RGB.
        address: where a user's code made it ("module:factory"), None for others; errors name it.
        structure: what its files say of the network besides its tensors, for hashes.

    Raises:
        ValueError: mean and std do not come together or have another number of channels than image_shape,
            image_shape and resize come together, or another number of names than classes.
    """

    address: str | None = None
    structure: str = ""

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        *,
        image_shape: tuple[int, int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        resize: Resize | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.network = check_instance("network", network, nn.Module, "a torch module")
        self.num_classes = check_at_least("num_classes", num_classes, 2)
        image_shape = check_shape_setting("image_shape", image_shape)
        if resize is not None:
            check_instance("resize", resize, Resize, "a diffproof.Resize")
        if image_shape is not None and resize is not None:
            raise ArgumentError(
                "image_shape, resize", "expected one of them; resizing takes images of any size"
            )
        self.image_shape = image_shape
        self.resize = resize
        self.class_names = check_class_names(class_names, num_classes)
        if (mean is None) != (std is None):
            raise ArgumentError("mean, std", "expected both or neither")
        means = [0.0] if mean is None else check_listed("mean", mean)
        stds = [1.0] if std is None else check_listed("std", std)
        channels = len(means) if image_shape is None else image_shape[0]
        if mean is not None and not len(means) == len(stds) == channels:
            raise ArgumentError(
                "mean, std", f"expected {channels} values each, got {len(means)} and {len(stds)}"
            )
        for value in means:
            check_number("mean", value, lambda one: 0 <= one <= 1, "means in [0, 1], of [0, 1] pixels")
        for value in stds:
            check_number("std", value, lambda one: one <= 10, "numbers up to 10, of [0, 1] pixels")
        if not all(value > 0 for value in stds):
            raise ArgumentError("std", f"expected positive values, got {stds}")
        self.channels = channels if mean is not None or image_shape is not None else None
        self.register_buffer("mean", torch.tensor(means).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(stds).reshape(1, -1, 1, 1))
        self.mean: Tensor
        self.std: Tensor

    def describe(self) -> str:
        """What defines the function besides its tensors."""
        resizing = "" if self.resize is None else f", resized {self.resize.describe()}"
        network = f", network {self.structure}" * bool(self.structure)
        return f"classes {self.num_classes}, images {self.image_shape}{resizing}{network}"

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) at which the network sees an image of height × width."""
        return (height, width) if self.resize is None else self.resize.output(height, width)

    def forward(self, images: Tensor) -> Tensor:
        """Logits N×num_classes of images N×C×H×W; differentiable.

        Raises:
            ValueError: the images' shape does not fit, they are not finite, or the network returns no
                N×num_classes logits.
        """
        check_finite(images)
        normalised = self.network_input(images)
        parameter = next(self.network.parameters(), None)
        dtype = images.dtype if parameter is None else parameter.dtype
        with failing_network("classifier", self.network, self.address):
            logits = self.network(normalised.to(dtype))
        return check_logits(logits, len(images), self.num_classes).to(images.dtype)

    def network_input(self, images: Tensor) -> Tensor:
        """Images as the network sees them: resized and normalised.

        Raises:
            ValueError: the images' shape does not fit.
        """
        check_shape(images, self.image_shape, "classifier")
        check_device(images, self, "classifier")
        if self.channels is not None and images.shape[1] != self.channels:
            raise ArgumentError(
                "images", f"the classifier takes {self.channels} channels, got {images.shape[1]}"
            )
        resized = images if self.resize is None else self.resize(images)
        return (resized - self.mean.to(images.dtype)) / self.std.to(images.dtype)


def check_logits(output: object, rows: int, num_classes: int) -> Tensor:
    """Floating-point logits of shape rows × num_classes, or ValueError.

    Args:
        output: of a network: the logits, or a mapping or an object that has them as "logits".
        rows: how many images it was given.
        num_classes: number of classes.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        what = kind_of(output)
        what = f"{what} of {len(output)}" if isinstance(output, tuple | list) else what
        what = f"keys {', '.join(map(str, output))}"[:100] if isinstance(output, Mapping) else what
        raise ArgumentError(
            "classifier",
            f"expected a tensor of logits from the network, got {what}; wrap it in a module that returns them"
            " alone",
        )
    if not logits.is_floating_point():
        raise ArgumentError(
            "classifier",
            f"expected {num_classes} logits an image, got {logits.dtype} (labels?); to smooth a"
            " function that returns labels, pass it to Smoothed directly",
        )
    if logits.shape != (rows, num_classes):
        raise ArgumentError(
            "classifier",
            f"expected logits {rows}×{num_classes}, got shape {tuple(logits.shape)}"
            + "; is one of them a background?" * (logits.shape == (rows, num_classes + 1)),
        )
    return logits


def check_labels(labels: Tensor, number: int, num_classes: int) -> Tensor:
    """True labels of so many images, int64 in [0, num_classes); else ValueError."""
    expected = f"{number} int64 labels"
    if check_tensor("labels", labels, expected).shape != (number,) or labels.dtype != torch.int64:
        raise ArgumentError("labels", f"expected {expected}, got {shown(labels)}")
    if not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ArgumentError("labels", f"expected 0 ≤ label < {num_classes}, got {labels.tolist()[:3]}…")
    return labels


def predicted_labels(logits: Tensor) -> Tensor:
    """The largest logit of each row.

    Raises:
        ValueError: a logit is NaN, or a whole row is infinite.
    """
    # The device is waited for once.
    if bool((torch.isnan(logits).any(1) | torch.isinf(logits).all(1)).any()):
        found = "NaN" if bool(torch.isnan(logits).any()) else "a row of infinities"
        raise ArgumentError("classifier", f"expected finite logits, got {found}")
    return logits.argmax(dim=1)
