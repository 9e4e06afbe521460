"""The one reader of pictures: every kind of file, from folders, tables and as `purify` reads it."""

from __future__ import annotations

import io
import os
import re
import shlex
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import diffproof as dp
from diffproof.cli.main import run
from diffproof.data.images import ImageData
from diffproof.pictures import read_picture, save_picture
from helpers.runs import rows

RANDOM = np.random.default_rng(1)
COLOURS = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREYS = COLOURS[..., 0].copy()
ALPHA = RANDOM.integers(0, 256, (6, 9), dtype=np.uint8)
DEEP = RANDOM.integers(0, 2**16, (6, 9), dtype=np.uint16)
DEEP[0, :3] = 0, 65535, 40_000
# Smooth, for what JPEG loses.
SMOOTH = np.stack(np.broadcast_arrays(*np.ix_(range(16), range(24)), 0), 2) * (9, 6, 0) + (40, 60, 90)
SMOOTH = SMOOTH.astype(np.uint8)
BLACK = np.maximum(SMOOTH[..., :1], 128)
PALETTE = Image.fromarray(COLOURS).quantize(8)
# What the palette's picture shows, by its table.
TABLE = np.array(PALETTE.getpalette(), dtype=np.uint8).reshape(-1, 3)
SHOWN = TABLE[np.asarray(PALETTE)]


class Case(NamedTuple):
    """A file's ending and bytes; its pixels, H×W×3 or H×W if it is grey, and by how much each may differ."""

    suffix: str
    content: bytes
    pixels: np.ndarray
    tolerance: float = 0


def saved(image: Any, kind: str = "png", **options: Any) -> bytes:
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def two() -> dict[str, Any]:
    """Options of Pillow for a file with a second picture."""
    return {"save_all": True, "append_images": [Image.fromarray(255 - SMOOTH)]}


def png(
    pixels: np.ndarray, bits: int, colour: int, size: tuple[int, int] | None = None, **chunks: bytes
) -> bytes:
    """A PNG file by its specification: rows of packed samples, without a filter."""

    def chunk(name: str, content: bytes) -> bytes:
        body = name.encode() + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in pixels]
    else:
        flat = pixels.reshape(len(pixels), -1)[..., None].astype(np.uint8)
        rows = [np.packbits(np.unpackbits(row, axis=1)[:, 8 - bits :]).tobytes() for row in flat]
    width, height = size or (pixels.shape[1], pixels.shape[0])
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    middle = b"".join(chunk(name, content) for name, content in chunks.items())
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk("IHDR", head) + middle + chunk("IDAT", packed) + chunk("IEND", b"")


def tiff(pixels: bytes, bits: int, white_is_zero: bool = False, sample_format: int = 1) -> bytes:
    """A grey TIFF of 9×6 by its specification: one strip of packed samples."""
    entries = {
        256: 9, 257: 6, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 134, 277: 1, 278: 6,
        279: len(pixels), 339: sample_format,
    }  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    # The samples begin behind 8 bytes, the table's length, 10 entries of 12 bytes and its end.
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + pixels


def packed_12(pixels: np.ndarray) -> bytes:
    """Samples of 12 bits, rows filled up to whole bytes."""
    rows = ["".join(f"{value:012b}" for value in row) + "0000" for row in pixels.tolist()]
    return b"".join(int(row, 2).to_bytes(14, "big") for row in rows)


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha / 255 if pixels.ndim == 2 else alpha[..., None] / 255
    return pixels * share + 255 * (1 - share)


def oriented(orientation: int, kind: str = "png", **options: Any) -> bytes:
    """COLOURS, stored so that it is upright for who turns it by this EXIF orientation (tag 0x0112)."""
    stored = {
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.swapaxes(0, 1),
        # Its first row is to be the right side: a quarter turn to the left, to be undone to the right.
        6: np.rot90(COLOURS, 1),
        7: COLOURS[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(COLOURS, -1),
    }
    return saved(stored.get(orientation, COLOURS), kind, exif=exif(orientation), **options)


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def keyed(pixels: np.ndarray, value: Any) -> np.ndarray:
    """Pixels, white where they have this value."""
    same = (pixels == value).all(-1) if pixels.ndim == 3 else pixels == value
    return np.where(same[..., None] if pixels.ndim == 3 else same, 255, pixels)


def luminous(pixels: np.ndarray) -> np.ndarray:
    """YCbCr of RGB, 8 bits a channel (JFIF 1.02)."""
    red, green, blue = pixels.astype(float).transpose(2, 0, 1)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    return np.stack([y, 128 + (blue - y) / 1.772, 128 + (red - y) / 1.402], 2).round().astype(np.uint8)


def of_lab(pixels: np.ndarray) -> np.ndarray:
    """sRGB of CIELAB at D50, 8 bits a channel (CIE 15; ICC.1, Bradford's matrix; IEC 61966-2-1)."""
    lightness, a, b = pixels.astype(float).transpose(2, 0, 1)
    f = (lightness * 100 / 255 + 16) / 116
    f = np.stack([f + (a - 128) / 500, f, f - (b - 128) / 200], 2)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1, 0.8249)
    rows = ((3.13386, -1.61687, -0.49061), (-0.97877, 1.91614, 0.03345), (0.07195, -0.22899, 1.40524))
    linear = xyz @ np.array(rows).T
    curved = 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055
    shown: np.ndarray = 255 * np.where(linear > 0.0031308, curved, 12.92 * linear)
    return shown


# A file holds a and b with a sign. All are within sRGB's gamut.
SIGNED = np.array([0, 128, 128], dtype=np.uint8)
LAB = RANDOM.integers((90, 118, 118), (200, 138, 138), (6, 9, 3)).astype(np.uint8)
FOUR = RANDOM.integers(0, 16, (6, 9), dtype=np.uint8)
TWO = RANDOM.integers(0, 4, (6, 9), dtype=np.uint8)
INKS = RANDOM.integers(0, 256, (6, 9, 4), dtype=np.uint8)
INKED = (255 - INKS[..., :3].astype(float)) * (255 - INKS[..., 3:].astype(float)) / 255
DEEP_COLOURS = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]], 2)

CASES = {
    **{f"EXIF orientation {i}": Case("png", oriented(i), COLOURS) for i in range(10)},
    "EXIF orientation 6 of WebP": Case("webp", oriented(6, "webp", lossless=True), COLOURS),
    "EXIF orientation 8 of TIFF": Case("tiff", oriented(8, "tiff"), COLOURS),
    "EXIF orientation 6 of grey": Case("png", saved(np.rot90(GREYS, 1), exif=exif(6)), GREYS),
    "EXIF orientation 3 of 16 bits": Case(
        "png", saved(DEEP[::-1, ::-1], exif=exif(3)), DEEP / 257, 0.5
    ),
    "RGB": Case("png", saved(COLOURS), COLOURS),
    "BMP": Case("bmp", saved(COLOURS, "bmp"), COLOURS),
    "TIFF": Case("tiff", saved(COLOURS, "tiff"), COLOURS),
    "PPM": Case("ppm", saved(COLOURS, "ppm"), COLOURS),
    "WebP": Case("webp", saved(COLOURS, "webp", lossless=True), COLOURS),
    "JPEG": Case("jpg", saved(SMOOTH, "jpeg", quality=100, subsampling=0), SMOOTH, 3),
    "grey": Case("png", saved(GREYS), GREYS),
    "grey JPEG": Case("jpg", saved(SMOOTH[..., 0], "jpeg", quality=100), SMOOTH[..., 0], 3),
    "grey PGM": Case("pgm", saved(GREYS, "ppm"), GREYS),
    "1 bit": Case("png", saved(Image.fromarray(GREYS > 127)), 255 * (GREYS > 127)),
    "2 bits": Case("png", png(TWO, 2, 0), TWO * 85),
    "4 bits": Case("png", png(FOUR, 4, 0), FOUR * 17),
    "16 bits": Case("png", saved(DEEP), DEEP / 257, 0.5),
    "16 bits by hand": Case("png", png(DEEP, 16, 0), DEEP / 257, 0.5),
    "16 bits, TIFF": Case("tif", saved(DEEP, "tiff"), DEEP / 257, 0.5),
    "16 bits, big-endian TIFF": Case(
        "tif", saved(Image.frombytes("I;16B", (9, 6), DEEP.astype(">u2").tobytes()), "tiff"), DEEP / 257, 0.5
    ),
    "16 bits, TIFF by hand": Case("tif", tiff(DEEP.astype("<u2").tobytes(), 16), DEEP / 257, 0.5),
    "16 bits, 0 is white": Case(
        "tif", tiff(DEEP.astype("<u2").tobytes(), 16, white_is_zero=True), 255 - DEEP / 257, 0.5
    ),
    "8 bits, 0 is white": Case("tif", tiff(GREYS.tobytes(), 8, white_is_zero=True), 255 - GREYS),
    "12 bits": Case("tif", tiff(packed_12(DEEP // 16), 12), DEEP // 16 / 4095 * 255, 0.5),
    "16 bits, PGM": Case("pgm", b"P5 9 6 65535\n" + DEEP.astype(">u2").tobytes(), DEEP / 257, 0.5),
    "16 bits, one level transparent": Case(
        "png",
        png(DEEP, 16, 0, tRNS=struct.pack(">H", 40_000)),
        np.where(DEEP == 40_000, 255, DEEP / 257),
        0.5,
    ),
    # Pillow keeps the upper byte of these, not the nearest.
    "16 bits, RGB": Case("png", png(DEEP_COLOURS, 16, 2), DEEP_COLOURS // 256),
    "RGBA": Case("png", saved(np.dstack([COLOURS, ALPHA])), over_white(COLOURS, ALPHA), 1),
    "RGBA, WebP": Case(
        "webp",
        saved(np.dstack([COLOURS, ALPHA]), "webp", lossless=True, exact=True),
        over_white(COLOURS, ALPHA),
        1,
    ),
    "all transparent": Case("png", saved(np.dstack([COLOURS, 0 * ALPHA])), np.full((6, 9, 3), 255)),
    "grey with alpha": Case("png", png(np.dstack([GREYS, ALPHA]), 8, 4), over_white(GREYS, ALPHA), 1),
    "RGB with a transparent colour": Case(
        "png", png(COLOURS, 8, 2, tRNS=struct.pack(">3H", *COLOURS[2, 3])), keyed(COLOURS, COLOURS[2, 3])
    ),
    "grey with a transparent level": Case(
        "png", png(GREYS, 8, 0, tRNS=struct.pack(">H", GREYS[2, 3])), keyed(GREYS, GREYS[2, 3])
    ),
    "2 bits with a transparent level": Case(
        "png", png(TWO, 2, 0, tRNS=struct.pack(">H", TWO[2, 3])), keyed(TWO, TWO[2, 3]).clip(0, 3) * 85
    ),
    "4 bits with a transparent level": Case(
        "png", png(FOUR, 4, 0, tRNS=struct.pack(">H", FOUR[2, 3])), keyed(FOUR, FOUR[2, 3]).clip(0, 15) * 17
    ),
    "1 bit with a transparent level": Case(
        "png", png(GREYS > 127, 1, 0, tRNS=b"\0\0"), np.full((6, 9), 255)
    ),
    "palette": Case("png", saved(PALETTE), SHOWN),
    "palette, BMP": Case("bmp", saved(PALETTE, "bmp"), SHOWN),
    "palette, GIF": Case("gif", saved(PALETTE, "gif"), SHOWN),
    "palette of 4": Case(
        "png", png(TWO, 2, 3, PLTE=TABLE[:4].tobytes()), TABLE[TWO]
    ),
    "palette with a transparent entry": Case(
        "png", saved(PALETTE, transparency=2), np.where((np.asarray(PALETTE) == 2)[..., None], 255, SHOWN)
    ),
    "palette with alphas": Case(
        "png",
        png(np.asarray(PALETTE), 8, 3, PLTE=TABLE.tobytes(), tRNS=bytes(range(0, 256, 32))),
        over_white(SHOWN, 32 * np.asarray(PALETTE)),
        1,
    ),
    "palette of GIF with a transparent entry": Case(
        "gif",
        saved(PALETTE, "gif", transparency=2),
        np.where((np.asarray(PALETTE) == 2)[..., None], 255, SHOWN),
    ),
    "palette of greys": Case(
        "png",
        png(TWO, 2, 3, PLTE=bytes([0] * 3 + [50] * 3 + [99] * 3 + [255] * 3)),
        np.repeat(np.array([0, 50, 99, 255])[TWO][..., None], 3, 2),
    ),
    "CMYK": Case("tiff", saved(Image.fromarray(INKS, "CMYK"), "tiff"), INKED, 1),
    "CMYK, JPEG": Case(
        "jpg",
        saved(Image.fromarray(255 - np.dstack([SMOOTH, BLACK]), "CMYK"), "jpeg", quality=100),
        SMOOTH / 255.0 * BLACK,
        6,
    ),
    "YCbCr": Case("tiff", saved(Image.fromarray(luminous(SMOOTH), "YCbCr"), "tiff"), SMOOTH, 3),
    "LAB": Case("tiff", saved(Image.fromarray(LAB ^ SIGNED, "LAB"), "tiff"), of_lab(LAB), 2),
    "JPEG called PNG": Case("png", saved(SMOOTH, "jpeg", quality=100, subsampling=0), SMOOTH, 3),
    "PNG called JPEG": Case("jpg", saved(COLOURS), COLOURS),
    "MPO": Case(
        "jpg",
        saved(SMOOTH, "mpo", **two(), quality=100, subsampling=0),
        SMOOTH,
        3,
    ),
    "GIF of one frame": Case("gif", saved(Image.fromarray(GREYS), "gif"), GREYS),
}  # fmt: skip


def eight_bits(image: Tensor) -> np.ndarray:
    """H×W×C whole numbers of C×H×W in [0, 1]."""
    values = image.permute(1, 2, 0).double().numpy() * 255
    assert np.abs(values - values.round()).max() < 1e-4
    return values.round().astype(int)


def in_colour(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels


def difference(image: Tensor, pixels: np.ndarray) -> float:
    """The largest, where both have one shape."""
    values = eight_bits(image)
    assert values.shape == pixels.shape
    return float(np.abs(values - pixels).max())


def pictures_in(folder: Path, **contents: bytes) -> Path:
    """Files of a class each: a/0.png for a_png."""
    for name, content in contents.items():
        label, suffix = name.split("_")
        (folder / label).mkdir(parents=True)
        (folder / label / f"0.{suffix}").write_bytes(content)
    return folder


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_kinds_of_pictures(tmp_path: Path, case: Case) -> None:
    folder = pictures_in(tmp_path / "d", **{f"a_{case.suffix}": case.content, "b_png": saved(COLOURS)})
    # Beside a picture with colours every one has three channels.
    assert difference(dp.load_data(str(folder)).pixels[0], in_colour(case.pixels)) <= case.tolerance
    path = folder / "a" / f"0.{case.suffix}"
    assert difference(read_picture(path, 3), in_colour(case.pixels)) <= case.tolerance
    if case.pixels.ndim == 2 and case.suffix != "gif":
        # Alone, a grey one has one.
        alone = dp.load_data(str(pictures_in(tmp_path / "e", **{f"a_{case.suffix}": case.content})))
        assert difference(alone.images[0], case.pixels[..., None]) <= case.tolerance


@pytest.mark.slow
def test_kinds_of_pictures_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    pandas = pytest.importorskip("pandas")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"bytes": case.content, "path": None} for case in CASES.values()]
    pandas.DataFrame({"image": rows, "label": range(len(rows))}).to_parquet(tmp_path / "d.parquet")
    data = dp.load_data(str(tmp_path / "d.parquet"))
    for index, (name, case) in enumerate(CASES.items()):
        assert difference(data.pixels[index], in_colour(case.pixels)) <= case.tolerance, name


PHOTO = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)
BOMB = png(np.zeros((1, 1)), 8, 0, size=(40_000, 40_000))

UNREADABLE = {
    "GIF animation": ("gif", saved(SMOOTH, "gif", **two()), "has 2 frames"),
    "WebP animation": ("webp", saved(SMOOTH, "webp", **two()), "has 2 frames"),
    "PNG animation": ("png", saved(SMOOTH, "png", **two()), "has 2 frames"),
    "TIFF of two pages": ("tiff", saved(SMOOTH, "tiff", **two()), "has 2 frames"),
    "PNG cut short": ("png", saved(PHOTO)[:-2000], "cannot be decoded"),
    "JPEG cut short": ("jpg", saved(PHOTO, "jpeg")[:-500], "cannot be decoded: image file is truncated"),
    "WebP cut short": ("webp", saved(PHOTO, "webp")[:-500], "cannot be decoded"),
    "TIFF cut short": ("tif", saved(PHOTO, "tiff")[:5000], "cannot be decoded"),
    "no byte": ("png", b"", "is empty; download the file itself"),
    "Git LFS pointer": (
        "png",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "is a Git LFS pointer in place of the file; fetch it with `git lfs pull`",
    ),
    "text": ("png", b"no picture at all", "cannot be decoded: cannot identify image file"),
    "web page": ("jpg", b"<!DOCTYPE html><html>", "is an HTML page, perhaps in place of a download"),
    "header alone": ("png", saved(COLOURS)[:33], "cannot be decoded"),
    "40,000 pixels a side": ("png", BOMB, "cannot be decoded: Image size (1600000000 pixels) exceeds limit"),
    "floats": ("tiff", saved(GREYS.astype(np.float32), "tiff"), "has the mode 'F', expected one of 8 or "),
    "signed": ("tiff", tiff(GREYS.tobytes(), 8, sample_format=2), "has pixels with a sign, expected none"),
    "16 bits, a colour transparent": (
        "png",
        png(DEEP_COLOURS, 16, 2, tRNS=struct.pack(">3H", *DEEP_COLOURS[2, 3])),
        "has 16 bits a channel and a transparent colour, expected one of them",
    ),
    "32 bits": ("tiff", saved(GREYS.astype(np.int32), "tiff"), "has the mode 'I', expected one of 8 or "),
}  # fmt: skip


@pytest.mark.parametrize(("suffix", "content", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_pictures_that_cannot_be_read(tmp_path: Path, suffix: str, content: bytes, message: str) -> None:
    folder = pictures_in(tmp_path / "d", **{f"a_{suffix}": content, "b_png": saved(COLOURS)})
    data, path = dp.load_data(str(folder)), folder / "a" / f"0.{suffix}"
    # Its neighbour is not touched.
    assert difference(data.pixels[1], COLOURS) == 0
    reads: dict[str, Callable[[], Tensor]] = {
        "data": lambda: data.pixels[0],
        "pictures": lambda: read_picture(path, 3),
    }
    for argument, read in reads.items():
        with pytest.raises(ValueError, match=f"^{argument}: {re.escape(f'{path} {message}')}") as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp", "tiff", "ppm"])
def test_no_beginning_of_a_file_is_another_picture(kind: str) -> None:
    whole = saved(PHOTO[:20, :20], kind)
    expected, refused = read_picture(whole, 3, name="cut"), 0
    for size in range(0, len(whole), 1 + len(whole) // 150):
        try:
            image = read_picture(whole[:size], 3, name="cut")
        except ValueError:
            refused += 1
        else:
            # What is missing may be no more than the mark of the end.
            assert torch.equal(image, expected)
    assert refused > 70


def fifo(path: Path) -> None:
    os.mkfifo(path)


def broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (fifo, "{} is a pipe, expected a file"),
        (device, "{} is a device, expected a file"),
        (broken_link, "broken link: {} leads to no file"),
        (link_to_itself, "{} cannot be decoded: Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    folder = pictures_in(tmp_path / "d", b_png=saved(COLOURS))
    (folder / "a").mkdir()
    make(folder / "a" / "0.png")
    told = f"data: {message.format(folder / 'a' / '0.png')}; --skip-unreadable leaves such pictures out"
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        dp.load_data(str(folder)).pixels[0]


# Channels


@pytest.mark.parametrize(
    ("pictures", "channels"),
    [
        ((GREYS, GREYS), 1),
        ((GREYS, COLOURS), 3),
        ((COLOURS, GREYS), 3),
        ((GREYS, GREYS > 127, DEEP), 1),
        ((GREYS, GREYS, GREYS, COLOURS), 3),
        # As the files say: equal channels are three all the same.
        ((in_colour(GREYS), GREYS), 3),
    ],
    ids=["grey", "grey-colour", "colour-grey", "grey-bits-deep", "last-colour", "equal"],
)
def test_a_set_is_grey_if_every_picture_is(
    tmp_path: Path, pictures: tuple[np.ndarray, ...], channels: int
) -> None:
    folder = pictures_in(tmp_path / "d", **{f"{'abcd'[i]}_png": saved(one) for i, one in enumerate(pictures)})
    data = dp.load_data(str(folder))
    assert data.image_shape == (channels, 6, 9)
    assert data.images.shape == (len(pictures), channels, 6, 9)
    # A part of a set is as the whole set.
    assert dp.load_data(str(folder), limit=1).image_shape == (channels, 6, 9)
    assert data.with_channels(3).images.shape == (len(pictures), 3, 6, 9)
    first = in_colour(pictures[0])
    assert difference(data.with_channels(3).images[0], first) == 0


def test_channels_of_networks(tmp_path: Path) -> None:
    folder = pictures_in(tmp_path / "d", a_png=saved(in_colour(GREYS)), b_png=saved(COLOURS))
    data = dp.load_data(str(folder)).with_channels(1)
    assert difference(data.pixels[0], GREYS[..., None]) == 0
    with pytest.raises(ValueError, match=r"^data: .*/b/0.png has colours, expected a grey picture$"):
        data.pixels[1]

    class Network:
        def __init__(self, **said: object) -> None:
            self.__dict__ |= said

    whole = dp.load_data(str(folder))
    for networks, channels in (
        ((Network(), None), 3),
        ((Network(image_shape=None, channels=None), Network(image_shape=(1, 6, 9))), 1),
        ((Network(image_shape=None, channels=1), Network(image_shape=(3, 6, 9))), 1),
        ((Network(image_shape=(3, 6, 9)),), 3),
    ):
        assert whole.fitting(*networks).image_shape[0] == channels


def test_channels_of_images_in_memory() -> None:
    grey, labels = torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)
    data = ImageData("few", "all", grey, labels, ["one"])
    assert torch.equal(data.with_channels(3).images, grey.repeat(1, 3, 1, 1))
    assert torch.equal(data.select([2]).with_channels(3).with_channels(1).images, grey[2:])
    colours = ImageData("few", "all", torch.rand(3, 3, 2, 2), labels, ["one"])
    with pytest.raises(ValueError, match=r"^data: the images have colours, expected grey ones$"):
        colours.with_channels(1)


# Leaving out what cannot be read


def test_unreadable_pictures_are_left_out_up_front(tmp_path: Path) -> None:
    folder = pictures_in(
        tmp_path / "d",
        a_png=saved(GREYS),
        b_png=saved(PHOTO)[:-2000],
        c_png=saved(COLOURS),
        d_gif=saved(SMOOTH, "gif", **two()),
        e_png=saved(255 - COLOURS),
    )
    data = dp.load_data(str(folder), skip_unreadable=True)
    assert (data.labels.tolist(), data.class_names) == ([0, 2, 4], tuple("abcde"))
    assert [
        difference(image, pixels)
        for image, pixels in zip(data.images, (in_colour(GREYS), COLOURS, 255 - COLOURS), strict=True)
    ] == [0, 0, 0]
    assert "; 2 unreadable pictures of 5 left out: " in data.layout
    assert f"{folder}/b/0.png cannot be decoded: image file is truncated, " in data.layout
    assert data.layout.endswith(f"{folder}/d/0.gif has 2 frames, expected one picture")
    # Indices count all pictures.
    chosen = dp.load_data(str(folder), indices="1:4", skip_unreadable=True)
    assert (chosen.labels.tolist(), "2 unreadable pictures of 3 left out" in chosen.layout) == ([2], True)
    # Nothing to leave out is nothing to say.
    assert "left out" not in dp.load_data(str(folder), indices="0,2", skip_unreadable=True).layout
    with pytest.raises(ValueError, match=r"^data: none of 2 pictures of d can be read$"):
        dp.load_data(str(folder), indices="1,3", skip_unreadable=True)
    # Colours are no damage.
    grey = dp.load_data(str(folder), indices="0,2").with_channels(1)
    with pytest.raises(ValueError, match=r"has colours, expected a grey picture$"):
        grey.unreadable([0, 1])


@pytest.mark.slow
def test_a_run_that_leaves_out_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = dp.load_data("digits", limit=4)
    folder = tmp_path / "d"
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    paths = [folder / str(int(label)) / f"{i}.png" for i, label in enumerate(labels)]
    for path, image in zip(paths, images, strict=True):
        save_picture(path, image)
    whole = sorted(paths)[1].read_bytes()
    sorted(paths)[1].write_bytes(whole[:60])
    words = f"certify --data {folder} --denoiser digits --classifier digits --defense dds --sigma 0.25"
    command = [*shlex.split(f"{words} --n0 5 --n 20 --out"), str(tmp_path / "run")]
    assert run(command) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith(f"diffproof: error: --data: {sorted(paths)[1]} cannot be decoded: ")
    assert line.endswith("; --skip-unreadable leaves such pictures out")
    command.append("--skip-unreadable")
    assert run(command) == 0
    assert "; 1 unreadable picture of 4 left out: " in capsys.readouterr().err
    assert [index for index, *_ in rows(tmp_path / "run")] == [0, 2, 3]
    assert "skip_unreadable: true" in (tmp_path / "run" / "settings.yaml").read_text()
    assert run(["verify", str(tmp_path / "run"), "--resample", "1", "--trust"]) == 0
    # Repaired, it is added.
    sorted(paths)[1].write_bytes(whole)
    assert run(command) == 0
    assert [index for index, *_ in rows(tmp_path / "run")] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_run_takes_pictures_as_its_networks_do(tmp_path: Path) -> None:
    images, labels = dp.load_data("digits", limit=4)
    for label in range(10):
        for kind in ("grey", "mixed"):
            (tmp_path / kind / str(label)).mkdir(parents=True)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        for kind in ("grey", "mixed"):
            colours = kind == "mixed" and i % 2
            save_picture(
                tmp_path / kind / str(int(label)) / f"{i}.png", image.expand(3, 8, 8) if colours else image
            )
    words = "--denoiser digits --classifier digits --defense dds --sigma 0.25 --n0 5 --n 20"
    for kind in ("grey", "mixed"):
        data, out = tmp_path / kind, tmp_path / f"{kind}-run"
        assert run(["certify", "--data", str(data), *shlex.split(words), "--out", str(out)]) == 0
    assert len(rows(tmp_path / "grey-run")) == 4
    assert rows(tmp_path / "mixed-run") == rows(tmp_path / "grey-run")
