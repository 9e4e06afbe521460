"""Tables and curves of certified accuracy from run folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from diffproof.catalog import DEFENSES
from diffproof.errors import ArgumentError
from diffproof.intervals import Share
from diffproof.runs.certify.accuracy import accuracies, told, untaken
from diffproof.runs.certify.store import CertifyStore, ImageResult, certification
from diffproof.runs.comparison import Comparisons, Contestant, compare
from diffproof.runs.folder import check_runs
from diffproof.runs.labels import differing, short_source, short_spec
from diffproof.runs.settings import CertifySettings
from diffproof.smoothing.certificate import certifies
from diffproof.smoothing.certification import Certification
from diffproof.smoothing.stopping import Stopping
from diffproof.wording import counted

# Settings that change what is certified and that a method's name does not hold.
_FURTHER = ("n", "n0", "alpha", "bound", "threshold", "seed", "precision", "compile")


@dataclass(frozen=True)
class Row:
    """One run in a table.

    Attributes:
        folders: its run folder, or those of its parts.
        settings: its settings; of parts, those of the first.
        weights_hash: SHA-256 of its networks.
        results: its finished images, by index.
        planned: how many images the run is to have.
        shares: see `accuracy.accuracies`.
    """

    folders: tuple[Path, ...]
    settings: CertifySettings
    weights_hash: str
    results: list[ImageResult]
    planned: int
    shares: dict[float, Share] = field(default_factory=dict)

    @property
    def largest_radius(self) -> float:
        """See `CertifySettings.largest_radius`."""
        return self.settings.largest_radius(len(self.results[0].certificate.counts))

    @property
    def draws(self) -> float:
        """Mean number of estimation draws of an image."""
        return float(np.mean([result.certificate.n for result in self.results]))

    @property
    def votes(self) -> tuple[float, int] | None:
        """Votes that were cast on a draw, on average, and how many there would be; None without a vote."""
        certificates = [result.certificate for result in self.results]
        asked = certificates[0].settings.get("votes")
        if not isinstance(asked, int):
            return None
        draws = sum(one.n0 + one.n for one in certificates)
        return sum(one.classifier_evaluations for one in certificates) / draws, asked

    @property
    def untaken(self) -> list[str]:
        """The remark on a run that has not taken all its images."""
        told = untaken(self.shares, len(self.results), self.planned, self.settings)
        return [f"{self.folders[0]}: {remark}" for remark in told]

    @property
    def remarks(self) -> list[str]:
        """What a reader of a run that ends when it is decided must know."""
        name = " and ".join(map(str, self.folders))
        found = [f"{name}: {told(self.shares, self.planned)}"] if self.shares else []
        if self.votes is not None:
            cast, most = self.votes
            found.append(f"{name}: {cast:.2f} of {counted(most, 'vote')} cast a draw, on average")
        if self.settings.stop == Stopping.FIXED:
            return found
        asked = (
            f"asked for radii {self.settings.radii}; accuracy at others is that at the next larger one,"
            " ACR that of the proved ones; "
            if self.settings.radii is not None
            else ""
        )
        return [*found, f"{name}: {asked}{draws_saved(self.settings, self.draws)}"]

    @property
    def certification(self) -> Certification:
        """The certificates of its images."""
        return certification(self.results)

    def certified_accuracy(self, radius: float) -> float:
        """See Certification."""
        return self.certification.certified_accuracy(radius).value

    def tells(self, radius: float) -> bool:
        """Whether the run decided each image at a radius: one that asked for radii, at these alone."""
        asked = None if self.settings.stop == Stopping.FIXED else self.settings.asked_radii
        return asked is None or radius in asked

    @property
    def average_radius(self) -> float:
        """See Certification."""
        return self.certification.average_radius

    @property
    def wrong(self) -> float:
        """See Certification."""
        return self.certification.wrong.value

    @property
    def abstained(self) -> float:
        """See Certification."""
        return self.certification.abstained.value


def draws_saved(settings: CertifySettings, draws: float) -> str:
    """How many estimation draws of an image a sequential run made, on average, instead of all."""
    return f"{draws:,.0f} draws an image instead of {settings.n:,}, {settings.n / draws:.1f} times fewer"


@dataclass(frozen=True)
class Best:
    """A method with the sigma that is best at each radius, as papers' tables have it.

    Attributes:
        label: the method.
        at: the row of the highest certified accuracy by radius; of equal ones that with the higher at 0.
    """

    label: str
    at: dict[float, Row]


def _merits(radius: float) -> Callable[[Row], tuple[float, bool, float]]:
    def merits(row: Row) -> tuple[float, bool, float]:
        return row.certified_accuracy(radius), row.largest_radius >= radius, row.certified_accuracy(0.0)

    return merits


@dataclass(frozen=True)
class Report:
    """Rows by sigma and method, the radii of the columns, remarks that the reader needs, and comparisons."""

    rows: list[Row]
    radii: tuple[float, ...]
    remarks: list[str]
    comparisons: Comparisons = field(default_factory=lambda: Comparisons([], []))

    @property
    def best(self) -> list[Best]:
        """For each label that has several sigmas, over the same images, which one is best at each radius."""
        by_label: dict[str, list[Row]] = {}
        for row in self.rows:
            by_label.setdefault(self.label(row), []).append(row)
        found = []
        for label, rows in by_label.items():
            same = len({tuple(one.image_index for one in row.results) for row in rows}) == 1
            if same and len({row.settings.sigma for row in rows}) > 1:
                best = {radius: max(rows, key=_merits(radius)) for radius in self.radii}
                found.append(Best(label, best))
        return found

    def label(self, row: Row) -> str:
        """What tells a row from others: the method, and the networks where they are not all the same.

        Of one sigma, where these are the same, what else differs of the settings.
        """
        named, settings = self._named(row), row.settings
        twins = [other.settings for other in self.rows if self._named(other) == named]
        if len({other.sigma for other in twins}) < len(twins):
            named = ", ".join([named, *differing(settings, twins, _FURTHER)])
        return named

    def _named(self, row: Row) -> str:
        parts = [row.settings.describe()]
        for name in ("classifier", "denoiser"):
            specs = {getattr(other.settings, name) for other in self.rows} - {None}
            if len(specs) > 1 and getattr(row.settings, name) is not None:
                parts.append(short_spec(getattr(row.settings, name)))
        if row.settings.scales is not None:
            chosen = "" if row.settings.chooser is None else f" by {short_spec(row.settings.chooser)}"
            parts.append(f"scales {row.settings.scales}{chosen}")
        if len({other.settings.noise for other in self.rows}) > 1:
            parts.append(f"{row.settings.noise} noise")
        if row.settings.stop != Stopping.FIXED and len({other.settings.stop for other in self.rows}) > 1:
            parts.append(row.settings.stop)
        return ", ".join(parts)


def load_report(
    folders: Sequence[Path],
    radii: Sequence[float],
    against: Path | None = None,
    bound: str | None = None,
) -> Report:
    """Read run folders.

    Args:
        folders: run folders, finished or not.
        radii: the ε at which certified accuracy is wanted, each ≥ 0.
        against: the run to compare all others with; None for the first named of each sigma, or of all where
            no sigma has two.
        bound: see `load_row`.

    Raises:
        ValueError: no folder, one that is no run or has no finished image or is named twice, a negative
            radius, runs of different data, or `against` is none of them.

    Runs of the same settings and networks that share no image are parts of one run: they make one row.
    """
    check_runs(folders)
    check_at(radii)
    loaded = [load_row(folder, bound) for folder in folders]
    rows = sorted(_joined(loaded), key=_order)
    remarks = [remark for row in loaded for remark in row.untaken]
    remarks.extend(
        f"{' and '.join(map(str, row.folders))} are parts of one run" for row in rows if len(row.folders) > 1
    )
    image_sets = {
        (short_source(row.settings.data), row.settings.split, tuple(r.image_index for r in row.results))
        for row in rows
    }
    if len(image_sets) > 1:
        remarks.append("the runs are over different images: their rows do not compare")
    limits = {
        (s.sigma, f"{s.stop} n" if s.stop != Stopping.FIXED else "n", s.n, s.alpha): row.largest_radius
        for row in rows
        if (s := row.settings).radii is None or s.stop == Stopping.FIXED
    }
    remarks.extend(
        f"sigma = {sigma:g}: {n} = {most} and alpha = {alpha:g} allow no radius above {limit:.3f}"
        " (– in the table)"
        for (sigma, n, most, alpha), limit in limits.items()
        if max(radii) > limit
    )
    remarks.extend(remark for row in rows for remark in row.remarks)
    report = Report(rows, tuple(radii), remarks)
    if report.best:
        remarks.append(
            "the best sigma at each ε is chosen by these very images, as papers' tables do: a little too good"
        )
    return replace(report, comparisons=compare(_contestants(report), folders, against))


def _contestants(report: Report) -> list[Contestant]:
    """The rows as comparisons see them."""
    sigmas = [row.settings.sigma for row in report.rows]
    repeated = len(set(sigmas)) < len(sigmas)
    return [
        Contestant(
            report.label(row),
            f"sigma = {row.settings.sigma:g}" if len(set(sigmas)) > 1 else "",
            row.folders,
            row.settings.sigma if repeated else None,
            f"{short_source(row.settings.data)} ({row.settings.split})",
            # The hash is that of the pixels as the networks get them, on the grid and in their numbers.
            {
                one.image_index: (one.true_label, one.certificate.image_hash, row.settings.noise)
                for one in row.results
            },
            {radius: _right(row, radius) for radius in report.radii},
            ""
            if row.settings.until_half_width is None
            else f"{row.folders[0]} ended once its accuracy was known: comparisons take its images as given",
        )
        for row in report.rows
    ]


def _right(row: Row, radius: float) -> dict[int, bool] | None:
    return {one.image_index: one.certified_at(radius) for one in row.results} if row.tells(radius) else None


def check_at(radii: Sequence[float]) -> Sequence[float]:
    """Radii of columns, or ValueError."""
    if not radii or any(not 0.0 <= radius < float("inf") for radius in radii):
        raise ArgumentError("at", f"expected radii ≥ 0, got {list(radii)}")
    return radii


def load_row(folder: Path, bound: str | None = None) -> Row:
    """A run folder as a row.

    Args:
        folder: the run's.
        bound: a Bound by which its counts give the radii, in place of its own; None for that.

    Raises:
        ValueError: it has no finished image, or another bound is asked of draws that ended when it was
            decided.
    """
    with CertifyStore.reading(folder) as store:
        settings, results, identity = store.settings, store.results(), store.identity
        store.warn_if_edited()
    if not results:
        raise ArgumentError("run", f"{folder} has no finished image yet")
    if bound is not None and bound != settings.bound:
        if settings.stop != Stopping.FIXED:
            raise ArgumentError(
                "bound", f"expected a run of a fixed number of draws, {folder} is {settings.stop}"
            )
        settings = replace(settings, bound=bound)
        results = [_bounded(result, bound) for result in results]
    by_index = {result.image_index: result for result in results}
    shares = accuracies(by_index, identity.indices, settings)
    return Row((folder,), settings, identity.weights_hash, results, identity.planned, shares)


def _bounded(result: ImageResult, bound: str) -> ImageResult:
    """A result as it would be by another bound, of the same counts."""
    again = replace(result.certificate, bound=bound)
    proved = again.recompute()
    certificate = replace(
        again,
        label=again.selected if certifies(proved, sequential=False) else None,
        radius=proved.radius,
        p_a_lower=proved.p_a_lower,
        p_b_upper=proved.p_b_upper,
    )
    return replace(result, certificate=certificate)


def _joined(rows: Iterable[Row]) -> list[Row]:
    """Rows of which no two are parts of one run."""
    joined: list[Row] = []
    for row in rows:
        place = next((i for i, other in enumerate(joined) if _parts_of_one(other, row)), None)
        if place is None:
            joined.append(row)
            continue
        other = joined[place]
        joined[place] = replace(
            other,
            folders=other.folders + row.folders,
            results=sorted(other.results + row.results, key=lambda result: result.image_index),
            planned=other.planned + row.planned,
        )
    return joined


def _parts_of_one(row: Row, other: Row) -> bool:
    images, others = ({result.image_index for result in one.results} for one in (row, other))
    same = row.weights_hash == other.weights_hash and not row.settings.differences(other.settings)
    return same and images.isdisjoint(others)


def _order(row: Row) -> tuple[float, int, str, str]:
    s, known = row.settings, list(DEFENSES)
    # From the text: a class of the user's need not be here.
    name = s.defense.partition(":")[0]
    rank = known.index(name) if name in known else len(known)
    networks = f"{short_spec(s.classifier or '')} {short_spec(s.denoiser or '')}"
    return s.sigma, rank, s.describe(), networks
