"""Data sets of a denoiser's samples: what they are, that they go on, and that trainings take them."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

import diffproof as dp
from diffproof.cli.main import run
from diffproof.training.batches import Mixture
from diffproof.training.generated import write_samples
from diffproof.weights import load_weights
from helpers.denoisers import ToyDenoiser
from helpers.training import losses_of

MEANS = (0.3, 0.5, 0.65)


def classes() -> dp.GaussianMixtureDenoiser:
    """Three classes of 1×2×2 images around three greys."""
    means = torch.tensor(MEANS).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    grid = torch.logspace(-2.5, 1, 60, dtype=torch.float64)
    return dp.GaussianMixtureDenoiser(
        means, torch.full((3,), 0.05**2), component_labels=[0, 1, 2], sigmas=grid
    )


def test_samples_have_the_law_of_their_class(tmp_path: Path) -> None:
    write_samples(classes(), tmp_path / "g.npz", n=1500, steps=60, batch_size=500)
    data = dp.load_data(str(tmp_path / "g.npz"))
    images, labels = data.images[:], data.labels
    assert labels.tolist() == [i % 3 for i in range(1500)]
    for label, mean in enumerate(MEANS):
        pixels = images[labels == label].double()
        # 2,000 pixels: five standard errors of the mean, one in a million; the deviation, of finitely many
        # steps, to a tenth.
        assert float(pixels.mean()) == pytest.approx(mean, abs=5 * 0.05 / 2000**0.5)
        assert float(pixels.std()) == pytest.approx(0.05, rel=0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["g.npz"]


def test_work_goes_on_where_it_was_left(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.npz", tmp_path / "g.npz"
    write_samples(classes(), whole, n=20, steps=5, batch_size=20)
    seen: list[int] = []

    def stop(done: int) -> None:
        seen.append(done)
        if done == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(classes(), out, n=20, steps=5, batch_size=7, on_done=stop)
    partial = tmp_path / "g.npz.partial"
    # A kill in the middle of a write leaves less than an image.
    partial.write_bytes(partial.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"^out: [^\n]*partial is of another denoiser"):
        write_samples(classes(), out, n=20, steps=5, seed=1)
    write_samples(classes(), out, n=20, steps=5, batch_size=4, on_done=seen.append)
    assert seen == [0, 7, 14, 13, 17, 20]
    assert not partial.exists()
    with np.load(whole) as one, np.load(out) as other:
        assert one["images"].dtype == np.uint8
        assert np.array_equal(one["images"], other["images"])
        assert np.array_equal(one["labels"], other["labels"])


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^denoiser: expected one with classes"):
        write_samples(ToyDenoiser(), tmp_path / "g.npz", n=1)
    with pytest.raises(ValueError, match=r"^n: expected"):
        write_samples(classes(), tmp_path / "g.npz", n=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_classifier_is_trained_with_samples_of_the_command(tmp_path: Path) -> None:
    samples, out = tmp_path / "g.npz", tmp_path / "w.safetensors"
    assert run(shlex.split(f"sample --denoiser digits --n 30 --steps 2 --out {samples}")) == 0
    flags = "--data digits --limit 50 --width 4 --batch-size 8 --iterations 3 --inner-steps 1"
    extra = f"--extra-data {samples} --extra-share 0.7"
    words = f"train classifier {flags} --adversarial trades --label-smoothing 0.1 {extra} --out {out}"
    assert run(shlex.split(words)) == 0
    recorded = load_weights(out).description["training"]
    assert "--extra-share 0.7" in recorded["command"]
    assert [one["data"] for one in recorded["images"]] == ["digits", "g.npz"]
    assert len(losses_of(out)) == 3


def test_archives_of_edm_are_read(tmp_path: Path) -> None:
    # As the authors of EDM's generated images name and store them.
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "1m.npz", image=images, label=np.arange(4))
    data = dp.load_data(str(tmp_path / "1m.npz"))
    assert data.image_shape == (3, 8, 8)
    greys = torch.zeros(4, 3, 8, 8)
    # Numbers of the other's classes.
    assert (
        len(Mixture(dp.ImageData("four", "train", greys, torch.arange(4), tuple("abcd")), data).sources) == 2
    )
    with pytest.raises(ValueError, match=r"^extra_data: 1m.npz and five do not have the same classes$"):
        Mixture(dp.ImageData("five", "train", greys, torch.arange(4), tuple("abcde")), data)
    assert torch.equal((data.images[:] * 255).round().byte(), torch.as_tensor(images).permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sample --denoiser digits --n 0 --out g.npz", "--n: expected an integer ≥ 1"),
        ("sample --denoiser digits --n 1 --out g.png", "--out: expected an .npz file, got g.png"),
        ("sample --denoiser nothing --n 1 --out g.npz", "--denoiser: unknown name 'nothing'"),
        ("sample --denoiser digits --n 1 --steps 0 --out g.npz", "--steps: expected an integer ≥ 1"),
        (
            "train classifier --data digits --extra-share 0.5 --out w.safetensors",
            "--extra-share: is for --extra-data, which is not given",
        ),
        (
            "train classifier --data digits --extra-data cifar10.npz --out w.safetensors",
            "--extra-data: no such file: cifar10.npz",
        ),
        (
            "train classifier --data digits --label-smoothing 0.1 --out w.safetensors",
            "--label-smoothing: needs --adversarial",
        ),
        (
            "train classifier --data digits --adversarial pgd --label-smoothing 1 --out w.safetensors",
            "--label-smoothing: expected a number in [0, 1), got 1.0",
        ),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(shlex.split(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"diffproof: error: {message}")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
