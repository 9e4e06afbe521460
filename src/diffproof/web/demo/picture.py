"""The picture that the page works on: one of the data, or a visitor's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from diffproof.checks import renamed
from diffproof.errors import ArgumentError, printable
from diffproof.pictures import read_picture
from diffproof.web.demo.studio import Studio


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        image: C×H×W in [0, 1], on the networks' device.
        name: what the page calls it.
        index: with the seed it fixes all noise: the number in the data set, 0 for a visitor's own.
        label: its true class, None where nobody knows it.
        levels: its pixels are multiples of 1/levels; None for 255.
        notice: what was done to it, "" for nothing.
    """

    image: Tensor
    name: str
    index: int
    label: int | None
    levels: int | None
    notice: str = ""

    def changed(self, image: Tensor, name: str) -> Picture:
        """The same picture with other pixels, under another name."""
        return replace(self, image=image, name=name, notice="")


def of_data(studio: Studio, index: int) -> Picture:
    """A picture of the data.

    Raises:
        ValueError: no such index, an unreadable picture, or one of another size than the others.
    """
    data = studio.data
    image = data.batch([index])[0]
    shape = tuple(image.shape)
    if shape != studio.image_shape:
        raise ArgumentError("data", f"picture {index} is {_size(image)}, others are {studio.image_shape}")
    label = int(data.labels[index]) if data.labelled else None
    return Picture(image.to(studio.device), f"{data.name} {index}", index, label, data.levels)


def uploaded(studio: Studio, path: Path, name: str) -> Picture:
    """A visitor's own picture; its true class is not known.

    One of another size is brought to that of the networks, and its notice says so.

    Args:
        studio: says which pictures the networks take.
        path: where it lies.
        name: what the visitor calls it.

    Raises:
        ValueError: it is no picture, or one that the networks cannot take.
    """
    channels, height, width = studio.image_shape
    name = printable(name, 80)
    with renamed({"pictures": "upload"}):
        image = read_picture(path, channels, name=name)
        notice, given = "", _size(image)
        if tuple(image.shape[1:]) != (height, width):
            if height != width:
                raise ArgumentError("upload", f"{name} is {given} pixels, the networks take {width}×{height}")
            image = read_picture(path, channels, height, name=name)
            notice = (
                f"{name} is {given} pixels. It was resized to {width}×{height}: the shorter side, then the"
                " central square. All that follows is about the small picture."
            )
    return Picture(image.to(studio.device), name, 0, None, None, notice)


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]}×{image.shape[-2]}"
