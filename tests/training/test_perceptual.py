"""Perceptual adversarial training: features and Fast-LPA against a plain loop, and the command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.attacks.features import classified
from diffproof.cli.main import run
from diffproof.training.perceptual import PerceptualAdversary
from diffproof.weights import load_weights
from helpers.classifiers import linear_classifier
from helpers.training import batch, losses_of


class Net(nn.Module):
    """Two resolutions, and a mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Conv2d(1, 3, 3, padding=1).double()
        self.second = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Tanh()).double()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 3).double()
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        """N×1×6×6 → N×3."""
        self.modes.append(self.training)
        maps = self.second(torch.tanh(self.first(images)))
        logits: Tensor = 8 * self.head(self.pool(maps).flatten(1))
        return logits


def pictures() -> tuple[Tensor, Tensor]:
    images = torch.rand(8, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return images, Net()(images).argmax(1)


def numpy_features(net: Net, images: Tensor) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        first = net.first(images).numpy()
        second = net.second(torch.tanh(net.first(images))).numpy()
    parts = []
    for maps, places in ((first, 36), (second, 9)):
        norm = np.sqrt((maps**2).sum(1, keepdims=True)) + 1e-10
        parts.append((maps / norm / np.sqrt(places)).reshape(len(maps), -1))
    found: np.ndarray[Any, Any] = np.concatenate(parts, 1)
    return found


def test_features_are_the_last_map_of_each_resolution() -> None:
    net, (images, _) = Net(), pictures()
    logits, features = classified(net, images)
    torch.testing.assert_close(logits, net(images))
    np.testing.assert_allclose(features.detach().numpy(), numpy_features(net, images), rtol=1e-12)
    assert not net.first._forward_hooks
    # Each resolution has norm 1.
    np.testing.assert_allclose((features.detach() ** 2).sum(1).numpy(), 2.0, rtol=1e-9)
    # A packaged network: 8×8 and 4×4, 16 and 32 channels.
    digits = dp.load_data("digits", indices="0:2").images[:]
    assert classified(dp.load_classifier("digits"), digits)[1].shape == (2, 64 * 16 + 16 * 32)


def lpa_alone(net: Net, image: Tensor, label: int, normal: Tensor, budget: float, steps: int) -> Tensor:
    """One image, as the authors' code has it, gradients by differences."""

    def loss(point: Tensor, weight: float) -> float:
        logits = net(point[None])[0]
        others = torch.cat([logits[:label], logits[label + 1 :]]).max()
        distance = float(np.linalg.norm(numpy_features(net, point[None]) - numpy_features(net, image[None])))
        return float(-(others - logits[label]) + weight * max(0.0, distance - budget))

    perturbation = 0.01 * normal
    for k in range(steps):
        step, weight = budget * 0.1 ** (k / steps), 10 * 0.1 ** (1 - k / steps)
        slope = torch.zeros(36, dtype=torch.float64)
        for i, unit in enumerate(torch.eye(36, dtype=torch.float64).reshape(36, 1, 6, 6)):
            at = image + perturbation
            slope[i] = (loss(at + 1e-6 * unit, weight) - loss(at - 1e-6 * unit, weight)) / 2e-6
        unit = (slope / slope.norm()).reshape(1, 6, 6)
        at = image + perturbation
        change = numpy_features(net, at[None]) - numpy_features(net, (at - 0.1 * unit)[None])
        rate = np.linalg.norm(change) / 0.1
        perturbation = (at - unit * step / (rate + 1e-4)).clamp(0, 1) - image
    return image + perturbation


@pytest.mark.slow
def test_the_search_against_a_plain_loop() -> None:
    net, (images, labels) = Net().train(), pictures()
    labels = labels.clone()
    labels[2] = (labels[2] + 1) % 3
    normal = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    adversary = PerceptualAdversary(0.3, 3)
    found = adversary.search(net, net, batch(images, labels), normal, normal)
    assert not found.requires_grad
    assert set(net.modes) == {False}
    assert net.training
    assert all(one.grad is None for one in net.parameters())
    # Classified wrongly already.
    assert torch.equal(found[2], images[2])
    with torch.no_grad():
        for i in (0, 1, 3):
            alone = lpa_alone(net, images[i], int(labels[i]), normal[i], 0.3, 3)
            torch.testing.assert_close(found[i], alone, rtol=0, atol=1e-5)
    distances = np.linalg.norm(numpy_features(net, found) - numpy_features(net, images), axis=1)
    # Not projected, but drawn back.
    assert 0.1 < np.delete(distances, 2).max() < 0.6
    smoothed = PerceptualAdversary(label_smoothing=0.1).loss(net, batch(images, labels), found)
    expected = nn.functional.cross_entropy(net(found), labels, label_smoothing=0.1)
    assert float(smoothed.detach()) == pytest.approx(float(expected.detach()))


def test_networks_without_maps_are_refused() -> None:
    images, labels = torch.rand(1, 1, 3, 3).double(), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^network: expected one with maps of features, got one without"):
        classified(linear_classifier(), images)
    network = linear_classifier()
    with pytest.raises(ValueError, match=r"^adversarial: expected one with maps of features"):
        PerceptualAdversary().search(network, network, batch(images, labels), images, images)


FLAGS = "--data digits --limit 60 --width 4 --batch-size 8 --adversarial pat --inner-steps 2 --iterations 4"


@pytest.mark.slow
def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole.safetensors", tmp_path / "w.safetensors"
    words = f"train classifier {FLAGS} --checkpoint-every 1e-9"
    assert run(shlex.split(f"{words} --out {whole}")) == 0
    recorded = load_weights(whole).description["training"]
    robust = recorded["test"]["robust_accuracy"]
    assert (
        f"after 2 gradient steps within a distance of features of 0.5: {robust:.2%}"
        in capsys.readouterr().out
    )

    calls, original = [], PerceptualAdversary.loss

    def stopped(self: PerceptualAdversary, *given: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError("as a kill")
        return original(self, *given)

    monkeypatch.setattr(PerceptualAdversary, "loss", stopped)
    with pytest.raises(ZeroDivisionError):
        run(shlex.split(f"{words} --out {out}"))
    other = words.replace("--inner-steps 2", "--inner-steps 3")
    assert run(shlex.split(f"{other} --out {out}")) == 2
    assert "of another training: adversary.steps (2, now 3)" in capsys.readouterr().err
    assert run(shlex.split(f"{words} --out {out}")) == 0
    assert losses_of(out) == losses_of(whole)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--norm l2", "--norm: is not for --adversarial pat"),
        ("--inner-step-size 0.1", "--inner-step-size: is not for --adversarial pat"),
        ("--trades-weight 2", "--trades-weight: needs --adversarial trades"),
        ("--budget 0", "--budget: expected a finite number > 0, got 0.0"),
        ("--budget 1e300", "--budget: expected a number in (0, 1e+30], got 1e+300"),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    words = f"train classifier --data digits --adversarial pat {flags} --out {tmp_path / 'w.safetensors'}"
    assert run(shlex.split(words)) == 2
    assert capsys.readouterr().err == f"diffproof: error: {message}\n"
    assert list(tmp_path.iterdir()) == []
