"""Differentiable resizing and cropping of images to the size a network works at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor
from torch.nn.functional import interpolate

from diffproof.checks import check_tensor, unknown_name
from diffproof.errors import ArgumentError


class Interpolation(StrEnum):
    """How pixels are interpolated: antialiased, with Pillow's kernels."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


def as_interpolation(name: str) -> Interpolation:
    """An Interpolation by its name; ValueError for one that is not supported, such as lanczos."""
    if name not in list(Interpolation):
        raise unknown_name("interpolation", name, Interpolation)
    return Interpolation(name)


def _is_length(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 1


@dataclass(frozen=True)
class Resize:
    """Resize images, then perhaps cut out their centre, as image processors do before a network.

    It takes images of any size, noisy pixels too, and clips nothing: where Pillow rounds to 8 bits and clips
    overshoot, this does not. Differentiable.

    Args:
        size: (H, W), or a number for the shorter side; the longer one keeps the aspect ratio, rounded down.
        crop: (H, W) to keep of the centre, None for all. An odd rest loses one pixel more below and right.
        round_crop: an odd rest is halved and rounded to the nearest even number, as torchvision does.
        interpolation: "bicubic" or "bilinear".

    Raises:
        ValueError: a size below 1, a crop larger than the resized image, or another interpolation.
    """

    size: int | tuple[int, int]
    crop: tuple[int, int] | None = None
    round_crop: bool = False
    interpolation: Interpolation = Interpolation.BICUBIC

    def __post_init__(self) -> None:
        object.__setattr__(self, "interpolation", as_interpolation(self.interpolation))
        smallest = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        if len(smallest) != 2 or not all(map(_is_length, smallest)):
            raise ArgumentError("resize", f"expected a size ≥ 1 or (height, width), got {self.size!r}")
        crop = smallest if self.crop is None else self.crop
        fits = isinstance(crop, tuple) and len(crop) == 2 and all(map(_is_length, crop))
        if not fits or crop[0] > smallest[0] or crop[1] > smallest[1]:
            raise ArgumentError("resize", f"expected a crop of at most {smallest}, got {self.crop!r}")

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The size of an image of height × width after resizing, before the crop."""
        if isinstance(self.size, tuple):
            return self.size
        longer = self.size * max(height, width) // min(height, width)
        return (self.size, longer) if height <= width else (longer, self.size)

    def output(self, height: int, width: int) -> tuple[int, int]:
        """The size at which the network sees an image of height × width."""
        return self.resized(height, width) if self.crop is None else self.crop

    def describe(self) -> str:
        """All settings, for the hash in certificates."""
        rounding = " rounded" if self.round_crop else ""
        return f"{self.interpolation} to {self.size}, crop {self.crop}{rounding}"

    def __call__(self, images: Tensor) -> Tensor:
        """N×C×H×W → N×C×H'×W', with (H', W') = `output(H, W)`."""
        if check_tensor("images", images).ndim != 4:
            raise ArgumentError("images", f"expected N×C×H×W, got shape {tuple(images.shape)}")
        size = self.resized(*images.shape[2:])
        if size != tuple(images.shape[2:]):
            images = interpolate(images, size, mode=self.interpolation.value, antialias=True)
        if self.crop is None:
            return images
        height, width = self.crop
        rest = size[0] - height, size[1] - width
        top, left = (round(value / 2) if self.round_crop else value // 2 for value in rest)
        return images[:, :, top : top + height, left : left + width]
