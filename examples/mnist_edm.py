"""A published class-conditional diffusion model, EDM's with a transformer: MNIST by github.com/Franfee (MIT).

Its network written out, and a denoiser of one's own around it; the weights are a state dict in a file. A
diffusion classifier needs no other network. From the folder of this file:

    diffproof attack --data mnist.npz --indices 0:1000:50 \
        --denoiser mnist_edm:denoiser@edm-dit-class-conditional.safetensors --defense dc:sigmas=edm:10 \
        --threat linf --budget 0.1 --attack pgd:iterations=10,loss=margin --out attacked
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import diffproof as dp

SIDE, PATCH, WIDTH, HEADS, DEPTH, CLASSES = 28, 4, 64, 4, 3, 10
PATCHES = (SIDE // PATCH) ** 2
PIXELS = PATCH**2
# Standard deviation of pixels in [−1, 1] that EDM's preconditioning takes for granted.
DATA_STD = 0.5


class Frequencies(nn.Module):
    """Sines and cosines of fixed frequencies, which are in the weights file."""

    def __init__(self) -> None:
        super().__init__()
        self.half_emb = nn.Buffer(torch.zeros(WIDTH // 2))

    def forward(self, level: Tensor) -> Tensor:
        """N numbers to N×64."""
        angles = level[:, None] * self.half_emb
        return torch.cat((angles.sin(), angles.cos()), 1)


class Transformer(nn.Module):
    """Attention and a two-layer network, both scaled and shifted by the condition."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma1, self.beta1, self.alpha1 = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.gamma2, self.beta2, self.alpha2 = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.wq, self.wk, self.wv = (nn.Linear(WIDTH, HEADS * WIDTH) for _ in range(3))
        self.lv = nn.Linear(HEADS * WIDTH, WIDTH)
        self.ff = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """N×49×64 and N×1×64 to N×49×64."""
        y = self.ln1(x) * (1 + self.gamma1(condition)) + self.beta1(condition)
        query, key, value = (layer(y).unflatten(2, (HEADS, WIDTH)) for layer in (self.wq, self.wk, self.wv))
        # The root of the number of patches, where that of a head's width belongs: so it was trained.
        scores = torch.einsum("nqhw,nkhw->nhqk", query, key) / PATCHES**0.5
        mixed = torch.einsum("nhqk,nkhw->nqhw", scores.softmax(3), value).flatten(2)
        x = x + self.alpha1(condition) * self.lv(mixed)
        z = self.ff(self.ln2(x) * (1 + self.gamma2(condition)) + self.beta2(condition))
        out: Tensor = x + self.alpha2(condition) * z
        return out


class DiT(nn.Module):
    """EDM's network F on patches of 4×4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, PIXELS, PATCH, stride=PATCH)
        self.patch_emb = nn.Linear(PIXELS, WIDTH)
        self.patch_pos_emb = nn.Parameter(torch.zeros(1, PATCHES, WIDTH))
        self.time_emb = nn.Sequential(
            Frequencies(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)
        )
        self.label_emb = nn.Embedding(CLASSES, WIDTH)
        self.dits = nn.ModuleList(Transformer() for _ in range(DEPTH))
        self.ln, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, PIXELS)

    def forward(self, x: Tensor, level: Tensor, label: Tensor) -> Tensor:
        """N×1×28×28, N times ln(σ)/4 and N labels to N×1×28×28."""
        condition = (self.label_emb(label) + self.time_emb(level))[:, None]
        tokens = self.patch_emb(self.conv(x).flatten(2).mT) + self.patch_pos_emb
        for block in self.dits:
            tokens = block(tokens, condition)
        return nn.functional.fold(self.linear(self.ln(tokens)).mT, (SIDE, SIDE), PATCH, stride=PATCH)


class EDM(dp.Denoiser):
    """EDM's preconditioning (Karras et al. 2022, table 1) around a network of [−1, 1] pixels.

    Args:
        network: F; the weights of the file go into it.
    """

    image_shape, num_classes = (1, SIDE, SIDE), CLASSES
    # EDM's 0.002 to 80, which are of [−1, 1] pixels.
    sigma_min, sigma_max = 0.001, 40.0

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def estimate(self, noisy: Tensor, sigma: float | Tensor, label: Tensor | None) -> dp.Estimate:
        """See Denoiser, which asks for labels where there is no null label."""
        level = 2 * torch.as_tensor(sigma, dtype=noisy.dtype, device=noisy.device).expand(len(noisy))
        wide = level[:, None, None, None]
        total = (wide**2 + DATA_STD**2).sqrt()
        x = 2 * noisy - 1
        predicted = self.network(x / total, level.log() / 4, label)
        clean = DATA_STD**2 / total**2 * x + wide * DATA_STD / total * predicted
        return dp.Estimate((clean + 1) / 2)


def denoiser() -> dp.Denoiser:
    """The weights come from the file after @."""
    return EDM(DiT())
