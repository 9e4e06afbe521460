"""report, export and verify, asked for what makes no sense: one line that names the flag, nothing written."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from diffproof.cli.main import run
from helpers.command_line import Refused

CERTIFY = "certify --data digits --indices 0:2 --classifier digits --defense none --sigma 0.25 --n0 2 --n 10"
ATTACK = (
    "attack --data digits --indices 0:2 --classifier digits --defense none --threat linf --budget 0.1"
    " --attack pgd:iterations=1 --diagnose 0 --draws 1 --majority-of 1"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each kind; read only."""
    folder = tmp_path_factory.mktemp("runs")
    for name, line in (("certified", CERTIFY), ("attacked", ATTACK)):
        assert run([*line.split(), "--out", str(folder / name)]) == 0
    return folder


@pytest.fixture
def place(runs: Path, refused: Refused) -> Refused:
    """A folder with a copy of the runs, a link to one, and a file."""
    for name in ("certified", "attacked"):
        shutil.copytree(runs / name, name)
    Path("link").symlink_to("certified")
    Path("file").write_text("mine")
    return refused


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("report certified certified", "runs: expected each run once, got certified again"),
        ("report attacked ./attacked", "runs: expected each run once, got attacked again"),
        ("report certified link", "runs: expected each run once, got link again, which is certified"),
        ("report certified --force", "--force: is for files to write, and none is named"),
        ("report certified --out file", "--out: file is a file, expected a folder"),
        ("report attacked --out file --force", "--out: file is a file, expected a folder"),
        ("report certified --out file/below", "--out: file is a file, expected a folder"),
        ("report certified --out /dev/null", "--out: /dev/null is a file, expected a folder"),
        ("report certified --html file", "--html: file exists; --force overwrites it"),
        ("report certified --out new --html file", "--html: file exists; --force overwrites it"),
        ("report certified --html link --force", "--html: link is a folder, expected to write a file there"),
        ("report certified --html none/a.html", "--html: no such folder: none"),
        ("report certified --data digits", "--data: is for --html, which is not given"),
        ("report certified --trust", "--trust: is for --html, which is not given"),
        ("report certified --html a.html --data none.npz", "--data: no such file: none.npz"),
        (
            "report certified --over votes --html a.html",
            "--html: shows whole runs, not what fewer votes or draws do, got --over too",
        ),
        (
            "report certified attacked --html a.html",
            "runs: expected runs of one kind, got certification and attack runs",
        ),
        ("export certified --force", "--force: is for files to write, and none is named"),
        ("export certified --out file", "--out: file exists; --force overwrites it"),
        ("export attacked --out link --force", "--out: link is a folder, expected to write a file there"),
        ("export certified --out none/a.csv", "--out: no such folder: none"),
        ("verify certified --counts --device cpu", "--device: --counts runs no network, got --device cpu"),
        (f"{ATTACK} --out certified", "--out: certified is no attack run"),
        (f"{CERTIFY} --out attacked", "--out: attacked is no certification run"),
    ],
)
def test_what_makes_no_sense_is_refused(place: Refused, line: str, message: str) -> None:
    assert place(shlex.split(line)) == message


@pytest.mark.parametrize("name", ["certified", "attacked"])
def test_data_given_anew_without_the_split_of_the_run(place: Refused, name: str) -> None:
    np.savez("own.npz", images=np.zeros((2, 8, 8), np.uint8), labels=np.arange(2))
    expected = (
        "--data: split: expected none or 'all', as own.npz has one set of images without a name, got 'test'"
    )
    assert place(["verify", name, "--data", "own.npz"]) == expected
