"""PGD that follows the draws of noise that are easiest to break, after DiffHammer (Wang et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffproof.attacks.base import Job
from diffproof.attacks.expectation import Expectation, MeanOf, Rows
from diffproof.attacks.losses import Loss, loss_values
from diffproof.attacks.pgd import PGD
from diffproof.checks import check_share
from diffproof.errors import ArgumentError


@dataclass(frozen=True)
class Selective(PGD):
    """PGD on those draws of each gradient whose margin is largest: the vulnerable purifications.

    The mean over all draws may point nowhere where purifications disagree, and an attacker who may submit an
    image again needs only some of them. So each step is the mean gradient over the `share` of the draws that
    are nearest to a wrong answer, or beyond, chosen anew at each step. The idea is DiffHammer's; its own
    selection, by expectation and maximisation, and its grafting of gradients are not here. Score it by the
    worst of N draws, as DiffHammer's N-evaluation does.

    Args:
        share: of the eot draws, in (0, 1], rounded up.

    Raises:
        ValueError: as PGD, share is out of range, or logits are averaged.
    """

    share: float = 0.5

    name = "selective"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("share", self.share)
        if self.mean_of != MeanOf.LOSS:
            raise ArgumentError("mean_of", f"selective averages losses, got {self.mean_of}")

    def expectation(self, job: Job) -> Expectation:
        """See PGD; means over the chosen draws."""
        kept = math.ceil(self.share * self.eot)
        return _Selection(job, kept=kept, eot=self.eot, loss=Loss(self.loss))


class _Selection(Expectation):
    """Gradients of the `kept` draws of largest margin."""

    def __init__(self, job: Job, *, kept: int, eot: int, loss: Loss) -> None:
        super().__init__(job, eot=eot, loss=loss)
        self._kept = kept

    def _joined(self, parts: Iterator[Rows], points: Tensor) -> Tensor:
        found = list(parts)
        shape = (self.eot, *points.shape)
        gradients = torch.cat([part.gradient for part in found]).reshape(shape)
        labels = self.job.labels.repeat(self.eot)
        margins = loss_values(Loss.MARGIN, torch.cat([part.logits for part in found]), labels)
        # The first of equal ones, so that batches change nothing.
        order = margins.reshape(self.eot, -1).argsort(dim=0, descending=True, stable=True)[: self._kept]
        total = torch.zeros_like(points)
        image = torch.arange(len(points), device=points.device)
        for place in order.sort(dim=0)[0]:
            total = total + gradients[place, image]
        return total / self._kept
