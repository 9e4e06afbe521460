"""Shards that are merged make the store of the run without shards; what is no set of shards is refused."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffproof.cli.main import run
from diffproof.runs.attack import job as attack_job
from diffproof.runs.attack import run as attack_run
from diffproof.runs.certify import run as certify_run
from diffproof.runs.certify.job import CertifyRun, prepare
from diffproof.runs.merge import Merged, merge
from diffproof.runs.settings import AttackRequest, CertifySettings
from diffproof.runs.store import RunStore
from helpers.command_line import Refused
from helpers.files import tree
from helpers.processes import exit_status, forked, outcome
from helpers.runs import change, contents

pytestmark = pytest.mark.usefixtures("small_digits")

CERTIFY: dict[str, Any] = {
    "data": "digits",
    "classifier": "digits",
    "sigma": 0.25,
    "n0": 5,
    "n": 20,
    "alpha": 0.05,
    "seed": 3,
    "batch_size": 32,
}
ATTACK: dict[str, Any] = {
    "seed": 0,
    "data": "digits",
    "indices": "0:70:10",
    "classifier": "digits",
    "defense": "none",
    "threat": "linf",
    "budget": "0.1",
    "attack": "pgd:iterations=2",
    "draws": 2,
    "majority_of": 2,
    "diagnose": 2,
    "batch_size": 2,
}


def certified(job: CertifyRun, folder: Path, shard: str | None = None) -> Path:
    certify_run.run(replace(job, settings=replace(job.settings, shard=shard)), folder)
    return folder


def attacked(job: attack_job.AttackRun, folder: Path, shard: str | None = None) -> Path:
    attack_run.run(replace(job, settings=replace(job.settings, shard=shard)), folder)
    return folder


@pytest.fixture(scope="module")
def job() -> CertifyRun:
    """A small run of seven images, ready to start."""
    return prepare(CertifySettings(**CERTIFY, indices="0:70:10", defense="none"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, job: CertifyRun) -> Path:
    """It in a folder `whole`, in three shards, and those of an attack; not to be changed."""
    home = tmp_path_factory.mktemp("made")
    certified(job, home / "whole")
    attack = attack_job.prepare(AttackRequest(**ATTACK))
    attacked(attack, home / "attack")
    for number in range(3):
        certified(job, home / f"s{number}", f"{number}/3")
        attacked(attack, home / f"a{number}", f"{number}/3")
    return home


@pytest.fixture
def home(tmp_path: Path, made: Path) -> Path:
    """The same in the folder of a test."""
    for folder in made.iterdir():
        shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path


def shards(home: Path, letter: str = "s") -> list[Path]:
    return [home / f"{letter}{number}" for number in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"defense": "densepure:steps=2,votes=4", "denoiser": "digits", "keep_ballots": True, "n": 8},
        {"defense": "dds", "denoiser": "digits", "stop": "sequential", "radii": "0.1,0.2", "n": 100},
    ],
    ids=["with ballots", "sequential"],
)
def test_sixteen_shards_in_any_order_make_the_run_without(tmp_path: Path, changes: dict[str, Any]) -> None:
    job = prepare(CertifySettings(**{**CERTIFY, **changes}, indices="0:400:20"))
    whole = certified(job, tmp_path / "whole")
    folders = [certified(job, tmp_path / f"{number}", f"{number}/16") for number in range(16)]
    random.Random(16).shuffle(folders)
    assert merge(tmp_path / "out", folders) == Merged(tmp_path / "out", "certification run", 16, 20)
    found = contents(tmp_path / "out")
    assert found == contents(whole)
    assert len(found["images"]) == 20
    assert len(found["ballots"]) == (40 if "keep_ballots" in changes else 0)
    settings = [(folder / "settings.yaml").read_text() for folder in (tmp_path / "out", whole)]
    assert settings[0] == settings[1]


@pytest.mark.slow
def test_shards_of_an_attack_make_the_attack_without(home: Path) -> None:
    a0, a1, a2 = shards(home, "a")
    assert merge(home / "out", [a2, a0, a1]) == Merged(home / "out", "attack run", 3, 7)
    found = contents(home / "out")
    assert found == contents(home / "attack")
    assert (len(found["attacked"]), len(found["findings"]), len(found["part"])) == (7, 1, 0)


@pytest.mark.slow
def test_shards_of_an_attack_on_a_random_defence(tmp_path: Path) -> None:
    random_one = {
        "defense": "diffpure:t_star=0.1,steps=2",
        "denoiser": "digits",
        "attack": "pgd:iterations=1,eot=2",
        "diagnose": 1,
    }
    job = attack_job.prepare(AttackRequest(**{**ATTACK, **random_one, "batch_size": 4}))
    whole = attacked(job, tmp_path / "whole")
    folders = [attacked(job, tmp_path / f"{number}", f"{number}/3") for number in (1, 2, 0)]
    merge(tmp_path / "out", folders)
    assert contents(tmp_path / "out") == contents(whole)


def test_a_merged_folder_continues_verifies_and_reports(
    home: Path, job: CertifyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [tree(folder) for folder in shards(home)]
    assert run(["merge", str(home / "out"), *map(str, shards(home))]) == 0
    told = f"merged to one certification run: 3 shards, 7 images\nrun folder: {home / 'out'}\n"
    assert capsys.readouterr().out == told
    # Shards are only read.
    assert [tree(folder) for folder in shards(home)] == before
    again = certify_run.run(job, home / "out", lambda more: None)
    assert [one.image_index for one in again] == list(range(0, 70, 10))
    assert contents(home / "out") == contents(home / "whole")
    assert run(["verify", str(home / "out"), "--resample", "2"]) == 0
    assert "7 certificates hold, 2 drawn again" in capsys.readouterr().out
    outputs = []
    for folder in ("out", "whole"):
        assert run(["report", str(home / folder)]) == 0
        outputs.append(capsys.readouterr().out.replace(str(home / folder), "run"))
    assert outputs[0] == outputs[1]
    # With further images.
    more = prepare(CertifySettings(**CERTIFY, indices="0:80:10", defense="none"))
    assert len(certify_run.run(more, home / "out")) == 8


def test_folders_that_a_kill_left_and_empty_ones_are_taken(home: Path) -> None:
    for name in ("lock", "settings.yaml", "results.sqlite.new", "results.sqlite.new-journal"):
        out = home / f"out-{name}"
        out.mkdir()
        (out / name).write_bytes(b"" if name == "lock" else b"half of somethi")
        merge(out, shards(home))
        assert contents(out) == contents(home / "whole")
        assert {path.name for path in out.iterdir()} == {"settings.yaml", "results.sqlite", "lock"}


Change = Callable[[Path], object]


def copied(name: str, to: str) -> Change:
    return lambda home: shutil.copytree(home / name, home / to)


def edited(name: str, *statements: str) -> Change:
    def make(home: Path) -> None:
        for statement in statements:
            change(home / name, statement)

    return make


def setting(name: str, key: str, value: str) -> Change:
    """Another value of a setting in the store of a shard, given as SQL."""
    return edited(name, f"UPDATE settings SET json = json_set(json, '$.{key}', {value})")


def nothing(home: Path) -> None:
    """Leave all as it is."""


REFUSED: dict[str, tuple[Change, str, str]] = {
    "missing": (nothing, "s0 s2", "shards: shard 1/3 is missing"),
    "missing ones": (nothing, "s1", "shards: shards 0/3, 2/3 are missing"),
    "none": (nothing, "nowhere", "run: nowhere is no run folder (results.sqlite is missing)"),
    "named twice": (nothing, "s0 s1 s0 s2", "runs: expected each run once, got s0 again"),
    "by a link": (
        lambda home: (home / "link").symlink_to("s0"),
        "s0 s1 link s2",
        "runs: expected each run once, got link again, which is s0",
    ),
    "doubled": (
        copied("s1", "copy"),
        "s0 copy s1 s2",
        "shards: shard 1/3 is there twice, in copy and s1",
    ),
    "a whole run": (nothing, "s0 s1 whole", "shards: whole is no shard, expected runs with --shard"),
    "two kinds": (
        nothing,
        "s0 s1 a2",
        "shards: a2 is of another run than s0: the kind (certification run, now attack run)",
    ),
    "other settings": (
        setting("s2", "sigma", "0.5"),
        "s0 s1 s2",
        "shards: s2 is of another run than s0: sigma (0.25, now 0.5)",
    ),
    "other parts": (
        setting("s2", "shard", "'2/4'"),
        "s0 s1 s2",
        "shards: s2 is of another run than s0: the number of shards (3, now 4)",
    ),
    "other weights": (
        edited("s1", "UPDATE settings SET weights_hash = 'other'"),
        "s0 s1 s2",
        "shards: s1 is of another run than s0: the weights in the files",
    ),
    "other data": (
        edited("s1", "UPDATE settings SET data_hash = 'other'"),
        "s0 s1 s2",
        "shards: s1 is of another run than s0: the images or labels in the data",
    ),
    "other code": (
        edited("s1", """UPDATE settings SET code = '{"mine": "abc"}'"""),
        "s0 s1 s2",
        "shards: s1 is of another run than s0: the code of mine",
    ),
    "own code": (
        setting("s1", "defense", "'no.such.module:Class:kernel=5'"),
        "s0 s1 s2",
        "shards: s1 is of another run than s0: defense (none, now no.such.module:Class:kernel=5)",
    ),
    "other images": (
        edited(
            "s1",
            "UPDATE planned SET image_index = 77 WHERE image_index = 0",
            "UPDATE settings SET data_hash = 'other'",
        ),
        "s0 s1 s2",
        "shards: s1 is of another run than s0: which images (7, now 7)",
    ),
    "another batch size of an attack": (
        setting("a1", "batch_size", "4"),
        "a0 a1 a2",
        "shards: a1 is of another run than a0: batch_size (2, now 4)",
    ),
    "unfinished": (
        edited("s1", "DELETE FROM images WHERE image_index = 40"),
        "s0 s1 s2",
        "shards: s1 (shard 1/3) is unfinished, it lacks 1 image of 2: 40; the same command finishes it",
    ),
    "nothing finished": (
        edited("a0", "DELETE FROM attacked"),
        "a0 a1 a2",
        "shards: a0 (shard 0/3) is unfinished, it lacks 3 images of 3: 0, 10, 60; the same command",
    ),
    "images of others": (
        edited("s1", "INSERT INTO images SELECT 77, true_label, certificate, 1.0 FROM images LIMIT 1"),
        "s0 s1 s2",
        "shards: s1 holds images that are not of its shard: 77",
    ),
    "parts that overlap": (
        edited(
            "s1",
            "UPDATE part SET image_index = 20 WHERE image_index = 10",
            "UPDATE images SET image_index = 20 WHERE image_index = 10",
        ),
        "s0 s1 s2",
        "shards: these do not have each image of the run once",
    ),
    "a corrupt row": (
        edited("s1", "UPDATE images SET certificate = '{}' WHERE image_index = 40"),
        "s0 s1 s2",
        "run: the store in s1 is corrupt: image 40: ",
    ),
    "a corrupt file": (
        lambda home: (home / "s1" / "results.sqlite").write_bytes(b"nothing of SQLite's" * 1000),
        "s0 s1 s2",
        "run: the store in s1 is corrupt: file is not a database",
    ),
    "a shard's number edited": (
        setting("s1", "shard", "'3/3'"),
        "s0 s1 s2",
        "run: the store in s1 is corrupt: shard: expected 0/3 to 2/3, got '3/3'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_set_of_shards_is_refused_and_nothing_written(
    name: str, home: Path, refused: Refused
) -> None:
    make, folders, told = REFUSED[name]
    make(home)
    assert refused(["merge", "out", *folders.split()]).startswith(told)


def test_code_that_shards_name_is_not_run(
    home: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(home))
    (home / "shards_own_code.py").write_text("open('marker', 'w').close()\n")
    for number, folder in enumerate(shards(home)):
        setting(folder.name, "defense", f"'shards_own_code:Class:kernel={number // 2}'")(home)
    own = "defense (shards_own_code:Class:kernel=0, now shards_own_code:Class:kernel=1)"
    assert refused(["merge", "out", "s0", "s1", "s2"]) == f"shards: s2 is of another run than s0: {own}"


def folder_with(name: str, to: str | None = None) -> Change:
    """A folder `out` with a file of this name, or a link."""

    def make(home: Path) -> None:
        (home / "out").mkdir()
        if to is None:
            (home / "out" / name).touch()
        else:
            (home / "out" / name).symlink_to(to)

    return make


OUTS: dict[str, tuple[Change, str, str]] = {
    "a run": (nothing, "whole", "out: whole holds a run, expected a new folder"),
    "a shard": (nothing, "s1", "out: s1 is one of the shards, expected a new folder"),
    "a shard by a link": (
        lambda home: (home / "link").symlink_to("s1"),
        "link",
        "out: link is one of the shards, expected a new folder",
    ),
    "a file": (lambda home: (home / "out").touch(), "out", "out: out is a file, expected a folder"),
    "other files": (
        folder_with("mine"),
        "out",
        "out: out holds other files and is no run folder",
    ),
    "a link in place of the store": (
        folder_with("results.sqlite", "nowhere"),
        "out",
        "out: out holds a run, expected a new folder",
    ),
    "in a file": (
        nothing,
        "whole/settings.yaml/out",
        "out: cannot make the run folder whole/settings.yaml/out: Not a directory",
    ),
}


@pytest.mark.parametrize("name", OUTS)
def test_where_nothing_can_be_merged_to_nothing_changes(name: str, home: Path, refused: Refused) -> None:
    make, out, told = OUTS[name]
    make(home)
    assert refused(["merge", out, "s0", "s1", "s2"]) == told


@pytest.fixture
def open_home(made: Path) -> Iterator[Path]:
    """The shards in a folder that anybody may enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for number in range(3):
            shutil.copytree(made / f"s{number}", home / f"s{number}")
        for folder in (home, *home.iterdir()):
            folder.chmod(0o755)
        yield home


@pytest.mark.parametrize(
    ("closed", "told"),
    [
        (".", "out: cannot make the run folder out: Permission denied"),
        ("s1/results.sqlite", "cannot open the store in s1: unable to open database file"),
        ("s1", "Invalid value for 'SHARDS...': Path 's1' is not readable."),
    ],
)
def test_without_permission_there_is_one_line(open_home: Path, closed: str, told: str) -> None:
    (open_home / closed).chmod(0o555 if closed == "." else 0)

    def somebody() -> int:
        os.chdir(open_home)
        if os.geteuid() == 0:
            # Root may do anything.
            os.setgid(65534)
            os.setuid(65534)
        return run(["merge", "out", "s0", "s1", "s2"])

    assert outcome(somebody) == (2, f"diffproof: error: {told}\n")
    (open_home / closed).chmod(0o755)
    assert not (open_home / "out").exists()


@pytest.mark.parametrize("limit", [100, 5_000, 20_000, None])
def test_a_full_disk_ends_in_one_line_and_leaves_nothing(home: Path, limit: int | None) -> None:
    """No file may grow beyond the limit: before the settings, within the empty store, at the last row."""
    limit = (home / "attack" / "results.sqlite").stat().st_size - 1 if limit is None else limit
    line = ["merge", str(home / "out"), *map(str, shards(home, "a"))]

    def with_limit() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return run(line)

    status, errors = outcome(with_limit)
    assert status == 2
    assert re.fullmatch(r"diffproof: error: .*(cannot write to .*out|File too large).*\n", errors)
    assert not (home / "out").exists()
    assert run(line) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_merge_that_is_stopped_leaves_no_run_and_can_begin_again(
    home: Path, number: signal.Signals
) -> None:
    line = ["merge", str(home / "out"), *map(str, shards(home))]
    usual, taken = RunStore.take, list[int]()

    def take(self: RunStore[Any], other: RunStore[Any]) -> None:
        usual(self, other)
        taken.append(1)
        if len(taken) == 2:
            os.kill(os.getpid(), number)

    def stopped() -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        RunStore.take = take  # type: ignore[method-assign]
        return run(line)

    status, errors = outcome(stopped)
    assert status == (130 if number == signal.SIGINT else -signal.SIGKILL)
    if number == signal.SIGINT:
        assert errors.strip() == "diffproof: interrupted; nothing was merged; the same command begins again"
        assert not (home / "out").exists()
    else:
        assert not (home / "out" / "results.sqlite").exists()
    assert run(line) == 0
    assert contents(home / "out") == contents(home / "whole")


@pytest.mark.slow
def test_kills_at_any_moment_leave_the_whole_store_or_none(home: Path) -> None:
    source, line = random.Random(7), ["merge", str(home / "out"), *map(str, shards(home, "a"))]
    started = time.monotonic()
    assert exit_status(forked(lambda: run(line))) == 0
    seconds, whole = time.monotonic() - started, contents(home / "attack")
    shutil.rmtree(home / "out")
    there = begun = 0
    # The bound only guards against endless waiting.
    for _ in range(300):
        pid = forked(lambda: run(line))
        # Four of five before its end.
        time.sleep(source.uniform(0, 1.25 * seconds))
        os.kill(pid, signal.SIGKILL)
        exit_status(pid)
        begun += (home / "out").exists()
        if (home / "out" / "results.sqlite").exists():
            there += 1
            assert contents(home / "out") == whole
            shutil.rmtree(home / "out")
        if there >= 5 and begun - there >= 20:
            break
    assert run(line) == 0
    assert contents(home / "out") == whole
    assert there >= 5
    assert begun - there >= 20
