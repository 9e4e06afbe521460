"""A user's own pictures that are to be purified: found and decoded, with the networks that will do it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from diffproof.catalog import DEFENSES, able
from diffproof.data.folders import SUFFIXES
from diffproof.defenses.purifying.base import Purifier
from diffproof.errors import ArgumentError
from diffproof.files import check_out, expanded
from diffproof.memory import check_batch
from diffproof.methods import MethodSpec, check_not_idle, describe, parse
from diffproof.pictures import UnreadableError, left_out, read_picture
from diffproof.runs.database import SETTINGS, SHEET, STORE
from diffproof.runs.defense import load_networks_and_defense
from diffproof.runs.flags import Flags
from diffproof.runs.prepare import resolve_device
from diffproof.wording import shortened


@dataclass(frozen=True, kw_only=True)
class PurifySettings(Flags):
    """What `diffproof purify` is asked for, the pictures aside.

    Without a classifier nothing is labelled; without image_size pictures must have the denoiser's.

    Raises:
        ValueError: a field out of range.
    """

    defense: str
    denoiser: str
    classifier: str | None = None
    guide: str | None = None
    batch_size: int = 64
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        own = describe("defense", self.method.name)
        if "purify" not in own.can:
            known = ", ".join(able(DEFENSES, "purify"))
            raise ArgumentError("defense", f"expected one that purifies ({known}), got {own.name!r}")
        check_not_idle(self.method, "purify")
        object.__setattr__(self, "defense", str(self.method))
        super().__post_init__()

    @property
    def method(self) -> MethodSpec:
        """The defence with its settings."""
        return parse("defense", self.defense)


@dataclass(frozen=True)
class Picture:
    """A picture to purify.

    Attributes:
        path: its file.
        name: what it becomes, relative to the output folder, with slashes.
    """

    path: Path
    name: str


@dataclass(frozen=True)
class Purified:
    """What became of a picture.

    Attributes:
        picture: which one.
        before: the classifier's label (its name where known) of one draw, None without a classifier.
        after: its label of the purified picture.
    """

    picture: Picture
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class PurifyRun:
    """Pictures ready to be purified: all decode, the networks are loaded, no file is in the way."""

    settings: PurifySettings
    out: Path
    pictures: list[Picture]
    defense: Purifier
    device: torch.device
    # What is wrong with each picture that cannot be read.
    left_out: tuple[str, ...] = ()

    @property
    def evaluations(self) -> int:
        """Denoiser evaluations that all pictures need."""
        return len(self.pictures) * self.defense.evaluations

    def read(self, picture: Picture) -> Tensor:
        """A picture as the denoiser takes it, C×H×W in [0, 1].

        Raises:
            ValueError: it cannot be decoded, or has another size. OSError: it cannot be read.
        """
        channels, *size = image_shape(self.defense)
        pixels = read_picture(picture.path, channels, self.settings.image_size)
        if list(pixels.shape[1:]) != size:
            wanted, got = ("×".join(map(str, reversed(shape))) for shape in (size, pixels.shape[1:]))
            hint = f"; an image size of {size[0]} brings it there" if size[0] == size[1] else ""
            raise ArgumentError(
                "pictures", f"{picture.path} is {got} (width×height), the denoiser takes {wanted}{hint}"
            )
        return pixels


def image_shape(defense: Purifier) -> tuple[int, int, int]:
    """Channels, height and width of the pictures that it purifies.

    Raises:
        ValueError: it has none, or channels that no picture has.
    """
    shape = defense.denoiser.image_shape
    if shape is None or shape[0] not in (1, 3):
        raise ArgumentError(
            "denoiser", f"expected one of grey or RGB pictures of one size, got images {shape}"
        )
    return shape


def find_pictures(sources: Sequence[Path], out: Path) -> list[Picture]:
    """The pictures of files and folders, by the names they will have.

    Folders are searched for the kinds that data folders have, subfolders included, which keep their names;
    hidden files and folders, and `out`, are left out.

    Raises:
        ValueError: no such file, a folder without pictures, or two pictures with one name.
        OSError: a folder cannot be read.
    """
    found: dict[str, Path] = {SHEET: out / SHEET}
    for source in map(expanded, sources):
        if not source.exists():
            raise ArgumentError("pictures", f"no such file or folder: {source}")
        files = [(source, Path(source.name))]
        if source.is_dir():
            files = [(path, path.relative_to(source)) for path in _search(source, out)]
            if not files:
                kinds = shortened(suffix[1:] for suffix in SUFFIXES)
                raise ArgumentError("pictures", f"no picture in {source}; expected {kinds}")
        for path, name in files:
            becomes = name.with_suffix(".png").as_posix()
            if becomes in found:
                other = "the sheet" if becomes == SHEET else found[becomes]
                raise ArgumentError("pictures", f"{path} and {other} would both be written as {becomes}")
            found[becomes] = path
    return [Picture(found[name], name) for name in sorted(found) if name != SHEET]


def _search(folder: Path, out: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and (Path(root) / name).resolve() != out.resolve()
        ]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(root) / name


def prepare_purify(
    settings: PurifySettings, sources: Sequence[Path], out: Path, *, force: bool = False, here: bool = True
) -> PurifyRun:
    """Find and decode the pictures and load the networks, so that misfits show before any write.

    Args:
        settings: see PurifySettings.
        sources: files and folders, see `find_pictures`.
        out: folder for the purified pictures, SHEET and SETTINGS.
        force: overwrite what is there of these.
        here: whether this process purifies; if not, its networks stay on the CPU.

    Raises:
        ValueError: anything that is unknown, unreadable, in the way or does not fit together.
        OSError: a file cannot be read.

    Warns:
        UserWarning: pictures cannot be read, and are left out as the settings ask.
    """
    out = expanded(out)
    pictures = find_pictures(sources, out)
    _check_free(out, pictures, force=force)
    device = resolve_device(settings.device if here else "cpu")
    defense = load_networks_and_defense(settings, device)
    assert isinstance(defense, Purifier)
    job = PurifyRun(settings, out, pictures, defense, device)
    check_batch(min(settings.batch_size, len(pictures)), image_shape(defense))
    unreadable: dict[Picture, str] = {}
    for picture in pictures:
        try:
            job.read(picture)
        except UnreadableError as error:
            if not settings.skip_unreadable:
                raise error.with_remedy("pictures") from None
            unreadable[picture] = error.reason
    if not unreadable:
        return job
    told = left_out("pictures", unreadable.values(), len(pictures), shortened(sources, 3))
    warnings.warn(f"pictures: {told}", stacklevel=2)
    kept = [picture for picture in pictures if picture not in unreadable]
    return replace(job, pictures=kept, left_out=tuple(unreadable.values()))


def _check_free(out: Path, pictures: Sequence[Picture], *, force: bool) -> None:
    """Raise ValueError where a file to write would overwrite a picture, or anything else without force."""
    if (out / STORE).exists():
        raise ArgumentError("out", f"{out} is a run folder, expected another")
    # Not Path.resolve, which fails for a link to itself.
    inputs = {os.path.realpath(picture.path) for picture in pictures}
    names = (SETTINGS, SHEET, *(picture.name for picture in pictures))
    for target in (out / name for name in names):
        if os.path.realpath(target) in inputs:
            raise ArgumentError("out", f"{target} is one of the pictures to purify; expected another folder")
    check_out(out, names, force=force)
