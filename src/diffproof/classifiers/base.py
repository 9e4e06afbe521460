"""Image classifiers: modules from images in [0, 1] to logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffproof.checks import check_at_least, check_shape
from diffproof.classifiers.preprocessing import Resize
from diffproof.errors import ArgumentError


class Classifier(nn.Module):
    """Any torch module with its input resizing and normalisation, as a classifier of [0, 1] pixels.

    Args:
        network: N×C×H×W (normalised) → N×num_classes logits. It runs in the dtype of its parameters.
        num_classes: number of classes, ≥ 2.
        image_shape: (C, H, W) of the images it takes, None for any size.
        mean: per-channel mean of the normalisation (x − mean)/std of [0, 1] pixels; None for none.
        std: per-channel standard deviation of it, > 0; comes together with `mean`.
        resize: brings images of any size to the network's own, inside the classifier, so that a radius stays
            one of the images that noise was added to. Not together with image_shape.
        class_names: the name of each class, where known.

    Attributes:
        channels: channels of the images, None if neither image_shape nor mean says. Images of another number
            are refused: a grey image is not silently made RGB.

    Raises:
        ValueError: mean and std do not come together or have another number of channels than image_shape,
            image_shape and resize come together, or another number of names than classes.
    """

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
        self.network = network
        self.num_classes = check_at_least("num_classes", num_classes, 2)
        if image_shape is not None and resize is not None:
            raise ArgumentError(
                "image_shape, resize", "expected one of them; resizing takes images of any size"
            )
        if class_names is not None and len(class_names) != num_classes:
            raise ArgumentError("class_names", f"expected {num_classes} names, got {len(class_names)}")
        self.image_shape = image_shape
        self.resize = resize
        self.class_names = None if class_names is None else tuple(class_names)
        if (mean is None) != (std is None):
            raise ArgumentError("mean, std", "expected both or neither")
        means, stds = list(mean or [0.0]), list(std or [1.0])
        channels = len(means) if image_shape is None else image_shape[0]
        if mean is not None and not len(means) == len(stds) == channels:
            raise ArgumentError(
                "mean, std", f"expected {channels} values each, got {len(means)} and {len(stds)}"
            )
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
        return f"classes {self.num_classes}, images {self.image_shape}{resizing}"

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) at which the network sees an image of height × width."""
        return (height, width) if self.resize is None else self.resize.output(height, width)

    def forward(self, images: Tensor) -> Tensor:
        """Logits N×num_classes of images N×C×H×W; differentiable.

        Raises:
            ValueError: the images' shape does not fit, or the network returns no N×num_classes logits.
        """
        normalised = self.network_input(images)
        parameter = next(self.network.parameters(), None)
        dtype = images.dtype if parameter is None else parameter.dtype
        logits: Tensor = self.network(normalised.to(dtype))
        return check_logits(logits, len(images), self.num_classes).to(images.dtype)

    def network_input(self, images: Tensor) -> Tensor:
        """Images as the network sees them: resized and normalised.

        Raises:
            ValueError: the images' shape does not fit.
        """
        check_shape(images, self.image_shape, "classifier")
        if self.channels is not None and images.shape[1] != self.channels:
            raise ArgumentError(
                "images", f"the classifier takes {self.channels} channels, got {images.shape[1]}"
            )
        resized = images if self.resize is None else self.resize(images)
        return (resized - self.mean.to(images.dtype)) / self.std.to(images.dtype)


def check_logits(logits: Tensor, rows: int, num_classes: int) -> Tensor:
    """Floating-point logits of shape rows × num_classes, or ValueError."""
    if not logits.is_floating_point():
        raise ArgumentError(
            "classifier",
            f"expected {num_classes} logits an image, got {logits.dtype} (labels?); to smooth a"
            " function that returns labels, pass it to Smoothed directly",
        )
    if logits.shape != (rows, num_classes):
        raise ArgumentError(
            "classifier", f"expected logits {rows}×{num_classes}, got shape {tuple(logits.shape)}"
        )
    return logits


def predicted_labels(logits: Tensor) -> Tensor:
    """The largest logit of each row.

    Raises:
        ValueError: a logit is NaN, or a whole row is infinite.
    """
    if bool(torch.isnan(logits).any()):
        raise ArgumentError("classifier", "expected finite logits, got NaN")
    if bool(torch.isinf(logits).all(1).any()):
        raise ArgumentError("classifier", "expected finite logits, got a row of infinities")
    return logits.argmax(dim=1)


def check_classes(
    classifier: Classifier, class_names: Sequence[str], *, classes_named: bool, source: str
) -> None:
    """Raise unless a classifier's classes can be those of the data.

    Args:
        classifier: its number of classes, and their names where it has them.
        class_names: those of the data, by label.
        classes_named: the data names its classes; if not, the classifier may have more than the data shows.
        source: the data's name, for the message.

    Raises:
        ValueError: another number of classes, or the same names (in any case) in another order.
    """
    check_class_count(
        "classifier", classifier.num_classes, class_names, classes_named=classes_named, source=source
    )
    if not classes_named or classifier.class_names is None:
        return
    ours, theirs = ([name.casefold() for name in names] for names in (classifier.class_names, class_names))
    if ours != theirs and sorted(ours) == sorted(theirs):
        label = next(i for i in range(len(ours)) if ours[i] != theirs[i])
        raise ArgumentError(
            "classifier",
            f"its classes are those of {source} in another order: label {label} is"
            f" {classifier.class_names[label]!r}, but {class_names[label]!r} in the data",
        )


def check_class_count(
    owner: str, num_classes: int, class_names: Sequence[str], *, classes_named: bool, source: str
) -> None:
    """Raise unless the `owner` has as many classes as the data; the other arguments are `check_classes`'."""
    wanted = len(class_names)
    if num_classes != wanted and (classes_named or num_classes < wanted):
        raise ArgumentError(owner, f"has {num_classes} classes, but {source} has {wanted}")
