"""The pictures of `diffproof theory` that show a plane of two pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch
from torch import Tensor

from diffproof.theory.figures.charts import COLOURS, MARKS, STYLES
from diffproof.theory.figures.results import Attacked, Decisions, Overlap, Regions
from diffproof.theory.figures.setting import Setting
from diffproof.theory.robust_regions import HalfSpaces, sub_region, union_region

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Points along a side of a plane that is drawn.
_FINE = 241


def draw_overlap(result: Overlap) -> Figure:
    """The density as grey, with the regions that hold half and 90% of each class; beside it, diffused."""
    setting, sigma = result.setting, result.setting.sigma
    figure = Figure(figsize=(11.0, 6.6), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    margin = min(0.5, max(0.1, 2 * sigma))
    side, points = _plane(-margin, 1 + margin)
    for axes, level, title in zip(
        panels,
        (0.0, sigma),
        (
            f"p(x0): Bayes error {result.clean_error:.2%}",
            f"p_t at σ = {sigma:.3f}: Bayes error {result.noisy_error:.2%}",
        ),
        strict=True,
    ):
        density = setting.density.diffused(level) if level else setting.density
        axes.contourf(side, side, _square(density.log_density(points).exp()), 12, cmap="Greys")
        _class_contours(axes, setting, level, side, points, (0.5, 0.9))
        _pixels(axes, title, -margin, 1 + margin)
    figure.legend(
        handles=[
            *_class_lines(setting.num_classes, "regions of 50% and 90% of class {}"),
            _unit_square_line(),
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    return figure


def draw_attack(result: Attacked) -> Figure:
    """The posterior of the clean and of the attacked point at three noise levels."""
    setting = result.setting
    figure = Figure(figsize=(13.0, 10.4), layout="constrained")
    panels: Any = figure.subplots(2, 3)
    side, points = _plane(-0.1, 1.1)
    for column, sigma in enumerate(result.sigmas):
        for row, what in enumerate(("clean", "attacked")):
            axes, noisy = panels[row, column], result.points[row]
            log_density = setting.density.posterior(noisy, sigma).log_density(points)
            height = _square((log_density - log_density.max()).exp())
            axes.contourf(side, side, height, np.linspace(0.02, 1, 12), cmap="Greys", extend="max")
            _class_contours(axes, setting, 0.0, side, points, (0.9,))
            masses = ", ".join(f"{mass:.2f}" for mass in result.masses[column, row].tolist())
            _mark(axes, result.points[0], "o", "white", "clean point x0", 9)
            _mark(axes, result.modes[column, row], "*", "#F0E442", "high-density point", 20)
            _mark(axes, result.posterior_means[column, row], "P", "#56B4E9", "posterior mean", 9)
            _mark(axes, noisy, "X", "black", "noisy point x_t / √α", 8)
            title = f"σ = {sigma:.3f}, {what}: high-density label {int(result.labels[column, row])}"
            _pixels(axes, f"{title}\nclass masses {masses}", -0.1, 1.1)
    marks = panels[0, 0].get_legend_handles_labels()[0]
    figure.legend(
        handles=[*marks, *_class_lines(setting.num_classes, "90% of p(x0), class {}")],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=11,
    )
    return figure


def draw_regions(result: Regions) -> Figure:
    """D_sub with its half-spaces and the union, with their largest balls (Figure 2 of DensePure)."""
    support, sigma = result.support, result.setting.sigma
    assert support.labels is not None
    label, center = int(support.labels[result.index]), support.points[result.index]
    own, union = sub_region(support, result.index, sigma), union_region(support, label, sigma)
    ends = torch.stack([center - 1.15 * result.union, center + 1.15 * result.union])
    shown = torch.cat([support.points, ends, torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double()])
    low, high = float(shown.min()) - 0.05, float(shown.max()) + 0.05
    side, points = _plane(low, high)
    inside = torch.stack([_slack(part, points) for part in union.parts]).amax(0)
    figure = Figure(figsize=(12.0, 7.2), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    colour = COLOURS[label]
    for axes, region, title in zip(
        panels,
        (_slack(own, points), inside),
        (
            f"D_sub(x0; t): largest ball {result.single:.4f}",
            f"union D(G(x0); t) of class {label}: largest ball {result.union:.4f}",
        ),
        strict=True,
    ):
        axes.contourf(side, side, _square(region), [0.0, np.inf], colors=[colour], alpha=0.25)
        axes.contour(side, side, _square(region), [0.0], colors=[colour], linewidths=1.8)
        for c in support.labels.unique().tolist():
            members = support.points[support.labels == c].numpy()
            shares = torch.softmax(support.log_weights, 0)[support.labels == c].numpy()
            sizes = 30 + 120 * shares / float(support.log_weights.max().exp())
            axes.scatter(*members.T, s=sizes, c=COLOURS[c], marker=MARKS[c], edgecolors="black", zorder=4)
        axes.add_patch(Circle(tuple(center.tolist()), result.single, fill=False, lw=2.2, zorder=5))
        axes.plot(*center.tolist(), marker="x", color="black", ms=9, mew=2.2, zorder=6)
        _pixels(axes, title, low, high)
    for normal, offset in zip(own.normals.tolist(), own.offsets.tolist(), strict=True):
        _boundary(panels[0], normal, offset)
    for part in union.parts:
        axes.contour(
            side, side, _square(_slack(part, points)), [0.0], colors=["0.35"], linewidths=0.8, linestyles=":"
        )
    panels[1].add_patch(Circle(tuple(center.tolist()), result.union, fill=False, lw=2.2, ls="--", zorder=5))
    panels[1].plot(*result.nearest.point.tolist(), "D", color="#F0E442", mec="black", ms=8, zorder=6)
    figure.legend(
        handles=_region_lines(support.labels.unique().tolist()),
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    figure.suptitle(f"Theorem 3.3 at σ = {sigma:.3f}")
    return figure


def _region_lines(classes: list[int]) -> list[Line2D]:
    """The legend of `draw_regions`."""
    points: dict[str, Any] = {"ls": "", "mec": "black", "ms": 8}
    return [
        *(
            Line2D([], [], marker=MARKS[c], color=COLOURS[c], label=f"class {c}, area by p(x)", **points)
            for c in classes
        ),
        Line2D([], [], ls="", marker="x", color="black", mew=2.2, ms=9, label="x0"),
        Line2D([], [], color="black", lw=2.2, label="largest ball in D_sub"),
        Line2D([], [], color="black", lw=2.2, ls="--", label="largest ball in the union"),
        Line2D([], [], marker="D", color="#F0E442", label="nearest point outside", **points),
        Line2D([], [], color="0.35", lw=0.9, ls=(0, (6, 3)), label="half-spaces of D_sub"),
        Line2D([], [], color="0.35", lw=0.8, ls=":", label="the union's parts"),
    ]


def draw_decisions(result: Decisions) -> Figure:
    """The labels of noisy points, with the high-density purifier's borders on every panel."""
    classes = result.setting.num_classes
    low, high = result.ends
    light = ListedColormap([tuple(0.45 + 0.55 * part for part in to_rgb(c)) for c in COLOURS[:classes]])
    figure = Figure(figsize=(12.0, 8.8), layout="constrained")
    panels: Any = figure.subplots(2, 3)
    reference, *_ = result.labels.values()
    for axes, (name, labels) in zip(panels.flat, result.labels.items(), strict=True):
        axes.imshow(
            labels.numpy(),
            origin="lower",
            extent=(low, high, low, high),
            cmap=light,
            vmin=-0.5,
            vmax=classes - 0.5,
            interpolation="nearest",
        )
        for c in range(classes):
            side = result.side.numpy()
            axes.contour(
                side, side, (reference == c).double().numpy(), [0.5], colors=["black"], linewidths=1.1
            )
            where = (labels == c).nonzero().double()
            if len(where) > 20:
                # In the middle of the class, or of what is nearest to it.
                middle = where[(where - where.mean(0)).square().sum(1).argmin()]
                row, column = (int(i) for i in middle)
                axes.text(
                    side[column], side[row], str(c), ha="center", va="center", fontsize=15, weight="bold"
                )
        share = (
            "label of P(x_a; t)" if labels is reference else f"{result.agreement(name):.1%} as high density"
        )
        _pixels(axes, f"{name}\n{share}", low, high)
    figure.legend(
        handles=[
            *(Patch(color=light(c), label=f"class {c}") for c in range(classes)),
            Line2D([], [], color="black", lw=1.1, label="borders of the high-density labels"),
            _unit_square_line(),
        ],
        loc="outside lower center",
        ncols=classes + 2,
        frameon=False,
        fontsize=11,
    )
    figure.suptitle(f"label of each noisy point at σ = {result.setting.sigma:.3f}")
    return figure


def _plane(low: float, high: float) -> tuple[Any, Tensor]:
    """Coordinates along a side, and all points of the plane, (pixel 1, pixel 2)."""
    side = torch.linspace(low, high, _FINE, dtype=torch.float64)
    return side.numpy(), torch.cartesian_prod(side, side).flip(1)


def _square(values: Tensor) -> Any:
    """Values at the points of a plane, as rows of pixel 2."""
    return values.reshape(_FINE, _FINE).numpy()


def _class_contours(
    axes: Axes, setting: Setting, sigma: float, side: Any, points: Tensor, shares: tuple[float, ...]
) -> None:
    """Where each class's density is highest, so that these shares of its mass lie within."""
    for c in range(setting.num_classes):
        density = setting.of_class(c)
        density = density.diffused(sigma) if sigma else density
        samples = density.log_density(density.sample(20_000, setting.generator(2)))
        levels = torch.quantile(samples, 1 - torch.tensor(shares, dtype=torch.float64)).sort().values
        axes.contour(
            side,
            side,
            _square(density.log_density(points)),
            levels.tolist(),
            colors=[COLOURS[c]],
            linestyles=[STYLES[c]],
            linewidths=1.8,
        )


def _class_lines(classes: int, text: str) -> list[Line2D]:
    return [
        Line2D([], [], color=COLOURS[c], ls=STYLES[c], lw=1.8, label=text.format(c)) for c in range(classes)
    ]


def _unit_square_line() -> Line2D:
    return Line2D([], [], color="0.5", lw=1, label="[0, 1]², the clean images")


def _mark(axes: Axes, point: Tensor, mark: str, colour: str, label: str, size: int) -> None:
    axes.plot(*point.tolist(), ls="", marker=mark, color=colour, mec="black", ms=size, label=label, zorder=5)


def _slack(region: HalfSpaces, points: Tensor) -> Tensor:
    """Signed distance of points to the nearest hyperplane of a region, positive inside."""
    normals, offsets = region.normals, region.offsets
    distances: Tensor = (offsets - points @ normals.T) / normals.norm(dim=1)
    return distances.amin(1)


def _boundary(axes: Axes, normal: list[float], offset: float) -> None:
    a, b = normal
    start = np.array([a, b]) * offset / (a * a + b * b)
    axes.axline(tuple(start), tuple(start + np.array([-b, a])), color="0.35", lw=0.9, ls=(0, (6, 3)))


def _pixels(axes: Axes, title: str, low: float, high: float) -> None:
    """A plane of two pixels, with the unit square in it."""
    axes.plot([0, 1, 1, 0, 0], [0, 0, 1, 1, 0], color="0.5", lw=1)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="pixel 1", ylabel="pixel 2")
    axes.set_title(title, fontsize=12)
