"""What all training shares: steps, learning rate, clipping, averaging, precision, a finite loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from diffproof.catalog import PRECISIONS
from diffproof.checks import MOST_ROWS, check_at_least, check_number, check_probability, unknown_name
from diffproof.errors import ArgumentError, is_out_of_memory
from diffproof.memory import check_batch
from diffproof.training.batches import Batch, Mixture
from diffproof.training.checkpoint import Checkpoint, Identity, Part
from diffproof.training.interrupts import InterruptedBetweenStepsError, interrupts_put_off
from diffproof.training.processes import Processes

OnStep = Callable[[int, float], None]
LossOfBatch = Callable[[nn.Module, Batch, torch.Generator], Tensor]

# Learning rates that move weights of float32; in the first step AdamW takes ten times as much, which it has.
_RATES = (1e-12, 1e37)
# Added to the seed for dropout masks, so that they are not the numbers of the initialisation again.
_DROPOUT_SEED = 2**32


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one training.

    Attributes:
        iterations: optimiser steps.
        batch_size: images a step, drawn with replacement; over all processes.
        learning_rate: peak of AdamW's learning rate; linear warm-up over 2% of the steps, then cosine to 0.
        ema_decay: decay of the exponential moving average of the weights, which is what is kept.
        seed: seed of initialisation, batches, noise and dropout.
        precision: "float32", or "bfloat16" for mixed precision (weights stay float32).

    Raises:
        ValueError: a setting out of range.
    """

    iterations: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    ema_decay: float = 0.999
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_at_least("iterations", self.iterations, 1, MOST_ROWS)
        check_at_least("batch_size", self.batch_size, 1, MOST_ROWS)
        low, high = _RATES
        expected = f"a number in [{low:g}, {high:g}]"
        check_number("learning_rate", self.learning_rate, lambda rate: low <= rate <= high, expected)
        check_probability("ema_decay", self.ema_decay)
        if check_at_least("seed", self.seed, 0) >= _DROPOUT_SEED:
            raise ArgumentError("seed", f"expected an integer below 2^32, got {self.seed}")
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)


@dataclass(frozen=True)
class Progress:
    """Where a training reports to and what it survives with.

    Attributes:
        on_step: called after each step with its number (from 1) and loss; after a continuation first with
            the steps that were done already.
        checkpoint: file that all state is saved to every `checkpoint_every` seconds and on an interrupt,
            and that a training continues from; None for none.
        checkpoint_every: seconds.
        device: where to train.
    """

    on_step: OnStep = lambda step, loss: None
    checkpoint: Path | None = None
    checkpoint_every: float = 180.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def fit(
    network: nn.Module,
    data: Mixture,
    loss_of_batch: LossOfBatch,
    settings: TrainSettings,
    progress: Progress | None = None,
    *,
    identity: Identity | None = None,
    parts: Mapping[str, Part] | None = None,
) -> nn.Module:
    """Train `network` in place and return its moving average, on the CPU and in evaluation mode.

    A training that continues from its checkpoint ends with the weights and losses of one that was never
    interrupted, on the same machine. Under a launcher such as `accelerate launch` all its processes share
    each step.

    Args:
        network: what is trained.
        data: where batches come from.
        loss_of_batch: (network, batch, generator) → scalar; its randomness from the generator.
        settings: see TrainSettings.
        progress: see Progress; None for no report, no checkpoint and the CPU.
        identity: what else must be the same for a checkpoint to be continued.
        parts: what else has a state that changes with the steps, by name.

    Raises:
        ValueError: the loss stopped being finite, data that cannot be read, a network that cannot take it, or
            the checkpoint is of another training.
        MemoryError: a step does not fit into memory.
    """
    progress = progress or Progress()
    with Processes.joined(progress.device) as processes:
        cuda = [processes.device] if processes.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):
            network.to(processes.device).train()
            made = _Fit(
                network, data, loss_of_batch, settings, progress, processes, identity or {}, parts or {}
            )
            return made.run()


def _learning_rate(settings: TrainSettings) -> Callable[[int], float]:
    warmup = max(1, settings.iterations // 50)

    def rate(step: int) -> float:
        decay = 0.5 * (1 + math.cos(math.pi * step / settings.iterations))
        return min(1.0, (step + 1) / warmup) * decay

    return rate


def _moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    def average(mean: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        # A decay that grows with the updates forgets the random initialisation early.
        kept = min(decay, (1 + int(updates)) / (10 + int(updates)))
        return torch.lerp(mean, current.to(mean.dtype), 1 - kept) if mean.is_floating_point() else current

    return average


def _finite(network: nn.Module) -> set[str]:
    """The names of weights and buffers that are finite."""
    return {name for name, tensor in network.state_dict().items() if bool(torch.isfinite(tensor).all())}


class _Fit:
    """The state of one training."""

    def __init__(
        self,
        network: nn.Module,
        data: Mixture,
        loss_of_batch: LossOfBatch,
        settings: TrainSettings,
        progress: Progress,
        processes: Processes,
        identity: Identity,
        parts: Mapping[str, Part],
    ) -> None:
        self.network, self.data, self.loss_of_batch = network, data, loss_of_batch
        self.settings, self.progress, self.processes = settings, progress, processes
        check_batch(settings.batch_size // processes.count, data.sources[0].image_shape)
        self.generator = torch.Generator().manual_seed(settings.seed)
        # Dropout knows no generator of its own; processes must not share masks.
        torch.manual_seed(_DROPOUT_SEED + settings.seed + (processes.rank << 33))
        self.optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimiser, _learning_rate(settings))
        self.average = AveragedModel(network, avg_fn=_moving_average(settings.ema_decay), use_buffers=True)
        # Others, such as masks, may hold what is not.
        self.finite = _finite(network)
        self.losses: list[float] = []
        self.shared = processes.share(network)
        self.checkpoint = Checkpoint(
            progress.checkpoint,
            parts={
                "network": network,
                "optimiser": self.optimiser,
                "scheduler": self.scheduler,
                "average": self.average,
                **parts,
            },
            generator=self.generator,
            processes=processes,
            identity={
                **identity,
                "settings": {**vars(settings)},
                **data.identity(),
                "processes": processes.count,
            },
        )

    def run(self) -> nn.Module:
        self.losses = self.checkpoint.restore()
        for step, loss in enumerate(self.losses, start=1):
            self.progress.on_step(step, loss)
        saved = time.monotonic()
        try:
            with interrupts_put_off() as raise_interrupt:
                while len(self.losses) < self.settings.iterations:
                    due = time.monotonic() - saved > self.progress.checkpoint_every
                    loss, due = self.checked_step(due)
                    self.progress.on_step(len(self.losses), loss)
                    if due:
                        self.checkpoint.save(self.losses)
                        saved = time.monotonic()
                    raise_interrupt()
        except InterruptedBetweenStepsError:
            if self.progress.checkpoint is None or self.processes.count > 1:
                raise
            self.checkpoint.save(self.losses)
            raise KeyboardInterrupt(
                f"{len(self.losses)} of {self.settings.iterations} iterations are saved; the same command"
                " continues"
            ) from None
        # What follows a training, such as measurements, can be interrupted, too.
        self.checkpoint.save(self.losses)
        module: nn.Module = self.average.module
        if not self.finite <= _finite(module):
            # Buffers, such as variances of what a network sees, overflow while the loss is finite.
            raise ArgumentError(
                "training", "the weights are not finite; lower the learning rate or the noise"
            )
        return module.cpu().eval()

    def checked_step(self, checkpoint_due: bool) -> tuple[float, bool]:
        """`step`, with what a user can do about torch's errors."""
        try:
            return self.step(checkpoint_due)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise MemoryError("training: a step does not fit into memory; lower the batch size") from None
            if self.losses or self.processes.count > 1:
                raise
            # A network that cannot take the images says so in torch's words.
            reason = str(error).splitlines()[0]
            raise ArgumentError("training", f"the network cannot take these images: {reason}") from error

    def step(self, checkpoint_due: bool) -> tuple[float, bool]:
        """One optimiser step; its loss, and whether any process wants a checkpoint."""
        batch = self.data.draw(
            self.settings.batch_size,
            self.processes.rows(self.settings.batch_size),
            self.processes.device,
            self.generator,
        )
        batch = replace(batch, done=len(self.losses) / self.settings.iterations)
        with torch.autocast(
            self.processes.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"
        ):
            loss = self.loss_of_batch(self.shared, batch, self.generator)
        value, due = self.processes.mean(float(loss.detach()), float(checkpoint_due))
        if not math.isfinite(value):
            raise ArgumentError(
                "training",
                f"the loss is {value} at iteration {len(self.losses) + 1}; lower the learning rate"
                f"{self.checkpoint.hint()}",
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.scheduler.step()
        self.average.update_parameters(self.network)
        self.losses.append(value)
        return value, due > 0
