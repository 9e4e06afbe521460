"""The page: its parts in order, in one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from string import Template

from diffproof.runs.certify.report import Report
from diffproof.version import version
from diffproof.web.markup import Html, markup, tag
from diffproof.web.report.bars import bars
from diffproof.web.report.curves import curves
from diffproof.web.report.gallery import cards, gallery
from diffproof.web.report.names import whole_names
from diffproof.web.report.opened import Opened
from diffproof.web.report.provenance import costs, provenance
from diffproof.web.report.summary import summary, what
from diffproof.web.report.table import results_table
from diffproof.web.report.thumbnails import Album
from diffproof.wording import counted


@dataclass(frozen=True)
class Live:
    """What a page has besides that is served and renews itself.

    Attributes:
        script: what renews it.
        style: of what it says of that.
        seconds: after which a browser without scripts asks again.
    """

    script: str
    style: str
    seconds: int


# Where a live page says how far its runs are.
STRIP = "<!-- how far the runs are -->"


def report_page(opened: Opened, live: Live | None = None) -> str:
    """The report of opened runs as one HTML document, the same text for the same runs.

    Scripts only add to it: everything is there without. A policy within the document allows its own style and
    script, pictures that it holds, and nothing else.

    Args:
        opened: the runs.
        live: of a page that is served: it may ask its own server, and holds STRIP. None for a file.
    """
    heading = "Certified robustness" if isinstance(opened.report, Report) else "Robustness under attack"
    return _document(heading, what(opened.report), _parts(opened), live)


def waiting_page(live: Live) -> str:
    """The page before any image is finished; see `report_page`."""
    told = tag("p", "No image is finished yet. This page shows the report as soon as one is.")
    return _document(
        "Robustness", "Runs that have begun, or are to begin.", [("summary", "Summary", told)], live
    )


def _document(heading: str, about: str, parts: list[tuple[str, str, Html]], live: Live | None) -> str:
    style, script = _asset("report.css"), _asset("report.js")
    scripts = [script] if live is None else [script, live.script]
    style += "" if live is None else live.style
    asks = "" if live is None else " connect-src 'self';"
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {' '.join(map(_hash, scripts))};"
        f" img-src data:;{asks} base-uri 'none'; form-action 'none'"
    )
    return Template(_asset("page.html")).substitute(
        policy=policy,
        title=markup(f"{heading}: {about}"),
        heading=markup(heading),
        about=markup(about),
        links=markup(*(tag("a", title, href=f"#{name}") for name, title, _ in parts)),
        parts=markup(*(_part(*part) for part in parts)),
        style=style,
        script=script,
        version=markup(version()),
        **_additions(live),
    )


def _additions(live: Live | None) -> dict[str, str]:
    """What a served page has in the places of the document that are empty in a file."""
    if live is None:
        loads = "This page is one file: it loads nothing, and sends nothing."
        return {"again": "", "live": "", "renewing": "", "loads": loads}
    again = tag("meta", http_equiv="refresh", content=live.seconds)
    return {
        "again": f"\n<noscript>{again}</noscript>",
        "live": f"\n{STRIP}",
        "renewing": f"\n<script>{live.script}</script>",
        "loads": "This page asks nobody but the diffproof that serves it.",
    }


def _parts(opened: Opened) -> list[tuple[str, str, Html]]:
    """Name, title and content of each part."""
    report = opened.report
    certified = isinstance(report, Report)
    meaning = "What a certificate says, and what it does not" if certified else "What an attack says"
    return [
        ("summary", "Summary", summary(opened)),
        ("chart", "Certified accuracy", curves(report))
        if isinstance(report, Report)
        else ("chart", "Robust accuracy", bars(report)),
        ("table", "Table", results_table(report)),
        ("meaning", meaning, Html(_asset("certificates.html" if certified else "attacks.html"))),
        ("images", "Images", _images(opened)),
        ("cost", "Cost", costs(report)),
        ("runs", "Runs", provenance(opened)),
    ]


def _part(name: str, title: str, content: Html) -> Html:
    return tag(
        "section", tag("h2", title, id=f"{name}-title"), content, id=name, aria_labelledby=f"{name}-title"
    )


def _images(opened: Opened) -> Html:
    """Every image, and why pictures are not there."""
    album = Album()
    made = cards(opened, album)
    uris, side = album.uris()
    missing = sum(card.clean is None for card in made)
    reasons = list(dict.fromkeys(source.why_not for source in opened.sources.values() if source.why_not))
    told = []
    if missing:
        given = not reasons and "the data has others than the runs had, by their hashes"
        told.append(
            f"{counted(missing, 'picture')} of {len(made):,} not here: {'; '.join(reasons) or given}."
        )
    if side is not None:
        told.append(f"Pictures are shrunk to {side} pixels, so that the page is not too large.")
    return markup([tag("p", line) for line in told], gallery(made, uris, whole_names(opened.report)))


def _asset(name: str) -> str:
    return (files("diffproof.web.report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a policy calls an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
