"""The shape of the source: which way imports point, and how long its parts are."""

from __future__ import annotations

import ast

from helpers.structure import LEVELS, circles, functions, imports, level, long_files, modules, upward


def test_imports_point_one_way() -> None:
    assert upward() == []
    assert circles() == []
    # They are seen: a run is above the attack that it runs, and reads it.
    assert "diffproof.attacks.evaluation" in imports()["diffproof.runs.attack.attacking"]
    assert (
        level("diffproof.runs.attack.run") > level("diffproof.attacks.evaluation") > level("diffproof.noise")
    )
    rooms = {name.split(".")[1] for name in imports() if name.count(".") > 1}
    assert rooms <= {room for level in LEVELS for room in level}


def test_functions_and_files_are_short() -> None:
    lengths = {name: length for length, name in functions()}
    assert lengths["diffproof.attacks.evaluation.evaluate"] > 40
    assert {name: length for name, length in lengths.items() if length > 60} == {}
    assert long_files(400) == {}
    assert long_files(300)


# What prints by itself: the screen, lines of workers that are made safe there, tracebacks of `serve`.
PRINTING = {"diffproof.cli.screen", "diffproof.runs.workers", "diffproof.web.live.server"}
# What prints documents of several lines, whose texts are made safe one by one.
_OF_LINES = ("completion", "data", "main", "methods", "reproduce", "results", "watch")
DOCUMENTS = {f"diffproof.cli.{name}" for name in _OF_LINES}


def test_texts_are_printed_in_one_place() -> None:
    """What prints by itself may print control characters out of files; `cli.screen.printed` escapes them."""
    calls = {
        (name, ast.unparse(node.func))
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    assert {name for name, called in calls if called in ("print", "click.echo", "click.secho")} == PRINTING
    assert {name for name, called in calls if called == "echo"} == DOCUMENTS | {"diffproof.cli.screen"}
