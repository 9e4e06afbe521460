"""Run folders opened for a page: what the report says of them, what they are made of, their pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffproof.runs.attack.report import AttackReport
from diffproof.runs.attack.store import AttackStore
from diffproof.runs.certify.report import Report
from diffproof.runs.certify.store import CertifyStore
from diffproof.runs.places import Places
from diffproof.runs.settings import AttackSettings, CertifySettings
from diffproof.runs.status import Status, load_status
from diffproof.runs.store import Identity
from diffproof.web.report.source import Source, open_sources


@dataclass(frozen=True)
class Folder:
    """A run folder.

    Attributes:
        path: as it was named.
        settings: the run's.
        identity: what it is made of besides.
        status: how far it is.
        edits: what its settings.yaml says otherwise.
    """

    path: Path
    settings: CertifySettings | AttackSettings
    identity: Identity
    status: Status
    edits: list[str]


@dataclass(frozen=True)
class Opened:
    """Runs of one kind, opened for a page.

    Attributes:
        report: what the terminal's report says of them.
        folders: them, in the order of its rows.
        sources: where their images come from, by path of the run.
    """

    report: Report | AttackReport
    folders: list[Folder]
    sources: dict[Path, Source]


def open_runs(report: Report | AttackReport, places: Places) -> Opened:
    """Open the folders of a report, finished or at work, for a page.

    Args:
        report: of certifications or of attacks.
        places: where images and names of classes may be read from.

    Raises:
        ValueError: a folder is not what it was, or data that was given cannot be read.
    """
    if isinstance(report, Report):
        opened = [_open(folder, CertifyStore) for row in report.rows for folder in row.folders]
    else:
        opened = [_open(row.folder, AttackStore) for row in report.rows]
    sources = open_sources([(one.path, one.settings) for one in opened], places)
    return Opened(report, opened, sources)


def _open(folder: Path, store_type: type[CertifyStore] | type[AttackStore]) -> Folder:
    with store_type.reading(folder) as store:
        return Folder(folder, store.settings, store.identity, load_status(folder), store.edited())
