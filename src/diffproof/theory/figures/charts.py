"""The pictures of `diffproof theory` that are charts, and what all of them look like."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from diffproof.theory.divergences import total_variation_bound
from diffproof.theory.figures.bound import CONFIDENCE, Bounds
from diffproof.theory.figures.converging import Convergence
from diffproof.theory.figures.results import AGREEMENT_VOTES, Agreement, DigitRadii

# Of Okabe & Ito's palette, told apart with every form of colour blindness; lines and marks differ, too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
MARKS = ("o", "s", "^", "D", "v", "P")


def draw_agreement(result: Agreement) -> Figure:
    """Agreement over K, a line for each bin of the top class's posterior mass."""
    figure = Figure(figsize=(11.5, 5.8), layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    for axes, measured, title in zip(
        panels,
        (result.top, result.dense),
        ("with the posterior's top class", "with the high-density label"),
        strict=True,
    ):
        for i, ((low, high), shares) in enumerate(zip(result.bins, measured, strict=True)):
            values = np.array([s.value for s in shares])
            errors = [values - [s.low for s in shares], [s.high for s in shares] - values]
            # Beside each other, not on top of each other.
            votes = np.array(AGREEMENT_VOTES) * 1.035 ** (i - 1.5)
            axes.errorbar(
                votes,
                values,
                errors,
                color=COLOURS[i],
                ls=STYLES[i],
                marker=MARKS[i],
                ms=6,
                capsize=3,
                lw=1.7,
                label=f"top class's mass in ({low:g}, {high:g}]",
            )
            if measured is result.top:
                axes.plot(AGREEMENT_VOTES, result.expected[i], color=COLOURS[i], lw=4, alpha=0.3)
            else:
                axes.axhline(result.same[i], color=COLOURS[i], lw=4, alpha=0.3)
        axes.set_xscale("log")
        axes.set_xticks(AGREEMENT_VOTES, [str(k) for k in AGREEMENT_VOTES])
        axes.minorticks_off()
        axes.set(xlabel="votes K", title=title)
        axes.grid(alpha=0.3)
    lowest = min((s.low for shares in (*result.top, *result.dense) for s in shares), default=0.0)
    panels[0].set(ylabel="share of points where DensePure agrees", ylim=(lowest - 0.03, 1.02))
    lines = panels[0].get_legend_handles_labels()[0]
    figure.legend(
        handles=[
            *lines,
            Line2D(
                [],
                [],
                color="black",
                lw=4,
                alpha=0.3,
                label="left: binomial P(more than half of K votes); right: top class = high-density label",
            ),
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    figure.suptitle(f"DensePure at σ = {result.setting.sigma:.3f}; bars: 95% intervals")
    return figure


def draw_convergence(result: Convergence) -> Figure:
    """KL over steps in log-log coordinates."""
    figure = Figure(figsize=(7.5, 5.6), layout="constrained")
    axes = figure.subplots()
    for i, (name, found) in enumerate(result.distances.items()):
        axes.loglog(
            [d.steps for d in found],
            [d.kl for d in found],
            color=COLOURS[i],
            ls=STYLES[i],
            marker=MARKS[i],
            label=f"{name}: order {result.order(name):.2f}",
        )
    first = next(iter(result.distances.values()))
    last = first[-1]
    axes.loglog(
        [last.steps / 8, last.steps], [2 * 64 * last.kl, 2 * last.kl], color="black", lw=1, label="order 2"
    )
    axes.set(
        xlabel="steps of the reverse process",
        ylabel="KL(posterior ‖ reverse process), nats",
        title=f"reverse process from σ = {result.setting.sigma:.3f} to the posterior",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def draw_bounds(result: Bounds) -> Figure:
    """Measured divergences over J_SM."""
    figure = Figure(figsize=(11.5, 5.8), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    measured = result.measured
    if not measured:
        for axes in panels:
            axes.text(0.5, 0.5, "too close to measure", ha="center", transform=axes.transAxes)
        return figure
    families = list(dict.fromkeys(one.family for one in measured))
    means = np.array([one.bound.mean for one in measured])
    line = np.geomspace(means.min() / 2, means.max() * 2, 100)
    for axes, what in zip(panels, ("kl", "total_variation"), strict=True):
        limit = line if what == "kl" else [total_variation_bound(j) for j in line]
        axes.plot(line, limit, color="black", lw=1.2, label="bound")
        for i, family in enumerate(families):
            own = [one for one in measured if one.family == family]
            x = [one.bound.mean for one in own]
            y = [getattr(one, what) for one in own]
            errors = [one.bound.upper(CONFIDENCE) - one.bound.mean for one in own]
            axes.errorbar(
                x, y, xerr=errors, color=COLOURS[i], ls="", marker=MARKS[i], ms=7, capsize=3, label=family
            )
            # The other panel has the same places along J_SM.
            for one, a, b in zip(own, x, y, strict=True) if what == "kl" else ():
                # On both sides in turn, as neighbours are close.
                left = bool((means < a).sum() % 2)
                axes.annotate(
                    one.name,
                    (a, b),
                    (-8, 4) if left else (8, -12),
                    ha="right" if left else "left",
                    textcoords="offset points",
                    fontsize=9,
                )
        axes.set(xscale="log", xlabel="J_SM, nats")
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="measured KL(exact ‖ learned), nats", yscale="log", title="KL ≤ J_SM (Theorem 3.4)")
    panels[1].set(ylabel="measured total variation", title="total variation ≤ √(J_SM/2) (Remark 4)")
    panels[0].legend()
    return figure


def draw_digits(result: DigitRadii) -> Figure:
    """Histograms of union radius / radius in D_sub."""
    figure = Figure(figsize=(8.0, 5.4), layout="constrained")
    axes = figure.subplots()
    gains = {name: result.gains(found).numpy() for name, found in result.radii.items()}
    edges = np.linspace(1.0, max(float(g.max()) for g in gains.values()) * 1.001, 31).tolist()
    for i, (name, values) in enumerate(gains.items()):
        share = result.larger(result.radii[name])
        axes.hist(values, edges, histtype="stepfilled", color=COLOURS[i], alpha=0.25)
        axes.hist(
            values,
            edges,
            histtype="step",
            color=COLOURS[i],
            ls=STYLES[i],
            lw=1.8,
            label=f"{name} weights: {share:.1%} above 1",
        )
    axes.set(
        yscale="log",
        xlabel="radius of the largest ball in the union / in D_sub",
        ylabel="training digits",
        title="robust radii of digits, σ = 1",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
