"""Training by the real commands: it learns, repeats itself to the bit, and fails cleanly."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.classifiers.saved import build_classifier
from diffproof.cli.main import run
from diffproof.data.images import ImageData
from diffproof.denoisers.saved import build_denoiser
from diffproof.pictures import save_picture
from diffproof.training.batches import Batch, Mixture
from diffproof.training.classifier import accuracy, describe_classifier, train_classifier
from diffproof.training.denoiser import (
    UNetSettings,
    denoising_errors,
    describe_denoiser,
    train_denoiser,
)
from diffproof.training.denoising.mse import MSE
from diffproof.training.loop import Progress, TrainSettings, fit
from diffproof.weights import hash_tensors, load_weights
from helpers.training import batch

DENOISER = "train denoiser --data digits --channels 8 --batch-size 16 --iterations 5"
CLASSIFIER = "train classifier --data digits --width 4 --batch-size 32 --iterations 10"
COMMANDS = pytest.mark.parametrize("command", [DENOISER, CLASSIFIER], ids=["denoiser", "classifier"])


def train(command: str, out: Path) -> int:
    return run([*shlex.split(command), "--out", str(out)])


# Five white images of one pixel.
ONES = ImageData("ones", "train", torch.ones(5, 1, 1, 1), torch.zeros(5, dtype=torch.int64), ["one"])


@pytest.mark.slow
@COMMANDS
def test_the_same_command_gives_the_same_bytes(tmp_path: Path, command: str) -> None:
    hashes: list[str] = []
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        # What else drew from torch's generator before must not matter.
        torch.rand(len(hashes) + 1)
        assert (
            train(command + (" --seed 1" if folder == "c" else ""), tmp_path / folder / "w.safetensors") == 0
        )
        hashes.append(hashlib.sha256((tmp_path / folder / "w.safetensors").read_bytes()).hexdigest())
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.slow
def test_dropout_follows_the_seed(tmp_path: Path) -> None:
    command = "train denoiser --data digits --channels 8,8 --iterations 3 --batch-size 8 --dropout 0.5"
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(7)
        assert train(f"{command} --seed {seed}", tmp_path / f"{name}.safetensors") == 0
        weights.append(hash_tensors(load_weights(tmp_path / f"{name}.safetensors").tensors))
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.slow
@COMMANDS
def test_training_leaves_the_global_generator_alone(tmp_path: Path, command: str) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert train(command, tmp_path / "w.safetensors") == 0
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.slow
@COMMANDS
def test_the_recorded_command_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    path = tmp_path / "my weights.safetensors"
    assert train(f"{command} --seed 7", path) == 0
    description = load_weights(path).description
    assert description["training"]["seed"] == 7
    words = shlex.split(description["training"]["command"])
    assert words[0] == "diffproof"
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    assert run(words[1:]) == 0
    assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


@COMMANDS
def test_a_loss_that_blows_up_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert train(f"{command} --learning-rate 1e30", tmp_path / "w.safetensors") == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("diffproof: error:")]
    assert len(errors) == 1
    assert lines[-1] == errors[0]
    assert "training: the loss is nan at iteration" in errors[0] or "the loss is inf" in errors[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@COMMANDS
def test_nothing_is_overwritten_without_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = tmp_path / "w.safetensors"
    path.write_text("precious")
    assert train(command, path) == 2
    assert capsys.readouterr().err == f"diffproof: error: --out: {path} exists; --force overwrites it\n"
    assert path.read_text() == "precious"
    assert train(f"{command} --force", path) == 0
    assert load_weights(path).tensors


@pytest.mark.slow
def test_the_denoiser_command_learns(tmp_path: Path, denoiser: Path) -> None:
    assert train(DENOISER.replace("iterations 5", "iterations 1"), tmp_path / "w.safetensors") == 0
    before, after = (
        load_weights(path).description["training"]["test"] for path in (tmp_path / "w.safetensors", denoiser)
    )
    assert set(before) == set(after) == {f"rms_error_at_{sigma}" for sigma in ("0.1", "0.25", "0.5", "1")}
    for name, error in after.items():
        assert error < 0.9 * before[name]


@pytest.mark.slow
def test_the_recorded_errors_are_those_of_the_network(denoiser: Path) -> None:
    recorded = load_weights(denoiser).description["training"]["test"]
    model = dp.load_denoiser(str(denoiser))
    images = dp.load_data("digits", split="test").images
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(99))
    for sigma in (0.1, 0.25, 0.5, 1.0):
        error = float((model(images + sigma * noise, sigma) - images).detach().square().mean().sqrt())
        # Other noise than the recorded error's: 33,000 pixels agree to a few percent.
        assert error == pytest.approx(recorded[f"rms_error_at_{sigma:g}"], rel=0.05)


@pytest.mark.slow
def test_a_schedule_too_short_for_the_reported_sigmas_still_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.safetensors"
    assert train(f"{DENOISER} --schedule linear --timesteps 100", path) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"written: {path}"
    assert shown[1].startswith("root-mean-square error on 514 test images: ")
    largest = dp.load_denoiser(str(path)).sigma_max
    assert largest < 1.0
    names = load_weights(path).description["training"]["test"]
    assert all(float(name.removeprefix("rms_error_at_")) <= largest for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_losses_go_down(precision: str) -> None:
    data = dp.load_data("digits", split="train")
    losses: dict[str, list[float]] = {"classifier": [], "denoiser": []}
    settings = TrainSettings(60, batch_size=64, learning_rate=0.005, precision=precision)
    trained = train_classifier(
        Mixture(data),
        describe_classifier(data, 8),
        settings,
        progress=Progress(lambda _, loss: losses["classifier"].append(loss)),
    )
    train_denoiser(
        Mixture(data),
        describe_denoiser(data, UNetSettings((8,)), "cosine", 1000),
        settings,
        progress=Progress(lambda _, loss: losses["denoiser"].append(loss)),
    )
    for name, curve in losses.items():
        assert len(curve) == 60
        assert sum(curve[-10:]) < 0.7 * sum(curve[:10]), name
    # Ten classes at random start near log 10, and unit noise guessed as about zero near 1.
    assert losses["classifier"][0] == pytest.approx(math.log(10), rel=0.25)
    assert losses["denoiser"][0] == pytest.approx(1.0, rel=0.5)
    assert accuracy(trained, data) > 0.5
    assert not trained.training
    assert {tensor.dtype for tensor in trained.network.state_dict().values()} <= {torch.float32, torch.int64}


def test_the_denoising_loss_against_ddpm() -> None:
    """The loss of Ho et al.'s algorithm 1, written out in √ᾱ coordinates with the same draws."""
    data = dp.load_data("digits", split="train")
    model = build_denoiser(describe_denoiser(data, UNetSettings((8,)), "linear", 1000))
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bars = torch.cumprod(1 - betas, 0)
    images, labels = data.images[:12], data.labels[:12]
    seen: list[tuple[Tensor, Tensor]] = []

    class Recorder(nn.Module):
        def forward(self, x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
            seen.append((x, timestep))
            assert torch.equal(label, labels)
            return torch.zeros_like(x)

    loss = MSE().loss_of_batches(model, None, 0.0)(
        Recorder(), batch(images, labels), torch.Generator().manual_seed(1)
    )
    x, timestep = seen[0]
    bar = bars[timestep].float().reshape(-1, 1, 1, 1)
    # x_t = √ᾱ·x_0 + √(1 − ᾱ)·ε with x_0 in [−1, 1]; a prediction of zero leaves the mean of ε².
    epsilon = (x - bar.sqrt() * (2 * images - 1)) / (1 - bar).sqrt()
    assert float(loss) == pytest.approx(float(epsilon.square().mean()), rel=1e-4)
    # 768 standard normal values: mean 0 ± 0.036, mean square 1 ± 0.051; five sigma, one false alarm in 10^6.
    assert abs(float(epsilon.mean())) < 5 * 0.036
    assert abs(float(loss) - 1) < 5 * 0.051


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_labels_are_dropped_at_the_asked_share(share: float) -> None:
    data = dp.load_data("digits", split="train")
    model = build_denoiser(describe_denoiser(data, UNetSettings((8,)), "cosine", 1000))
    given: list[Tensor] = []
    times: list[Tensor] = []

    class Recorder(nn.Module):
        def forward(self, x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
            given.append(label)
            times.append(timestep)
            return torch.zeros_like(x)

    whole = batch(data.images, data.labels)
    MSE().loss_of_batches(model, None, share)(Recorder(), whole, torch.Generator().manual_seed(2))
    dropped = given[0] == 10
    # 1,283 labels: standard deviation at most 0.0128; five sigma, one false alarm in 10^6.
    assert float(dropped.double().mean()) == pytest.approx(
        share, abs=5 * math.sqrt(share * (1 - share) / 1283)
    )
    assert torch.equal(given[0][~dropped], data.labels[~dropped])
    assert int(times[0].min()) >= 0
    assert int(times[0].max()) <= 999
    # Uniform on 0 … 999: mean 499.5, standard error 8.06.
    assert abs(float(times[0].double().mean()) - 499.5) < 5 * 8.06


def test_denoising_errors_of_a_perfect_denoiser_are_its_noise() -> None:
    data = dp.load_data("digits", split="test")

    class Lazy(dp.NetworkDenoiser):
        def forward(self, noisy: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> Tensor:
            return noisy

    model = build_denoiser(describe_denoiser(data, UNetSettings((8,)), "cosine", 1000))
    lazy = Lazy(model.network, model.schedule)
    # 32,896 pixels: a relative standard error of 0.0039.
    for sigma, error in zip((0.1, 1.0), denoising_errors(lazy, data, (0.1, 1.0), 4), strict=True):
        assert error == pytest.approx(sigma, rel=5 * 0.0039)


@pytest.mark.parametrize(("side", "sizes"), [(8, [256, 4]), (64, [64, 64, 64, 64, 4]), (600, [1, 1])])
def test_of_large_images_few_are_measured_on_at_once(side: int, sizes: list[int]) -> None:
    count, seen = sum(sizes), list[int]()
    # Every image is the same picture: it takes no memory.
    images = torch.rand(1, 1, side, side).expand(count, 1, side, side)
    data = ImageData("own", "test", images, torch.arange(count) % 2, ["a", "b"])

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.share = nn.Parameter(torch.ones(2))

        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return self.share.expand(len(images), 2) + images.mean((1, 2, 3))[:, None]

    # Class 0 wins ties, and is every other image's.
    assert accuracy(Two(), data) == 0.5
    assert seen == sizes


def test_weights_kept_are_the_moving_average() -> None:
    """One parameter and a fixed gradient: AdamW, the clipping and the average by hand."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 3.0)
    states: list[float] = []

    def loss_of_batch(module: nn.Module, step: Batch, _: torch.Generator) -> Tensor:
        assert module.training
        states.append(float(network.weight.detach()))
        result: Tensor = module(step.images).mean()
        return result

    settings = TrainSettings(40, batch_size=4, learning_rate=0.1, ema_decay=0.5)
    kept = fit(network, Mixture(ONES), loss_of_batch, settings)
    states.append(float(network.weight.detach()))
    # The first update copies; decay min(0.5, (1 + updates)/(10 + updates)) after that.
    mean = states[1]
    for updates, state in enumerate(states[2:], start=1):
        decay = min(0.5, (1 + updates) / (10 + updates))
        mean = decay * mean + (1 - decay) * state
    assert float(next(kept.parameters()).detach()) == pytest.approx(mean, rel=1e-5)
    assert not kept.training
    # Cosine from the peak to zero: Adam's steps of a constant gradient are the learning rate itself.
    steps = [a - b for a, b in itertools.pairwise(states)]
    for i, step in enumerate(steps):
        rate = 0.1 * 0.5 * (1 + math.cos(math.pi * i / 40))
        assert step == pytest.approx(rate * (1 + 0.01 * states[i]), rel=1e-3, abs=1e-6)


def test_normalisation_is_that_of_the_training_images() -> None:
    data = dp.load_data("digits", split="train")
    description = describe_classifier(data, 4)
    classifier = build_classifier(description)
    normalised = (data.images - classifier.mean) / classifier.std
    assert float(normalised.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(normalised.std()) == pytest.approx(1.0, abs=1e-4)
    assert description["num_classes"] == 10
    assert description["image_shape"] == [1, 8, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations: expected an integer ≥ 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected an integer ≥ 1, got 0"),
        ({"learning_rate": 0.0}, r"learning_rate: expected a number in \[1e-12, 1e\+37\], got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a number in .*, got nan"),
        ({"learning_rate": 1e300}, r"learning_rate: expected a number in .*, got 1e\+300"),
        ({"learning_rate": 1e-300}, "learning_rate: expected a number in .*, got 1e-300"),
        ({"ema_decay": 1.0}, r"ema_decay: expected a number in \(0, 1\), got 1.0"),
        ({"seed": -1}, "seed: expected an integer ≥ 0, got -1"),
        ({"precision": "float16"}, "precision: unknown name 'float16'; did you mean bfloat16 or float32?"),
    ],
)
def test_settings_out_of_range(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", "[?]")):
        TrainSettings(**{"iterations": 10, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--channels 8,9", "--channels: expected multiples of 8 up to 8,192, got [8, 9]"),
        ("--channels 0", "--channels: expected multiples of 8 up to 8,192, got [0]"),
        ("--channels 1000000", "--channels: expected multiples of 8 up to 8,192, got [1000000]"),
        (
            "--channels 8,8,8,8,8",
            "--channels: 5 resolutions and patch 1 need images of k·16 square pixels, got 8×8",
        ),
        ("--channels 8;8", "--channels: expected numbers with commas between, got '8;8'"),
        ("--channels ''", "--channels: expected numbers with commas between, got ''"),
        ("--layers 0", "--layers: expected an integer ≥ 1, got 0"),
        ("--dropout 1.5", "--dropout: expected a number in [0, 1), got 1.5"),
        (
            "--schedule cosin",
            "--schedule: expected one of cosine, linear, scaled_linear, got 'cosin'; did you mean cosine?",
        ),
        ("--timesteps 0", "--timesteps: expected an integer ≥ 1, got 0"),
        ("--label-dropout 1.1", "--label-dropout: expected a number in [0, 1], got 1.1"),
        ("--iterations 0", "--iterations: expected an integer ≥ 1, got 0"),
        ("--batch-size 0", "--batch-size: expected an integer ≥ 1, got 0"),
        ("--learning-rate 0", "--learning-rate: expected a number in [1e-12, 1e+37], got 0.0"),
        ("--seed -1", "--seed: expected an integer ≥ 0, got -1"),
        ("--data digit", "--data: unknown name 'digit'; did you mean digits?"),
        ("--precision half", "--precision: expected one of float32, bfloat16, got 'half'"),
        ("--patch 0", "--patch: expected an integer ≥ 1, got 0"),
        ("--patch 3", "--patch: 1 resolution and patch 3 need images of k·3 square pixels, got 8×8"),
        ("--device cuda", "--device: there is no CUDA device, got 'cuda'; cpu and auto always work"),
        ("--checkpoint-every 0", "--checkpoint-every: expected a finite number > 0, got 0.0"),
        ("--split validation", "--split: unknown name 'validation'; known: test, train"),
        ("--indices 0:2000", "--indices: the data has 1283 images (0 to 1282), got '0:2000'"),
        ("--limit 0", "--limit: expected an integer ≥ 1, got 0"),
        ("--image-size 16", "--image-size: digits is read as it is, expected none, got 16"),
        ("--extra-data nothing.npz", "--extra-data: no such file: nothing.npz"),
        ("--extra-data digits --extra-share 1", "--extra-share: expected a number in (0, 1), got 1.0"),
        ("--test-data nothing.npz", "--test-data: no such file: nothing.npz"),
        ("--ema-decay 1", "--ema-decay: expected a number in (0, 1), got 1.0"),
        ("--out w.bin", "--out: expected a .safetensors file, got w.bin"),
        ("--out none/w.safetensors", "--out: no such folder: none"),
    ],
)
def test_bad_flags_of_the_denoiser_end_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(shlex.split(f"{DENOISER} --out w.safetensors {flags}")) == 2
    captured = capsys.readouterr()
    assert captured.err == f"diffproof: error: {message}\n"
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("classes", "flags", "message"),
    [
        ("cat", "", "--data: expected several classes, got 'cat' alone; own: 1 picture in 1 class folder"),
        (
            "cat dog",
            "--test-data digits",
            "--test-data: has the class '0'; expected one of that name in own, got none",
        ),
    ],
)
def test_classes_that_no_classifier_can_have(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    classes: str,
    flags: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in classes.split():
        (tmp_path / "own" / name).mkdir(parents=True)
        save_picture(tmp_path / "own" / name / "0.png", torch.zeros(1, 8, 8))
    assert run(shlex.split(f"train classifier --data own --iterations 1 --out w.safetensors {flags}")) == 2
    assert f"diffproof: error: {message}\n" in capsys.readouterr().err
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--width 0", "--width: expected an integer ≥ 1, got 0"),
        ("--iterations -5", "--iterations: expected an integer ≥ 1, got -5"),
        ("--data mnist", "--data: unknown name 'mnist'; known: cifar10, cifar100, digits, imagenet"),
        ("--noise-sigma -1", "--noise-sigma: expected a number in [0, 1e+30], got -1.0"),
        ("--noise-sigma inf", "--noise-sigma: expected a number in [0, 1e+30], got inf"),
        (
            "--noise-sigma 1e30",
            "training: the weights are not finite; lower the learning rate or the noise",
        ),
        (
            "--learning-rate 1e38",
            "--learning-rate: expected a number in [1e-12, 1e+37], got 1e+38",
        ),
        ("--noise-sigma 1e300", "--noise-sigma: expected a number in [0, 1e+30], got 1e+300"),
        (f"--width {2**63 - 1}", f"--width: expected at most 100000000, got {2**63 - 1}"),
        ("--out /proc/w.safetensors", "--out: cannot write /proc/w.safetensors: No such file or directory"),
        ("--out link.safetensors", "--out: link.safetensors is a link that leads to no file"),
        (
            f"--out {'x' * 240}.safetensors",
            f"--out: cannot write {'x' * 240}.safetensors: File name too long",
        ),
        (
            f"--out {'x' * 250}.safetensors",
            f"--out: cannot write {'x' * 250}.safetensors: File name too long",
        ),
        ("--out .", "--out: expected a .safetensors file, got ."),
    ],
)
def test_bad_flags_of_the_classifier_end_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    link = tmp_path / "link.safetensors"
    link.symlink_to("missing/w.safetensors")
    assert run(shlex.split(f"{CLASSIFIER} --out w.safetensors {flags}")) == 2
    assert capsys.readouterr().err == f"diffproof: error: {message}\n"
    assert list(tmp_path.iterdir()) == [link]


@pytest.mark.slow
def test_a_schedule_without_the_levels_to_measure_at_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(shlex.split(f"{DENOISER} --iterations 1 --timesteps 1 --out {tmp_path / 'w.safetensors'}")) == 0
    )
    assert capsys.readouterr().out.splitlines()[-1] == (
        "root-mean-square error on 514 test images: none at sigma = 0.1, 0.25, 0.5, 1, off the schedule"
    )


def test_label_dropout_is_checked_in_the_library_too() -> None:
    data = dp.load_data("digits", split="train")
    description = describe_denoiser(data, UNetSettings((8,)), "cosine", 1000)
    with pytest.raises(ValueError, match=r"label_dropout: expected a number in \[0, 1\], got -0.1"):
        train_denoiser(Mixture(data), description, TrainSettings(1), label_dropout=-0.1)


@pytest.mark.slow
def test_a_trained_network_is_the_saved_one(tmp_path: Path) -> None:
    data = dp.load_data("digits", split="train")
    trained = train_classifier(Mixture(data), describe_classifier(data, 4), TrainSettings(10, 32, 0.002))
    assert train(CLASSIFIER, tmp_path / "w.safetensors") == 0
    saved = load_weights(tmp_path / "w.safetensors").tensors
    assert hash_tensors(saved) == hash_tensors(trained.network.state_dict())


FLAGS = (
    "--split test --indices 0:400:2 --limit 150 --flip --half --batch-size 8 --iterations 3 --ema-decay 0.9"
    " --learning-rate 0.01 --precision bfloat16 --seed 5 --test-data TEST.npz"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "train denoiser --data digits --channels 8,16 --layers 2 --patch 2 --attention --dropout 0.1"
        " --schedule linear --timesteps 50 --label-dropout 0.2 --extra-data digits --extra-share 0.25",
        "train classifier --data digits --width 4 --noise-sigma 0.5",
    ],
    ids=["denoiser", "classifier"],
)
def test_every_flag_is_recorded_and_repeats_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    test = dp.load_data("digits", indices="0:20")
    np.savez(tmp_path / "TEST.npz", images=test.images[:, 0].numpy(), labels=test.labels.numpy())
    flags = FLAGS.replace("TEST", str(tmp_path / "TEST"))
    assert train(f"{command} {flags}", tmp_path / "w.safetensors") == 0
    assert "20 " in capsys.readouterr().out
    weights = load_weights(tmp_path / "w.safetensors")
    recorded = weights.description["training"]["command"]
    for flag in re.findall("--[a-z-]+", f"{command} {flags}"):
        assert f"{flag} " in f"{recorded} "
    assert {t.dtype for t in weights.tensors.values() if t.is_floating_point()} == {torch.float16}
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    assert run(shlex.split(recorded)[1:]) == 0
    assert Path("w.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()
    assert Path("w.loss.csv").read_bytes() == (tmp_path / "w.loss.csv").read_bytes()
    load = dp.load_denoiser if "denoiser" in command else dp.load_classifier
    loaded: dp.Denoiser | dp.Classifier = load("w.safetensors")
    assert loaded.image_shape == (1, 8, 8)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


@pytest.mark.slow
def test_what_lies_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fewer levels than a sample has steps by itself.
    monkeypatch.setattr("diffproof.training.sheets._STEPS", 50)
    assert train(f"{DENOISER} --timesteps 10", tmp_path / "my.weights.safetensors") == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"my.weights.{end}" for end in ("safetensors", "samples.png", "loss.csv", "loss.png")}
    header, *lines = (tmp_path / "my.weights.loss.csv").read_text().splitlines()
    assert header == "iteration,loss"
    assert [int(line.split(",")[0]) for line in lines] == [1, 2, 3, 4, 5]
    assert all(0.1 < float(line.split(",")[1]) < 10 for line in lines)
    from PIL import Image

    sheet = np.array(Image.open(tmp_path / "my.weights.samples.png").convert("RGB"))
    # Eleven rows (ten classes and no label) of eight, each of 8·8 pixels in a white frame of one.
    assert sheet.shape == (11 * 66, 8 * 66, 3)
    assert (sheet[0] == 255).all()
    tiles = sheet.reshape(11, 66, 8, 66, 3)[:, 1:-1, :, 1:-1].swapaxes(1, 2)
    assert tiles.std((2, 3, 4)).min() > 10
    # Each sample is another one.
    assert len(np.unique(tiles.reshape(88, -1), axis=0)) == 88


@pytest.mark.parametrize("attention", [False, True])
def test_patches_are_channels_of_the_inner_network(attention: bool) -> None:
    data = dp.load_data("digits")
    description = describe_denoiser(data, UNetSettings((8, 16), patch=2, attention=attention), "cosine", 50)
    torch.manual_seed(0)
    denoiser = build_denoiser(description).eval()
    assert denoiser.image_shape == (1, 8, 8)
    unet: Any = denoiser.network.unet
    assert (unet.config.in_channels, unet.config.sample_size) == (4, 4)
    assert any("attentions" in name for name, _ in unet.named_parameters()) == attention
    x = torch.randn(3, 1, 8, 8)
    time, label = torch.tensor([3, 30, 49]), torch.tensor([0, 10, 4])
    # Channel 2i + j holds the pixels of row i and column j of every square of 2 × 2.
    inner = torch.stack([x[:, 0, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
    with torch.no_grad():
        output = unet(inner, time, class_labels=label, return_dict=False)[0]
        expected = torch.empty_like(x)
        for channel, (i, j) in enumerate(itertools.product((0, 1), (0, 1))):
            expected[:, 0, i::2, j::2] = output[:, channel]
        assert torch.equal(denoiser.network(x, time, label), expected)


@pytest.mark.parametrize("sigma", [0.0, 0.25, 2.0])
def test_the_classifier_sees_noise_of_the_asked_sigma(sigma: float) -> None:
    zeros = ImageData("zeros", "train", torch.zeros(4, 1, 16, 16), torch.arange(4), list("abcd"))
    description = describe_classifier(dp.load_data("digits"), 4)
    description |= {"num_classes": 4, "class_names": list("abcd")}
    description |= {"image_shape": [1, 16, 16], "mean": [0.0], "std": [1.0]}
    seen: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training and inputs[0].shape[1:] == (1, 16, 16):
            seen.append(inputs[0].detach())

    hook = nn.modules.module.register_module_forward_pre_hook(record)
    try:
        train_classifier(Mixture(zeros), description, TrainSettings(2, 64), noise_sigma=sigma)
    finally:
        hook.remove()
    noise = torch.cat(seen[:1] + seen[-1:])
    # 32,768 or more values: relative standard error of their deviation below 0.004, of the mean 0.0056.
    assert float(noise.std()) == pytest.approx(sigma, rel=5 * 0.004)
    assert abs(float(noise.mean())) <= 5 * 0.0056 * sigma
    if sigma:
        assert not torch.equal(seen[0], seen[-1])


# Mixtures


def numbered(name: str, count: int, classes: int = 3) -> ImageData:
    """Images of 1×1×2 pixels: the left one their number, the right one zero."""
    images = torch.zeros(count, 1, 1, 2)
    images[:, 0, 0, 0] = (torch.arange(count) + 1) / count
    return ImageData(name, "train", images, torch.arange(count) % classes, list("abc")[:classes])


def test_a_mixture_draws_each_source_at_its_share() -> None:
    one, other = numbered("one", 6), numbered("other", 9)
    drawn = Mixture(one, other, extra_share=0.3, flip=True).draw(
        20_000, torch.arange(20_000), torch.device("cpu"), torch.Generator().manual_seed(0)
    )
    assert set(drawn.sources.tolist()) == {0, 1}
    # Standard errors √(p(1 − p)/n); five of them, one false alarm in 10^6 each.
    assert float(drawn.sources.double().mean()) == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 20_000))
    mirrored = drawn.images[:, 0, 0, 0] == 0
    assert float(mirrored.double().mean()) == pytest.approx(0.5, abs=5 * math.sqrt(0.25 / 20_000))
    for source, data in enumerate((one, other)):
        count = len(data)
        here = drawn.sources == source
        # Image and label belong together, and each image comes equally often.
        number = (drawn.images[here].sum((1, 2, 3)) * count).round().long() - 1
        assert torch.equal(drawn.labels[here], data.labels[number])
        shares = torch.bincount(number, minlength=count) / int(here.sum())
        error = math.sqrt((1 / count) * (1 - 1 / count) / int(here.sum()))
        assert float((shares - 1 / count).abs().max()) < 6 * error


def test_rows_of_a_step_are_those_of_the_whole_step() -> None:
    mixture = Mixture(numbered("one", 6), numbered("other", 9), flip=True)

    def draw(rows: Tensor) -> tuple[Batch, Tensor]:
        generator = torch.Generator().manual_seed(3)
        return mixture.draw(40, rows, torch.device("cpu"), generator), torch.rand(2, generator=generator)

    whole, after = draw(torch.arange(40))
    for rows in (torch.arange(0, 40, 2), torch.arange(1, 40, 2), torch.tensor([7])):
        part, after_part = draw(rows)
        for name in ("images", "labels", "sources"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows])
        assert torch.equal(after, after_part)
        assert torch.equal(part.mine(torch.arange(40)), rows)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (numbered("other", 9, classes=2), "extra_data: other and one do not have the same classes"),
        (
            ImageData("other", "train", torch.zeros(3, 1, 2, 2), torch.arange(3), list("abc")),
            r"extra_data: expected images \(1, 1, 2\) as in one, got \(1, 2, 2\)",
        ),
    ],
)
def test_mixtures_that_do_not_fit(extra: ImageData, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(numbered("one", 6), extra)


def test_images_of_the_second_source_have_labels_of_their_own() -> None:
    data = dp.load_data("digits", indices="0:8")
    model = build_denoiser(describe_denoiser(data, UNetSettings((8,)), "cosine", 50))
    given: list[Tensor] = []

    class Recorder(nn.Module):
        def forward(self, x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
            given.append(label)
            return torch.zeros_like(x)

    sources = torch.tensor([0, 1] * 4)
    step = Batch(data.images, data.labels, sources, 8, torch.arange(8))
    for share, labels in ((0.0, data.labels), (1.0, torch.full((8,), 10))):
        MSE().loss_of_batches(model, None, share)(Recorder(), step, torch.Generator().manual_seed(0))
        assert torch.equal(given[-1], labels + 11 * sources)


def test_only_embeddings_of_the_first_source_are_kept() -> None:
    data = dp.load_data("digits", default_split="train")
    description = describe_denoiser(data, UNetSettings((8,)), "cosine", 50)
    settings = TrainSettings(4, batch_size=8, learning_rate=0.01)
    # The second set is so rare that none of its images is drawn.
    mixed = train_denoiser(Mixture(data, data, extra_share=1e-9), description, settings)
    embedding = mixed.network.state_dict()["unet.class_embedding.weight"]
    assert embedding.shape[0] == 11
    assert (mixed.num_classes, mixed.null_label) == (10, 10)
    # What is kept is what learned: AdamW moved every row that was drawn.
    torch.manual_seed(settings.seed)
    build_denoiser(description)
    doubled = {**description, "network": {**description["network"], "num_class_embeds": 22}}
    start = build_denoiser(doubled).network.state_dict()["unet.class_embedding.weight"]
    moved = (embedding - start[:11]).abs().amax(1)
    assert float(moved.max()) > 1e-3
    assert float((embedding - start[11:]).abs().amax(1).min()) > 0.1


@pytest.mark.slow
def test_a_denoiser_of_pictures_without_class_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flat").mkdir()
    for i, image in enumerate(dp.load_data("digits", indices="0:4").images):
        save_picture(tmp_path / "flat" / f"{i}.png", image)
    out = tmp_path / "denoiser.safetensors"
    flags = f"--data {tmp_path / 'flat'} --channels 8 --iterations 2 --batch-size 4"
    assert run(["train", "denoiser", *flags.split(), "--out", str(out)]) == 0
    told = capsys.readouterr().err
    assert told.startswith(f"data: {tmp_path / 'flat'}: 4 pictures, no class folders\n")
    trained = dp.load_denoiser(str(out))
    assert (trained.num_classes, trained.image_shape) == (None, (1, 8, 8))
    assert torch.isfinite(trained(torch.rand(2, 1, 8, 8), 0.5)).all()
    for more, message in (
        (["--multi-head"], "--multi-head: needs classes, but flat has none"),
        (["--label-dropout", "0.2"], "--label-dropout: needs classes, but flat has none"),
        (["--extra-data", str(tmp_path / "flat")], "--extra-data: needs classes, but flat has none"),
    ):
        assert run(["train", "denoiser", *flags.split(), *more, "--force", "--out", str(out)]) == 2
        assert capsys.readouterr().err == f"diffproof: error: {message}\n"
    flags = flags.replace("--channels 8 ", "--force ")
    assert run(["train", "classifier", *flags.split(), "--out", str(out)]) == 2
    assert "expected class folders in" in capsys.readouterr().err
