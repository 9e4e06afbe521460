"""Shell scripts that run diffproof: the commands that they come to, for a process that has all loaded."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

# Writes down the words that it is called with, each on a line.
_RECORDER = '#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done >> "$RECORD"\necho >> "$RECORD"\n'


def commands_of(
    script: str, folder: Path, variables: Mapping[str, object], shell: str = "sh"
) -> list[list[str]]:
    """The words of each diffproof command that a script runs in a folder, with these variables only."""
    tools, record = folder / "tools", folder / "record"
    tools.mkdir(exist_ok=True)
    (tools / "diffproof").write_text(_RECORDER)
    (tools / "diffproof").chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "RECORD": str(record)}
    environment |= {name: str(value) for name, value in variables.items()}
    subprocess.run([shell, "-c", script], cwd=folder, env=environment, check=True)
    commands = record.read_text().removesuffix("\n\n").split("\n\n")
    record.unlink()
    return [command.split("\n") for command in commands]
