"""The U-Net of trained files against diffusers' UNet2DModel: names, first weights, values, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffproof.denoisers.unet import UNet2D

SIZES: dict[str, Any] = {
    "sample_size": 4,
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "dropout": 0.0,
    "norm_num_groups": 8,
    "add_attention": False,
    "num_class_embeds": 3,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "unconditional": {"num_class_embeds": None, "out_channels": 6},
    "attention": {"add_attention": True, "attention_head_dim": 8},
    "deep": {"block_out_channels": [8, 24, 8], "layers_per_block": 2},
    "one level": {"block_out_channels": [8], "dropout": 0.4},
}


def sizes(**changes: Any) -> dict[str, Any]:
    all_sizes = {**SIZES, **changes}
    levels = len(all_sizes["block_out_channels"])
    kinds = {"down_block_types": ["DownBlock2D"] * levels, "up_block_types": ["UpBlock2D"] * levels}
    return {**kinds, **all_sizes}


def passed(network: nn.Module, dtype: torch.dtype) -> list[Tensor]:
    """Values, the input's gradient and the weights' gradients, in training mode."""
    torch.manual_seed(1)
    config: Any = network.config
    x = torch.randn(8, config.in_channels, 4, 4, dtype=dtype, requires_grad=True)
    labels = None if config.num_class_embeds is None else torch.arange(8) % 3
    (value,) = network.train().to(dtype)(x, torch.arange(8) * 14, labels, return_dict=False)
    (value * torch.randn_like(value)).sum().backward()
    assert x.grad is not None
    return [value, x.grad, *(p.grad for p in network.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", CASES)
def test_it_is_diffusers_network(name: str) -> None:
    from diffusers import UNet2DModel

    networks: list[nn.Module] = []
    for kind in (UNet2D, UNet2DModel):
        torch.manual_seed(0)
        networks.append(kind(**sizes(**CASES[name])))
    ours, theirs = (network.state_dict() for network in networks)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for dtype in (torch.float32, torch.bfloat16):
        both = [passed(network, dtype) for network in networks]
        assert len(both[0]) == 2 + len(ours)
        assert all(torch.equal(mine, other) for mine, other in zip(*both, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]},
            "expected down_block_types of 2 times DownBlock2D",
        ),
        ({"up_block_types": ["UpBlock2D"]}, "expected up_block_types of 2 times UpBlock2D"),
        ({"add_attention": True, "attention_head_dim": 5}, "heads of 5 do not divide 16"),
    ],
)
def test_what_it_cannot_express_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet2D(**sizes(**changes))


@pytest.mark.parametrize("classes", [None, 3])
def test_labels_are_for_networks_with_classes(classes: int | None) -> None:
    network = UNet2D(**sizes(num_class_embeds=classes))
    labels = torch.zeros(1, dtype=torch.int64) if classes is None else None
    with pytest.raises(ValueError, match="class_labels: expected labels for a network with classes"):
        network(torch.zeros(1, 2, 4, 4), torch.zeros(1), labels)
