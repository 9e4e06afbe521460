"""Shards of runs: what is asked for, which images each has, how they stop and continue, what is refused."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from diffproof.cli import progress
from diffproof.cli.main import run
from diffproof.errors import ArgumentError
from diffproof.runs.attack import job as attack_job
from diffproof.runs.attack import run as attack_run
from diffproof.runs.attack.attacking import attack_images
from diffproof.runs.attack.plan import attack_costs
from diffproof.runs.certify import run as certify_run
from diffproof.runs.certify.job import prepare
from diffproof.runs.certify.plan import certify_costs
from diffproof.runs.certify.store import CertifyStore
from diffproof.runs.settings import AttackRequest, CertifySettings
from diffproof.runs.shards import Shard, in_shard, is_first
from helpers.command_line import Refused, words
from helpers.processes import exit_status, forked
from helpers.runs import PLAIN, certify_flags, contents, rows

# Five images, two in a group.
ATTACK: dict[str, Any] = {
    "seed": 0,
    "data": "digits",
    "indices": "0:25:5",
    "classifier": "digits",
    "defense": "none",
    "threat": "linf",
    "budget": "0.2",
    "iterations": 2,
    "diagnose": 2,
    "batch_size": 2,
}


@given(st.integers(1, 40).flatmap(lambda of: st.tuples(st.integers(0, of - 1), st.just(of))))
def test_shards_are_read_as_they_are_written(numbers: tuple[int, int]) -> None:
    shard = Shard(*numbers)
    assert Shard.parse(str(shard)) == shard
    assert Shard.parse(f"00{shard.number}/0{shard.of}") == shard
    assert is_first(str(shard)) == (shard.number == 0)


@given(st.lists(st.integers(), max_size=60), st.integers(1, 70))
def test_parts_are_disjoint_cover_all_and_are_as_large_as_can_be_equal(items: list[int], of: int) -> None:
    parts = [in_shard(items, f"{number}/{of}") for number in range(of)]
    assert Counter(item for part in parts for item in part) == Counter(items)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for part in parts:
        # In their order.
        left = iter(items)
        assert all(item in left for item in part)
    assert in_shard(items, None) == items


@given(st.text("0123456789/-+_ .\n", max_size=6))
def test_any_other_text_is_refused(text: str) -> None:
    if re.fullmatch("[0-9]+/[0-9]+", text) and int(text.split("/")[0]) < int(text.split("/")[1]):
        return
    with pytest.raises(ArgumentError, match=r"^shard: expected "):
        Shard.parse(text)


@pytest.mark.parametrize(
    ("shard", "told"),
    [
        ("3/3", "expected 0/3 to 2/3, got '3/3'"),
        ("7/3", "expected 0/3 to 2/3, got '7/3'"),
        *(
            (text, f"expected i/N with 0 ≤ i < N, as in 3/16, got {text!r}")
            for text in (
                "0/0",
                "-1/3",
                "1/-3",
                "3",
                "/",
                "1/2/3",
                "a/b",
                "1.0/3",
                " 1/3",
                "١/3",
                f"{9**30}/1",
            )
        ),
        ("2/6", "expected at most 5, one an image of the run, got 2/6"),
    ],
)
@pytest.mark.parametrize("command", ["certify", "attack", "plan certify"])
def test_no_shard_of_a_run(refused: Refused, command: str, shard: str, told: str) -> None:
    flags = certify_flags(Path("run"), **PLAIN)[1:]
    if command == "attack":
        flags = words(**ATTACK, out="run")
    elif command == "plan certify":
        flags = flags[:-2]
    assert refused([*command.split(), *flags, "--shard", shard]) == f"--shard: {told}"


def test_no_shard_of_a_run_that_ends_by_all_its_images(refused: Refused) -> None:
    line = refused(certify_flags(Path("run"), **PLAIN, shard="0/2", until_half_width=0.1))
    assert line == "--shard: --until-half-width ends a run by all of its images"


@pytest.mark.parametrize(
    ("shard", "batch_size", "told"),
    [
        ("3/4", 2, "5 images are attacked in 3 groups, got 3/4; --batch-size 1 makes them enough"),
        ("0/2", 9, "5 images are attacked in 1 group, got 0/2; --batch-size 4 makes them enough"),
        ("0/3", 4, "5 images are attacked in 2 groups, got 0/3; --batch-size 2 makes them enough"),
    ],
)
def test_fewer_groups_than_shards_say_which_batches_make_them_enough(
    refused: Refused, shard: str, batch_size: int, told: str
) -> None:
    flags = {**ATTACK, "shard": shard, "out": "run"}
    line = refused(words("attack", **{**flags, "batch_size": batch_size}))
    assert line == f"--shard: expected at most {told.split(' in ')[1].split()[0]}, as {told}"
    # And as few as that makes.
    fits = int(told.split("--batch-size ")[1].split()[0])
    of = Shard.parse(shard).of
    assert -(-5 // fits) >= of > -(-5 // (fits + 1))


def test_a_shard_is_a_run_folder_that_says_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shard"
    assert run(certify_flags(folder, **PLAIN, shard="1/2")) == 0
    assert "\nshard 1/2: 2 of 5 images; `diffproof merge` joins all shards\n" in capsys.readouterr().out
    assert [index for index, *_ in rows(folder)] == [8, 24]
    with CertifyStore.reading(folder) as store:
        assert store.identity.indices == (0, 8, 16, 24, 32)
        assert store.identity.part == (8, 24)
    assert yaml.safe_load((folder / "settings.yaml").read_text())["shard"] == "1/2"
    for command in ("report", "verify"):
        assert run([command, str(folder)]) == 0
        assert "2 of 5 images are finished" in capsys.readouterr().out
    assert run(["export", str(folder), "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    # Its settings are those of the same shard.
    again = tmp_path / "again"
    config = ["certify", "--config", str(folder / "settings.yaml"), "--out", str(again)]
    assert run(config) == 0
    assert contents(again) == contents(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"shard": "0/2"}, "shard (1/2, now 0/2)"),
        ({"shard": "1/3"}, "shard (1/2, now 1/3)"),
        ({"shard": None}, "shard (1/2, now None)"),
        ({"indices": "0:48:8"}, "which images (a shard keeps those that it began with)"),
        ({"indices": "0:48:8", "shard": None}, "shard (1/2, now None)"),
    ],
)
def test_a_folder_holds_one_shard(
    refused: Refused, tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    flags: dict[str, object] = {**PLAIN, "n": 10, "shard": "1/2"}
    assert run(certify_flags(tmp_path / "run", **flags)) == 0
    line = refused(certify_flags(Path("run"), **{**flags, **changes}))
    assert line == f"--out: run holds a run with other settings: {told}"


def test_no_shard_goes_into_the_folder_of_a_whole_run(refused: Refused, tmp_path: Path) -> None:
    assert run(certify_flags(tmp_path / "run", **PLAIN, n=10)) == 0
    line = refused(certify_flags(Path("run"), **PLAIN, n=10, shard="0/2"))
    assert line == "--out: run holds a run with other settings: shard (None, now 0/2)"


def test_a_shard_of_an_attack_has_whole_groups_and_keeps_its_batch_size(
    refused: Refused, tmp_path: Path
) -> None:
    done = list[int]()
    fields = {name: value for name, value in ATTACK.items() if name != "iterations"}
    job = attack_job.prepare(AttackRequest(**fields, attack="pgd:iterations=2", shard="1/2"))
    assert job.groups == [[10, 15]]
    attack_run.run(job, tmp_path / "run", done.append)
    assert done == [0, 2]
    attack_run.run(job, tmp_path / "run", done.append)
    assert done == [0, 2, 2]
    found = contents(tmp_path / "run")
    assert [row[0] for row in found["attacked"]] == [10, 15]
    # The first shard diagnoses for all.
    assert found["findings"] == []
    line = refused(words("attack", **{**ATTACK, "shard": "1/2", "batch_size": 1, "out": "run"}))
    assert line == "--out: run holds a run with other settings: batch_size (2, now 1)"


def test_groups_are_cut_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a group that is begun, the rest; the others as they are without an interruption."""
    attacked: list[list[int]] = []
    usual = attack_images

    def watched(job: attack_job.AttackRun, indices: list[int], batch_size: int) -> Sequence[object]:
        attacked.append(indices)
        return usual(job, indices, batch_size)

    monkeypatch.setattr(attack_run, "attack_images", watched)
    fields = {**ATTACK, "diagnose": 0, "batch_size": 3}
    for indices in ("5:10", "0:25:5"):
        assert run(words("attack", **{**fields, "indices": indices, "out": tmp_path / "run"})) == 0
    assert attacked == [[5, 6, 7], [8, 9], [0, 10], [15, 20]]


@pytest.mark.slow
@pytest.mark.parametrize("softly", [True, False])
def test_a_shard_that_was_stopped_continues_to_the_same_results(tmp_path: Path, softly: bool) -> None:
    settings = CertifySettings(
        seed=0,
        data="digits",
        indices="0:24:4",
        classifier="digits",
        defense="none",
        sigma=0.25,
        n=24,
        shard="1/2",
    )
    job = prepare(replace(settings, n0=8, batch_size=8))
    assert job.part == [4, 12, 20]
    total, told = 3 * job.certifier.evaluations_per_image, list[int]()
    certify_run.run(job, tmp_path / "whole", told.append)
    # Progress is that of its own part.
    assert sum(told) == total

    def stopped() -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        certify_run.COMMIT_EVERY = 0.0
        left = total // 2

        def on_evaluations(more: int) -> None:
            nonlocal left
            left -= more
            if left <= 0:
                os.kill(os.getpid(), signal.SIGINT if softly else signal.SIGKILL)

        try:
            certify_run.run(job, tmp_path / "run", on_evaluations)
        except KeyboardInterrupt:
            return 130
        return 0

    assert exit_status(forked(stopped)) == (130 if softly else -signal.SIGKILL)
    assert len(rows(tmp_path / "run")) < 3
    certify_run.run(job, tmp_path / "run")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("shard", "images"), [(None, 5), ("0/2", 3), ("1/2", 2)])
def test_progress_and_plans_are_of_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: str | None, images: int
) -> None:
    monkeypatch.setattr("diffproof.runs.plan._LEAST", 1)
    monkeypatch.setattr("diffproof.runs.plan._MOST", 1)
    told: list[tuple[int, int]] = []

    @contextmanager
    def shown(title: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
        done = [0]

        def advance(more: int, **changes: str) -> None:
            done[0] += more

        yield advance
        told.append((total, done[0]))

    monkeypatch.setattr(progress, "shown_once_started", shown)
    fields: dict[str, Any] = {
        "seed": 0,
        "data": "digits",
        "indices": "0:20:4",
        "classifier": "digits",
        "defense": "none",
        "shard": shard,
    }
    job = prepare(CertifySettings(**fields, sigma=0.25, n0=5, n=10))
    progress.run_with_progress(job, tmp_path / "certified")
    fields |= {"threat": "linf", "budget": "0.2", "attack": "pgd:iterations=2"}
    attack = attack_job.prepare(AttackRequest(**fields, batch_size=1))
    progress.attack_with_progress(attack, tmp_path / "attacked")
    assert told == [(images * 15, images * 15), (images, images)]
    assert certify_costs(job, 0.0).images == images
    costs = attack_costs(attack, 0.0)
    assert (costs.images, costs.units) == (images, images)
    assert (costs.first_evaluations > 0) == is_first(shard)
