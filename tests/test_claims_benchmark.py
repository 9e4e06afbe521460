"""The benchmark of the papers' claims: what it runs and what it concludes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from scipy.stats import binomtest

from helpers.paths import ROOT


@pytest.fixture(scope="module")
def claims() -> ModuleType:
    spec = importlib.util.spec_from_file_location("claims", ROOT / "benchmarks" / "claims.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["claims"] = module
    spec.loader.exec_module(module)
    return module


def case(
    claims: ModuleType, first: str, against: str | None, expected: str | None, least: float = 0.0
) -> Any:
    """A case of images that are right (1) or wrong (0)."""
    outcomes = [
        None if bits is None else dict(enumerate(bit == "1" for bit in bits)) for bits in (first, against)
    ]
    return claims.Case("a claim", expected, least, ("one", "other"), 0.5, "paper", *outcomes)


def test_every_for_is_written_out_and_values_hold_values(claims: ModuleType) -> None:
    part = {
        "plain": "certify {data}",
        "{what}-{sigma}": {
            "for": {"what": {"a": "{base} --x", "b": "--y"}, "sigma": [0.25, 1]},
            "command": "{what} {sigma}",
        },
    }
    made = claims.commands(part, {"data": "digits", "base": "attack {data}"})
    assert made == {
        "plain": "certify digits",
        "a-0.25": "attack digits --x 0.25",
        "a-1": "attack digits --x 1",
        "b-0.25": "--y 0.25",
        "b-1": "--y 1",
    }


def test_what_a_network_is_made_of_is_made_before_it(claims: ModuleType, tmp_path: Path) -> None:
    here = tmp_path / "digits" / "networks"
    networks = {
        "digits/samples.npz": "sample",
        "digits/robust": f"train --extra-data {here}/samples.npz",
        "digits/there": "train",
        "digits/unused": f"train --extra-data {here}/others.npz",
        "digits/others.npz": "sample",
    }
    here.mkdir(parents=True)
    (here / "there.safetensors").touch()
    lines = [f"attack --classifier {here}/{name}.safetensors" for name in ("robust", "there")]
    found = claims.needed(networks, lines, tmp_path)
    assert [(path.name, line) for path, line in found] == [
        ("samples.npz", "sample"),
        ("robust.safetensors", networks["digits/robust"]),
    ]


@pytest.mark.parametrize(
    ("first", "against", "expected", "verdict"),
    [
        ("1" * 20, "0" * 20, "ahead", "holds"),
        ("0" * 20, "1" * 20, "ahead", "reversed"),
        ("0" * 20, "1" * 20, "behind", "holds"),
        ("1" * 20, "0" * 20, "behind", "reversed"),
        ("1" * 3 + "0" * 17, "0" * 20, "ahead", "not shown"),
        ("10" * 100, "10" * 100, "level", "holds"),
        ("10" * 5, "10" * 5, "level", "not shown"),
        ("1" * 20, "0" * 20, "level", "reversed"),
    ],
)
def test_a_verdict_is_the_corrected_tests(
    claims: ModuleType, first: str, against: str, expected: str, verdict: str
) -> None:
    found = case(claims, first, against, expected)
    assert found.verdict(found.difference.p_value) == verdict


def test_what_the_correction_leaves_is_not_shown(claims: ModuleType) -> None:
    found = case(claims, "1" * 6 + "0" * 14, "0" * 20, "ahead")
    exact = binomtest(6, 6).pvalue
    assert found.difference.p_value == pytest.approx(exact)
    assert found.verdict(exact) == "holds"
    # Among ten such cases the smallest p-value is multiplied by ten.
    lines = list(claims.table([found] * 10))
    assert all("not shown" in line and f"{10 * exact:.3f}" in line for line in lines[2:])
    assert list(claims.summary([found] * 10))[2:] == ["| a claim | 0 | 10 | 0 |"]


@pytest.mark.parametrize(("hits", "verdict"), [(100, "holds"), (0, "reversed"), (96, "not shown")])
def test_a_share_is_held_against_its_interval(claims: ModuleType, hits: int, verdict: str) -> None:
    found = case(claims, "1" * hits + "0" * (100 - hits), None, None, least=0.95)
    assert found.verdict(1.0) == verdict


def test_images_of_one_run_alone_do_not_count(claims: ModuleType) -> None:
    found = case(claims, "1111", "00", "ahead")
    assert found.difference.images == 2
    assert [share.value for share in found.shares] == [1.0, 0.0]
    assert "| 100.0% and 0.0% | 2 |" in list(claims.table([found]))[2]


@pytest.mark.slow
def test_runs_are_made_continued_and_compared(
    claims: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {
        "values": {
            "images": "--data digits --indices 0:4 --classifier digits --seed 0",
            "certify": "certify {images} --sigma 0.5 --n0 5 --n 20",
        },
        "networks": {},
        "runs": {
            "digits/dds": "{certify} --denoiser digits --defense dds",
            "digits/none": "{certify} --defense none",
            "digits/votes": "{certify} --denoiser digits --defense densepure:steps=2,votes=2 --keep-ballots",
        },
        "claims": [
            {
                "says": "one",
                "expected": "ahead",
                "cases": [["digits/dds", "digits/none", 0.1, "paper: 1, 2"]],
            },
            {"says": "two", "expected": "level", "cases": [["digits/votes@1", "digits/votes@2", 0.1, "p"]]},
            {"says": "three", "expected": "ahead", "cases": [["digits/dds", "digits/lacking", 0.1, "p"]]},
        ],
    }
    file = tmp_path / "claims.yaml"
    file.write_text(yaml.safe_dump(asked))
    arguments = ["--claims", str(file), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "path", [*sys.path])
    claims.main(["run", "--only", "digits/n", *arguments])
    assert [one.name for one in (tmp_path / "out" / "digits").iterdir()] == ["none"]
    claims.main(["run", *arguments])
    capsys.readouterr()
    claims.main(["table", *arguments])
    printed = capsys.readouterr()
    rows = [line for line in printed.out.splitlines() if "ε = 0.1" in line]
    assert len(rows) == 2
    assert "| one | paper: 1, 2 | `digits/dds` against `digits/none` |" in rows[0]
    assert "three: run: " in printed.err
    # Three runs of four images; a plain draw is of denoiser and classifier, of the classifier, of 2·2 and 2.
    costs = [line for line in printed.out.splitlines() if line.startswith("| `digits/")]
    assert [line.split(" | ")[4] for line in costs] == [str(4 * 25 * each) for each in (2, 1, 6)]


def test_a_page_takes_the_tables(claims: ModuleType) -> None:
    page = "a\n<!-- one -->\n\nold\n\n<!-- end -->\nb\n<!-- two -->\n\n<!-- end -->\nc\n"
    made = claims.filled(page, {"one": "new", "two": "newer", "three": "none"})
    assert made == "a\n<!-- one -->\n\nnew\n\n<!-- end -->\nb\n<!-- two -->\n\nnewer\n\n<!-- end -->\nc\n"
    assert claims.filled(made, {"one": "new"}) == made


@pytest.mark.slow
def test_the_page_says_what_the_runs_give(claims: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    claims.main(["table", "--out", str(ROOT / "docs" / "results")])
    printed, page = capsys.readouterr().out, (ROOT / "docs" / "results.md").read_text()
    assert len(printed.splitlines()) > 60
    assert all(line in page for line in printed.splitlines())
