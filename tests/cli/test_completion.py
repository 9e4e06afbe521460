"""diffproof completion: what it prints makes a real shell complete."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffproof.cli.main import run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("diffproof cert", ["certify"]),
        ("diffproof certify --defense densepure:vo", ["densepure:votes="]),
        ("diffproof completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_bash_completes(typed: str, offered: list[str], tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    command = tmp_path / "diffproof"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m diffproof "$@"\n')
    command.chmod(0o755)
    words = typed.split(" ")
    # As bash calls it: words, and which of them the cursor is at.
    program = f"""eval "$(diffproof completion bash)"; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}
_diffproof_completion diffproof; printf '%s\\n' "${{COMPREPLY[@]}}" """
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([bash, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.split() == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_ask_the_same_program(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert f"_DIFFPROOF_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_another_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "basch"]) == 2
    assert "expected one of bash, zsh, fish, got 'basch'; did you mean bash" in capsys.readouterr().err
