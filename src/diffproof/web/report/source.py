"""Where the images and the class names of runs come from, and why not, where they cannot be had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from diffproof.data.images import ImageData
from diffproof.data.named import load_data
from diffproof.errors import ArgumentError
from diffproof.runs.places import Places
from diffproof.runs.settings import RunSettings
from diffproof.smoothing.certificate import Certificate
from diffproof.smoothing.grid_noise import as_noise
from diffproof.weights import hash_tensors


@dataclass(frozen=True)
class Source:
    """The data of a run.

    Attributes:
        data: it; None where it is not read.
        why_not: the reason in a sentence, "" where it is read.
        names: of its classes by label, where the labels of the run are its own.
    """

    data: ImageData | None
    why_not: str
    names: tuple[str, ...]

    def image(self, certificate: Certificate) -> Tensor | None:
        """The image that a certificate is about, C×H×W in [0, 1], by its hash; None where it is not here."""
        if self.data is None or not 0 <= certificate.image_index < len(self.data):
            return None
        noise = as_noise(certificate.noise, certificate.sigma, certificate.levels)
        # How many channels the networks took, nothing tells.
        for channels in (None, 3, 1):
            try:
                data = self.data if channels is None else self.data.with_channels(channels)
                image = data.pixels[certificate.image_index]
            except ArgumentError:
                # It has colours, or cannot be read.
                continue
            if hash_tensors({"image": noise.certified(image)}) == certificate.image_hash:
                return image
        return None


def open_sources(runs: Sequence[tuple[Path, RunSettings]], places: Places) -> dict[Path, Source]:
    """The data of runs, by their folders; each data set is opened once.

    Args:
        runs: folders with their settings.
        places: the data that is given anew, and whether what runs name is trusted.

    Raises:
        ValueError: data that was given cannot be read.
    """
    known: dict[tuple[str, str | None, int | None], ImageData | str] = {}
    sources = {}
    for folder, settings in runs:
        where = places.data(settings, folder)
        if where is None:
            told = f"the runs name the data {settings.data!r}, which is opened with --trust or --data only"
            sources[folder] = Source(None, told, ())
            continue
        key = where, settings.split, settings.image_size
        if key not in known:
            known[key] = _opened(*key, given="data" in places.given)
        data = known[key]
        if isinstance(data, str):
            sources[folder] = Source(None, f"the data of the runs cannot be read: {data}", ())
            continue
        own = settings.class_map is None and data.classes_named
        sources[folder] = Source(data, "", data.class_names if own else ())
    return sources


def _opened(where: str, split: str | None, image_size: int | None, *, given: bool) -> ImageData | str:
    """A data set, or why it cannot be read; an error where the user gave it."""
    try:
        return load_data(where, split, image_size=image_size)
    except (ArgumentError, OSError) as error:
        if given:
            raise
        return str(error)
