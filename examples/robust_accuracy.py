"""Robust accuracy on the packaged digits: no defence, adversarial training, DiffPure, GDMP and AGDM.

Trains a robust classifier and AGDM's guides by diffproof's commands, attacks every defence on the same test
images by PGD with EOT and exact gradients (ℓ∞ and ℓ2) and by StAdv, prints the table, and draws the accuracy
of AGDM on clean and on attacked images over the weight λ of its guide's training (Lin et al. 2024, figure
3c). All cores work, one run each. An interrupted example continues where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path

import torch

from diffproof.cli.main import guarded
from diffproof.cli.main import run as diffproof
from diffproof.cli.tables import print_attack_report
from diffproof.errors import ArgumentError
from diffproof.files import replacing
from diffproof.intervals import Share
from diffproof.runs.attack.figures import write_attack_report
from diffproof.runs.attack.job import prepare
from diffproof.runs.attack.report import AttackReport, load_attack_report
from diffproof.runs.attack.run import run as run_attack
from diffproof.runs.settings import AttackSettings

FOLDER = Path("demo-attack")
IMAGES = "0:512:16"
THREATS = {
    "linf": {"threat": "linf", "budget": "0.2", "attack": "pgd:iterations=10"},
    "l2": {"threat": "l2", "budget": "0.8", "attack": "pgd:iterations=10"},
    "stadv": {"threat": "stadv", "budget": "0.1", "attack": "stadv:iterations=20,learning_rate=0.02"},
}
# λ of the guide's training; 6 is the paper's.
WEIGHTS = (0.5, 1.5, 6.0, 24.0)
PAPER = 6.0
AGDM = "agdm:t_star=0.15,steps=6,scale=12"
TRAINING = "--data digits --budget 0.2 --iterations 300 --learning-rate 0.005"


def trained(kind: str, name: str, *flags: str) -> Path:
    """Weights made by `diffproof train`, unless they are there already."""
    path = FOLDER / f"{name}.safetensors"
    if not path.exists() and diffproof(["train", kind, *TRAINING.split(), *flags, "--out", str(path)]) != 0:
        raise ArgumentError("training", f"{name} did not end well")
    return path


def guide(weight: float) -> Path:
    """A guide trained with this λ."""
    return trained("guide", f"guide-{weight:g}", "--trades-weight", f"{weight:g}")


def settings(threat: str, defense: str, **more: object) -> AttackSettings:
    """A run of the table; a random defence is attacked under 4 draws of noise an iteration."""
    common = {
        "data": "digits",
        "classifier": "digits",
        "indices": IMAGES,
        "seed": 0,
        "diagnose": 0,
        "batch_size": 256,
    }
    run = {**common, **THREATS[threat], "defense": defense, **more}
    if defense != "none":
        run |= {"denoiser": "digits", "attack": f"{run['attack']},eot=4"}
    return AttackSettings.from_dict(run)


def table_runs() -> dict[str, AttackSettings]:
    """The runs of the table by the names of their folders."""
    diffpure = "diffpure:t_star=0.15,steps=6,solver=ddpm"
    gdmp = "gdmp:t_star=0.0375,steps=2,rounds=4,scale=3000,budget=0.2"
    robust = trained("classifier", "pgd-at", "--adversarial", "pgd")
    made = {}
    for threat in THREATS:
        made[f"none-{threat}"] = settings(threat, "none")
        made[f"pgd-at-{threat}"] = settings(threat, "none", classifier=str(robust))
        made[f"diffpure-{threat}"] = settings(threat, diffpure)
        made[f"gdmp-{threat}"] = settings(threat, gdmp)
        made[f"agdm-{threat}"] = settings(threat, AGDM, guide=str(guide(PAPER)))
    return made


def curve_runs() -> dict[str, AttackSettings]:
    """The runs of the curve, one for each λ; the paper's is in the table."""
    return {
        "agdm-linf" if weight == PAPER else f"agdm-linf-lambda-{weight:g}": settings(
            "linf", AGDM, guide=str(guide(weight))
        )
        for weight in WEIGHTS
    }


def attack(name: str, chosen: AttackSettings) -> str:
    """One run, in a process of its own."""
    torch.set_num_threads(1)
    run_attack(prepare(chosen), FOLDER / name)
    return name


def attack_all(chosen: dict[str, AttackSettings]) -> None:
    """All runs, the longest first, as many at once as there are cores."""
    with ProcessPoolExecutor(cpu_count(), mp_context=get_context("spawn")) as pool:
        longest = sorted(
            chosen, key=lambda name: ("agdm" in name, "gdmp" in name, "diffpure" in name), reverse=True
        )
        waiting = [pool.submit(attack, name, chosen[name]) for name in longest]
        for number, done in enumerate(as_completed(waiting), start=1):
            print(f"{number} of {len(chosen)} runs: {done.result()}", file=sys.stderr, flush=True)


def draw_curve(report: AttackReport, weights: Sequence[float], path: Path) -> None:
    """Accuracy over λ as PNG, of one draw of the noise, with its intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    lines: list[tuple[str, str, str, list[Share]]] = [
        ("clean images", "#0072B2", "o-", [row.clean.fresh for row in report.rows]),
        ("after the attack", "#D55E00", "s--", [row.attacked.fresh for row in report.rows]),
    ]
    for label, colour, style, shares in lines:
        values = [100 * share.value for share in shares]
        below = [100 * (share.value - share.low) for share in shares]
        above = [100 * (share.high - share.value) for share in shares]
        axes.errorbar(weights, values, [below, above], fmt=style, color=colour, label=label, capsize=3)
    axes.set_xscale("log")
    axes.set_xticks(weights, [f"{weight:g}" for weight in weights])
    axes.minorticks_off()
    axes.set(xlabel="λ of the guide's training", ylabel="accuracy (%), one draw", ylim=(0, 102))
    axes.set_title(
        f"AGDM, digits, {len(report.rows[0].results)} images, ℓ∞ {THREATS['linf']['budget']}", fontsize=10
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with replacing(path) as fresh:
        figure.savefig(fresh, format="png", dpi=150)


def main() -> None:
    """Train, attack, compare, and say where everything is."""
    FOLDER.mkdir(exist_ok=True)
    table, over = table_runs(), curve_runs()
    attack_all(table | over)
    report = load_attack_report([FOLDER / name for name in table])
    written = write_attack_report(report, FOLDER / "report", force=True)
    curve = FOLDER / "report" / "agdm-lambda.png"
    draw_curve(load_attack_report([FOLDER / name for name in over]), WEIGHTS, curve)
    print_attack_report(report)
    print("written:", *written, curve, sep="\n  ")


if __name__ == "__main__":
    sys.exit(guarded(main))
