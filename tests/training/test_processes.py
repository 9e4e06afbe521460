"""Several processes that share a training, with the environment that torchrun and accelerate give them."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from diffproof.cli.main import run
from diffproof.weights import hash_tensors, load_nested, load_weights
from helpers.processes import together
from helpers.training import losses_of

COMMON = "--data digits --limit 200 --batch-size 12 --iterations 5"
DENOISER = f"train denoiser {COMMON} --channels 8 --timesteps 5 --flip --extra-data digits --extra-share 0.3"


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_each_step(tmp_path: Path, count: int) -> None:
    one, several = tmp_path / "one.safetensors", tmp_path / "several.safetensors"
    assert run(shlex.split(f"{DENOISER} --out {one}")) == 0
    states, errors = together(f"{DENOISER} --out {several}", count)
    assert states == [0] * count, errors
    assert len(losses_of(several)) == 5
    # Sums in another order, in float32.
    assert losses_of(several) == pytest.approx(losses_of(one), rel=1e-4)
    assert {path.name for path in tmp_path.glob("several*")} == {
        path.name.replace("one", "several") for path in tmp_path.glob("one*")
    }
    mine, theirs = load_weights(one).tensors, load_weights(several).tensors
    for name, tensor in mine.items():
        assert float((tensor - theirs[name]).abs().max()) < 1e-3


# Losses with draws, with searches, and of a network with two answers.
LOSSES = [
    "consistency",
    "macer:draws=3",
    "cat-rs:draws=2,steps=1",
    "smoothmix:steps=1",
    "hybvit:patch=2",
]


@pytest.mark.slow
@pytest.mark.parametrize("objective", LOSSES)
def test_objectives_are_shared_by_processes(tmp_path: Path, objective: str) -> None:
    own = objective.startswith("hybvit")
    # Batch statistics are of a process's own images: a start without them has the same loss in both.
    start, noise = tmp_path / "start.safetensors", " --noise-sigma 0.25"
    train = f"train classifier {COMMON} --iterations 3"
    objective, network = (
        (f"{objective},width=8,depth=1,heads=2", "") if own else (objective, f"--classifier {start}")
    )
    if not own:
        plain = "--width 4 --objective jem:steps=1,buffer=12 --noise-sigma 0.1"
        assert run(shlex.split(f"{train} {plain} --out {start}")) == 0
    one, several = tmp_path / "one.safetensors", tmp_path / "several.safetensors"
    command = f"{train} --objective {objective} {network}{noise * (not own)}"
    assert run(shlex.split(f"{command} --out {one}")) == 0
    states, errors = together(f"{command} --out {several}", 2)
    assert states == [0, 0], errors
    # Sums in another order, in float32.
    assert losses_of(several) == pytest.approx(losses_of(one), rel=1e-3)


@pytest.mark.slow
def test_a_buffer_of_samples_is_of_one_process(tmp_path: Path) -> None:
    command = f"train classifier {COMMON} --width 4 --objective jem --noise-sigma 0.1"
    states, errors = together(f"{command} --out {tmp_path / 'w.safetensors'}", 2)
    assert states == [2, 2]
    assert all("jem keeps one buffer of samples and trains in one process" in error for error in errors)


@pytest.mark.slow
def test_a_shared_training_resumes_exactly(tmp_path: Path) -> None:
    command = f"{DENOISER} --dropout 0.5 --checkpoint-every 1e-9"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert together(f"{command} --out {tmp_path / 'a' / 'w.safetensors'}")[0] == [0, 0]
    # Stop after the third checkpoint, as a kill would, by taking all files from the process then.
    from diffproof.training import checkpoint

    original = checkpoint.Checkpoint.save

    def save(self: checkpoint.Checkpoint, done: list[float]) -> None:
        original(self, done)
        if len(done) == 3:
            os._exit(9)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "save", save)
        assert 9 in together(f"{command} --out {tmp_path / 'b' / 'w.safetensors'}")[0]
    assert len(load_nested(tmp_path / "b" / "w.checkpoint")["losses"]) == 3
    # One process cannot take over what two began.
    alone = run(shlex.split(f"{command} --out {tmp_path / 'b' / 'w.safetensors'}"))
    assert alone == 2
    assert together(f"{command} --out {tmp_path / 'b' / 'w.safetensors'}")[0] == [0, 0]
    first, second = (tmp_path / folder / "w.safetensors" for folder in "ab")
    assert first.with_suffix(".loss.csv").read_bytes() == second.with_suffix(".loss.csv").read_bytes()
    assert hash_tensors(load_weights(first).tensors) == hash_tensors(load_weights(second).tensors)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--batch-size 7", "--batch-size: expected a multiple of 2 processes, got 7"),
        ("--learning-rate 1e30", "training: the loss is "),
        ("--data digit", "--data: unknown name 'digit'; did you mean digits?"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path: Path, flags: str, message: str) -> None:
    states, errors = together(
        f"train classifier {COMMON} --width 4 --out {tmp_path / 'w.safetensors'} {flags}"
    )
    assert states == [2, 2]
    for error in errors:
        (line,) = error.splitlines()
        assert line.startswith(f"diffproof: error: {message}")
    assert list(tmp_path.iterdir()) == []
