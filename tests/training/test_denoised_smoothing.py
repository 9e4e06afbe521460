"""Denoised smoothing: a denoiser of one noise level, for the classifier behind it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor, nn

import diffproof as dp
from diffproof.cli.main import run
from diffproof.training.batches import Mixture
from diffproof.training.denoiser import UNetSettings, describe_denoiser, train_denoiser
from diffproof.training.denoising.base import denoiser_objective
from diffproof.training.loop import Progress, TrainSettings
from diffproof.weights import hash_tensors, load_weights
from helpers.training import batch

pytestmark = pytest.mark.usefixtures("small_digits")

SMALL = "--data digits --limit 40 --iterations 3 --batch-size 4 --channels 8 --single-sigma 0.25"


class Half(nn.Module):
    """ε of a network that predicts half of its input, in the convention of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, scaled: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        """N×C×H×W."""
        assert label is None
        assert timestep.tolist() == [0] * len(scaled)
        return self.factor * scaled


@pytest.mark.parametrize("objective", ["stab", "clf"])
def test_losses_against_their_formulas(objective: str) -> None:
    data = dp.load_data("digits")
    images, labels = data.images[:6], data.labels[:6].clone()
    labels[0] = (labels[0] + 1) % 10
    sigma, network, classifier = 0.25, Half(), dp.load_classifier("digits")
    denoiser = dp.NetworkDenoiser(network, dp.DiscreteSchedule.single(2 * sigma), image_shape=(1, 8, 8))
    assert denoiser.sigma_min == denoiser.sigma_max == pytest.approx(sigma)
    loss = denoiser_objective(objective).loss_of_batches(denoiser, classifier, 0.0)
    found = loss(network, batch(images, labels), torch.Generator().manual_seed(4))
    normal = torch.randn((6, 1, 8, 8), generator=torch.Generator().manual_seed(4)).numpy().astype(float)
    noisy = images.numpy() + sigma * normal
    # In [-1, 1] pixels the noise is twice as large; the network sees √ᾱ times what is noisy there.
    scale = 1 / np.sqrt(1 + (2 * sigma) ** 2)
    clean = noisy - sigma * 0.5 * scale * (2 * noisy - 1)
    with torch.no_grad():
        logits = classifier(torch.from_numpy(clean).float()).numpy().astype(float)
        expected = classifier(images).argmax(1).numpy() if objective == "stab" else labels
    wanted = -log_softmax(logits, 1)[np.arange(6), np.asarray(expected)].mean()
    assert float(found.detach()) == pytest.approx(wanted, rel=1e-5)
    # It is the estimate that the defence uses, before that is clipped.
    with torch.no_grad():
        again = denoiser(torch.from_numpy(noisy).float(), sigma)
    np.testing.assert_allclose(again.numpy(), clean, atol=1e-5)
    found.backward()
    assert network.factor.grad is not None
    assert all(one.grad is None for one in classifier.parameters())


def test_the_loss_of_atop_restores_and_classifies_adversarial_images() -> None:
    data = dp.load_data("digits")
    images, labels = data.images[:6], data.labels[:6]
    sigma, network, classifier = 0.25, Half(), dp.load_classifier("digits")
    denoiser = dp.NetworkDenoiser(network, dp.DiscreteSchedule.single(2 * sigma), image_shape=(1, 8, 8))
    seen: list[Tensor] = []
    hook = classifier.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    generator = torch.Generator().manual_seed(4)
    found = denoiser_objective("atop").loss_of_batches(denoiser, classifier, 0.0)(
        network, batch(images, labels), generator
    )
    hook.remove()
    # Ten steps of the search, and the denoised images.
    assert len(seen) == 11
    normal = torch.randn((6, 1, 8, 8), generator=torch.Generator().manual_seed(4))
    scale = 1 / np.sqrt(1 + (2 * sigma) ** 2)
    # clean = a·noisy + b, which tells the noisy image, and so the adversarial one.
    adversarial = (seen[-1] - sigma * 0.5 * scale) / (1 - sigma * scale) - sigma * normal
    change = (adversarial - images).abs().amax()
    assert 7 / 255 < float(change) < 8.001 / 255
    with torch.no_grad():
        before, after = (
            nn.functional.cross_entropy(classifier(one), labels) for one in (images, adversarial.clamp(0, 1))
        )
        assert float(after) > float(before)
        logits = classifier(seen[-1]).numpy().astype(float)
    entropy = -log_softmax(logits, 1)[np.arange(6), labels.numpy()].mean()
    expected = float((seen[-1] - images).double().square().mean()) + 0.05 * entropy
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


def trained(objective: str, progress: Progress | None = None, iterations: int = 5) -> str:
    data = dp.load_data("digits", split="train")
    description = describe_denoiser(data, UNetSettings((8,)), "cosine", 1000, 0.25)
    classifier = None if objective == "mse" else dp.load_classifier("digits")
    settings, more = TrainSettings(iterations, 4), {"objective": objective, "classifier": classifier}
    made = train_denoiser(Mixture(data), description, settings, progress=progress, **more)  # type: ignore[arg-type]
    return hash_tensors(made.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mse", "stab", "clf", "atop"])
def test_a_training_that_continues_ends_as_one_that_was_not_stopped(tmp_path: Path, objective: str) -> None:
    checkpoint, whole = tmp_path / "state.checkpoint", trained(objective)

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise KeyError

    with pytest.raises(KeyError):
        trained(objective, Progress(stop, checkpoint, 1e-9))
    assert trained(objective, Progress(checkpoint=checkpoint)) == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", ["", "--objective stab --classifier digits", "--objective clf --classifier digits"]
)
def test_it_certifies_at_its_level_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str
) -> None:
    out, folder = tmp_path / "w.safetensors", tmp_path / "run"
    assert run(shlex.split(f"train denoiser {SMALL} {flags} --out {out}")) == 0
    assert "sigma = 0.25" in capsys.readouterr().out
    line = f"certify --data digits --indices 0:2 --defense dds --denoiser {out} --classifier digits"
    assert run(shlex.split(f"{line} --n0 5 --n 20 --sigma 0.25 --out {folder}")) == 0
    capsys.readouterr()
    assert run(shlex.split(f"{line} --sigma 0.5 --out {tmp_path / 'other'}")) == 2
    assert capsys.readouterr().err == (
        "diffproof: error: --sigma: expected 0.25, the one noise level of this denoiser, got 0.5\n"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--objective stab", "--classifier: the objective 'stab' needs one"),
        ("--objective adbm", "--classifier: the objective 'adbm' needs one"),
        ("--classifier digits", "--classifier: the objective 'mse' takes none"),
        (
            "--objective macer",
            "--objective: 'macer' is for diffproof train classifier and diffproof finetune",
        ),
        (
            "--objective clf --classifier digits",
            "--objective: 'clf' is for a denoiser of one noise level",
        ),
        (
            "--objective adbm:t_star=[0.2,0.1] --classifier digits",
            "--objective: t_star: expected one time or two ascending ones, got [0.2, 0.1]",
        ),
        (
            "--objective adbm --classifier digits --single-sigma 0.25",
            "--objective: adbm needs the noise levels 0.17 to 0.36, the denoiser has 0.25 to 0.25",
        ),
        ("--single-sigma 0", "--single-sigma: expected a finite number > 0, got 0.0"),
        ("--single-sigma 0.5 --timesteps 10", "--timesteps: is not for --single-sigma"),
        ("--single-sigma 0.5 --multi-head", "--multi-head: is not for --single-sigma"),
        ("--single-sigma 0.5 --label-dropout 0.2", "--label-dropout: is not for a single noise level"),
        ("--denoiser digits --channels 8", "--channels: is for a new network, not with --denoiser"),
        ("--denoiser digits --single-sigma 0.5", "--single-sigma: is for a new network, not with --denoiser"),
        (
            "--denoiser empirical:digits",
            "--denoiser: expected a file of `diffproof train denoiser`, or openai:PRESET@FILE or"
            " score_sde:PRESET@FILE, to train further, got 'empirical:digits'",
        ),
        (
            "--denoiser cifar10",
            "--denoiser: takes images (3, 32, 32), but those of digits are (3, 8, 8)",
        ),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    assert run(shlex.split(f"train denoiser --data digits --out {tmp_path / 'w.safetensors'} {flags}")) == 2
    assert capsys.readouterr().err == f"diffproof: error: {message}\n"
    assert list(tmp_path.iterdir()) == []


def test_in_python_an_objective_needs_its_classifier() -> None:
    data = dp.load_data("digits", split="train")
    for schedule, more, message in (
        (0.25, {"objective": "clf"}, "classifier: the objective 'clf' needs one"),
        (None, {"objective": "stab", "classifier": dp.load_classifier("digits")}, "objective: 'stab' is for"),
        (
            0.25,
            {"classifier": dp.load_classifier("digits")},
            "classifier: the objective 'mse' takes none",
        ),
    ):
        description = describe_denoiser(data, UNetSettings((8,)), "cosine", 10, schedule)
        arguments: dict[str, Any] = more
        with pytest.raises(ValueError, match=f"^{message}"):
            train_denoiser(Mixture(data), description, TrainSettings(1, 4), **arguments)


@pytest.mark.slow
def test_stab_starts_from_a_denoiser_of_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, out = tmp_path / "mse.safetensors", tmp_path / "stab.safetensors"
    assert run(shlex.split(f"train denoiser {SMALL} --out {start}")) == 0
    # Ten to the minus twelve is the lowest rate: the weights hardly move from where they began.
    words = "--data digits --limit 40 --iterations 3 --batch-size 4 --learning-rate 1e-12 --objective stab"
    line = f"train denoiser {words} --classifier digits --denoiser {start} --out {out}"
    assert run(shlex.split(line)) == 0
    assert "sigma = 0.25" in capsys.readouterr().out
    before, after = load_weights(start), load_weights(out)
    for name, tensor in before.tensors.items():
        torch.testing.assert_close(after.tensors[name], tensor, atol=1e-9, rtol=0)
    assert {name: value for name, value in after.description.items() if name != "training"} == {
        name: value for name, value in before.description.items() if name != "training"
    }
    training = after.description["training"]
    assert training["objective"] == "stab"
    # It was trained on what the start was trained on, and these.
    assert len(training["images"]) == 2
