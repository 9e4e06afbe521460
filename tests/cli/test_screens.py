"""What screens show: every name and every number whole, at any width, in a pipe and on a dumb terminal."""

from __future__ import annotations

import io
import re
import shutil
import sys
from pathlib import Path

import pytest

from diffproof.cli.main import main, run
from diffproof.cli.progress import shown_once_started
from diffproof.cli.screen import Rows, screen_width, show
from diffproof.methods import KINDS
from diffproof.wording import counted, part_of
from helpers.paths import ROOT

NAMES = (
    "none",
    "densepure:steps=3,votes=5,consensus=3,eta=0.5",
    "diffpure:t_star=0.1, a [red]wide[/red] one",
)
ATTACK = "pgd:iterations=200,eot=20 exact, linf 8/255"
RADII = ("ε=0", "ε=0.25", "ε=0.5", "ε=0.75", "ε=1")
TABLES = {
    "certified": Rows(
        ("defence", "sigma", "images", *RADII, "ACR", "wrong", "abstained"),
        [
            (name, f"0.{i}5", f"10{i}00", *(f"9{i}.{j}%" for j in range(5)), f"0.12{i}", f"{i}.7%", f"10{i}%")
            for i, name in enumerate(NAMES)
        ],
        sections=(False, True, False),
        title="certified accuracy at ℓ2 radius ε",
    ),
    "attacked": Rows(
        ("defence", "attack", "images", "scored", "one draw", "majority", "while optimising"),
        [
            (name, ATTACK, f"51{i}", "a\nb", *(f"10{i}.{j} (99–100)\n8{i}.{j} (79–8{j})" for j in range(3)))
            for i, name in enumerate(NAMES)
        ],
        names=2,
        repeated=2,
    ),
    "pictures": Rows(
        ("picture", "before", "after"),
        [
            (f"folder {i}/a picture with a long name {i}.png", f"great white shark {i}", f"man-eater {i}" * 3)
            for i in range(12)
        ],
        numeric=False,
    ),
}


def printed(table: Rows, capsys: pytest.CaptureFixture[str]) -> str:
    show(table)
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 132, 250, None])
@pytest.mark.parametrize("terminal", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
@pytest.mark.parametrize("name", TABLES)
def test_every_name_and_number_is_whole(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    terminal: dict[str, str],
    width: int | None,
) -> None:
    for key, value in {**terminal, **({"COLUMNS": str(width)} if width else {})}.items():
        monkeypatch.setenv(key, value)
    table = TABLES[name]
    text = printed(table, capsys)
    together = " ".join(text.split())
    cells = [part for row in table.rows for cell in row[table.names :] for part in cell.split("\n")]
    for whole in (*table.header[table.names :], *cells):
        # Neither a part of a longer number, nor one with an ellipsis.
        assert re.search(rf"(?<![\w.%]){re.escape(whole)}(?![\w.%…])", text), whole
    for row in table.rows:
        for part in row[: table.names]:
            assert part in together
    # Each row is told from the others in each part of a divided table: by its name or its number.
    heads = [re.split("[│┃]", line)[1].strip() for line in text.splitlines() if line[:1] in "│┃" and line]
    numbered = [str(number) for number in range(1, len(table.rows) + 1)]
    named = [row[0] for row in table.rows]
    bodies = [head for head in heads if head and head not in (table.header[0], "row")]
    parts = len(bodies) // len(table.rows)
    assert parts >= 1
    assert bodies in (numbered * parts, named * parts)
    if width and width >= 60:
        assert max(map(len, text.splitlines())) <= width
    if width is None:
        assert parts == 1
        assert bodies == named


def test_a_report_of_several_runs_at_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, small_run: Path
) -> None:
    copies = [shutil.copytree(small_run, tmp_path / name) for name in ("a", "b")]
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["report", *map(str, copies), "--at", "0,0.125,0.25,0.5,0.75,1,1.25,1.5"]) == 0
    text = capsys.readouterr().out
    for word in ("ε=0.125", "ε=1.25", "ε=1.5", "ACR", "abstained", "1: densepure:steps=2,votes=5"):
        assert word in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.fixture(scope="module")
def far_away(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in a folder whose path is wider than a screen."""
    folder: Path = tmp_path_factory.mktemp("far") / ("a-long-name-" * 9) / ("and-another-" * 4)
    results = ROOT / "docs" / "results" / "resnet56"
    for name in ("none", "dds", "densepure-b2", "finetuned-dds"):
        for sigma in ("0.12", "0.25", "0.5"):
            shutil.copytree(results / f"{name}-{sigma}", folder / f"{name}-{sigma}")
    return folder


@pytest.mark.parametrize("width", [60, 80, None])
@pytest.mark.parametrize("command", ["report", "status", "verify"])
def test_many_runs_far_away(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    far_away: Path,
    command: str,
    width: int | None,
) -> None:
    if width:
        monkeypatch.setenv("COLUMNS", str(width))
    folders = sorted(map(str, far_away.iterdir()))
    words = ["verify", folders[0], "--counts"] if command == "verify" else [command, *folders]
    assert run(words) == 0
    text = capsys.readouterr().out
    assert "…" not in text
    # Every box is closed: its lines are as wide as its first one.
    boxed = 0
    for line in text.splitlines():
        if line[:1] == "┏":
            boxed = len(line)
        if line[:1] in tuple("┏┃┡│├└"):
            assert len(line) == boxed <= (width or boxed)
        elif width and len(line) > width:
            # A path that no space divides, for copying.
            assert str(far_away) in line
            assert len(line.split()) == 1
    assert boxed or command == "verify"
    if command != "verify":
        for folder in folders if command == "status" else ():
            assert folder in text


@pytest.mark.parametrize("name", [None, *(name for table in KINDS.values() for name in table)])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_methods_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str | None, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(["methods", *([name] if name else [])]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    methods = {name: method for table in KINDS.values() for name, method in table.items()}
    settings = methods[name].settings if name else ()
    for words in (*(setting.meaning for setting in settings), methods[name].line if name else "pgd"):
        # A line may also break behind a hyphen.
        assert words.replace(" ", "") in "".join(text.split())


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_bar_keeps_its_title_and_numbers(
    monkeypatch: pytest.MonkeyPatch, width: int, terminal: dict[str, str]
) -> None:
    for key, value in {"TERM": "xterm", "COLUMNS": str(width), **terminal}.items():
        monkeypatch.setenv(key, value)
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    title = "densepure:steps=10,votes=40,consensus=3,step_rule=log-sigma,eta=0.5 σ=0.25"
    with shown_once_started(title, 98_000_000, "evaluations") as advance:
        advance(49_000_000)
        advance(49_000_000)
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", stream.getvalue())
    assert "98,000,000/98,000,000 evaluations" in text
    assert title.replace(" ", "") in re.sub(r"\s", "", text)
    assert re.search(r"\d:\d\d:\d\d left +\d:\d\d:\d\d", text)
    assert "…" not in text


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (counted(1, "image"), "1 image"),
        (counted(0, "image"), "0 images"),
        (counted(1200, "draw"), "1,200 draws"),
        (part_of(1, 1, "image"), "1 of 1 image is"),
        (part_of(1, 5, "image"), "1 of 5 images is"),
        (part_of(0, 1, "image"), "0 of 1 image are"),
        (part_of(2, 5, "image"), "2 of 5 images are"),
    ],
)
def test_singular_and_plural(said: str, expected: str) -> None:
    assert said == expected


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_screen_of_few_characters_gets_question_marks(
    monkeypatch: pytest.MonkeyPatch, small_run: Path, encoding: str
) -> None:
    # As Python opens the standard output where PYTHONIOENCODING says so.
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", screen)
    with pytest.raises(SystemExit) as end:
        main(["report", str(small_run)])
    assert end.value.code == 0
    screen.flush()
    written = screen.buffer.getvalue()
    assert b"?=0.25" in written
    assert b"densepure:steps=2,votes=5" in written


def test_a_closed_output_has_a_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert screen_width() > 80
