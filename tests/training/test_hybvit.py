"""HybViT: its transformer and its loss against numpy, its file as a classifier and as a denoiser."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf, log_softmax, softmax

import diffproof as dp
from diffproof.classifiers.hybrid import HybridClassifier, HybridViT
from diffproof.cli.main import run
from diffproof.training.objectives.base import Step
from diffproof.weights import load_weights

Array = np.ndarray[Any, np.dtype[np.float64]]

SHAPE, CLASSES, WIDTH, HEADS = (2, 4, 6), 3, 8, 2
SIZE = {"patch": 2, "width": WIDTH, "depth": 2, "heads": HEADS}
TEXT = "hybvit:patch=2,width=8,depth=2,heads=2"


def classifier() -> HybridClassifier:
    torch.manual_seed(3)
    return HybridClassifier(HybridViT(SHAPE, CLASSES, **SIZE), CLASSES, SHAPE, SIZE).double()


def numpy_answers(network: HybridViT, images: Array, timestep: Array | None) -> Array:
    """What the transformer says, written anew."""
    w = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}

    def linear(name: str, given: Array) -> Array:
        answer: Array = given @ w[f"{name}.weight"].T + w[f"{name}.bias"]
        return answer

    def normal(name: str, given: Array) -> Array:
        centred = given - given.mean(-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        answer: Array = unit * w[f"{name}.weight"] + w[f"{name}.bias"]
        return answer

    def gelu(given: Array) -> Array:
        answer: Array = given * (1 + erf(given / 2**0.5)) / 2
        return answer

    places = [(row, column) for row in range(2) for column in range(3)]
    squares = [images[:, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].reshape(len(images), -1) for r, c in places]
    first = np.tile(w["token"], (len(images), 1))
    tokens = np.stack([first, *(linear("embed", one) for one in squares)], 1) + w["place"]
    if timestep is not None:
        angles = timestep[:, None] * 10_000.0 ** (-np.arange(WIDTH // 2) / (WIDTH // 2))
        waves = np.concatenate([np.sin(angles), np.cos(angles)], 1)
        tokens = tokens + linear("time.2", gelu(linear("time.0", waves)))[:, None]
    for i in range(SIZE["depth"]):
        parts = np.split(linear(f"blocks.{i}.mixed", normal(f"blocks.{i}.norm1", tokens)), 3, axis=2)
        heads = []
        for query, key, value in zip(*(np.split(part, HEADS, axis=2) for part in parts), strict=True):
            shares = softmax(query @ key.transpose(0, 2, 1) / (WIDTH / HEADS) ** 0.5, axis=2)
            heads.append(shares @ value)
        tokens = tokens + linear(f"blocks.{i}.out", np.concatenate(heads, 2))
        inner = gelu(linear(f"blocks.{i}.mlp.0", normal(f"blocks.{i}.norm2", tokens)))
        tokens = tokens + linear(f"blocks.{i}.mlp.2", inner)
    if timestep is None:
        return linear("classify.1", normal("classify.0", tokens[:, 0]))
    pixels, noise = linear("denoise.1", normal("denoise.0", tokens[:, 1:])), np.empty(images.shape)
    for at, (row, column) in enumerate(places):
        square = pixels[:, at].reshape(len(images), 2, 2, 2)
        noise[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = square
    return noise


def step_of(network: HybridClassifier, count: int = 5) -> Step:
    generator = torch.Generator().manual_seed(4)
    images = torch.rand((count, *SHAPE), dtype=torch.float64, generator=generator)
    normal = torch.randn((count, 1, *SHAPE), dtype=torch.float64, generator=generator)
    uniform = torch.rand((count, 1), dtype=torch.float64, generator=generator)
    labels = torch.arange(count) % CLASSES
    return Step(images, labels, normal, uniform, 0.0, 0.0, network, network, lambda noisy: noisy)


def test_the_loss_is_of_both_answers_of_one_transformer() -> None:
    network = classifier()
    step = step_of(network)
    objective = dp.load_objective(f"{TEXT},weight=7,label_smoothing=0.2").begin(SHAPE, 0, network)
    images, labels = step.images.numpy(), step.labels.numpy()
    steps = np.floor(step.uniform[:, 0].numpy() * 1000)
    # Nichol & Dhariwal 2021, eq. 17, with its cap.
    bar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    kept = np.cumprod(1 - np.minimum(1 - bar[1:] / bar[:-1], 0.999))[steps.astype(int)].reshape(-1, 1, 1, 1)
    assert isinstance(network.network, HybridViT)
    scores = log_softmax(numpy_answers(network.network, 2 * images - 1, None), axis=1)
    entropy = -(0.8 * scores[np.arange(5), labels] + 0.2 * scores.mean(1)).mean()
    epsilon = step.normal[:, 0].numpy()
    noisy = np.sqrt(kept) * (2 * images - 1) + np.sqrt(1 - kept) * epsilon
    error = abs(numpy_answers(network.network, noisy, steps) - epsilon).mean()
    found = float(objective.loss(step).detach())
    # Angles of timesteps are of float32.
    assert found == pytest.approx(entropy + 7 * error, rel=1e-5)
    assert float(error) > 0.1


def test_its_gradient_is_that_of_differences() -> None:
    network, generator = classifier(), torch.Generator().manual_seed(8)
    step, objective = step_of(network), dp.load_objective(TEXT).begin(SHAPE, 0, network)
    parameters = list(network.parameters())
    found = torch.autograd.grad(objective.loss(step), parameters)
    assert all(bool((one != 0).any()) for one in found)
    moves = [torch.randn(one.shape, dtype=torch.float64, generator=generator) for one in parameters]
    values = []
    with torch.no_grad():
        for size in (1e-6, -2e-6):
            for one, move in zip(parameters, moves, strict=True):
                one.add_(size * move)
            values.append(float(objective.loss(step)))
    slope = (values[0] - values[1]) / 2e-6
    expected = sum(float((one * move).sum()) for one, move in zip(found, moves, strict=True))
    assert slope == pytest.approx(expected, rel=1e-5)


def test_what_is_refused() -> None:
    network = classifier()
    with pytest.raises(ValueError, match=r"^objective: hybvit trains its own transformer, .*; got another"):
        dp.load_objective(TEXT).begin(SHAPE, 0, dp.load_classifier("digits"))
    with pytest.raises(ValueError, match=r"of patch=2,width=8,depth=2,heads=4; got .*,heads=2$"):
        dp.load_objective(TEXT.replace("heads=2", "heads=4")).begin(SHAPE, 0, network)
    for size, told in (
        ({"patch": 4}, r"^patch: expected a divisor of the image's sides, 4×6, got 4$"),
        ({"heads": 3}, r"^width: expected an even multiple of heads = 3, got 8$"),
        ({"heads": 16}, r"^width: expected an even multiple of heads = 16, got 8$"),
        ({"depth": 0}, r"^depth: expected an integer ≥ 1, got 0$"),
    ):
        with pytest.raises(ValueError, match=told):
            HybridViT(SHAPE, CLASSES, **SIZE | size)


SMALL = "train classifier --data digits --limit 40 --batch-size 4 --iterations 3"


@pytest.mark.slow
def test_one_file_is_a_classifier_and_a_denoiser(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, folder = tmp_path / "w.safetensors", tmp_path / "run"
    assert run(shlex.split(f"{SMALL} --objective {TEXT} --out {out}")) == 0
    model, denoiser = dp.load_classifier(str(out)), dp.load_denoiser(str(out))
    images, _ = dp.load_data("digits", split="test")
    images = images[:4]
    # As a denoiser it is asked at the trained level what the training asks it there.
    assert isinstance(denoiser, dp.NetworkDenoiser)
    assert denoiser.sigmas is not None
    at = 400
    sigma = float(denoiser.sigmas[at])
    noisy = images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    scaled = (2 * noisy - 1) / (1 + 4 * sigma**2) ** 0.5
    with torch.no_grad():
        noise = model(scaled, torch.full((4,), at))
        torch.testing.assert_close(denoiser(noisy, sigma), noisy - sigma * noise, rtol=1e-4, atol=1e-5)
    # Networks of other heads are other functions of the same tensors.
    assert "heads 2" in model.describe()
    assert "heads 2" in denoiser.describe()

    networks = f"--classifier {out} --denoiser {out}"
    line = f"certify --data digits --indices 0:2 {networks} --defense dds --sigma 0.25 --n0 5 --n 20"
    assert run(shlex.split(f"{line} --out {folder}")) == 0
    assert run(["verify", str(folder), "--trust"]) == 0
    # Trained further by another loss it is a classifier alone, by its own one both again.
    again, both = tmp_path / "again.safetensors", tmp_path / "both.safetensors"
    assert run(shlex.split(f"{SMALL} --noise-sigma 0.1 --classifier {out} --out {again}")) == 0
    assert run(shlex.split(f"{SMALL} --objective {TEXT} --classifier {again} --out {both}")) == 0
    assert dp.load_classifier(str(again)).num_classes == 10
    with pytest.raises(ValueError, match="expected a file of `diffproof train denoiser`"):
        dp.load_denoiser(str(again))
    assert dp.load_denoiser(str(both)).num_classes is None
    capsys.readouterr()
    line = f"train denoiser --data digits --denoiser {out} --out {tmp_path / 'd.safetensors'}"
    assert run(shlex.split(line)) == 2
    assert "expected a file of `diffproof train denoiser`, or openai:" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_without_batch_normalisation_stays_one(tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    jem = "--objective jem:steps=1,buffer=5 --noise-sigma 0.01"
    assert run(shlex.split(f"{SMALL} {jem} --width 4 --out {first}")) == 0
    assert run(shlex.split(f"{SMALL} {jem} --classifier {first} --out {second}")) == 0
    assert load_weights(second).description["batch_norm"] is False
    assert dp.load_classifier(str(second)).num_classes == 10


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (f"--objective {TEXT} --width 8", "--width: is a setting of --objective hybvit"),
        (
            f"--objective {TEXT} --noise-sigma 0.5",
            "--noise-sigma: is not for hybvit, which adds its own noise",
        ),
        (
            f"--objective {TEXT} --classifier digits",
            "--objective: hybvit trains its own transformer, of patch=2,width=8,depth=2,heads=2; got another",
        ),
        (
            "--objective hybvit:patch=3",
            "--objective: patch: expected a divisor of the image's sides, 8×8, got 3 (of objective hybvit)",
        ),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    assert run(shlex.split(f"{SMALL} {flags} --out {tmp_path / 'w.safetensors'}")) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"diffproof: error: {message}")
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
