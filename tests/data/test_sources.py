"""Sources of data that are no files of data, or name files that are none of theirs: one line, at once."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffproof as dp
from diffproof.pictures import UnreadableError, read_picture
from helpers.command_line import Refused


def pipe(path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    return str(path)


@pytest.mark.parametrize("source", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_devices(source: str) -> None:
    with pytest.raises(ValueError, match=f"^data: {source} is a device, expected a file$"):
        dp.load_data(source)


@pytest.mark.parametrize("name", ["pipe", "a.npz", "a.parquet", "folder/a.parquet", "link"])
def test_pipes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    made = pipe(tmp_path / "behind" if name == "link" else path)
    if name == "link":
        path.symlink_to(made)
    source = path.parent if path.parent != tmp_path else path
    with pytest.raises(ValueError, match=f"^data: {path} is a pipe, expected a file$"):
        dp.load_data(str(source))


@pytest.mark.parametrize("flag", ["--data", "--test-data", "--extra-data"])
def test_the_flag_is_named(refused: Refused, flag: str) -> None:
    line = ["train", "denoiser", "--out", "w.safetensors", flag, "/dev/zero"]
    line += [] if flag == "--data" else ["--data", "digits"]
    assert refused(line) == f"{flag}: /dev/zero is a device, expected a file"


@pytest.mark.parametrize("kind", ["absolute", "above", "by a link"])
def test_rows_that_name_files_elsewhere(tmp_path: Path, kind: str) -> None:
    pandas = pytest.importorskip("pandas")
    folder = tmp_path / "data"
    folder.mkdir()
    for path in (tmp_path / "mine.png", folder / "beside.png"):
        Image.new("L", (4, 4), 51).save(path)
    (folder / "link.png").symlink_to(tmp_path / "mine.png")
    named = {"absolute": str(tmp_path / "mine.png"), "above": "../mine.png", "by a link": "link.png"}[kind]
    rows = [{"bytes": None, "path": path} for path in ("beside.png", str(folder / "beside.png"), named)]
    pandas.DataFrame({"image": rows, "label": [0, 1, 0]}).to_parquet(folder / "few.parquet")
    data = dp.load_data(str(folder / "few.parquet")).with_channels(1)
    for index in (0, 1):
        assert data.pixels[index].unique().tolist() == [pytest.approx(0.2)]
    message = f"image 2 of few.parquet is the path {named}, expected its bytes or a file in {folder}"
    with pytest.raises(ValueError, match=f"^data: {re.escape(message)}$"):
        data.pixels[2]


PARQUET = "cannot read {}: it is no parquet file; expected a .parquet or .npz file, or a folder of class"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"image,label", PARQUET),
        ("a.parquet", b"\x89PNG", PARQUET),
        (
            "a.npy",
            b"\x93NUMPY\x01",
            "{} is a single array; np.savez(FILE, images=…, labels=…) writes an .npz",
        ),
        ("a.parquet", b"", "cannot read {}: it is empty; download the file itself"),
        (
            "a.parquet",
            b"version https://git-lfs.github.com/spec/v1",
            "cannot read {}: it is a Git LFS",
        ),
        ("a.npz", b"hello", "{} is no .npz archive"),
        ("a.npz", b"<!doctype html>", "{} is an HTML page"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^data: {re.escape(message.format(path))}"):
        dp.load_data(str(path))


def test_a_missing_folder_is_no_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^data: no such file or folder: digits/$"):
        dp.load_data("digits/")


def test_images_without_pixels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 0, 8), np.uint8), labels=np.array([0, 1]))
    with pytest.raises(ValueError, match=r"expected N×H×W, N×H×W×C or N×C×H×W, got \(2, 1, 0, 8\)$"):
        dp.load_data(str(tmp_path / "a.npz"))


def test_pictures_too_large_to_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 9_000)
    with pytest.raises(UnreadableError, match=r"a\.png cannot be decoded: Image size \(10000 pixels\)"):
        read_picture(tmp_path / "a.png", 1)
