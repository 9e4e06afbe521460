"""JEM against formulas of Gaussian mixtures, whose log-likelihood the logits can be."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm
from torch import Tensor, nn

import diffproof as dp
from diffproof.cli.main import run
from diffproof.training.objectives.base import Step
from diffproof.training.objectives.jem import Buffer, langevin
from diffproof.weights import load_weights
from helpers.training import losses_of

SHAPE, MEANS, WEIGHTS, VARIANCE = (1, 1, 2), ((0.3, 0.4), (0.6, 0.7)), (0.25, 0.75), 0.01


class Mixture(nn.Module):
    """Logits log w_y·N(x; μ_y + shift, v·I), so that logsumexp is log p(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.calls: list[tuple[int, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        """N×1×1×2 → N×2."""
        self.calls.append((len(images), self.training))
        means = torch.tensor(MEANS, dtype=torch.float64) + self.shift
        squares = (images.flatten(1)[:, None] - means).square().sum(2) / VARIANCE
        weights = torch.tensor(WEIGHTS, dtype=torch.float64).log()
        return weights - 0.5 * squares - math.log(2 * math.pi * VARIANCE)


def log_density(points: np.ndarray[Any, Any], shift: float = 0.0) -> np.ndarray[Any, Any]:
    """log p(x) of N×2 points, by scipy."""
    parts = [
        math.log(weight) + norm(np.array(mean) + shift, VARIANCE**0.5).logpdf(points).sum(1)
        for weight, mean in zip(WEIGHTS, MEANS, strict=True)
    ]
    found: np.ndarray[Any, Any] = logsumexp(parts, axis=0)
    return found


def drawn(count: int, seed: int) -> Tensor:
    """Images of the mixture."""
    generator = np.random.default_rng(seed)
    label = generator.choice(2, count, p=WEIGHTS)
    points = np.array(MEANS)[label] + VARIANCE**0.5 * generator.standard_normal((count, 2))
    return torch.as_tensor(points).reshape(count, *SHAPE)


def step_of(network: nn.Module, draws: int, count: int = 6) -> Step:
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn((count, draws, *SHAPE), dtype=torch.float64, generator=generator)
    uniform = torch.rand((count, draws), dtype=torch.float64, generator=generator)
    labels = torch.arange(count) % 2
    return Step(drawn(count, 4), labels, normal, uniform, 0.01, 0.0, network, network, lambda noisy: noisy)


def begun(network: nn.Module, **settings: Any) -> Any:
    return dp.load_objective("jem", **settings).begin(SHAPE, 0, network)


def test_the_loss_is_likelihood_by_contrast() -> None:
    network = Mixture().train()
    objective = begun(network, steps=1, step=1e-4, noise=0.02, buffer=50, restart=0.4, weight=0.7)
    step = step_of(network, objective.draws_at(0.01))
    before = objective.samples.images.clone()
    loss = objective.loss(step)

    # Langevin from the buffer or from uniform noise, by differences of scipy's density.
    normal, uniform = step.normal.numpy().reshape(6, -1, 2), step.uniform.numpy()
    place = (uniform[:, 0] * 50).astype(int)
    start = np.where(
        uniform[:, 1:2] < 0.4, norm.cdf(normal[:, 1]), before.numpy().reshape(50, 2)[place].astype(float)
    )
    assert 0 < (uniform[:, 1] < 0.4).sum() < 6
    sides = [
        (log_density(start + 1e-6 * unit) - log_density(start - 1e-6 * unit)) / 2e-6 for unit in np.eye(2)
    ]
    samples = start + 1e-4 * np.stack(sides, 1) + 0.02 * normal[:, 2]
    noisy = step.images.numpy().reshape(6, 2) + 0.01 * normal[:, 0]
    joint = network(torch.as_tensor(noisy).reshape(6, *SHAPE)).detach().numpy()
    entropy = -(joint - logsumexp(joint, axis=1, keepdims=True))[np.arange(6), step.labels.numpy()].mean()
    expected = entropy + 0.7 * (log_density(samples).mean() - log_density(noisy).mean())
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    # They are kept, and others are not touched.
    after = objective.samples.images.numpy().reshape(50, 2)
    for at, row in dict(zip(place, range(6), strict=True)).items():
        np.testing.assert_allclose(after[at], samples[row], rtol=1e-5)
    others = np.setdiff1d(np.arange(50), place)
    np.testing.assert_array_equal(after[others], before.numpy().reshape(50, 2)[others])
    # The search is in evaluation mode, the loss in that of the training.
    assert network.calls[0] == (6, False)
    assert (12, True) in network.calls


def test_its_gradient_is_that_of_the_likelihood() -> None:
    network, count = Mixture(), 4000
    objective = begun(network, steps=1, step=1e-9, noise=0.0, buffer=count, restart=0.0)
    objective.samples.images = drawn(count, 8)
    step = step_of(network, objective.draws_at(0.01), count)
    # Data a little to the right of the model, without noise; samples of the model itself.
    step = replace(step, images=drawn(count, 9) + 0.03, sigma=0.0, uniform=torch.rand(count, 3))
    step.uniform[:, 0] = (torch.arange(count) + 0.5) / count
    logits = network(step.images)
    entropy = nn.functional.cross_entropy(logits, step.labels)
    (found,) = torch.autograd.grad(objective.loss(step) - entropy, network.shift)
    points = step.images.numpy().reshape(count, 2)
    slope = -(log_density(points, 1e-6).mean() - log_density(points, -1e-6).mean()) / 2e-6
    # The model's own mean score is 0, that of 4,000 samples up to 1/√(v·2000): five of these.
    assert float(found) == pytest.approx(slope, abs=5 / (VARIANCE * 2000) ** 0.5)
    assert abs(slope) > 4


def test_langevin_keeps_its_law() -> None:
    # Of N(0, v) an unadjusted step is an autoregression: its deviation is known.
    generator = torch.Generator().manual_seed(1)
    start = torch.zeros(3000, 1, 1, 1, dtype=torch.float64)
    normal = torch.randn(3000, 60, 1, 1, 1, dtype=torch.float64, generator=generator)
    found = langevin(
        lambda x: -0.5 * x.square().flatten(1).sum(1) / 0.04, start, normal, size=0.01, noise=0.1
    )
    expected = 0.1 / math.sqrt(1 - (1 - 0.01 / 0.04) ** 2)
    # Standard error of a deviation of 3,000: 1.3%; five of them.
    assert float(found.std()) == pytest.approx(expected, rel=0.065)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^objective: jem needs a network that answers an image"):
        begun(dp.load_classifier("digits"))
    network = Mixture()
    objective = begun(network, steps=1, buffer=5)
    step = step_of(network, 3)
    with pytest.raises(ValueError, match=r"^training: jem diverged, its loss is [^\n]*; lower the learning"):
        objective.loss(replace(step, images=step.images * 1e6))
    assert objective.parts()["buffer"] is objective.samples
    assert "samples" not in objective.describe()
    assert bool(((Buffer(20, SHAPE, 1).images >= 0) & (Buffer(20, SHAPE, 1).images < 1)).all())


COMMON = "--data digits --limit 60 --width 4 --batch-size 6 --noise-sigma 0.015"
JEM = "--objective jem:steps=2,buffer=20 --learning-rate 0.001"


@pytest.mark.slow
def test_the_command_trains_one_that_loads_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole.safetensors", tmp_path / "w.safetensors"
    words = f"train classifier {COMMON} {JEM} --iterations 6 --checkpoint-every 1e-9"
    assert run(shlex.split(f"{words} --out {whole}")) == 0
    described = load_weights(whole).description
    assert described["batch_norm"] is False
    assert described["training"]["objective"].startswith("jem:weight=1")
    assert not any("running_mean" in name for name in dp.load_classifier(str(whole)).state_dict())

    from diffproof.training.objectives import jem

    calls, original = [], jem._Training.loss

    def stopped(self: Any, step: Step) -> Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise ZeroDivisionError("as a kill")
        loss: Tensor = original(self, step)
        return loss

    monkeypatch.setattr(jem._Training, "loss", stopped)
    with pytest.raises(ZeroDivisionError):
        run(shlex.split(f"{words} --out {out}"))
    assert (tmp_path / "w.checkpoint").exists()
    assert run(shlex.split(f"{words} --out {out}")) == 0
    assert len(calls) == 7
    assert losses_of(out) == losses_of(whole)
    for name, tensor in load_weights(whole).tensors.items():
        assert torch.equal(tensor, load_weights(out).tensors[name])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            f"{COMMON} --objective jem --classifier digits",
            "--objective: jem needs a network that answers an image by itself, got batch normalisation",
        ),
        (
            f"{COMMON} --objective jem:restart=2",
            "--objective: restart: expected a number in [0, 1], got '2' (of objective jem)",
        ),
        ("--data digits --objective jem", "--objective: needs --noise-sigma, above 0"),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    words = words.replace("--width 4 ", "") if "--classifier" in words else words
    assert run(shlex.split(f"train classifier {words} --out {tmp_path / 'w.safetensors'}")) == 2
    assert capsys.readouterr().err.startswith(f"diffproof: error: {message}")
    assert list(tmp_path.iterdir()) == []
