"""Pictures within a page: PNG, as small as they must be for all of them to be sent by mail."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from diffproof.pictures import png

# Bytes that all pictures of a page take as texts, about and at most, unless the smallest side is needed.
_MOST = 12_500_000
# Longer sides in pixels that are tried until all fit; no picture is larger than the first.
_SIDES = (256, 128, 96, 64, 48, 32, 24, 16)
# Pictures that tell how much all of them take.
_SAMPLE = 64
# Grey levels of a difference: a few show it, and take half the bytes.
_COARSE = 32


class Album:
    """Pictures of a page, which it refers to by their number."""

    def __init__(self) -> None:
        self._pictures: list[tuple[Tensor, bool]] = []
        self._longest = 0

    def add(self, picture: Tensor, *, coarse: bool = False) -> int:
        """The number of a picture that is put in.

        Args:
            picture: C×H×W floats, cut to [0, 1], with C = 1 or 3.
            coarse: whether few grey levels will do.
        """
        self._longest = max(self._longest, *picture.shape[-2:])
        self._pictures.append((_within(picture.float(), _SIDES[0]), coarse))
        return len(self._pictures) - 1

    def uris(self) -> tuple[list[str], int | None]:
        """A data: URI each, and the longer side that larger pictures were shrunk to, None if none was."""
        largest = min(self._longest, _SIDES[0])
        sides = [largest, *(side for side in _SIDES if side < largest)]
        side = next((side for side in sides if self._size(side) <= _MOST), sides[-1])
        return _encoded(self._pictures, side), side if side < self._longest else None

    def _size(self, side: int) -> float:
        """Characters that all pictures take, by those of some, spread evenly."""
        count = len(self._pictures)
        some = [self._pictures[place * count // min(count, _SAMPLE)] for place in range(min(count, _SAMPLE))]
        return sum(map(len, _encoded(some, side))) * count / max(1, len(some))


def _encoded(pictures: Sequence[tuple[Tensor, bool]], side: int) -> list[str]:
    return [_uri(_within(picture, side), coarse) for picture, coarse in pictures]


def _uri(picture: Tensor, coarse: bool) -> str:
    shown = (picture * (_COARSE - 1)).round() / (_COARSE - 1) if coarse else picture
    return "data:image/png;base64," + base64.b64encode(png(shown)).decode()


def _within(picture: Tensor, side: int) -> Tensor:
    """A picture whose longer side is at most so long: means of areas."""
    height, width = picture.shape[-2:]
    longest = max(height, width)
    if longest <= side:
        return picture
    size = [max(1, round(length * side / longest)) for length in (height, width)]
    return torch.as_tensor(interpolate(picture[None], size, mode="area")[0])
