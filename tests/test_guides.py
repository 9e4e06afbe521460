"""The guides of docs/ and the first page: what they show is run, block by block, as a reader would."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path

import pytest

from diffproof.cli.main import run
from helpers.paths import ROOT
from helpers.scripts import commands_of

PAGES = [ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
_BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


# Writes down that it is called, as `commands_of` does for diffproof.
_PYTHON = r"""#!/bin/sh
for word in python "$@"; do printf "%s\n" "$word"; done >> "$RECORD"
echo >> "$RECORD"
"""


def follow(page: Path, folder: Path) -> int:
    """Do what a page shows, in the current folder, and give how many commands of diffproof that was.

    Python that begins with the name of a file is written to it; other Python is run, block after block.
    """
    python = folder / "tools" / "python"
    python.parent.mkdir()
    python.write_text(_PYTHON)
    python.chmod(0o755)
    names: dict[str, object] = {}
    done = 0
    for language, text in _BLOCK.findall(page.read_text(encoding="utf-8")):
        file = re.match(r"# (\w+\.py)\n", text)
        if file:
            (folder / file[1]).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, page.name, "exec"), names)
        else:
            done += shell(text, folder)
    return done


def shell(text: str, folder: Path) -> int:
    """Run a block of shell, its scripts and commands of diffproof in this process, which has all loaded.

    Trainings take a tenth of the iterations that the page shows: what the networks know is not looked at.
    """
    text = re.sub(r"(?<=--iterations )(\d+)0\b", r"\1", text)
    commands = commands_of(text, folder, {"PYTHONPATH": os.environ.get("PYTHONPATH", "")})
    scripts = [command for command in commands if command[0] == "python"]
    for command in commands:
        if command in scripts:
            (script,) = command[1:]
            runpy.run_path(script, run_name="__main__")
        else:
            assert run(command) == 0, command
    return len(commands) - len(scripts)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_guide_shows_works(
    page: Path, tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The doctor, whom the first page calls, knows what the packaged denoiser finds.
    if page.stem != "index":
        monkeypatch.setattr("diffproof.weights._ASSETS", assets)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    assert follow(page, tmp_path) >= 1
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_there_is_a_guide_for_each_job() -> None:
    guides = {"certify", "pictures", "defence", "claim", "table", "machines", "own_code", "certificate"}
    assert {page.stem for page in PAGES} == {"index", *guides}
