"""score_sde's checkpoints compute what the authors' code computes.

golden/score_sde.npz holds, for tiny networks of every kind: inputs, labels and outputs of the authors'
NCSNpp, and clean estimates by Tweedie's formula from their score function. The weights are made anew by
golden_recipe.
"""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import diffproof as dp
from diffproof.cli.main import run
from diffproof.denoisers import families, score_sde
from diffproof.denoisers.families import Family
from diffproof.denoisers.ncsnpp import Architecture
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.denoisers.score_sde import PRESETS, Preset, Process, key_shapes, load
from helpers.golden_recipe import difference, recipe_state, stored_tensors

TOLERANCE = 1e-5  # of the largest output

KINDS = {
    # 160 and 256 channels: more than 32 groups would be needed.
    "ddpmpp": Preset(Architecture(8, 32, (1, 4), 1, (4,)), Process.VP),
    "ddpmpp_deep": Preset(Architecture(8, 16, (1, 2), 3, (4,)), Process.VP),
    "ddpmpp_discrete": Preset(Architecture(8, 16, (1, 2), 1, (8,)), Process.DISCRETE),
    "ncsnpp": Preset(Architecture(8, 16, (1, 2, 2), 1, (4,), smooth=True), Process.VP),
    "ncsnpp_discrete": Preset(Architecture(8, 16, (1, 2), 2, (4,), smooth=True), Process.DISCRETE),
    "ncsnpp_ve": Preset(Architecture(8, 16, (1, 2, 2), 1, (4,), smooth=True, fourier=True), Process.VE),
}

# Of the authors' models: keys, values, and SHA-256 (16 digits) over sorted "key shape" lines; parameters with
# an average, and SHA-256 over their lines in order.
PINNED = {
    "vp/cifar10_ddpmpp": (564, 61804419, "09b8fda55096dc49", 564, "aaca5dde7b1ba5c2"),
    "vp/cifar10_ddpmpp_continuous": (564, 61804419, "09b8fda55096dc49", 564, "aaca5dde7b1ba5c2"),
    "vp/cifar10_ddpmpp_deep_continuous": (956, 106632579, "da5e563c82729369", 956, "d903bbf00ab8b0ae"),
    "vp/cifar10_ncsnpp": (570, 62693251, "be31cb67c0a69fdf", 570, "94a1b78aad45768a"),
    "vp/cifar10_ncsnpp_continuous": (570, 62693251, "be31cb67c0a69fdf", 570, "94a1b78aad45768a"),
    "vp/cifar10_ncsnpp_deep_continuous": (962, 107521411, "efb94b9bb335825e", 962, "f8f64dc9c7924ef7"),
    "ve/cifar10_ncsnpp_continuous": (571, 62758915, "1261c5b402f3b771", 570, "a90468905726d02f"),
    "ve/cifar10_ncsnpp_deep_continuous": (963, 107587075, "fe1cdb9b80cd20db", 962, "c3c55f953d76b461"),
}


def digest(shapes: list[tuple[str, tuple[int, ...]]]) -> str:
    lines = "\n".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def weights(kind: str, seed: int = 0) -> dict[str, Tensor]:
    state = recipe_state(key_shapes(KINDS[kind].architecture), seed)
    if "all_modules.0.W" in state:
        state["all_modules.0.W"] *= 80  # a standard deviation of 16, as trained
    return state


def checkpoint(
    state: Mapping[str, Tensor], averages: Mapping[str, Tensor], prefix: str = ""
) -> dict[str, Any]:
    """A checkpoint as the authors save it, NumPy learning rate and buffer included."""
    model = {f"{prefix}sigmas": torch.ones(1000, dtype=torch.float64)}
    model.update({f"{prefix}{name}": tensor for name, tensor in state.items()})
    shadow = [tensor for name, tensor in averages.items() if name != "all_modules.0.W"]
    group = {"lr": 2e-4 * np.minimum(3 / 5000, 1.0), "betas": (0.9, 0.999), "params": [0]}
    return {
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [group]},
        "model": model,
        "ema": {"decay": 0.9999, "num_updates": 3, "shadow_params": shadow},
        "step": 3,
    }


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_sde, "PRESETS", dict(KINDS))


def loaded(kind: str, content: object, folder: Path) -> NetworkDenoiser:
    torch.save(content, folder / "checkpoint.pth")
    return load(kind, folder / "checkpoint.pth")


@pytest.mark.parametrize("kind", KINDS)
def test_networks_agree_with_the_authors(kind: str, tmp_path: Path) -> None:
    denoiser, case = loaded(kind, weights(kind), tmp_path), stored_tensors("score_sde.npz", kind)
    x, timestep, expected = case["x"], case["timestep"], case["output"]
    assert len(timestep) == 5
    with torch.no_grad():
        if KINDS[kind].process is Process.VE:
            sigma = timestep[:, None, None, None]
            got = -denoiser.network(x, timestep.log(), None) / sigma
        else:
            got = denoiser.network(x, timestep, None)
    assert difference(got, expected) <= TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_denoisers_agree_with_the_authors_score(kind: str, tmp_path: Path) -> None:
    denoiser, case = loaded(kind, weights(kind), tmp_path), stored_tensors("score_sde.npz", kind)
    with torch.no_grad():
        got = denoiser(case["noisy"], case["sigma"])
    assert difference(got, case["clean"]) <= TOLERANCE


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("ddpmpp", math.sqrt(math.expm1(0.1e-5 + 9.95e-10)) / 2, math.sqrt(math.expm1(10.05)) / 2),
        ("ddpmpp_discrete", math.sqrt(1 / 0.9999 - 1) / 2, math.sqrt(1 / 4.0358e-5 - 1) / 2),
        ("ncsnpp_ve", 0.01, 50.0),
    ],
)
def test_the_range_of_sigma(kind: str, low: float, high: float, tmp_path: Path) -> None:
    denoiser = loaded(kind, weights(kind), tmp_path)
    assert denoiser.sigma_min == pytest.approx(low, rel=1e-6)
    assert denoiser.sigma_max == pytest.approx(high, rel=1e-3)
    noisy = torch.rand(1, 3, 8, 8)
    for sigma in (denoiser.sigma_min, denoiser.sigma_max):
        assert torch.isfinite(denoiser(noisy, sigma)).all()
    for sigma in (0.99 * denoiser.sigma_min, 1.01 * denoiser.sigma_max):
        with pytest.raises(ValueError, match="sigma: expected"):
            denoiser(noisy, sigma)


@pytest.mark.parametrize("preset", PINNED)
def test_presets_expect_the_authors_keys_shapes_and_order(preset: str) -> None:
    shapes = list(key_shapes(PRESETS[preset].architecture).items())
    averaged = [(name, shape) for name, shape in shapes if name != "all_modules.0.W"]
    values = sum(math.prod(shape) for _, shape in shapes)
    found = (len(shapes), values, digest(sorted(shapes)), len(averaged), digest(averaged))
    assert found == PINNED[preset]


def test_all_presets_are_pinned() -> None:
    assert set(PINNED) == set(PRESETS)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", ["ddpmpp_deep", "ncsnpp_ve"])
def test_moving_averages_win(kind: str, prefix: str, tmp_path: Path) -> None:
    last, averages = weights(kind, seed=1), weights(kind)
    if "all_modules.0.W" in last:
        last["all_modules.0.W"] = averages["all_modules.0.W"]  # fixed: stored in the model only
    denoiser = loaded(kind, checkpoint(last, averages, prefix), tmp_path)
    assert not denoiser.training
    case = stored_tensors("score_sde.npz", kind)
    with torch.no_grad():
        assert difference(denoiser(case["noisy"], case["sigma"]), case["clean"]) <= TOLERANCE


def test_a_bare_state_dict_of_a_parallel_model(tmp_path: Path) -> None:
    state = checkpoint(weights("ncsnpp"), {}, "module.")["model"]
    case = stored_tensors("score_sde.npz", "ncsnpp")
    with torch.no_grad():
        got = loaded("ncsnpp", state, tmp_path)(case["noisy"], case["sigma"])
    assert difference(got, case["clean"]) <= TOLERANCE


@pytest.mark.parametrize("kind", ["ddpmpp_deep", "ncsnpp_ve"])
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "given", "problem"),
    [
        ("ddpmpp", "ddpmpp_deep", "preset ddpmpp_deep or ddpmpp_deep_too fits"),
        ("ncsnpp", "ncsnpp_ve", "unexpected all_modules.0.W.*; preset ncsnpp_ve fits"),
        ("ncsnpp_ve", "ncsnpp", "missing all_modules.0.W.*; preset ncsnpp fits"),
    ],
)
def test_a_wrong_preset_names_the_fitting_one(
    asked: str, given: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(score_sde.PRESETS, "ddpmpp_deep_too", KINDS["ddpmpp_deep"])
    content = checkpoint(weights(given), weights(given), "module.")
    with pytest.raises(ValueError, match=rf"does not fit preset {asked}: .*{problem}$"):
        loaded(asked, content, tmp_path)


@pytest.mark.slow
def test_the_row_of_lee_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One-shot denoising by a variance-exploding network, from its file to a certificate."""
    grey = Architecture(8, 16, (1, 2), 1, (4,), smooth=True, fourier=True, image_channels=1)
    monkeypatch.setitem(score_sde.PRESETS, "grey", Preset(grey, Process.VE))
    monkeypatch.setitem(families.FAMILIES, "score_sde", Family(score_sde.PRESETS, load))
    state = recipe_state(key_shapes(grey), 0)
    torch.save(checkpoint(state, state), tmp_path / "checkpoint.pth")
    spec, folder = f"score_sde:grey@{tmp_path / 'checkpoint.pth'}", tmp_path / "run"
    line = f"certify --denoiser {spec} --classifier digits --data digits --indices 0:2 --defense dds"
    assert run(shlex.split(f"{line} --sigma 0.25 --n0 5 --n 20 --out {folder}")) == 0
    assert run(["verify", str(folder), "--trust"]) == 0
    # What is denoised is x + σ²·score(x) at the noise level itself: no grid of levels, no scaled input.
    denoiser: Any = dp.load_denoiser(spec)
    noisy = dp.load_data("digits").images[:2] + 0.25
    with torch.no_grad():
        minus_score = denoiser.network(noisy, torch.full((2,), math.log(0.25)), None) / 0.25
        torch.testing.assert_close(denoiser(noisy, 0.25), noisy - 0.25**2 * minus_score)


def changed(kind: str, **changes: object) -> dict[str, Any]:
    return {**checkpoint(weights(kind), weights(kind)), **changes}


KIND = "ddpmpp_deep"
SHADOW = list(weights(KIND).values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], r"expected a score_sde checkpoint \(model, ema\) or a state dict"),
        ({"model": weights(KIND)}, "expected a score_sde checkpoint"),
        (changed(KIND, ema={"decay": 0.9}), "no list of tensors under ema, shadow_params"),
        (changed(KIND, ema=3), "no list of tensors under ema, shadow_params"),
        (changed(KIND, ema={"shadow_params": [1.0]}), "no list of tensors under ema, shadow_params"),
        (changed(KIND, ema={"shadow_params": SHADOW[:-1]}), "expected 262 tensors in ema.*got 261"),
        (
            changed(KIND, ema={"shadow_params": [SHADOW[1], SHADOW[0], *SHADOW[2:]]}),
            r"ema, shadow_params\) does not fit .*misshapen all_modules.0.weight \(expected 64×16, got 64\)",
        ),
        ({**weights(KIND), "extra": torch.zeros(2)}, "does not fit preset .*unexpected extra$"),
        (dict(list(weights(KIND).items())[1:]), "does not fit preset .*missing all_modules.0.weight$"),
    ],
)
def test_what_does_not_fit_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"^weights: .*{message}"):
        load(KIND, tmp_path / "w.pth")


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"preset: unknown name 'ncsnpp_vp'; did you mean ncsnpp"):
        load("ncsnpp_vp", tmp_path / "w.pth")
