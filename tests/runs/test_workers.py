"""Workers of runs: when they are looked for, and what is recorded of them; see tests/scale for real ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from simulated_fleet import SimulatedEngine
from torch import Tensor

from diffproof.cli.main import run
from diffproof.runs.attack import run as attack_run
from diffproof.runs.attack.job import AttackRun, prepare
from diffproof.runs.attack.store import AttackStore
from diffproof.runs.attack.workers import worker_of
from diffproof.runs.folder import claimed
from diffproof.runs.groups import Groups, GroupWorker
from diffproof.runs.settings import AttackRequest
from diffproof.runs.workers import ImagesFailedError
from diffproof.scale.engine import Order
from diffproof.scale.fleet import Fleet
from helpers.command_line import Refused, words
from helpers.fleets import Doer, failing, hiring, order, started
from helpers.runs import PLAIN, attacked_rows, certify_flags, contents

pytestmark = pytest.mark.usefixtures("small_digits")

# Where no cluster can be.
NOWHERE = "nowhere.invalid:1"
ATTACK = words(
    "attack",
    data="digits",
    indices="0:4:2",
    classifier="digits",
    defense="none",
    attack="pgd:iterations=1",
    threat="linf",
    budget=0.1,
    diagnose=0,
)


@pytest.mark.parametrize("kind", ["certify", "attack"])
def test_a_finished_run_needs_no_workers(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = certify_flags(folder, **PLAIN) if kind == "certify" else [*ATTACK, "--out", str(folder)]
    assert run(flags) == 0
    before = contents(folder)
    assert run([*flags, "--ray", NOWHERE]) == 0
    assert contents(folder) == before


def test_a_run_that_knows_enough_needs_no_workers(tmp_path: Path) -> None:
    flags = certify_flags(tmp_path / "run", **{**PLAIN, "indices": "0:40"}, until_half_width=0.45)
    assert run(flags) == 0
    assert len(contents(tmp_path / "run")["images"]) < 40
    assert run([*flags, "--ray", NOWHERE]) == 0


def test_a_folder_that_cannot_be_had_is_named_before_workers_are_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(certify_flags(folder, **PLAIN)) == 0
    refused = Refused(tmp_path, capsys)
    line = refused(certify_flags(folder, **PLAIN, n=200, ray=NOWHERE))
    assert line == f"--out: {folder} holds a run with other settings: n (100, now 200)"
    with claimed(folder):
        line = refused(certify_flags(folder, **PLAIN, ray=NOWHERE))
    assert line == f"--out: another process is at work in {folder}"


@pytest.mark.parametrize("kind", ["certify", "attack"])
def test_a_busy_folder_is_named_before_networks_are_loaded(kind: str, refused: Refused) -> None:
    # Which are not there.
    missing = ["--classifier", "missing.safetensors"]
    flags = certify_flags(Path("run"), **PLAIN) if kind == "certify" else [*ATTACK, "--out", "run"]
    with claimed(Path("run")):
        assert refused([*flags, *missing]) == "--out: another process is at work in run"
    Path("run/notes.txt").touch()
    assert refused([*flags, *missing]) == "--out: run holds other files and is no run folder"
    assert "missing.safetensors" in refused([*flags[:-1], "free", *missing])


def attack_of(**changes: object) -> AttackRun:
    request: dict[str, Any] = {
        "seed": 0,
        "data": "digits",
        "indices": "0:12:2",
        "denoiser": "digits",
        "classifier": "digits",
        "defense": "diffpure:t_star=0.1,steps=2",
        "attack": "pgd:iterations=2,eot=2",
        "threat": "linf",
        "budget": "0.1",
        "draws": 2,
        "majority_of": 2,
        "diagnose": 1,
        "batch_size": 4,
    }
    return prepare(AttackRequest(**{**request, **changes}))


@pytest.mark.slow
def test_attacks_on_workers_are_those_of_one_process(tmp_path: Path) -> None:
    job, evaluations = attack_of(), list[int]()
    attack_run.run(job, tmp_path / "here")
    fleet = started(job, 2)
    attack_run.run(job, tmp_path / "there", on_evaluations=evaluations.append, hire=hiring(fleet))
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert all(member.units for member in fleet.members.values())
    spent = sum(member.evaluations for member in fleet.members.values())
    assert sum(evaluations) == spent
    with AttackStore.reading(tmp_path / "there") as store:
        (session,), workers = store.progress.sessions(), store.progress.workers()
    assert (session.images, session.work, session.wasted) == (6, 6, 0)
    # The diagnosis is a unit besides.
    assert sum(worker.done for worker in workers) == 6
    assert sum(worker.units for worker in workers) == len(job.groups) + 1
    assert sum(worker.evaluations for worker in workers) == session.evaluations == spent


# Fast.
FEW: dict[str, object] = {"defense": "none", "denoiser": None, "attack": "pgd:iterations=2", "diagnose": 0}


@pytest.mark.slow
def test_a_worker_that_can_attack_nothing_any_more_says_so(
    tmp_path: Path,
) -> None:
    job = attack_of(**FEW, batch_size=1)
    attack_run.run(job, tmp_path / "here")

    def make(number: int) -> GroupWorker:
        own = attack_of(**FEW, batch_size=1)
        if number < 2:
            # Their device is gone, after some calls of the network.
            calls = count(1)
            failing(own.view.defense.classifier, lambda images: next(calls) > 2)
        return worker_of(own)

    fleet = started(job, 3, make=make)
    attack_run.run(job, tmp_path / "there", hire=hiring(fleet))
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert [fleet.members[number].state for number in (0, 1)] == ["lost", "lost"]
    assert "device-side assert" in fleet.members[0].error


@pytest.mark.slow
def test_an_image_whose_attack_fails_is_named_and_recorded_and_the_others_are_done(tmp_path: Path) -> None:
    job, bad = attack_of(**FEW), 6
    attack_run.run(job, tmp_path / "here")
    clean = job.data.pixels[bad]

    def near(images: Tensor) -> bool:
        return bool(((images - clean).abs().flatten(1).amax(1) < 0.11).any())

    failing(job.view.defense.classifier, near, lambda: RuntimeError("bad pixel"))
    with pytest.raises(ImagesFailedError, match=f"^image {bad} failed on every worker: RuntimeError: bad"):
        attack_run.run(job, tmp_path / "there", hire=hiring(started(job, 2)))
    done = [row for row in attacked_rows(tmp_path / "here") if row[0] != bad]
    assert attacked_rows(tmp_path / "there") == done
    with AttackStore.reading(tmp_path / "there") as store:
        assert [(one.image_index, one.error) for one in store.progress.failures()] == [
            (bad, "RuntimeError: bad pixel")
        ]


def test_pictures_are_read_as_workers_take_them_and_not_all_at_once() -> None:
    fleet = Fleet(SimulatedEngine(lambda number: Doer()), 2, {})
    made, ahead, found = count(1), list[int](), list[Order]()

    def orders() -> Iterator[Order]:
        for image in range(40):
            ahead.append(next(made) - len(found))
            yield order(image)

    fleet.start()
    Groups(fleet, orders(), lambda one, what: found.append(one)).run()
    assert len(found) == 40
    # Two for each, of which one is on its way.
    assert max(ahead) <= 4
