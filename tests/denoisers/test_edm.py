"""EDM's checkpoints compute what the authors' code computes.

golden/edm.npz holds, for tiny networks of every kind: inputs, noise levels, labels and outputs of the
authors' EDMPrecond and of the SongUNet in it. The weights are made anew by golden_recipe.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffproof.denoisers import edm
from diffproof.denoisers.edm import PRESETS, key_shapes, load
from diffproof.denoisers.ncsnpp import Architecture
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.reverse.levels import select_sigmas
from helpers.golden_recipe import difference, recipe_state, stored_tensors

TOLERANCE = 1e-5  # of the largest output

KINDS = {
    "ddpmpp_0": Architecture(8, 16, (1, 2), 1, (4,)),
    "ddpmpp_4": Architecture(8, 16, (1, 2), 1, (4,), num_classes=4),
    "ncsnpp_0": Architecture(8, 16, (2, 2, 2), 1, (4,), smooth=True, fourier=True),
    "ncsnpp_4": Architecture(8, 16, (2, 2, 2), 1, (4,), smooth=True, fourier=True, num_classes=4),
}

# Of the authors' models, without "model.": keys, values, SHA-256 (16 digits) over sorted "key shape" lines.
PINNED = {
    "cifar10-32x32-uncond-vp": (425, 55733923, "1bf25fa32ca0b21e"),
    "cifar10-32x32-cond-vp": (427, 55735331, "cdcb6d4e57eebeb4"),
    "cifar10-32x32-uncond-ve": (432, 56398115, "036d742340486ec1"),
    "cifar10-32x32-cond-ve": (434, 56400931, "4a19035b348c9f7c"),
    "ffhq-64x64-uncond-vp": (553, 61805619, "fcab849650bdb8ff"),
    "ffhq-64x64-uncond-ve": (563, 62761459, "fd64f0a84d2b31d4"),
    "afhqv2-64x64-uncond-vp": (553, 61805619, "fcab849650bdb8ff"),
    "afhqv2-64x64-uncond-ve": (563, 62761459, "fd64f0a84d2b31d4"),
}


def weights(kind: str, prefix: str = "model.") -> dict[str, Tensor]:
    state = recipe_state(key_shapes(KINDS[kind], augmented=True))
    for name in state:
        if name.endswith("resample_filter"):
            taps = torch.tensor([1.0, 3.0, 3.0, 1.0] if KINDS[kind].smooth else [1.0, 1.0])
            state[name] = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
    if "map_noise.freqs" in state:
        state["map_noise.freqs"] *= 80  # a standard deviation of 16, as trained
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edm, "PRESETS", dict(KINDS))


def loaded(kind: str, state: object, folder: Path) -> NetworkDenoiser:
    torch.save(state, folder / "w.pt")
    return load(kind, folder / "w.pt")


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("kind", KINDS)
def test_networks_agree_with_the_authors(kind: str, prefix: str, tmp_path: Path) -> None:
    denoiser, case = loaded(kind, weights(kind, prefix), tmp_path), stored_tensors("edm.npz", kind)
    assert not denoiser.training
    assert case["sigma"].unique().tolist() == pytest.approx([0.002, 0.05, 0.5, 3.7, 80.0])
    with torch.no_grad():
        got = -denoiser.network(case["scaled"], case["c_noise"], case.get("label"))
    assert difference(got, case["output"]) <= TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_denoisers_agree_with_the_authors(kind: str, tmp_path: Path) -> None:
    # The authors' pixels lie in [−1, 1]: twice the sigma.
    denoiser, case = loaded(kind, weights(kind), tmp_path), stored_tensors("edm.npz", kind)
    noisy, sigma = (case["x"] + 1) / 2, case["sigma"].double() / 2
    expected = {"denoised": case.get("label")}
    if "label" in case:
        expected["denoised_null"] = None
        assert difference(case["denoised"], case["denoised_null"]) > 0.01
    for name, label in expected.items():
        with torch.no_grad():
            assert difference(2 * denoiser(noisy, sigma, label) - 1, case[name]) <= TOLERANCE


@pytest.mark.parametrize("kind", ["ddpmpp_0", "ncsnpp_4"])
def test_the_range_of_sigma_and_its_steps(kind: str, tmp_path: Path) -> None:
    denoiser = loaded(kind, weights(kind), tmp_path)
    assert (denoiser.sigma_min, denoiser.sigma_max) == pytest.approx((0.001, 40.0))
    assert denoiser.sigmas is None
    assert denoiser.start_timestep(0.25) == pytest.approx(0.5)
    assert select_sigmas(denoiser, 0.25, 3, "log-sigma") == pytest.approx([0.25, math.sqrt(0.25e-3), 0.001])
    noisy = torch.rand(1, 3, 8, 8)
    for sigma in (0.001, 40.0):
        assert torch.isfinite(denoiser(noisy, sigma)).all()
    for sigma in (0.00099, 40.1):
        with pytest.raises(ValueError, match=r"sigma: expected 0\.001 ≤ sigma ≤ 40"):
            denoiser(noisy, sigma)


def test_labels(tmp_path: Path) -> None:
    noisy, label = torch.rand(2, 3, 8, 8), torch.tensor([0, 4])
    with pytest.raises(ValueError, match="label: expected 0 ≤ label < 4"):
        loaded("ddpmpp_4", weights("ddpmpp_4"), tmp_path)(noisy, 0.5, label)
    with pytest.raises(ValueError, match="label: this denoiser is unconditional"):
        loaded("ddpmpp_0", weights("ddpmpp_0"), tmp_path)(noisy, 0.5, label)


@pytest.mark.parametrize("kind", ["ddpmpp_0", "ncsnpp_4"])
def test_gradients_reach_the_input(kind: str, tmp_path: Path) -> None:
    denoiser = loaded(kind, weights(kind), tmp_path).double()
    noisy = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy.requires_grad_()
    denoiser(noisy, 0.5).square().sum().backward()
    assert noisy.grad is not None
    step = torch.zeros_like(noisy)
    step[0, 1, 3, 4] = 1e-5
    with torch.no_grad():
        up, down = (denoiser(noisy + sign * step, 0.5).square().sum() for sign in (1, -1))
    assert float(noisy.grad[0, 1, 3, 4]) == pytest.approx(float(up - down) / 2e-5, rel=1e-5)


def test_half_precision_keeps_the_skip_connection_exact(tmp_path: Path) -> None:
    # At little noise the estimate is almost the input, which must not pass through eight bits.
    denoiser = loaded("ddpmpp_0", weights("ddpmpp_0"), tmp_path)
    noisy = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact, half = denoiser(noisy, 0.001), denoiser.bfloat16()(noisy, 0.001)
    assert float((exact - half).abs().max()) < 1e-4


@pytest.mark.parametrize("preset", PINNED)
def test_presets_expect_the_authors_keys_and_shapes(preset: str) -> None:
    shapes = sorted(key_shapes(PRESETS[preset], augmented=True).items())
    lines = "\n".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes)
    values = sum(math.prod(shape) for _, shape in shapes)
    assert (len(shapes), values, hashlib.sha256(lines.encode()).hexdigest()[:16]) == PINNED[preset]


def test_all_presets_are_pinned() -> None:
    assert set(PINNED) == set(PRESETS)


def test_a_network_trained_without_augmentation(tmp_path: Path) -> None:
    state = weights("ddpmpp_0")
    del state["model.map_augment.weight"]
    denoiser, case = loaded("ddpmpp_0", state, tmp_path), stored_tensors("edm.npz", "ddpmpp_0")
    with torch.no_grad():
        got = -denoiser.network(case["scaled"], case["c_noise"], None)
    assert difference(got, case["output"]) <= TOLERANCE


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("model.dec.8x8_up.skip.bias"),
            "does not fit preset ddpmpp_4: missing dec.8x8_up.skip.bias$",
        ),
        (lambda state: {**state, "model.extra": torch.zeros(2)}, "unexpected extra$"),
        (
            lambda state: {**state, "model.map_augment.weight": torch.zeros(16, 8)},
            r"misshapen map_augment.weight \(expected 16×9, got 16×8\)$",
        ),
        (
            lambda state: weights("ddpmpp_0"),
            "missing map_label.weight, map_label.bias; preset ddpmpp_0 fits$",
        ),
        (lambda state: weights("ncsnpp_4"), "unexpected map_noise.freqs, .* preset ncsnpp_4 fits$"),
        (
            lambda state: {**state, "model.enc.4x4_down.skip.resample_filter": torch.ones(1, 1, 2, 2)},
            "enc.4x4_down.skip.resample_filter is not the filter",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^weights: .*{message}"):
        loaded("ddpmpp_4", change(weights("ddpmpp_4")), tmp_path)


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"preset: unknown name 'ddpmpp'; did you mean"):
        load("ddpmpp", tmp_path / "w.pt")
