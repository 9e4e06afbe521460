"""Tables and pictures of robust accuracy from the run folders of attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from diffproof.attacks.diagnostics.finding import Finding
from diffproof.attacks.evaluation import Evaluated, hits_of, scores
from diffproof.attacks.papers import load_protocol
from diffproof.attacks.scoring import Scores
from diffproof.attacks.threat import parse_budget
from diffproof.attacks.views import GradientMode
from diffproof.catalog import DEFENSES, OPTIMISES
from diffproof.errors import ArgumentError
from diffproof.intervals import Share
from diffproof.methods import own_class, parse
from diffproof.runs.attack.store import AttackedImage, AttackStore
from diffproof.runs.comparison import Comparisons, Contestant, Measure, compare
from diffproof.runs.folder import check_runs
from diffproof.runs.labels import differing, short_source, short_spec
from diffproof.runs.settings import AttackSettings
from diffproof.wording import part_of, unfinished

# Settings that change what is found and that the names of defence and attack do not hold.
_FURTHER = ("protocol", "draws", "majority_of", "fixed_noise", "seed", "precision")


@dataclass(frozen=True)
class AttackRow:
    """One run in a table.

    Attributes:
        folder: the run folder.
        settings: its settings.
        results: its finished images.
        planned: how many images the run is to have.
        findings: of the diagnostics; None where they did not run.
        clean: scores without an attack.
        attacked: scores after it.
    """

    folder: Path
    settings: AttackSettings
    results: list[AttackedImage]
    planned: int
    findings: list[Finding] | None
    clean: Scores
    attacked: Scores

    @property
    def skipped(self) -> int:
        """Images that were wrong without an attack."""
        return sum(image.evaluated.result is None for image in self.results)


@dataclass(frozen=True)
class AttackReport:
    """Rows in the order of their threats, remarks that the reader needs, and comparisons."""

    rows: list[AttackRow]
    remarks: list[str]
    comparisons: Comparisons = field(default_factory=lambda: Comparisons([], []))

    def label(self, row: AttackRow) -> str:
        """What tells a row's defence from others: settings, and networks where they are not all the same.

        Under one attack, where these are the same, what else differs of the settings.
        """
        named = self._named(row)
        twins = [other.settings for other in self.rows if self._named(other) == named]
        if len({other.describe_attack() for other in twins}) < len(twins):
            named = ", ".join([named, *differing(row.settings, twins, _FURTHER)])
        return named

    def _named(self, row: AttackRow) -> str:
        parts = [row.settings.describe()]
        for name in ("classifier", "denoiser", "guide"):
            specs = {getattr(other.settings, name) for other in self.rows} - {None}
            if len(specs) > 1 and getattr(row.settings, name) is not None:
                parts.append(short_spec(getattr(row.settings, name)))
        return ", ".join(parts)


def load_attack_report(folders: Sequence[Path], against: Path | None = None) -> AttackReport:
    """Read run folders of attacks.

    Args:
        folders: run folders, finished or not.
        against: the run to compare all others with; None for the first named of each threat and budget.

    Raises:
        ValueError: no folder, one that is no attack run or has no finished image or is named twice, runs of
            different data, or `against` is none of them.
    """
    check_runs(folders)
    rows = [_load_row(folder) for folder in folders]
    order = {name: place for place, name in enumerate(dict.fromkeys(_threat(row) for row in rows))}
    rows.sort(key=lambda row: order[_threat(row)])
    remarks = [f"{row.folder}: {remark}" for row in rows for remark in _remarks(row)]
    undiagnosed = [str(row.folder) for row in rows if row.findings is None]
    if undiagnosed:
        remarks.append(f"not diagnosed: {', '.join(undiagnosed)}")
    report = AttackReport(rows, remarks + _comparable(rows))
    return replace(report, comparisons=compare(_contestants(report), folders, against))


def _load_row(folder: Path) -> AttackRow:
    with AttackStore.reading(folder) as store:
        settings, results, planned, findings = (
            store.settings,
            store.results(),
            store.identity.planned,
            store.findings(),
        )
        store.warn_if_edited()
    if not results:
        raise ArgumentError("run", f"{folder} has no finished image yet")
    _, clean, attacked = scored(results, settings)
    return AttackRow(folder, settings, results, planned, findings, clean, attacked)


def scored(
    results: Sequence[AttackedImage], settings: AttackSettings
) -> tuple[list[Evaluated], Scores, Scores]:
    """What was found for each image, and the scores without an attack and after it."""
    evaluated = [image.evaluated for image in results]
    return (
        evaluated,
        *scores(evaluated, _classes(evaluated), draws=settings.draws, votes=settings.majority_of),
    )


def _classes(evaluated: Sequence[Evaluated]) -> int:
    """As many classes as labels tell of: two at least, also where all images and answers are of class 0."""
    return max(1, *(max(one.true_label, *one.clean_labels, *one.labels) for one in evaluated)) + 1


def _threat(row: AttackRow) -> str:
    return f"{row.settings.threat} {row.settings.budget}"


def _remarks(row: AttackRow) -> list[str]:
    """What the reader must know of one run."""
    made = unfinished(len(row.results), row.planned)
    if row.skipped:
        made.append(
            f"{part_of(row.skipped, len(row.results), 'image')} wrong without an attack: not attacked,"
            " counted as wrong"
        )
    attacked = [image for image in row.results if image.evaluated.result is not None]
    unchanged = sum(not bool(difference(image).any()) for image in attacked)
    if unchanged:
        made.append(f"{part_of(unchanged, len(attacked), 'attacked image')} unchanged")
    if row.settings.protocol is not None:
        protocol = load_protocol(row.settings.protocol)
        share: Share = getattr(row.attacked, protocol.headline.value)
        made.append(
            f"protocol {protocol.name} ({protocol.source}) reports {protocol.headline.value}:"
            f" {share.value:.1%}; {protocol.note}"
        )
    if row.attacked.fixed is not None and row.clean.fixed is not None:
        known, fresh = row.attacked.fixed, row.attacked.fresh
        made.append(
            f"fixed noise: {known.value:.1%} ({100 * known.low:.0f}–{100 * known.high:.0f}) withstand an"
            f" attack that knows the noise of the answer (clean {row.clean.fixed.value:.1%}), one fresh draw"
            f" {fresh.value:.1%}: {100 * (fresh.value - known.value):.1f} points are the randomness"
        )
    if OPTIMISES in own_words(row.settings.defense):
        made.append(
            "optimisation at inference: the defence moves each image by an optimisation of its own, through"
            " which gradients may vanish or mislead; believe it after the gradients exact and bpda, lagrange"
            " and an attack without gradients"
        )
    # How far the gradient of a weaker attack is from the exact one is no failure, and must be known.
    weaker = row.settings.gradient != GradientMode.EXACT.value
    return made + [
        f"{one.name}: {one.message}"
        for one in row.findings or ()
        if not one.passed or (weaker and one.name == "gradient-agreement")
    ]


def own_words(defense: str) -> frozenset[str]:
    """What a defence of the catalog can do, see `catalog.Method`; nothing is known of a user's class."""
    return frozenset() if own_class("defense", defense) else DEFENSES[parse("defense", defense).name].can


def _comparable(rows: Sequence[AttackRow]) -> list[str]:
    image_sets = {
        (
            short_source(row.settings.data),
            row.settings.split,
            tuple(one.evaluated.image_index for one in row.results),
        )
        for row in rows
    }
    remarks = ["the runs are over different images: their rows do not compare"] * (len(image_sets) > 1)
    for name, columns in (("draws", "one draw and worst"), ("majority_of", "majority")):
        numbers = sorted({getattr(row.settings, name) for row in rows})
        remarks.append(
            f"{columns}: of {' or '.join(map(str, numbers))} draw{'s' * (numbers != [1])} of an image"
        )
        if len(numbers) > 1:
            remarks[-1] += ": rows of other numbers do not compare"
    return remarks


def _contestants(report: AttackReport) -> list[Contestant]:
    """The rows as comparisons see them."""
    several = len({row.settings.describe_attack() for row in report.rows}) > 1
    return [
        Contestant(
            report.label(row),
            row.settings.describe_attack() if several else "",
            (row.folder,),
            (row.settings.threat, parse_budget(row.settings.budget)),
            f"{short_source(row.settings.data)} ({row.settings.split})",
            {
                one.evaluated.image_index: (one.evaluated.true_label, one.image_hash, "")
                for one in row.results
            },
            right_by_accuracy(row, report),
        )
        for row in report.rows
    ]


def right_by_accuracy(row: AttackRow, report: AttackReport) -> dict[Measure, dict[int, bool] | None]:
    """What a run of a report is right in by accuracy.

    One fresh draw is right in a share of an image's draws: no outcome to pair. None of draws or votes that
    are not as many as of the first run, and under fixed noise of a run that was not attacked so.
    """
    evaluated, settings = [image.evaluated for image in row.results], row.settings
    first = report.rows[0].settings
    clean, attacked = hits_of(
        evaluated, _classes(evaluated), draws=settings.draws, votes=settings.majority_of
    )
    votes, draws = settings.majority_of == first.majority_of, settings.draws == first.draws
    found = {
        "clean majority": clean.majority if votes else None,
        "attacked majority": attacked.majority if votes else None,
        "attacked worst": attacked.worst if draws else None,
        "attacked while optimising": attacked.optimisation,
    }
    if any(one.settings.fixed_noise for one in report.rows):
        known = [bool(one.fixed_right) for one in evaluated]
        found["attacked fixed noise"] = torch.tensor(known) if settings.fixed_noise else None
    indices = [one.image_index for one in evaluated]
    return {
        name: None if right is None else dict(zip(indices, right.tolist(), strict=True))
        for name, right in found.items()
    }


def difference(image: AttackedImage) -> Tensor:
    """What the attack added to an image that it attacked, C×H×W."""
    assert image.evaluated.result is not None
    return (image.evaluated.result.adversarial - image.clean).float()
