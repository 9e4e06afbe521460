"""diffproof merge: its words, its JSON, and what it says of wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffproof.cli.main import run
from helpers.command_line import Refused
from helpers.runs import PLAIN, certify_flags


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Two of a run, in the order 1, 0."""
    folders = [str(tmp_path / f"shard-{number}") for number in (1, 0)]
    for folder in folders:
        assert run(certify_flags(Path(folder), **PLAIN, n=10, shard=f"{folder[-1]}/2")) == 0
    return folders


def test_json_is_all_that_is_printed(
    tmp_path: Path, shards: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    capsys.readouterr()
    assert run(["merge", out, *shards, "--json"]) == 0
    captured = capsys.readouterr()
    told = {"folder": out, "kind": "certification run", "shards": 2, "images": 5}
    assert json.loads(captured.out) == told
    assert captured.err == ""


def test_settings_that_somebody_edited_are_told(
    tmp_path: Path, shards: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shards[0]) / "settings.yaml"
    path.write_text(path.read_text().replace("sigma: 0.25", "sigma: 0.5"))
    capsys.readouterr()
    assert run(["merge", str(tmp_path / "out"), *shards]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("settings.yaml says 'sigma: 0.5', with which the run was not made")
    assert "sigma: 0.25" in (tmp_path / "out" / "settings.yaml").read_text()


def test_paths_are_asked_for(refused: Refused) -> None:
    assert refused(["merge"]) == "Missing argument 'OUT'."
    assert refused(["merge", "out"]) == "Missing argument 'SHARDS...'."
