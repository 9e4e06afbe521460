"""Purification of a user's own pictures: found, purified, written, with a sheet of before and after."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from diffproof.catalog import DEFENSES, able
from diffproof.classifiers.base import predicted_labels
from diffproof.data.folders import SUFFIXES
from diffproof.defenses.purifying.base import Purifier
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.errors import ArgumentError, halved, is_out_of_memory, printable
from diffproof.files import check_out, expanded, replacing
from diffproof.memory import check_batch
from diffproof.methods import MethodSpec, check_not_idle, describe, parse
from diffproof.noise import Noise, Stream
from diffproof.pictures import UnreadableError, left_out, read_picture, save_grid, save_picture
from diffproof.runs.code import own_code_of
from diffproof.runs.database import STORE
from diffproof.runs.defense import load_networks_and_defense
from diffproof.runs.flags import Flags
from diffproof.runs.prepare import first_line, resolve_device
from diffproof.runs.settings_file import SETTINGS, settings_text
from diffproof.wording import part_of, shortened

SHEET = "sheet.png"
# Pictures of the sheet, and the characters of a line of its text.
_ROWS = 8
_LONGEST = 40

OnEvaluations = Callable[[int], None]


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
        channels, *size = _shape(self.defense)
        pixels = read_picture(picture.path, channels, self.settings.image_size)
        if list(pixels.shape[1:]) != size:
            wanted, got = ("×".join(map(str, reversed(shape))) for shape in (size, pixels.shape[1:]))
            hint = f"; an image size of {size[0]} brings it there" if size[0] == size[1] else ""
            raise ArgumentError(
                "pictures", f"{picture.path} is {got} (width×height), the denoiser takes {wanted}{hint}"
            )
        return pixels


def _shape(defense: Purifier) -> tuple[int, int, int]:
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
    settings: PurifySettings, sources: Sequence[Path], out: Path, *, force: bool = False
) -> PurifyRun:
    """Find and decode the pictures and load the networks, so that misfits show before any write.

    Args:
        settings: see PurifySettings.
        sources: files and folders, see `find_pictures`.
        out: folder for the purified pictures, SHEET and SETTINGS.
        force: overwrite what is there of these.

    Raises:
        ValueError: anything that is unknown, unreadable, in the way or does not fit together.
        OSError: a file cannot be read.

    Warns:
        UserWarning: pictures cannot be read, and are left out as the settings ask.
    """
    out = expanded(out)
    pictures = find_pictures(sources, out)
    _check_free(out, pictures, force=force)
    device = resolve_device(settings.device)
    defense = load_networks_and_defense(
        settings.method,
        classifier=settings.classifier,
        denoiser=settings.denoiser,
        guide=settings.guide,
        precision=settings.precision,
        device=device,
    )
    assert isinstance(defense, Purifier)
    job = PurifyRun(settings, out, pictures, defense, device)
    check_batch(min(settings.batch_size, len(pictures)), _shape(defense))
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


def run_purify(job: PurifyRun, on_evaluations: OnEvaluations = lambda count: None) -> list[Purified]:
    """Purify the pictures and write them, the settings and the sheet; each file appears whole or not at all.

    The noise of a picture is that of its place among the pictures by name, so that no batch size changes it.

    Args:
        job: from `prepare_purify`.
        on_evaluations: called with the number of images that the denoiser has gone through.

    Raises:
        ValueError: the networks cannot take the pictures, or return NaN.
        OSError: a file cannot be written.
        MemoryError: not even one picture fits into memory.
        KeyboardInterrupt: with what there is to know, where some pictures are written.
    """
    count = len(job.pictures)
    on_sheet = {row * count // min(count, _ROWS) for row in range(min(count, _ROWS))}
    done: list[Purified] = []
    rows: list[Tensor] = []
    new = not job.out.exists()
    job.out.mkdir(parents=True, exist_ok=True)
    try:
        with _counting(job.defense, on_evaluations):
            for before, after, purified in _batches(job):
                if not done:
                    _write_settings(job)
                for images, outcome in zip(zip(before, after, strict=True), purified, strict=True):
                    path = job.out / outcome.picture.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with _told(path):
                        save_picture(path, images[1])
                    if len(done) in on_sheet:
                        rows.append(torch.stack(images))
                    done.append(outcome)
        with _told(job.out / SHEET):
            _write_sheet(job.out / SHEET, torch.stack(rows), [done[i] for i in sorted(on_sheet)])
    except KeyboardInterrupt:
        if not done:
            raise
        raise KeyboardInterrupt(
            f"{part_of(len(done), count, 'picture')} written; the same command with --force starts again"
        ) from None
    finally:
        if new and not any(job.out.iterdir()):
            job.out.rmdir()
    return done


def _batches(job: PurifyRun) -> Iterator[tuple[Tensor, Tensor, list[Purified]]]:
    """Batches of pictures before and after, and what became of each; halved where memory runs out."""
    start, batch_size = 0, job.settings.batch_size
    while start < len(job.pictures):
        pictures = job.pictures[start : start + batch_size]
        images = torch.stack([job.read(picture) for picture in pictures])
        try:
            purified, labels = _purify(job, images.to(job.device), start)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                if isinstance(error, MemoryError):
                    raise
                # A network that cannot take the images says so in torch's words.
                raise ArgumentError(
                    "pictures", f"the networks cannot purify {pictures[0].path}: {first_line(error)}"
                ) from None
            batch_size = halved(len(pictures), error)
            continue
        outcomes = [Purified(picture, *label) for picture, label in zip(pictures, labels, strict=True)]
        yield images, purified.cpu(), outcomes
        start += len(pictures)


def _purify(job: PurifyRun, images: Tensor, start: int) -> tuple[Tensor, list[tuple[str, ...]]]:
    """Purified images, and the labels (before, after) of each, () without a classifier."""
    index = torch.arange(start, start + len(images))
    noise = Noise.for_rows(job.settings.seed, Stream.FORWARD, index, torch.zeros_like(index))
    defense = job.defense
    with torch.no_grad():
        purified = defense.purify(images, noise)
        if not bool(torch.isfinite(purified).all()):
            raise ArgumentError("denoiser", "expected finite pictures, got NaN or infinity")
        if job.settings.classifier is None:
            return purified, [()] * len(images)
        logits = [defense.classifier_logits(part, noise.to(job.device)) for part in (images, purified)]
        both = [predicted_labels(part).tolist() for part in logits]
    names = getattr(defense.classifier, "class_names", None) or range(defense.num_classes)
    return purified, [(str(names[old]), str(names[new])) for old, new in zip(*both, strict=True)]


@contextmanager
def _counting(defense: Purifier, on_evaluations: OnEvaluations) -> Iterator[None]:
    """Tell of every image that goes through the denoiser's network, if it has one."""
    if not isinstance(defense.denoiser, NetworkDenoiser):
        yield
        return
    hook = defense.denoiser.network.register_forward_hook(
        lambda _, inputs, __: on_evaluations(len(inputs[0]))
    )
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Name the file in the error of one that cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from None


def _write_settings(job: PurifyRun) -> None:
    path = job.out / SETTINGS
    with _told(path), replacing(path) as fresh:
        text = settings_text(job.settings, own_code_of(job.settings))
        lines = [f"# Left out: {printable(reason)}\n" for reason in job.left_out]
        fresh.write_text(text + "".join(lines), encoding="utf-8")


def _write_sheet(path: Path, pairs: Tensor, purified: Sequence[Purified]) -> None:
    """Rows of before, after and their difference, R×2×C×H×W in [0, 1] given."""
    difference = (pairs[:, 1] - pairs[:, 0]).abs()
    factor = amplification(float(difference.max()))
    images = torch.cat([pairs, factor * difference[:, None]], dim=1)
    labels = [_label(outcome) for outcome in purified]
    save_grid(path, images, titles=("before", "after", f"|difference| × {factor}"), labels=labels)


def amplification(largest: float) -> int:
    """The largest power of 2, 256 at most, that keeps this difference of pixels within 1."""
    return 256 if largest <= 1 / 256 else 2 ** math.floor(math.log2(1 / largest))


def _label(outcome: Purified) -> str:
    lines = [_shortened(outcome.picture.name)]
    if outcome.before is not None and outcome.after is not None:
        lines += [f"before: {_shortened(outcome.before)}", f"after: {_shortened(outcome.after)}"]
    return "\n".join(lines)


def _shortened(text: str) -> str:
    """One line of limited length, without the halves of characters that odd file names have."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[: half - 1]}…{text[-half:]}"
