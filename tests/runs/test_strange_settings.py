"""A settings file of a stranger's: what it names runs only where the command line says so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from diffproof.cli.main import run
from diffproof.own_code import source_hash
from helpers.command_line import Refused

# Whatever imports it, or calls it, leaves a file.
STRANGE = """
from pathlib import Path

import diffproof as dp

Path("ran").touch()


class Own(dp.Undefended):
    pass


class OwnAttack(dp.load_attack("pgd").__class__):
    pass


def make():
    return dp.load_classifier("digits")


def denoiser():
    return dp.load_denoiser("digits")
"""
NUMBERS = "data: digits\nindices: 0:1\nsigma: 0.25\nn0: 2\nn: 4\n"
ATTACK = (
    "data: digits\nindices: 0:1\nthreat: linf\nbudget: '0.1'\ndiagnose: 0\ndraws: 1\nmajority-of: 1\n"
    "gradient: exact\n"
)
PURIFY = "defense: diffpure:t_star=0.01,steps=1\n"


@pytest.fixture
def strange(refused: Refused) -> Iterator[Refused]:
    """The current folder has a stranger's module and package."""
    Path("strange.py").write_text(STRANGE)
    Path("package").mkdir()
    Path("package/__init__.py").write_text(STRANGE)
    Path("package/inner.py").write_text(STRANGE)
    yield refused
    for module in ("strange", "package", "package.inner"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize(
    ("words", "text", "named"),
    [
        ("certify --out o", NUMBERS + "defense: none\nclassifier: strange:make\n", "strange:make"),
        (
            "certify --out o",
            NUMBERS + "defense: none\nclassifier: ensemble:digits,strange:make\n",
            "strange:make",
        ),
        ("certify --out o", NUMBERS + "defense: strange:Own\nclassifier: digits\n", "strange:Own"),
        ("certify --out o", NUMBERS + "defense: {name: strange:Own}\nclassifier: digits\n", "strange:Own"),
        (
            "certify --out o",
            NUMBERS + "defense: dds\nclassifier: digits\ndenoiser: package.inner:denoiser\n",
            "package.inner:denoiser",
        ),
        (
            "attack --out o",
            ATTACK + "defense: none\nclassifier: digits\nattack: strange:OwnAttack:iterations=1\n",
            "strange:OwnAttack",
        ),
        ("plan certify", NUMBERS + "defense: none\nclassifier: strange:make\n", "strange:make"),
        ("purify p.png --out o", PURIFY + "denoiser: strange:denoiser\n", "strange:denoiser"),
        ("certify --out o", NUMBERS + "defense: none\nclassifier: digits\nray: 127.0.0.1:1\n", "the cluster"),
    ],
)
def test_code_that_a_file_names_is_refused(strange: Refused, words: str, text: str, named: str) -> None:
    Path("c.yaml").write_text(text)
    for line in (f"{words} --config c.yaml", f"--config c.yaml {words}"):
        command = line.split()
        if line.startswith("--config"):
            command = [words.split()[0], *command[:2], *words.split()[1:]]
        if command[0] == "plan" and command[1] == "--config":
            continue
        told = strange(command)
        assert told.startswith("--config: c.yaml names ")
        assert named in told
        assert "--trust runs what it names, if you trust who made it" in told
    assert not Path("ran").exists()


def test_it_runs_where_the_file_is_trusted(strange: Refused) -> None:
    Path("c.yaml").write_text(NUMBERS + "defense: none\nclassifier: strange:make\n")
    assert run(["certify", "--trust", "--config", "c.yaml", "--out", "o"]) == 0
    assert Path("ran").exists()
    assert run(["certify", "--config", "c.yaml", "--classifier", "strange:make", "--out", "o"]) == 0


def test_the_command_line_takes_its_place(strange: Refused) -> None:
    Path("c.yaml").write_text(NUMBERS + "defense: none\nclassifier: strange:make\n")
    assert run(["certify", "--config", "c.yaml", "--classifier", "digits", "--out", "o"]) == 0
    assert not Path("ran").exists()


def test_trust_is_for_a_file(strange: Refused) -> None:
    words = "certify --data digits --defense none --sigma 1 --classifier digits --trust --out o"
    line = strange(words.split())
    assert line == "--trust: is for --config, which is not given"


def test_a_module_is_not_imported_for_its_hash(strange: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    digest = source_hash("package.inner")
    assert digest is not None
    assert digest == source_hash("strange")
    assert source_hash("package.nothing") is None
    assert source_hash("strange.inner") is None
    text = NUMBERS + "defense: none\nclassifier: digits\n"
    Path("c.yaml").write_text(f"{text}#   package.inner: {'0' * 64}\n")
    capsys.readouterr()
    assert run(["certify", "--config", "c.yaml", "--out", "o"]) == 0
    assert "the code of package.inner is not that" in capsys.readouterr().err
    Path("c.yaml").write_text(f"{text}#   package.inner: {digest}\n")
    assert run(["certify", "--config", "c.yaml", "--out", "o"]) == 0
    assert "the code of" not in capsys.readouterr().err
    assert not Path("ran").exists()


def test_a_folder_without_a_file_of_its_own_is_a_package(strange: Refused) -> None:
    Path("outer/middle").mkdir(parents=True)
    Path("outer/middle/code.py").write_text(STRANGE)
    assert source_hash("outer.middle.code") == source_hash("strange")


@pytest.mark.parametrize("force", ["true", "yes", "1", "'on'"])
def test_it_overwrites_nothing_by_itself(strange: Refused, force: str) -> None:
    for name in ("in.png", "mine/in.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), len(name)).save(name)
    precious = Path("mine/in.png").read_bytes()
    Path("c.yaml").write_text(f"{PURIFY}denoiser: digits\nout: mine\nforce: {force}\n")
    words = ["purify", "in.png", "--config", "c.yaml"]
    assert strange(words).startswith("--config: c.yaml names files to overwrite: --trust")
    assert Path("mine/in.png").read_bytes() == precious
    Path("c.yaml").write_text(f"{PURIFY}denoiser: digits\nout: mine\nforce: false\n")
    assert "mine/in.png exists; --force overwrites it" in strange(words)
    assert run([*words, "--force"]) == 0
    assert Path("mine/in.png").read_bytes() != precious
