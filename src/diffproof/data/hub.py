"""Data sets that the `datasets` library reads: Hub ids, parquet files, what it saved itself."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diffproof.data.encoded import EncodedPixels
from diffproof.data.images import ImageData
from diffproof.data.labels import Classes, classes_of
from diffproof.data.parquet import check_tables
from diffproof.data.splits import choose_split
from diffproof.errors import ArgumentError, printable
from diffproof.files import check_file, read_text
from diffproof.hub import quick_hub
from diffproof.optional import install_line
from diffproof.pictures import UnreadableError
from diffproof.wording import counted, shortened

# Label columns by name, where no column says that it holds classes; first found wins.
_CONFIGURATIONS = re.compile(r"Config name is missing.*?\[(.*?)\]")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


def load_hub(source: str, split: str | None, default: str, image_size: int | None) -> ImageData:
    """A data set through the `datasets` library, decoded image by image.

    Args:
        source: a Hub id, a parquet file, or a folder: of parquet files, or one that `Dataset.save_to_disk`
            wrote.
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
            "data", f"reading this needs the `datasets` library: {install_line('hf')}"
        ) from None
    splits, notes = _open(datasets, source)
    name = Path(source).name if Path(source).exists() else source
    split = choose_split(splits, split, default, name)
    table = splits[split]
    column = _image_column(datasets, table, name)
    label_column, others = _label_column(datasets, table, name)
    beside = [one for key, one in splits.items() if key != split]
    classes = _classes(datasets, table, name, label_column, beside)
    table = table.cast_column(column, datasets.Image(decode=False))
    pixels = TablePixels(table.select_columns(column), column, name, image_size, _folders(datasets, source))
    if others:
        notes.append(f"labels of the column {label_column} are taken, none of {shortened(others)}")
    notes += [classes.note] * bool(classes.note)
    labels, names, named, _ = classes
    layout = f"{name}: {'; '.join(notes)}" if notes else ""
    return ImageData(name, split, pixels, labels, names, classes_named=named, layout=layout)


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


def _open(datasets: Any, source: str) -> tuple[dict[str, Any], list[str]]:
    """All splits of a source, by name, and what to know of its files."""
    path, notes = Path(source), list[str]()
    for one in path.rglob("*") if path.is_dir() else ():
        if not one.is_dir():
            check_file("data", one)
    try:
        with _quiet(datasets):
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                _check_saved(path)
                found = datasets.load_from_disk(source)
            elif path.is_file():
                check_tables([path])
                found = datasets.load_dataset("parquet", data_files={"file": str(path.resolve())})
            elif path.is_dir():
                notes = _check_folder(datasets, path)
                found = datasets.load_dataset(str(path.resolve()))
            else:
                with quick_hub():
                    found = datasets.load_dataset(source)
    except (MemoryError, ArgumentError):
        raise
    except Exception as error:  # the library's own errors and those of pyarrow, fsspec and the network
        # Of a table that it prepares, the library says the reason only beneath its own error.
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        if (several := _CONFIGURATIONS.search(reason)) is not None:
            raise ArgumentError(
                "data",
                f"{source} has several configurations ({several[1]}) and no default; give a folder or a"
                " parquet file of one",
            ) from None
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
    tables = found if isinstance(found, dict) else {found.split or "all": found}
    return {str(split): table for split, table in tables.items()}, notes


def _check_saved(folder: Path) -> None:
    """Raise ValueError where a folder of `save_to_disk` names no files of its own; anybody may make it."""
    path = folder / "dataset_dict.json"
    try:
        splits = json.loads(read_text("data", path))["splits"] if path.is_file() else [""]
        for split in splits:
            path = folder / split / "state.json"
            files = [one["filename"] for one in json.loads(read_text("data", path))["_data_files"]]
            if not files:
                raise ArgumentError("data", f"{folder / split} has no row")
            for file in (split, *files):
                if os.path.basename(file) != file:
                    told = f"{path} names the file {printable(file, 160)}, expected one beside it"
                    raise ArgumentError("data", told)
            for file in files:
                check_file("data", path.parent / file)
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ArgumentError(
            "data", f"{path} is damaged: it is not what Dataset.save_to_disk writes"
        ) from None


def _check_folder(datasets: Any, folder: Path) -> list[str]:
    """Raise ValueError unless the library reads a folder's parquet files only; what to know of them.

    Its README.md may name files, and may come from anybody.
    """
    builder = datasets.load_dataset_builder(str(folder.resolve()))
    named = [str(one) for files in (builder.config.data_files or {}).values() for one in files]
    root = str(folder.resolve())
    outside = [one for one in named if not os.path.normpath(one).startswith(root + os.sep)]
    if outside:
        raise ArgumentError(
            "data", f"{folder} names the file {printable(outside[0], 160)}, expected one in it"
        )
    other = [one for one in named if not one.endswith(".parquet")]
    if other or not named:
        got = f"{os.path.relpath(other[0], root)} among more of its kind" if other else "none"
        raise ArgumentError("data", f"expected parquet files in {folder}, and fewer others, got {got}")
    check_tables(map(Path, named))
    files = {str(one) for one in folder.resolve().rglob("*.parquet")} - {*named}
    left = sorted(os.path.relpath(one, root) for one in files)
    shown = [one for one in left if not any(part.startswith(".") for part in one.split(os.sep))]
    if not shown:
        return []
    return [f"{counted(len(shown), 'parquet file')} of no split ignored: {shortened(shown, 3)}"]


def _folders(datasets: Any, source: str) -> list[str]:
    """Where pictures may lie that rows of a source name by path: in its folder, of the Hub in its caches."""
    from huggingface_hub import constants

    path = Path(source)
    own = [path if path.is_dir() else path.parent]
    config = datasets.config
    caches = [config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE]
    return [os.path.realpath(folder) for folder in (own if path.exists() else caches)]


def _image_column(datasets: Any, table: Any, name: str) -> str:
    """The column that holds images: encoded bytes or paths."""
    features = table.features
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    # Files written without the library keep an image as its bytes, perhaps beside its path.
    images = images or [
        column for column, feature in features.items() if isinstance(feature, dict) and "bytes" in feature
    ]
    images = images or [
        column for column, one in features.items() if getattr(one, "dtype", "") in ("binary", "large_binary")
    ]
    if len(images) != 1:
        got = shortened(images) if images else f"none among {_columns(features)}"
        raise ArgumentError("data", f"{name}: expected one column of pictures (as bytes of files), got {got}")
    return str(images[0])


def _columns(features: Any) -> str:
    """The columns of a table with what is in each."""
    kinds = {column: getattr(one, "dtype", type(one).__name__.lower()) for column, one in features.items()}
    return shortened((f"{column} ({printable(kind, 40)})" for column, kind in kinds.items()), 10)


def _label_column(datasets: Any, table: Any, name: str) -> tuple[str, list[str]]:
    """The label column, and others that could be it."""
    features = table.features
    classes = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    known = [column for column in _LABEL_COLUMNS if column in (classes or features)]
    if not known and len(classes) != 1:
        got = f"several: {shortened(classes)}" if classes else _columns(features)
        raise ArgumentError(
            "data", f"{name}: expected a label column ({', '.join(_LABEL_COLUMNS)}), got {got}"
        )
    chosen = known[0] if known else classes[0]
    like = [column for column in features if column in (*classes, *_LABEL_COLUMNS) and column != chosen]
    return chosen, like


def _classes(datasets: Any, table: Any, name: str, column: str, others: Sequence[Any]) -> Classes:
    """The labels and class names of a label column; `others` are the tables of the other splits."""
    here, beside = table.features[column], [other for other in others if column in other.features]
    every = [
        one.names for one in (here, *(other.features[column] for other in beside)) if hasattr(one, "names")
    ]
    values = _column(table, column, name)
    if not every or (here.dtype == "string" and not hasattr(here, "names")):
        if every:
            raise ArgumentError(
                "data", f"labels of {name} are texts, those of another split numbers of named classes"
            )
        return classes_of(values, name, others=[_column(other, column, name) for other in beside])
    names = max(every, key=len)
    for one in every:
        for label, (mine, other) in enumerate(zip(names, one, strict=False)):
            if mine != other:
                raise ArgumentError("data", f"splits of {name} call the label {label} {mine!r} and {other!r}")
    return classes_of(values, name, names)


def _column(table: Any, column: str, name: str) -> np.ndarray:
    try:
        values = table.select_columns(column).with_format("arrow")[:][column]
        return np.asarray(values.to_numpy(zero_copy_only=False))
    except ValueError as error:  # pyarrow's errors of a damaged file are of this kind
        reason = " ".join(str(error).split())[:200]
        raise ArgumentError("data", f"cannot read the labels of {name}: {reason}") from None


class TablePixels(EncodedPixels):
    """Images of a `datasets` table.

    Args:
        table: a `datasets.Dataset` with one image column that is not decoded.
        column: the name of that column.
        data: the data set's name, for messages.
        image_size: see load_data.
        folders: where the files may lie that rows name, links followed; the first is that of relative paths.
    """

    def __init__(
        self, table: Any, column: str, data: str, image_size: int | None, folders: Sequence[str]
    ) -> None:
        super().__init__(image_size)
        self.table, self.column, self.data, self.folders = table, column, data, folders

    def __len__(self) -> int:
        return len(self.table)

    def source(self, index: int) -> Path | bytes:
        """The bytes of an image's file, or the path of one."""
        try:
            image = self.table[index][self.column]
        except MemoryError:
            raise
        except Exception as error:  # pyarrow's of a damaged table
            raise UnreadableError(
                "data", f"{self.name(index)} cannot be read: {printable(error, 160)}"
            ) from None
        if image is None or image == {"bytes": None, "path": None}:
            raise UnreadableError("data", f"{self.name(index)} is missing")
        return self._file(index, image["path"]) if image["bytes"] is None else image["bytes"]

    def _file(self, index: int, path: str) -> Path:
        """A file that a row names, which may come from anybody: only one beside the table is opened."""
        real = Path(os.path.realpath(os.path.join(self.folders[0], path)))
        if not any(real.is_relative_to(folder) for folder in self.folders):
            raise ArgumentError(
                "data",
                f"{self.name(index)} is the path {printable(path, 160)}, expected its bytes or a file in"
                f" {self.folders[0]}",
            )
        return real

    def name(self, index: int) -> str:
        """Its row."""
        return f"image {index} of {self.data}"
