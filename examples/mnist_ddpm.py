"""A published diffusion model that diffproof has no family for: the MNIST DDPM of github.com/Franfee (MIT).

Its network written out, and the line that makes it a denoiser; the weights are a state dict in a file. From
the folder of this file:

    diffproof certify --data mnist.npz --indices 0:1024:16 --classifier mnist-classifier.safetensors \
        --denoiser mnist_ddpm:denoiser@ddpm-unet-unconditional.safetensors \
        --defense densepure:steps=10,votes=40 --sigma 0.5 --n 100000 --stop sequential --radii 0.25,0.5 \
        --out certified
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import diffproof as dp

CHANNELS, MIDDLE, TIME_WIDTH = (10, 20, 40), 80, 128
SIDES = (28, 14, 7)


class Block(nn.Module):
    """LayerNorm over whole images, two convolutions, and the input beside them."""

    def __init__(self, channels: int, out: int, side: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm((channels, side, side))
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.residual_conv = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×out×H×W."""
        y = self.conv2(functional.relu(self.conv1(self.ln(x))))
        return functional.relu(y + self.residual_conv(x))


def two_blocks(channels: int, out: int, side: int) -> nn.Sequential:
    """Two blocks at one resolution."""
    return nn.Sequential(Block(channels, out, side), Block(out, out, side))


class UNet(nn.Module):
    """Predicts ε of 1×28×28 images at timesteps 0 to 999."""

    def __init__(self) -> None:
        super().__init__()
        ins = (1, *CHANNELS[:-1])
        levels = list(zip(ins, CHANNELS, SIDES, strict=True))
        self.encoders = nn.ModuleList(two_blocks(into, out, side) for into, out, side in levels)
        self.pe_linears_en = nn.ModuleList(
            nn.Sequential(nn.Linear(TIME_WIDTH, into), nn.ReLU(), nn.Linear(into, into)) for into in ins
        )
        self.downs = nn.ModuleList(nn.Conv2d(out, out, 2, stride=2) for out in CHANNELS)
        self.pe_mid = nn.Linear(TIME_WIDTH, CHANNELS[-1])
        self.mid = two_blocks(CHANNELS[-1], MIDDLE, 3)
        below = (MIDDLE, *CHANNELS[:0:-1])
        up = list(zip(below, reversed(CHANNELS), reversed(SIDES), strict=True))
        self.pe_linears_de = nn.ModuleList(nn.Linear(TIME_WIDTH, 2 * out) for _, out, _ in up)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(into, out, 2, stride=2) for into, out, _ in up)
        self.decoders = nn.ModuleList(two_blocks(2 * out, out, side) for _, out, side in up)
        self.conv_out = nn.Conv2d(CHANNELS[0], 1, 3, padding=1)

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None = None) -> Tensor:
        """N×1×28×28 and N timesteps to ε; there are no labels."""
        time = sinusoids(timestep).to(x.dtype)
        skips = []
        for embed, encoder, down in zip(self.pe_linears_en, self.encoders, self.downs, strict=True):
            skips.append(encoder(x + spread(embed(time))))
            x = down(skips[-1])
        x = self.mid(x + spread(self.pe_mid(time)))
        for embed, up, decoder in zip(self.pe_linears_de, self.ups, self.decoders, strict=True):
            skip, x = skips.pop(), up(x)
            # 3 pixels a side become 6, where the skip has 7.
            missing = skip.shape[-1] - x.shape[-1]
            x = functional.pad(x, (missing // 2, missing - missing // 2) * 2)
            x = decoder(torch.cat((skip, x), 1) + spread(embed(time)))
        out: Tensor = self.conv_out(x)
        return out


def sinusoids(timestep: Tensor) -> Tensor:
    """N timesteps to N×128: sines at even places, cosines at odd ones."""
    exponents = torch.arange(0, TIME_WIDTH, 2, device=timestep.device) / TIME_WIDTH
    angles = timestep[:, None] / 10000**exponents
    return torch.stack((angles.sin(), angles.cos()), 2).flatten(1)


def spread(features: Tensor) -> Tensor:
    """N×C as N×C×1×1."""
    return features[:, :, None, None]


def denoiser() -> dp.Denoiser:
    """β linear from 1e-4 to 0.02, images in [0, 1]; the weights come from the file after @."""
    schedule = dp.DiscreteSchedule.linear(1000, 1e-4, 0.02)
    return dp.NetworkDenoiser(UNet(), schedule, data_range=(0.0, 1.0), image_shape=(1, 28, 28))
