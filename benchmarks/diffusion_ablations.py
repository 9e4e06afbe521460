"""Pictures of what a diffusion classifier's settings do (Chen et al. 2023, Figure 2).

    python benchmarks/diffusion_ablations.py timesteps --losses FILE [--denoiser digits] [--data digits]
        [--runs RUN …] --out PICTURE
    python benchmarks/diffusion_ablations.py budgets RUN … --out PICTURE
    python benchmarks/diffusion_ablations.py similarity [--denoiser digits] [--classifier digits]
        [--data digits] [--indices 0:512:32] [--timesteps uniform:10]

`timesteps`: accuracy over the number T' of noise levels, for both rules of choosing them; FILE holds all
losses of images and is made by racing.py. Runs of `diffproof attack --defense dc` with other numbers of
levels add the accuracy after an attack. `budgets`: accuracy over the budget η of likelihood maximisation, of
runs that differ in it; a run of dc is η = 0. `similarity`: mean cosine similarity of repeated gradients.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import diffproof as dp
from diffproof.data.indices import parse_indices
from diffproof.files import replacing
from diffproof.intervals import Share
from diffproof.runs.attack.report import AttackRow, load_attack_report

# Of Okabe & Ito's palette; lines differ in style, too.
STYLES = [("#0072B2", "o-"), ("#E69F00", "s--"), ("#D55E00", "D-."), ("#009E73", "^:")]

Line = tuple[str, list[float], list[Share]]


def draw(lines: Sequence[Line], path: Path, *, xlabel: str, title: str, log: bool) -> None:
    """Accuracies with their intervals, as PNG and as text."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for (label, at, shares), (colour, style) in zip(lines, STYLES, strict=False):
        values = [100 * share.value for share in shares]
        below = [100 * (share.value - share.low) for share in shares]
        above = [100 * (share.high - share.value) for share in shares]
        axes.errorbar(at, values, [below, above], fmt=style, color=colour, label=label, capsize=3)
        print(f"{label}: " + ", ".join(f"{x:g}: {value:.1f}" for x, value in zip(at, values, strict=True)))
    if log:
        axes.set_xscale("log")
    axes.set(xlabel=xlabel, ylabel="accuracy (%), 95% interval", ylim=(-2, 102))
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(lines), frameon=False, fontsize=9)
    with replacing(path) as fresh:
        figure.savefig(fresh, format="png", dpi=150)


def compared(rows: Sequence[AttackRow]) -> tuple[list[Share], list[Share], str]:
    """Accuracy of one draw in each run, clean and attacked, on the images that all have; and which."""
    common = set.intersection(*({one.evaluated.image_index for one in row.results} for row in rows))
    clean, attacked = [], []
    for row in rows:
        settings = row.settings
        assert settings.draws is not None
        assert settings.majority_of is not None
        own = [one.evaluated for one in row.results if one.evaluated.image_index in common]
        classes = max(label for one in own for label in (one.true_label, *one.clean_labels, *one.labels)) + 1
        before, after = dp.scores(own, classes, draws=settings.draws, votes=settings.majority_of)
        clean.append(before.fresh)
        attacked.append(after.fresh)
    settings = rows[0].settings
    return clean, attacked, f"{len(common)} attacked images, {settings.threat} {settings.budget}"


def timesteps(options: argparse.Namespace) -> None:
    """Figure 2a."""
    kept = safetensors.torch.load_file(options.losses)
    indices = sorted(int(name) for name in kept)
    table = torch.stack([kept[str(index)] for index in indices]).double()
    truth = dp.load_data(options.data).labels[indices]
    denoiser = dp.load_denoiser(options.denoiser)
    grid = dp.DiffusionLoss(denoiser).levels
    counts = [count for count in (1, 2, 5, 10, 20, 50, 100, 200, 500) if count < len(grid)] + [len(grid)]
    lines: list[Line] = []
    for rule in ("uniform", "first"):
        shares = []
        for count in counts:
            levels = dp.DiffusionLoss(denoiser, timesteps=f"{rule}:{count}").levels
            labels = (-table[:, [grid.index(level) for level in levels]].sum(1)).argmax(1)
            shares.append(Share.of(float((labels == truth).double().mean()), len(indices)))
        lines.append((f"clean, {rule} T'", [float(count) for count in counts], shares))
    title = f"{options.denoiser}, DC, {len(indices)} clean images"
    if options.runs:
        rows = sorted(load_attack_report(options.runs).rows, key=lambda row: count_of(row))
        at = [float(count_of(row)) for row in rows]
        _, attacked, which = compared(rows)
        lines.append(("after the attack, uniform T'", at, attacked))
        title += f"; {which}"
    draw(lines, options.out, xlabel="number of noise levels T'", title=title, log=True)


def count_of(row: AttackRow) -> int:
    """The N of a run's uniform:N."""
    return int(str(row.settings.method.settings["timesteps"]).removeprefix("uniform:"))


def budgets(options: argparse.Namespace) -> None:
    """Figure 2b."""

    def budget(row: AttackRow) -> float:
        return float(row.settings.method.settings.get("budget", 0.0))

    rows = sorted(load_attack_report(options.runs).rows, key=budget)
    at = [budget(row) for row in rows]
    clean, attacked, which = compared(rows)
    lines: list[Line] = [("clean images", at, clean), ("after the attack", at, attacked)]
    draw(
        lines,
        options.out,
        xlabel="budget η of likelihood maximisation (pixels in [0, 1])",
        title=f"RDC, {which}",
        log=False,
    )


def similarity(options: argparse.Namespace) -> None:
    """Figure 2c, as text."""
    data = dp.load_data(options.data)
    data = data.select(parse_indices(options.indices, len(data)))
    denoiser, classifier = dp.load_denoiser(options.denoiser), dp.load_classifier(options.classifier)
    levels = options.timesteps
    rdc: dict[str, Any] = {"timesteps": levels, "likelihood_timesteps": levels, "iterations": 5}
    defenses: list[tuple[str, dp.Defense, str]] = [
        ("none", dp.Undefended(classifier), "exact"),
        ("dc", dp.DiffusionClassifier(denoiser, timesteps=levels), "exact"),
        ("rdc, bpda", dp.RDC(denoiser, **rdc), "bpda"),
        ("rdc l2, exact", dp.RDC(denoiser, norm="l2", budget=0.5, **rdc), "exact"),
        ("diffpure", dp.DiffPure(denoiser, classifier, t_star=0.1, steps=10), "exact"),
    ]
    print(f"mean cosine similarity of 10 gradients, mean over {len(data)} images (least)")
    for name, defense, gradient in defenses:
        view = dp.AttackedDefense(defense.requires_grad_(False), gradient=gradient)
        found = dp.gradient_similarity(view, data.images, data.labels, loss="margin", batch_size=256)
        print(f"{name:14s} {found.mean():.3f} ({found.min():.3f})", flush=True)


def main() -> None:
    """Draw one of the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    one = kinds.add_parser("timesteps")
    one.add_argument("--losses", type=Path, required=True)
    one.add_argument("--denoiser", default="digits")
    one.add_argument("--data", default="digits")
    one.add_argument("--runs", type=Path, nargs="*", default=[])
    one.add_argument("--out", type=Path, required=True)
    one.set_defaults(work=timesteps)
    one = kinds.add_parser("budgets")
    one.add_argument("runs", type=Path, nargs="+")
    one.add_argument("--out", type=Path, required=True)
    one.set_defaults(work=budgets)
    one = kinds.add_parser("similarity")
    one.add_argument("--denoiser", default="digits")
    one.add_argument("--classifier", default="digits")
    one.add_argument("--data", default="digits")
    one.add_argument("--indices", default="0:512:32")
    one.add_argument("--timesteps", default="uniform:10")
    one.set_defaults(work=similarity)
    options = parser.parse_args()
    options.work(options)


if __name__ == "__main__":
    main()
