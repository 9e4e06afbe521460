"""Pictures as files: decoding one, writing one, and writing a sheet of many."""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffproof.errors import ArgumentError, printable
from diffproof.files import check_file, replacing
from diffproof.formats import in_place_of_file
from diffproof.missing_parts import load_whole, open_image
from diffproof.wording import counted, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What Pillow calls the formats that are read; of others it may run programs.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
# PIL modes of 8 bits a channel, and those that carry their own transparency.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB")
_TRANSPARENT = ("LA", "PA", "RGBA")
_GREY = ("1", "L", "LA", "I")
# What a PNG's grey levels of fewer bits are multiplied by for 8.
_TO_8_BITS = {"L;2": 85, "L;4": 17}
# Tags of TIFF: bits a sample, what 0 looks like, and whether there is a sign.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2
# In pixels: the height that images of a sheet have at least, its text, and the space around that.
# Bytes that show what lies in place of a picture.
_HEAD = 256
_SMALLEST, _FONT_SIZE, _GAP = 64, 13, 6


class UnreadableError(ArgumentError):
    """The error of a picture that cannot be read."""

    def with_remedy(self, argument: str) -> UnreadableError:
        """The same of an image that an argument named, with the way to do without it."""
        return UnreadableError(argument, f"{self.problem}{_REMEDY}")

    @property
    def reason(self) -> str:
        """The problem without the remedy."""
        return self.problem.removesuffix(_REMEDY)


_REMEDY = "; --skip-unreadable leaves such pictures out"


def left_out(argument: str, reasons: Collection[str], whole: int, source: str) -> str:
    """What is said of pictures that are left out, one at least.

    Args:
        argument: what named them.
        reasons: what is wrong with each.
        whole: how many pictures there were.
        source: where.

    Raises:
        ValueError: none can be read.
    """
    if len(reasons) == whole:
        raise ArgumentError(argument, f"none of {counted(whole, 'picture')} of {source} can be read")
    return f"{counted(len(reasons), 'unreadable picture')} of {whole:,} left out: {shortened(reasons, 3)}"


def read_picture(
    source: Path | bytes, channels: int, image_size: int | None = None, *, name: str | None = None
) -> Tensor:
    """One picture, upright by its EXIF orientation, 8 bits a channel, transparency over white.

    Args:
        source: a file of PNG, JPEG, WebP, BMP, GIF, TIFF, PNM, JPEG 2000 or AVIF, of 8 or 16 bits a channel,
            or what is in one.
        channels: 3, which grey becomes too, or 1, which takes only pictures without colours.
        image_size: bring it to this size: shorter side, then the central square; None leaves it as it is.
        name: what messages call it, by default its path.

    Returns:
        C×H×W float32 in [0, 1].

    Raises:
        UnreadableError: it cannot be read, is no picture, an animation, or a part of it is missing.
        ValueError: it has colours, and channels is 1.
    """
    name = str(source) if name is None else name
    with _opened(source, name) as opened:
        # Phones append further images to an ordinary JPEG, which is then MPO.
        frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
        if frames > 1:
            raise UnreadableError("pictures", f"{name} has {frames} frames, expected one picture")
        image = _eight_bits(opened, source, name)
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        image = _over_white(image)
    image = image.convert("RGB")
    if channels == 1:
        pixels = np.asarray(image)
        if not (pixels == pixels[..., :1]).all():
            raise ArgumentError("pictures", f"{name} has colours, expected a grey picture")
        image = image.getchannel(0)
    if image_size is not None:
        image = resized(image, image_size)
    values = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
    return values[None] if channels == 1 else values.permute(2, 0, 1).contiguous()


def picture_form(source: Path | bytes, name: str) -> tuple[str, tuple[int, int]]:
    """The PIL mode of a picture and its (width, height) in the file, from its first bytes alone.

    Raises:
        UnreadableError: it cannot be read or is no picture.
    """
    with _opened(source, name) as opened:
        return str(opened.mode), opened.size


def is_grey(mode: str) -> bool:
    """Whether pictures of a PIL mode have one channel, transparency aside."""
    return mode in _GREY or mode.startswith("I;16")


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[Any]:
    """A picture that PIL has opened, and not decoded yet; its errors name it."""
    from PIL import Image, UnidentifiedImageError

    try:
        if isinstance(source, Path):
            check_file("pictures", source)
        # Pillow's warning of pictures that take gigabytes, its error of larger ones.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opening = open_image(source, _FORMATS)
        with opening as opened:
            yield opened
    except UnreadableError:
        raise
    except MemoryError:
        raise MemoryError(f"no memory for {name}") from None
    except ArgumentError as error:
        raise UnreadableError("pictures", error.problem) from None
    except Exception as error:  # whatever a decoder meets in a damaged file
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        # Pillow's own message ends in the path or in an address of memory.
        if isinstance(error, UnidentifiedImageError):
            reason = "cannot identify image file"
            if (found := in_place_of_file(_head(source))) is not None:
                raise UnreadableError("pictures", f"{name} is {found}") from None
        raise UnreadableError("pictures", f"{name} cannot be decoded: {printable(reason, 160)}") from None


def _head(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:_HEAD]
    with source.open("rb") as file:
        return file.read(_HEAD)


def _eight_bits(opened: Any, source: Path | bytes, name: str) -> Any:
    """The decoded PIL image, turned as its EXIF data says, in a mode of 8 bits a channel."""
    from PIL import Image, ImageOps

    tags = getattr(opened, "tag_v2", {})
    sixteen = opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format in ("PNG", "PPM"))
    if not sixteen and opened.mode not in _MODES:
        raise UnreadableError(
            "pictures", f"{name} has the mode {opened.mode!r}, expected one of 8 or 16 bits a channel"
        )
    if opened.mode != "LAB" and _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise UnreadableError("pictures", f"{name} has pixels with a sign, expected none below 0")
    key, raw = opened.info.get("transparency"), opened.tile[0][3] if opened.tile else None
    if raw == "RGB;16B" and key is not None:
        raise UnreadableError(
            "pictures", f"{name} has 16 bits a channel and a transparent colour, expected one of them"
        )
    if raw in _TO_8_BITS and key is not None:
        opened.info["transparency"] = key * _TO_8_BITS[raw]
    load_whole(opened, source)
    image = ImageOps.exif_transpose(opened)
    if not sixteen:
        return image
    values, largest = np.asarray(image).astype(np.int64), 2 ** tags.get(_BITS, (16,))[0] - 1
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = largest - values
    # A grey level that stands for nothing is transparent.
    values[values == key] = largest
    return Image.fromarray((values * 255 / largest).round().astype(np.uint8))


def _over_white(image: Any) -> Any:
    from PIL import Image

    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))


def resized(image: Any, size: int) -> Any:
    """A PIL image's shorter side to `size` by antialiased bicubic interpolation, then the central square."""
    from PIL import Image

    width, height = image.size
    factor = size / min(width, height)
    wide, high = max(size, round(width * factor)), max(size, round(height * factor))
    if (wide, high) != (width, height):
        image = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - size) // 2, (high - size) // 2
    return image.crop((left, top, left + size, top + size))


def save_picture(path: Path, picture: Tensor) -> None:
    """Write a picture as PNG of 8 bits a channel, C×H×W in [0, 1] with C = 1 or 3."""
    with replacing(path) as fresh:
        _to_pil(picture).save(fresh, format="PNG")


def png(picture: Tensor) -> bytes:
    """A picture as a PNG file of 8 bits a channel, C×H×W floats, cut to [0, 1], with C = 1 or 3."""
    file = io.BytesIO()
    _to_pil(picture).save(file, format="PNG", compress_level=9)
    return file.getvalue()


def save_grid(path: Path, images: Tensor, *, titles: Sequence[str] = (), labels: Sequence[str] = ()) -> None:
    """Write a sheet of images as PNG, small images enlarged.

    Args:
        path: the file.
        images: R rows of M images, R×M×C×H×W in [0, 1] with C = 1 or 3.
        titles: one above each column, or none at all.
        labels: one left of each row, perhaps of several lines, or none at all.

    Raises:
        ValueError: another number of titles than columns, or of labels than rows.
    """
    from PIL import Image, ImageDraw

    rows, columns, _, height, width = images.shape
    titles, labels = ([_safe(text) for text in texts] for texts in (titles, labels))
    for name, texts, number in (("titles", titles, columns), ("labels", labels, rows)):
        if len(texts) not in (0, number):
            raise ArgumentError(name, f"expected none or {number}, got {len(texts)}")
    factor = max(1, _SMALLEST // height)
    enlarged = images.repeat_interleave(factor, 3).repeat_interleave(factor, 4)
    (titles_wide, titles_high), (labels_wide, labels_high) = _extent(titles), _extent(labels)
    # A frame of one white pixel around each image.
    wide, high = max(width * factor + 2, titles_wide), max(height * factor + 2, labels_high)
    sheet = Image.new("RGB", (labels_wide + columns * wide, titles_high + rows * high), "white")
    for row in range(rows):
        for column in range(columns):
            left, top = labels_wide + column * wide, titles_high + row * high
            place = left + (wide - width * factor) // 2, top + (high - height * factor) // 2
            sheet.paste(_to_pil(enlarged[row, column]), place)
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(titles):
        place = labels_wide + column * wide + wide // 2, titles_high // 2
        draw.text(place, text, fill="black", font=_font(), anchor="mm")
    for row, text in enumerate(labels):
        place = _GAP, titles_high + row * high + high // 2
        draw.text(place, text, fill="black", font=_font(), anchor="lm")
    with replacing(path) as fresh:
        sheet.save(fresh, format="PNG")


def save_chart(path: Path, figure: Figure, dpi: int) -> None:
    """Write a figure of matplotlib as PNG, laid out once: savefig would do so twice, and draw twice for it.

    Args:
        path: where to.
        figure: with constrained layout; it has none any more afterwards.
        dpi: pixels an inch.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    layout = figure.get_layout_engine()
    assert layout is not None
    layout.execute(figure)
    figure.set_layout_engine(None)
    with replacing(path) as fresh:
        figure.savefig(fresh, format="png", dpi=dpi)


def _safe(text: str) -> str:
    return "\n".join(map(printable, text.splitlines()))


def _extent(texts: Sequence[str]) -> tuple[int, int]:
    """The (width, height) in pixels that any of these texts needs with the space around it, 0 for none."""
    from PIL import Image, ImageDraw

    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [draw.textbbox((0, 0), text, font=_font()) for text in texts]
    wide = max((int(box[2]) + 2 * _GAP for box in boxes), default=0)
    return wide, max((int(box[3]) + 2 * _GAP for box in boxes), default=0)


def _font() -> Any:
    """The font that matplotlib brings along, which has arrows, signs and most alphabets."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    file = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(file, _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


def _to_pil(image: Tensor) -> Any:
    """An image C×H×W in [0, 1] with 8 bits a channel."""
    from PIL import Image

    array = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
