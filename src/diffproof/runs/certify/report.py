"""Tables and curves of certified accuracy from run folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffproof.catalog import DEFENSES
from diffproof.errors import ArgumentError
from diffproof.files import check_out, replacing, replacing_all, write_csv
from diffproof.intervals import Share
from diffproof.runs.certify.accuracy import accuracies, told, untaken
from diffproof.runs.certify.store import CertifyStore, ImageResult
from diffproof.runs.labels import short_source, short_spec
from diffproof.runs.settings import CertifySettings
from diffproof.runs.store import check_runs
from diffproof.smoothing.stopping import Stopping
from diffproof.wording import counted

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# Okabe & Ito's palette, told apart with every form of colour blindness; line styles differ as well.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))

# Share of the picture that a text may take.
_WIDEST = 0.95


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

    def certified_accuracy(self, radius: float) -> float:
        """Share of images certified correctly with at least this radius; abstentions count as wrong."""
        hits = sum(result.correct and result.certificate.radius >= radius for result in self.results)
        return hits / len(self.results)

    @property
    def average_radius(self) -> float:
        """Average certified radius (ACR): mean radius, 0 where wrong or abstained (Zhai et al. 2020)."""
        return float(np.mean([result.certificate.radius * result.correct for result in self.results]))

    @property
    def wrong(self) -> float:
        """Share of images whose certificate gives a wrong label."""
        return float(np.mean([not r.certificate.abstained and not r.correct for r in self.results]))

    @property
    def abstained(self) -> float:
        """Share of images without a certificate."""
        return float(np.mean([result.certificate.abstained for result in self.results]))


def draws_saved(settings: CertifySettings, draws: float) -> str:
    """How many estimation draws of an image a sequential run made, on average, instead of all."""
    return f"{draws:,.0f} draws an image instead of {settings.n:,}, {settings.n / draws:.1f} times fewer"


@dataclass(frozen=True)
class Report:
    """Rows by sigma and method, the radii of the columns, and remarks that the reader needs."""

    rows: list[Row]
    radii: tuple[float, ...]
    remarks: list[str]

    def label(self, row: Row) -> str:
        """What tells a row from others: the method, and the networks where they are not all the same."""
        parts = [row.settings.describe()]
        for name in ("classifier", "denoiser"):
            specs = {getattr(other.settings, name) for other in self.rows} - {None}
            if len(specs) > 1 and getattr(row.settings, name) is not None:
                parts.append(short_spec(getattr(row.settings, name)))
        if len({other.settings.noise for other in self.rows}) > 1:
            parts.append(f"{row.settings.noise} noise")
        if row.settings.stop != Stopping.FIXED and len({other.settings.stop for other in self.rows}) > 1:
            parts.append(row.settings.stop)
        return ", ".join(parts)


def load_report(folders: Sequence[Path], radii: Sequence[float]) -> Report:
    """Read run folders.

    Args:
        folders: run folders, finished or not.
        radii: the ε at which certified accuracy is wanted, each ≥ 0.

    Raises:
        ValueError: no folder, one that is no run or has no finished image or is named twice, or a negative
            radius.

    Runs of the same settings and networks that share no image are parts of one run: they make one row.
    """
    check_runs(folders)
    check_at(radii)
    loaded = [load_row(folder) for folder in folders]
    rows = sorted(_joined(loaded), key=_order)
    remarks = [remark for row in loaded for remark in row.untaken]
    remarks.extend(
        f"{' and '.join(map(str, row.folders))} are parts of one run" for row in rows if len(row.folders) > 1
    )
    image_sets = {
        (row.settings.data, row.settings.split, tuple(r.image_index for r in row.results)) for row in rows
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
    return Report(rows, tuple(radii), remarks)


def check_at(radii: Sequence[float]) -> Sequence[float]:
    """Radii of columns, or ValueError."""
    if not radii or any(not 0.0 <= radius < float("inf") for radius in radii):
        raise ArgumentError("at", f"expected radii ≥ 0, got {list(radii)}")
    return radii


def load_row(folder: Path) -> Row:
    """A run folder as a row; ValueError where it has no finished image."""
    with CertifyStore.reading(folder) as store:
        settings, results, identity = store.settings, store.results(), store.identity
        store.warn_if_edited()
    if not results:
        raise ArgumentError("run", f"{folder} has no finished image yet")
    by_index = {result.image_index: result for result in results}
    shares = accuracies(by_index, identity.indices, settings)
    return Row((folder,), settings, identity.weights_hash, results, identity.planned, shares)


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


def header(report: Report) -> list[str]:
    """Column names of the table."""
    return [
        "defence",
        "sigma",
        "images",
        *(f"ε={radius:g}" for radius in report.radii),
        "ACR",
        "wrong",
        "abstained",
    ]


def cells(report: Report, row: Row) -> list[str]:
    """One row of the table as people read it: percentages, – where no radius that large can be proved."""
    accuracies = [
        f"{row.certified_accuracy(radius):.1%}" if radius <= row.largest_radius else "–"
        for radius in report.radii
    ]
    settings = row.settings
    return [
        report.label(row),
        f"{settings.sigma:g}",
        str(len(row.results)),
        *accuracies,
        f"{row.average_radius:.3f}",
        f"{row.wrong:.1%}",
        f"{row.abstained:.1%}",
    ]


def write_table(report: Report, path: Path) -> None:
    """The table as CSV, with shares in [0, 1], the statistics of each run, and its folder."""
    radii = [f"certified_accuracy_at_{radius:g}" for radius in report.radii]
    tests = ["n0", "n", "draws", "votes", "radii", "alpha"]
    lines: list[list[object]] = [
        ["defence", "sigma", "images", *radii, "acr", "wrong", "abstained", *tests, "run"]
    ]
    for row in report.rows:
        s = row.settings
        accuracies = [f"{row.certified_accuracy(radius):.6f}" for radius in report.radii]
        shares = [f"{value:.6f}" for value in (row.average_radius, row.wrong, row.abstained)]
        head = [report.label(row), s.sigma, len(row.results)]
        votes = None if row.votes is None else f"{row.votes[0]:.6g}"
        asked = [s.n0, s.n, f"{row.draws:.6g}", votes, s.radii, s.alpha]
        lines.append([*head, *accuracies, *shares, *asked, "; ".join(map(str, row.folders))])
    write_csv(path, lines)


def draw_curves(report: Report, path: Path) -> None:
    """Certified accuracy over radius as PNG, one panel for each sigma, one line a method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sigmas = sorted({row.settings.sigma for row in report.rows})
    methods = list(dict.fromkeys(report.label(row) for row in report.rows))
    figure = Figure(figsize=(max(5.0, 3.6 * len(sigmas)), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(sigmas), sharey=True, squeeze=False)[0]
    for axis, sigma in zip(axes, sigmas, strict=True):
        panel = [row for row in report.rows if row.settings.sigma == sigma]
        largest = max(row.largest_radius for row in panel)
        for row in panel:
            which = methods.index(report.label(row))
            radii, shares = curve(row)
            axis.step(
                [*radii, max(largest, *radii)],
                [*(100 * share for share in shares), 100 * shares[-1]],
                where="post",
                label=report.label(row),
                **step_of(which),
            )
            if row.settings.stop != Stopping.FIXED and (asked := row.settings.asked_radii):
                # All that such a run proves.
                accuracies = [100 * row.certified_accuracy(radius) for radius in asked]
                axis.plot(asked, accuracies, "o", color=_COLOURS[which % len(_COLOURS)], markersize=4)
        axis.set_title(f"σ = {sigma:g}")
        axis.set_xlabel("certified ℓ2 radius ε, pixels in [0, 1]")
        axis.set_xlim(0, largest * 1.02 or 1.0)
        axis.set_ylim(0, 102)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("certified accuracy (%)")
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    for columns in range(min(4, len(handles)), 0, -1):
        legend = figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False
        )
        figure.draw_without_rendering()
        if legend.get_window_extent().width <= figure.bbox.width:
            break
        if columns > 1:
            legend.remove()
        else:
            _shrink(figure, legend, legend.get_texts())
    data = _either(f"{short_source(row.settings.data)} ({row.settings.split})" for row in report.rows)
    images = _either(counted(len(row.results), "image") for row in report.rows)
    signs = {Stopping.FIXED: "=", Stopping.SEQUENTIAL: "≤"}
    draws = _either(f"n {signs[Stopping(row.settings.stop)]} {row.settings.n}" for row in report.rows)
    alpha = _either(f"α = {row.settings.alpha:g}" for row in report.rows)
    title = figure.suptitle(f"{data}, {images}, {draws}, {alpha}", fontsize=10)
    _shrink(figure, title, [title])
    with replacing(path) as fresh:
        figure.savefig(fresh, dpi=150, format="png")


def step_of(which: int) -> dict[str, Any]:
    """How a line of a picture looks, by its place."""
    style = _STYLES[which % len(_STYLES)]
    return {"color": _COLOURS[which % len(_COLOURS)], "linestyle": style, "linewidth": 1.8}


def _shrink(figure: Figure, artist: Artist, texts: Sequence[Text]) -> None:
    """Make the texts of an artist smaller until it fits into the picture, with a margin."""
    while (wide := artist.get_window_extent().width / figure.bbox.width) > _WIDEST:
        for text in texts:
            # Glyphs are whole pixels, so a text does not shrink as much as its font.
            text.set_fontsize(float(text.get_fontsize()) * min(0.9, _WIDEST / wide))
        figure.draw_without_rendering()


def _either(texts: Iterable[str]) -> str:
    """The different texts, in order of appearance."""
    return " or ".join(dict.fromkeys(texts))


def curve(row: Row) -> tuple[list[float], list[float]]:
    """Breakpoints of the certified-accuracy step function and its value from each breakpoint on."""
    certified = sorted(result.certificate.radius for result in row.results if result.correct)
    total = len(row.results)
    radii, shares = [0.0], [len(certified) / total]
    for i, radius in enumerate(certified, start=1):
        radii.append(radius)
        shares.append((len(certified) - i) / total)
    return radii, shares


def write_report(report: Report, folder: Path, *, force: bool) -> tuple[Path, Path]:
    """Write table.csv and curve.png.

    Returns:
        The two paths.

    Raises:
        ValueError: something is in the way, see `files.check_out`.
        OSError: the folder cannot be written.
    """
    table, picture = folder / "table.csv", folder / "curve.png"
    check_out(folder, (table.name, picture.name), force=force)
    with replacing_all([table, picture]) as (fresh_table, fresh_picture):
        write_table(report, fresh_table)
        draw_curves(report, fresh_picture)
    return table, picture
