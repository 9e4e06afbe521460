"""What a certification run holds: a row a finished image, partial tallies of those in work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffproof.checks import check_at_least
from diffproof.fields import check_fields
from diffproof.noise import MAX_DRAW, Stream
from diffproof.runs.certify.ballots import Ballots, unpacked
from diffproof.runs.database import naming, reporting
from diffproof.runs.settings import CertifySettings
from diffproof.runs.store import RunStore, check_seconds
from diffproof.smoothing.certificate import Certificate
from diffproof.smoothing.certification import Certification
from diffproof.smoothing.packing import Work
from diffproof.smoothing.schedule import Unit
from diffproof.smoothing.tally import Counted, Tally
from diffproof.texts import parse_json

# Characters of what is in work: counts of thousands of classes for thousands of images.
_MOST_WORK = 2**27


@dataclass(frozen=True)
class ImageResult:
    """A finished image: its certificate, true label and the seconds it took."""

    image_index: int
    true_label: int
    certificate: Certificate
    seconds: float

    @property
    def correct(self) -> bool:
        """Whether the certified label is the true one; False where it abstained."""
        return self.certificate.label == self.true_label

    def certified_at(self, radius: float) -> bool:
        """Whether the true label is certified with at least this radius."""
        return self.correct and self.certificate.radius >= radius


def certification(results: Sequence[ImageResult]) -> Certification:
    """The certificates of finished images, one at least, and their true labels."""
    return Certification(tuple(one.certificate for one in results), tuple(one.true_label for one in results))


@dataclass(frozen=True)
class Partial(Counted):
    """What is counted of an image in work, and the seconds it took."""

    seconds: float = 0.0


def _result(index: int, label: int, text: str, seconds: float) -> ImageResult:
    """A row of the table of images.

    Raises:
        ValueError: someone changed it to what no run writes.
    """
    with naming(f"image {index}"):
        values = {
            "image_index": check_at_least("image_index", index, 0),
            "true_label": label,
            "certificate": Certificate.from_json(text),
            "seconds": seconds,
        }
        result = ImageResult(**check_fields(ImageResult, values))
        check_at_least("true_label", result.true_label, 0)
        check_seconds(result.seconds)
    return result


def _check_tally(tally: Tally | None, draws: int) -> None:
    """Raise ValueError unless a run of so many draws can have counted this."""
    if tally is None:
        return
    if not sum(tally.counts) == tally.draws <= draws or min(tally.counts, default=-1) < 0:
        raise ValueError(f"expected counts of at most {draws} draws, got {tally.counts} of {tally.draws}")
    for name in ("denoiser_evaluations", "classifier_evaluations"):
        check_at_least(name, getattr(tally, name), 0)


def _check_both(counted: Counted, n0: int, num_classes: int | None) -> None:
    """Raise ValueError unless the second draws began after all of the first, and of so many classes."""
    selection, estimation = counted.selection, counted.estimation
    if estimation is not None and (selection is None or selection.draws != n0):
        raise ValueError(f"expected estimation draws after {n0} selection draws")
    found = {len(tally.counts) for tally in (selection, estimation) if tally is not None}
    if num_classes is not None and found - {num_classes}:
        raise ValueError(f"expected counts of {num_classes} classes, got {found.pop()}")


def _unit(image_index: int, stream: int, start: int, stop: int, told: object) -> tuple[Unit, Tally]:
    """A unit in work and its labels.

    Raises:
        ValueError, TypeError: someone changed it to what no run writes.
    """
    image_index, start = check_at_least("image_index", image_index, 0), check_at_least("start", start, 0)
    unit = Unit(image_index, Stream(stream), start, check_at_least("stop", stop, start + 1, MAX_DRAW))
    tally = Tally(**check_fields(Tally, told))
    _check_tally(tally, unit.stop - unit.start)
    return unit, tally


def _check_work(work: Work) -> None:
    """Raise ValueError unless a run can have been interrupted so."""
    none = torch.empty(0, dtype=torch.int64)
    found = [work.tensors.get(name, none) for name in ("unit", "draw")]
    if any(one.dtype != torch.int64 for one in found):
        raise ValueError(f"expected int64 numbers of units and draws, got {[one.dtype for one in found]}")
    of, draw = (one.tolist() for one in found)
    missing: dict[int, set[int]] = {place: set() for place in range(len(work.units))}
    for place, one in zip(of, draw, strict=True):
        if place not in missing:
            raise ValueError(f"expected draws of {len(work.units)} units, got unit {place}")
        if one in missing[place]:
            raise ValueError(f"expected each draw once, got draw {one} of unit {place} twice")
        missing[place].add(one)
    for (unit, tally), draws in zip(work.units, missing.values(), strict=True):
        complete = len(draws) + tally.draws == unit.stop - unit.start
        # One that a worker has in work is to be labelled from its start.
        if not (complete or not len(draws) + tally.draws) or not draws <= {*range(unit.start, unit.stop)}:
            raise ValueError(f"expected the draws from {unit.start} to {unit.stop}, got others")


def _check_hits(partial: Partial, checkpoints: Sequence[int]) -> None:
    """Raise ValueError unless these are the hits at the checkpoints that the draws have reached."""
    draws, hits = 0 if partial.estimation is None else partial.estimation.draws, partial.hits
    reached = [look for look in checkpoints if look < draws], [look for look in checkpoints if look <= draws]
    if not len(reached[0]) <= len(hits) <= len(reached[1]) or list(hits) != sorted(hits):
        raise ValueError(f"expected hits at {len(reached[1])} checkpoints, ascending, got {list(hits)}")


class CertifyStore(RunStore[CertifySettings]):
    """The run folder of `diffproof certify`."""

    kind = "certification run"
    settings_type = CertifySettings
    table = "images"
    stamped = "certificate"
    merged = ("images", "ballots")
    tables = """
CREATE TABLE IF NOT EXISTS images (
    image_index INTEGER PRIMARY KEY, true_label INTEGER NOT NULL, certificate TEXT NOT NULL,
    seconds REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS partial (
    image_index INTEGER, stream TEXT, tally TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (image_index, stream)
);
CREATE TABLE IF NOT EXISTS ballots (image_index INTEGER, stream INTEGER, votes BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS work (units TEXT NOT NULL, tensors BLOB NOT NULL);
"""

    def results(self) -> list[ImageResult]:
        """All finished images by index.

        Raises:
            ValueError: the store is corrupt.
        """
        with reporting(self.folder):
            rows = self._connection.execute(
                "SELECT image_index, true_label, certificate, seconds FROM images ORDER BY image_index"
            ).fetchall()
            return [_result(*row) for row in rows]

    def partial(
        self, image_index: int, checkpoints: Sequence[int] | None = None, num_classes: int | None = None
    ) -> Partial:
        """What is saved of an image in work.

        Args:
            image_index: the image's.
            checkpoints: where its hits were looked at; None not to check that.
            num_classes: labels that were counted; None not to check that.

        Raises:
            ValueError: the store is corrupt.
        """
        with reporting(self.folder):
            rows = self._connection.execute(
                "SELECT stream, tally, seconds FROM partial WHERE image_index = ?", (image_index,)
            ).fetchall()
            with naming(f"image {image_index} in work"):
                texts = {stream: parse_json(text) for stream, text, _ in rows}
                hits = texts.pop("hits", [])
                found = {stream: Tally(**check_fields(Tally, told)) for stream, told in texts.items()}
                seconds = max((one for *_, one in rows), default=0.0)
                partial = Partial(**check_fields(Partial, {**found, "hits": hits, "seconds": seconds}))
                check_seconds(partial.seconds)
                _check_tally(partial.selection, self.settings.n0)
                _check_tally(partial.estimation, self.settings.n)
                _check_both(partial, self.settings.n0, num_classes)
                if checkpoints is not None:
                    _check_hits(partial, checkpoints)
        return partial

    def work(self) -> Work:
        """The draws that were being labelled.

        Raises:
            ValueError: the store is corrupt.
        """
        with reporting(self.folder), naming("draws in work"):
            work = Work([], {})
            for text, blob in self._connection.execute("SELECT units, tensors FROM work LIMIT 1"):
                work = Work([_unit(*told) for told in parse_json(text, _MOST_WORK)], _tensors(blob))
            _check_work(work)
        return work

    def save_partials(self, partials: Mapping[int, Partial], work: Work) -> None:
        """Record what is counted and labelled of the images in work; kept from the next commit on."""
        rows = []
        for index, partial in partials.items():
            for stream, tally in (("selection", partial.selection), ("estimation", partial.estimation)):
                if tally is not None:
                    rows.append((index, stream, json.dumps(vars(tally)), partial.seconds))
            if partial.hits:
                rows.append((index, "hits", json.dumps(partial.hits), partial.seconds))
        units = [[*unit, vars(tally)] for unit, tally in work.units]
        with reporting(self.folder):
            self._connection.executemany("INSERT OR REPLACE INTO partial VALUES (?, ?, ?, ?)", rows)
            self._connection.execute("DELETE FROM work")
            if units:
                row = (json.dumps(units), _bytes(work.tensors))
                self._connection.execute("INSERT INTO work VALUES (?, ?)", row)

    def save_ballots(self, ballots: Ballots) -> None:
        """Record ballots, which are let go; kept from the next commit on."""
        with reporting(self.folder):
            self._connection.executemany("INSERT INTO ballots VALUES (?, ?, ?)", ballots.packed())
        # Not before: who interrupts this must lose none, and those that are there twice count once.
        ballots.clear()

    def join_ballots(self, image_index: int, counted: Mapping[Stream, int]) -> None:
        """Make one row of the ballots of a finished image and stream: they take less.

        Args:
            image_index: of the image.
            counted: how many draws of each stream its certificate counts; ballots of others are dropped, as
                draws that were taken ahead depend on who took them.
        """
        for stream, (draw, votes) in self.ballots(image_index).items():
            kept = draw < counted[stream]
            joined = Ballots()
            joined.add(Unit(image_index, stream, 0, counted[stream]), draw[kept], votes[kept])
            with reporting(self.folder):
                last = self._connection.execute("SELECT max(rowid) FROM ballots").fetchone()
                # The new row first: an interruption in between loses none.
                self.save_ballots(joined)
                where = "WHERE image_index = ? AND stream = ? AND rowid <= ?"
                self._connection.execute(f"DELETE FROM ballots {where}", (image_index, int(stream), *last))

    def ballots(self, image_index: int) -> dict[Stream, tuple[Tensor, Tensor]]:
        """The numbers of an image's draws, ascending, and their ballots, by stream, where they were kept.

        Raises:
            ValueError: the store is corrupt.
        """
        with reporting(self.folder), naming(f"ballots of image {image_index}"):
            query = "SELECT stream, votes FROM ballots WHERE image_index = ? ORDER BY rowid"
            found: dict[Stream, list[bytes]] = {}
            for stream, blob in self._connection.execute(query, (image_index,)):
                found.setdefault(Stream(stream), []).append(blob)
            return {stream: unpacked(blobs) for stream, blobs in found.items()}

    def save_result(self, result: ImageResult) -> None:
        """Record a finished image and drop its partial tallies; kept from the next commit on."""
        with reporting(self.folder):
            self._connection.execute(
                "INSERT INTO images VALUES (?, ?, ?, ?)",
                (result.image_index, result.true_label, result.certificate.to_json(), result.seconds),
            )
            self._connection.execute("DELETE FROM partial WHERE image_index = ?", (result.image_index,))

    def drop_work(self, images: Iterable[int]) -> None:
        """Forget what was being labelled, and what is counted of images that are not to be finished."""
        with reporting(self.folder):
            self._connection.execute("DELETE FROM work")
            rows = [(index,) for index in images]
            self._connection.executemany("DELETE FROM partial WHERE image_index = ?", rows)
            self._connection.executemany("DELETE FROM ballots WHERE image_index = ?", rows)


def _bytes(tensors: dict[str, Tensor]) -> bytes:
    """Tensors as a safetensors file behind its SHA-256."""
    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()})
    return hashlib.sha256(data).digest() + data


def _tensors(data: bytes) -> dict[str, Tensor]:
    """The inverse of `_bytes`.

    Raises:
        ValueError: the data is not what a run writes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    start = hashlib.sha256().digest_size
    if not isinstance(data, bytes) or hashlib.sha256(data[start:]).digest() != data[:start]:
        raise ValueError("expected tensors as they were written, got others")
    try:
        return load(data[start:])
    except SafetensorError as error:
        raise ValueError(f"expected a safetensors file, got {error}") from None
