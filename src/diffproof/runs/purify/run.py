"""Pictures are purified, here or on workers, and written, with a sheet of before and after."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from diffproof.errors import ArgumentError, halved, is_out_of_memory, printable
from diffproof.files import replacing
from diffproof.pictures import save_grid, save_picture
from diffproof.runs.code import own_code_of
from diffproof.runs.database import SETTINGS, SHEET
from diffproof.runs.groups import Groups, order
from diffproof.runs.prepare import first_line
from diffproof.runs.purify.job import Purified, PurifyRun
from diffproof.runs.purify.networks import Outcome, counting, purified
from diffproof.runs.settings_file import settings_text
from diffproof.runs.workers import ImagesFailedError
from diffproof.scale.engine import Order
from diffproof.scale.fleet import Fleet
from diffproof.wording import part_of

# Pictures of the sheet, and the characters of a line of its text.
_ROWS = 8
_LONGEST = 40

OnEvaluations = Callable[[int], None]


def run_purify(
    job: PurifyRun, on_evaluations: OnEvaluations = lambda count: None, fleet: Fleet | None = None
) -> list[Purified]:
    """Purify the pictures and write them, the settings and the sheet; each file appears whole or not at all.

    The noise of a picture is that of its place among the pictures by name, so that no batch size changes it.

    Args:
        job: from `prepare_purify`.
        on_evaluations: called with the number of images that the denoiser has gone through.
        fleet: workers that purify; None to do it here.

    Raises:
        ValueError: the networks cannot take the pictures, or return NaN.
        OSError: a file cannot be written.
        MemoryError: not even one picture fits into memory.
        KeyboardInterrupt: with what there is to know, where some pictures are written.
        ImagesFailedError: pictures that no worker could purify are left out.
        FleetError: no worker is left.
    """
    new = not job.out.exists()
    job.out.mkdir(parents=True, exist_ok=True)
    writing = _Writing(job)
    try:
        if fleet is None:
            with counting(job.defense, on_evaluations):
                for start, before, outcome in _batches(job):
                    writing.write(range(start, start + len(before)), before, outcome)
        else:
            _on_workers(job, fleet, writing, on_evaluations)
        return writing.end()
    except KeyboardInterrupt:
        writing.settle()
        if not writing.done:
            raise
        told = part_of(len(writing.done), len(job.pictures), "picture")
        raise KeyboardInterrupt(f"{told} written; the same command with --force starts again") from None
    finally:
        if not writing.done:
            writing.withdraw()
        if new and not any(job.out.iterdir()):
            job.out.rmdir()


class _Writing:
    """Writes purified pictures as they come.

    Args:
        job: the run.

    Attributes:
        done: what became of each, by its place among the pictures.
    """

    def __init__(self, job: PurifyRun) -> None:
        self._job, count = job, len(job.pictures)
        self._on_sheet = {row * count // min(count, _ROWS) for row in range(min(count, _ROWS))}
        self._rows: dict[int, Tensor] = {}
        self._begun = False
        self._last: tuple[int, Purified, int | None] | None = None
        self.done: dict[int, Purified] = {}

    def write(self, places: Sequence[int], before: Tensor | Sequence[Tensor], outcome: Outcome) -> None:
        """Write some, N×C×H×W before and after, and remember them for the sheet."""
        if not self._begun:
            _write_settings(self._job)
            self._begun = True
        after, labels = outcome
        for place, old, new, label in zip(places, before, after, labels, strict=True):
            picture = self._job.pictures[place]
            path = self._job.out / picture.name
            path.parent.mkdir(parents=True, exist_ok=True)
            became = Purified(picture, *label)
            self._last = place, became, _inode(path)
            with _told(path):
                save_picture(path, new)
            if place in self._on_sheet:
                self._rows[place] = torch.stack([old, new])
            self.done[place] = became

    def settle(self) -> None:
        """Count, too, a picture that was there and not counted yet when an interrupt came."""
        if self._last is None:
            return
        place, became, before = self._last
        if _inode(self._job.out / became.picture.name) not in (None, before):
            self.done[place] = became

    def withdraw(self) -> None:
        """Remove the settings: without a picture they would only be in the way of the same command."""
        if self._begun:
            (self._job.out / SETTINGS).unlink(missing_ok=True)

    def end(self) -> list[Purified]:
        """Write the sheet of those that there are; what became of each, in order."""
        if self._rows:
            with _told(self._job.out / SHEET):
                pairs = torch.stack([self._rows[place] for place in sorted(self._rows)])
                _write_sheet(self._job.out / SHEET, pairs, [self.done[place] for place in sorted(self._rows)])
        return [self.done[place] for place in sorted(self.done)]


def _on_workers(job: PurifyRun, fleet: Fleet, writing: _Writing, on_evaluations: OnEvaluations) -> None:
    """Let workers purify the pictures, in the batches in which it is done here."""
    size, before = job.settings.batch_size, dict[int, Tensor]()

    def orders() -> Iterator[Order]:
        for start in range(0, len(job.pictures), size):
            group = range(start, min(start + size, len(job.pictures)))
            images = {place: job.read(job.pictures[place]) for place in group}
            before.update(images)
            yield order(group, images)

    def found(one: Order, outcome: Outcome) -> None:
        writing.write(one.images, [before.pop(place) for place in one.images], outcome)
        on_evaluations(len(one.images) * job.defense.evaluations)

    Groups.warn_of_idle(fleet, math.ceil(len(job.pictures) / size))
    try:
        Groups(fleet, orders(), found).run()
    except ImagesFailedError as error:
        writing.end()
        names = [job.pictures[place].name for place in sorted(error.failed)]
        raise ImagesFailedError(error.failed, names=names, left="the others are written") from None


def _batches(job: PurifyRun) -> Iterator[tuple[int, Tensor, Outcome]]:
    """Batches of pictures by their first place, and what became of them; halved where memory runs out."""
    start, batch_size = 0, job.settings.batch_size
    while start < len(job.pictures):
        pictures = job.pictures[start : start + batch_size]
        images = torch.stack([job.read(picture) for picture in pictures])
        try:
            outcome = purified(
                job.defense, job.settings, images.to(job.device), range(start, start + len(images))
            )
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
        yield start, images, outcome
        start += len(pictures)


def _inode(path: Path) -> int | None:
    """The file that has this name now, None if none has."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


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
