"""How each run was made: settings, versions, hashes, the command that repeats it; and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from diffproof.runs.attack.report import AttackReport, AttackRow
from diffproof.runs.attack.store import AttackedImage
from diffproof.runs.certify.report import Report, Row
from diffproof.runs.certify.store import ImageResult
from diffproof.runs.repeating import command
from diffproof.runs.settings_file import settings_text
from diffproof.web.markup import Child, Html, tag
from diffproof.web.report.names import names
from diffproof.web.report.opened import Folder, Opened
from diffproof.web.report.table import sortable
from diffproof.wording import counted, duration

_CERTIFIED = (
    "defence",
    "sigma",
    "draws an image",
    "denoiser evaluations",
    "saved",
    "classifier evaluations",
    "saved",
)
_ATTACKED = ("defence", "attack", "forward passes", "gradients", "forward passes an image")


def provenance(opened: Opened) -> Html:
    """A part for each run folder."""
    return tag("div", [_folder(opened, folder) for folder in opened.folders])


def _folder(opened: Opened, folder: Folder) -> Html:
    status, identity = folder.status, folder.identity
    facts: list[tuple[str, Child]] = [
        ("what", status.description),
        ("state", f"{status.state}, {status.finished:,} of {counted(status.part, 'image')} finished"),
        ("made by", f"diffproof {', '.join(_versions(opened, folder)) or 'of an unknown version'}"),
        ("weights (SHA-256)", tag("code", identity.weights_hash)),
        ("images and labels (SHA-256)", tag("code", identity.data_hash)),
    ]
    facts += [
        (f"code of {name} (SHA-256)", tag("code", digest or "no file"))
        for name, digest in identity.code.items()
    ]
    facts += [("worked on", _session(one.started, one.told, one.host, one.ended)) for one in status.sessions]
    facts += [("settings.yaml", edit) for edit in folder.edits]
    repeated = command(folder.settings, folder.path)
    return tag(
        "details",
        tag("summary", tag("code", str(folder.path))),
        tag("dl", [(tag("dt", name), tag("dd", told)) for name, told in facts]),
        tag("p", "The command that repeats it:"),
        tag("pre", tag("code", repeated), tabindex=0),
        tag("p", "Its settings:"),
        tag("pre", tag("code", settings_text(folder.settings, identity.code).rstrip()), tabindex=0),
        open=len(opened.folders) == 1,
    )


def _versions(opened: Opened, folder: Folder) -> list[str]:
    """The versions of diffproof that finished its images."""
    if isinstance(opened.report, Report):
        certified = [row.results for row in opened.report.rows if folder.path in row.folders]
        return sorted({result.certificate.version for results in certified for result in results})
    attacked = [row.results for row in opened.report.rows if row.folder == folder.path]
    return sorted({image.version for results in attacked for image in results})


def _session(started: float, told: float, host: str, ended: str | None) -> str:
    begun = datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{begun}, for {duration(told - started)}, on {host}{'' if ended is None else f': {ended}'}"


def costs(report: Report | AttackReport) -> Html:
    """Evaluations spent and saved, and time, a run in a row."""
    if isinstance(report, Report):
        return sortable(
            "Evaluations of networks that the certificates took, and what stopping early saved",
            [*_CERTIFIED, "time"],
            [_certified_cost(name, row) for name, row in zip(names(report), report.rows, strict=True)],
            1,
        )
    return sortable(
        "Evaluations of the defence that the attacks took",
        [*_ATTACKED, "time"],
        [_attack_cost(name, row) for name, row in zip(names(report), report.rows, strict=True)],
        2,
    )


def _certified_cost(name: str, row: Row) -> list[Child]:
    certificates = [result.certificate for result in row.results]
    cells: list[Child] = [
        name,
        f"{row.settings.sigma:g}",
        f"{row.draws:,.0f} of {row.settings.n:,}",
    ]
    for what in ("denoiser_evaluations", "classifier_evaluations"):
        spent, naive = (sum(getattr(one, f"{kind}{what}") for one in certificates) for kind in ("", "naive_"))
        cells += [f"{spent:,}", f"{1 - spent / naive:.0%}" if naive else "–"]
    return [*cells, _time(row.results)]


def _attack_cost(name: str, row: AttackRow) -> list[Child]:
    results = [image.evaluated.result for image in row.results if image.evaluated.result is not None]
    forwards, backwards = (sum(getattr(one, what) for one in results) for what in ("forwards", "backwards"))
    mean = f"{forwards / len(results):,.0f}" if results else "–"
    return [
        name,
        row.settings.describe_attack(),
        f"{forwards:,}",
        f"{backwards:,}",
        mean,
        _time(row.results),
    ]


def _time(results: Sequence[ImageResult] | Sequence[AttackedImage]) -> Html:
    """The time that images took, which sorts by its seconds."""
    seconds = sum(result.seconds for result in results)
    return tag("data", duration(seconds), value=f"{seconds:.3f}")
