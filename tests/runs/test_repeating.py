"""The command that a page gives for a run makes that run."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import click
import pytest

from diffproof.cli.main import diffproof as command_group
from diffproof.cli.main import run
from diffproof.runs.attack.store import AttackStore
from diffproof.runs.certify.store import CertifyStore
from diffproof.runs.repeating import command
from diffproof.runs.settings import AttackSettings, CertifySettings, RunSettings
from helpers.runs import contents

CERTIFIED = (
    "certify --data digits --indices 0:6:2 --classifier digits --defense none --sigma 0.25 --n0 5 --n 40"
    " --stop sequential --radii 0,0.1 --alpha 0.01 --bound one-sided --seed 3 --levels 16"
)
ATTACKED = (
    "attack --data digits --indices 0:4:2 --classifier digits --defense none --threat linf --budget 8/255"
    " --attack pgd:iterations=2,eot=1 --draws 2 --majority-of 2 --diagnose 0 --seed 3"
)


@pytest.mark.parametrize("line", [CERTIFIED, ATTACKED], ids=["certification", "attack"])
def test_the_command_makes_the_same_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*line.split(), "--out", "a run"]) == 0
    store_type = AttackStore if line is ATTACKED else CertifyStore
    with store_type.reading(Path("a run")) as store:
        words = shlex.split(command(store.settings, Path("a run")))
    assert words[0] == "diffproof"
    assert run(words[1:]) == 0
    assert contents(tmp_path / "a run") == contents(tmp_path / "a run-again")


@pytest.mark.parametrize(
    "settings",
    [
        CertifySettings(
            seed=0, data="my data/é", classifier="digits", defense="none", sigma=0.1, held_out=True
        ),
        CertifySettings(
            seed=0, data="digits", classifier="digits", defense="none", sigma=1e-7, keep_ballots=True
        ),
        AttackSettings(
            seed=0,
            data="digits",
            classifier="digits",
            defense="none",
            threat="l2",
            budget="1/3",
            skip_unreadable=True,
        ),
    ],
    ids=["held-out", "ballots", "attack"],
)
def test_every_setting_has_its_flag(settings: RunSettings) -> None:
    name, *words = shlex.split(command(settings, Path("run")))[1:]
    asked: click.Command = command_group.commands[name]
    context = asked.make_context(name, words)
    given = {key: context.params[key] for key in settings.as_dict().keys() - {"seed_drawn"}}
    assert type(settings).from_dict(given) == settings


def test_a_class_map_comes_from_the_settings_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps({"one": 1}))
    settings = CertifySettings(
        seed=0,
        data="digits",
        classifier="digits",
        defense="none",
        sigma=1.0,
        class_map=str(tmp_path / "map.json"),
    )
    expected = "diffproof certify --config runs/a/settings.yaml --out a-again"
    assert command(settings, Path("runs/a")) == expected
    own = replace(settings, classifier="own:make")
    expected = "diffproof certify --config runs/a/settings.yaml --classifier own:make --out a-again"
    assert command(own, Path("runs/a")) == expected
