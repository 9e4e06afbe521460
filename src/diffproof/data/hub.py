"""Data sets that the `datasets` library reads: Hub ids, class folders, parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffproof.checks import unknown_name
from diffproof.data.images import ImageData
from diffproof.errors import ArgumentError
from diffproof.hub import quick_hub
from diffproof.pictures import resized

# Label columns by name, where no column says that it holds classes; first found wins.
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
# PIL modes of one 8-bit channel, and of several that make RGB; others hold more than 8 bits.
_GREY_MODES = ("L", "1", "LA")
_COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB")


def load_hub(source: str, split: str | None, default: str, image_size: int | None) -> ImageData:
    """A data set through the `datasets` library, decoded image by image.

    Args:
        source: a Hub id, a parquet file, or a folder: of class folders (perhaps inside split folders), of
            parquet files, or one that `Dataset.save_to_disk` wrote.
        split: its name; None takes `default`, or the only one there is.
        default: see `default_split` of load_data.
        image_size: see load_data.

    Raises:
        ValueError: not installed, not found, not downloadable, no such split, no image or label column.
    """
    try:
        import datasets
    except ImportError:
        raise ArgumentError(
            "data", "reading this needs the `datasets` library: pip install 'diffproof[hf]'"
        ) from None
    splits = _open(datasets, source)
    if split is None:
        split = next(iter(splits)) if len(splits) == 1 else default
    if split not in splits:
        raise unknown_name("split", split, splits)
    table = splits[split]
    name = Path(source).name if Path(source).exists() else source
    column = _image_column(datasets, table, name)
    table, labels, class_names, named = _labels(datasets, table, name)
    table = table.cast_column(column, datasets.Image(decode=True))
    pixels = DecodedPixels(table.select_columns(column), column, name, image_size)
    return ImageData(name, str(split), pixels, labels, class_names, classes_named=named)


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    shown, verbosity = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    # It logs as an error what it then raises as well.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        if not shown:
            datasets.enable_progress_bars()
        datasets.logging.set_verbosity(verbosity)


def _open(datasets: Any, source: str) -> dict[Any, Any]:
    """All splits of a source, by name."""
    path = Path(source)
    try:
        with _quiet(datasets):
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                found = datasets.load_from_disk(source)
            elif path.is_file():
                found = datasets.load_dataset("parquet", data_files={"file": str(path.resolve())})
            elif path.is_dir():
                found = datasets.load_dataset(str(path.resolve()))
            else:
                with quick_hub():
                    found = datasets.load_dataset(source)
    except MemoryError:
        raise
    except Exception as error:  # the library's own errors and those of pyarrow, fsspec and the network
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if path.exists():
            raise ArgumentError(
                "data",
                f"cannot read {source}: {reason}; expected a parquet or .npz file, or a folder of class"
                " folders with images",
            ) from None
        raise ArgumentError(
            "data",
            f"cannot load {source!r} from the Hub or its cache: {reason}; download it once while online"
            f" (hf download --repo-type dataset {source}), or give the path of a parquet file or a folder",
        ) from None
    return dict(found) if isinstance(found, dict) else {str(found.split or "all"): found}


def _image_column(datasets: Any, table: Any, name: str) -> str:
    """The column that holds images: encoded bytes or paths."""
    images = [column for column, feature in table.features.items() if isinstance(feature, datasets.Image)]
    if not images:
        # Files written without the library keep an image as a struct of its bytes and its path.
        images = [
            column
            for column, feature in table.features.items()
            if isinstance(feature, dict) and {"bytes", "path"} <= set(feature)
        ]
    if len(images) != 1:
        columns = ", ".join(table.features)
        raise ArgumentError(
            "data", f"{name}: expected one column of images, got {len(images)} among {columns}"
        )
    return str(images[0])


def _labels(datasets: Any, table: Any, name: str) -> tuple[Any, Tensor, list[str], bool]:
    """The table, its labels as integers, the class names, and whether the data gave them."""
    features = table.features
    classes = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    known = [column for column in _LABEL_COLUMNS if column in (classes or features)]
    if not known and len(classes) != 1:
        raise ArgumentError(
            "data",
            f"{name}: expected a label column ({', '.join(_LABEL_COLUMNS)}), got {', '.join(features)}",
        )
    column = known[0] if known else classes[0]
    try:
        values = table.select_columns(column).with_format("arrow")[:][column].to_numpy(zero_copy_only=False)
    except ValueError as error:  # pyarrow's errors of a damaged file are of this kind
        reason = " ".join(str(error).split())[:200]
        raise ArgumentError("data", f"cannot read the labels of {name}: {reason}") from None
    feature = features[column]
    if isinstance(feature, datasets.ClassLabel):
        return table, torch.from_numpy(values.astype(np.int64)), list(feature.names), True
    if values.dtype.kind in "iu":
        count = int(values.max()) + 1 if len(values) else 0
        return table, torch.from_numpy(values.astype(np.int64)), [str(label) for label in range(count)], False
    if values.dtype.kind in "OU" and all(isinstance(value, str) for value in values):
        names, codes = np.unique(values.astype(str), return_inverse=True)
        return table, torch.from_numpy(codes.astype(np.int64)), [str(label) for label in names], True
    raise ArgumentError("data", f"{name}: expected integer or text labels in {column!r}, got {values.dtype}")


class DecodedPixels:
    """Images of a `datasets` table, decoded on access.

    Args:
        table: a `datasets.Dataset` with one image column.
        column: the name of that column.
        name: the data set's name, for messages.
        image_size: see load_data.
    """

    def __init__(self, table: Any, column: str, name: str, image_size: int | None) -> None:
        self.table, self.column, self.name, self.image_size = table, column, name, image_size

    @cached_property
    def _grey(self) -> bool:
        """Whether the images have one channel, as the first one has."""
        return self._open(0).mode in _GREY_MODES

    def __len__(self) -> int:
        return len(self.table)

    def _open(self, index: int) -> Any:
        try:
            image = self.table[index][self.column]
        except MemoryError:
            raise
        except Exception as error:  # whatever a decoder meets in a damaged file
            reason = " ".join(str(error).split())[:160]
            raise ArgumentError("data", f"image {index} of {self.name} cannot be decoded: {reason}") from None
        if image is None:
            raise ArgumentError("data", f"image {index} of {self.name} is missing")
        return image

    def __getitem__(self, index: int) -> Tensor:
        image = self._open(index)
        if image.mode not in (*_GREY_MODES, *_COLOUR_MODES):
            raise ArgumentError(
                "data", f"image {index} of {self.name} has the mode {image.mode!r}, expected 8 bits a channel"
            )
        if self._grey and image.mode not in _GREY_MODES:
            raise ArgumentError("data", f"image {index} of {self.name} has colours, but the first is grey")
        image = image.convert("L" if self._grey else "RGB")
        if self.image_size is not None:
            image = resized(image, self.image_size)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
        return pixels[None] if self._grey else pixels.permute(2, 0, 1).contiguous()
