"""Multi-head denoisers: one pass gives the prediction of every class."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.cli.main import run
from diffproof.data.images import ImageData
from diffproof.denoisers.diffusers import from_unet
from diffproof.denoisers.multi_head import MultiHead
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.denoisers.saved import build_denoiser
from diffproof.denoisers.schedules import DiscreteSchedule
from diffproof.training.batches import Batch, Mixture
from diffproof.training.denoiser import UNetSettings, describe_denoiser, train_denoiser
from diffproof.training.denoising.mse import MSE
from diffproof.training.loop import TrainSettings
from diffproof.weights import load_weights

LINEAR = DiscreteSchedule.linear(1000)
COMMAND = (
    "train denoiser --data digits --channels 8 --batch-size 16 --iterations 4 --multi-head --timesteps 50"
)


class Counting(nn.Module):
    """Three heads of two channels, each another multiple of the input; counts its passes."""

    def __init__(self, heads: int = 3, copies: int = 1) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.arange(1.0, heads + 1).double().repeat_interleave(copies))
        self.passes: list[int] = []

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        assert label is None
        self.passes.append(len(x))
        wave = torch.sin(x + timestep.reshape(-1, 1, 1, 1) / 1000)
        return (self.gains[:, None, None, None] * wave[:, None]).flatten(1, 2)


def toy(**settings: Any) -> NetworkDenoiser:
    return NetworkDenoiser(
        MultiHead(Counting(), 3), LINEAR, image_shape=(2, 4, 4), num_classes=2, null_label=2, **settings
    )


def noisy_images(count: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def small(**settings: Any) -> dict[str, Any]:
    data = dp.load_data("digits", indices="0:20")
    return describe_denoiser(data, UNetSettings((8,), multi_head=True, **settings), "cosine", 50)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_label_picks_the_head(prediction: str) -> None:
    """Each head against a denoiser whose whole network is that head."""
    noisy, sigma = noisy_images(), torch.tensor([0.1, 0.4, 2.0], dtype=torch.float64)

    class Head(nn.Module):
        def __init__(self, head: int) -> None:
            super().__init__()
            self.whole, self.head = Counting(), head

        def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
            output: Tensor = self.whole(x, timestep, None)
            return output[:, 2 * self.head : 2 * self.head + 2]

    denoiser = toy(prediction=prediction)
    heads = [NetworkDenoiser(Head(k), LINEAR, prediction=prediction)(noisy, sigma) for k in range(3)]
    for label in range(2):
        assert torch.equal(denoiser(noisy, sigma, torch.full((3,), label)), heads[label])
    assert torch.equal(denoiser(noisy, sigma), heads[2])
    mixed = denoiser(noisy, sigma, torch.tensor([1, 0, 1]))
    assert torch.equal(mixed, torch.stack([heads[1][0], heads[0][1], heads[1][2]]))
    # The heads differ, so that a wrong one would be seen.
    assert min(float((heads[a] - heads[b]).detach().abs().max()) for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-3


@pytest.mark.parametrize("classes", [None, [1], [2, 0], [2], [0, 1, 2], [1, 1]])
def test_one_pass_serves_all_classes(classes: list[int] | None) -> None:
    denoiser, noisy = toy(), noisy_images()
    sigma = torch.tensor([0.1, 0.4, 2.0], dtype=torch.float64)
    network: Any = denoiser.network
    given = None if classes is None else torch.tensor(classes)
    got = denoiser.per_class(noisy, sigma, given)
    assert network.network.passes == [3]
    labels = [None if k == 2 else torch.full((3,), k) for k in (classes or [0, 1])]
    assert torch.equal(got, torch.stack([denoiser(noisy, sigma, label) for label in labels], dim=1))


def test_learned_variances_have_heads_too() -> None:
    """A head of 2C channels says as much as a network of 2C channels."""
    denoiser = NetworkDenoiser(
        MultiHead(Counting(heads=2, copies=2), 2), LINEAR, image_shape=(2, 4, 4), num_classes=2
    )
    noisy = noisy_images()
    estimate = denoiser.checked_estimate(noisy, 0.3, torch.tensor([0, 1, 1]))
    assert estimate.log_variance_mix is not None
    # Of this network the second half of a head is its first half again: ε, and 2·mix − 1.
    epsilon = (noisy - estimate.clean) / 0.3
    torch.testing.assert_close(2 * estimate.log_variance_mix - 1, epsilon, rtol=0, atol=1e-12)
    each = denoiser.per_class(noisy, 0.3)
    assert torch.equal(each[torch.arange(3), torch.tensor([0, 1, 1])], estimate.clean)


def test_gradients_flow_through_all_heads() -> None:
    denoiser = toy()
    noisy = noisy_images(1).requires_grad_()
    classes = torch.tensor([2, 0])
    assert torch.autograd.gradcheck(lambda x: denoiser.per_class(x, 0.4, classes), (noisy,))
    assert torch.autograd.gradgradcheck(lambda x: denoiser.per_class(x, 0.4, classes), (noisy,))


def usual(**settings: Any) -> NetworkDenoiser:
    """A U-Net with class embeddings, in float64."""
    data = dp.load_data("digits", indices="0:20")
    torch.manual_seed(1)
    # Two channels a group: of a single one the normalisation would take away all that a label adds.
    description = describe_denoiser(data, UNetSettings((16,), **settings), "cosine", 50)
    return build_denoiser(description).double().eval()


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("multi_head", [True, False])
def test_per_class_against_one_call_a_class(multi_head: bool, patch: int) -> None:
    denoiser = usual(multi_head=multi_head, patch=patch)
    generator = torch.Generator().manual_seed(2)
    noisy = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=generator)
    assert denoiser.sigmas is not None
    sigma = denoiser.sigmas[[3, 30]]
    got = denoiser.per_class(noisy, sigma, torch.tensor([10, 3, 7]))
    alone = [denoiser(noisy, sigma, None if k == 10 else torch.full((2,), k)) for k in (10, 3, 7)]
    torch.testing.assert_close(got, torch.stack(alone, dim=1), rtol=0, atol=1e-11)
    assert float((got[:, 1] - got[:, 2]).detach().abs().max()) > 1e-4


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_only_the_head_of_the_given_label_learns(drop: float) -> None:
    model = build_denoiser(small(patch=2))
    data = dp.load_data("digits", indices="0:4")
    sources = torch.zeros(4, dtype=torch.int64)
    step = Batch(data.images, torch.tensor([3, 7, 7, 3]), sources, 4, torch.arange(4))
    MSE().loss_of_batches(model, None, drop)(model.network, step, torch.Generator().manual_seed(0)).backward()
    bias: Any = model.network.get_parameter("network.unet.conv_out.bias")
    # Head k holds the 2 × 2 pixels of a patch.
    moved = bias.grad.reshape(11, 4).abs().amax(1).nonzero()[:, 0].tolist()
    assert moved == ([10] if drop else [3, 7])


def test_only_heads_of_the_first_source_are_kept() -> None:
    data = dp.load_data("digits", default_split="train")
    # The second set is so rare that none of its images is drawn.
    mixture, settings = Mixture(data, data, extra_share=1e-9), TrainSettings(3, batch_size=16)
    mixed = train_denoiser(mixture, small(patch=2), settings)
    assert (mixed.num_classes, mixed.null_label) == (10, 10)
    bias = mixed.network.state_dict()["network.unet.conv_out.bias"]
    torch.manual_seed(settings.seed)
    description = small(patch=2)
    build_denoiser(description)
    doubled = {**description, "network": {**description["network"], "out_channels": 2 * 44}}
    start = build_denoiser(doubled).network.state_dict()["network.unet.conv_out.bias"]
    assert (bias.shape, start.shape) == ((44,), (88,))
    assert float((bias - start[:44]).abs().max()) > 1e-5
    # Weight decay and three steps of Adam move a bias by 3·learning rate at most.
    assert float((bias - start[:44]).abs().max()) < 0.01 < float((bias - start[44:]).abs().max())


@pytest.mark.slow
def test_what_the_command_writes_loads(tmp_path: Path) -> None:
    words = shlex.split(f"{COMMAND} --patch 2 --precision bfloat16 --extra-data digits --limit 200")
    assert run([*words, "--out", str(tmp_path / "w.safetensors")]) == 0
    description = load_weights(tmp_path / "w.safetensors").description
    assert "--multi-head" in description["training"]["command"].split()
    assert description["network"]["out_channels"] == 11 * 4
    denoiser = dp.load_denoiser(str(tmp_path / "w.safetensors"))
    assert (denoiser.num_classes, denoiser.null_label, denoiser.image_shape) == (10, 10, (1, 8, 8))
    assert isinstance(denoiser, NetworkDenoiser)
    assert isinstance(denoiser.network, MultiHead)
    assert (tmp_path / "w.samples.png").exists()


@pytest.mark.slow
def test_each_head_learns_the_denoiser_of_its_class() -> None:
    """Two images, one a class, and the optimal denoisers of each and of both."""
    ramp = torch.linspace(0.1, 0.9, 4).expand(1, 4, 4)
    data = ImageData(
        "two", "train", torch.stack([ramp, ramp.mT] * 16), torch.arange(2).repeat(16), ["across", "down"]
    )
    description = describe_denoiser(data, UNetSettings((32,), multi_head=True), "cosine", 50)
    settings = TrainSettings(150, batch_size=32, learning_rate=0.02, ema_decay=0.9)
    denoiser = train_denoiser(Mixture(data), description, settings, label_dropout=0.3)
    optimal = dp.EmpiricalDenoiser(*data)
    labels, sigma = torch.arange(3), denoiser.nearest(1.0)
    noise = torch.randn(200, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    noisy = data.images[:2].repeat(100, 1, 1, 1) + sigma * noise
    with torch.no_grad():
        got, wanted = (one.per_class(noisy, sigma, labels) for one in (denoiser, optimal))
    errors = (got[:, :, None] - wanted[:, None]).square().mean((0, 3, 4, 5)).sqrt()
    # Each head is nearest to the optimum of its own label, the null head to that of both.
    assert errors.argmin(1).tolist() == [0, 1, 2]
    assert float(errors.diagonal().max()) < 0.15, errors


def unet(**changes: Any) -> Any:
    from diffusers import UNet2DModel

    return UNet2DModel(
        **{
            "sample_size": 8,
            "in_channels": 2,
            "out_channels": 6,
            "block_out_channels": (8,),
            "down_block_types": ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",),
            "norm_num_groups": 8,
            "add_attention": False,
            **changes,
        }
    )


def test_a_unet_of_ones_own() -> None:
    denoiser = from_unet(unet(), LINEAR, multi_head=True)
    assert (denoiser.num_classes, denoiser.null_label) == (3, None)
    denoiser = from_unet(unet(), LINEAR, multi_head=True, null_label=2)
    assert (denoiser.num_classes, denoiser.null_label) == (2, 2)
    assert denoiser.per_class(torch.rand(1, 2, 8, 8), 0.3).shape == (1, 2, 2, 8, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: from_unet(unet(num_class_embeds=3), LINEAR, multi_head=True),
            "multi_head: expected a U-Net without class embedding and with a multiple of 2 output channels,"
            " got 3 embeddings and 6",
        ),
        (lambda: from_unet(unet(out_channels=5), LINEAR, multi_head=True), "got None embeddings and 5"),
        (lambda: from_unet(unet(), LINEAR, multi_head=True, num_classes=4), r"expected 1 to 3 \(the heads\)"),
        (lambda: from_unet(unet(), LINEAR, multi_head=True, null_label=3), "expected 0 ≤ null_label < 3"),
        (lambda: MultiHead(Counting(), 0), "heads: expected an integer ≥ 1"),
        (
            lambda: NetworkDenoiser(MultiHead(Counting(), 4), LINEAR, num_classes=4)(
                noisy_images(), 0.3, torch.tensor([0, 1, 2])
            ),
            "network: expected output channels that divide among 4 heads",
        ),
    ],
)
def test_heads_that_do_not_fit(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
