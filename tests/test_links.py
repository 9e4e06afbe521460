"""Links in the place of files that are written: nothing is written through one that the user did not name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

import diffproof as dp
from diffproof.cli.main import run
from diffproof.files import replacing
from diffproof.pictures import save_picture
from helpers.command_line import Refused

TRAIN = (
    "train classifier --data digits --indices 0:20 --iterations 1 --batch-size 2 --width 2"
    " --out w.safetensors"
)
CERTIFY = "certify --data digits --classifier digits --defense none --sigma 0.25 --n0 5 --n 20 --out run"


def test_what_a_kill_left_is_not_written_through(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "w"
    victim.write_text("precious")
    (tmp_path / "w.new").symlink_to(victim)
    with replacing(path) as fresh:
        fresh.write_text("new")
    assert (path.read_text(), victim.read_text()) == ("new", "precious")
    assert not path.is_symlink()
    (tmp_path / "v.new").symlink_to(tmp_path / "nothing")
    with replacing(tmp_path / "v") as fresh:
        fresh.write_text("new")
    assert not (tmp_path / "nothing").exists()


def test_a_link_to_nothing_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "w").symlink_to("nothing")
    with pytest.raises(ValueError, match="w is a link that leads to no file"), replacing(tmp_path / "w"):
        pass
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("there", [True, False])
def test_tables(refused: Refused, small_run: Path, force: list[str], there: bool) -> None:
    Path("out").mkdir()
    if there:
        Path("victim").write_text("precious")
    Path("out/table.csv").symlink_to("../victim")
    line = refused(["report", str(small_run), "--out", "out", *force])
    assert line == "--out: out/table.csv is a link, which is not followed"
    Path("one.csv").symlink_to("nothing")
    for word in ("--csv", "--html"):
        assert refused(["report", str(small_run), word, "one.csv", *force]).endswith(
            "one.csv is a link that leads to no file"
        )


@pytest.mark.parametrize("name", ["0.png", "sheet.png", "settings.yaml", "sub"])
def test_purified_pictures(refused: Refused, name: str) -> None:
    Path("elsewhere").mkdir()
    Path("pictures/sub").mkdir(parents=True)
    Path("out").mkdir()
    for path in ("pictures/0.png", "pictures/sub/1.png"):
        save_picture(Path(path), dp.load_data("digits", indices="0").images[0])
    link = Path("out", name)
    link.symlink_to("../elsewhere" if name == "sub" else "../nothing")
    words = "purify pictures --denoiser digits --defense diffpure:t_star=0.01,steps=1 --force --out out"
    assert refused(words.split()) == f"--out: {link} is a link, which is not followed"


@pytest.mark.parametrize("suffix", [".checkpoint", ".lock"])
def test_a_pipe_beside_a_training_is_not_waited_for(refused: Refused, suffix: str) -> None:
    os.mkfifo(f"w{suffix}")
    assert refused([*TRAIN.split(), "--force"]) == f"--out: w{suffix} is a pipe, expected a file"


@pytest.mark.parametrize("suffix", [".checkpoint", ".samples.png", ".loss.csv", ".loss.png", ".lock"])
def test_what_a_training_writes_besides(refused: Refused, suffix: str) -> None:
    Path("victim").write_text("precious")
    Path(f"w{suffix}").symlink_to("victim")
    assert refused([*TRAIN.split(), "--force"]) == f"--out: w{suffix} is a link, which is not followed"


def test_a_training_begins_beside_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("w.safetensors.new", "w.checkpoint.new"):
        Path(name).symlink_to("nothing")
    assert run(TRAIN.split()) == 0
    assert not Path("nothing").exists()
    assert not Path("w.safetensors").is_symlink()
    assert not Path("w.lock").exists()


def test_a_training_has_its_output_alone(refused: Refused) -> None:
    with FileLock("w.lock"):
        assert refused(TRAIN.split()) == "--out: another process is training w.safetensors"
    assert run(TRAIN.split()) == 0


@pytest.mark.parametrize("name", ["results.sqlite-journal", "results.sqlite-wal", "lock"])
def test_a_pipe_in_a_run_folder_is_not_waited_for(refused: Refused, small_run: Path, name: str) -> None:
    shutil.copytree(small_run, "run")
    Path("run", name).unlink(missing_ok=True)
    os.mkfifo(Path("run", name))
    expected = f"run/{name} is a pipe, expected a file of the run's own"
    assert refused([*CERTIFY.split(), "--indices", "0:2"]) == f"--out: {expected}"
    # Who only reads does not open the lock.
    if name != "lock":
        for words in (["report", "run"], ["status", "run"], ["verify", "--counts", "run"], ["export", "run"]):
            assert refused(words) == f"run: {expected}"


@pytest.mark.parametrize("name", ["results.sqlite-journal", "results.sqlite-wal", "results.sqlite-shm"])
def test_what_sqlite_opens(refused: Refused, name: str) -> None:
    assert run([*CERTIFY.split(), "--indices", "0:1"]) == 0
    Path("victim").write_text("precious")
    Path("run", name).symlink_to("../victim")
    expected = f"run/{name} is a link, expected a file of the run's own"
    assert refused([*CERTIFY.split(), "--indices", "0:2"]) == f"--out: {expected}"
    assert refused(["report", "run"]) == f"run: {expected}"


@pytest.mark.parametrize("name", ["settings.yaml", "settings.yaml.new", "results.sqlite.new", "lock"])
def test_a_folder_prepared_for_a_run(refused: Refused, name: str) -> None:
    Path("run").mkdir()
    Path("run", name).symlink_to("../victim")
    line = refused([*CERTIFY.split(), "--indices", "0:1"])
    assert line == f"--out: run/{name} is a link, expected a file of the run's own"
