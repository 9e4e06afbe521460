"""The shape of the source: which way imports point, and how long its parts are."""

from __future__ import annotations

from helpers.structure import LEVELS, circles, functions, imports, level, long_files, upward


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
