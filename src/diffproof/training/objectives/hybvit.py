"""HybViT: one vision transformer, trained as a classifier and as a denoiser at once (Yang et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.classifiers.hybrid import NAME, SIZE, HybridClassifier, HybridViT
from diffproof.denoisers.schedules import named_schedule
from diffproof.errors import ArgumentError
from diffproof.training.objectives.base import Objective, Step

# The authors' noise levels, as weights files say them.
_LEVELS: dict[str, Any] = {"name": "cosine", "timesteps": 1000}
_SIGMAS = named_schedule(**_LEVELS).sigmas


@dataclass(frozen=True)
class HybViT(Objective):
    """CE(f(x), y) + λ·mean |ε_θ(√ᾱ_t·x + √(1 − ᾱ_t)·ε, t) − ε|, pixels in [−1, 1], t uniform on the grid.

    The file of such a training is a classifier and an unconditional denoiser. The authors' mixed images and
    other augmentations are left out.

    Attributes:
        weight: λ.
        label_smoothing: share of the label that the cross-entropy spreads evenly over all classes.
        patch: pixels of a side of a patch of a new network.
        width: numbers of its tokens.
        depth: its blocks.
        heads: of its attention.
    """

    can = frozenset({"train"})
    name = "hybvit"
    noisy = False
    uniform = True
    weight: float = 100.0
    label_smoothing: float = 0.1
    patch: int = 4
    width: int = 384
    depth: int = 9
    heads: int = 12

    def described(self, description: Mapping[str, Any], *, new: bool) -> dict[str, Any]:
        """See Objective; new networks are this transformer, and all are denoisers, too.

        Raises:
            ValueError: the sizes do not fit the images, or one another.
        """
        if not new:
            return {**description, "denoises": dict(_LEVELS)}
        kept = ("kind", "image_shape", "num_classes", "class_names")
        told = {name: description[name] for name in kept if name in description}
        try:
            with torch.device("meta"):
                HybridViT(told["image_shape"], told["num_classes"], **self._size())
        except ArgumentError as error:
            raise ArgumentError("objective", f"{error} (of objective hybvit)") from None
        return {**told, "architecture": NAME, **self._size(), "denoises": dict(_LEVELS)}

    def begin(self, image_shape: Sequence[int], seed: int, network: nn.Module) -> Objective:
        """See Objective.

        Raises:
            ValueError: another network, or one of another size than the settings say.
        """
        size = network.size if isinstance(network, HybridClassifier) else None
        if size != self._size():
            told = "another one" if size is None else _told(size)
            raise ArgumentError(
                "objective", f"hybvit trains its own transformer, of {_told(self._size())}; got {told}"
            )
        return self

    def loss(self, step: Step) -> Tensor:
        """See Objective."""
        logits = step.classify(step.images)
        entropy = nn.functional.cross_entropy(logits, step.labels, label_smoothing=self.label_smoothing)
        sigmas = _SIGMAS.to(step.images.device)
        timestep = (step.uniform[:, 0].double() * len(sigmas)).long().clamp(max=len(sigmas) - 1)
        sigma = sigmas[timestep].reshape(-1, 1, 1, 1)
        noisy = 2 * step.images - 1 + sigma.to(step.images.dtype) * step.normal[:, 0]
        noise = step.forward(noisy * (1 + sigma**2).rsqrt().to(noisy.dtype), timestep)
        error = (noise.to(step.normal.dtype) - step.normal[:, 0]).abs().mean()
        return entropy + self.weight * error

    def _size(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in SIZE}


def _told(size: Mapping[str, int]) -> str:
    return ",".join(f"{name}={size[name]}" for name in SIZE)
