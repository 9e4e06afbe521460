"""Pictures of attacks, and the files of a report."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from diffproof.errors import drawn
from diffproof.files import write_files
from diffproof.pictures import save_grid
from diffproof.runs.attack.report import AttackReport, AttackRow, difference
from diffproof.runs.attack.store import AttackedImage
from diffproof.runs.attack.tables import write_attack_table
from diffproof.runs.columns import column, shrink
from diffproof.runs.comparison import write_comparisons

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

# Images of a sheet of pictures.
PICTURES = 8


def draw_pictures(row: AttackRow, path: Path) -> None:
    """A sheet of the first attacked images, one at least: clean, perturbed, difference enlarged, purified."""
    shown = [image for image in row.results if image.evaluated.result is not None][:PICTURES]
    largest = max(float(difference(image).abs().max()) for image in shown)
    factor = 0.5 / largest if largest > 0 else 1.0
    titles = ["clean", "perturbed", f"difference ×{factor:.3g}"]
    purified = all(image.purified is not None for image in shown)
    if purified:
        titles.append("purified")
    lines = []
    for image in shown:
        assert image.evaluated.result is not None
        line = [image.clean, image.evaluated.result.adversarial, 0.5 + factor * difference(image)]
        if purified and image.purified is not None:
            line.append(image.purified)
        lines.append(torch.stack([part.float() for part in line]))
    save_grid(path, torch.stack(lines), titles=titles, labels=[_caption(image) for image in shown])


def _caption(image: AttackedImage) -> str:
    one = image.evaluated
    right = sum(label == one.true_label for label in one.labels)
    return f"image {one.image_index}\nlabel {one.true_label}\nright {right} of {len(one.labels)}"


def draw_bars(report: AttackReport, path: Path, form: str) -> None:
    """Clean and attacked accuracy of the majority in one column of a paper, with their 95% intervals.

    Args:
        report: what is drawn.
        path: where to.
        form: "pdf", "svg" or "png".
    """
    with column(path, form, height=0.8 + 0.5 * len(report.rows)) as (figure, axis):
        texts = draw_axis(axis, report)
        figure.draw_without_rendering()
        longest = max(texts, key=lambda text: text.get_window_extent().width)
        shrink(figure, longest, texts, axis.bbox.width)


def draw_axis(axis: Axes, report: AttackReport) -> list[Text]:
    """The bars of a report on one axis, with its labels; the texts that name them."""
    names = [report.label(row) for row in report.rows]
    attacks = [row.settings.describe_attack() for row in report.rows]
    if len(set(attacks)) > 1:
        names = [f"{name}, {attack}" for name, attack in zip(names, attacks, strict=True)]
    for offset, colour, when in ((-0.08, "#0072B2", "clean"), (0.22, "#D55E00", "attacked")):
        shares = [getattr(row, when).majority for row in report.rows]
        below = [100 * (one.value - one.low) for one in shares]
        above = [100 * (one.high - one.value) for one in shares]
        axis.barh(
            [place + offset for place in range(len(names))],
            [100 * one.value for one in shares],
            height=0.28,
            color=colour,
            xerr=[below, above],
            error_kw={"elinewidth": 0.8, "capsize": 1.5},
            label=when,
        )
    # Names stand above their bars: beside them they would take half the column.
    texts = [
        axis.text(1, place - 0.25, drawn(name), va="bottom", fontsize=7, in_layout=False)
        for place, name in enumerate(names)
    ]
    axis.set_yticks([])
    axis.set_ylim(-0.6, len(names) - 0.5)
    axis.invert_yaxis()
    axis.set_xlim(0, 102)
    axis.set_xlabel("accuracy of the majority (%)")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    return texts


def write_attack_report(report: AttackReport, folder: Path, *, force: bool) -> list[Path]:
    """Write table.csv, for each run with attacked images a sheet of pictures, pictures-RUN.png, and, of
    several runs, comparisons.csv.

    Returns:
        The paths.

    Raises:
        ValueError: something is in the way, see `files.check_out`.
        OSError: the folder cannot be written.
    """
    writers = {"table.csv": partial(write_attack_table, report)}
    if report.comparisons.pairs:
        writers["comparisons.csv"] = partial(write_comparisons, report.comparisons)
    for row in report.rows:
        name = row.folder.resolve().name
        while (sheet := f"pictures-{name}.png") in writers:
            name += "-again"
        # Of a run without an attacked image there is no sheet.
        if row.skipped < len(row.results):
            writers[sheet] = partial(draw_pictures, row)
    return write_files(folder, writers, force=force)
