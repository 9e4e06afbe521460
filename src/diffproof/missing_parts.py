"""Pictures of which a part is missing, where Pillow shows something else in its place and says nothing."""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_MISSING = "a part of its data is missing"
_DAMAGED = "a part of its data is damaged"
# Of fax, whose decoder goes on with white.
_FAX = ("tiff_ccitt", "group3", "group4")
# Decoders of these leave pixels as they are where data ends; two grounds tell which.
_PAINTED = ("PNG", "TIFF", "GIF")
_GROUNDS = ((1, 178, 77, 200), (254, 77, 178, 55))
# A flat picture's file ends in zeros, too, but in a smaller share.
_SHARE = 1 / 8
# Markers of JPEG: its begin and end, that of a scan, how often it restarts; frames in several scans or of
# arithmetic coding.
_BEGIN, _END, _SCAN, _INTERVAL, _PROGRESSIVE, _ARITHMETIC = 0xD8, 0xD9, 0xDA, 0xDD, 0xC2, (0xC9, 0xCA)
_FRAMES = (0xC0, 0xC1, _PROGRESSIVE, *_ARITHMETIC)
_MARKER, _RESTART = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]"), re.compile(rb"\xff[\xd0-\xd7]")
_COEFFICIENTS = 64
# Data that is decoded only where a scan needs more than it has.
_MORE = bytes(range(251, 7, -3)) * 2
# Markers of JPEG 2000: its begin with the sizes, and a tile-part with its length.
_CODESTREAM, _TILE_PART = b"\xff\x4f\xff\x51", b"\xff\x90\x00\x0a"
# Tags of TIFF: where its strips or tiles are, how long, and their (width, height); the whole's; samples of a
# pixel, whether each has a plane of its own, and the tables that strips of JPEG share.
_PLACES = ((273, 279, (256, 278)), (324, 325, (322, 323)))
_SIZE, _SAMPLES, _PLANES, _TABLES = (256, 257), 277, 284, 347


def load_whole(image: Any, source: Path | bytes) -> None:
    """Decode a picture.

    Args:
        image: of PIL, opened and not decoded yet.
        source: what it was opened from.

    Raises:
        ValueError: a part of it is missing.
        Exception: what Pillow raises of a damaged file.
    """
    from PIL import ImageFile

    # Other code in this process may have told Pillow to say nothing.
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        if image.format in _PAINTED:
            _check_painted(image, source)
        else:
            image.load()
        check = _CHECKS.get(image.format)
        if check is not None:
            check(_content(source), image)
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def open_image(source: Path | bytes, formats: Collection[str]) -> Any:
    """A picture as PIL opens it, in one of the formats that Pillow calls so."""
    from PIL import Image

    # Without this Pillow knows few of them.
    Image.init()
    known = [one for one in formats if one in Image.OPEN]
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=known)


def _content(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


# ---- decoders that leave pixels as they are


def _check_painted(image: Any, source: Path | bytes) -> None:
    """Decode an image; ValueError where its ground is seen."""
    if image.info.get("compression") in _FAX:
        raise ValueError("a TIFF of CCITT compression does not tell missing parts; convert it, as to PNG")
    ground, is_tiff = _paint(image, _GROUNDS[0]), image.format == "TIFF"
    pixels = np.asarray(image)
    # Of a TIFF a single channel may be missing.
    seen = is_tiff or (pixels == ground).reshape(*pixels.shape[:2], -1).all(-1).any()
    if seen:
        with open_image(source, [image.format]) as other:
            _paint(other, _GROUNDS[1])
            if not np.array_equal(pixels, np.asarray(other)):
                raise ValueError(_MISSING)
    if is_tiff:
        _check_strips(image.tag_v2, None if image.info.get("compression") != "jpeg" else _content(source))


def _paint(image: Any, colours: tuple[int, ...]) -> Any:
    """Decode an image on a ground, and return a pixel of that as an array."""
    from PIL import Image

    bands = len(image.getbands())
    ink = colours[0] // 128 * 255 if image.mode == "1" else colours[0] if bands == 1 else colours[:bands]
    prepare = image.load_prepare

    def prepared() -> None:
        prepare()
        # A file that is mapped into memory may not be written to, and was found long enough.
        if getattr(image, "map", None) is None:
            # A GIF's picture may be smaller than its screen.
            box = image.tile[0][1] if image.format == "GIF" else (0, 0, *image.im.size)
            image.im.paste(ink, box)

    image.load_prepare = prepared
    image.load()
    pixel = Image.new(image.mode, (1, 1))
    pixel.im.paste(ink, (0, 0, 1, 1))
    return np.asarray(pixel)[0, 0]


def _check_strips(tags: Any, content: bytes | None) -> None:
    """Raise ValueError where a TIFF lacks a strip or tile, or data of one; `content` is given for JPEG."""
    whole = [tags[tag] for tag in _SIZE]
    planes = tags.get(_SAMPLES, 1) if tags.get(_PLANES) == 2 else 1
    tables = tags.get(_TABLES, b"")[:-2]
    for places, lengths, size in _PLACES:
        if places not in tags:
            continue
        number = math.prod(-(-all_ // tags.get(tag, all_)) for all_, tag in zip(whole, size, strict=True))
        strips = list(zip(tags[places], tags.get(lengths, tags[places]), strict=False))
        if len(strips) < number * planes or not all(map(all, strips)):
            raise ValueError(_MISSING)
        if content is None:
            continue
        for place, length in strips:
            strip = tables + content[place + 2 * bool(tables) : place + length]
            with open_image(strip, ["JPEG"]) as part:
                _check_jpeg(strip, part)


def _check_sums(content: bytes, image: Any) -> None:
    """Raise ValueError where a PNG file is not what its check sums tell; Pillow does not look at them."""
    place = 8
    while content[place + 4 : place + 8] not in (b"IEND", b""):
        end = place + 8 + int.from_bytes(content[place : place + 4])
        told = int.from_bytes(content[end : end + 4])
        if content[place + 4 : place + 8] == b"IDAT" and zlib.crc32(content[place + 4 : end]) != told:
            raise ValueError(_DAMAGED)
        place = end + 4


# ---- JPEG 2000, whose decoder leaves out tiles


def _check_tiles(content: bytes, image: Any) -> None:
    """Raise ValueError where a JPEG 2000 file lacks a tile, or a part of one."""
    start = content.index(_CODESTREAM)
    # The picture's right and lower end, its place, a tile's size, the first one's place.
    x1, y1, _, _, width, height, x0, y0 = struct.unpack_from(">8I", content, start + 8)
    parts: dict[int, list[int]] = {
        tile: [] for tile in range(-(-(x1 - x0) // width) * -(-(y1 - y0) // height))
    }
    place = content.find(_TILE_PART, start)
    while content.startswith(_TILE_PART, place):
        tile, length, _, number = struct.unpack_from(">HIBB", content, place + 4)
        parts.setdefault(tile, []).append(number)
        # A length of 0 is that of all that follows.
        place += length or len(content)
    if not all(found and len(found) >= max(found) for found in parts.values()):
        raise ValueError(_MISSING)


# ---- JPEG, whose decoder goes on with grey or zeros


def _check_jpeg(content: bytes, image: Any) -> None:
    """Raise ValueError where data of a JPEG file is missing, of which `image` is the picture."""
    more = _with_more(content)
    if more is not None:
        with open_image(more, ["JPEG"]) as other:
            if not np.array_equal(np.asarray(image), np.asarray(other)):
                raise ValueError(_MISSING)


def _with_more(content: bytes) -> bytes | None:
    """The file with more data wherever data ends; a picture that is all there stays the same.

    None for one of arithmetic coding, which reads beyond its end.

    Raises:
        ValueError: the end is missing, or a scan, or a restart interval.
    """
    pieces, end, frame, components, restarts = [], 0, 0, b"", False
    # Bits that are missing of each coefficient of each component.
    missing: dict[tuple[int, int], int] = {}
    for marker, start, head, place in _segments(content):
        pieces.append(content[start:place])
        end = place
        if marker in _FRAMES:
            frame, components = marker, head[6::3]
        if marker == _INTERVAL:
            restarts = any(head)
        if marker == _SCAN:
            number = head[0]
            first, last, bits = head[1 + 2 * number : 4 + 2 * number]
            of_scan = ((one, k) for one in head[1 : 1 + 2 * number : 2] for k in range(first, last + 1))
            missing |= dict.fromkeys(of_scan, bits & 15)
            found = _MARKER.search(content, place)
            end = found.start() if found else len(content)
            pieces.append(_scan_with_more(content[place:end], restarts))
    if not content[end:].startswith(b"\xff") and content.endswith(bytes(2)):
        raise ValueError(_MISSING)
    needed = range(_COEFFICIENTS) if frame == _PROGRESSIVE else range(1)
    if any(missing.get((one, k), 1) for one in components for k in needed):
        raise ValueError(_MISSING)
    return None if frame in _ARITHMETIC else b"".join([*pieces, bytes([0xFF, _END])])


def _segments(content: bytes) -> Iterator[tuple[int, int, bytes, int]]:
    """The segments of a JPEG file up to its end: marker, where it starts, its content, where it ends."""
    place = 0
    while (found := _MARKER.search(content, place)) is not None:
        marker, after = content[found.end() - 1], found.end()
        if marker == _END:
            return
        place = after if marker == _BEGIN else after + int.from_bytes(content[after : after + 2])
        yield marker, found.start(), content[after + 2 : place], place


def _scan_with_more(data: bytes, restarts: bool) -> bytes:
    """The data of a scan with more at the end of each restart interval, and further intervals behind."""
    numbers = [found[0][1] & 7 for found in _RESTART.finditer(data)]
    if numbers != [number % 8 for number in range(len(numbers))]:
        raise ValueError(_MISSING)
    behind = (bytes([0xFF, 0xD0 + (len(numbers) + number) % 8]) + _MORE for number in range(8))
    return _RESTART.sub(lambda found: _MORE + found[0], data) + _MORE + b"".join(behind) * restarts


# ---- WebP and AVIF, to whose decoders zeros are data


def _check_zeros(content: bytes, image: Any) -> None:
    """Raise ValueError where the rest of a file is zeros, as of a download that was not finished."""
    if len(content) - len(content.rstrip(b"\0")) > len(content) * _SHARE:
        raise ValueError(_MISSING)


_CHECKS = {
    "PNG": _check_sums,
    "JPEG": _check_jpeg,
    "MPO": _check_jpeg,
    "JPEG2000": _check_tiles,
    "WEBP": _check_zeros,
    "AVIF": _check_zeros,
}
