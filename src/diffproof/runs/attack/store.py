"""What an attack run holds: a row an attacked image, with its pictures, and what the diagnostics found."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffproof.attacks.diagnostics.finding import Finding
from diffproof.attacks.evaluation import Evaluated
from diffproof.attacks.result import AttackResult
from diffproof.checks import check_at_least
from diffproof.fields import check_fields
from diffproof.files import check_array
from diffproof.runs.database import naming, reporting
from diffproof.runs.settings import AttackSettings
from diffproof.runs.store import RunStore, check_seconds
from diffproof.texts import parse_json


@dataclass(frozen=True)
class AttackedImage:
    """A finished image.

    Attributes:
        evaluated: what was found for it.
        clean: C×H×W in [0, 1].
        purified: C×H×W, the attacked image after one purification; None where it was not attacked or the
            defence does not purify.
        protocol: the protocol that the run follows, if any.
        image_hash: SHA-256 of the clean image, see `weights.hash_tensors`.
        version: of diffproof.
        seconds: what it took.
    """

    evaluated: Evaluated
    clean: Tensor
    purified: Tensor | None
    protocol: str | None
    image_hash: str
    version: str
    seconds: float


class AttackStore(RunStore[AttackSettings]):
    """The run folder of `diffproof attack`."""

    kind = "attack run"
    settings_type = AttackSettings
    table = "attacked"
    stamped = "result"
    merged = ("attacked", "known_noise", "findings")
    tables = """
CREATE TABLE IF NOT EXISTS attacked (
    image_index INTEGER PRIMARY KEY, true_label INTEGER NOT NULL, result TEXT NOT NULL,
    clean BLOB NOT NULL, adversarial BLOB, purified BLOB, seconds REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS known_noise (image_index INTEGER PRIMARY KEY, adversarial BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS findings (json TEXT NOT NULL);
"""

    def results(self) -> list[AttackedImage]:
        """All finished images by index.

        Raises:
            ValueError: the store is corrupt.
        """
        with reporting(self.folder):
            rows = self._connection.execute(
                "SELECT image_index, true_label, result, clean, adversarial, purified, seconds FROM attacked"
                " ORDER BY image_index"
            ).fetchall()
            known: dict[int, bytes] = {}
            if self.settings.fixed_noise and self._has("known_noise"):
                known = dict(self._connection.execute("SELECT image_index, adversarial FROM known_noise"))
            drawn = max(self.settings.draws, self.settings.majority_of)
            return [_attacked(*row, known=known.get(row[0]), drawn=drawn) for row in rows]

    def _has(self, table: str) -> bool:
        """Whether the store has a table, which those of earlier versions may lack."""
        asked = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
        return self._connection.execute(asked, (table,)).fetchone() is not None

    def save_results(self, results: Sequence[AttackedImage]) -> None:
        """Record finished images and make them survive a crash."""
        with reporting(self.folder):
            self._connection.executemany(
                "INSERT INTO attacked VALUES (?, ?, ?, ?, ?, ?, ?)", [_row(result) for result in results]
            )
            found = {one.evaluated.image_index: one.evaluated.fixed_adversarial for one in results}
            self._connection.executemany(
                "INSERT INTO known_noise VALUES (?, ?)",
                [(index, _to_bytes(image)) for index, image in found.items() if image is not None],
            )
        self.commit()

    def findings(self) -> list[Finding] | None:
        """What the diagnostics found; None where they have not run."""
        with reporting(self.folder):
            row = self._connection.execute("SELECT json FROM findings").fetchone()
            with naming("findings"):
                found = [] if row is None else parse_json(row[0])
                checked = [Finding(**check_fields(Finding, fields)) for fields in found]
        return None if row is None else checked

    def save_findings(self, findings: Sequence[Finding]) -> None:
        """Record what the diagnostics found and make it survive a crash."""
        with reporting(self.folder):
            text = json.dumps([asdict(finding) for finding in findings])
            self._connection.execute("INSERT INTO findings VALUES (?)", (text,))
        self.commit()


def _row(image: AttackedImage) -> tuple[Any, ...]:
    evaluated = image.evaluated
    result = evaluated.result
    fields = {
        "clean_labels": evaluated.clean_labels,
        "labels": evaluated.labels,
        "control_wrong": evaluated.control_wrong,
        "fixed_clean": evaluated.fixed_clean,
        "fixed_right": evaluated.fixed_right,
        "protocol": image.protocol,
        "image_hash": image.image_hash,
        "version": image.version,
        "result": None
        if result is None
        else {
            "norm": result.norm,
            "first_success": result.first_success,
            "forwards": result.forwards,
            "backwards": result.backwards,
            "draws": result.draws,
            "zero_gradients": result.zero_gradients,
        },
    }
    return (
        evaluated.image_index,
        evaluated.true_label,
        json.dumps(fields),
        _to_bytes(image.clean),
        None if result is None else _to_bytes(result.adversarial),
        None if image.purified is None else _to_bytes(image.purified),
        image.seconds,
    )


def _attacked(
    index: int,
    label: int,
    text: str,
    clean: bytes,
    adversarial: bytes | None,
    purified: bytes | None,
    seconds: float,
    *,
    known: bytes | None,
    drawn: int,
) -> AttackedImage:
    """A row of the table of attacked images.

    Raises:
        ValueError: someone changed it to what no run writes.
    """
    with naming(f"image {index}"):
        fields: dict[str, Any] = parse_json(text)
        result = fields.pop("result", None)
        names = ("clean_labels", "labels", "control_wrong", "fixed_clean", "fixed_right")
        one = {name: fields.pop(name) for name in names if name in fields}
        pictures = {
            "clean": _to_tensor("clean", clean),
            "purified": None if purified is None else _to_tensor("purified", purified),
        }
        if adversarial is not None:
            found = _to_tensor("adversarial", adversarial)
            given = {**(result or {}), "image_index": index, "label": label, "adversarial": found}
            result = AttackResult(**check_fields(AttackResult, given))
        one |= {"image_index": index, "true_label": label, "result": result}
        if known is not None:
            one["fixed_adversarial"] = _to_tensor("known_noise", known)
        evaluated = Evaluated(**check_fields(Evaluated, one))
        values = {**fields, **pictures, "evaluated": evaluated, "seconds": seconds}
        image = AttackedImage(**check_fields(AttackedImage, values))
        _check_image(image, drawn)
    return image


def _check_image(image: AttackedImage, drawn: int) -> None:
    """Raise ValueError where a field of an image can be of no run."""
    one = image.evaluated
    counts = len(one.clean_labels), len(one.labels)
    if counts != (drawn, 0 if one.result is None else drawn):
        raise ValueError(f"{counts[0]} and {counts[1]} labels, expected {drawn}")
    for name in ("image_index", "true_label"):
        check_at_least(name, getattr(one, name), 0)
    if min(one.clean_labels + one.labels) < 0:
        raise ValueError("a label is negative")
    check_seconds(image.seconds)
    adversarial = None if one.result is None else one.result.adversarial
    pictures = {
        "purified": image.purified,
        "adversarial": adversarial,
        "known_noise": one.fixed_adversarial,
    }
    for name, pixels in pictures.items():
        if pixels is not None and pixels.shape != image.clean.shape:
            shapes = tuple(image.clean.shape), tuple(pixels.shape)
            raise ValueError(f"{name}: expected the shape {shapes[0]}, got {shapes[1]}")


def _to_bytes(image: Tensor) -> bytes:
    """A tensor as a .npy file."""
    file = io.BytesIO()
    np.save(file, image.detach().cpu().numpy(), allow_pickle=False)
    return file.getvalue()


def _to_tensor(name: str, data: bytes) -> Tensor:
    # Pixels outside [0, 1] are for `verify` to find.
    with naming(name):
        check_array(io.BytesIO(data), len(data))
        array = np.load(io.BytesIO(data), allow_pickle=False)
        if array.dtype != np.float32 or array.ndim != 3 or not np.isfinite(array).all():
            raise ValueError(f"expected finite float32 pixels C×H×W, got {array.dtype} {array.shape}")
        return torch.from_numpy(array)
