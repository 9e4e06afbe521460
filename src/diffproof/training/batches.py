"""Random batches: from one data set or a mixture, whole or this process's share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffproof.checks import check_probability, renamed
from diffproof.data.images import ImageData
from diffproof.errors import ArgumentError
from diffproof.weights import hash_tensors

# Most images of a data set, evenly spaced, that tell it from another: decoding all of them could take hours.
_COMPARED = 5000


# Images, and pixels of a channel, that a trained network is measured on together.
_IMAGES_AT_ONCE, _PIXELS_AT_ONCE = 256, 2**18


@dataclass(frozen=True)
class Batch:
    """One step's images; where several processes share a step, this one's rows of them.

    Attributes:
        images: R×C×H×W float32 in [0, 1].
        labels: R integers.
        sources: R integers, which data set of the mixture each image is from.
        size: images of the step over all processes.
        rows: R integers, this process's rows.
        done: share of the training's steps before this one, in [0, 1).
    """

    images: Tensor
    labels: Tensor
    sources: Tensor
    size: int
    rows: Tensor
    done: float = 0.0

    def mine(self, drawn: Tensor) -> Tensor:
        """This process's rows of what was drawn for the whole step, on the images' device.

        Every process draws for the whole step, so that the step does not depend on how many share it.
        """
        return drawn[self.rows].to(self.images.device)


class Mixture:
    """Images drawn with replacement from one data set, or from a second one with a given probability.

    Args:
        data: the data set.
        extra: a second one with the same classes and image shape, or None.
        extra_share: the probability with which an image is drawn from it.
        flip: mirror each image left to right with probability ½.

    Raises:
        ValueError: the two do not fit together, or the share is no probability.
    """

    def __init__(
        self,
        data: ImageData,
        extra: ImageData | None = None,
        *,
        extra_share: float = 0.5,
        flip: bool = False,
    ) -> None:
        if extra is not None:
            if not data.labelled:
                raise ArgumentError("extra_data", f"needs classes, but {data.name} has none")
            extra = extra.with_channels(data.image_shape[0])
        self.sources: Sequence[ImageData] = (data,) if extra is None else (data, extra)
        self.extra_share = check_probability("extra_share", extra_share)
        self.flip = flip
        if extra is not None and not _same_classes(extra, data):
            raise ArgumentError("extra_data", f"{extra.name} and {data.name} do not have the same classes")
        if extra is not None and extra.image_shape != data.image_shape:
            raise ArgumentError(
                "extra_data", f"expected images {data.image_shape} as in {data.name}, got {extra.image_shape}"
            )

    def draw(self, size: int, rows: Tensor, device: torch.device, generator: torch.Generator) -> Batch:
        """Draw a step of `size` images and decode these rows of it."""
        first = self.sources[0]
        if len(self.sources) == 1:
            source = torch.zeros(size, dtype=torch.int64)
            index = torch.randint(len(first), (size,), generator=generator)
        else:
            source = (torch.rand(size, generator=generator) < self.extra_share).long()
            lengths = torch.tensor([len(data) for data in self.sources])[source]
            index = (torch.rand(size, generator=generator, dtype=torch.float64) * lengths).long()
        mirrored = torch.rand(size, generator=generator) < 0.5 if self.flip else torch.zeros(size).bool()

        source, index, mirrored = source[rows], index[rows], mirrored[rows]
        images = torch.empty(len(rows), *first.image_shape)
        labels = torch.empty(len(rows), dtype=torch.int64)
        for number, data in enumerate(self.sources):
            chosen = source == number
            if bool(chosen.any()):
                with renamed({"data": "extra_data"} if number else {}):
                    found = data.batch(index[chosen])
                if found.shape[1:] != first.image_shape:
                    raise ArgumentError(
                        "data",
                        f"{data.name} has images {tuple(found.shape[1:])} and {first.image_shape}"
                        " (channels, height, width); an image size brings them to one",
                    )
                images[chosen] = found
                labels[chosen] = data.labels[index[chosen]]
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return Batch(images.to(device), labels.to(device), source.to(device), size, rows)

    def identity(self) -> dict[str, Any]:
        """What tells these images from others, to continue a training: all labels, 5,000 images at most."""
        told: dict[str, Any] = {"flip": self.flip}
        for name, data in zip(("data", "extra_data"), self.sources, strict=False):
            with renamed({"data": name}):
                images = data.fingerprint(range(0, len(data), -(-len(data) // _COMPARED)))
            labels = hash_tensors({"labels": data.labels})
            told[name] = {"name": data.name, "split": data.split, "number": len(data)}
            told[name] |= {"labels": labels, "images": images}
        return told | ({"extra_share": self.extra_share} if len(self.sources) > 1 else {})


def _same_classes(extra: ImageData, data: ImageData) -> bool:
    """Whether labels mean the same; labels without names are numbers of the other's classes."""
    if extra.classes_named == data.classes_named:
        return extra.class_names == data.class_names
    return len(extra.class_names) == len(data.class_names)


def measured_together(data: ImageData) -> Iterator[range]:
    """The indices of all images in parts; of large images in smaller ones, which fit where they trained."""
    height, width = data.pixels[0].shape[-2:] if len(data) else (1, 1)
    many = max(1, min(_IMAGES_AT_ONCE, _PIXELS_AT_ONCE // (height * width)))
    for start in range(0, len(data), many):
        yield range(start, min(start + many, len(data)))
