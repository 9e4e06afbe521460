"""Trainings that are killed, interrupted, out of disk or not finite: they go on exactly, or say why not."""

from __future__ import annotations

import os
import random
import re
import resource
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.cli.main import run
from diffproof.data.images import ImageData
from diffproof.training import classifier as classifier_training
from diffproof.training import denoiser as denoiser_training
from diffproof.training.batches import Batch, Mixture
from diffproof.training.loop import Progress, TrainSettings, fit
from diffproof.weights import hash_tensors, load_nested, load_weights
from helpers.files import Trap
from helpers.processes import exit_status, forked, until

pytestmark = pytest.mark.usefixtures("small_digits")

# Tiny, with dropout's and noise's own random numbers; a checkpoint after every step.
COMMON = "--data digits --batch-size 4 --iterations 20 --checkpoint-every 1e-9 --flip"
TRAININGS = {
    "denoiser": f"train denoiser {COMMON} --channels 8 --dropout 0.5 --timesteps 5",
    "adbm": f"train denoiser {COMMON} --denoiser digits --classifier digits --objective adbm:steps=1",
    "multi-head": f"train denoiser {COMMON} --channels 8 --multi-head --patch 2 --timesteps 5",
    "classifier": f"train classifier {COMMON} --width 4 --noise-sigma 0.5",
    "cat-rs": f"train classifier {COMMON} --width 4 --noise-sigma 0.5 --objective cat-rs:draws=2,steps=1",
    "finetune": f"finetune {COMMON} --classifier digits --denoiser digits --sigma 0.5",
}
KINDS = pytest.mark.parametrize("kind", list(TRAININGS))


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The command lines, measuring on a few images only."""
    few = dp.load_data("digits", indices="0:20")
    path = tmp_path_factory.mktemp("data") / "few.npz"
    np.savez(path, images=few.images[:, 0].numpy(), labels=few.labels.numpy())
    return {kind: [*shlex.split(line), "--test-data", str(path)] for kind, line in TRAININGS.items()}


def outcome(out: Path) -> tuple[bytes, str]:
    """What a training is compared by: its losses as written, and its weights."""
    return out.with_suffix(".loss.csv").read_bytes(), hash_tensors(load_weights(out).tensors)


def written(path: Path) -> int:
    """When a file was last written, 0 if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def began(state: Path, out: Path, before: int) -> bool:
    """Whether a training has saved its state anew, or is done."""
    return written(state) != before or out.exists()


@pytest.mark.slow
@KINDS
def test_kills_do_not_change_losses_or_weights(
    tmp_path: Path, commands: dict[str, list[str]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(folder: str) -> int:
        (tmp_path / folder).mkdir(exist_ok=True)
        return forked(lambda: run([*commands[kind], "--out", str(tmp_path / folder / "w.safetensors")]))

    def slowly(data: Mixture, *given: Any) -> Batch:
        time.sleep(0.005)
        return draw(data, *given)

    # Steps of a tenth of a second in all: a kill finds a training at work, however fast the machine is.
    draw = Mixture.draw
    monkeypatch.setattr(Mixture, "draw", slowly)
    assert exit_status(start("whole")) == 0
    expected = outcome(tmp_path / "whole" / "w.safetensors")
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert len(expected[0].splitlines()) == 21

    source = random.Random(4)
    number = in_training = 0
    # A fresh folder where one training got to its end; the bound only guards against endless waiting.
    for _ in range(100):
        state, out = (tmp_path / str(number) / name for name in ("w.checkpoint", "w.safetensors"))
        before = written(state)
        pid = start(str(number))
        until(partial(began, state, out, before))
        time.sleep(source.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        exit_status(pid)
        done = len(load_nested(state)["losses"]) if state.exists() else 0
        in_training += 0 < done < 20
        if out.exists():
            assert outcome(out) == expected
            number += 1
        elif in_training >= 4:
            break
    assert in_training >= 4
    assert exit_status(start(str(number))) == 0
    assert outcome(tmp_path / str(number) / "w.safetensors") == expected
    assert {path.name for path in (tmp_path / str(number)).iterdir()} == names


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handling of Ctrl-C, which a process started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def at_step(
    monkeypatch: pytest.MonkeyPatch, kind: str, number: int, action: Callable[[], object]
) -> list[int]:
    """Do something in the middle of a step of `diffproof train`; the returned list grows with the steps."""
    calls: list[int] = []
    module: Any = {"denoiser": denoiser_training, "classifier": classifier_training}[kind]
    original = module.fit

    def counting(network: nn.Module, data: Any, loss_of_batch: Any, *rest: Any, **named: Any) -> nn.Module:
        def loss(*arguments: Any) -> Tensor:
            calls.append(len(calls) + 1)
            value: Tensor = loss_of_batch(*arguments)
            if len(calls) == number:
                done = action()
                value = value * done if isinstance(done, float) else value
            return value

        trained: nn.Module = original(network, data, loss, *rest, **named)
        return trained

    monkeypatch.setattr(module, "fit", counting)
    return calls


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("kind", "number"),
    [("denoiser", signal.SIGINT), ("classifier", signal.SIGINT), ("classifier", signal.SIGTERM)],
)
def test_an_interrupt_saves_says_so_and_continues(
    tmp_path: Path,
    commands: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    number: signal.Signals,
) -> None:
    # No checkpoint on the way: what is kept is what the interrupt itself saved, in the middle of a step.
    command = [*commands[kind], "--checkpoint-every", "999"]
    whole, out = tmp_path / "whole.safetensors", tmp_path / "w.safetensors"
    assert run([*command, "--out", str(whole)]) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        calls = at_step(patch, kind, 7, lambda: signal.raise_signal(number))
        assert run([*command, "--out", str(out)]) == 130
        assert len(calls) == 7
    captured = capsys.readouterr()
    assert captured.out == ""
    # The shell's ^C stands on a line of its own.
    assert captured.err.strip() == (
        "diffproof: interrupted; 7 of 20 iterations are saved; the same command continues"
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert {path.name for path in tmp_path.glob("w.*")} == {"w.checkpoint"}
    with monkeypatch.context() as patch:
        calls = at_step(patch, kind, 0, lambda: None)
        assert run([*command, "--out", str(out)]) == 0
        assert len(calls) == 13
    assert outcome(out) == outcome(whole)
    assert not (tmp_path / "w.checkpoint").exists()


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_acts_at_once(
    tmp_path: Path, commands: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(monkeypatch, "classifier", 7, twice)
    assert run([*commands["classifier"], "--out", str(tmp_path / "w.safetensors")]) == 130
    # The half-done step is not saved.
    assert len(load_nested(tmp_path / "w.checkpoint")["losses"]) == 6


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, commands: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.safetensors", tmp_path / "w.safetensors"
    assert run([*commands["classifier"], "--out", str(whole)]) == 0
    reader, writer = os.pipe()

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    def with_limit() -> int:
        at_step(monkeypatch, "classifier", 9, fill)
        return run([*commands["classifier"], "--out", str(out)])

    pid = forked(with_limit, writer)
    os.close(writer)
    with open(reader, encoding="utf-8") as stream:
        lines = stream.read().splitlines()
    assert exit_status(pid) == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"diffproof: error: checkpoint: cannot write {tmp_path / 'w.checkpoint'}: ")
    assert {path.name for path in tmp_path.glob("w.*")} == {"w.checkpoint"}
    assert len(load_nested(tmp_path / "w.checkpoint")["losses"]) == 8
    assert run([*commands["classifier"], "--out", str(out)]) == 0
    assert outcome(out) == outcome(whole)


@pytest.mark.slow
@pytest.mark.parametrize("every", ["1e-9", "999"])
def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(
    tmp_path: Path,
    commands: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    every: str,
) -> None:
    command = [*commands["denoiser"], "--checkpoint-every", every, "--out", str(tmp_path / "w.safetensors")]
    at_step(monkeypatch, "denoiser", 6, lambda: float("nan"))
    assert run(command) == 2
    kept = f"; the state after iteration 5 is kept in {tmp_path / 'w.checkpoint'}" if every == "1e-9" else ""
    assert capsys.readouterr().err == (
        f"diffproof: error: training: the loss is nan at iteration 6; lower the learning rate{kept}\n"
    )
    assert {path.name for path in tmp_path.iterdir()} == ({"w.checkpoint"} if kept else set())
    if kept:
        state = load_nested(tmp_path / "w.checkpoint")
        assert len(state["losses"]) == 5
        assert all(bool(torch.isfinite(tensor).all()) for tensor in state["network"].values())


# A checkpoint of the library's loop, one black image of one pixel.

BLACK, ONES = torch.zeros(40, 1, 1, 1), torch.zeros(40, dtype=torch.int64)
DARK = ImageData("dark", "train", BLACK, ONES, ["one"])
ONE_GREY = ImageData("dark", "train", BLACK.index_fill(0, torch.tensor(3), 0.5), ONES, ["one"])
FEW = ImageData("few", "train", BLACK[:3], ONES[:3], ["one"])
SETTINGS = TrainSettings(4, batch_size=2)


def train(
    path: Path,
    settings: TrainSettings = SETTINGS,
    *,
    flip: bool = False,
    sigma: float = 1.0,
    data: ImageData = DARK,
) -> None:
    def loss(network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        value: Tensor = network(batch.images).square().mean()
        return value

    torch.manual_seed(0)
    progress = Progress(checkpoint=path, checkpoint_every=1e-9)
    fit(
        nn.Linear(1, 1),
        Mixture(data, flip=flip),
        loss,
        settings,
        progress,
        identity={"net": {"sigma": sigma}},
    )


def test_the_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.checkpoint"
    train(path)
    before = path.read_bytes()
    expected = f"checkpoint: {path} is of another training: "
    both = "settings.batch_size (2, now 3); settings.seed (0, now 1); delete"
    for message, settings, changes in (
        ("settings.learning_rate (0.001, now 0.1); delete", TrainSettings(4, 2, 0.1), {}),
        (both, TrainSettings(4, 3, seed=1), {}),
        ("net.sigma (1.0, now 0.5); delete", SETTINGS, {"sigma": 0.5}),
        ("flip (False, now True); delete", SETTINGS, {"flip": True}),
        # Other pixels under the same name, with the same labels; one image of many.
        ("data.images; delete", SETTINGS, {"data": ONE_GREY}),
        ("data.images; data.labels; data.name (dark, now few); delete", SETTINGS, {"data": FEW}),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(expected + message)}"):
            train(path, settings, **changes)
        assert path.read_bytes() == before
    train(path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "bomb", "other", "misfit"])
def test_a_damaged_checkpoint_is_one_line(
    tmp_path: Path, commands: dict[str, list[str]], capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path, trap = tmp_path / "w.checkpoint", tmp_path / "executed"
    train(path)
    command = [*commands["classifier"], "--iterations", "2", "--out", str(tmp_path / "w.safetensors")]
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no checkpoint")
    elif kind == "bomb":
        torch.save(load_nested(path) | {"identity": Trap(trap)}, path)
    elif kind == "other":
        torch.save({"network": torch.zeros(2)}, path)
    assert run(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    expected = "is of another training" if kind == "misfit" else "is no checkpoint" if kind == "other" else ""
    assert line.startswith(f"diffproof: error: checkpoint: {path} {expected or 'is damaged'}")
    assert line.endswith("; delete it to start anew")
    assert not trap.exists()
    path.unlink()
    assert run(command) == 0
    assert not path.exists()
