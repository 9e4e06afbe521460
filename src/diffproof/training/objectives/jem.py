"""JEM: a classifier whose logits are an energy of images, too (Grathwohl et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from diffproof.errors import ArgumentError
from diffproof.training.checkpoint import Part
from diffproof.training.objectives.base import Objective, Step, cross_entropies
from diffproof.training.processes import is_alone

# Of the authors: a loss beyond this is one of a training that ran away.
_DIVERGED = 1e8


@dataclass(frozen=True)
class JEM(Objective):
    """CE(f(x̃), y) + λ·(mean E(x̃) − mean E(x_q)) with E(x) = −logsumexp f(x) and x̃ = x + σ·N(0, I).

    The second part is the gradient of −log p(x) by contrast: x_q are samples of the model's own density, by
    steps of Langevin dynamics x ← x + a·∇logsumexp f(x) + b·N(0, I) from a buffer of earlier samples, some of
    which begin anew as uniform noise. The buffer is a part of checkpoints. The authors' pixels are in
    [−1, 1], where their a = 1, b = 0.01 and σ = 0.03; here these are a quarter and halves.

    Attributes:
        weight: λ.
        steps: Langevin steps from a sample of the buffer.
        step: a, for [0, 1] pixels.
        noise: b, for [0, 1] pixels.
        buffer: samples that are kept.
        restart: probability that a sample begins anew.
    """

    can = frozenset({"train"})
    name = "jem"
    uniform = True
    weight: float = 1.0
    steps: int = 20
    step: float = 0.25
    noise: float = 0.005
    buffer: int = 10_000
    restart: float = 0.05

    def begin(self, image_shape: Sequence[int], seed: int, network: nn.Module) -> Objective:
        """See Objective.

        Raises:
            ValueError: a network with batch normalisation, or several processes.
        """
        if any(isinstance(module, _BatchNorm) for module in network.modules()):
            raise ArgumentError(
                "objective",
                "jem needs a network that answers an image by itself, got batch normalisation",
            )
        if not is_alone():
            raise ArgumentError("objective", "jem keeps one buffer of samples and trains in one process")
        return _Training(**vars(self), samples=Buffer(self.buffer, image_shape, seed))

    def described(self, description: Mapping[str, Any], *, new: bool) -> dict[str, Any]:
        """See Objective; new networks have no batch normalisation."""
        return {**description, **({"batch_norm": False} if new else {})}

    def draws_at(self, sigma: float) -> int:
        """The noise of the image, that of each Langevin step, and what samples begin as."""
        return self.steps + 2

    def loss(self, step: Step) -> Tensor:
        """See Objective; of a training that has begun."""
        raise TypeError("JEM.loss is that of what begin() returns")


class Buffer(nn.Module):
    """Samples of the model from one step to the next.

    Args:
        size: how many.
        image_shape: C, H, W.
        seed: of the uniform noise that they begin as.
    """

    def __init__(self, size: int, image_shape: Sequence[int], seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("images", torch.rand(size, *image_shape, generator=generator))
        self.images: Tensor


@dataclass(frozen=True)
class _Training(JEM):
    """JEM with its buffer."""

    samples: Buffer | None = None

    def __post_init__(self) -> None:
        # Checked where the objective was made.
        pass

    def parts(self) -> dict[str, Part]:
        """See Objective."""
        return {} if self.samples is None else {"buffer": self.samples}

    def describe(self) -> dict[str, Any]:
        """See Objective."""
        return {name: value for name, value in super().describe().items() if name != "samples"}

    def loss(self, step: Step) -> Tensor:
        """See Objective.

        Raises:
            ValueError: the training diverged.
        """
        samples = self.sampled(step)
        noisy = step.images + step.sigma * step.normal[:, 0]
        both = step.classify(torch.cat([noisy, samples]))
        logits, energies = both[: len(noisy)], -both.logsumexp(1)
        contrast = energies[: len(noisy)].mean() - energies[len(noisy) :].mean()
        loss = cross_entropies(logits.log_softmax(1), step.labels).mean() + self.weight * contrast
        if abs(float(loss.detach())) > _DIVERGED:
            raise ArgumentError(
                "training", f"jem diverged, its loss is {float(loss.detach()):.3g}; lower the learning rate"
            )
        return loss

    def sampled(self, step: Step) -> Tensor:
        """A sample of the buffer for each image, moved on and put back, without a graph."""
        assert self.samples is not None
        kept = self.samples.images
        place = (step.uniform[:, 0].cpu() * len(kept)).long().clamp(max=len(kept) - 1)
        fresh = torch.special.ndtr(step.normal[:, 1])
        anew = step.uniform[:, 1, None, None, None] < self.restart
        images = torch.where(anew, fresh, kept[place].to(fresh))
        with step.searching() as still:
            images = langevin(
                lambda points: still.classify(points).logsumexp(1),
                images,
                step.normal[:, 2:],
                size=self.step,
                noise=self.noise,
            )
        # In order: two rows of one place would race.
        for row, at in enumerate(place.tolist()):
            kept[at] = images[row]
        return images


def langevin(
    log_density: Callable[[Tensor], Tensor], start: Tensor, normal: Tensor, *, size: float, noise: float
) -> Tensor:
    """x ← x + size·∇log p(x) + noise·N(0, I), once for each draw; without a graph.

    Args:
        log_density: N×C×H×W → N values, up to a constant.
        start: N×C×H×W.
        normal: N×steps×C×H×W, standard normal.
        size: of a step.
        noise: of a step.
    """
    found = start.detach()
    for draw in normal.unbind(1):
        with torch.enable_grad():
            point = found.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(log_density(point).sum(), point)
        found = found + size * gradient + noise * draw
    return found
