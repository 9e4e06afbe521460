"""Pictures of certified accuracy, and the files of a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffproof.files import replacing, write_files
from diffproof.runs.certify.report import Report, write_table
from diffproof.runs.comparison import write_comparisons
from diffproof.runs.labels import short_source
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
            radii, shares = row.certification.curve()
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


def write_report(report: Report, folder: Path, *, force: bool) -> list[Path]:
    """Write table.csv, curve.png and, of several runs, comparisons.csv.

    Returns:
        The paths.

    Raises:
        ValueError: something is in the way, see `files.write_files`.
        OSError: the folder cannot be written.
    """
    writers = {"table.csv": partial(write_table, report), "curve.png": partial(draw_curves, report)}
    if report.comparisons.pairs:
        writers["comparisons.csv"] = partial(write_comparisons, report.comparisons)
    return write_files(folder, writers, force=force)
