"""EDM's preconditioning and noise levels (Karras et al. 2022), against the paper's own formulas."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.cli.main import run
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.denoisers.saved import build_denoiser
from diffproof.training.denoiser import UNetSettings, denoising_errors, describe_denoiser
from diffproof.training.denoising.mse import MSE
from helpers.training import batch

# σ_data of EDM, in [−1, 1] pixels.
DATA = 0.5
SMALL = "--data digits --limit 40 --iterations 3 --batch-size 4 --channels 8"


@pytest.fixture(scope="module")
def digits() -> dp.ImageData:
    return dp.load_data("digits", split="train")


def preconditioned(data: dp.ImageData) -> NetworkDenoiser:
    return build_denoiser(describe_denoiser(data, UNetSettings((8,)), "cosine", 1000, preconditioning="edm"))


class Recorder(nn.Module):
    """A network that answers its input and noise, and says what it was asked."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.answer = torch.randn(shape, generator=torch.Generator().manual_seed(3))

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        """N×C×H×W."""
        self.x, self.timestep = x, timestep
        self.answer = self.answer[: len(x)] + x
        return self.answer


def test_the_loss_is_the_weighted_one_of_the_restored_image(digits: dp.ImageData) -> None:
    """Their eq. 8 with c_skip, c_out and λ of table 1, in [−1, 1] pixels; their network says −v."""
    model, images = preconditioned(digits), digits.images[:12]
    network = Recorder(images.shape)
    loss = MSE().loss_of_batches(model, None, 0.0)(
        network, batch(images, digits.labels[:12]), torch.Generator().manual_seed(1)
    )
    assert model.sigmas is not None
    sigma = 2 * model.sigmas[network.timestep].float().reshape(-1, 1, 1, 1)
    total = sigma**2 + DATA**2
    # c_in takes the noisy image to the network's input.
    noisy = network.x * total.sqrt()
    restored = DATA**2 / total * noisy - sigma * DATA / total.sqrt() * network.answer
    weight = total / (sigma * DATA) ** 2
    expected = (weight * (restored - (2 * images - 1)) ** 2).mean()
    # Multiplied by up to 10^4 at the lowest level, what float32 rounds shows.
    assert float(loss) == pytest.approx(float(expected), rel=2e-4)


def test_levels_are_log_normal(digits: dp.ImageData) -> None:
    for model in (
        preconditioned(digits),
        build_denoiser(describe_denoiser(digits, UNetSettings((8,)), "cosine", 1000)),
    ):
        assert model.sigmas is not None
        drawn = MSE(levels="log-normal").timesteps(model, 4000, torch.Generator().manual_seed(0))
        logs = (2 * model.sigmas[drawn]).log()
        # Standard errors of 1.2/√4000 and 1.2/√8000, five of them: one false alarm in 10^6. The grid ends at
        # 3.3 deviations below the mean, and its steps are less than a hundredth.
        assert abs(float(logs.mean()) + 1.2) < 5 * 1.2 / math.sqrt(4000)
        assert abs(float(logs.std()) - 1.2) < 5 * 1.2 / math.sqrt(8000)


def test_the_network_restores_as_edms_does(digits: dp.ImageData) -> None:
    model = preconditioned(digits)
    network = Recorder(digits.images[:4].shape)
    denoiser = NetworkDenoiser(
        network,
        model.schedule,
        prediction=model.prediction,
        data_range=model.data_range,
        num_classes=10,
        null_label=10,
    )
    noisy, sigma = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(4)), 0.3
    estimate = denoiser(noisy, sigma)
    total = (2 * sigma) ** 2 + DATA**2
    restored = DATA**2 / total * (2 * noisy - 1) - 2 * sigma * DATA / math.sqrt(total) * network.answer
    assert torch.allclose(estimate, (restored + 1) / 2, atol=1e-5)


@pytest.mark.slow
def test_the_command_trains_one_that_denoises_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    line = (
        "train denoiser --data digits --channels 8 --iterations 100 --batch-size 64 --learning-rate 0.005"
        f" --preconditioning edm --objective mse:levels=log-normal --precision bfloat16 --out {out}"
    )
    assert run(shlex.split(line)) == 0
    trained = dp.load_denoiser(str(out))
    assert isinstance(trained, NetworkDenoiser)
    errors = denoising_errors(trained, dp.load_data("digits"), (0.25, 0.5), 0)
    assert errors[0] < 0.8 * 0.25
    assert errors[1] < 0.5 * 0.5
    further = f"train denoiser {SMALL.removesuffix(' --channels 8')} --denoiser {out} --out {tmp_path / 'x'}"
    assert run(shlex.split(f"{further}.safetensors")) == 0
    again = dp.load_denoiser(str(tmp_path / "x.safetensors"))
    assert again.describe() == trained.describe()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--single-sigma 0.25 --preconditioning edm",
            "--preconditioning: is not for --single-sigma",
        ),
        (
            "--single-sigma 0.25 --objective mse:levels=log-normal",
            "--objective: levels=log-normal is for a schedule, not for a single noise level",
        ),
        (
            "--preconditioning edm --objective adbm --classifier digits",
            "--objective: 'adbm' is for a denoiser that predicts the noise",
        ),
        (
            "--denoiser digits --preconditioning edm",
            "--preconditioning: is for a new network, not with --denoiser",
        ),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    size = SMALL.removesuffix(" --channels 8") if "--denoiser" in flags else SMALL
    assert run(shlex.split(f"train denoiser {size} {flags} --out {tmp_path / 'w.safetensors'}")) == 2
    assert capsys.readouterr().err == f"diffproof: error: {message}\n"


def test_in_python_too(digits: dp.ImageData) -> None:
    with pytest.raises(ValueError, match="preconditioning: unknown name 'v'; known: edm, none"):
        describe_denoiser(digits, UNetSettings((8,)), "cosine", 1000, preconditioning="v")
    with pytest.raises(ValueError, match="preconditioning: edm is for a schedule"):
        describe_denoiser(digits, UNetSettings((8,)), "cosine", 1000, 0.25, "edm")
