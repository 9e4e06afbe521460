"""Reliability diagrams as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffproof.calibration.measures import Reliability
from diffproof.errors import ArgumentError, drawn
from diffproof.pictures import save_chart

# Of Okabe & Ito's palette, told apart with every form of colour blindness; lines differ in style, too.
_MEASURED, _COUNTS = "#0072B2", "#E69F00"


def save_reliability(path: Path, measured: Mapping[str, Reliability]) -> None:
    """Write reliability diagrams as PNG, side by side (Niculescu-Mizil & Caruana 2005).

    Above, accuracy over mean confidence, one point for each bin that holds images, with its 95%
    Clopper–Pearson interval, and the diagonal of perfect calibration; below, how many images each bin holds.

    Args:
        path: the file.
        measured: one panel each, by its title.

    Raises:
        ValueError: no panel.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not measured:
        raise ArgumentError("measured", "expected at least one reliability, got none")
    figure = Figure(figsize=(0.5 + 3.7 * len(measured), 5.6), layout="constrained")
    axes = figure.subplots(2, len(measured), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1))
    for upper, lower, (title, panel) in zip(axes[0], axes[1], measured.items(), strict=True):
        filled = [(b.confidence, b.accuracy) for b in panel.bins if b.accuracy is not None]
        confidence = [mean for mean, _ in filled]
        accuracy = [share.value for _, share in filled]
        below = [share.value - share.low for _, share in filled]
        above = [share.high - share.value for _, share in filled]
        upper.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="perfect calibration")
        upper.errorbar(
            confidence,
            accuracy,
            [below, above],
            fmt="o",
            color=_MEASURED,
            capsize=3,
            label="a bin's accuracy, 95% interval",
        )
        upper.set_title(f"{drawn(title)}\nECE {100 * panel.ece:.1f}%", fontsize=10)
        upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        upper.grid(alpha=0.3)
        left, widths = [b.low for b in panel.bins], [b.high - b.low for b in panel.bins]
        counts = [b.count for b in panel.bins]
        lower.bar(left, counts, widths, align="edge", color=_COUNTS, edgecolor="white", linewidth=0.5)
        lower.axvline(panel.confidence, color=_MEASURED, linestyle=":", linewidth=2, label="mean confidence")
        lower.axvline(panel.accuracy, color="black", linestyle="-.", linewidth=1, label="accuracy")
        lower.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        lower.set_xlabel("confidence")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("images")
    handles = [*axes[0, 0].get_legend_handles_labels()[0], *axes[1, 0].get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    save_chart(path, figure, dpi=150)
