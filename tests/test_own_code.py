"""A user's own code in run folders: it certifies, attacks, continues, reports and verifies, and is hashed."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path

import pytest
import torch
import yaml

import diffproof as dp
from diffproof.cli.main import run
from diffproof.methods import parse
from diffproof.pictures import save_picture
from helpers.files import tree
from helpers.paths import EXAMPLES
from helpers.runs import attacked_rows, change, rows

pytestmark = pytest.mark.usefixtures("small_digits")

CERTIFY = (
    "certify --data digits --indices 0:30:10 --classifier digits --defense own:Shrunk:variance=0.2"
    " --sigma 0.25 --n0 10 --n 40 --seed 0 --out run"
)
ATTACK = (
    "attack --data digits --indices 0:30:10 --classifier digits --defense own:Quantized:levels=4"
    " --attack own:Contrast:shares=2 --threat linf --budget 0.3 --draws 2 --majority-of 2 --out run"
)
PURIFYING = (
    "attack --data digits --indices 0:20:10 --classifier digits --denoiser own:denoiser"
    " --defense own:OneShot:level=0.2 --attack pgd:iterations=2 --gradient bpda --threat l2 --budget 0.5"
    " --draws 2 --majority-of 2 --diagnose 2 --batch-size 1 --out run"
)
DENOISER = (
    "certify --data digits --indices 0:20:10 --denoiser own:denoiser --classifier digits --defense dds"
    " --sigma 0.25 --n0 10 --n 40 --seed 0 --out run"
)


# Classes that a user may write, and that the example does not show.
MORE = """

from typing import Literal


class Raising(Shrunk):
    def __init__(self, classifier):
        raise KeyError("no")


class Needing(Shrunk):
    def __init__(self, classifier, *, kernel: int):
        super().__init__(classifier)


@dataclass(frozen=True)
class Loose(Contrast):
    words: str = "a,b"
    limit: int = None
    wide: float = float("inf")
    sort: Literal["up", "down"] = "up"
    summed: object = sum


class Unannotated(Shrunk):
    def __init__(self, classifier, *, count=2, share=0.5, on=False, levels=(0.1,), either: int | float = 1):
        super().__init__(classifier)
        self.given = (count, share, on, levels, either)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example's module under another name, in the current folder, not loaded yet."""
    (tmp_path / "own.py").write_text((EXAMPLES / "own_code.py").read_text() + MORE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    return tmp_path / "own.py"


@pytest.mark.slow
@pytest.mark.parametrize("words", [CERTIFY, ATTACK, PURIFYING, DENOISER])
def test_own_code_goes_the_whole_way(words: str, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, read = ("images", rows) if words.startswith("certify") else ("attacked", attacked_rows)
    assert run(words.split()) == 0
    before = read(Path("run"))
    # The last image is lost, as a crash would lose it.
    change(Path("run"), f"DELETE FROM {table} WHERE image_index = ?", before[-1][0])
    assert run(words.split()) == 0
    assert read(Path("run")) == before
    text = Path("run/settings.yaml").read_text()
    assert f"#   own: {hashlib.sha256(own.read_bytes()).hexdigest()}\n" in text
    assert yaml.safe_load(text)["data"] == "digits"
    capsys.readouterr()
    assert run(["report", "run", "--out", "report"]) == 0
    assert words.split("--defense ")[1].split()[0] in (Path("report/table.csv")).read_text()
    assert run(["verify", "run", "--resample", "2", "--trust"]) == 0
    if table == "images":
        assert run(["export", "run", "--format", "cohen"]) == 0
    assert run([*words.split()[:1], "--trust", "--config", "run/settings.yaml", "--out", "again"]) == 0
    assert read(Path("again")) == before


@pytest.mark.parametrize("words", [CERTIFY, ATTACK, DENOISER])
def test_a_run_of_other_code_is_another_run(
    words: str, own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(words.split()) == 0
    own.write_text(own.read_text() + "\n# Another version.\n")
    monkeypatch.delitem(sys.modules, "own")
    capsys.readouterr()
    assert run(words.split()) == 2
    assert "run holds a run with other settings: the code of own\n" in capsys.readouterr().err
    assert run(["verify", "run", "--trust"]) == 1
    assert "the code of own is not that which the run was made with" in capsys.readouterr().out


def test_own_code_purifies_pictures(own: Path) -> None:
    save_picture(Path("eight.png"), torch.full((1, 8, 8), 0.5))
    words = "purify eight.png --denoiser own:denoiser --defense own:OneShot:level=0.2 --out purified"
    assert run(words.split()) == 0
    assert Path("purified/eight.png").is_file()
    assert (
        f"#   own: {hashlib.sha256(own.read_bytes()).hexdigest()}\n"
        in Path("purified/settings.yaml").read_text()
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"{CERTIFY} --defense own:Quantized", "--defense: expected one that can be certified ("),
        (f"{CERTIFY} --defense own:Shrunk:variances=1", "--defense: variances: no setting of the defense"),
        (f"{CERTIFY} --defense own:Nothing", "--defense: module own has no class Nothing"),
        (f"{CERTIFY} --defense other:Shrunk", "--defense: no module other in "),
        (f"{CERTIFY} --defense own:Shrunk:sigma=0.5", "--defense: sigma: no setting of the defense"),
        (
            f"{CERTIFY} --defense dds:sigma=0.5 --denoiser digits",
            "--defense: sigma: this setting of 'dds' does nothing to",
        ),
        (f"{CERTIFY} --defense own:Raising", "--defense: own:Raising() failed: KeyError: 'no'"),
        (
            f"{CERTIFY} --defense own:Needing",
            "--defense: kernel: the defense 'own:Needing' needs one, got None",
        ),
        (f"{ATTACK} --defense own:Quantized:levels=1", "--defense: levels: expected an integer ≥ 2, got 1"),
        (f"{ATTACK} --surrogate-share 0.5", "--surrogate-share: is for the gradient surrogate, got exact"),
        (
            f"{ATTACK} --defense dds --denoiser digits",
            "--defense: sigma: calling 'dds' needs its setting sigma, a noise",
        ),
        (f"{ATTACK} --attack own:Shrunk", "--attack: expected own:Shrunk to be a class of diffproof.Attack"),
        (f"{ATTACK} --guide digits", "--guide: the method 'own:Quantized' takes none"),
        (f"{ATTACK} --threat stadv --budget 0.1", "--threat: contrast attacks within linf, got stadv"),
        (f"{ATTACK} --gradient bpda", "--gradient: bpda is for defences that purify, got 'quantized'"),
    ],
)
def test_own_code_is_refused_before_anything_is_written(
    words: str, message: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"diffproof: error: {message}")
    assert not Path("run").exists()


@pytest.mark.usefixtures("own")
def test_own_classes_need_no_annotations() -> None:
    classifier = dp.load_classifier("digits")
    text = "own:Unannotated:count=3,share=0.25,on=true,levels=[1,2],either=0.5"
    made = dp.load_defense(text, classifier=classifier)
    assert made.given == (3, 0.25, True, [1.0, 2.0], 0.5)
    assert (
        str(parse("defense", text))
        == "own:Unannotated:count=3,share=0.25,on=true,levels=[1.0,2.0],either=0.5"
    )
    loose = dp.load_attack("own:Loose:sort=down,limit=3")
    assert (loose.sort, loose.limit, loose.words) == ("down", 3, "a,b")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^sort: expected up or down, got 'left' "):
        dp.load_attack("own:Loose:sort=left")


@pytest.mark.usefixtures("own")
def test_defaults_that_have_no_text_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    words = ATTACK.replace("own:Contrast:shares=2", "own:Loose:shares=2").split()
    assert run(words) == 0
    assert run(words) == 0
    assert yaml.safe_load(Path("run/settings.yaml").read_text())["attack"] == "own:Loose:shares=2"
    assert run(["verify", "run", "--trust"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("words", [pytest.param(CERTIFY, marks=pytest.mark.slow), ATTACK])
def test_a_run_is_read_without_its_code(
    words: str, own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(words.split()) == 0
    renamed = (
        own.read_text().replace("variance", "spread").replace("levels", "steps").replace("shares", "parts")
    )
    capsys.readouterr()
    for text in (None, "syntax error", renamed):
        monkeypatch.delitem(sys.modules, "own", raising=False)
        own.unlink(missing_ok=True)
        if text is not None:
            own.write_text(text)
        importlib.invalidate_caches()
        assert run(["report", "run", "--out", "report", "--force"]) == 0
        assert "own:" in Path("report/table.csv").read_text()
        if words is CERTIFY:
            assert run(["export", "run", "--format", "cohen"]) == 0
        capsys.readouterr()
        assert run(["verify", "run", "--trust"]) == 1
        told = capsys.readouterr().out
        assert "the code of own is not that which the run was made with" in told
        assert "it does not run any more: " in told
        before = tree(Path("run"))
        assert run(words.split()) == 2
        assert "corrupt" not in capsys.readouterr().err
        assert tree(Path("run")) == before


def test_settings_of_other_code_are_warned_of(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(CERTIFY.split()) == 0
    own.write_text(own.read_text() + "\n# Another version.\n")
    capsys.readouterr()
    assert run(["certify", "--trust", "--config", "run/settings.yaml", "--out", "again"]) == 0
    said = "config: the code of own is not that which these settings were written with"
    assert said in capsys.readouterr().err


def test_a_package_that_fails_is_no_traceback(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = own.parent / "inside"
    package.mkdir()
    (package / "__init__.py").write_text("")
    own.rename(package / "own.py")
    words = CERTIFY.replace("own:", "inside.own:").split()
    assert run(words) == 0
    (package / "__init__.py").write_text("raise RuntimeError('no')")
    for name in ("inside.own", "inside"):
        sys.modules.pop(name)
    importlib.invalidate_caches()
    assert run(["verify", "run", "--trust"]) == 2
    assert "importing inside.own failed: RuntimeError: no" in capsys.readouterr().err
    assert run(["report", "run"]) == 0


def test_other_settings_of_a_stored_run_of_own_code_are_checked(own: Path) -> None:
    assert run(CERTIFY.split()) == 0
    change(Path("run"), "UPDATE settings SET json = replace(json, '\"n0\": 10', '\"n0\": -1')")
    assert run(["report", "run"]) == 2
