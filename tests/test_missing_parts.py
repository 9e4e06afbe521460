"""Pictures of which a part is missing: each kind of file that Pillow reads without a word."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from diffproof.pictures import UnreadableError, read_picture

NOISE = np.random.default_rng(1).integers(0, 256, (48, 40, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(NOISE[:6, :5]).resize((40, 48)))
GREY = np.full((48, 40, 3), 128, dtype=np.uint8)
# The colour of the ground that pictures are decoded on.
GROUND = np.full((48, 40, 3), (1, 178, 77), dtype=np.uint8)


def saved(image: Any, kind: str = "png", **options: Any) -> bytes:
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of(head: bytes, rows: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def fewer_rows(content: bytes, number: float) -> bytes:
    """A PNG file of 48 rows whose data is complete, but of so many; its palette stays."""
    data = content.index(b"IDAT")
    length = int.from_bytes(content[data - 4 : data])
    rows = zlib.decompress(content[data + 4 : data + 4 + length])
    return png_of(content[8 : data - 4], rows[: int(len(rows) // 48 * number)])


def interlaced(pixels: np.ndarray, number: int = 7) -> bytes:
    """A PNG file of Adam7: so many of seven passes, each from a column and row on by steps."""
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    rows = b"".join(
        b"\0" + row.tobytes() for x, y, right, down in passes[:number] for row in pixels[y::down, x::right]
    )
    size = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    return png_of(chunk(b"IHDR", size), rows)


def jpeg_until(share: float, image: np.ndarray = NOISE, **options: Any) -> bytes:
    """A JPEG file of which a share of the data is there, and then the mark of the end."""
    content = saved(image, "jpeg", **options)
    begin = content.index(b"\xff\xda")
    begin += 2 + int.from_bytes(content[begin + 2 : begin + 4])
    return content[: begin + int((len(content) - 2 - begin) * share)] + b"\xff\xd9"


def intervals(first: int, last: int | None) -> bytes:
    """A JPEG file without its restart intervals from one to another, to the end for None."""
    content = saved(NOISE, "jpeg", restart_marker_blocks=1, subsampling=0)
    marks = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", content)]
    return content[: marks[first]] + (b"\xff\xd9" if last is None else content[marks[last] :])


def scans(number: int) -> bytes:
    """A progressive JPEG file of which so many whole scans are there."""
    content = saved(SMOOTH, "jpeg", progressive=True)
    return content[: [found.start() for found in re.finditer(rb"\xff\xda", content)][number]] + b"\xff\xd9"


def zeros_from(share: float, kind: str, **options: Any) -> bytes:
    content = saved(NOISE, kind, **options)
    return content[: int(len(content) * share)] + bytes(len(content) - int(len(content) * share))


def tiff(
    strips: list[bytes],
    *,
    compression: int = 1,
    planes: bool = False,
    told: int | None = None,
    empty: int | None = None,
) -> bytes:
    """A TIFF file of NOISE's size by its specification, in strips of 16 rows.

    Args:
        strips: its data.
        compression: 1 for none, 7 for JPEG, 32773 for PackBits.
        planes: whether each channel has strips of its own.
        told: how many strips its tags tell of.
        empty: a strip of which they tell no place.
    """
    places = [8 + sum(map(len, strips[:number])) for number in range(len(strips))]
    lengths = [len(strip) for strip in strips]
    if empty is not None:
        places[empty] = lengths[empty] = 0
    entries: list[tuple[int, str, list[int]]] = [
        (256, "I", [40]), (257, "I", [48]), (258, "H", [8, 8, 8]), (259, "H", [compression]),
        (262, "H", [6 if compression == 7 else 2]), (273, "I", places[:told]), (277, "H", [3]),
        (278, "I", [16]), (279, "I", lengths[:told]), (284, "H", [2 if planes else 1]),
    ]  # fmt: skip
    table_at = 8 + sum(map(len, strips))
    behind = table_at + 2 + 12 * len(entries) + 4
    table, extra = struct.pack("<H", len(entries)), b""
    for tag, kind, values in entries:
        packed, place = struct.pack(f"<{len(values)}{kind}", *values), struct.pack("<I", behind + len(extra))
        table += struct.pack("<HHI", tag, {"H": 3, "I": 4}[kind], len(values))
        table += packed.ljust(4, b"\0") if len(packed) <= 4 else place
        extra += packed if len(packed) > 4 else b""
    return b"II*\0" + struct.pack("<I", table_at) + b"".join(strips) + table + bytes(4) + extra


RAW = [NOISE[row : row + 16].tobytes() for row in (0, 16, 32)]
PLANES = [NOISE[row : row + 16, :, channel].tobytes() for channel in range(3) for row in (0, 16, 32)]
# Runs of 120 literal bytes, one a row.
PACKED = [b"".join(b"\x77" + row.tobytes() for row in NOISE[start : start + 16]) for start in (0, 16, 32)]
JPEGS = [saved(NOISE[row : row + 16], "jpeg", subsampling=0) for row in (0, 16, 32)]
CUT_JPEG = JPEGS[1][: len(JPEGS[1]) * 2 // 3] + b"\xff\xd9"
TILED = saved(NOISE, "jpeg2000", no_jp2=True, tile_size=(16, 16))
TILES = [found.start() for found in re.finditer(rb"\xff\x90\x00\x0a", TILED)]
MODES = {
    "RGB": NOISE,
    "L": NOISE[..., 0],
    "1": Image.fromarray(NOISE[..., 0] > 127),
    "RGBA": Image.fromarray(np.dstack([NOISE, NOISE[..., 0]])),
    "LA": Image.fromarray(NOISE[..., :2], "LA"),
    "P": Image.fromarray(NOISE).quantize(200),
    "I;16": NOISE[..., 0].astype(np.uint16) * 257,
    "black": np.zeros((48, 40), dtype=np.uint8),
    "ground": GROUND,
}
JPEG_KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "full colours": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 2},
    "progressive restarts": {"restart_marker_rows": 1, "progressive": True},
    "grey": {"image": GREY},
    "smooth": {"image": SMOOTH},
}

SHORT: dict[str, Callable[[], bytes]] = {
    **{
        f"PNG, {mode}, {rows} rows": partial(fewer_rows, saved(image), rows)
        for mode, image in MODES.items()
        for rows in (24, 47, 47.5)
    },
    **{f"interlaced PNG, {number} passes": partial(interlaced, NOISE, number) for number in (1, 4, 6)},
    "PNG, zeros": lambda: zeros_from(0.5, "png"),
    "PNG, a flipped bit": lambda: saved(NOISE)[:3000] + bytes([saved(NOISE)[3000] ^ 1]) + saved(NOISE)[3001:],
    **{
        f"JPEG, {kind}, {share}": partial(jpeg_until, share, **options)
        for kind, options in JPEG_KINDS.items()
        for share in (0.3, 0.9, 0.99)
    },
    "JPEG, zeros": lambda: zeros_from(0.5, "jpeg"),
    "JPEG, a restart interval missing": lambda: intervals(1, 2),
    "JPEG, a restart interval empty": lambda: intervals(1, 2).replace(b"\xff\xd2", b"\xff\xd1\xff\xd2", 1),
    "JPEG, eight restart intervals missing": lambda: intervals(0, 8),
    "JPEG, all but one restart interval missing": lambda: intervals(0, None),
    **{f"JPEG, {number} scans": partial(scans, number) for number in (1, 2, 5, 9)},
    "WebP, zeros": lambda: zeros_from(0.5, "webp"),
    "lossless WebP, zeros": lambda: zeros_from(0.8, "webp", lossless=True),
    "AVIF, zeros": lambda: zeros_from(0.7, "avif"),
    "JPEG 2000, the last tile missing": lambda: TILED[: TILES[-1]] + b"\xff\xd9",
    "JPEG 2000, a tile missing": lambda: TILED[: TILES[2]] + TILED[TILES[3] :],
    "TIFF, strips missing": lambda: tiff(RAW, told=2),
    "TIFF, no place of a strip": lambda: tiff(RAW, empty=1),
    "TIFF, a channel missing": lambda: tiff(PLANES, told=6, planes=True),
    "TIFF, PackBits, no place of a strip": lambda: tiff(PACKED, compression=32773, empty=1),
    "TIFF, PackBits, strips missing": lambda: tiff(PACKED, compression=32773, told=1),
    "TIFF, JPEG cut short": lambda: tiff([JPEGS[0], CUT_JPEG, JPEGS[2]], compression=7),
    "plain PNM": lambda: b"P3\n4 4\n255\n" + b"7 " * 40,
}


@pytest.mark.parametrize("make", SHORT.values(), ids=SHORT)
def test_what_is_missing_is_told(make: Callable[[], bytes]) -> None:
    with pytest.raises(UnreadableError, match=r"^pictures: a\.x cannot be decoded: [^\n]*$"):
        read_picture(make(), 3, name="a.x")


WHOLE: dict[str, tuple[bytes, np.ndarray]] = {
    "PNG": (saved(NOISE), NOISE),
    "PNG of the ground's colour": (saved(GROUND), GROUND),
    "PNG of rows that are taken out and put back": (fewer_rows(saved(NOISE), 48), NOISE),
    "interlaced PNG": (interlaced(NOISE), NOISE),
    "TIFF": (tiff(RAW), NOISE),
    "TIFF in planes": (tiff(PLANES, planes=True), NOISE),
    "TIFF, PackBits": (tiff(PACKED, compression=32773), NOISE),
    "TIFF, LZW": (saved(NOISE, "tiff", compression="tiff_lzw"), NOISE),
    "JPEG 2000 in tiles": (saved(NOISE, "jpeg2000", tile_size=(16, 16), irreversible=False), NOISE),
    "WebP": (saved(NOISE, "webp", lossless=True), NOISE),
    "large flat WebP": (saved(np.zeros((900, 900, 3), np.uint8), "webp"), np.zeros((900, 900, 3))),
}


@pytest.mark.parametrize(("content", "pixels"), WHOLE.values(), ids=WHOLE)
def test_what_is_whole_is_read(content: bytes, pixels: np.ndarray) -> None:
    image = read_picture(content, 3, name="a.x")
    assert torch.equal(image, torch.from_numpy(pixels.transpose(2, 0, 1) / 255).float())


@pytest.mark.parametrize(
    "behind", [b"", b"a tag of the camera", bytes(5000)], ids=["nothing", "text", "zeros"]
)
@pytest.mark.parametrize("options", JPEG_KINDS.values(), ids=JPEG_KINDS)
def test_whole_jpeg_files(options: dict[str, Any], behind: bytes) -> None:
    image, *others = options.get("image", NOISE), *(one for one in options.items() if one[0] != "image")
    content = saved(image, "jpeg", **dict(others))
    pixels = np.asarray(Image.open(io.BytesIO(content))).transpose(2, 0, 1) / 255
    assert torch.equal(read_picture(content + behind, 3, name="a.x"), torch.from_numpy(pixels).float())


def test_pillow_told_to_read_what_is_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for kind in ("png", "jpeg", "gif", "tiff"):
        content = saved(NOISE, kind)
        with pytest.raises(UnreadableError):
            read_picture(content[: len(content) // 2], 3, name="a.x")
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_formats_for_which_pillow_runs_programs() -> None:
    content = saved(NOISE, "eps")
    with pytest.raises(UnreadableError, match="cannot identify image file"):
        read_picture(content, 3, name="a.png")


@pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4"])
def test_tiff_of_a_fax(compression: str) -> None:
    content = saved(MODES["1"], "tiff", compression=compression)
    with pytest.raises(UnreadableError, match=r"CCITT compression .* convert it"):
        read_picture(content, 1, name="a.x")
