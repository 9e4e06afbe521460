"""The examples of published networks without a family here, against their authors' outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import diffproof as dp
from helpers.paths import EXAMPLES, SHARED

WEIGHTS = SHARED / "models" / "mnist" / "ddpm-unet-unconditional.safetensors"
CONDITIONAL = SHARED / "models" / "mnist" / "edm-dit-class-conditional.safetensors"


def loaded(module: str, weights: Path, monkeypatch: pytest.MonkeyPatch) -> dp.Denoiser:
    """The denoiser of an example, from its folder; skips without its weights."""
    if not weights.is_file():
        pytest.skip(f"no weights at {weights}")
    monkeypatch.chdir(EXAMPLES)
    return dp.load_denoiser(f"{module}:denoiser@{weights}")


@pytest.fixture
def denoiser(monkeypatch: pytest.MonkeyPatch) -> dp.Denoiser:
    return loaded("mnist_ddpm", WEIGHTS, monkeypatch)


@pytest.fixture
def conditional(monkeypatch: pytest.MonkeyPatch) -> dp.Denoiser:
    return loaded("mnist_edm", CONDITIONAL, monkeypatch)


@pytest.mark.parametrize("timestep", [0, 50, 200, 600])
def test_its_denoiser_is_the_authors_network(denoiser: dp.Denoiser, timestep: int) -> None:
    """The ε that the clean estimate stands for, within what rounding of ᾱ does to the input (t = 0)."""
    golden = {name: torch.from_numpy(value) for name, value in np.load(WEIGHTS.parent / "golden.npz").items()}
    # Golden inputs were made with the authors' table in float32.
    bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[timestep]
    sigma = float(torch.sqrt((1 - bar) / bar))
    noisy = (golden["images"] + 1) / 2 + sigma * golden["noise"]
    with torch.no_grad():
        clean = denoiser(noisy.double(), sigma)
    epsilon = (noisy.double() - clean) / sigma
    expected = golden[f"ddpm_eps_t_{timestep}"]
    assert float((epsilon - expected).norm() / expected.norm()) < 1e-5


def test_it_takes_noise_off_digits_it_has_not_seen(denoiser: dp.Denoiser) -> None:
    images = torch.from_numpy(np.load(SHARED / "data" / "mnist" / "test-first5000.npz")["images"][:8]) / 255
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        left = denoiser(images + 0.5 * noise, 0.5) - images
    assert float(left.square().mean().sqrt()) < 0.15


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_the_conditional_denoiser_is_the_authors_network(conditional: dp.Denoiser, sigma: float) -> None:
    """Of [−1, 1] pixels, at the noise level that the authors' code was given."""
    golden = {
        name: torch.from_numpy(value) for name, value in np.load(CONDITIONAL.parent / "golden.npz").items()
    }
    noisy = (golden["images"] + sigma * golden["noise"] + 1) / 2
    with torch.no_grad():
        clean = conditional(noisy, sigma / 2, golden["labels"]) * 2 - 1
        levels = torch.full((4,), sigma / 2)
        by_image = conditional(noisy, levels, golden["labels"]) * 2 - 1
    expected = golden[f"edm_denoised_sigma_{sigma}"]
    assert float((clean - expected).norm() / expected.norm()) < 1e-5
    assert float((by_image - expected).norm() / expected.norm()) < 1e-5
