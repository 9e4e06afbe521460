"""What a certification run holds: a row a finished image, partial tallies of the one in work."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from diffproof.runs.settings import CertifySettings
from diffproof.runs.store import RunStore, reporting
from diffproof.smoothing.certificate import Certificate
from diffproof.smoothing.smoothed import Tally


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
class Partial:
    """Tallies of the image in work, and the seconds they took."""

    selection: Tally | None = None
    estimation: Tally | None = None
    seconds: float = 0.0


class CertifyStore(RunStore[CertifySettings]):
    """The run folder of `diffproof certify`."""

    kind = "certification run"
    settings_type = CertifySettings
    table = "images"
    tables = """
CREATE TABLE images (
    image_index INTEGER PRIMARY KEY, true_label INTEGER NOT NULL, certificate TEXT NOT NULL,
    seconds REAL NOT NULL
);
CREATE TABLE partial (
    image_index INTEGER, stream TEXT, tally TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (image_index, stream)
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
            return [
                ImageResult(index, label, Certificate.from_json(text), seconds)
                for index, label, text, seconds in rows
            ]

    def partial(self, image_index: int) -> Partial:
        """What is saved of an image in work."""
        with reporting(self.folder):
            rows = self._connection.execute(
                "SELECT stream, tally, seconds FROM partial WHERE image_index = ?", (image_index,)
            ).fetchall()
            tallies = {stream: json.loads(tally) for stream, tally, _ in rows}
            loaded = {
                stream: Tally(**{**fields, "counts": tuple(fields["counts"])})
                for stream, fields in tallies.items()
            }
        return Partial(
            loaded.get("selection"),
            loaded.get("estimation"),
            max((seconds for *_, seconds in rows), default=0.0),
        )

    def save_partial(self, image_index: int, partial: Partial) -> None:
        """Record the tallies of the image in work; kept from the next commit on."""
        tallies = {"selection": partial.selection, "estimation": partial.estimation}
        rows = [
            (image_index, stream, json.dumps(asdict(tally)), partial.seconds)
            for stream, tally in tallies.items()
            if tally is not None
        ]
        with reporting(self.folder):
            self._connection.executemany("INSERT OR REPLACE INTO partial VALUES (?, ?, ?, ?)", rows)

    def save_result(self, result: ImageResult) -> None:
        """Record a finished image and drop its partial tallies; kept from the next commit on."""
        with reporting(self.folder):
            self._connection.execute(
                "INSERT INTO images VALUES (?, ?, ?, ?)",
                (result.image_index, result.true_label, result.certificate.to_json(), result.seconds),
            )
            self._connection.execute("DELETE FROM partial WHERE image_index = ?", (result.image_index,))
