"""What every objective is: a loss of one step's noisy images; and what its losses share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffproof.errors import ArgumentError
from diffproof.methods import checked_settings
from diffproof.modes import evaluation_mode
from diffproof.training.adversarial import LARGEST
from diffproof.training.batches import Batch
from diffproof.training.checkpoint import Part


@dataclass(frozen=True)
class Step:
    """What an objective sees of one step: N images under m draws of noise each, and the network.

    Attributes:
        images: N×C×H×W in [0, 1].
        labels: N integers.
        normal: N×m×C×H×W, standard normal.
        uniform: N×m, uniform in [0, 1); empty where the objective asks for none.
        sigma: standard deviation of the noise, in [0, 1] pixels.
        done: share of the training's steps that lie behind, in [0, 1).
        network: what is trained, as a search for perturbations calls it.
        forward: what the loss calls, the same network shared with other processes: images → logits, and
            whatever else the network can be asked.
        denoise: noisy images → the images that the network is to see.
    """

    images: Tensor
    labels: Tensor
    normal: Tensor
    uniform: Tensor
    sigma: float
    done: float
    network: nn.Module
    forward: Callable[..., Tensor]
    denoise: Callable[[Tensor], Tensor]

    def classify(self, images: Tensor) -> Tensor:
        """N×num_classes logits of images as they are, float32 whatever the network runs in."""
        logits: Tensor = self.forward(images)
        return logits if logits.dtype == torch.float64 else logits.float()

    def noisy(self, images: Tensor) -> Tensor:
        """N×m×C×H×W: images under each of their draws of noise."""
        return images[:, None] + self.sigma * self.normal

    def logits_of(self, many: Tensor) -> Tensor:
        """N×m×num_classes logits of noisy images N×m×C×H×W, denoised first where the training denoises."""
        return by_draw(lambda images: self.classify(self.denoise(images)), many)

    def log_probabilities(self, images: Tensor) -> Tensor:
        """N×m×num_classes log softmax of images under each of their draws of noise."""
        return self.logits_of(self.noisy(images)).log_softmax(2)

    @contextmanager
    def searching(self) -> Iterator[Step]:
        """The step as a search for perturbations sees it: the network in evaluation mode, on its own."""
        with evaluation_mode(self.network):
            yield replace(self, forward=self.network)


class Objective:
    """A loss that a classifier is trained with, most of them of noisy images. Subclasses write `loss`.

    Raises:
        ValueError: a setting out of range.
    """

    # What `diffproof.methods` asks a class, see catalog.Method.can.
    kind: ClassVar[str] = "objective"
    can: ClassVar[frozenset[str]] = frozenset({"train", "finetune"})
    name: ClassVar[str]
    # Whether the loss draws uniform numbers, too.
    uniform: ClassVar[bool] = False
    # Whether it is a loss under the noise that --noise-sigma says; others get sigma = 0.
    noisy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        # The catalog says once what each setting takes.
        for name, value in checked_settings(self.kind, self.name, vars(self)).items():
            object.__setattr__(self, name, value)

    def begin(self, image_shape: Sequence[int], seed: int, network: nn.Module) -> Objective:
        """The objective of one training, with what it keeps from step to step; most keep nothing.

        Args:
            image_shape: C, H, W.
            seed: the training's.
            network: what is trained.
        """
        return self

    def described(self, description: Mapping[str, Any], *, new: bool) -> dict[str, Any]:
        """What the weights file is to say of the network; most change nothing.

        Args:
            description: of a usual new network for the data, or of the one that is trained further.
            new: which of them.
        """
        return dict(description)

    def parts(self) -> dict[str, Part]:
        """What it keeps from step to step, for checkpoints, by name."""
        return {}

    def draws_at(self, sigma: float) -> int:
        """How many draws of noise an image is seen under in a step."""
        return int(getattr(self, "draws", 1))

    def loss(self, step: Step) -> Tensor:
        """The scalar to minimise. Written by subclasses."""
        raise TypeError(f"{type(self).__name__} does not define loss()")

    def describe(self) -> dict[str, Any]:
        """What must be the same for a training to continue."""
        return {"name": getattr(self, "name", type(self).__name__), **vars(self)}


# The commands that take objectives, by the words of Method.can.
_COMMANDS = {"train": "train classifier", "finetune": "finetune", "denoiser": "train denoiser"}


def check_can(objective: Objective, command: str) -> None:
    """Raise ValueError for an objective of another command.

    Args:
        objective: the one that was asked for.
        command: a word of Method.can.
    """
    if command not in objective.can:
        others = [f"diffproof {told}" for word, told in _COMMANDS.items() if word in objective.can]
        raise ArgumentError("objective", f"{objective.name!r} is for {' and '.join(others)}")


def loss_of_batches(
    objective: Objective, sigma: float, denoise: Callable[[Tensor], Tensor] | None = None
) -> Callable[[nn.Module, Batch, torch.Generator], Tensor]:
    """An objective as `training.loop.fit` takes it.

    Args:
        objective: the loss.
        sigma: standard deviation of the noise, in [0, 1] pixels, > 0; 0 for an objective that has none.
        denoise: noisy images → denoised ones; None where the network sees the noise.

    Raises:
        ValueError: sigma is out of range.
    """
    if sigma and not objective.noisy:
        raise ArgumentError("noise_sigma", f"is not for {objective.name}, which adds its own noise")
    if objective.noisy and not 0 < sigma <= LARGEST:
        raise ArgumentError(
            "noise_sigma",
            f"an objective is one under noise: expected a number in (0, {LARGEST:g}], got {sigma}",
        )
    draws = objective.draws_at(sigma)

    def loss_of_batch(network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        shape = batch.images.shape[1:]
        normal = batch.mine(torch.randn((batch.size, draws, *shape), generator=generator))
        chances = draws if objective.uniform else 0
        uniform = batch.mine(torch.rand((batch.size, chances), generator=generator))
        # The search needs no exchange between processes.
        bare = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        return objective.loss(
            Step(
                batch.images,
                batch.labels,
                normal,
                uniform,
                sigma,
                batch.done,
                bare,
                network,
                denoise or (lambda noisy: noisy),
            )
        )

    return loss_of_batch


def by_draw(of: Callable[[Tensor], Tensor], many: Tensor) -> Tensor:
    """N×m×… of a function from images to rows, of N×m×C×H×W."""
    rows = of(many.flatten(0, 1))
    return rows.reshape(*many.shape[:2], *rows.shape[1:])


def at_sigma(chosen: float | None, usual: Mapping[float, float], sigma: float) -> float:
    """A setting that was given, or the paper's at the noise level that is nearest by its ratio."""
    if chosen is not None:
        return chosen
    return usual[min(usual, key=lambda level: abs(math.log(level / sigma)))]


def mean_of_draws(log_probabilities: Tensor) -> Tensor:
    """N×K log of the mean over the draws of N×m×K log-probabilities, exact where they underflow."""
    return log_probabilities.logsumexp(1) - math.log(log_probabilities.shape[1])


def cross_entropies(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """N×m cross-entropies of N×m×K log-probabilities, or N of N×K."""
    index = labels.reshape(-1, *[1] * (log_probabilities.dim() - 1))
    return -log_probabilities.gather(-1, index.expand(*log_probabilities.shape[:-1], 1)).squeeze(-1)


def divergences(log_first: Tensor, log_second: Tensor) -> Tensor:
    """KL(first ‖ second) over the last axis of log-probabilities, gradients through both."""
    terms = nn.functional.kl_div(
        log_second, log_first.expand_as(log_second), reduction="none", log_target=True
    )
    return terms.sum(-1)


def warmed_up(done: float, share: float) -> float:
    """A factor that rises from 0 to 1 over the first share of a training."""
    return 1.0 if share == 0 else min(1.0, done / share)
