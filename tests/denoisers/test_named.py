"""Denoisers by name: each form of a spec reaches its loader, and a mistake is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import diffproof as dp
from diffproof.denoisers.families import FAMILIES
from diffproof.weights import load_weights, packaged, save_weights


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "denoiser: unknown name 'digit'; did you mean digits?"),
        ("nothing/at/all.safetensors", "weights: no such file: nothing/at/all.safetensors"),
        (
            "openai:cifar10_uncond",
            "denoiser: expected openai:PRESET@PATH with PRESET one of cifar10_uncond, ",
        ),
        (
            "openai:cifar10_uncond@",
            "denoiser: expected openai:PRESET@PATH with PRESET one of cifar10_uncond, ",
        ),
        (
            "openai:cifar10_uncnd@x.pt",
            "openai preset: unknown name 'cifar10_uncnd'; did you mean cifar10_uncond",
        ),
        ("edm:cifar10@x.pt", "edm preset: unknown name 'cifar10'; "),
        (
            "score_sde:vp/cifar10_ddpmp@x.pth",
            "score_sde preset: unknown name 'vp/cifar10_ddpmp'; did you mean",
        ),
        ("openai:cifar10_uncond@no.pt", "weights: no such file: no.pt"),
        ("score_sde:vp/cifar10_ddpmpp@no.pth", "weights: no such file: no.pth"),
        ("edm:cifar10-32x32-cond-vp@no.safetensors", "weights: no such file: no.safetensors"),
        ("openi:cifar10_uncond@x.pt", "denoiser: unknown name 'openi'; did you mean openai?"),
        ("diffusers:", "denoiser: expected diffusers:FOLDER or diffusers:HUB_ID, got 'diffusers:'"),
        ("diffusers:digits", "denoiser: expected a folder or a Hub id \\(owner/name\\), got 'digits'"),
    ],
)
def test_bad_specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        dp.load_denoiser(spec)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_spec_reaches_its_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """The preset and the path arrive as they were written, an "@" in the path included."""
    seen: list[tuple[str, Path]] = []
    preset = next(iter(FAMILIES[family].presets))
    digits = dp.load_denoiser("digits")
    assert isinstance(digits, dp.NetworkDenoiser)

    def load(name: str, path: Path) -> dp.NetworkDenoiser:
        seen.append((name, path))
        return digits

    monkeypatch.setitem(FAMILIES, family, FAMILIES[family]._replace(load=load))
    assert dp.load_denoiser(f"{family}:{preset}@some/weights@2.pt") is digits
    assert seen == [(preset, Path("some/weights@2.pt"))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 0}, "description is wrong: patch: expected an integer ≥ 1, got 0"),
        ({"patch": "2"}, "description is wrong: patch: expected an integer ≥ 1, got '2'"),
        ({"network": {"norm_num_groups": 0}}, "description is wrong: integer modulo by zero"),
    ],
)
def test_bad_descriptions(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    tensors, description = load_weights(packaged("denoiser")["digits"])
    for name, value in changes.items():
        description[name] = {**description[name], **value} if isinstance(value, dict) else value
    save_weights(tmp_path / "w.safetensors", tensors, description)
    with pytest.raises(ValueError, match=message):
        dp.load_denoiser(str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("prefix", ["", "diffusers:"])
def test_a_hub_id_that_is_not_to_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        ValueError, match="'google/ddpm-cifar10-32' is no folder here and cannot be had"
    ) as raised:
        dp.load_denoiser(f"{prefix}google/ddpm-cifar10-32")
    assert "\n" not in str(raised.value)


def test_a_downloaded_pipeline_loads_with_its_parts_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repositories such as google/ddpm-cifar10-32 have no unet/ and scheduler/ folders."""
    import huggingface_hub
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=8,
    )
    unet.save_pretrained(tmp_path)
    DDPMScheduler(num_train_timesteps=50, prediction_type="v_prediction").save_pretrained(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    denoiser = dp.load_denoiser("someone/something")
    x = torch.rand(2, 1, 8, 8)
    sigma = denoiser.nearest(0.1)
    # v = √ᾱ·ε − √(1−ᾱ)·x0, so that x0 = √ᾱ·x_t − √(1−ᾱ)·v, in [−1, 1] pixels.
    bar = 1 / (1 + (2 * sigma) ** 2)
    x_t = bar**0.5 * (2 * x - 1)
    index = torch.full((2,), denoiser.nearest_index(0.1))
    expected = bar**0.5 * x_t - (1 - bar) ** 0.5 * unet(x_t, index, return_dict=False)[0]
    torch.testing.assert_close(2 * denoiser(x, sigma) - 1, expected, rtol=1e-4, atol=1e-5)
