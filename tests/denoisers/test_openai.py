"""OpenAI's checkpoints compute what the authors' code computes.

The files under golden/openai hold inputs, timesteps, labels and outputs of the authors' own UNetModel, and
the keys and shapes of its state dict; the weights are made anew by golden_recipe.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffproof.denoisers.network import NetworkDenoiser
from diffproof.denoisers.openai import (
    PRESETS,
    Preset,
    build_unet,
    load,
    load_checkpoint,
    preset_shapes,
)
from diffproof.denoisers.schedules import DiscreteSchedule
from diffproof.weights import save_weights
from helpers.files import Trap
from helpers.golden_recipe import recipe_state
from helpers.paths import GOLDEN
from helpers.tensors import error

STORED = GOLDEN / "openai"
SEED = 7
COSINE, LINEAR = DiscreteSchedule.cosine(4000), DiscreteSchedule.linear()
IMPROVED = Preset(8, 32, (1, 2, 2), 1, (4, 2), COSINE, heads=4, timestep_scale=0.25)
GUIDED = Preset(8, 32, (1, 1, 2), 2, (4, 2), LINEAR, head_channels=16, resampling_blocks=True)
# A small network of every kind, as the published ones differ; the last is a published one at its full size.
KINDS: dict[str, Preset] = {
    "improved": IMPROVED,
    "improved-classes": Preset(8, 32, (1, 2), 1, (4,), COSINE, heads=4, num_classes=7),
    "guided": GUIDED,
    "guided-heads": Preset(8, 64, (1, 2), 1, (4,), LINEAR, heads=4, resampling_blocks=True, num_classes=7),
    "guided-split-first": Preset(
        8,
        32,
        (1, 2),
        1,
        (8, 4),
        DiscreteSchedule.cosine(1000),
        head_channels=16,
        resampling_blocks=True,
        split_first=True,
        num_classes=7,
    ),
    "guided-half-width": Preset(
        8, 64, (0.5, 1, 1), 1, (4, 2), LINEAR, head_channels=16, resampling_blocks=True, num_classes=7
    ),
    "cifar10_uncond": PRESETS["cifar10_uncond"],
}


class Golden(NamedTuple):
    x: Tensor
    timestep: Tensor
    label: Tensor | None
    output: Tensor
    shapes: dict[str, tuple[int, ...]]


def golden(kind: str) -> Golden:
    with np.load(STORED / f"{kind}.npz") as file:
        x, timestep, label, output = (
            torch.from_numpy(file[part]) for part in ("x", "timestep", "label", "output")
        )
        shapes = {
            str(key): tuple(map(int, str(shape).split("x")))
            for key, shape in zip(file["keys"], file["shapes"], strict=True)
        }
    return Golden(x, timestep, label if len(label) else None, output, shapes)


def loaded(
    tmp_path: Path, kind: str, preset: Preset | None = None, change: Callable[[Tensor], Tensor] | None = None
) -> NetworkDenoiser:
    """The recipe's weights under the authors' keys, through a file."""
    state = recipe_state(golden(kind).shapes, SEED)
    path = tmp_path / "weights.pt"
    torch.save({key: change(tensor) if change else tensor for key, tensor in state.items()}, path)
    try:
        return load_checkpoint(path, preset or KINDS[kind], kind)
    finally:
        path.unlink()  # the largest has 210 MB


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_authors_outputs(tmp_path: Path, kind: str) -> None:
    reference = golden(kind)
    denoiser = loaded(tmp_path, kind)
    assert not denoiser.training
    with torch.no_grad():
        output = denoiser.network(reference.x, reference.timestep, reference.label)
        assert error(output, reference.output) < 1e-5

        # The same through pixels and sigma, at the trained levels, whose index counts from 0.
        bar = KINDS[kind].schedule.alphas_cumprod[reference.timestep][:, None, None, None]
        noisy = (reference.x / bar.sqrt() + 1) / 2
        sigma = (1 / bar - 1).sqrt().flatten() / 2
        estimate = denoiser.checked_estimate(noisy, sigma, reference.label)
    epsilon = (noisy - estimate.clean) * 2 / (1 / bar - 1).sqrt()
    assert error(epsilon, reference.output[:, :3].double()) < 1e-5
    assert estimate.log_variance_mix is not None
    assert error(estimate.log_variance_mix * 2 - 1, reference.output[:, 3:].double()) < 1e-5


# Number of keys, of parameters, and a hash of the authors' keys and shapes.
CIFAR10 = (446, 52_546_438, "50c250208b52636834bcf12e8d53e074345656232fa36c0aed3f6df318872f5c")
IMAGENET64 = (450, 121_063_942, "6d0ee649186dff728bbc304420d88102fea2228d0a23d146df111f8cfc9d6d40")
KEYS = {
    "cifar10_uncond": CIFAR10,
    "cifar10_uncond_vlb": CIFAR10,
    "imagenet64_uncond": IMAGENET64,
    "imagenet64_uncond_vlb": IMAGENET64,
    "imagenet64_cond": (
        451,
        273_049_350,
        "a33187769b947c95c85294e95adab0f59a44066c6a16410544fb72c6a214d0c5",
    ),
    "64x64_diffusion": (
        541,
        295_904_454,
        "40271b72ad5de28c5535dae1d187f2f685d54cbc82286fa767a055f6221660f1",
    ),
    "128x128_diffusion": (
        493,
        421_529_606,
        "acf0fda1a78ff280a0af90bd966229ba309ad26ff2434a220fc11d604a8f751b",
    ),
    "256x256_diffusion": (
        567,
        553_838_086,
        "d861e8fba157265224387f7873c8e1a1a11d93e0334de75603f96814ce1e0074",
    ),
    "256x256_diffusion_uncond": (
        566,
        552_814_086,
        "fe93167087f7317b01c4b4261dc38d6303b8de63cf64d7994d1f946790cc6384",
    ),
    "512x512_diffusion": (
        645,
        558_997_638,
        "1e27698a1c14eeff4e189c5416445dec3fa7c638ccd929333df4b355c9046934",
    ),
}

# What weights do not tell, as the authors' code has it: timesteps, σ' of the last and what the network is
# conditioned on there, attention heads by width, whether q, k and v come before the heads, dropout.
IMPROVED_64 = (4000, 81164.6, 999.75, {384: 4, 512: 4}, False, 0.0)
GUIDED_256 = (1000, 157.407, 999.0, {512: 8, 1024: 16}, False, 0.0)
FLAGS: dict[str, tuple[int, float, float, dict[int, int], bool, float]] = {
    "cifar10_uncond": (4000, 81164.6, 999.75, {256: 4}, False, 0.3),
    "cifar10_uncond_vlb": (4000, 81164.6, 999.75, {256: 4}, False, 0.3),
    "imagenet64_uncond": IMPROVED_64,
    "imagenet64_uncond_vlb": IMPROVED_64,
    "imagenet64_cond": (4000, 81164.6, 3999.0, {576: 4, 768: 4}, False, 0.0),
    "64x64_diffusion": (1000, 20291.2, 999.0, {384: 6, 576: 9, 768: 12}, True, 0.1),
    "128x128_diffusion": (1000, 157.407, 999.0, {512: 4, 768: 4, 1024: 4}, False, 0.0),
    "256x256_diffusion": GUIDED_256,
    "256x256_diffusion_uncond": GUIDED_256,
    "512x512_diffusion": GUIDED_256,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_presets_expect_the_authors_keys_and_flags(name: str) -> None:
    from diffusers.models.attention_processor import Attention

    preset, shapes = PRESETS[name], preset_shapes(name)
    lines = sorted(f"{key} {'x'.join(map(str, shape))}" for key, shape in shapes.items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert (len(shapes), sum(map(math.prod, shapes.values())), digest) == KEYS[name]

    with torch.device("meta"):
        unet = build_unet(preset)
    heads = {module.inner_dim: module.heads for module in unet.modules() if isinstance(module, Attention)}
    dropout = {module.p for module in unet.modules() if isinstance(module, nn.Dropout)} - {0.0}
    timesteps, largest, conditioning, expected_heads, split_first, expected_dropout = FLAGS[name]
    assert preset.schedule.first_timestep == (1 if name.startswith("cifar10") else 0)
    assert len(preset.schedule.sigmas) == timesteps
    assert preset.schedule.sigma_range[1] == pytest.approx(largest, rel=1e-5)
    assert preset.timestep_scale * (timesteps - 1) == conditioning
    assert heads == expected_heads
    assert preset.split_first is split_first
    assert dropout == {expected_dropout} - {0.0}


def save_blank(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A checkpoint of zeros that takes no space, as each tensor repeats one number."""
    torch.save({key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads(tmp_path: Path, name: str) -> None:
    preset = PRESETS[name]
    denoiser = load(name, save_blank(tmp_path / "weights.pt", preset_shapes(name)))
    assert denoiser.image_shape == (3, preset.image_size, preset.image_size)
    assert denoiser.num_classes == (None if "uncond" in name else 1000)
    assert denoiser.null_label is None
    assert not denoiser.training
    assert not any(tensor.is_meta for tensor in denoiser.state_dict().values())


def test_half_precision_is_loaded_as_single(tmp_path: Path) -> None:
    reference = golden("guided")
    denoiser = loaded(tmp_path, "guided", change=Tensor.half)
    assert {tensor.dtype for tensor in denoiser.state_dict().values()} == {torch.float32}
    with torch.no_grad():
        output = denoiser.network(reference.x, reference.timestep, None)
    assert error(output, reference.output) < 0.01


def test_safetensors(tmp_path: Path) -> None:
    reference = golden("improved")
    path = tmp_path / "weights.safetensors"
    save_weights(path, recipe_state(reference.shapes, SEED), {})
    with torch.no_grad():
        output = load_checkpoint(path, IMPROVED, "improved").network(reference.x, reference.timestep, None)
    assert error(output, reference.output) < 1e-5


@pytest.mark.parametrize(
    ("kind", "preset"),
    [
        ("guided", replace(GUIDED, split_first=True)),
        ("guided", replace(GUIDED, head_channels=32)),
        ("guided-split-first", replace(KINDS["guided-split-first"], split_first=False)),
        ("improved", replace(IMPROVED, heads=2)),
        ("improved", replace(IMPROVED, timestep_scale=1.0)),
    ],
)
def test_what_shapes_do_not_tell_matters(tmp_path: Path, kind: str, preset: Preset) -> None:
    reference = golden(kind)
    with torch.no_grad():
        output = loaded(tmp_path, kind, preset).network(reference.x, reference.timestep, reference.label)
    assert error(output, reference.output) > 0.01


@pytest.mark.parametrize("kind", ["improved", "guided"])
def test_attention_that_is_spelt_out_is_the_same(tmp_path: Path, kind: str) -> None:
    from diffusers.models.attention_processor import Attention, AttnProcessor

    reference = golden(kind)
    denoiser = loaded(tmp_path, kind)
    for module in denoiser.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())
    with torch.no_grad():
        output = denoiser.network(reference.x, reference.timestep, None)
    assert error(output, reference.output) < 1e-5


def test_gradients_reach_the_image(tmp_path: Path) -> None:
    reference = golden("improved-classes")
    denoiser = loaded(tmp_path, "improved-classes").double()
    noisy = (reference.x.double()[:2] + 1) / 2
    noisy.requires_grad_()
    direction = reference.x.double()[2:4]

    def value(images: Tensor) -> Tensor:
        estimate: Tensor = denoiser(images, 0.5, torch.tensor([1, 5]))
        return estimate.square().sum()

    (gradient,) = torch.autograd.grad(value(noisy), noisy)
    with torch.no_grad():
        numeric = (value(noisy + 1e-4 * direction) - value(noisy - 1e-4 * direction)) / 2e-4
    assert float((gradient * direction).sum()) == pytest.approx(float(numeric), rel=1e-6)


def test_a_class_conditional_checkpoint_needs_labels(tmp_path: Path) -> None:
    denoiser = loaded(tmp_path, "guided-heads")
    with pytest.raises(ValueError, match="label: this denoiser has no null label"):
        denoiser(torch.zeros(1, 3, 8, 8), 0.5)


def without(shapes: dict[str, tuple[int, ...]], *keys: str) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in shapes.items() if key not in keys}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda shapes: without(shapes, "input_blocks.3.1.qkv.bias", "out.2.bias"),
            "missing input_blocks.3.1.qkv.bias, out.2.bias",
        ),
        (lambda shapes: {**shapes, "label_emb.weight": (7, 128)}, "unexpected label_emb.weight"),
        (
            lambda shapes: {**shapes, "out.2.weight": (3, 32, 3, 3), "out.2.bias": (3,)},
            "misshapen out.2.weight (expected 6×32×3×3, got 3×32×3×3), out.2.bias (expected 6, got 3)",
        ),
        (
            lambda shapes: {key.replace("time_embed", "embed"): shape for key, shape in shapes.items()},
            "missing time_embed.0.weight, time_embed.0.bias, time_embed.2.weight and 1 more;"
            " unexpected embed.0.weight, embed.0.bias, embed.2.weight and 1 more",
        ),
    ],
)
def test_misfits_are_named_in_the_checkpoints_own_keys(
    tmp_path: Path, change: Callable[[dict[str, tuple[int, ...]]], dict[str, tuple[int, ...]]], message: str
) -> None:
    path = save_blank(tmp_path / "weights.pt", change(golden("improved").shapes))
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_checkpoint(path, IMPROVED, "improved")
    assert str(caught.value) == f"weights: {path} does not fit preset improved: {message}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fitting", "asked", "hint"),
    [
        ("cifar10_uncond", "imagenet64_uncond", "preset cifar10_uncond or cifar10_uncond_vlb fits"),
        ("256x256_diffusion_uncond", "256x256_diffusion", "preset 256x256_diffusion_uncond fits"),
    ],
)
def test_the_fitting_preset_is_named(tmp_path: Path, fitting: str, asked: str, hint: str) -> None:
    path = save_blank(tmp_path / "weights.pt", preset_shapes(fitting))
    with pytest.raises(ValueError, match=rf"does not fit preset {asked}: missing .*; {hint}$"):
        load(asked, path)


@pytest.mark.slow
def test_no_preset_is_named_where_only_the_keys_fit(tmp_path: Path) -> None:
    shapes = {**preset_shapes("cifar10_uncond"), "out.2.bias": (3,)}
    with pytest.raises(ValueError, match=r"misshapen out.2.bias \(expected 6, got 3\)$"):
        load("cifar10_uncond", save_blank(tmp_path / "weights.pt", shapes))


def test_unknown_presets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"preset: unknown name .*did you mean cifar10_uncond"):
        load("cifar10_uncond_50M_500K", tmp_path / "weights.pt")


def test_code_in_a_checkpoint_never_runs(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"time_embed.0.weight": Trap(tmp_path / "marker")}, path)
    with pytest.raises(ValueError, match="pickle that holds code"):
        load("cifar10_uncond", path)
    assert not (tmp_path / "marker").exists()
