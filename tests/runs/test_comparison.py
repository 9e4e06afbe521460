"""Runs compared: real runs against their stores read without diffproof, the rest against counting by hand."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from diffproof.cli.main import run
from diffproof.runs.attack.report import load_attack_report
from diffproof.runs.certify.report import load_report
from diffproof.runs.comparison import Contestant, Measure, Verdict, compare, points
from helpers.command_line import Refused
from helpers.paths import ROOT
from helpers.runs import attacked_rows, certify_flags, change, rows

RESNET = ROOT / "docs" / "results" / "resnet56"
NONE, DDS, DENSEPURE = (RESNET / f"{name}-0.25" for name in ("none", "dds", "densepure-b10"))


def contestant(name: str, right: str, of: str = "", **changes: Any) -> Contestant:
    """A run whose images are right (1), wrong (0) or not there (.), by index."""
    hits = {index: mark == "1" for index, mark in enumerate(right) if mark != "."}
    found: dict[Measure, dict[int, bool] | None] = {0.5: hits}
    images = {index: (3, f"hash{of}{index}", None) for index in hits}
    given = {"group": None, "source": "digits (test)", "images": images, "right": found, "setting": ""}
    return Contestant(label=name, folders=(Path(name),), **{**given, **changes})


def certified(folder: Path, radius: float) -> dict[int, bool]:
    found = {}
    for index, label, text in rows(folder):
        one = json.loads(text)
        found[index] = one["label"] == label and one["radius"] >= radius
    return found


def test_runs_are_paired_on_their_common_images() -> None:
    radii = (0.0, 0.25, 0.5, 0.75)
    report = load_report([NONE, DDS, DENSEPURE], radii)
    assert [(pair.label, pair.against) for pair in report.comparisons.pairs] == [
        ("dds", "none"),
        ("densepure:votes=10", "none"),
    ]
    p_values = []
    for pair, folder in zip(report.comparisons.pairs, (DDS, DENSEPURE), strict=True):
        for radius in radii:
            one, other = certified(folder, radius), certified(NONE, radius)
            common = one.keys() & other.keys()
            assert pair.images == len(common) == (128 if folder == DDS else 32)
            if (compared := pair.at[radius]) is None:
                # Beyond what n allows: nobody has an image there.
                assert radius == 0.75
                continue
            gained = sum(one[i] and not other[i] for i in common)
            lost = sum(other[i] and not one[i] for i in common)
            found = compared.difference
            assert (found.gained, found.lost, found.images) == (gained, lost, len(common))
            assert found.value == (gained - lost) / len(common)
            assert found.p_value == pytest.approx(binomtest(gained, gained + lost).pvalue)
            p_values.append(found.p_value)
            assert compared.corrected >= found.p_value
    corrected = [one.corrected for pair in report.comparisons.pairs for one in pair.at.values() if one]
    assert min(corrected) == pytest.approx(6 * min(p_values))
    assert report.comparisons.pairs[0].at[0.25].verdict is Verdict.AHEAD  # type: ignore[union-attr]
    assert "corrected for all 6 (Holm)" in report.comparisons.remarks[0]


@pytest.mark.slow
def test_what_a_run_is_compared_with() -> None:
    folders = [DDS, NONE, RESNET / "none-0.5", RESNET / "dds-0.5"]
    told = [(pair.folders, pair.against_folders) for pair in load_report(folders, [0.0]).comparisons.pairs]
    assert told == [((NONE,), (DDS,)), ((folders[3],), (folders[2],))]
    # Where each sigma has one run, with the first named.
    (pair,) = load_report([folders[3], DDS], [0.0]).comparisons.pairs
    assert pair.title == "dds against dds, sigma = 0.25 against sigma = 0.5"
    assert pair.against_folders == (folders[3],)
    (one, other, another) = load_report(folders, [0.0], against=folders[2]).comparisons.pairs
    assert {pair.against_folders for pair in (one, other, another)} == {(folders[2],)}
    with pytest.raises(ValueError, match="against: expected one of the runs, got elsewhere"):
        load_report(folders, [0.0], against=Path("elsewhere"))
    assert load_report([DDS], [0.0]).comparisons.pairs == []


def test_runs_of_one_name_are_told_apart_by_their_folders() -> None:
    for folders, title in (
        (["runs/a", "runs/b"], "dds (b) against dds (a)"),
        (["one/a", "other/a"], "dds (other/a) against dds (one/a)"),
    ):
        paths = [Path(folder) for folder in folders]
        runs = [replace(contestant("dds", "11"), folders=(path,)) for path in paths]
        assert compare(runs, paths, None).pairs[0].title == title
    # What differs of the settings tells more; they are of 1,000 draws and 500.
    pairs = load_report([DDS, RESNET / "dds-16th-0.25"], [0.0]).comparisons.pairs
    assert pairs[0].title == "dds, n = 500, compile = True against dds, n = 1000, compile = False"


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (
            contestant("a", "10"),
            contestant("b", "10", of="else"),
            "image 0 has another picture in b than in a",
        ),
        (
            contestant("a", "10"),
            contestant("b", "1", images={0: (4, "hash0", None)}),
            "image 0 has another label in b than in a",
        ),
        (
            contestant("a", "10.."),
            contestant("b", "..11", source="cifar10 (test)"),
            r"b is of cifar10 \(test\), a of digits \(test\)",
        ),
    ],
    ids=["pictures", "labels", "sources"],
)
def test_runs_of_different_data_are_refused(one: Contestant, other: Contestant, message: str) -> None:
    with pytest.raises(ValueError, match=f"runs: expected runs of the same data, {message}"):
        compare([one, other], [Path("a"), Path("b")], None)


def test_hashes_that_depend_on_other_things_are_not_compared() -> None:
    images = {0: (3, "of the grid", "grid")}
    made = compare([contestant("a", "1"), contestant("b", "1", images=images)], [Path("a"), Path("b")], None)
    assert made.pairs[0].images == 1


def test_only_images_of_both_runs_count() -> None:
    made = compare([contestant("a", "10.."), contestant("b", "0111")], [Path("a"), Path("b")], None)
    compared = made.pairs[0].at[0.5]
    assert compared is not None
    assert (made.pairs[0].images, compared.difference.gained, compared.difference.lost) == (2, 1, 1)


def test_a_verdict_is_corrected_for_all_comparisons() -> None:
    # Six images that one alone has right: p = 2/64, and twice that for two comparisons.
    first, ahead = contestant("a", "0" * 6 + "1" * 6), contestant("b", "1" * 12)
    (alone,) = compare([first, ahead], [Path("a"), Path("b")], None).pairs
    assert alone.at[0.5] is not None
    assert (alone.at[0.5].corrected, alone.at[0.5].verdict) == (2 / 64, Verdict.AHEAD)
    level = contestant("c", "0" * 6 + "1" * 6)
    pair = compare([first, ahead, level], [Path("a"), Path("b"), Path("c")], None).pairs[0]
    assert pair.at[0.5] is not None
    assert (pair.at[0.5].corrected, pair.at[0.5].verdict) == (4 / 64, Verdict.UNDECIDED)


def test_runs_without_a_common_image_are_not_compared() -> None:
    made = compare([contestant("a", "10.."), contestant("b", "..11")], [Path("a"), Path("b")], None)
    assert (made.pairs, made.remarks) == ([], ["b and a have no image in common: not compared"])


@pytest.mark.slow
def test_a_radius_that_was_not_asked_for_is_not_compared(
    small_run: Path, denoiser: Path, tmp_path: Path
) -> None:
    asked = {"stop": "sequential", "radii": "0.1", "denoiser": denoiser}
    assert run(certify_flags(tmp_path / "asked", **asked)) == 0
    (pair,) = load_report([small_run, tmp_path / "asked"], [0.0, 0.1, 0.2]).comparisons.pairs
    assert [compared is not None for compared in pair.at.values()] == [False, True, False]
    assert "; not compared at ε=0, at ε=0.2" in pair.sentence


def test_a_run_that_ended_by_its_accuracy_is_told(tmp_path: Path) -> None:
    copy = shutil.copytree(NONE, tmp_path / "known")
    settings = json.loads(_text(copy, "json"))
    change(copy, "UPDATE settings SET json = ?", json.dumps({**settings, "until_half_width": 0.4}))
    with pytest.warns(UserWarning, match="until_half_width"):
        report = load_report([copy, DDS], [0.0])
    assert any("ended once its accuracy was known" in remark for remark in report.comparisons.remarks)


def _text(folder: Path, column: str) -> str:
    import sqlite3

    connection = sqlite3.connect(folder / "results.sqlite")
    try:
        return str(connection.execute(f"SELECT {column} FROM settings").fetchone()[0])
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("1" * 40, "0" * 40, "ahead by 82 to 100 points at ε=0.5"),
        ("0" * 20 + "1" * 20, "1" * 40, "behind by 35 to 65 points at ε=0.5"),
        ("1" * 40, "1" * 39 + "0", "level at ε=0.5 (−6 to +13 points)"),
        ("1" * 40, "1" * 35 + "0" * 5, "undecided at ε=0.5 (+3 to +26 points)"),
        ("." * 39 + "0", "." * 39 + "0", "not compared at ε=0.5"),
    ],
)
def test_verdicts_in_words(one: str, other: str, words: str) -> None:
    made = compare([contestant("b", other), contestant("a", one)], [Path("b"), Path("a")], None)
    number = f"{40 - one.count('.')} image{'s' * (one.count('.') < 39)}"
    assert made.pairs[0].sentence == f"a against b, {number}: {words}"


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ((-0.0001, 0.02), ["+0.0", "+2.0"]),
        ((-0.07, 0.21), ["−7", "+21"]),
        ((-0.003, 0.21), ["−0.3", "+21.0"]),
        ((0.031, 0.089), ["+3.1", "+8.9"]),
    ],
)
def test_points(ends: tuple[float, float], told: list[str]) -> None:
    assert points(*ends) == told


@pytest.fixture(scope="module")
def attacks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs of two defences under one attack, and one under a smaller budget."""
    folder = tmp_path_factory.mktemp("attacks")
    for name, defense, budget in (
        ("plain", "none", "0.15"),
        ("pure", "diffpure:t_star=0.1,steps=2 --denoiser digits", "0.15"),
        ("small", "none", "0.01"),
    ):
        line = (
            f"attack --data digits --indices 0:8 --classifier digits --defense {defense} --threat linf"
            f" --budget {budget} --attack pgd:iterations=2 --diagnose 0 --draws 3 --majority-of 3"
        )
        assert run([*line.split(), "--out", str(folder / name)]) == 0
    return [folder / name for name in ("plain", "pure", "small")]


@pytest.mark.slow
def test_attacks_are_compared_at_each_budget(attacks: list[Path]) -> None:
    report = load_attack_report(attacks)
    (pair,) = report.comparisons.pairs
    assert (pair.folders, pair.against_folders, pair.images) == ((attacks[1],), (attacks[0],), 8)
    gained = {"clean majority": 0, "attacked majority": 0, "attacked worst": 0}
    lost = dict(gained)
    for (_, label, one, *_), (_, _, other, *_) in zip(*map(attacked_rows, attacks[1::-1]), strict=True):
        answers = [_right(json.loads(text), label) for text in (one, other)]
        for name in gained:
            gained[name] += answers[0][name] and not answers[1][name]
            lost[name] += answers[1][name] and not answers[0][name]
    assert gained["attacked majority"] > 0
    for name in gained:
        compared = pair.at[name]
        assert compared is not None
        assert (compared.difference.gained, compared.difference.lost) == (gained[name], lost[name])


def _right(one: dict[str, Any], label: int) -> dict[str, bool]:
    after = one["labels"]
    return {
        "clean majority": sum(answer == label for answer in one["clean_labels"]) >= 2,
        "attacked majority": sum(answer == label for answer in after) >= 2,
        "attacked worst": bool(after) and all(answer == label for answer in after),
    }


@pytest.mark.slow
def test_the_command_line_compares(
    attacks: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, words = tmp_path / "out", ["report", *map(str, attacks)]
    assert run([*words, "--against", str(attacks[2]), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "difference in points on common images" in shown
    assert f"written: {out / 'comparisons.csv'}" in shown
    with (out / "comparisons.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    pairs = load_attack_report(attacks, against=attacks[2]).comparisons.pairs
    expected = [(pair, measure, compared) for pair in pairs for measure, compared in pair.at.items()]
    assert len(lines) == len(expected) == 8
    for line, (pair, measure, compared) in zip(lines, expected, strict=True):
        assert (line["defence"], line["measure"], line["run"]) == (pair.label, measure, str(pair.folders[0]))
        assert line["verdict"] == ("" if compared is None else compared.verdict)
    for pair in pairs:
        assert " ".join(pair.sentence.split()) in " ".join(shown.split())
    assert run([*words, "--json"]) == 0
    (given,) = json.loads(capsys.readouterr().out)["comparisons"]
    (pair,) = load_attack_report(attacks).comparisons.pairs
    assert given["sentence"] == pair.sentence
    worst = pair.at["attacked worst"]
    assert worst is not None
    assert given["at"]["attacked worst"]["gained"] == worst.difference.gained


def test_mistakes_are_one_line(attacks: list[Path], refused: Refused) -> None:
    expected = "--against: expected one of the runs"
    assert refused(["report", str(DDS), "--against", str(NONE)]).startswith(expected)
    line = ["report", str(DDS), "--over", "votes", "--against", str(DDS)]
    assert "--against: compares several runs" in refused(line)
    assert refused(["report", str(DDS), str(attacks[0])]).startswith("runs: expected runs of one kind")
