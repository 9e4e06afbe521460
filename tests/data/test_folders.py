"""Folders of pictures: which folder is a split, which a class, and what is read from them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

import diffproof as dp
from diffproof.data.folders import find_layout, load_folder


def place(root: Path, *names: str) -> Path:
    """Files below a folder; the i-th picture has the grey level i, names that end in / are empty folders."""
    for level, name in enumerate(names):
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if name.endswith((".png", ".JPG", ".jpeg", ".bmp", ".gif")):
            kind = {".JPG": "jpeg", ".jpeg": "jpeg"}.get(path.suffix, path.suffix[1:])
            Image.new("L", (2, 2), level).save(path, format=kind)
        elif not name.endswith("/"):
            path.write_text("no picture")
    return root


class Case(NamedTuple):
    """Files, and which of them (by number) are read for which class; class names in order of labels."""

    files: tuple[str, ...]
    classes: dict[str, tuple[int, ...]]
    options: dict[str, Any] = {}  # noqa: RUF012
    split: str = "all"
    said: str = ""


CASES = {
    "plain": Case(("cat/0.png", "dog/1.png"), {"cat": (0,), "dog": (1,)}),
    "one class": Case(("cat/0.png", "cat/1.png"), {"cat": (0, 1)}),
    "nested below the class": Case(
        ("cat/0.png", "cat/a/1.png", "cat/a/b/c/2.png", "dog/x/3.png"), {"cat": (0, 1, 2), "dog": (3,)}
    ),
    "nested everywhere": Case(("cat/a/0.png", "cat/b/1.png", "dog/a/2.png"), {"cat": (0, 1), "dog": (2,)}),
    "one folder around the classes": Case(
        ("images/cat/0.png", "images/dog/1.png"),
        {"images": (0, 1)},
        said="the only class folder holds folders of pictures; are these the classes, in images?",
    ),
    "splits": Case(
        ("test/cat/0.png", "test/dog/1.png", "train/cat/2.png", "train/dog/3.png"),
        {"cat": (0,), "dog": (1,)},
        split="test",
        said="other splits: train 2",
    ),
    "splits, the other": Case(
        ("test/cat/0.png", "test/dog/1.png", "train/cat/2.png", "train/dog/3.png"),
        {"cat": (2,), "dog": (3,)},
        {"default_split": "train"},
        "train",
    ),
    "splits, nested": Case(
        ("test/cat/a/0.png", "test/dog/1.png", "train/cat/b/c/2.png"),
        {"cat": (2,), "dog": ()},
        {"split": "train"},
        "train",
        "no picture of dog",
    ),
    "splits in capitals": Case(
        ("Testing/cat/0.png", "TRAIN/cat/1.png"), {"cat": (0,)}, {"split": "test"}, "Testing"
    ),
    "other words for splits": Case(
        ("val/cat/0.png", "training/cat/1.png"), {"cat": (0,)}, {"split": "validation"}, "val"
    ),
    "one split": Case(("dev/cat/0.png", "dev/dog/1.png"), {"cat": (0,), "dog": (1,)}, split="dev"),
    "a class missing in a split": Case(
        ("test/a/0.png", "test/c/1.png", "train/a/2.png", "train/b/3.png", "train/c/4.png"),
        {"a": (0,), "b": (), "c": (1,)},
        split="test",
        said="no picture of b",
    ),
    "a split without classes beside": Case(
        ("test/0.png", "train/cat/1.png", "train/dog/2.png"),
        {"cat": (1,), "dog": (2,)},
        {"split": "train"},
        "train",
    ),
    "pictures beside class folders of a split": Case(
        ("test/cat/0.png", "test/preview.png", "train/cat/2.png"),
        {"cat": (0,)},
        split="test",
        said="1 picture beside the class folders ignored",
    ),
    "val/images, without classes": Case(
        ("train/cat/images/0.png", "train/dog/images/1.png", "val/images/2.png", "test/images/3.png"),
        {"cat": (0,), "dog": (1,)},
        {"split": "train"},
        "train",
        "other splits: test 1, val 1",
    ),
    "a class that training does not have": Case(
        ("train/a/0.png", "train/b/1.png", "val/a/2.png", "val/c/3.png"),
        {"a": (2,), "b": (), "c": (3,)},
        {"split": "val"},
        "val",
    ),
    "classes that differ in case": Case(
        ("train/A/0.png", "train/a/1.png", "val/a/2.png"), {"A": (0,), "a": (1,)}, {"split": "train"}, "train"
    ),
    "class train": Case(
        ("car/0.png", "plane/1.png", "train/2.png"), {"car": (0,), "plane": (1,), "train": (2,)}
    ),
    "class val": Case(("hill/0.png", "val/1.png"), {"hill": (0,), "val": (1,)}),
    "class dev": Case(("dev/0.png", "ops/1.png"), {"dev": (0,), "ops": (1,)}),
    "class test": Case(("exam/0.png", "test/1.png"), {"exam": (0,), "test": (1,)}),
    "class validation": Case(("validation/0.png", "x/1.png"), {"validation": (0,), "x": (1,)}),
    "classes train and test": Case(
        ("bus/0.png", "test/1.png", "train/2.png", "train/3.png"),
        {"bus": (0,), "test": (1,), "train": (2, 3)},
    ),
    "class train with folders in it": Case(
        ("car/0.png", "train/1.png", "train/steam/2.png"), {"car": (0,), "train": (1, 2)}
    ),
    "class train in splits": Case(
        ("test/car/0.png", "test/train/1.png", "train/car/2.png", "train/train/3.png"),
        {"car": (0,), "train": (1,)},
        split="test",
    ),
    "test in file names": Case(
        ("cat/test.png", "cat/x_test_1.png", "dog/train.png", "dog/val-3.png"), {"cat": (0, 1), "dog": (2, 3)}
    ),
    "train in some file names": Case(
        ("cat/a.png", "cat/b-train.png", "dog/c.png"), {"cat": (0, 1), "dog": (2,)}
    ),
    "test in class names": Case(("test_cat/0.png", "train-dog/1.png"), {"test_cat": (0,), "train-dog": (1,)}),
    "brackets": Case(
        ("a[1]/0.png", "b{2}/x[0-9].png", "c*?/2.png"), {"a[1]": (0,), "b{2}": (1,), "c*?": (2,)}
    ),
    "spaces and commas": Case((" a b/0 0.png", "c, d/1.png"), {" a b": (0,), "c, d": (1,)}),
    "unicode": Case(("猫/0.png", "Ä/äöü.png", "🐶/2.png"), {"Ä": (1,), "猫": (0,), "🐶": (2,)}),
    "decomposed unicode": Case(("e\u0301/0.png", "z/1.png"), {"z": (1,), "é": (0,)}),
    "percent and hash": Case(
        ("100%/0.png", "a#b/1.png", "c::d/2.png"), {"100%": (0,), "a#b": (1,), "c::d": (2,)}
    ),
    "captions as csv": Case(
        ("cat/0.png", "cat/metadata.csv", "dog/2.png", "metadata.csv"),
        {"cat": (0,), "dog": (2,)},
        said="other files ignored: 2 .csv",
    ),
    "captions as jsonl": Case(("cat/0.png", "cat/metadata.jsonl", "dog/2.png"), {"cat": (0,), "dog": (2,)}),
    "captions as parquet": Case(("cat/0.png", "metadata.parquet", "dog/2.png"), {"cat": (0,), "dog": (2,)}),
    "hidden files and folders": Case(
        ("cat/.1.png", ".git/0.png", "cat/2.png", ".DS_Store", "dog/.x/4.png", "dog/5.png"),
        {"cat": (2,), "dog": (5,)},
        said="other files ignored: 4 hidden",
    ),
    "other files": Case(
        ("cat/0.png", "cat/notes.txt", "Thumbs.db", "dog/3.png", "logs/run.log", "README"),
        {"cat": (0,), "dog": (3,)},
        said="other files ignored: 1 .db, 1 .log, 1 .txt, 1 without suffix",
    ),
    "capital suffixes": Case(("cat/0.JPG", "dog/1.jpeg", "dog/2.bmp"), {"cat": (0,), "dog": (1, 2)}),
    "empty class folder": Case(
        ("a/0.png", "b/", "c/2.png"), {"a": (0,), "b": (), "c": (2,)}, said="no picture of b"
    ),
    "empty folder called test": Case(("a/0.png", "c/1.png", "test/"), {"a": (0,), "c": (1,)}),
    "numbers": Case(
        ("0/0.png", "1/1.png", "10/2.png", "2/3.png"),
        {"0": (0,), "1": (1,), "2": (3,), "10": (2,)},
        said="classes in numeric order: 0, 1, 2, 10 are the labels 0 to 3",
    ),
    "numbers from 1": Case(
        ("1/0.png", "2/1.png"), {"1": (0,), "2": (1,)}, said="1, 2 are the labels 0 to 1"
    ),
    "numbers with zeros": Case(("00/0.png", "01/1.png", "02/2.png"), {"00": (0,), "01": (1,), "02": (2,)}),
    "large numbers": Case(
        ("20000000000000000000/0.png", "3/1.png"),
        {"3": (1,), "20000000000000000000": (0,)},
        said="3, 20000000000000000000 are the labels 0 to 1",
    ),
    "numbers and a name": Case(
        ("0/0.png", "10/1.png", "2/2.png", "x/3.png"), {"0": (0,), "10": (1,), "2": (2,), "x": (3,)}
    ),
    "numbers in splits": Case(
        ("test/9/0.png", "test/10/1.png", "train/9/2.png"), {"9": (0,), "10": (1,)}, split="test"
    ),
    "what systems leave behind": Case(
        ("__MACOSX/a/0.png", "@eaDir/1.png", "cat/2.png", "cat/@eaDir/3.png", "dog/4.png"),
        {"cat": (2,), "dog": (4,)},
        said="other files ignored: 3 hidden",
    ),
    "a folder of no pictures": Case(
        ("cat/0.png", "dog/1.heic", "elk/2.png"),
        {"cat": (0,), "elk": (2,)},
        said="folders without pictures ignored: dog; other files ignored: 1 .heic",
    ),
    "pictures and masks": Case(
        ("images/cat/0.png", "images/dog/1.png", "masks/cat/2.png", "masks/dog/3.png"),
        {"images": (0, 1), "masks": (2, 3)},
        said="several of these hold cat, dog; are those the classes?",
    ),
    "words that have split in them": Case(
        ("seg_test/x/0.png", "seg_train/y/1.png"),
        {"seg_test": (0,), "seg_train": (1,)},
        said="are seg_test, seg_train splits? They would be called train, test, val or the like",
    ),
    "one kind of split in the classes": Case(
        ("cat/train/0.png", "dog/train/1.png"), {"cat": (0,), "dog": (1,)}, said="several of these hold train"
    ),
    "an empty split that is not asked for": Case(
        ("test/cat/", "train/cat/1.png", "train/dog/2.png"),
        {"cat": (1,), "dog": (2,)},
        {"split": "train"},
        "train",
    ),
    "pictures in the root": Case(
        ("cat/0.png", "dog/1.png", "overview.png"),
        {"cat": (0,), "dog": (1,)},
        said="1 picture beside the class folders ignored",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_layouts(tmp_path: Path, case: Case) -> None:
    data = dp.load_data(str(place(tmp_path / "d", *case.files)), **case.options)
    assert (data.class_names, data.split) == (tuple(case.classes), case.split)
    assert data.classes_named
    found: dict[str, tuple[int, ...]] = dict.fromkeys(case.classes, ())
    for image, label in zip(data.images, data.labels, strict=True):
        found[data.class_names[int(label)]] += (round(float(image.mean()) * 255),)
    assert found == case.classes
    assert data.layout.startswith(str(tmp_path / "d"))
    assert case.said in data.layout
    assert len(data.layout.splitlines()) == 1


def link(path: Path, to: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)


def cat_dog(root: Path) -> None:
    place(root, "d/cat/0.png", "d/dog/1.png")


def linked_class(root: Path) -> None:
    place(root, "d/cat/0.png", "elsewhere/1.png")
    link(root / "d/dog", "../elsewhere")


def linked_file(root: Path) -> None:
    place(root, "d/cat/0.png", "store/x")
    Image.new("L", (2, 2), 1).save(root / "store" / "blob", format="png")
    link(root / "d/dog/a.png", "../../store/blob")


def linked_root(root: Path) -> None:
    place(root, "real/cat/0.png", "real/dog/1.png")
    link(root / "d", "real")


def linked_below_the_class(root: Path) -> None:
    place(root, "d/cat/0.png", "more/1.png")
    link(root / "d/dog/more", "../../more")


def linked_splits(root: Path) -> None:
    place(root, "store/cat/0.png", "store/dog/1.png", "d/train/cat/2.png")
    link(root / "d/test", "../store")


@pytest.mark.parametrize(
    "build",
    [linked_class, linked_file, linked_root, linked_below_the_class, linked_splits],
    ids=lambda build: build.__name__,
)
def test_links_are_followed(tmp_path: Path, build: Callable[[Path], None]) -> None:
    build(tmp_path)
    data = dp.load_data(str(tmp_path / "d"))
    assert data.class_names == ("cat", "dog")
    assert [round(float(image.mean()) * 255) for image in data.images] == [0, 1]
    assert data.labels.tolist() == [0, 1]


def circle_to_the_root(root: Path) -> None:
    cat_dog(root)
    link(root / "d/cat/up", "..")


def circle_to_the_class(root: Path) -> None:
    cat_dog(root)
    link(root / "d/cat/a/again", "..")


def circle_to_itself(root: Path) -> None:
    cat_dog(root)
    link(root / "d/dog/here", ".")


def circle_above_the_root(root: Path) -> None:
    cat_dog(root)
    link(root / "d/dog/system", "/")


def one_folder_twice(root: Path) -> None:
    cat_dog(root)
    place(root, "more/2.png")
    link(root / "d/cat/a", "../../more")
    link(root / "d/cat/b", "../../more")


def many_ways(root: Path) -> None:
    """Each of 40 folders links twice to the next: 2⁴⁰ ways to the last."""
    cat_dog(root)
    for depth in range(40):
        link(root / f"store/{depth}/a", f"../{depth + 1}")
        link(root / f"store/{depth}/b", f"../{depth + 1}")
    place(root, "store/40/2.png")
    link(root / "d/cat/in", "../../store/0")


@pytest.mark.parametrize(
    "build",
    [
        circle_to_the_root,
        circle_to_the_class,
        circle_to_itself,
        circle_above_the_root,
        one_folder_twice,
        many_ways,
    ],
    ids=lambda build: build.__name__,
)
def test_links_in_a_circle_are_refused(tmp_path: Path, build: Callable[[Path], None]) -> None:
    build(tmp_path)
    with pytest.raises(
        ValueError, match=r"^data: the link .*/d/(cat|dog)/.* leads in a circle, or to a"
    ) as caught:
        dp.load_data(str(tmp_path / "d"))
    assert len(str(caught.value).splitlines()) == 1


REFUSED = {
    "nothing": (("d/",), {}, "expected class folders with pictures in {}, got nothing"),
    "texts": (("d/a/x.md", "d/b.csv"), {}, "expected class folders with pictures in {}, got 1 .csv, 1 .md"),
    "flat": (("d/0.png", "d/1.png"), {}, "expected class folders in {}, got 2 pictures straight in it"),
    "flat with captions": (("d/0.png", "d/metadata.jsonl"), {}, "expected class folders in {}, got 1 pic"),
    "flat splits": (
        ("d/test/0.png", "d/train/1.png"),
        {},
        "expected class folders in {}/test, got 1 picture straight in it",
    ),
    "splits beside a class": (
        ("d/cat/0.png", "d/test/cat/1.png", "d/train/cat/2.png"),
        {},
        "{}/test holds folders of pictures, as a split does, but 'cat' beside it is no split",
    ),
    "splits in classes": (
        ("d/cat/test/0.png", "d/cat/train/1.png", "d/dog/train/2.png"),
        {},
        "{}/cat holds test, train, as splits are called; expected splits at the top and classes in them",
    ),
    "splits in one folder": (
        ("d/zoo/test/cat/0.png", "d/zoo/val/cat/1.png"),
        {},
        "{}/zoo holds test, val, as splits are called; expected splits at the top and classes in them; giv",
    ),
    "an empty split": (("d/test/cat/", "d/train/cat/0.png"), {}, "split: {}/test has no picture; there are"),
    "a split of other files": (("d/test/cat/x.txt", "d/train/cat/0.png"), {}, "{}/test has no picture"),
    "one number": (("d/01/0.png", "d/1/1.png"), {}, "{} has the classes '01' and '1', which are one number"),
    "a class with other spaces": (
        ("d/test/polar_bear/0.png", "d/test/dog/3.png", "d/train/polar bear/1.png", "d/train/dog/2.png"),
        {},
        "splits of {} call a class 'polar bear' and 'polar_bear'; expected one name in all",
    ),
    "labels in a file": (
        ("d/0.png", "d/metadata.csv"),
        {},
        "expected class folders in {}, got 1 picture straight in it; labels in .csv files are not read",
    ),
    "pictures and tables": (("d/cat/0.png", "d/data/x.parquet"), {}, "{} holds pictures and .parquet files"),
    "a negative number": (("d/-1/0.png", "d/0/1.png"), {}, "{} has the class -1, expected numbers ≥ 0 or "),
    "one name in two encodings": (("d/é/0.png", "d/e\u0301/1.png"), {}, "have its name in another encoding"),
    "val/images, without classes": (
        ("d/train/cat/0.png", "d/val/images/1.png"),
        {"split": "val"},
        "data: expected class folders in {}/val, got only images, which are no classes of the training split",
    ),
    "a class written in two ways": (
        ("d/train/Cat/0.png", "d/train/dog/1.png", "d/val/cat/2.png", "d/val/dog/3.png"),
        {"split": "val"},
        "data: splits of {} call a class 'Cat' and 'cat'; expected one name in all",
    ),
    "no such split": (
        ("d/test/cat/0.png", "d/train/cat/1.png"),
        {"split": "tets"},
        "split: unknown name 'tets'; did you mean test?",
    ),
    "a split where there is none": (
        ("d/cat/0.png", "d/dog/1.png"),
        {"split": "test"},
        "split: {} has no split folders, expected none, got 'test'",
    ),
    "two splits of one meaning": (
        ("d/val/cat/0.png", "d/dev/cat/1.png"),
        {"split": "validation"},
        "split: unknown name 'validation'",
    ),
    "no split of the default": (
        ("d/val/cat/0.png", "d/train/cat/1.png"),
        {},
        "split: expected one of train, val; {} has no 'test'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_layouts(
    tmp_path: Path, files: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    place(tmp_path, *files)
    with pytest.raises(ValueError, match=re.escape(message.format(tmp_path / "d"))) as caught:
        dp.load_data(str(tmp_path / "d"), **options)
    assert len(str(caught.value).splitlines()) == 1
    assert "column" not in str(caught.value)


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cat_dog(tmp_path)
    real = os.scandir

    def scandir(folder: str) -> Any:
        if folder.endswith("cat"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match=r"^data: cannot read the folder .*/d/cat: Permission denied$"):
        dp.load_data(str(tmp_path / "d"))


def test_names_that_are_no_text(tmp_path: Path) -> None:
    place(tmp_path, "d/dog/0.png")
    folder = os.fsencode(tmp_path / "d") + b"/cat\xff\x1b[31m"
    os.mkdir(folder)
    Image.new("L", (2, 2), 1).save(tmp_path / "one.png")
    os.rename(tmp_path / "one.png", folder + b"/\xfe.png")
    data = dp.load_data(str(tmp_path / "d"))
    assert data.class_names == ("cat\\xff\x1b[31m", "dog")
    assert data.images[:, 0, 0, 0].mul(255).round().tolist() == [1, 0]
    assert data.layout.isprintable()


def test_pictures_without_class_folders(tmp_path: Path) -> None:
    place(tmp_path, "d/1.png", "d/0.png", "d/metadata.csv", "s/train/x.png", "s/test/y.png")
    data = dp.load_data(str(tmp_path / "d"), labelled=False)
    assert (data.class_names, data.labels.tolist(), data.labelled) == ((), [-1, -1], False)
    assert [round(float(image.mean()) * 255) for image in data.images] == [1, 0]
    assert "2 pictures, no class folders" in data.layout
    one = dp.load_data(str(tmp_path / "s"), default_split="train", labelled=False)
    assert (len(one), one.split, round(float(one.images[0].mean()) * 255)) == (1, "train", 3)
    # Class folders give labels all the same.
    assert dp.load_data(str(place(tmp_path / "c", "a/0.png")), labelled=False).labelled


def test_the_order_is_not_the_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path, *(f"d/{name}/{i}.png" for name in ("b", "a", "c") for i in range(4)))
    expected = find_layout(tmp_path / "d")
    real = os.scandir

    class Backwards:
        def __init__(self, folder: str) -> None:
            with real(folder) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None:
            return None

    monkeypatch.setattr(os, "scandir", Backwards)
    assert find_layout(tmp_path / "d") == expected
    assert list(expected.splits["all"].classes) == ["a", "b", "c"]


def test_a_folder_of_tables_is_left_to_others(tmp_path: Path) -> None:
    place(tmp_path, "d/data/train-0.parquet", "e/dataset_dict.json", "e/cat/0.png")
    assert load_folder(tmp_path / "d", None, "test", None) is None
    assert load_folder(tmp_path / "e", None, "test", None) is None
