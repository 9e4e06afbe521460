"""The summary: sentences that a reader can quote, a run each, and the remarks of the terminal's report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from diffproof.intervals import Share
from diffproof.runs.attack.report import AttackReport, AttackRow
from diffproof.runs.certify.report import Report, Row
from diffproof.runs.labels import short_source
from diffproof.runs.settings import RunSettings
from diffproof.runs.status import Status
from diffproof.web.markup import Child, Html, markup, tag
from diffproof.web.report.names import names
from diffproof.web.report.opened import Opened
from diffproof.web.report.shares import certified_share, interval_in_words, percent
from diffproof.wording import counted

# Radii of a sentence, and sentences that are not folded away.
_RADII, _OPEN = 3, 8
# How far the share among the finished images tells that among others.
_INTERVALS = (
    "Intervals are exact 95% Clopper–Pearson intervals of each share by itself: what is to be expected of"
    " further images drawn as these were."
)
_AT_ANY_TIME = (
    " Of a run that ended once its accuracy was known, they are of all of its images, and hold at any time."
)


def summary(opened: Opened) -> Html:
    """What the runs show, in words."""
    report = opened.report
    if isinstance(report, Report):
        told = zip(names(report), report.rows, strict=True)
        sentences = [_certified(name, row, report.radii) for name, row in told]
    else:
        sentences = [_attacked(name, row) for name, row in zip(names(report), report.rows, strict=True)]
    at_any_time = any(getattr(row.settings, "until_half_width", None) is not None for row in report.rows)
    items = [tag("li", sentence) for sentence in sentences]
    further = len(items) - _OPEN
    more = tag(
        "details",
        tag("summary", counted(further, "more sentence")),
        tag("ul", items[_OPEN:], class_="sentences"),
    )
    ahead = [tag("li", f"{pair.sentence}.") for pair in report.comparisons.pairs]
    notes = [tag("li", remark) for remark in (*report.remarks, *report.comparisons.remarks)]
    return markup(
        [tag("p", told, class_="going") for told in going(folder.status for folder in opened.folders)],
        tag("ul", items[:_OPEN], class_="sentences"),
        more if further > 0 else None,
        tag("p", _INTERVALS + _AT_ANY_TIME * at_any_time, class_="small"),
        (tag("h3", "Who is ahead"), tag("ul", ahead, class_="comparisons")) if ahead else None,
        (tag("h3", "Notes"), tag("ul", notes, class_="notes")) if notes else None,
    )


def what(report: Report | AttackReport) -> str:
    """What is compared, on which images."""
    kind = "certification run" if isinstance(report, Report) else "attack run"
    numbers: dict[str, list[int]] = {}
    for row in report.rows:
        numbers.setdefault(_source(row.settings), []).append(len(row.results))
    sets = []
    for source, found in numbers.items():
        least = f"{min(found):,} to " if min(found) < max(found) else ""
        sets.append(f"{least}{counted(max(found), 'image')} of {source}")
    return f"{counted(len(report.rows), kind)} on {' or '.join(sets)}."


def _images(settings: RunSettings, images: int) -> str:
    return f"{counted(images, 'image')} of {_source(settings)}"


def _source(settings: RunSettings) -> str:
    return short_source(settings.data) + (f" ({settings.split})" if settings.split else "")


def going(statuses: Iterable[Status]) -> list[str]:
    """What is said of runs that have not come to their end."""
    states = {"running": "is still going", "unknown": "may still be going, on another machine"}
    return [
        f"{one.folder} {states.get(one.state, f'is not complete ({one.state})')}: {one.finished:,} of"
        f" {counted(one.part, 'image')} finished. What is shown is of these alone and may change."
        for one in statuses
        if one.state != "finished"
    ]


def _certified(name: str, row: Row, asked: Sequence[float]) -> Sequence[Child]:
    """A run's sentences: accuracy at some radii, ACR, wrong and abstained."""
    images = _images(row.settings, len(row.results))
    told: list[str] = []
    for radius in [one for one in asked if one <= row.largest_radius][:_RADII]:
        share, interval = _share(certified_share(row, radius), row.certified_accuracy(radius))
        unit = "" if any("ℓ2" in one for one in told) else "ℓ2 radius "
        within = f"within {unit}{radius:g}" if radius else "at all"
        # The first bracket says what all are.
        told.append(
            f"{share} {within}{interval}" if told else f"{share} of {images} {within}{_first(interval)}"
        )
    rights = f"the right label for {_listed(told)}" if told else f"no radius of the table, of {images}"
    return (
        f"At σ = {row.settings.sigma:g}, ",
        tag("code", name),
        f" certifies {rights}. The average certified radius is {row.average_radius:.3f};"
        f" {percent(row.wrong)} are certified with a wrong label,"
        f" {percent(row.abstained)} have no certificate.",
    )


def _attacked(name: str, row: AttackRow) -> Sequence[Child]:
    """A run's sentences: the majority before and after, and the worst draw."""
    settings, images = row.settings, _images(row.settings, len(row.results))
    votes, draws = counted(settings.majority_of, "draw"), counted(settings.draws, "draw")
    majority, its_interval = _share(row.attacked.majority, row.attacked.majority.value)
    worst, the_worst_interval = _share(row.attacked.worst, row.attacked.worst.value)
    return (
        "Under ",
        tag("code", settings.describe_attack()),
        ", ",
        tag("code", name),
        f" keeps {majority} of {images} right{_first(its_interval)}, by the majority of {votes}; without an"
        f" attack it has {percent(row.clean.majority.value)} right. {worst} are right under every one of"
        f" {draws}{the_worst_interval}.",
    )


def _share(share: Share | None, value: float) -> tuple[str, str]:
    """A share, and its interval in brackets where it is known."""
    return percent(value), "" if share is None else f" ({interval_in_words(share)})"


def _first(interval: str) -> str:
    """An interval that says what it is."""
    return interval.replace("(", "(95% interval ", 1)


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
