"""The processes that share a training, one per GPU, as a launcher starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from diffproof.errors import ArgumentError


def is_first() -> bool:
    """Whether this process is the one of a training that reports and writes."""
    return _count() == 1 or os.environ.get("RANK") == "0"


def is_alone() -> bool:
    """Whether no other process shares a training."""
    return _count() == 1


def _count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if distributed.is_available() else 1


@dataclass(frozen=True)
class Processes:
    """This process among those of a training.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        device: where it computes.
    """

    rank: int
    count: int
    device: torch.device

    @classmethod
    @contextmanager
    def joined(cls, device: torch.device) -> Iterator[Processes]:
        """Join the others that `accelerate launch` or `torchrun` started; alone where none did."""
        if _count() == 1:
            yield cls(0, 1, device)
            return
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        _kept["group"] = distributed.group.WORLD
        try:
            yield cls(distributed.get_rank(), distributed.get_world_size(), device)
        finally:
            distributed.destroy_process_group()

    def rows(self, size: int) -> Tensor:
        """Which of a step's images this process computes; their shares differ by one at most.

        Raises:
            ValueError: the number of images is no multiple of the number of processes.
        """
        if size % self.count:
            raise ArgumentError("batch_size", f"expected a multiple of {self.count} processes, got {size}")
        return torch.arange(self.rank, size, self.count)

    def share(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged over all processes."""
        if self.count == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=devices)

    def mean(self, *values: float) -> list[float]:
        """The means over all processes, the same bits on each."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        _finish(distributed.all_reduce(tensor, async_op=True))
        return (tensor / self.count).tolist()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Each process's tensor (CPU, of one shape), in order."""
        if self.count == 1:
            return [tensor]
        mine = tensor.to(self.device)
        gathered = [torch.empty_like(mine) for _ in range(self.count)]
        _finish(distributed.all_gather(gathered, mine, async_op=True))
        return [theirs.cpu() for theirs in gathered]


# The group and its last exchange, until the process ends. Gloo's threads need Python's lock to let go of an
# exchange's tensors; this thread may hold it while it destroys the group and waits for them: for ever.
_kept: dict[str, Any] = {}


def _finish(work: Any) -> None:
    work.wait()
    _kept["exchange"] = work
