"""diffproof data: what it says of a whole data set, and its exit status."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffproof.cli.main import run


def place(root: Path, **pictures: tuple[str, int, int]) -> Path:
    """Pictures of a mode, width and height: "test/cat/0" is test_cat_0."""
    for name, (mode, *size) in pictures.items():
        path = root.joinpath(*name.split("_")).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (size[0], size[1])).save(path)
    return root


def said(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> list[str]:
    assert run(["data", *map(str, words)]) == status
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def test_all_splits_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    place(
        Path("d"),
        test_cat_0=("RGB", 4, 4),
        test_dog_1=("RGB", 4, 4),
        train_cat_2=("RGB", 4, 4),
        train_cat_3=("L", 6, 5),
        train_dog_4=("RGB", 6, 5),
        train_dog_5=("RGB", 6, 5),
    )
    Path("d/notes.txt").write_text("")
    Path("d/train/dog/6.png").write_bytes(Path("d/train/dog/5.png").read_bytes()[:33])
    Path("d/train/dog/7.jpg").write_text("no picture")
    lines = said(capsys, "d", status=1)
    assert lines.pop(19).startswith("  unreadable: d/train/dog/6.png cannot be decoded: ")
    assert lines == [
        "d: split test, 2 pictures in 2 class folders (other splits: train 6);",
        "    classes in alphabetical order: cat, dog are the labels 0 to 1; other files",
        "    ignored: 1 .txt",
        "   label    images  class",
        "       0         1  cat",
        "       1         1  dog",
        "  modes: 2 RGB; 3 channels where the networks do not say",
        "  size: all 4×4 (width×height)",
        "  the same as an image before: 1 in split test with another label",
        "d: split train, 6 pictures in 2 class folders (other splits: test 2);",
        "    classes in alphabetical order: cat, dog are the labels 0 to 1; other files",
        "    ignored: 1 .txt",
        "   label    images  class",
        "       0         2  cat",
        "       1         4  dog",
        "  modes: 3 RGB, 1 L; 3 channels where the networks do not say",
        "  sizes (width×height): 3 of 6×5, 1 of 4×4; --image-size brings them to one",
        "  the same as an image before: 1 in split test, 2 in split train with another",
        "    label",
        "  unreadable: d/train/dog/7.jpg cannot be decoded: cannot identify image file",
        "2 pictures cannot be read; --skip-unreadable leaves such pictures out",
    ]
    lines = said(capsys, "d", "--split", "test")
    assert [lines[0][:13], lines[-1]] == ["d: split test", "every image can be read"]
    assert sum("d: split " in line for line in lines) == 1


def test_many_classes_fit_the_width(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in range(40):
        folder = tmp_path / "d" / (f"07{'x' * 100}" if label == 7 else str(label))
        folder.mkdir(parents=True)
        for i in range(1 + label % 3):
            Image.new("L", (2, 2)).save(folder / f"{i}.png")
    lines = said(capsys, tmp_path / "d")
    (cut,) = (line for line in lines if "…" in line and line[:8].strip().isdecimal())
    assert cut.startswith("       1         2  07xxx")
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line)
    assert sum(line[:8].strip().isdecimal() for line in lines) == 30
    assert "  and 10 more classes with 1 to 3 images, 20 together" in lines
    assert "  modes: 79 L; 1 channel where the networks do not say" in lines


def test_numbers_empty_classes_and_colours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place(tmp_path / "d", **{f"{name}_0": ("RGB", 3, 3) for name in ("0", "2", "10")})
    (tmp_path / "d" / "1").mkdir()
    text = " ".join(" ".join(said(capsys, tmp_path / "d")).split())
    assert "classes in numeric order: 0, 1, 2, 10 are the labels 0 to 3; no picture of 1" in text
    assert "label images class 0 1 0 1 0 1 2 1 2 3 1 10 modes" in text


def test_pictures_without_class_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place(tmp_path / "d", a=("L", 3, 3), b=("L", 3, 3))
    text = " ".join(" ".join(said(capsys, tmp_path / "d")).split())
    assert "2 pictures, no class folders" in text
    assert "label" not in text


def test_an_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "few.npz", images=np.zeros((3, 4, 5), np.uint8), labels=[10**9, 3, 3])
    lines = said(capsys, tmp_path / "few.npz")
    assert lines[0] == "few.npz: labels are large numbers: 3, 1000000000 are taken as 0 to 1"
    assert lines[2:] == [
        "       0         2  3",
        "       1         1  1000000000",
        "  modes: 3 L; 1 channel where the networks do not say",
        "  size: all 5×4 (width×height)",
        "  the same as an image before: 2 in split all with another label",
        "every image can be read",
    ]


def test_a_name_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    place(tmp_path / "digits", cat_0=("L", 2, 2))
    assert run(["data", "digits"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("digits: 514 images in split test, 10 classes")
    assert captured.err.endswith("digits is the packaged data set; ./digits is the folder of that name\n")
    assert said(capsys, "./digits")[0] == "digits: 1 picture in 1 class folder"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["./none"], "data: no such file or folder: ./none"),
        (["empty"], "data: expected class folders with pictures in empty, got nothing"),
        (["d", "--split", "tets"], "--split: unknown name 'tets'; did you mean test?"),
    ],
)
def test_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    place(tmp_path / "d", test_cat_0=("L", 2, 2), train_cat_1=("L", 2, 2))
    assert run(["data", *words]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"diffproof: error: {message}\n")
