"""--json: one document on standard output, which says what the Python API does, at full precision."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from diffproof.cli.main import run
from diffproof.cli.screen import print_json
from diffproof.runs.attack.plan import attack_costs
from diffproof.runs.attack.report import load_attack_report
from diffproof.runs.attack.verify import verify_attack
from diffproof.runs.certify.ablation import Over, load_ablation
from diffproof.runs.certify.report import load_report
from diffproof.runs.certify.verify import verify
from diffproof.runs.plan import Costs, Range
from diffproof.smoothing.bounds import largest_radius
from diffproof.smoothing.stopping import Stopping
from helpers.command_line import Refused
from helpers.paths import ROOT
from helpers.runs import change

CERTIFY = "certify --data digits --indices 0:4 --classifier digits --sigma 0.25 --n0 5 --n 30"
ATTACK = (
    "attack --data digits --indices 0:3 --classifier digits --defense none --threat linf --budget 0.1"
    " --attack pgd:iterations=1 --diagnose 1 --draws 1 --majority-of 1"
)
RUNS = {
    "plain": f"{CERTIFY} --defense none",
    "accurate": f"{CERTIFY} --defense none --until-half-width 0.45 --seed 1",
    "kept": f"{CERTIFY} --defense densepure:steps=2,votes=3 --denoiser digits --keep-ballots --indices 0:2",
    "attacked": ATTACK,
}

Printed = Callable[..., Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of each kind; read only."""
    folder = tmp_path_factory.mktemp("runs")
    for name, line in RUNS.items():
        assert run([*line.split(), "--out", str(folder / name)]) == 0
    # What a folder tells of its commands changes nothing of its results.
    change(folder / "plain", "INSERT INTO failures VALUES (9, 'not finite', 3, '1')")
    return folder


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """Run a command line with --json, and give what it printed, which is JSON and nothing else."""

    def document(*words: object, status: int = 0, warnings: bool = False) -> Any:
        capsys.readouterr()
        assert run([*map(str, words), "--json"]) == status
        out, err = capsys.readouterr()
        assert bool(err) == warnings
        assert out.isascii()
        return json.loads(out, parse_constant=no_constant)

    return document


class Pair(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Nested:
    pair: Pair
    of: dict[float, list[int]]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1 / 3, "0.3333333333333333"),
        (np.float64(0.1), "0.1"),
        (2**63 - 1, "9223372036854775807"),
        (math.nan, "null"),
        (-math.inf, "null"),
        (True, "true"),
        (None, "null"),
        (Path("runs/a"), '"runs/a"'),
        (Stopping.FIXED, '"fixed"'),
        ("σ\x1b[31m", '"\\u03c3\\u001b[31m"'),
        (
            Nested(Pair(0.5, math.inf), {0.25: [1]}),
            '{"pair":{"low":0.5,"high":null},"of":{"0.25":[1]}}',
        ),
        ((), "[]"),
    ],
    ids=str,
)
def test_every_value_has_one_form(value: object, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_json(value)
    assert (
        "".join(line.strip() for line in capsys.readouterr().out.splitlines()).replace(": ", ":") == expected
    )


@pytest.mark.parametrize(
    "value", [{1, 2}, np.int64(3), b"x", object()], ids=["set", "int64", "bytes", "object"]
)
def test_what_has_no_form_is_a_bug(value: object) -> None:
    with pytest.raises(TypeError, match="has no place in JSON"):
        print_json([value])


@pytest.mark.slow
def test_a_report_of_certifications(runs: Path, printed: Printed, tmp_path: Path) -> None:
    folders = [runs / "plain", runs / "accurate", runs / "kept"]
    given = printed("report", *folders, "--at", "0,0.125,9", "--out", tmp_path / "out")
    report = load_report(folders, [0.0, 0.125, 9.0])
    assert list(given) == ["radii", "rows", "best", "comparisons", "remarks", "written"]
    assert given["radii"] == [0.0, 0.125, 9.0]
    assert given["remarks"] == report.remarks + report.comparisons.remarks != []
    assert [one["sentence"] for one in given["comparisons"]] == [
        pair.sentence for pair in report.comparisons.pairs
    ]
    assert len(given["comparisons"]) == 2
    files = ("table.csv", "curve.png", "comparisons.csv")
    assert given["written"] == [str(tmp_path / "out" / name) for name in files]
    assert len(given["rows"]) == len(report.rows) == 3
    for one, row in zip(given["rows"], report.rows, strict=True):
        assert one["label"] == report.label(row)
        assert one["folders"] == [str(folder) for folder in row.folders]
        assert one["settings"] == asdict(row.settings)
        accuracies = {str(radius): row.certified_accuracy(radius) for radius in report.radii}
        assert one["certified_accuracy"] == accuracies
        assert one["images"] == len(row.results)
        for name in ("weights_hash", "planned", "largest_radius", "draws"):
            assert one[name] == getattr(row, name)
        for name in ("average_radius", "wrong", "abstained"):
            assert one[name] == getattr(row, name)
        assert one["votes"] == (None if row.votes is None else list(row.votes))
        assert one["shares"] == {str(radius): asdict(share) for radius, share in row.shares.items()}
    assert [bool(one["shares"]) for one in given["rows"]].count(True) == 1
    assert [one["votes"] is not None for one in given["rows"]].count(True) == 1


@pytest.mark.parametrize("over", list(Over))
def test_a_report_over_votes_or_draws(runs: Path, printed: Printed, over: Over) -> None:
    given = printed("report", runs / "kept", "--over", over, "--at", "0,0.1")
    ablation = load_ablation(runs / "kept", over, [0.0, 0.1])
    assert (given["folder"], given["over"], given["written"]) == (str(runs / "kept"), over.value, [])
    assert [one[over.value] for one in given["rows"]] == list(ablation.rows)
    for one, row in zip(given["rows"], ablation.rows.values(), strict=True):
        assert one["certified_accuracy"] == {
            "0.0": row.certified_accuracy(0),
            "0.1": row.certified_accuracy(0.1),
        }
        assert (one["images"], one["average_radius"]) == (2, row.average_radius)
    assert given["settings"]["keep_ballots"] is True


def test_a_report_of_attacks(runs: Path, printed: Printed) -> None:
    given, (row,) = printed("report", runs / "attacked"), load_attack_report([runs / "attacked"]).rows
    (one,) = given["rows"]
    assert one["folder"] == str(row.folder)
    assert (one["images"], one["planned"], one["skipped"]) == (3, 3, row.skipped)
    assert (one["clean"], one["attacked"]) == (asdict(row.clean), asdict(row.attacked))
    assert row.findings
    assert one["findings"] == [asdict(finding) for finding in row.findings]
    assert one["settings"] == asdict(row.settings)


@pytest.mark.parametrize("flags", [["--counts"], ["--trust", "--resample", "2"]], ids=" ".join)
@pytest.mark.parametrize("name", ["plain", "attacked"])
def test_a_verification(runs: Path, printed: Printed, name: str, flags: list[str]) -> None:
    given = printed("verify", runs / name, *flags)
    assert given["failures"] == []
    if flags == ["--counts"]:
        assert given == asdict((verify if name == "plain" else verify_attack)(runs / name))
    else:
        assert len(given["resampled"]) == 2


def test_a_verification_that_fails(runs: Path, printed: Printed, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs / "plain", tmp_path / "run"))
    change(
        folder, "UPDATE images SET certificate = json_set(certificate, '$.radius', 0.7) WHERE image_index = 1"
    )
    given = printed("verify", folder, "--counts", status=1)
    assert given["failures"] == verify(folder).failures
    assert len(given["failures"]) == 1


@pytest.mark.parametrize("workers", [None, 3])
def test_a_plan(printed: Printed, monkeypatch: pytest.MonkeyPatch, workers: int | None) -> None:
    planned: list[Costs] = []

    def costs(*arguments: Any) -> Costs:
        planned.append(attack_costs(*arguments))
        return planned[-1]

    monkeypatch.setattr("diffproof.runs.attack.plan.attack_costs", costs)
    given = printed("plan", *ATTACK.split(), *(() if workers is None else ("--workers", workers)))
    (one,) = planned
    assert given["costs"] == {
        name: value._asdict() if isinstance(value, Range) else value for name, value in vars(one).items()
    }
    for name, plan in (("alone", one.on()), ("shared", None if workers is None else one.on(workers))):
        assert given[name] == (None if plan is None else {**asdict(plan), "seconds": plan.seconds._asdict()})
    assert given["remarks"] == ["images are attacked in 1 group, --batch-size rows together"] * bool(workers)


def test_the_plan_of_a_certification_has_the_largest_radius(printed: Printed) -> None:
    given = printed("plan", *RUNS["plain"].split())
    assert given["largest_radius"] == largest_radius(30, 0.001, 0.25, "one-sided", 10)
    assert given["alone"]["evaluations"] == 4 * 35


def test_warnings_stay_on_standard_error(runs: Path, printed: Printed, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs / "plain", tmp_path / "run"))
    (folder / "settings.yaml").unlink()
    assert printed("report", folder, warnings=True)["rows"][0]["images"] == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("report nowhere --json", "run: nowhere is no run folder"),
        ("verify nowhere --json", "run: nowhere is no run folder"),
        ("report --json", "Missing argument 'RUNS...'."),
    ],
)
def test_mistakes_are_one_line(refused: Refused, line: str, message: str) -> None:
    assert refused(line.split()).startswith(message)


def documented() -> dict[str, Any]:
    """The documents of docs/runs.md, by the command that prints them."""
    section = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8").split("## For programs")[1]
    found = re.findall(r"^`(diffproof [^`]*)`.*?^```json\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return {command: json.loads(text) for command, text in found}


def names(document: Any) -> Any:
    """The keys of a document and of its parts, but of those that differ from run to run."""
    if isinstance(document, dict):
        return {
            name: None if name in ("settings", "measured", "shares", "certified_accuracy") else names(one)
            for name, one in document.items()
        }
    return [names(one) for one in document[:1]] if isinstance(document, list) else None


@pytest.mark.parametrize(
    ("line", "page"),
    [
        ("report {runs}/kept --at 0,0.5", "report runs/a --at 0,0.5"),
        (
            "report {runs}/kept --over votes --at 0 --out out",
            "report runs/a --over votes --at 0",
        ),
        ("report {runs}/attacked", "report runs/b"),
        ("verify {runs}/plain --counts", "verify runs/a --counts"),
        ("status {runs}/plain", "status runs/a"),
        (f"plan {RUNS['plain']} --workers 2", "plan certify … --workers 2"),
    ],
)
def test_documents_are_those_of_the_page(
    runs: Path, printed: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, page: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = printed(*line.format(runs=runs).split())
    assert names(given) | {"remarks": []} == names(documented()[f"diffproof {page} --json"]) | {"remarks": []}
