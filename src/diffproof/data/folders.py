"""Folders of pictures: which folder is a split, which a class, and the pictures in each."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from diffproof.data.encoded import FilePixels
from diffproof.data.images import ImageData
from diffproof.data.labels import check_names_of_splits, in_order
from diffproof.data.splits import SPLITS, choose_split, meaning
from diffproof.errors import ArgumentError
from diffproof.wording import counted, shortened

T = TypeVar("T")

# What a picture's name ends in, in any case; what the file really is shows when it is read.
SUFFIXES = tuple(
    f".{kind}"
    for kind in "png apng jpg jpeg jpe jfif mpo webp bmp gif tif tiff ppm pgm pbm pnm jp2 avif".split()  # noqa: SIM905
)
# Folders that systems leave behind, hidden ones for what is read here.
_LEFT_BEHIND = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
# The split of a folder that has none.
ALL = "all"


@dataclass(frozen=True)
class Split:
    """A split, or a whole folder without splits.

    Attributes:
        folder: where it is.
        classes: the pictures of each class folder, sorted by path; a class folder may be empty.
        loose: pictures straight in the folder, sorted.
        strange: folders that are no classes of the training split; their pictures are among the loose ones.
    """

    folder: str
    classes: dict[str, list[str]]
    loose: list[str]
    strange: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether its pictures lie in class folders."""
        return any(self.classes.values())

    @property
    def pictures(self) -> list[str]:
        """Those of its class folders, or those straight in it where no class folder has any."""
        return [path for paths in self.classes.values() for path in paths] if self.labelled else self.loose


@dataclass(frozen=True)
class Layout:
    """What a folder of pictures holds.

    Attributes:
        root: the folder.
        splits: by the names of their folders; ALL alone for a folder without splits.
        class_names: those of all splits together, so that a label means the same in each.
        note: what to know of the class folders or of their order, "" for nothing.
        ignored: files that are no pictures, by how their names end, and hidden files and folders.
        dropped: folders of such files only, which could have been classes or splits.
        empty: folders without any picture that are called as splits are.
    """

    root: Path
    splits: dict[str, Split]
    class_names: tuple[str, ...]
    note: str
    ignored: Counter[str]
    dropped: Sequence[str] = ()
    empty: Sequence[str] = ()

    @property
    def others(self) -> str:
        """The files that are ignored, by kind, the most frequent first."""
        kinds = sorted(self.ignored.items(), key=lambda item: (-item[1], item[0]))
        return shortened(f"{count} {kind}" for kind, count in kinds)

    def choose(self, split: str | None, default: str) -> str:
        """The name of the split that a user's word means.

        Args:
            split: the name of its folder or another word for it (test for testing); None for `default`, or
                the only split there is.
            default: "train" or "test".

        Raises:
            ValueError: no such split, or several.
        """
        if ALL in self.splits and split not in (None, ALL):
            raise ArgumentError("split", f"{self.root} has no split folders, expected none, got {split!r}")
        lacking = [name for name in self.empty if meaning(name) == meaning(split or default)]
        if lacking and ALL not in self.splits and not {*map(meaning, lacking)} & {*map(meaning, self.splits)}:
            raise ArgumentError(
                "split", f"{self.root / lacking[0]} has no picture; there are {', '.join(self.splits)}"
            )
        return choose_split(self.splits, split, default, self.root)

    def labelled(self, split: str) -> tuple[list[str], list[int]]:
        """The pictures of a split's class folders, class by class, and their labels.

        Raises:
            ValueError: it has no class folder.
        """
        found = self.splits[split]
        if not found.labelled:
            got = f"{counted(len(found.loose), 'picture')} straight in it"
            if found.strange:
                got = f"only {shortened(found.strange)}, which are no classes of the training split"
            tables = [kind for kind in _TABLES if self.ignored[kind]]
            got += f"; labels in {shortened(tables)} files are not read" if tables else ""
            raise ArgumentError("data", f"expected class folders in {found.folder}, got {got}")
        by_class = [found.classes.get(name, []) for name in self.class_names]
        labels = [label for label, paths in enumerate(by_class) for _ in paths]
        return [path for paths in by_class for path in paths], labels

    def describe(self, split: str) -> str:
        """One line on what was found, read as this split."""
        found = self.splits[split]
        what = counted(len(found.pictures), "picture")
        what += (
            f" in {counted(len(self.class_names), 'class folder')}"
            if found.labelled
            else ", no class folders"
        )
        if split != ALL:
            others = [f"{name} {len(one.pictures)}" for name, one in self.splits.items() if name != split]
            what = f"split {split}, {what}" + f" (other splits: {shortened(others)})" * bool(others)
        return "; ".join([f"{self.root}: {what}", *self.notes(split)])

    def notes(self, split: str) -> list[str]:
        """What a user may not expect of a split."""
        found, notes = self.splits[split], []
        if found.strange:
            notes.append(f"no classes of the training split: {shortened(found.strange)}")
        if found.labelled:
            empty = [name for name in self.class_names if not found.classes.get(name)]
            notes += [self.note] * bool(self.note)
            notes += [f"no picture of {shortened(empty)}"] * bool(empty)
            if found.loose:
                notes.append(f"{counted(len(found.loose), 'picture')} beside the class folders ignored")
        if self.dropped:
            notes.append(f"folders without pictures ignored: {shortened(self.dropped)}")
        if self.ignored:
            notes.append(f"other files ignored: {self.others}")
        return notes


def load_folder(
    root: Path, split: str | None, default: str, image_size: int | None, *, labelled: bool = True
) -> ImageData | None:
    """The pictures of a folder, or None if it holds tables that the `datasets` library reads instead.

    Args:
        root: a folder.
        split: see `Layout.choose`.
        default: see `Layout.choose`.
        image_size: see load_data.
        labelled: without class folders, refuse it rather than take its pictures without labels.

    Raises:
        ValueError: no picture, no class folders, no such split; see `find_layout`.
    """
    layout = picture_layout(root)
    if layout is None:
        return None
    return load_split(layout, layout.choose(split, default), image_size, labelled=labelled)


def load_split(layout: Layout, split: str, image_size: int | None, *, labelled: bool = True) -> ImageData:
    """The pictures of a split by its name; see `load_folder`."""
    if labelled or layout.splits[split].labelled:
        paths, numbers = layout.labelled(split)
        labels, names = torch.tensor(numbers, dtype=torch.int64), layout.class_names
    else:
        paths, labels, names = layout.splits[split].loose, None, ()
    pixels, name = FilePixels(paths, image_size), layout.root.resolve().name or "/"
    return ImageData(name, split, pixels, labels, names, layout=layout.describe(split))


# Files that may hold labels of the pictures beside them.
_TABLES = (".csv", ".tsv", ".json", ".jsonl", "metadata.parquet")
# Files of `Dataset.save_to_disk`.
_SAVED = ("dataset_dict.json", "state.json")
# A table, but one that describes the pictures beside it.
_CAPTIONS = "metadata.parquet"


def picture_layout(root: Path) -> Layout | None:
    """What a folder of pictures holds; None if it is one of tables.

    Raises:
        ValueError: neither pictures nor tables, or both; see `find_layout`.
    """
    if any((root / name).is_file() for name in _SAVED):
        return None
    layout = find_layout(root)
    pictures = sum(len(split.pictures) for split in layout.splits.values())
    tables = layout.ignored[".parquet"]
    if tables and pictures:
        raise ArgumentError(
            "data",
            f"{root} holds pictures and .parquet files; expected a folder or a file of one of them",
        )
    if not tables and not pictures:
        found = layout.others or "nothing"
        raise ArgumentError("data", f"expected class folders with pictures in {root}, got {found}")
    return None if tables else layout


def find_layout(root: Path) -> Layout:
    """What a folder of pictures holds: the first folder below the root, or below a split, is the class.

    Splits are folders in the root that are all named train, training, test, testing, val, valid, validation
    or dev; beside folders of other names, such a folder is a class. Names of files decide nothing. Links are
    followed; hidden files and files that are no pictures are counted.

    Raises:
        ValueError: splits beside classes, a link in a circle, or a folder that cannot be read.
    """
    walk = _Walk()
    loose, folders = walk.scan(str(root))
    above = {_identity(str(folder)) for folder in (root.resolve(), *root.resolve().parents)}
    top = walk.each(folders, lambda folder: walk.split(folder, set(above)), lambda one: one.pictures)
    full = {name: one for name, one in top.items() if one.pictures}
    others = [name for name in full if meaning(name) is None]
    nested = [name for name, one in full.items() if meaning(name) and not one.loose]
    if full and not others:
        splits = _like_training(full)
    elif nested and others:
        raise ArgumentError(
            "data",
            f"{full[nested[0]].folder} holds folders of pictures, as a split does, but {others[0]!r} beside"
            " it is no split; give one split's folder, or put a class's pictures straight into its folder",
        )
    else:
        classes = {
            name: sorted([*one.loose, *(path for paths in one.classes.values() for path in paths)])
            for name, one in top.items()
            if one.pictures or meaning(name) is None
        }
        splits = {ALL: Split(str(root), classes, loose)}
        _check_below(full, root)
    names = {name for split in splits.values() if split.labelled for name in split.classes}
    check_names_of_splits([split.classes for split in splits.values()], str(root))
    ordered, note = in_order(names, str(root))
    if ALL in splits and len(ordered) == 1 and not top[ordered[0]].loose:
        note = f"the only class folder holds folders of pictures; are these the classes, in {ordered[0]}?"
    doubt = _doubt(full) if ALL in splits else ""
    empty = [name for name, one in top.items() if meaning(name) and not one.pictures]
    empty += [name for name in walk.dropped if meaning(name)]
    return Layout(
        root, splits, ordered, "; ".join(filter(None, [note, doubt])), walk.ignored, walk.dropped, empty
    )


def _check_below(full: dict[str, Split], root: Path) -> None:
    """Raise ValueError where splits lie in the class folders: all of them would be read as one."""
    for name, one in full.items():
        inner = [folder for folder in _filled(one.classes) if meaning(folder)]
        if len({*map(meaning, inner)}) > 1:
            raise ArgumentError(
                "data",
                f"{root / name} holds {shortened(sorted(inner))}, as splits are called; expected splits at"
                f" the top and classes in them{'; give that folder' * (len(full) == 1)}",
            )


def _doubt(full: dict[str, Split]) -> str:
    """Whether folders that are taken for classes may be none, as they hold nothing but folders."""
    if len(full) < 2 or any(one.loose for one in full.values()):
        return ""
    if all({*re.split(r"[\W_]+", name.casefold())} & {*SPLITS} for name in full):
        return f"are {shortened(full)} splits? They would be called train, test, val or the like"
    inner = Counter(folder for one in full.values() for folder in _filled(one.classes))
    several = sorted(folder for folder, number in inner.items() if number > 1)
    return f"several of these hold {shortened(several)}; are those the classes?" if several else ""


def _like_training(splits: dict[str, Split]) -> dict[str, Split]:
    """The splits; one without any class of the training split has no class folders.

    So lie pictures that came without labels, as in val/images.
    """
    trained = {
        name for split, one in splits.items() if meaning(split) == "train" for name in _filled(one.classes)
    }
    if not trained:
        return splits
    return {
        name: one
        if not one.labelled or trained & _filled(one.classes)
        else Split(one.folder, {}, sorted([*one.loose, *one.pictures]), tuple(sorted(_filled(one.classes))))
        for name, one in splits.items()
    }


def _filled(classes: dict[str, list[str]]) -> set[str]:
    return {name for name, pictures in classes.items() if pictures}


class _Walk:
    """Reads folders, sorted whatever the file system says, and counts the files that it ignores."""

    def __init__(self) -> None:
        self.ignored: Counter[str] = Counter()
        self.dropped: list[str] = []

    def scan(self, folder: str) -> tuple[list[str], list[str]]:
        """The pictures straight in a folder, and its folders; links are what they lead to."""
        pictures, folders = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    suffix = os.path.splitext(entry.name)[1].lower()
                    if entry.name.startswith(".") or entry.name in _LEFT_BEHIND:
                        self.ignored["hidden"] += 1
                    elif _is_folder(entry):
                        folders.append(entry.path)
                    elif suffix in SUFFIXES:
                        pictures.append(entry.path)
                    else:
                        kind = entry.name if entry.name == _CAPTIONS else suffix or "without suffix"
                        self.ignored[kind] += 1
        except OSError as error:
            raise ArgumentError(
                "data", f"cannot read the folder {folder}: {error.strerror or error}"
            ) from None
        return pictures, folders

    def split(self, folder: str, seen: set[tuple[int, int]]) -> Split:
        """A folder as if it were a split; `seen` are the folders that it lies in."""
        _see(folder, seen)
        loose, folders = self.scan(folder)
        return Split(folder, self.each(folders, lambda inner: self.below(inner, seen), bool), loose)

    def below(self, folder: str, seen: set[tuple[int, int]]) -> list[str]:
        """The pictures in a folder and in all folders below it, sorted; `seen` grows by these folders."""
        found, waiting = [], [folder]
        while waiting:
            current = waiting.pop()
            _see(current, seen)
            pictures, folders = self.scan(current)
            found += pictures
            waiting += folders
        return sorted(found)

    def each(self, folders: list[str], read: Callable[[str], T], full: Callable[[T], object]) -> dict[str, T]:
        """What `read` finds in folders, by name, without those where it found other files only."""
        found: dict[str, T] = {}
        for folder in folders:
            before = self.ignored.total()
            inside = read(folder)
            # Names that look alike are the same: file systems differ in how they write an é.
            name = unicodedata.normalize("NFC", os.path.basename(folder))
            name = os.fsencode(name).decode("utf-8", "backslashreplace")
            if name in found:
                raise ArgumentError("data", f"two folders beside {folder} have its name in another encoding")
            if full(inside) or self.ignored.total() == before:
                found[name] = inside
            else:
                self.dropped.append(name)
        return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _see(folder: str, seen: set[tuple[int, int]]) -> None:
    """Raise ValueError if a folder was seen already, which only a link can lead to."""
    identity = _identity(folder)
    if identity in seen:
        raise ArgumentError(
            "data", f"the link {folder} leads in a circle, or to a folder that is read already; remove it"
        )
    seen.add(identity)


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
