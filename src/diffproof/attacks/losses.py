"""Losses that attacks raise: functions of logits and true labels, one value a row."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor, nn

from diffproof.errors import ArgumentError

# Keeps three equal logits from dividing zero by zero, as in the authors' code.
_TINY = 1e-12


class Loss(StrEnum):
    """What an attack raises.

    CE: cross-entropy. It and DLR want logits: probabilities flatten their gradients.
    DLR: difference of logits ratio (Croce & Hein 2020, eq. 6); needs 3 classes.
    MARGIN: largest other logit minus the true one (Carlini & Wagner 2017, f₆ without its floor).
    """

    CE = "ce"
    DLR = "dlr"
    MARGIN = "margin"


def loss_values(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    """N values, larger for worse answers.

    Args:
        loss: see Loss.
        logits: N×K.
        labels: N int64, true.

    Raises:
        ValueError: DLR of fewer than 3 classes.
    """
    return _FUNCTIONS[loss](logits, labels)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    true = nn.functional.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(true, -torch.inf).amax(1)
    return others - logits.gather(1, labels[:, None])[:, 0]


def _dlr(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[1] < 3:
        raise ArgumentError("loss", f"dlr needs at least 3 classes, got {logits.shape[1]}; use margin")
    top = logits.topk(3, dim=1).values
    return _margin(logits, labels) / (top[:, 0] - top[:, 2] + _TINY)


_FUNCTIONS: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    Loss.CE: _cross_entropy,
    Loss.DLR: _dlr,
    Loss.MARGIN: _margin,
}
