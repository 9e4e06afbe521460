"""The papers' claims on data and networks that run here, each with its numbers, interval, test and verdict.

    python benchmarks/claims.py run [--only PREFIX …]   trains and runs what claims.yaml names and lacks
    python benchmarks/claims.py table [--page FILE]     prints the claims and what the runs cost

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
import functools
import itertools
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from diffproof.cli.main import run
from diffproof.errors import ArgumentError
from diffproof.intervals import Share
from diffproof.paired import PairedDifference, holm
from diffproof.runs.attack.report import AttackRow, load_attack_report, right_by_accuracy
from diffproof.runs.attack.store import AttackStore
from diffproof.runs.certify.ablation import Over, load_ablation
from diffproof.runs.certify.report import Row, load_row

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


def needed(networks: Mapping[str, str], lines: Sequence[str], out: Path) -> list[tuple[Path, str]]:
    """The files that are lacking, weights where a name has no other ending, with the command of each."""
    found: list[tuple[Path, str]] = []
    # What another network is made of stands above it.
    for name, line in reversed([*networks.items()]):
        place, _, rest = name.partition("/")
        path = out / place / "networks" / (rest if rest.endswith(".npz") else f"{rest}.safetensors")
        if not path.exists() and any(str(path) in one for one in [*lines, *(made for _, made in found)]):
            found.append((path, line))
    return found[::-1]


class Runs:
    """The runs of a folder by their names, each read once.

    Args:
        out: the folder of all runs.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._certified = functools.cache(load_row)
        self._attacked = functools.cache(lambda folder: load_attack_report([folder]))
        self._ablated = functools.cache(lambda folder, at: load_ablation(folder, Over.VOTES, [at]))

    def outcome(self, name: str, at: float | str) -> dict[int, bool]:
        """Whether a run, or RUN@K, is right in each image, at a radius or by an accuracy of the report."""
        run_name, _, votes = name.partition("@")
        folder = self._out / run_name
        if isinstance(at, str):
            report = self._attacked(folder)
            right = right_by_accuracy(report.rows[0], report)[at]
            assert right is not None
            return right
        row = self._ablated(folder, at).rows[int(votes)] if votes else self._certified(folder)
        return {one.image_index: one.certified_at(at) for one in row.results}

    def cost(self, name: str) -> list[str]:
        """What a run took: the cells of its row."""
        folder = self._out / name
        if AttackStore.holds(folder):
            return _attack_cost(self._attacked(folder).rows[0])
        return _certificate_cost(self._certified(folder))


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
        first: whether the run is right, by image.
        against: whether the other is.
    """

    says: str
    expected: str | None
    least: float
    names: tuple[str, str | None]
    at: float | str
    paper: str
    first: Mapping[int, bool]
    against: Mapping[int, bool] | None

    @property
    def common(self) -> list[int]:
        """The images that all its runs have."""
        both = self.first.keys() if self.against is None else self.first.keys() & self.against.keys()
        return sorted(both)

    @property
    def shares(self) -> list[Share]:
        """What each run got right of these."""
        hits = [
            sum(right[index] for index in self.common)
            for right in (self.first, self.against)
            if right is not None
        ]
        return [Share.of(some / len(self.common), len(self.common)) for some in hits]

    @property
    def difference(self) -> PairedDifference | None:
        """The first run beside the second, if there is one."""
        if self.against is None:
            return None
        first, second = ([right[index] for index in self.common] for right in (self.first, self.against))
        return PairedDifference.of(first, second)

    def verdict(self, corrected: float) -> str:
        """See the file's head."""
        difference = self.difference
        if difference is None:
            low, high = self.shares[0].low, self.shares[0].high
            return "holds" if low >= self.least else "reversed" if high < self.least else "not shown"
        apart = corrected <= SIGNIFICANT
        if self.expected == "level":
            within = max(-difference.low, difference.high) <= LEVEL
            return "reversed" if apart else "holds" if within else "not shown"
        if not apart:
            return "not shown"
        return "holds" if difference.value * SIGNS[str(self.expected)] > 0 else "reversed"


def cases(claims: Sequence[Mapping[str, Any]], runs: Runs) -> Iterator[Case]:
    """All cases whose runs are there; the others are told on stderr."""
    for claim in claims:
        for name, other, at, paper in claim["cases"]:
            try:
                first, against = runs.outcome(name, at), runs.outcome(other, at) if other else None
            except ArgumentError as error:
                print(f"{claim['says']}: {error}", file=sys.stderr)
                continue
            expected, least = claim.get("expected"), claim.get("least", 0.0)
            yield Case(claim["says"], expected, least, (name, other), at, paper, first, against)


def verdicts(found: Sequence[Case]) -> list[tuple[str, float]]:
    """Of each case its verdict and its corrected p-value."""
    corrected = iter(holm([one.difference.p_value for one in found if one.difference is not None]))
    chances = [1.0 if one.difference is None else next(corrected) for one in found]
    return [(one.verdict(chance), chance) for one, chance in zip(found, chances, strict=True)]


def summary(found: Sequence[Case]) -> Iterator[str]:
    """A line a claim, as Markdown: in how many of its cases it holds."""
    yield "| claim | holds | not shown | reversed |"
    yield "|---|---|---|---|"
    by_claim: dict[str, list[str]] = {}
    for case, (verdict, _) in zip(found, verdicts(found), strict=True):
        by_claim.setdefault(case.says, []).append(verdict)
    for says, all_of_it in by_claim.items():
        counts = [str(all_of_it.count(one)) for one in ("holds", "not shown", "reversed")]
        yield f"| {says} | {' | '.join(counts)} |"


def table(found: Sequence[Case]) -> Iterator[str]:
    """The cases as Markdown."""
    yield "| claim | the paper's | runs | at | here | images | points apart | p | verdict |"
    yield "|---|---|---|---|---|---|---|---|---|"
    before = None
    for case, (verdict, chance) in zip(found, verdicts(found), strict=True):
        at = case.at if isinstance(case.at, str) else f"ε = {case.at:g}"
        shares, p = case.shares, ""
        here = " and ".join(f"{one.value:.1%}" for one in shares)
        apart = f"({shares[0].low:.1%} to {shares[0].high:.1%})"
        if (difference := case.difference) is not None:
            low, high = (f"{100 * end:+.1f}" for end in (difference.low, difference.high))
            apart = f"{100 * difference.value:+.1f} ({low} to {high})".replace("-", "−")
            p = "< 0.001" if chance < 0.001 else f"{chance:.3f}"
        runs = " against ".join(f"`{name}`" for name in case.names if name)
        says = case.says if case.says != before else ""
        cells = [says, case.paper, runs, at, here, len(case.common), apart, p, verdict]
        before = case.says
        yield f"| {' | '.join(map(str, cells))} |"


def costs(names: Sequence[str], runs: Runs) -> Iterator[str]:
    """What each run that is there took, and of certificates what the plain loop would have for all draws."""
    yield "| run | images | evaluations | seconds | the plain loop's evaluations | times less |"
    yield "|---|---|---|---|---|---|"
    for name in names:
        try:
            cells = runs.cost(name)
        except ArgumentError as error:
            print(f"no cost of {name}: {error}", file=sys.stderr)
        else:
            yield f"| `{name}` | {' | '.join(cells)} |"


def _attack_cost(row: AttackRow) -> list[str]:
    spent = sum(one.evaluated.result.forwards for one in row.results if one.evaluated.result is not None)
    seconds = sum(one.seconds for one in row.results)
    return [str(len(row.results)), f"{spent:,} of the defence", f"{seconds:,.0f}", "", ""]


def _certificate_cost(row: Row) -> list[str]:
    given = [one.certificate for one in row.results]
    spent = sum(one.denoiser_evaluations + one.classifier_evaluations for one in given)
    seconds = sum(one.seconds for one in row.results)
    a_draw = [
        (one.naive_denoiser_evaluations + one.naive_classifier_evaluations) / (one.n0 + one.n)
        for one in given
    ]
    plain = sum(a_draw) * (row.settings.n0 + row.settings.n)
    return [str(len(given)), f"{spent:,}", f"{seconds:,.0f}", f"{plain:,.0f}", f"{plain / spent:.1f}"]


def filled(page: str, texts: Mapping[str, str]) -> str:
    """A Markdown page with these texts between <!-- NAME --> and <!-- end -->, in place of what was there."""
    for name, text in texts.items():
        head, start, rest = page.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition("<!-- end -->")
        page = f"{head}{start}\n{text}\n\n{end}{tail}" if end else page
    return page


def main(arguments: list[str] | None = None) -> None:
    """Run, or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--claims", type=Path, default=HERE / "claims.yaml", help="the file of claims")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of all runs")
    parser.add_argument("--only", nargs="+", default=[""], help="runs whose names begin so")
    parser.add_argument("--page", type=Path, help="write the tables into this Markdown page, too")
    given = parser.parse_args(arguments)
    # The model of examples/ is found as from its folder.
    sys.path.insert(0, str(HERE.parent / "examples"))
    asked = yaml.safe_load(given.claims.read_text())
    values = {**asked["values"], "out": str(given.out)}
    networks, runs = commands(asked["networks"], values), commands(asked["runs"], values)
    if given.what == "table":
        there = Runs(given.out)
        found = list(cases(asked["claims"], there))
        parts = {"summary": summary(found), "table": table(found), "costs": costs(list(runs), there)}
        texts = {name: "\n".join(lines) for name, lines in parts.items()}
        print("\n\n".join(texts.values()))
        if given.page is not None:
            given.page.write_text(filled(given.page.read_text(), texts))
        return
    wanted = {name: line for name, line in runs.items() if name.startswith(tuple(given.only))}
    for weights, line in needed(networks, list(wanted.values()), given.out):
        weights.parent.mkdir(parents=True, exist_ok=True)
        if status := run([*shlex.split(line), "--out", str(weights)]):
            sys.exit(f"{weights}: status {status}")
    for name, line in wanted.items():
        if status := run([*shlex.split(line), "--out", str(given.out / name)]):
            sys.exit(f"{name}: status {status}")


if __name__ == "__main__":
    main()
