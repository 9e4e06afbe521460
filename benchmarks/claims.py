"""The papers' claims on data and networks that run here, each with its numbers, interval, test and verdict.

    python benchmarks/claims.py run [--only PREFIX …]   trains and runs what claims.yaml names and lacks
    python benchmarks/claims.py table                   prints the claims and what the runs cost

From the repository's folder. What an interrupted call has begun continues. A claim is tested on the images
that both runs have: the difference with its 95% score interval (Tango 1998), McNemar's exact test, corrected
for all cases of the table (Holm). A claim that one is ahead

- holds where the corrected test says so,
- is reversed where the corrected test says the opposite,
- is not shown otherwise.

A claim that two are level holds where the interval lies within ±10 points, and is reversed where the
corrected test tells them apart. A claim of a share is held against its 95% Clopper–Pearson interval.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from diffproof.cli.main import run
from diffproof.intervals import Share
from diffproof.paired import PairedDifference, holm
from diffproof.runs.attack.report import load_attack_report, right_by_accuracy
from diffproof.runs.attack.store import AttackStore
from diffproof.runs.certify.ablation import Over, load_ablation
from diffproof.runs.certify.report import load_row

HERE = Path(__file__).parent
SIGNIFICANT = 0.05
LEVEL = 0.10
SIGNS = {"ahead": 1, "behind": -1, "level": 0}


def commands(part: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, str]:
    """The command lines of a part of the file, by name, with every `for` written out."""
    made = {}
    for template, entry in part.items():
        line, over = (entry, {}) if isinstance(entry, str) else (entry["command"], entry["for"])
        # A list's items stand for themselves, a mapping's names for its texts.
        choices = [
            [
                (key, str(name), str(text))
                for name, text in (some.items() if isinstance(some, dict) else zip(some, some, strict=True))
            ]
            for key, some in over.items()
        ]
        for chosen in itertools.product(*choices):
            name = template.format(**{key: short for key, short, _ in chosen})
            filled = line
            # Values and choices hold values themselves.
            while "{" in filled:
                filled = filled.format(**values, **{key: text for key, _, text in chosen})
            made[name] = filled
    return made


@dataclass(frozen=True)
class Outcome:
    """What a run got right, by one measure.

    Args:
        share: of all its images.
        right: each image's, by index.
    """

    share: Share
    right: Mapping[int, bool]


def outcome(out: Path, name: str, at: float | str) -> Outcome:
    """What a run, or RUN@K, got right at a radius or by an accuracy; an error where it is not there."""
    run_name, _, votes = name.partition("@")
    folder = out / run_name
    if isinstance(at, str):
        right = _attacked(folder, at)
    else:
        row = load_ablation(folder, Over.VOTES, [at]).rows[int(votes)] if votes else load_row(folder)
        right = {one.image_index: one.certified_at(at) for one in row.results}
    return Outcome(Share.of(sum(right.values()) / len(right), len(right)), right)


def _attacked(folder: Path, accuracy: str) -> dict[int, bool]:
    """Each image's hit or miss by an accuracy of `diffproof report`."""
    (row,) = load_attack_report([folder]).rows
    right = right_by_accuracy(row, row.settings)[accuracy]
    assert right is not None
    return right


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Args:
        says: the claim.
        expected: ahead, behind or level; None of a share that is to be `least` at least.
        least: that share.
        names: the run and the one it is held against, if any.
        at: the measure.
        paper: the paper's numbers.
        first: what the run got right.
        against: what the other did.
    """

    says: str
    expected: str | None
    least: float
    names: tuple[str, str | None]
    at: float | str
    paper: str
    first: Outcome
    against: Outcome | None

    @property
    def difference(self) -> PairedDifference | None:
        """The first run beside the second, on the images of both."""
        if self.against is None:
            return None
        common = sorted(self.first.right.keys() & self.against.right.keys())
        return PairedDifference.of(
            [self.first.right[index] for index in common], [self.against.right[index] for index in common]
        )

    def verdict(self, corrected: float) -> str:
        """See the file's head."""
        difference = self.difference
        if difference is None:
            low, high = self.first.share.low, self.first.share.high
            return "holds" if low >= self.least else "reversed" if high < self.least else "not shown"
        apart = corrected <= SIGNIFICANT
        if self.expected == "level":
            within = max(-difference.low, difference.high) <= LEVEL
            return "reversed" if apart else "holds" if within else "not shown"
        if not apart:
            return "not shown"
        return "holds" if difference.value * SIGNS[str(self.expected)] > 0 else "reversed"


def cases(claims: Sequence[Mapping[str, Any]], out: Path) -> Iterator[Case]:
    """All cases whose runs are there; the others are told on stderr."""
    for claim in claims:
        for name, other, at, paper in claim["cases"]:
            lacking = [one for one in (name, other) if one and not (out / one.partition("@")[0]).exists()]
            if lacking:
                print(f"{claim['says']}: no run {' nor '.join(lacking)}", file=sys.stderr)
                continue
            yield Case(
                claim["says"],
                claim.get("expected"),
                claim.get("least", 0.0),
                (name, other),
                at,
                paper,
                outcome(out, name, at),
                outcome(out, other, at) if other else None,
            )


def table(found: Sequence[Case]) -> Iterator[str]:
    """The cases as Markdown."""
    differences = [one.difference for one in found]
    corrected = iter(holm([one.p_value for one in differences if one is not None]))
    yield "| claim | the paper's | runs | at | here | images | points apart | p | verdict |"
    yield "|---|---|---|---|---|---|---|---|---|"
    before = None
    for case, difference in zip(found, differences, strict=True):
        at = case.at if isinstance(case.at, str) else f"ε = {case.at:g}"
        shares = [one.share for one in (case.first, case.against) if one is not None]
        here, images, apart, p, chance = (
            " and ".join(f"{one.value:.1%}" for one in shares),
            shares[0].images,
            "",
            "",
            1.0,
        )
        if difference is None:
            apart = f"({shares[0].low:.1%} to {shares[0].high:.1%})"
        else:
            images, chance = difference.images, next(corrected)
            low, high = (f"{100 * end:+.1f}" for end in (difference.low, difference.high))
            apart = f"{100 * difference.value:+.1f} ({low} to {high})"
            p = "< 0.001" if chance < 0.001 else f"{chance:.3f}"
        runs = " against ".join(f"`{name}`" for name in case.names if name)
        says = case.says if case.says != before else ""
        before = case.says
        cells = [says, case.paper, runs, at, here, images, apart, p, case.verdict(chance)]
        yield f"| {' | '.join(map(str, cells))} |"


def costs(names: Sequence[str], out: Path) -> Iterator[str]:
    """What each run took, and of certificates what the plain loop would have for all its draws."""
    yield "| run | images | evaluations | seconds | the plain loop's evaluations | times less |"
    yield "|---|---|---|---|---|---|"
    for name in names:
        folder = out / name
        if not folder.exists():
            continue
        if AttackStore.holds(folder):
            with AttackStore.reading(folder) as store:
                results = store.results()
            spent = sum(one.evaluated.result.forwards for one in results if one.evaluated.result is not None)
            seconds = sum(one.seconds for one in results)
            yield f"| `{name}` | {len(results)} | {spent:,} of the defence | {seconds:,.0f} | | |"
            continue
        row = load_row(folder)
        given = [one.certificate for one in row.results]
        spent = sum(one.denoiser_evaluations + one.classifier_evaluations for one in given)
        seconds = sum(one.seconds for one in row.results)
        draws = row.settings.n0 + row.settings.n
        plain = sum(
            (one.naive_denoiser_evaluations + one.naive_classifier_evaluations) / (one.n0 + one.n) * draws
            for one in given
        )
        yield f"| `{name}` | {len(given)} | {spent:,} | {seconds:,.0f} | {plain:,.0f} | {plain / spent:.1f} |"


def main(arguments: list[str] | None = None) -> None:
    """Run, or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--claims", type=Path, default=HERE / "claims.yaml", help="the file of claims")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of all runs")
    parser.add_argument("--only", nargs="+", default=[""], help="runs whose names begin so")
    given = parser.parse_args(arguments)
    # The model of examples/ is found as from its folder.
    sys.path.insert(0, str(HERE.parent / "examples"))
    asked = yaml.safe_load(given.claims.read_text())
    values = {**asked["values"], "out": str(given.out)}
    networks, runs = commands(asked["networks"], values), commands(asked["runs"], values)
    if given.what == "table":
        print("\n".join([*table(list(cases(asked["claims"], given.out))), "", *costs(list(runs), given.out)]))
        return
    wanted = {name: line for name, line in runs.items() if name.startswith(tuple(given.only))}
    for name, line in networks.items():
        place, _, rest = name.partition("/")
        weights = given.out / place / "networks" / f"{rest}.safetensors"
        if not weights.exists() and any(str(weights) in one for one in wanted.values()):
            weights.parent.mkdir(parents=True, exist_ok=True)
            if status := run([*shlex.split(line), "--out", str(weights)]):
                sys.exit(f"{name}: status {status}")
    for name, line in wanted.items():
        if status := run([*shlex.split(line), "--out", str(given.out / name)]):
            sys.exit(f"{name}: status {status}")


if __name__ == "__main__":
    main()
