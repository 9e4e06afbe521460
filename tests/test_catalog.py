"""The catalog against the constructors; methods as texts; a user's own code."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import diffproof as dp
from diffproof.catalog import DEFENSES, Method
from diffproof.catalog_attacks import ATTACKS
from diffproof.catalog_objectives import OBJECTIVES
from diffproof.cli.main import run
from diffproof.defenses.purifying.base import Purifier
from diffproof.methods import KINDS, NETWORKS, MethodSpec, describe, load_class, parse
from diffproof.values import Choice, Flag, Integer, Numbers, Optional, Real, Time, Value, written
from helpers.paths import EXAMPLES, ROOT

ALL = [(kind, name) for kind, table in KINDS.items() for name in table]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the examples is the current one, and its module is not loaded yet."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.delitem(sys.modules, "own_code", raising=False)


def plain(default: Any) -> Any:
    if isinstance(default, StrEnum):
        return default.value
    return list(default) if isinstance(default, tuple) else default


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_the_catalog_says_what_the_constructors_take(kind: str, name: str) -> None:
    method, of = describe(kind, name), load_class(kind, name)
    parameters = inspect.signature(of).parameters
    assert tuple(one for one in parameters if one in NETWORKS) == tuple(
        sorted(method.networks, key=list(parameters).index)
    )
    # Attacks derived from PGD have its settings first, as the dataclass has them.
    own = {one.name: plain(one.default) for one in parameters.values() if one.name not in NETWORKS}
    assert {setting.name: setting.default for setting in method.settings} == own
    documented = " ".join(
        inspect.getdoc(base) or "" for base in of.__mro__ if base.__module__.startswith("diffproof")
    )
    for setting in method.settings:
        assert re.search(rf"\b{setting.name}\b", documented), setting.name
        assert setting.meaning.endswith(".")
        if isinstance(setting.value, Choice):
            assert setting.default in setting.value.words
    if kind == "defense":
        assert ("certify" in method.can) == issubclass(of, dp.CertifiableDefense)
        assert ("purify" in method.can) == issubclass(of, Purifier)
        assert of.method == name
    elif kind == "objective":
        assert of.name == name
        assert of.can == method.can
    else:
        assert of.name == name
        assert ("gradient-free" in method.can) != of.needs_gradient


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_defaults_written_as_text_read_as_themselves(kind: str, name: str) -> None:
    method = describe(kind, name)
    spec = MethodSpec(kind, name, {one.name: one.default for one in method.settings})
    assert parse(kind, str(spec)) == spec
    assert parse(kind, {"name": name, **spec.settings}).settings == spec.settings


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e90, max_value=1e90))
def test_numbers_survive_their_text(number: float) -> None:
    assert Real("").read(written(number)) == number


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(0, 10**9), st.booleans())
def test_texts_of_settings_survive(weights: list[float], iterations: int, start: bool) -> None:
    settings = {"weights": weights, "iterations": iterations + 1, "random_start": start}
    spec = MethodSpec("attack", "lagrange", settings)
    assert parse("attack", str(spec)) == spec


@pytest.mark.slow
@given(st.text(max_size=30))
def test_any_text_is_a_method_or_one_line(text: str) -> None:
    try:
        spec = parse("defense", f"densepure:{text}")
    except ValueError:
        # Refused; any other exception fails the test.
        return
    assert parse("defense", str(spec)) == spec


@pytest.mark.parametrize(
    ("value", "text", "expected"),
    [
        (Integer(1), "1", 1),
        (Integer(None), "-3", -3),
        (Real("in (0, 1]"), "1", 1.0),
        (Real("> 0"), "8/255", 8 / 255),
        (Real("≥ 0"), "1e-3", 0.001),
        (Flag(), "true", True),
        (Choice("a", "b"), "b", "b"),
        (Numbers("≥ 1", whole=True), "[1, 2]", [1, 2]),
        (Optional(Integer(1), "full"), "full", None),
        (Time(), "0.25", 0.25),
    ],
)
def test_values_are_read(value: Value, text: str, expected: object) -> None:
    assert value.read(text) == expected


@pytest.mark.parametrize(
    ("value", "text", "message"),
    [
        (Integer(1), "0", "expected an integer ≥ 1, got '0'"),
        (Integer(1), "1.0", "expected an integer ≥ 1, got '1.0'"),
        (Real("in (0, 1]"), "0", "expected a number in (0, 1], got '0'"),
        (Real("in (0, 1)"), "1", "expected a number in (0, 1), got '1'"),
        (Real("> 0"), "nan", "expected a number > 0, got 'nan'"),
        (Real("> 0"), "1/0", "expected a number > 0, got '1/0'"),
        (Real("> 0"), "1e999", "expected a number > 0, got '1e999'"),
        (Flag(), "yes", "expected true or false, got 'yes'"),
        (Choice("a", "b", "c"), "d", "expected a, b or c, got 'd'"),
        (Numbers(), "1,2", "expected numbers in brackets, such as [1,2], got '1,2'"),
        (
            Numbers("≥ 1", whole=True),
            "[1.5]",
            "expected integers ≥ 1 in brackets, such as [1,2], got",
        ),
        (Optional(Integer(1)), "x", "expected an integer ≥ 1, or none, got 'x'"),
        (Time(), "0", "expected a time in (0, 1], got '0'"),
        (Time(), "100", "expected a time in (0, 1], got '100'; timestep 100 of 1000 is the time 0.1"),
    ],
)
def test_values_are_refused(value: Value, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        value.read(text)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("defense", "denspure", "defense: unknown name 'denspure'; did you mean densepure"),
        ("attack", "pgd:steps=3", "steps: no setting of the attack 'pgd', did you mean step?"),
        ("defense", "densepure:votes=0", "votes: expected an integer ≥ 1, got '0' (of defense densepure)"),
        (
            "defense",
            "densepure:votes=2,votes=3",
            "defense: votes is given twice in",
        ),
        ("defense", "densepure:", "defense: expected settings behind the colon, got 'densepure:'"),
        (
            "defense",
            "densepure:votes",
            "defense: expected NAME:setting=value,setting=[value,value], got",
        ),
        ("attack", "lagrange:weights=[1,2", "attack: expected NAME:setting=value"),
        ("defense", "nowhere_at_all:Class", "defense: no module nowhere_at_all in "),
        ("defense", "densepure:steps=2,", "defense: expected a setting behind the last comma, got"),
        (
            "defense",
            "math.pi",
            "defense: unknown name 'math.pi'; a class of your own is package.module:Class",
        ),
        ("defense", {"votes": 3}, "defense: expected its name as a text under name, got None"),
        ("defense", {"name": ["dds"]}, "defense: expected its name as a text under name, got ['dds']"),
        ("defense", {"name": "densepure:steps=2"}, "defense: expected name to be a name alone"),
        (
            "defense",
            {"name": "densepure", "steps": "2,votes=3"},
            "steps: expected an integer ≥ 1, or full, got",
        ),
        (
            "defense",
            {"name": "densepure", "steps": {"a": 1}},
            "steps: expected an integer ≥ 1, or full, got {'a'",
        ),
        ("defense", None, "defense: expected a text, or a mapping with name and settings, got None"),
        (
            "defense",
            "math:pi",
            "defense: expected a module of your own, got math of Python's standard library",
        ),
        (
            "attack",
            "diffproof.defenses.dds:DDS",
            "attack: expected diffproof.defenses.dds:DDS to be",
        ),
    ],
)
def test_texts_that_are_refused(kind: str, text: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parse(kind, text)


def test_values_of_python_are_settings_in_a_mapping() -> None:
    given = {"name": "densepure", "steps": None, "eta": np.float64(0.25), "votes": np.int64(3)}
    assert parse("defense", given).settings == {"steps": None, "eta": 0.25, "votes": 3}
    levels = {"name": "dc", "sigmas": torch.tensor([0.25, 0.5]), "log_prior": np.zeros(2)}
    assert parse("defense", levels).settings == {"sigmas": [0.25, 0.5], "log_prior": [0.0, 0.0]}
    images, labels = dp.load_data("digits", indices="0:1")
    undefended = dp.Undefended(dp.load_classifier("digits"))
    found = [
        dp.attack(undefended, images, labels, attack=one, threat="linf", budget=0.1)[0].adversarial
        for one in ("pgd:iterations=2", {"name": "pgd", "iterations": 2}, dp.PGD(iterations=2))
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_text_makes_what_the_constructor_makes() -> None:
    denoiser, classifier = dp.load_denoiser("digits"), dp.load_classifier("digits")
    text = "gradual:t_star=[0.03,0.05],steps=[2,3],solver=ode"
    made = dp.load_defense(text, denoiser=denoiser, classifier=classifier)
    expected = dp.GradualNoise(denoiser, classifier, t_star=(0.03, 0.05), steps=(2, 3), solver="ode")
    assert type(made) is type(expected)
    assert made.settings() == expected.settings()
    assert dp.load_attack("pgd:iterations=3,random_start=true,step=1/255") == dp.PGD(
        iterations=3, random_start=True, step=1 / 255
    )
    full = dp.load_defense("densepure:steps=full,votes=3", denoiser=denoiser, classifier=classifier)
    assert full.settings()["steps"] is None
    with pytest.raises(ValueError, match=r"^votes: given twice, in [^\n]* and beside it$"):
        dp.load_defense("densepure:votes=3", denoiser=denoiser, classifier=classifier, votes=4)
    with pytest.raises(ValueError, match=r"^eot: given twice, in [^\n]* and beside it$"):
        dp.load_attack("pgd:eot=3", eot=3)


def test_every_network_of_a_defence_is_found_by_itself() -> None:
    class Wide(dp.Undefended):
        """With a fourth network."""

        def __init__(self, classifier: dp.Classifier, further: dp.Classifier) -> None:
            super().__init__(classifier)
            self.further = further

    from diffproof.defenses.named import set_precision

    wide = set_precision(Wide(dp.load_classifier("digits"), dp.load_classifier("digits")), torch.bfloat16)
    assert [next(network.parameters()).dtype for network in wide.networks()] == [torch.bfloat16] * 2


@pytest.mark.usefixtures("own")
def test_own_code_is_attacked_and_certified() -> None:
    images, labels = dp.load_data("digits", indices="0:6")
    classifier = dp.load_classifier("digits")
    quantized = dp.load_defense("own_code:Quantized:levels=4", classifier=classifier)
    assert quantized.settings() == {"method": "quantized", "levels": 4}
    rounded = (images * 3).round() / 3
    torch.testing.assert_close(quantized(images), classifier(rounded))
    # An attack without gradients, and scores of it.
    evaluation = dp.evaluate(
        quantized,
        images,
        labels,
        attack="own_code:Contrast:shares=2",
        threat="linf",
        budget=0.3,
        draws=2,
        votes=2,
    )
    attacked = [one.result for one in evaluation.images if one.result is not None]
    assert attacked
    for result in attacked:
        assert result.zero_gradients is None
        assert result.forwards == 5
        assert 0.0 <= result.norm <= 0.3 + 1e-6
    assert evaluation.attacked.fresh.value <= evaluation.clean.fresh.value
    shrunk = dp.load_defense("own_code:Shrunk:variance=0.2", classifier=classifier)
    certificate = dp.Smoothed(shrunk, sigma=0.25).certify(images[0], n0=20, n=100, alpha=0.01, seed=0)
    assert certificate.n == 100


@pytest.mark.usefixtures("own")
def test_an_own_denoiser_certifies_continues_and_verifies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--data digits --indices 0:20:10 --denoiser own_code:denoiser --classifier digits --defense dds"
    words = [
        "certify",
        *flags.split(),
        "--sigma",
        "0.25",
        "--n0",
        "10",
        "--n",
        "40",
        "--out",
        str(tmp_path / "run"),
    ]
    assert run(words) == 0
    assert run(words) == 0
    assert run(["verify", str(tmp_path / "run"), "--resample", "1", "--trust"]) == 0
    capsys.readouterr()


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "own_code:Quantized",
            "denoiser: expected a function without arguments, got own_code:Quantized(classifier)",
        ),
        ("own_code:nothing", "denoiser: module own_code has no function nothing"),
        ("own_code.sub:denoiser", "denoiser: no module own_code.sub in "),
        ("math:gamma@x.pt", "denoiser: expected a module of your own, got math of Python's standard library"),
        (
            "own_code:denoiser@x.pt",
            "denoiser: own_code:denoiser() has no network that could take",
        ),
    ],
)
def test_own_denoisers_that_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        dp.load_denoiser(spec)


@pytest.mark.usefixtures("own")
def test_a_class_says_what_it_takes() -> None:
    method: Method = describe("defense", "own_code:Quantized")
    assert method.networks == ("classifier",)
    assert [(one.name, one.value, one.default) for one in method.settings] == [("levels", Integer(None), 8)]
    with pytest.raises(ValueError, match=r"^levels: expected an integer, got 'x' "):
        parse("defense", "own_code:Quantized:levels=x")
    with pytest.raises(ValueError, match=r"^level: no setting of the defense [^\n]*, did you mean levels"):
        parse("defense", "own_code:Quantized:level=3")


@pytest.mark.usefixtures("own")
def test_plug_ins_are_found_by_their_entry_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "plug_in-1.dist-info"
    home.mkdir()
    (home / "METADATA").write_text("Metadata-Version: 2.1\nName: plug-in\nVersion: 1\n")
    (home / "entry_points.txt").write_text(
        "[diffproof.defenses]\nquantized = own_code:Quantized\nhalf = own_code\n"
        "[diffproof.attacks]\ncontrast = own_code:Contrast\n"
        "[diffproof.denoisers]\ngreys = own_code:denoiser\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    classifier = dp.load_classifier("digits")
    assert dp.load_defense("quantized:levels=5", classifier=classifier).settings()["levels"] == 5
    assert dp.load_attack("contrast:shares=3").shares == 3  # type: ignore[attr-defined]
    assert dp.load_denoiser("greys").image_shape == (1, 8, 8)
    assert run(["methods"]) == 0
    assert "\n  quantized   (of an installed package)\n" in capsys.readouterr().out
    assert run(["methods", "contrast"]) == 0
    assert capsys.readouterr().out.startswith("own_code:Contrast: ")
    with pytest.raises(ValueError, match=r"^defense: unknown name 'quantised'; did you mean quantized\?$"):
        parse("defense", "quantised")
    with pytest.raises(
        ValueError, match=r"^defense: the plug-in 'half' declares 'own_code', expected module:name$"
    ):
        parse("defense", "half")


def test_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods"]) == 0
    listed = capsys.readouterr().out
    for name in [*DEFENSES, *ATTACKS, *OBJECTIVES]:
        assert re.search(rf"^  {name} ", listed, re.MULTILINE)
    assert run(["methods", "densepure"]) == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"  votes +This many samples vote on each draw of noise. \(an integer ≥ 1; default 40\)\n", shown
    )
    assert "(an integer ≥ 1, or full; default 10)" in " ".join(shown.split())
    assert run(["methods", "denspure"]) == 2
    assert "did you mean densepure" in capsys.readouterr().err
    assert run(["methods", "math:pi"]) == 2
    assert (
        "method: expected a module of your own, got math of Python's standard library"
        in capsys.readouterr().err
    )
    assert run(["methods", "filelock._error:Timeout"]) == 2
    assert (
        "method: expected a class of diffproof.Defense or diffproof.Attack or diffproof.Objective, got"
        in capsys.readouterr().err
    )


@pytest.mark.usefixtures("own")
def test_an_own_class_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "own_code:Contrast"]) == 0
    assert "  shares  (an integer; default 4)\n" in capsys.readouterr().out


def test_the_docs_say_what_the_catalog_says() -> None:
    pages = [ROOT / "docs" / name for name in ("purification.md", "attacks.md", "training.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    purifying = [method for method in DEFENSES.values() if "purify" in method.can]
    for method in [*purifying, *ATTACKS.values(), *OBJECTIVES.values()]:
        assert f"| `{method.name}` | {method.line} |\n" in text
