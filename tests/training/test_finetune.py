"""Fine-tuning on denoised images: what the classifier sees, what it learns, what stays as it is."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.cli.main import run
from diffproof.data.images import ImageData
from diffproof.denoisers.base import Estimate
from diffproof.training.batches import Mixture
from diffproof.training.finetune import denoised_accuracy, finetune
from diffproof.training.loop import Progress, TrainSettings
from diffproof.weights import hash_tensors, load_weights

pytestmark = pytest.mark.usefixtures("small_digits")

COMMAND = (
    "finetune --data digits --classifier digits --denoiser digits --sigma 0.5 --batch-size 8 --iterations 3"
)


@pytest.mark.slow
def test_it_learns_and_leaves_the_denoiser_alone() -> None:
    data = dp.load_data("digits", default_split="train", indices="0:256")
    classifier, denoiser = dp.load_classifier("digits"), dp.load_denoiser("digits")
    before = hash_tensors(denoiser.state_dict()), denoised_accuracy(classifier, denoiser, data, 0.5, 1)
    start = hash_tensors(classifier.state_dict())
    losses: list[float] = []
    tuned = finetune(
        classifier,
        denoiser,
        Mixture(data),
        TrainSettings(40, batch_size=64, learning_rate=0.005, ema_decay=0.9),
        sigma=0.5,
        progress=Progress(lambda _, loss: losses.append(loss)),
    )
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert not tuned.training
    assert not denoiser.training
    assert hash_tensors(denoiser.state_dict()) == before[0]
    assert all(p.grad is None for p in denoiser.parameters())
    assert hash_tensors(tuned.state_dict()) != start
    assert denoised_accuracy(tuned, denoiser, data, 0.5, 1) > before[1] + 0.02


def test_the_classifier_sees_denoised_noise_of_the_asked_sigma() -> None:
    """Images of one grey, and a denoiser that halves: the classifier's input is known in law."""
    grey = ImageData("grey", "train", torch.full((4, 1, 8, 8), 0.6), torch.arange(4), list("abcd"))
    given: list[Tensor] = []

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(4))

        def forward(self, images: Tensor) -> Tensor:
            given.append(images.detach())
            return images.mean((1, 2, 3))[:, None] * 0 + self.bias

    class Half(dp.Denoiser):
        sigma_min, sigma_max = 0.01, 10.0

        def estimate(self, noisy: Tensor, sigma: float | Tensor, label: Tensor | None) -> Estimate:
            assert sigma == 0.25
            assert label is None
            assert not torch.is_grad_enabled()
            return Estimate(0.5 * noisy + 0.2)

    classifier = dp.Classifier(Mean(), 4, image_shape=(1, 8, 8))
    settings = TrainSettings(2, batch_size=256)
    finetune(classifier, Half(), Mixture(grey), settings, sigma=0.25)
    for images in given:
        # The estimate is clipped to [0, 1], which needs noise of four sigma here: too rare to matter.
        noise = (images - 0.5) / 0.5
        # 16,384 values: relative standard error of their deviation 0.0055, of their mean 0.002.
        assert float(noise.std()) == pytest.approx(0.25, rel=5 * 0.0055)
        assert abs(float(noise.mean())) < 5 * 0.002
    assert not torch.equal(given[0], given[1])


@pytest.mark.slow
def test_from_the_command_line_to_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = dp.load_data("digits", indices="0:50")
    np.savez(tmp_path / "few.npz", images=few.images[:, 0].numpy(), labels=few.labels.numpy())
    words = [*shlex.split(COMMAND), "--test-data", str(tmp_path / "few.npz")]
    for out in ("one", "two"):
        assert run([*words, "--out", str(tmp_path / f"{out}.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert "accuracy on 50 denoised test images, sigma = 0.5: " in shown
    one, two = (load_weights(tmp_path / f"{out}.safetensors") for out in ("one", "two"))
    assert hash_tensors(one.tensors) == hash_tensors(two.tensors)
    assert (tmp_path / "one.loss.csv").read_bytes() == (tmp_path / "two.loss.csv").read_bytes()
    original = load_weights(Path(dp.__file__).parent / "assets" / "digits-classifier.safetensors").tensors
    assert {name: t.shape for name, t in one.tensors.items()} == {n: t.shape for n, t in original.items()}
    assert hash_tensors(one.tensors) != hash_tensors(original)
    tuned = dp.load_classifier(str(tmp_path / "one.safetensors"))
    recorded = one.description["training"]["test"]["denoised_accuracy"]
    assert denoised_accuracy(tuned, dp.load_denoiser("digits"), few, 0.5, 0) == pytest.approx(
        recorded, abs=1e-6
    )
    # A copy of the copy.
    again = COMMAND.replace("--classifier digits", f"--classifier {tmp_path / 'one.safetensors'}")
    words = [*shlex.split(again), "--test-data", str(tmp_path / "few.npz"), "--half", "--flip"]
    assert run([*words, "--out", str(tmp_path / "three.safetensors")]) == 0
    assert dp.load_classifier(str(tmp_path / "three.safetensors")).image_shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--sigma 0", "--sigma: expected 0.00"),
        ("--sigma -1", "--sigma: expected 0.00"),
        ("--sigma nan", "--sigma: expected 0.00"),
        ("--sigma 1e9", "--sigma: expected 0.00"),
        ("--classifier digit", "--classifier: unknown name 'digit'; did you mean digits"),
        ("--classifier none.safetensors", "--classifier: weights: no such file: none.safetensors"),
        ("--denoiser digit", "--denoiser: unknown name 'digit'; did you mean digits?"),
        ("--data digit", "--data: unknown name 'digit'; did you mean digits?"),
        ("--data few.npz", "--classifier: has 10 classes, but few.npz has 12"),
        (
            "--data large.npz",
            "images: the denoiser takes 1×8×8 (channels×height×width), got 1×9×9; --image-size 8 brings"
            " pictures of files there",
        ),
        ("--iterations 0", "--iterations: expected an integer ≥ 1, got 0"),
        ("--extra-data digits --extra-share 0", "--extra-share: expected a number in (0, 1), got 0.0"),
        ("--extra-data few.npz", "--classifier: has 10 classes, but few.npz has 12"),
        ("--out w.pt", "--out: expected a .safetensors file, got w.pt"),
    ],
)
def test_bad_flags_end_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("few.npz", images=np.zeros((2, 8, 8)), labels=np.array([0, 11]))
    np.savez("large.npz", images=np.zeros((2, 9, 9)), labels=np.array([0, 9]))
    before = set(tmp_path.iterdir())
    assert run(shlex.split(f"{COMMAND} --out w.safetensors {flags}")) == 2
    captured = capsys.readouterr()
    *_, line = captured.err.splitlines()
    assert line.startswith(f"diffproof: error: {message}")
    assert captured.out == ""
    assert set(tmp_path.iterdir()) == before
