"""What a whole data set holds: every image decoded once, counted by class, mode and size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from diffproof.checks import check_source
from diffproof.data.encoded import EncodedPixels
from diffproof.data.folders import load_split, picture_layout
from diffproof.data.images import ImageData
from diffproof.data.named import is_name, load_data
from diffproof.files import expanded
from diffproof.pictures import UnreadableError
from diffproof.weights import hash_tensors


@dataclass(frozen=True)
class Survey:
    """What a split holds.

    Attributes:
        data: its images.
        modes: how many images there are of each mode in the file, such as RGB or L (grey).
        sizes: how many there are of each (width, height), upright.
        unreadable: what is wrong with the others.
        repeated: how many are the same, pixel by pixel, as one before, by the split of that and whether it
            has another label.
    """

    data: ImageData
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    repeated: Counter[tuple[str, bool]] = field(default_factory=Counter)


def open_splits(source: str, split: str | None) -> list[ImageData]:
    """A split of a data set; without one, all splits of a folder of pictures, perhaps without labels.

    Raises:
        ValueError: see load_data.
    """
    path = expanded(check_source("data", source))
    folder = split is None and not is_name(source) and path.is_dir()
    layout = picture_layout(path) if folder else None
    if layout is None:
        return [load_data(source, split, labelled=False)]
    return [load_split(layout, name, None, labelled=False) for name in layout.splits]


def survey(
    data: ImageData,
    on_image: Callable[[int], None] = lambda images: None,
    seen: dict[str, tuple[str, int]] | None = None,
) -> Survey:
    """Decode every image of a data set, and count what there is.

    Args:
        data: the images.
        on_image: called with 1 after each.
        seen: split and label of each image of splits that were looked at before, by its hash; gets those of
            this one.
    """
    found, seen = Survey(data), {} if seen is None else seen
    for index in range(len(data)):
        try:
            image = data.pixels[index]
        except UnreadableError as error:
            found.unreadable.append(error.reason)
        else:
            channels, height, width = image.shape
            pixels = data.pixels
            mode = (
                pixels.form(index)[0] if isinstance(pixels, EncodedPixels) else {1: "L", 3: "RGB"}[channels]
            )
            found.modes[mode] += 1
            found.sizes[width, height] += 1
            hashed, label = hash_tensors({"image": image}), int(data.labels[index])
            if hashed in seen:
                split, other = seen[hashed]
                found.repeated[split, label != other] += 1
            seen.setdefault(hashed, (data.split, label))
        on_image(1)
    return found
