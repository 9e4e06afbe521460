"""What all training shares: batches, learning rate, clipping, averaging, a loss that must stay finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from diffproof.checks import check_at_least, check_positive, check_probability

OnStep = Callable[[int, float], None]

# Added to the seed for dropout masks, so that they are not the numbers of the initialisation again.
_DROPOUT_SEED = 2**32


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one training.

    Attributes:
        iterations: optimiser steps.
        batch_size: images a step, drawn with replacement.
        learning_rate: peak of AdamW's learning rate; linear warm-up over 2% of the steps, then cosine to 0.
        ema_decay: decay of the exponential moving average of the weights, which is what is kept.
        seed: seed of initialisation, batches, noise and dropout.
    """

    iterations: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    ema_decay: float = 0.999
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least("iterations", self.iterations, 1)
        check_at_least("batch_size", self.batch_size, 1)
        check_positive("learning_rate", self.learning_rate)
        check_probability("ema_decay", self.ema_decay)
        check_at_least("seed", self.seed, 0)


def fit(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss_of_batch: Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor],
    settings: TrainSettings,
    on_step: OnStep = lambda step, loss: None,
) -> nn.Module:
    """Train `network` in place and return its moving average, in evaluation mode.

    Args:
        network: what is trained.
        images, labels: the training set, in memory.
        loss_of_batch: (network, images, labels, generator) → scalar; its randomness from the generator.
        settings: see TrainSettings.
        on_step: called after each step with its number (from 1) and loss.

    Raises:
        ValueError: the loss stopped being finite.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
    warmup = max(1, settings.iterations // 50)

    def rate(step: int) -> float:
        decay = 0.5 * (1 + math.cos(math.pi * step / settings.iterations))
        return min(1.0, (step + 1) / warmup) * decay

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)

    def moving_average(mean: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        # A decay that grows with the updates forgets the random initialisation early.
        decay = min(settings.ema_decay, (1 + int(updates)) / (10 + int(updates)))
        return torch.lerp(mean, current.to(mean.dtype), 1 - decay) if mean.is_floating_point() else current

    average = AveragedModel(network, avg_fn=moving_average, use_buffers=True)
    network.train()
    with torch.random.fork_rng(devices=[]):
        # Dropout knows no generator of its own.
        torch.manual_seed(_DROPOUT_SEED + settings.seed)
        for step in range(1, settings.iterations + 1):
            chosen = torch.randint(len(images), (settings.batch_size,), generator=generator)
            loss = loss_of_batch(network, images[chosen], labels[chosen], generator)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise ValueError(
                    f"training: the loss is {value} at iteration {step}; lower the learning rate"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            scheduler.step()
            average.update_parameters(network)
            on_step(step, value)
    module: nn.Module = average.module
    return module.eval()
