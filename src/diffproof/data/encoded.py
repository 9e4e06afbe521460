"""Pictures of files and tables, decoded on access."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Self

from torch import Tensor

from diffproof.checks import renamed
from diffproof.pictures import UnreadableError, is_grey, picture_form, read_picture


class EncodedPixels:
    """Pictures that are decoded when they are asked for, all with as many channels.

    Subclasses say where the pictures are.

    Args:
        image_size: see load_data.
    """

    def __init__(self, image_size: int | None) -> None:
        self.image_size = image_size

    def __len__(self) -> int:
        raise NotImplementedError

    def source(self, index: int) -> Path | bytes:
        """The file of a picture, or what is in it."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What messages call a picture."""
        raise NotImplementedError

    def form(self, index: int) -> tuple[str, tuple[int, int]]:
        """The PIL mode of a picture and its (width, height), from its first bytes alone.

        Raises:
            UnreadableError: it cannot be read or is no picture.
        """
        with _as_data():
            return picture_form(self.source(index), self.name(index))

    @cached_property
    def channels(self) -> int:
        """1 if every picture is grey, else 3; pictures that cannot be read do not count."""
        return 1 if all(self._may_be_grey(index) for index in range(len(self))) else 3

    def _may_be_grey(self, index: int) -> bool:
        try:
            return is_grey(self.form(index)[0])
        except UnreadableError:
            return True

    def with_channels(self, channels: int) -> Self:
        """The same pictures with 1 or 3 channels."""
        same = copy.copy(self)
        same.channels = channels
        return same

    def __getitem__(self, index: int) -> Tensor:
        with _as_data():
            return read_picture(self.source(index), self.channels, self.image_size, name=self.name(index))


@contextmanager
def _as_data() -> Iterator[None]:
    """Errors of a picture as those of the data, with the way out."""
    try:
        with renamed({"pictures": "data"}):
            yield
    except UnreadableError as error:
        raise error.with_remedy("data") from None


class FilePixels(EncodedPixels):
    """Pictures that are files.

    Args:
        paths: the files.
        image_size: see load_data.
    """

    def __init__(self, paths: Sequence[str], image_size: int | None) -> None:
        super().__init__(image_size)
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def source(self, index: int) -> Path:
        """The file of a picture."""
        return Path(self.paths[index])

    def name(self, index: int) -> str:
        """Its path."""
        return self.paths[index]
