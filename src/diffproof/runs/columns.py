"""Figures of one column's width, for papers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from diffproof.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# In inches: a column of a two-column page, as conferences have it.
WIDTH = 3.25
# Share of a picture that a text may take.
_WIDEST = 0.95
FORMS = ("pdf", "svg", "png")


def form_of(path: Path) -> str:
    """The form of a figure by the ending of its file's name.

    Raises:
        ValueError: it is none of FORMS.
    """
    form = path.suffix.lower().removeprefix(".")
    if form not in FORMS:
        raise ArgumentError("figure", f"expected a file that ends in .pdf, .svg or .png, got {path}")
    return form


@contextmanager
def column(path: Path, form: str, height: float = 2.6) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one axis, written when the block ends; the same drawing gives the same bytes.

    Args:
        path: where to.
        form: one of FORMS; letters of PDF stay letters, those of SVG become paths, which any program shows.
        height: in inches.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No time of day, no random names.
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    look = {
        "font.size": 8,
        "legend.fontsize": 7,
        "axes.linewidth": 0.6,
        "pdf.fonttype": 42,
        "svg.fonttype": "path",
        "svg.hashsalt": "diffproof",
    }
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        axis.grid(alpha=0.3, linewidth=0.5)
        yield figure, axis
        figure.savefig(path, format=form, dpi=300, metadata=dates[form])


def shrink(figure: Figure, artist: Artist, texts: Sequence[Text], room: float | None = None) -> None:
    """Make the texts of an artist smaller until it fits into a width, with a margin.

    Args:
        figure: what it is part of.
        artist: what is to fit.
        texts: its texts.
        room: the width in dots; that of the figure by default.
    """
    widest = _WIDEST * (figure.bbox.width if room is None else room)
    while (wide := artist.get_window_extent().width) > widest:
        for text in texts:
            # Glyphs are whole pixels, so a text does not shrink as much as its font.
            text.set_fontsize(float(text.get_fontsize()) * min(0.9, widest / wide))
        figure.draw_without_rendering()
