"""Images with labels, decoded when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from diffproof.checks import check_integer, check_listed
from diffproof.errors import ArgumentError
from diffproof.pictures import UnreadableError, left_out
from diffproof.weights import hash_tensors

# The way out for images of several sizes.
ONE_SIZE = "; an image size (--image-size) brings them to one"


class Pixels(Protocol):
    """A sequence of images that decodes on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor:
        """One image: C×H×W float32 in [0, 1]."""

    def with_channels(self, channels: int) -> Pixels:
        """The same images with 1 or 3 channels; ValueError, perhaps on access, if they have colours for 1."""


class TensorPixels:
    """Images that sit in memory.

    Args:
        images: N×C×H×W, float32 in [0, 1] or uint8.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | Tensor) -> Tensor:
        chosen = self.images[index]
        return chosen.float() / 255 if chosen.dtype == torch.uint8 else chosen

    def with_channels(self, channels: int) -> TensorPixels:
        """Grey in each of 3 channels, or one of 3 equal ones."""
        images = self.images
        if channels == 1 and not bool((images == images[:, :1]).all()):
            raise ArgumentError("data", "the images have colours, expected grey ones")
        return (
            self if images.shape[1] == channels else TensorPixels(images[:, :1].expand(-1, channels, -1, -1))
        )


class ImageData:
    """Images and labels; unpacks as `images, labels = data`, which decodes every image.

    Args:
        name: the name of the data set.
        split: which split of it.
        pixels: N ≥ 1 images, decoded one by one, or N×C×H×W, float32 in [0, 1] or uint8.
        labels: N int64; None for images without classes, whose labels are then −1.
        class_names: the name of each label; none without classes.
        classes_named: whether the data itself names its classes; if not, there may be more of them than
            its largest label tells.
        layout: one line on what was found where the data lies and how it was read, "" for nothing to say.
        levels: what pixels are multiples of is 1/levels; None for 255, or where nothing is known.

    Raises:
        ValueError: no image, or labels that do not fit.
    """

    def __init__(
        self,
        name: str,
        split: str,
        pixels: Pixels | Tensor,
        labels: Tensor | None,
        class_names: Sequence[str],
        *,
        classes_named: bool = True,
        layout: str = "",
        levels: int | None = None,
    ) -> None:
        self.name = name
        self.split = split
        self.pixels: Pixels = TensorPixels(pixels) if isinstance(pixels, Tensor) else pixels
        self.labelled = labels is not None
        labels = torch.full((len(self.pixels),), -1) if labels is None else labels
        self.labels = labels
        self.class_names = tuple(class_names)
        self.classes_named = classes_named
        self.layout = layout
        self.levels = levels
        if len(self.pixels) == 0:
            raise ArgumentError("data", f"{name} has no image in split {split!r}")
        if labels.shape != (len(self.pixels),):
            raise ArgumentError("data", f"{name} has {len(self.pixels)} images but {labels.numel()} labels")
        if self.labelled and (int(labels.min()) < 0 or int(labels.max()) >= len(self.class_names)):
            bad = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
            raise ArgumentError(
                "data",
                f"{name} has the label {bad}, expected 0 to {len(self.class_names) - 1}"
                f" (a split without labels?)",
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.images, self.labels))

    def batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Some of the images, N×C×H×W float32 in [0, 1].

        Raises:
            ValueError: their shapes differ, an image cannot be decoded, or an index is no integer in [0, N).
        """
        indices = self._checked(indices)
        if isinstance(self.pixels, TensorPixels):
            return self.pixels[torch.as_tensor(indices, dtype=torch.int64)]
        return torch.stack([*self._of_one_size(indices)])

    def _of_one_size(self, indices: Iterable[int]) -> Iterator[Tensor]:
        """These images; ValueError at one of another shape than the first."""
        first = None
        for index in indices:
            image = self.pixels[index]
            first = image.shape if first is None else first
            if image.shape != first:
                one, other = ("×".join(map(str, shape)) for shape in (first, image.shape))
                # Only pictures of files and tables can differ, and they are called so.
                name = getattr(self.pixels, "name", lambda index: f"image {index} of {self.name}")(index)
                told = f"{name} is {other} (channels×height×width), others are {one}{ONE_SIZE}"
                raise ArgumentError("data", told)
            yield image

    @property
    def images(self) -> Tensor:
        """All images, N×C×H×W float32 in [0, 1], decoded now and held in memory."""
        return self.batch(range(len(self)))

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the first image."""
        channels, height, width = self.pixels[0].shape
        return channels, height, width

    def fingerprint(self, indices: Iterable[int]) -> str:
        """SHA-256 of these images and labels: tells them from others under the same name and indices.

        Of images that the data does not have it is none that any data has.

        Raises:
            ValueError: their shapes differ, or one cannot be decoded.
        """
        digest, chosen = hashlib.sha256(), [*indices]
        if any(index >= len(self) for index in chosen):
            return ""
        for index, image in zip(chosen, self._of_one_size(chosen), strict=True):
            digest.update(hash_tensors({"image": image, "label": self.labels[index]}).encode())
        return digest.hexdigest()

    def select(self, indices: Sequence[int]) -> ImageData:
        """The images of these indices, in this order.

        Raises:
            ValueError: an index is no integer in [0, N).
        """
        chosen = self._checked(indices)
        return self._with(_Chosen(self.pixels, chosen), self.labels[chosen], self.layout)

    def _checked(self, indices: Sequence[int] | Tensor) -> list[int]:
        given = indices.tolist() if isinstance(indices, Tensor) else indices
        chosen = [check_integer("indices", index, "integers") for index in check_listed("indices", given)]
        wrong = next((index for index in chosen if not 0 <= index < len(self)), None)
        if wrong is not None:
            raise ArgumentError("indices", f"expected 0 to {len(self) - 1}, got {wrong}")
        return chosen

    def with_channels(self, channels: int) -> ImageData:
        """The same images with as many channels: grey in each of 3, or one of 3 that are equal.

        Raises:
            ValueError: they have colours, and channels is 1; this may show only when they are decoded; or
                channels is neither 1 nor 3.
        """
        if check_integer("channels", channels) not in (1, 3):
            raise ArgumentError("channels", f"expected 1 or 3, got {channels}")
        return self._with(self.pixels.with_channels(channels), self.labels, self.layout)

    def fitting(self, *networks: object) -> ImageData:
        """The same images with as many channels as the first of these networks takes that says so.

        Raises:
            ValueError: see `with_channels`.
        """
        for network in networks:
            shape = getattr(network, "image_shape", None)
            taken = shape[0] if shape else getattr(network, "channels", None)
            if taken in (1, 3):
                return self.with_channels(taken)
        return self

    def unreadable(self, indices: Iterable[int]) -> dict[int, str]:
        """What is wrong with each of these images that cannot be read; all are decoded now."""
        problems = {}
        for index in indices:
            try:
                self.pixels[index]
            except UnreadableError as error:
                problems[index] = error.reason
        return problems

    def skipping(self, indices: Sequence[int]) -> tuple[ImageData, list[int]]:
        """The data, whose layout says what is left out, and those of these images that can be read.

        All are decoded now. Indices stay what they are.

        Raises:
            ValueError: none can be read.
        """
        bad = self.unreadable(indices)
        kept = [index for index in indices if index not in bad]
        if not bad:
            return self, kept
        told = left_out("data", bad.values(), len(indices), self.name)
        return self._with(self.pixels, self.labels, f"{self.layout or self.name}; {told}"), kept

    def _with(self, pixels: Pixels, labels: Tensor, layout: str) -> ImageData:
        return ImageData(
            self.name,
            self.split,
            pixels,
            labels if self.labelled else None,
            self.class_names,
            classes_named=self.classes_named,
            layout=layout,
            levels=self.levels,
        )


class _Chosen:
    """Some images of a sequence."""

    def __init__(self, pixels: Pixels, indices: list[int]) -> None:
        self.pixels, self.indices = pixels, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[self.indices[index]]

    def name(self, index: int) -> str:
        """What messages call it in the whole."""
        name = getattr(self.pixels, "name", "image {}".format)
        return str(name(self.indices[index]))

    def with_channels(self, channels: int) -> _Chosen:
        return _Chosen(self.pixels.with_channels(channels), self.indices)
