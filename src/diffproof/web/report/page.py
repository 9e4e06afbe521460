"""The page: its parts in order, in one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
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


def report_page(opened: Opened) -> str:
    """The report of opened runs as one HTML document, the same text for the same runs.

    Scripts only add to it: everything is there without. A policy within the document allows its own style and
    script, pictures that it holds, and nothing else.
    """
    parts = _parts(opened)
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    heading = "Certified robustness" if isinstance(opened.report, Report) else "Robustness under attack"
    return Template(_asset("page.html")).substitute(
        policy=policy,
        title=markup(f"{heading}: {what(opened.report)}"),
        heading=markup(heading),
        about=markup(what(opened.report)),
        links=markup(*(tag("a", title, href=f"#{name}") for name, title, _ in parts)),
        parts=markup(*(_part(*part) for part in parts)),
        style=style,
        script=script,
        version=markup(version()),
    )


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
