"""JSON and YAML of strangers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffproof.data.classes import read_class_map
from diffproof.texts import DEEPEST, parse_json
from helpers.command_line import Refused


def nested(deep: int) -> str:
    return "[" * deep + "]" * deep


@pytest.mark.parametrize(
    "text", ["0", '"[[[[[[[[[[[[[[[[[["', "[1, [2, {}]]", '{"a": null}', nested(DEEPEST)]
)
def test_sound_json_is_what_it_is(text: str) -> None:
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (nested(DEEPEST + 1), "at most 16 deep"),
        (nested(900), "at most 16 deep"),
        ("[" * 10**6, "at most 16 deep"),
        ('{"a":' * 17 + "1" + "}" * 17, "at most 16 deep"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ("[NaN]", "finite numbers, got NaN"),
        ("-Infinity", "finite numbers, got -Infinity"),
        ("9" * 5000, "limit"),
        (b"1", "expected a text, got bytes"),
        (None, "expected a text, got NoneType"),
        ("1" * 11, "at most 10 characters, got 11"),
        ("[1", "delimiter"),
    ],
)
def test_other_json_is_refused(text: object, message: str) -> None:
    most = 10 if text == "1" * 11 else 10**7
    with pytest.raises(ValueError, match=message):
        parse_json(text, most)


# As text a few hundred bytes, written out gigabytes.
BOMB = "a0: &a0 [x, x]\n" + "\n".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]" for i in range(1, 11))


def test_a_class_map_with_aliases_is_refused(refused: Refused) -> None:
    Path("map.yaml").write_text(BOMB)
    with pytest.raises(ValueError, match=r"cannot read 'map.yaml': aliases \(\*name\) are not read here"):
        read_class_map("map.yaml")
    words = "certify --data digits --classifier digits --defense none --sigma 1 --class-map map.yaml --out o"
    assert "aliases (*name) are not read here" in refused(words.split())


@pytest.mark.parametrize("text", ["cat: 1\ndog: 2\ncat: 3\n", '{"cat": 1, "cat": 3}'])
def test_a_class_that_is_mapped_twice_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "map").write_text(text)
    with pytest.raises(ValueError, match=r"cat'? is given twice"):
        read_class_map(tmp_path / "map")


def test_a_class_map_of_more_classes_than_any_data_is_refused() -> None:
    assert len(read_class_map({str(one): 0 for one in range(2**16)})) == 2**16
    with pytest.raises(ValueError, match="expected at most 65,536 classes, got 65,537"):
        read_class_map({str(one): 0 for one in range(2**16 + 1)})
