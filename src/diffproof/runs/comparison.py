"""Runs paired on the images that both have: who is ahead by each measure, by how much, and whether by chance.

`certify.report` and `attack.report` say what a run got right; what follows from that is the same for both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from diffproof.errors import ArgumentError
from diffproof.files import write_csv
from diffproof.paired import PairedDifference, holm
from diffproof.wording import counted

# Chance of a wrong "ahead" or "behind" among all comparisons of a report.
LEVEL = 0.05
# Ends of an interval this far apart, in points, need no decimals.
_WIDE = 10

# A radius, or the name of an accuracy.
Measure = float | str


class Verdict(StrEnum):
    """What a comparison says of the first run.

    AHEAD: more is right than of the other, by the corrected test.
    BEHIND: less is.
    LEVEL: neither is shown, and the interval of the difference holds 0.
    UNDECIDED: the interval does not hold 0, but the test corrected for all comparisons rejects nothing.
    """

    AHEAD = "ahead"
    BEHIND = "behind"
    LEVEL = "level"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Contestant:
    """A run as comparisons see it.

    Attributes:
        label: its defence, with what tells it from most others.
        setting: what it was put to, where that is not the same in all runs.
        folders: its run folder, or those of its parts.
        group: runs of one group are compared, such as those of one sigma.
        source: its data set.
        images: of each finished image, by index, its true label, its hash, and what the hash depends on
            besides the pixels.
        right: by measure the images, by index, that count and whether each is right; None where the run does
            not tell.
        caveat: what a reader of its comparisons must know.
    """

    label: str
    setting: str
    folders: tuple[Path, ...]
    group: object
    source: str
    images: Mapping[int, tuple[int, str, object]]
    right: Mapping[Measure, Mapping[int, bool] | None]
    caveat: str = ""


@dataclass(frozen=True)
class Compared:
    """One measure of a run beside that of another.

    Attributes:
        difference: its share minus the other's, with the interval and the exact p-value.
        corrected: the p-value corrected for all comparisons of the report (Holm).
    """

    difference: PairedDifference
    corrected: float

    @property
    def verdict(self) -> Verdict:
        """Whether the run is ahead."""
        if self.corrected <= LEVEL:
            return Verdict.AHEAD if self.difference.value > 0 else Verdict.BEHIND
        holds_zero = self.difference.low <= 0.0 <= self.difference.high
        return Verdict.LEVEL if holds_zero else Verdict.UNDECIDED

    @property
    def words(self) -> str:
        """The verdict with its interval: "ahead by 3 to 9 points", "level (−4 to +2 points)"."""
        by = "by " if self.verdict in (Verdict.AHEAD, Verdict.BEHIND) else ""
        return f"{self.verdict} {by}{self.range}" if by else f"{self.verdict} ({self.range})"

    @property
    def range(self) -> str:
        """The interval in words: of how far it is ahead or behind, else with signs."""
        low, high = self.difference.low, self.difference.high
        if self.verdict is Verdict.BEHIND:
            low, high = -high, -low
        shown = self.verdict in (Verdict.AHEAD, Verdict.BEHIND)
        return f"{' to '.join(points(low, high, '' if shown else '+'))} points"


def points(low: float, high: float, sign: str = "+") -> list[str]:
    """The ends of an interval of shares in points, with as many decimals as it deserves."""
    wide = 100 * (high - low) >= _WIDE and min(abs(low), abs(high)) >= 0.005
    # Adding 0 makes −0 positive.
    texts = (f"{round(100 * end, 0 if wide else 1) + 0.0:{sign}.{0 if wide else 1}f}" for end in (low, high))
    return [text.replace("-", "−") for text in texts]


@dataclass(frozen=True)
class Comparison:
    """A run beside another, on the images that both have.

    Attributes:
        label: the run's.
        against: the other one's.
        setting: what both were put to, or each, where that is not the same in all runs of the report.
        folders: of the run.
        against_folders: of the other one.
        images: how many both have.
        at: what was compared, by measure; None where one of the two does not tell, or neither has an image
            right.
    """

    label: str
    against: str
    setting: str
    folders: tuple[Path, ...]
    against_folders: tuple[Path, ...]
    images: int
    at: dict[Measure, Compared | None]

    @property
    def title(self) -> str:
        """What is compared with what."""
        return f"{self.label} against {self.against}{f', {self.setting}' * bool(self.setting)}"

    @property
    def sentence(self) -> str:
        """All of it in words."""
        by_verdict: dict[Verdict | None, list[str]] = {}
        # What is not compared comes last.
        for measure, compared in sorted(self.at.items(), key=lambda one: one[1] is None):
            verdict = None if compared is None else compared.verdict
            by_verdict.setdefault(verdict, []).append(_told(measure, compared))
        # A group's first place says what all others are, too.
        parts = (f"{verdict or 'not compared'} {', '.join(places)}" for verdict, places in by_verdict.items())
        return f"{self.title}, {counted(self.images, 'image')}: {'; '.join(parts)}"


def _told(measure: Measure, compared: Compared | None) -> str:
    """A place behind its verdict: "by 3 to 9 points at ε=0.5", "at ε=1 (−4 to +2 points)"."""
    place = f"in {measure}" if isinstance(measure, str) else f"at {worded(measure)}"
    if compared is None:
        return place
    shown = compared.verdict in (Verdict.AHEAD, Verdict.BEHIND)
    return f"by {compared.range} {place}" if shown else f"{place} ({compared.range})"


def worded(measure: Measure) -> str:
    """A measure as a column names it."""
    return measure if isinstance(measure, str) else f"ε={measure:g}"


def compare(contestants: Sequence[Contestant], folders: Sequence[Path], against: Path | None) -> Comparisons:
    """Compare each run with the first of its group, or all runs with one.

    Args:
        contestants: the runs of a report.
        folders: in the order in which they were named.
        against: the folder of the run to compare all others with; None for the first named of each group.

    Raises:
        ValueError: runs of different data, or `against` is none of them.
    """
    _check_data(contestants)
    named = _told_apart(contestants)
    pairs: list[Comparison] = []
    remarks: list[str] = []
    for one, other in _pairs(named, folders, against):
        common = sorted(one.images.keys() & other.images.keys())
        if common:
            pairs.append(_paired(one, other, common))
            remarks += [caveat for caveat in (other.caveat, one.caveat) if caveat and caveat not in remarks]
        elif one.source == other.source:
            pair = f"{one.folders[0]} and {other.folders[0]}"
            remarks.append(f"{pair} have no image in common: not compared")
        else:
            told = f"{one.folders[0]} is of {one.source}, {other.folders[0]} of {other.source}"
            raise ArgumentError("runs", f"expected runs of the same data, {told}")
    tests = sum(compared is not None for pair in pairs for compared in pair.at.values())
    if tests:
        how = "95% score intervals (Tango 1998), p-values of exact McNemar tests"
        remarks.insert(0, f"comparisons: {how}{f', corrected for all {tests:,} (Holm)' * (tests > 1)}")
    return Comparisons(_corrected(pairs), remarks)


def _check_data(contestants: Iterable[Contestant]) -> None:
    """Raise ValueError unless images of one index are the same in all runs."""
    hashes: dict[tuple[int, object], tuple[str, Path]] = {}
    labels: dict[int, tuple[int, Path]] = {}
    for one in contestants:
        folder = one.folders[0]
        for index, (label, image_hash, depends) in one.images.items():
            was, where = labels.setdefault(index, (label, folder))
            same, place = hashes.setdefault((index, depends), (image_hash, folder))
            if (label, image_hash) != (was, same):
                told = f"label in {folder} than in {where}"
                if image_hash != same:
                    told = f"picture in {folder} than in {place}"
                raise ArgumentError(
                    "runs", f"expected runs of the same data, image {index} has another {told}"
                )


def _told_apart(contestants: Sequence[Contestant]) -> list[Contestant]:
    """The same with names that no two share: with the folder's name, or its path, where need be."""
    names = Counter((one.label, one.setting) for one in contestants)
    folders = Counter(one.folders[0].name for one in contestants)

    def folder(one: Contestant) -> str:
        path = one.folders[0]
        return path.name if path.name and folders[path.name] == 1 else str(path)

    return [
        replace(one, label=f"{one.label} ({folder(one)})") if names[one.label, one.setting] > 1 else one
        for one in contestants
    ]


def _pairs(
    contestants: Sequence[Contestant], folders: Sequence[Path], against: Path | None
) -> Iterator[tuple[Contestant, Contestant]]:
    """Each run with the one that it is compared with."""
    if against is not None:
        asked = against.resolve()
        other = next((one for one in contestants if asked in [part.resolve() for part in one.folders]), None)
        if other is None:
            raise ArgumentError("against", f"expected one of the runs, got {against}")
        yield from ((one, other) for one in contestants if one is not other)
        return

    def place(one: Contestant) -> int:
        return min(folders.index(part) for part in one.folders)

    firsts: dict[object, Contestant] = {}
    for one in sorted(contestants, key=place):
        firsts.setdefault(one.group, one)
    yield from ((one, firsts[one.group]) for one in contestants if one is not firsts[one.group])


def _paired(one: Contestant, other: Contestant, common: Sequence[int]) -> Comparison:
    at: dict[Measure, Compared | None] = {}
    for measure, right in one.right.items():
        others = other.right[measure]
        at[measure] = None
        if right is None or others is None:
            continue
        pair = [right[index] for index in common], [others[index] for index in common]
        if any(map(any, pair)):
            difference = PairedDifference.of(*pair)
            at[measure] = Compared(difference, difference.p_value)
    settings = " against ".join(dict.fromkeys((one.setting, other.setting)))
    return Comparison(one.label, other.label, settings, one.folders, other.folders, len(common), at)


@dataclass(frozen=True)
class Comparisons:
    """All of a report: of each run with another, and remarks that the reader needs."""

    pairs: list[Comparison]
    remarks: list[str]


def _corrected(pairs: Sequence[Comparison]) -> list[Comparison]:
    """The same with p-values corrected for all of them."""
    p_values = [one.difference.p_value for pair in pairs for one in pair.at.values() if one is not None]
    corrected = iter(holm(p_values))
    return [
        replace(
            pair,
            at={
                measure: None if one is None else replace(one, corrected=next(corrected))
                for measure, one in pair.at.items()
            },
        )
        for pair in pairs
    ]


def table_header(comparisons: Comparisons) -> list[str]:
    """Column names of a table of comparisons."""
    return ["defence", "images", *map(worded, comparisons.pairs[0].at)]


def table_cells(pair: Comparison) -> list[str]:
    """A comparison in the table as people read it: difference and interval in points, p-value below."""
    return [pair.title, str(pair.images), *map(_cell, pair.at.values())]


def _cell(compared: Compared | None) -> str:
    if compared is None:
        return "–"
    one = compared.difference
    value = f"{round(100 * one.value, 1) + 0.0:+.1f}".replace("-", "−")
    p_value = "p < 0.001" if compared.corrected < 0.001 else f"p = {compared.corrected:.3f}"
    return f"{value} ({' to '.join(points(one.low, one.high))})\n{p_value}"


def write_comparisons(comparisons: Comparisons, path: Path) -> None:
    """The comparisons as CSV, a line a measure of two runs, with shares in [−1, 1]."""
    about = ["defence", "against", "setting", "measure", "images"]
    found_in = ["difference", "low", "high", "gained", "lost", "p_value", "p_corrected", "verdict"]
    lines: list[list[object]] = [[*about, *found_in, "run", "against_run"]]
    for pair in comparisons.pairs:
        folders = ["; ".join(map(str, some)) for some in (pair.folders, pair.against_folders)]
        for measure, compared in pair.at.items():
            head = [pair.label, pair.against, pair.setting, worded(measure), pair.images]
            found: list[object] = [None] * len(found_in)
            if compared is not None:
                one = compared.difference
                ends = [f"{value:.6f}" for value in (one.value, one.low, one.high)]
                chances = [f"{value:.6g}" for value in (one.p_value, compared.corrected)]
                found = [*ends, one.gained, one.lost, *chances, compared.verdict]
            lines.append([*head, *found, *folders])
    write_csv(path, lines)
