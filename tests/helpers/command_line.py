"""Command lines of diffproof, and what it says to wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffproof.catalog import DEFENSES
from diffproof.catalog_attacks import ATTACKS
from diffproof.cli.main import run
from helpers.files import tree

# What settings of a defence are called among the flags of a test where its attack has one of that name, too.
_OTHER_NAMES = {
    "defense_sigma": "sigma",
    "purify_budget": "budget",
    "likelihood_iterations": "iterations",
    "likelihood_norm": "norm",
}
_SHARED = {"iterations", "step", "budget", "norm", "sigma", "levels"}
_SETTINGS = {
    kind: {one.name for method in table.values() for one in method.settings}
    for kind, table in (("defense", DEFENSES), ("attack", ATTACKS))
}
_OF_A_DEFENSE = {name: name for name in _SETTINGS["defense"] - _SHARED} | _OTHER_NAMES
_OF_AN_ATTACK = {name: name for name in _SETTINGS["attack"]}


def composed(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags with the settings among them moved into the texts of the defence and of the attack.

    A setting of None is left out; numbers with commas between are a list.
    """
    flags = {name.replace("-", "_"): value for name, value in flags.items()}
    for kind, names, usual in (("defense", _OF_A_DEFENSE, None), ("attack", _OF_AN_ATTACK, "pgd")):
        given = {names[name]: flags.pop(name) for name in list(flags) if name in names}
        settings = [f"{name}={_in_text(value)}" for name, value in given.items() if value is not None]
        method = flags.get(kind) or (usual if settings else None)
        if method is not None:
            flags[kind] = f"{method}:{','.join(settings)}" if settings else method
    return flags


def _in_text(value: object) -> str:
    text = str(value)
    return f"[{text}]" if "," in text and not text.startswith("[") else text


def words(*begin: object, **flags: object) -> list[str]:
    """The words of a command line, flags after `begin`; None leaves a flag out, True gives it alone."""
    line = [str(word) for word in begin]
    for name, value in composed(flags).items():
        flag = f"--{name.replace('_', '-')}"
        line += [] if value is None else [flag] if value is True else [flag, str(value)]
    return line


class Refused:
    """Runs a command line in a folder that must not change, and gives the one line that it printed."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def __call__(self, arguments: list[str]) -> str:
        before = tree(self.folder)
        self.capsys.readouterr()
        assert run(arguments) == 2
        captured = self.capsys.readouterr()
        assert captured.out == ""
        assert captured.err.endswith("\n")
        (line,) = captured.err.splitlines()
        start = "diffproof: error: "
        assert line.startswith(start)
        assert tree(self.folder) == before
        return line.removeprefix(start)
