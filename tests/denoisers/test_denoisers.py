from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn

from diffproof.denoisers.base import Denoiser, Estimate
from diffproof.denoisers.diffusers import from_unet, load
from diffproof.denoisers.empirical import EmpiricalDenoiser
from diffproof.denoisers.gaussian_mixture import GaussianMixtureDenoiser
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.denoisers.schedules import (
    DiscreteSchedule,
    Schedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)
from helpers.tensors import random

SHAPE = (1, 2, 2)
LINEAR = DiscreteSchedule.linear()
COSINE = DiscreteSchedule.cosine(400)


def covariance(seed: int, size: int = 4, scale: float = 0.04) -> Tensor:
    root = random(size, size, seed=seed)
    return scale * (root @ root.T / size + 0.05 * torch.eye(size, dtype=torch.float64))


class GaussianNetwork(nn.Module):
    """The optimal network for data N(mean, cov), in the √ᾱ coordinates of Ho et al. 2020, eq. 4 and 9.

    It knows nothing of pixels in [0, 1] or of sigma: only ᾱ at the timestep that it is given.
    """

    def __init__(
        self, mean: Tensor, cov: Tensor, alpha_bar: Callable[[Tensor], Tensor], prediction: str
    ) -> None:
        super().__init__()
        self.mean, self.cov, self.alpha_bar, self.prediction = mean, cov, alpha_bar, prediction

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        assert label is None
        assert timestep.shape == (len(x),)
        flat = x.flatten(1)
        bar = self.alpha_bar(timestep)[:, None]
        identity = torch.eye(len(self.mean), dtype=x.dtype)
        total = bar[..., None] * self.cov + (1 - bar[..., None]) * identity
        gain = bar[..., None].sqrt() * self.cov @ torch.linalg.inv(total)
        clean = self.mean + torch.einsum("nij,nj->ni", gain, flat - bar.sqrt() * self.mean)
        epsilon = (flat - bar.sqrt() * clean) / (1 - bar).sqrt()
        output = {
            "sample": clean,
            "epsilon": epsilon,
            "v_prediction": bar.sqrt() * epsilon - (1 - bar).sqrt() * clean,
        }[self.prediction]
        return output.reshape(x.shape)


VP = VariancePreservingSchedule()


def vp_alpha_bar(conditioning: Tensor) -> Tensor:
    time = conditioning / 999
    return torch.exp(-0.1 * time - 0.5 * 19.9 * time**2)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    ("schedule", "alpha_bar"),
    [
        (LINEAR, lambda t: LINEAR.alphas_cumprod[t]),
        (COSINE, lambda t: COSINE.alphas_cumprod[t]),
        (VP, vp_alpha_bar),
    ],
    ids=["linear", "cosine", "vp"],
)
def test_every_prediction_gives_the_closed_form(
    prediction: str, schedule: Schedule, alpha_bar: Callable[[Tensor], Tensor]
) -> None:
    mean, cov = random(4, seed=1) * 0.3, covariance(2, scale=0.2)
    denoiser = NetworkDenoiser(
        GaussianNetwork(mean, cov, alpha_bar, prediction), schedule, prediction=prediction
    )
    # Pixels are (data + 1)/2, so their mean shifts and their covariance shrinks by four.
    exact = GaussianMixtureDenoiser((mean.reshape(1, *SHAPE) + 1) / 2, cov[None] / 4)
    noisy = 0.5 + random(6, *SHAPE, seed=3)
    if schedule.sigmas is None:
        sigmas = torch.tensor([0.01, 0.1, 0.25, 0.5, 1.0, 3.0], dtype=torch.float64)
    else:
        sigmas = schedule.sigmas[[0, 20, 100, 200, 300, 380]] / 2
    torch.testing.assert_close(denoiser(noisy, sigmas), exact(noisy, sigmas), rtol=1e-9, atol=1e-9)
    for i, sigma in enumerate(sigmas.tolist()):
        torch.testing.assert_close(denoiser(noisy, sigma)[i], exact(noisy, sigmas)[i], rtol=1e-9, atol=1e-9)


class Recorder(nn.Module):
    """A linear network that keeps what it was called with."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.channels = channels

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        self.x, self.timestep, self.label = x, timestep, label
        return (self.gain * x).repeat(1, self.channels, 1, 1)


@pytest.mark.parametrize(
    ("data_range", "width"), [((-1.0, 1.0), 2.0), ((0.0, 1.0), 1.0), ((0.0, 255.0), 255.0)]
)
def test_off_grid_sigma_conditions_on_the_nearest_level_and_converts_exactly(
    data_range: tuple[float, float], width: float
) -> None:
    network = Recorder()
    denoiser = NetworkDenoiser(network, LINEAR, data_range=data_range)
    index = 300
    grid = LINEAR.sigmas / width
    sigma = float(0.7 * grid[index] + 0.3 * grid[index + 1])
    noisy = 0.5 + sigma * random(3, *SHAPE)
    clean = denoiser(noisy, sigma)
    assert network.timestep.tolist() == [index] * 3
    assert network.label is None
    data = noisy * width + data_range[0]
    x = data / math.sqrt(1 + (width * sigma) ** 2)
    torch.testing.assert_close(network.x, x, rtol=1e-12, atol=0)
    expected = (data - width * sigma * 0.3 * x - data_range[0]) / width
    torch.testing.assert_close(clean, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(denoiser.sigmas, grid)
    assert denoiser.nearest_index(sigma) == index


def test_variance_exploding_network_sees_the_image_unscaled() -> None:
    network = Recorder()
    denoiser = NetworkDenoiser(network, VarianceExplodingSchedule(), data_range=(0.0, 1.0))
    noisy = random(2, *SHAPE)
    clean = denoiser(noisy, torch.tensor([0.5, 2.0], dtype=torch.float64))
    torch.testing.assert_close(network.x, noisy)
    torch.testing.assert_close(network.timestep, torch.tensor([0.5, 2.0], dtype=torch.float64).log())
    torch.testing.assert_close(
        clean, noisy * torch.tensor([0.85, 0.4], dtype=torch.float64).reshape(2, 1, 1, 1)
    )


def test_network_runs_in_the_dtype_of_its_weights() -> None:
    network = Recorder().to(torch.bfloat16)
    noisy = random(2, *SHAPE).float()
    clean = NetworkDenoiser(network, LINEAR)(noisy, 0.5)
    assert network.x.dtype == torch.bfloat16
    assert clean.dtype == torch.float32


@pytest.mark.parametrize("schedule", [COSINE, DiscreteSchedule.cosine(400, first_timestep=1)])
def test_network_start_timestep_has_the_factor_two(schedule: DiscreteSchedule) -> None:
    denoiser = NetworkDenoiser(Recorder(), schedule)
    for index in (0, 57, 300):
        start = denoiser.start_timestep(float(schedule.sigmas[index]) / 2)
        assert start == pytest.approx(index + schedule.first_timestep, abs=1e-6)


@pytest.mark.parametrize(("index", "next_index"), [(399, 380), (200, 150), (50, 1), (1, 0)])
@pytest.mark.parametrize("value", [-1.0, -0.3, 0.0, 1.0])
def test_learned_variance_is_that_of_guided_diffusion(index: int, next_index: int, value: float) -> None:
    class Learned(nn.Module):
        def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
            return torch.cat([x, torch.full_like(x, value)], 1)

    schedule = COSINE
    denoiser = NetworkDenoiser(Learned(), schedule)
    assert denoiser.sigmas is not None
    sigma, next_sigma = float(denoiser.sigmas[index]), float(denoiser.sigmas[next_index])
    estimate = denoiser.checked_estimate(random(2, *SHAPE), sigma)
    got = denoiser.learned_variance(estimate, sigma, next_sigma)
    # gaussian_diffusion.py of guided-diffusion, p_mean_variance, in √ᾱ coordinates of [−1, 1] pixels.
    bar, bar_next = (float(schedule.alphas_cumprod[i]) for i in (index, next_index))
    beta = 1 - bar / bar_next
    beta_tilde = beta * (1 - bar_next) / (1 - bar)
    fraction = (value + 1) / 2
    variance = math.exp(fraction * math.log(beta) + (1 - fraction) * math.log(beta_tilde))
    # x_t/√ᾱ_t is the data plus noise; pixels are half as wide as [−1, 1].
    assert got is not None
    torch.testing.assert_close(
        got, torch.full((2, *SHAPE), variance / bar_next / 4, dtype=torch.float64), rtol=1e-9, atol=0
    )
    torch.testing.assert_close(estimate.clean, denoiser(random(2, *SHAPE), sigma))


def test_no_learned_variance_without_extra_channels() -> None:
    for denoiser in (
        NetworkDenoiser(Recorder(), LINEAR),
        GaussianMixtureDenoiser(torch.zeros(1, *SHAPE), torch.ones(1)),
    ):
        estimate = denoiser.checked_estimate(random(2, *SHAPE), 0.5)
        assert estimate.log_variance_mix is None
        assert denoiser.learned_variance(estimate, 0.5, 0.25) is None


def small_unet(seed: int = 0, **settings: Any) -> Any:
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    return UNet2DModel(
        **{
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": (8,),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "down_block_types": ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",),
            **settings,
        }
    ).eval()


def diffusers_clean(
    unet: Any, scheduler: Any, noisy: Tensor, index: int, label: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The clean pixels by diffusers' own scheduler, and the raw output of the network."""
    bar = scheduler.alphas_cumprod[index]
    x = (2 * noisy - 1) * bar.sqrt()
    output = unet(x, torch.tensor(index), class_labels=label).sample
    clean = scheduler.step(output, index, x).pred_original_sample
    return (clean + 1) / 2, output


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("index", [3, 40, 99])
def test_unet_agrees_with_the_diffusers_scheduler(prediction: str, index: int) -> None:
    from diffusers import DDPMScheduler

    unet = small_unet()
    scheduler = DDPMScheduler(100, beta_end=0.1, prediction_type=prediction, clip_sample=False)
    schedule = DiscreteSchedule.from_betas(scheduler.betas)
    denoiser = from_unet(unet, schedule, prediction=prediction)
    assert denoiser.image_shape == (1, 8, 8)
    assert denoiser.num_classes is None
    assert denoiser.sigmas is not None
    sigma = float(denoiser.sigmas[index])
    noisy = 0.5 + sigma * random(3, 1, 8, 8).float()
    with torch.no_grad():
        expected, _ = diffusers_clean(unet, scheduler, noisy, index)
        torch.testing.assert_close(denoiser(noisy, sigma), expected, rtol=1e-4, atol=1e-5)


def test_unet_with_labels_and_learned_variance() -> None:
    from diffusers import DDPMScheduler

    unet = small_unet(num_class_embeds=4, out_channels=2, sample_size=(8, 6))
    scheduler = DDPMScheduler(100, beta_end=0.1, variance_type="learned_range", clip_sample=False)
    denoiser = from_unet(unet, DiscreteSchedule.from_betas(scheduler.betas), null_label=3)
    assert denoiser.image_shape == (1, 8, 6)
    assert (denoiser.num_classes, denoiser.null_label) == (3, 3)
    assert denoiser.sigmas is not None
    index = 60
    sigma, next_sigma = float(denoiser.sigmas[index]), float(denoiser.sigmas[index - 1])
    noisy = 0.5 + sigma * random(3, 1, 8, 6).float()
    label = torch.tensor([2, 0, 1])
    null = torch.full((3,), 3)
    with torch.no_grad():
        with_label = denoiser.checked_estimate(noisy, sigma, label)
        expected, output = diffusers_clean(unet, scheduler, noisy, index, label)
        torch.testing.assert_close(with_label.clean, expected, rtol=1e-4, atol=1e-5)
        without, _ = diffusers_clean(unet, scheduler, noisy, index, null)
        torch.testing.assert_close(denoiser(noisy, sigma), without, rtol=1e-4, atol=1e-5)
        assert float((with_label.clean - without).abs().max()) > 1e-3
        log_variance = scheduler._get_variance(index, output[:, 1:])
        got = denoiser.learned_variance(with_label, sigma, next_sigma)
    assert got is not None
    torch.testing.assert_close(
        got, log_variance.exp() / scheduler.alphas_cumprod[index - 1] / 4, rtol=1e-4, atol=0
    )


def test_unet_of_any_size_and_fewer_labels() -> None:
    denoiser = from_unet(small_unet(sample_size=None, num_class_embeds=5), LINEAR, num_classes=2)
    assert denoiser.image_shape is None
    assert denoiser.num_classes == 2
    assert denoiser(torch.rand(1, 1, 4, 4), 0.5, torch.tensor([1])).shape == (1, 1, 4, 4)


def save_folder(folder: Path, unet: Any, **scheduler: Any) -> None:
    from diffusers import DDPMScheduler

    unet.save_pretrained(folder / "unet")
    DDPMScheduler(100, **scheduler).save_pretrained(folder / "scheduler")


def test_folder_round_trip(tmp_path: Path) -> None:
    from diffusers import DDPMScheduler

    unet = small_unet(7, num_class_embeds=4)
    save_folder(tmp_path, unet, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    loaded = load(str(tmp_path))
    assert not loaded.training
    assert loaded.num_classes == 4
    assert loaded.null_label is None
    assert loaded.sigmas is not None
    torch.testing.assert_close(
        2 * loaded.sigmas[:-1], DiscreteSchedule.cosine(100).sigmas[:-1], rtol=1e-5, atol=0
    )
    original = from_unet(
        unet, DiscreteSchedule.from_betas(DDPMScheduler(100, beta_schedule="squaredcos_cap_v2").betas),
        prediction="v_prediction",
    )  # fmt: skip
    noisy, label = torch.rand(2, 1, 8, 8), torch.tensor([0, 3])
    assert torch.equal(loaded(noisy, 0.5, label), original(noisy, 0.5, label))


def truncate(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def remove_weights(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def change_config(**settings: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "unet" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "unet" / "config.json").unlink(), "unet/config.json is missing"),
        (
            lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(),
            "scheduler/scheduler_config.json is missing",
        ),
        (lambda folder: (folder / "unet" / "config.json").write_text("{"), "cannot read .*unet/config.json"),
        (truncate, "cannot load .*"),
        (remove_weights, "no diffusion_pytorch_model.safetensors in .*unet"),
        (change_config(block_out_channels=[16]), "cannot load .* size mismatch"),
        (change_config(down_block_types=["NoBlock"]), "cannot load .*NoBlock"),
        # Weights that the file lacks must not be made up at random.
        (change_config(num_class_embeds=3), "do not fit: missing keys class_embedding.weight"),
        (change_config(add_attention=False), "do not fit: unexpected keys mid_block.attentions"),
    ],
)
def test_bad_folders(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    save_folder(tmp_path, small_unet())
    load(str(tmp_path))
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({}, {"num_classes": 3}, "num_classes: this U-Net has no class embedding"),
        ({}, {"null_label": 3}, "num_classes: this U-Net has no class embedding"),
        ({"num_class_embeds": 4}, {"null_label": 4}, "null_label: expected 0 ≤ null_label < 4, got 4"),
        ({"num_class_embeds": 4}, {"null_label": -1}, "null_label: expected"),
        ({"num_class_embeds": 4}, {"num_classes": 5}, "num_classes: expected 1 to 4 .* got 5"),
        ({"num_class_embeds": 4}, {"num_classes": 0}, "num_classes: expected 1 to 4 .* got 0"),
        (
            {},
            {"prediction": "score"},
            "prediction: expected one of epsilon, sample, v_prediction, got 'score'",
        ),
    ],
)
def test_bad_unet_arguments(settings: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_unet(small_unet(**settings), LINEAR, **arguments)


@pytest.mark.parametrize("channels", [3, 4])
def test_wrong_output_channels(channels: int) -> None:
    with pytest.raises(
        ValueError, match=r"network: expected 1 or 2 output channels.* got output shape \(2, "
    ):
        NetworkDenoiser(Recorder(channels), LINEAR)(random(2, *SHAPE), 0.5)


@pytest.mark.parametrize("data_range", [(1.0, -1.0), (0.0, 0.0)])
def test_bad_data_range(data_range: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="data_range: expected"):
        NetworkDenoiser(Recorder(), LINEAR, data_range=data_range)


def test_nearest_is_the_nearest_and_a_tie_goes_to_the_lower() -> None:
    # σ' = 1, 3, 7 in [−1, 1] pixels.
    denoiser = NetworkDenoiser(
        Recorder(), DiscreteSchedule(torch.tensor([0.5, 0.1, 0.02], dtype=torch.float64), 1)
    )
    assert [denoiser.nearest(sigma) for sigma in (0.5, 0.99, 1.0, 1.01, 2.5, 2.51, 3.5)] == [
        0.5, 0.5, 0.5, 1.5, 1.5, 3.5, 3.5,
    ]  # fmt: skip
    assert denoiser.start_timestep(2.5) == 2
    mixture = GaussianMixtureDenoiser(
        torch.zeros(1, *SHAPE), torch.ones(1), sigmas=torch.tensor([0.5, 1.5, 3.5])
    )
    assert [mixture.nearest_index(sigma) for sigma in (0.5, 1.0, 1.01, 2.5, 3.5)] == [0, 0, 1, 1, 2]
    assert mixture.start_timestep(2.6) == 2


OUTSIDE = [0.0, -0.5, 1e-4, 5.1, math.inf, math.nan]


@pytest.mark.parametrize("sigma", OUTSIDE)
@pytest.mark.parametrize("call", ["forward", "nearest", "nearest_index", "start_timestep", "tensor"])
def test_sigma_outside_the_range_is_never_clamped(sigma: float, call: str) -> None:
    schedule = DiscreteSchedule.from_betas(torch.linspace(0.0001, 0.1, 100, dtype=torch.float64))
    denoiser = NetworkDenoiser(Recorder(), schedule)
    assert denoiser.sigma_min == pytest.approx(0.005, rel=1e-3)
    assert denoiser.sigma_max < 7
    sigma = 2 * denoiser.sigma_max if sigma == 5.1 else sigma
    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: denoiser(random(2, *SHAPE), sigma),
        "nearest": lambda: denoiser.nearest(sigma),
        "nearest_index": lambda: denoiser.nearest_index(sigma),
        "start_timestep": lambda: denoiser.start_timestep(sigma),
        "tensor": lambda: denoiser(random(2, *SHAPE), torch.tensor([0.5, sigma])),
    }
    with pytest.raises(ValueError, match=r"sigma: expected .* \(the denoiser's range\), got"):
        calls[call]()


@pytest.mark.parametrize(("sigma", "got"), [([0.5, math.nan], "nan"), ([0.0, 0.5], "0 to 0.5")])
def test_what_came_in_place_of_levels(sigma: list[float], got: str) -> None:
    with pytest.raises(ValueError, match=rf"\(the denoiser's range\), got {got}$"):
        NetworkDenoiser(Recorder(), LINEAR).check_sigma(torch.tensor(sigma))


def test_ends_of_the_range_are_inside() -> None:
    denoiser = NetworkDenoiser(Recorder(), LINEAR)
    for sigma in (denoiser.sigma_min, denoiser.sigma_max):
        assert denoiser.nearest(sigma) == sigma
        # A grid end that went through text with ten digits is still the grid's end.
        denoiser.check_sigma(float(f"{sigma:.10g}"))
        with pytest.raises(ValueError, match="sigma: expected"):
            denoiser.check_sigma(sigma * (1 - 1e-6 if sigma < 1 else 1 + 1e-6))


def test_continuous_denoisers_have_no_grid() -> None:
    denoiser = NetworkDenoiser(Recorder(), VP)
    assert denoiser.sigmas is None
    assert denoiser.nearest(0.3) == 0.3
    with pytest.raises(ValueError, match="sigma: expected"):
        denoiser.nearest(500.0)
    with pytest.raises(ValueError, match="sigmas: this denoiser is continuous"):
        denoiser.nearest_index(0.3)


def conditional() -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(random(3, *SHAPE), torch.ones(3), component_labels=[0, 1, 1])


def unlabelled() -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(random(3, *SHAPE), torch.ones(3))


NOISY = random(2, *SHAPE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unlabelled()(NOISY[0], 0.5), "images: expected N×C×H×W"),
        (lambda: unlabelled()(NOISY.reshape(2, 2, 2, 1), 0.5), "images: the denoiser takes 1×2×2"),
        (lambda: unlabelled()(NOISY, 0.5, torch.tensor([0, 0])), "label: this denoiser is unconditional"),
        (
            lambda: conditional()(NOISY, 0.5, torch.tensor([0])),
            r"label: expected 2 integers, got shape \(1,\)",
        ),
        (lambda: conditional()(NOISY, 0.5, torch.tensor([0.0, 1.0])), "label: expected 2 integers"),
        (lambda: conditional()(NOISY, 0.5, torch.tensor([0, 2])), "label: expected 0 ≤ label < 2, got"),
        (lambda: conditional()(NOISY, 0.5, torch.tensor([-1, 0])), "label: expected 0 ≤ label < 2, got"),
        (
            lambda: NetworkDenoiser(Recorder(), LINEAR, num_classes=2)(NOISY, 0.5),
            "label: this denoiser has no null label",
        ),
        (lambda: unlabelled()(NOISY, torch.ones(3)), r"sigma: expected one or 2 values, got shape \(3,\)"),
        (lambda: unlabelled()(NOISY, torch.ones(2, 1)), "sigma: expected one or 2 values"),
        (lambda: unlabelled()(NOISY, torch.ones(0)), "sigma: expected one or 2 values"),
        (
            lambda: GaussianMixtureDenoiser(torch.zeros(3, 4), torch.ones(3)),
            r"means: expected K×C×H×W, got shape \(3, 4\)",
        ),
        (
            lambda: GaussianMixtureDenoiser(torch.zeros(3, *SHAPE), torch.ones(2)),
            "covariances: expected 3 variances or 3×4×4",
        ),
        (
            lambda: GaussianMixtureDenoiser(torch.zeros(1, *SHAPE), torch.tensor([-0.1])),
            "covariances: expected positive semi-definite",
        ),
        (
            lambda: GaussianMixtureDenoiser(torch.zeros(2, *SHAPE), torch.ones(2), [0.5, 0.4]),
            "weights: expected 2 positive numbers that sum to 1",
        ),
        (
            lambda: GaussianMixtureDenoiser(torch.zeros(2, *SHAPE), torch.ones(2), [1.0, 0.0]),
            "weights: expected 2 positive numbers",
        ),
        (
            lambda: GaussianMixtureDenoiser(torch.zeros(2, *SHAPE), torch.ones(2), [1.0]),
            "weights: expected 2 positive numbers",
        ),
        (
            lambda: GaussianMixtureDenoiser(torch.zeros(2, *SHAPE), torch.ones(2), component_labels=[0]),
            "component_labels: expected 2 labels",
        ),
        (
            lambda: GaussianMixtureDenoiser(torch.zeros(2, *SHAPE), torch.ones(2), component_labels=[0, -1]),
            "component_labels: expected 2 labels",
        ),
        (
            lambda: GaussianMixtureDenoiser(torch.zeros(2, *SHAPE), torch.ones(2), component_labels=[0, 2]),
            "component_labels: expected every class of 0…2 at least once",
        ),
        (lambda: EmpiricalDenoiser(torch.zeros(3, 4)), "images: expected N×C×H×W"),
        (lambda: EmpiricalDenoiser(torch.zeros(0, *SHAPE)), "images: expected M×C×H×W with M ≥ 1"),
        (
            lambda: EmpiricalDenoiser(torch.zeros(3, *SHAPE), torch.tensor([0, 1])),
            r"labels: expected 3 integers, got shape \(2,\)",
        ),
        (lambda: EmpiricalDenoiser(torch.zeros(2, *SHAPE), torch.zeros(2)), "labels: expected 2 integers"),
        (
            lambda: EmpiricalDenoiser(torch.zeros(2, *SHAPE), torch.tensor([0, 2])),
            "labels: expected every class of 0…2 at least once",
        ),
        (
            lambda: EmpiricalDenoiser(torch.zeros(2, *SHAPE), torch.tensor([0, -1])),
            "labels: expected every class",
        ),
    ],
)
def test_bad_input(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_denoiser_without_estimate_says_so() -> None:
    class Empty(Denoiser):
        pass

    with pytest.raises(
        ValueError, match=r"denoiser: .*Empty .* failed: TypeError: Empty does not define estimate\(\)"
    ):
        Empty()(NOISY, 0.5)


@pytest.mark.slow
def test_mixture_against_numerical_integration() -> None:
    weights, means, variances = [0.2, 0.5, 0.3], [0.1, 0.4, 0.9], [0.01, 0.04, 0.0025]
    denoiser = GaussianMixtureDenoiser(
        torch.tensor(means, dtype=torch.float64).reshape(3, 1, 1, 1),
        torch.tensor(variances, dtype=torch.float64),
        weights,
    )

    def gaussian(x: float, variance: float) -> float:
        return math.exp(-(x**2) / (2 * variance)) / math.sqrt(variance)

    def density(x: float) -> float:
        return sum(w * gaussian(x - m, v) for w, m, v in zip(weights, means, variances, strict=True))

    for noisy in (-0.5, 0.65, 1.7):
        for sigma in (0.05, 0.25, 1.0):
            moments = [
                integrate.quad(
                    lambda x, n=noisy, s=sigma, k=k: x**k * density(x) * gaussian(n - x, s**2),
                    -1.5, 2.5, points=[*means, noisy], limit=400, epsabs=0, epsrel=1e-10,
                )[0]
                for k in (0, 1)
            ]  # fmt: skip
            got = denoiser(torch.tensor(noisy, dtype=torch.float64).reshape(1, 1, 1, 1), sigma)
            assert float(got) == pytest.approx(moments[1] / moments[0], rel=1e-7)


def three_components() -> tuple[Tensor, Tensor, list[float]]:
    means = torch.rand(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return means, torch.stack([covariance(seed) for seed in (5, 6, 7)]), [0.5, 0.2, 0.3]


@pytest.mark.parametrize("sigma", [0.05, 0.25, 1.0])
@pytest.mark.parametrize("label", [None, 0, 1])
def test_mixture_is_tweedie_of_its_density(sigma: float, label: int | None) -> None:
    means, covariances, weights = three_components()
    denoiser = GaussianMixtureDenoiser(means, covariances, weights, component_labels=[0, 1, 1])
    noisy = means.mean(0) + sigma * random(5, *SHAPE, seed=8)
    x = noisy.flatten(1).clone().requires_grad_()
    kept = {None: [0, 1, 2], 0: [0], 1: [1, 2]}[label]
    noise = sigma**2 * torch.eye(4, dtype=torch.float64)
    log_density = torch.logsumexp(
        torch.stack(
            [
                torch.distributions.MultivariateNormal(means[k].flatten(), covariances[k] + noise).log_prob(x)
                + math.log(weights[k])
                for k in kept
            ]
        ),
        0,
    )
    (score,) = torch.autograd.grad(log_density.sum(), x)
    labels = None if label is None else torch.full((5,), label)
    expected = (x + sigma**2 * score).reshape(noisy.shape)
    torch.testing.assert_close(denoiser(noisy, sigma, labels), expected, rtol=1e-9, atol=1e-10)


def test_component_posterior_is_bayes() -> None:
    means, covariances, weights = three_components()
    denoiser = GaussianMixtureDenoiser(means, covariances, weights, component_labels=[0, 1, 1])
    noisy, sigma = means.mean(0) + 0.3 * random(5, *SHAPE, seed=8), 0.3
    shares, posterior = denoiser.component_posterior(noisy, sigma)
    likelihood = np.stack(
        [
            weights[k]
            * stats.multivariate_normal.pdf(
                noisy.flatten(1).numpy(),
                means[k].flatten().numpy(),
                covariances[k].numpy() + sigma**2 * np.eye(4),
            )
            for k in range(3)
        ],
        1,
    )
    np.testing.assert_allclose(shares.numpy(), likelihood / likelihood.sum(1, keepdims=True), rtol=1e-9)
    for k in range(3):
        precision = np.linalg.inv(covariances[k].numpy()) + np.eye(4) / sigma**2
        information = np.linalg.solve(covariances[k].numpy(), means[k].flatten().numpy()) + (
            noisy.flatten(1).numpy() / sigma**2
        )
        np.testing.assert_allclose(
            posterior[:, k].numpy(), np.linalg.solve(precision, information.T).T, rtol=1e-8
        )
    only, _ = denoiser.component_posterior(noisy, sigma, torch.tensor([0, 1, 0, 1, 1]))
    assert only[0].tolist() == [1.0, 0.0, 0.0]
    torch.testing.assert_close(only[1, 1:], shares[1, 1:] / shares[1, 1:].sum())
    assert float(only[1, 0]) == 0.0


def test_isotropic_components_are_multiples_of_the_identity() -> None:
    means = random(3, *SHAPE)
    variances = torch.tensor([0.1, 0.0, 0.3], dtype=torch.float64)
    full = GaussianMixtureDenoiser(means, variances[:, None, None] * torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(GaussianMixtureDenoiser(means, variances)(NOISY, 0.4), full(NOISY, 0.4))


IMAGES = torch.rand(40, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
LABELS = torch.arange(40) % 3


def brute_force(noisy: Tensor, sigma: float, images: Tensor) -> Tensor:
    rows = []
    for row in noisy:
        distance = torch.stack([((row - image) ** 2).sum() for image in images])
        weight = torch.exp(-(distance - distance.min()) / (2 * sigma**2))
        rows.append((weight.reshape(-1, 1, 1, 1) * images).sum(0) / weight.sum())
    return torch.stack(rows)


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.5, 3.0])
def test_empirical_is_the_brute_force_mean(sigma: float) -> None:
    noisy = IMAGES[:6] + sigma * random(6, *SHAPE, seed=10)
    denoiser = EmpiricalDenoiser(IMAGES, LABELS)
    assert (denoiser.num_classes, denoiser.image_shape) == (3, SHAPE)
    torch.testing.assert_close(denoiser(noisy, sigma), brute_force(noisy, sigma, IMAGES), rtol=0, atol=1e-10)
    for label in range(3):
        expected = brute_force(noisy, sigma, IMAGES[label == LABELS])
        got = denoiser(noisy, sigma, torch.full((6,), label))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    per_row = denoiser(noisy, torch.full((6,), sigma, dtype=torch.float64))
    torch.testing.assert_close(per_row, denoiser(noisy, sigma))


def test_empirical_is_the_limit_of_a_narrow_mixture() -> None:
    noisy, sigma = IMAGES[:4] + 0.2 * random(4, *SHAPE, seed=11), 0.2
    limit = EmpiricalDenoiser(IMAGES)(noisy, sigma)
    errors = []
    for variance in (1e-4, 1e-5, 1e-6):
        mixture = GaussianMixtureDenoiser(IMAGES, torch.full((40,), variance, dtype=torch.float64))
        errors.append(float((mixture(noisy, sigma) - limit).abs().max()))
    # The mixture's posterior means move by variance/(variance + sigma²): the error is linear in the variance.
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.05)
    zero = GaussianMixtureDenoiser(IMAGES, torch.zeros(40, dtype=torch.float64))
    torch.testing.assert_close(zero(noisy, sigma), limit, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_gradients_flow_through_networks(prediction: str) -> None:
    class Curved(Recorder):
        def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
            return torch.tanh(self.gain * x)

    denoiser = NetworkDenoiser(Curved(), LINEAR, prediction=prediction)

    def call(noisy: Tensor, gain: Tensor) -> Tensor:
        clean = torch.func.functional_call(denoiser, {"network.gain": gain}, (noisy, 0.4))
        assert isinstance(clean, Tensor)
        return clean

    gain = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (NOISY.clone().requires_grad_(), gain))


@pytest.mark.parametrize(
    "denoiser",
    [
        GaussianMixtureDenoiser(*three_components(), component_labels=[0, 1, 1]),
        EmpiricalDenoiser(IMAGES[:6], torch.tensor([0, 0, 0, 1, 1, 1])),
    ],
    ids=["mixture", "empirical"],
)
@pytest.mark.parametrize("label", [None, torch.tensor([0, 1])])
def test_gradients_flow_through_closed_forms(denoiser: Denoiser, label: Tensor | None) -> None:
    noisy = (0.5 + 0.2 * NOISY).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: denoiser(x, 0.3, label), (noisy,))
    sigma = torch.tensor([0.2, 0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: denoiser(noisy.detach(), s, label), (sigma,))


@pytest.mark.parametrize(
    "make", [lambda: GaussianMixtureDenoiser(*three_components()), lambda: EmpiricalDenoiser(IMAGES)]
)
def test_closed_forms_keep_the_dtype_of_the_images(make: Callable[[], Denoiser]) -> None:
    denoiser = make()
    clean = denoiser(NOISY.float(), 0.5)
    assert clean.dtype == torch.float32
    torch.testing.assert_close(clean.double(), denoiser(NOISY, 0.5), rtol=1e-4, atol=1e-5)


def test_estimate_is_not_clipped() -> None:
    three = torch.full((1, *SHAPE), 3.0)
    assert torch.equal(GaussianMixtureDenoiser(three, torch.ones(1))(three, 0.5), three)


def change_scheduler(folder: Path, **settings: Any) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def test_folder_of_another_kind_of_scheduler_is_refused(tmp_path: Path) -> None:
    save_folder(tmp_path, small_unet())
    change_scheduler(tmp_path, _class_name="DDIMScheduler")
    load(str(tmp_path))
    change_scheduler(tmp_path, _class_name="ScoreSdeVeScheduler")
    with pytest.raises(
        ValueError, match=r"the scheduler in .* is ScoreSdeVeScheduler, expected DDPMScheduler"
    ):
        load(str(tmp_path))
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("[")
    with pytest.raises(ValueError, match=r"denoiser: cannot read .*scheduler_config.json"):
        load(str(tmp_path))


def test_folder_of_another_learned_variance_is_refused(tmp_path: Path) -> None:
    save_folder(tmp_path, small_unet(out_channels=2), variance_type="learned_range")
    load(str(tmp_path))
    change_scheduler(tmp_path, variance_type="learned")
    with pytest.raises(ValueError, match=r"learned variance in .*: expected learned_range, got learned"):
        load(str(tmp_path))


class Timestep(nn.Module):
    """A float32 network that is linear in its timestep and keeps the dtype it came in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        self.seen.append(timestep.dtype)
        output: Tensor = x + self.linear(timestep[:, None].to(self.linear.weight.dtype))[:, :, None, None]
        return output


def test_continuous_timesteps_come_in_the_precision_of_the_network() -> None:
    network = Timestep()
    denoiser = NetworkDenoiser(network, VariancePreservingSchedule())
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        network.to(dtype)
        assert denoiser(torch.rand(2, 1, 4, 4), 0.5).dtype == torch.float32
    assert network.seen == [torch.float32, torch.float32, torch.float64]


def test_description_tells_adapters_apart() -> None:
    network = Timestep()
    variants = [
        NetworkDenoiser(network, LINEAR),
        NetworkDenoiser(network, LINEAR, prediction="v_prediction"),
        NetworkDenoiser(network, LINEAR, data_range=(0.0, 1.0)),
        NetworkDenoiser(network, DiscreteSchedule.linear(999)),
        NetworkDenoiser(network, VariancePreservingSchedule()),
        NetworkDenoiser(network, VariancePreservingSchedule(beta_max=19.0)),
    ]
    descriptions = [denoiser.describe() for denoiser in variants]
    assert len(set(descriptions)) == len(variants)
    assert descriptions == [denoiser.describe() for denoiser in variants]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["mixture", "points", "empirical"])
def test_exact_denoisers_answer_with_numbers_or_not_at_all(dtype: torch.dtype, kind: str) -> None:
    images = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    variance = torch.full((2,), 0.1 if kind == "mixture" else 0.0)
    denoiser: Denoiser = GaussianMixtureDenoiser(images, variance)
    if kind == "empirical":
        denoiser = EmpiricalDenoiser(images)
    for sigma, expected in ((1e-15, images), (1e15, images.mean(0, keepdim=True).expand(2, -1, -1, -1))):
        assert torch.allclose(denoiser(images, sigma), expected, atol=1e-6)
    for sigma in (1e-300, 1e-16, 1e16, 1e20, 1e300):
        with pytest.raises(ValueError, match=r"^sigma: expected 1e-15 ≤ sigma ≤ 1e\+15"):
            denoiser(images, sigma)


NOTHING: Any = None


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda noisy: (noisy,), r"denoiser: expected a diffproof Estimate from estimate\(\), got \(tensor"),
        (lambda noisy: noisy, r"denoiser: expected a diffproof Estimate from estimate\(\), got shape"),
        (lambda noisy: Estimate(NOTHING), "denoiser: expected a tensor of estimates, got None"),
        (
            lambda noisy: Estimate(noisy[:, :, :2]),
            r"denoiser: expected estimates of shape \(2, 1, 3, 3\), got \(2, 1, 2, 3\)",
        ),
    ],
)
def test_what_an_own_denoiser_returns(returned: Callable[[Tensor], Any], message: str) -> None:
    class Own(Denoiser):
        def estimate(self, noisy: Tensor, sigma: Any, label: Tensor | None) -> Any:
            return returned(noisy)

    with pytest.raises(ValueError, match=f"^{message}"):
        Own()(torch.zeros(2, 1, 3, 3), 0.5)
