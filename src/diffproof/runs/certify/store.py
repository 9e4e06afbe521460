"""What a certification run holds: a row a finished image, partial tallies of the one in work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from diffproof.checks import check_at_least, check_fields
from diffproof.defenses.base import Underway
from diffproof.runs.settings import CertifySettings
from diffproof.runs.store import RunStore, check_seconds, naming, reporting
from diffproof.smoothing.certificate import Certificate
from diffproof.smoothing.tally import Counted, Tally

# In bytes: what is kept of a batch in work.
_LARGEST = 2**27


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


@dataclass(frozen=True)
class Partial(Counted):
    """What is counted of the image in work, and the seconds it took."""

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
    begun = () if tally.underway is None else (tally.underway,)
    for one in (tally, *begun):
        for name in ("denoiser_evaluations", "classifier_evaluations"):
            check_at_least(name, getattr(one, name), 0)
    if begun and tally.draws + begun[0].draws > draws:
        raise ValueError(f"expected at most {draws} draws, got {tally.draws} and {begun[0].draws} begun")


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
    tables = """
CREATE TABLE IF NOT EXISTS images (
    image_index INTEGER PRIMARY KEY, true_label INTEGER NOT NULL, certificate TEXT NOT NULL,
    seconds REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS partial (
    image_index INTEGER, stream TEXT, tally TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (image_index, stream)
);
CREATE TABLE IF NOT EXISTS underway (
    image_index INTEGER, stream TEXT, draws INTEGER NOT NULL, denoiser_evaluations INTEGER NOT NULL,
    classifier_evaluations INTEGER NOT NULL, tensors BLOB NOT NULL, PRIMARY KEY (image_index, stream)
);
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

    def partial(self, image_index: int, checkpoints: Sequence[int] | None = None) -> Partial:
        """What is saved of an image in work.

        Args:
            image_index: the image's.
            checkpoints: where its hits were looked at; None not to check that.

        Raises:
            ValueError: the store is corrupt.
        """
        with reporting(self.folder):
            rows = self._connection.execute(
                "SELECT stream, tally, seconds FROM partial WHERE image_index = ?", (image_index,)
            ).fetchall()
            begun = self._connection.execute(
                "SELECT stream, draws, denoiser_evaluations, classifier_evaluations, tensors FROM underway"
                " WHERE image_index = ?",
                (image_index,),
            ).fetchall()
            with naming(f"image {image_index} in work"):
                texts = {stream: json.loads(text) for stream, text, _ in rows}
                hits = texts.pop("hits", [])
                found = {stream: Tally(**check_fields(Tally, told)) for stream, told in texts.items()}
                for stream, draws, *spent, blob in begun:
                    underway = Underway(check_at_least("draws", draws, 1), _tensors(blob), *spent)
                    found[stream] = replace(found[stream], underway=underway)
                seconds = max((one for *_, one in rows), default=0.0)
                partial = Partial(**check_fields(Partial, {**found, "hits": hits, "seconds": seconds}))
                check_seconds(partial.seconds)
                _check_tally(partial.selection, self.settings.n0)
                _check_tally(partial.estimation, self.settings.n)
                if checkpoints is not None:
                    _check_hits(partial, checkpoints)
        return partial

    def save_partial(self, image_index: int, partial: Partial) -> None:
        """Record what is counted of the image in work; kept from the next commit on."""
        tallies = {"selection": partial.selection, "estimation": partial.estimation}
        rows, begun = [], []
        for stream, tally in tallies.items():
            if tally is None:
                continue
            counted = {name: value for name, value in vars(tally).items() if name != "underway"}
            rows.append((image_index, stream, json.dumps(counted), partial.seconds))
            now = tally.underway
            # What is larger would take longer to write than its images took to compute.
            if now is not None and sum(tensor.nbytes for tensor in now.tensors.values()) < _LARGEST:
                spent = now.denoiser_evaluations, now.classifier_evaluations
                begun.append((image_index, stream, now.draws, *spent, _bytes(now.tensors)))
        if partial.hits:
            rows.append((image_index, "hits", json.dumps(partial.hits), partial.seconds))
        with reporting(self.folder):
            self._connection.executemany("INSERT OR REPLACE INTO partial VALUES (?, ?, ?, ?)", rows)
            self._connection.execute("DELETE FROM underway WHERE image_index = ?", (image_index,))
            self._connection.executemany("INSERT INTO underway VALUES (?, ?, ?, ?, ?, ?)", begun)

    def save_result(self, result: ImageResult) -> None:
        """Record a finished image and drop its partial tallies; kept from the next commit on."""
        with reporting(self.folder):
            self._connection.execute(
                "INSERT INTO images VALUES (?, ?, ?, ?)",
                (result.image_index, result.true_label, result.certificate.to_json(), result.seconds),
            )
            for table in ("partial", "underway"):
                self._connection.execute(f"DELETE FROM {table} WHERE image_index = ?", (result.image_index,))


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
    from safetensors.torch import load

    start = hashlib.sha256().digest_size
    if not isinstance(data, bytes) or hashlib.sha256(data[start:]).digest() != data[:start]:
        raise ValueError("expected tensors as they were written, got others")
    return load(data[start:])
