"""Pictures of certified accuracy, and the files of a report."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffproof.errors import drawn
from diffproof.files import write_files
from diffproof.pictures import save_chart
from diffproof.runs.certify.report import Report, Row
from diffproof.runs.certify.tables import about, write_table
from diffproof.runs.columns import column, shrink
from diffproof.runs.comparison import write_comparisons
from diffproof.smoothing.stopping import Stopping

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito's palette, told apart with every form of colour blindness; line styles differ as well.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


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
            label = report.label(row)
            _draw_row(axis, row, largest, label=drawn(label), **step_of(methods.index(label)))
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
        if legend.get_window_extent().width <= figure.bbox.width:
            break
        if columns > 1:
            legend.remove()
        else:
            shrink(figure, legend, legend.get_texts())
    title = figure.suptitle(drawn(about(report)), fontsize=10)
    shrink(figure, title, [title])
    save_chart(path, figure, dpi=150)


def _draw_row(axis: Axes, row: Row, largest: float, **look: Any) -> None:
    """A row's curve, up to a radius at least."""
    radii, shares = row.certification.curve()
    axis.step(
        [*radii, max(largest, *radii)],
        [*(100 * share for share in shares), 100 * shares[-1]],
        where="post",
        **look,
    )
    if row.settings.stop != Stopping.FIXED and (asked := row.settings.asked_radii):
        # All that such a run proves.
        accuracies = [100 * row.certified_accuracy(radius) for radius in asked]
        axis.plot(asked, accuracies, "o", color=look["color"], markersize=2.2 * look["linewidth"])


def draw_column(report: Report, path: Path, form: str) -> None:
    """Certified accuracy over radius in one column of a paper: all on one axis, a line style a sigma.

    Args:
        report: what is drawn.
        path: where to.
        form: "pdf", "svg" or "png".
    """
    with column(path, form) as (figure, axis):
        draw_axis(axis, report)
        legend = figure.legend(loc="outside lower center", ncols=2, frameon=False)
        figure.draw_without_rendering()
        shrink(figure, legend, legend.get_texts())


def draw_axis(axis: Axes, report: Report) -> None:
    """The curves of a report on one axis, a colour a method and a line style a sigma, with its labels."""
    sigmas = sorted({row.settings.sigma for row in report.rows})
    methods = list(dict.fromkeys(report.label(row) for row in report.rows))
    largest = max(row.largest_radius for row in report.rows)
    for row in report.rows:
        look = {
            "color": _COLOURS[methods.index(report.label(row)) % len(_COLOURS)],
            "linestyle": _STYLES[sigmas.index(row.settings.sigma) % len(_STYLES)],
        }
        _draw_row(axis, row, row.largest_radius, linewidth=1.0, **look)
    for which, method in enumerate(methods):
        axis.plot([], [], color=_COLOURS[which % len(_COLOURS)], linewidth=1.0, label=drawn(method))
    for which, sigma in enumerate(sigmas if len(sigmas) > 1 else ()):
        style = _STYLES[which % len(_STYLES)]
        axis.plot([], [], color="0.35", linestyle=style, linewidth=1.0, label=f"σ = {sigma:g}")
    axis.set_xlabel("certified ℓ2 radius ε")
    axis.set_ylabel("certified accuracy (%)")
    axis.set_xlim(0, largest * 1.02 or 1.0)
    axis.set_ylim(0, 102)


def step_of(which: int) -> dict[str, Any]:
    """How a line of a picture looks, by its place."""
    style = _STYLES[which % len(_STYLES)]
    return {"color": _COLOURS[which % len(_COLOURS)], "linestyle": style, "linewidth": 1.8}


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
