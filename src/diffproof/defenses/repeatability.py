"""Whether the networks of a defence are functions of an image alone: no chance, state or batch."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from diffproof.denoisers.base import Denoiser
from diffproof.denoisers.empirical import EmpiricalDenoiser
from diffproof.denoisers.gaussian_mixture import GaussianMixtureDenoiser
from diffproof.errors import ArgumentError

# Noise level at which a denoiser is tried, where it takes that.
_SIGMA = 0.25
# Copies of an image in a batch; each is another chance that randomness shows.
_COPIES = 4
# Answers below this are compared as if they were of this size: they may be nothing but rounding.
_SMALL = 1e-3
# What has proved to be a function.
_repeatable: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def check_repeatable(owner: nn.Module, images: Tensor) -> None:
    """Raise ValueError unless every network of a defence gives an image the same answer twice.

    Asked about an image alone (or a pair, if it takes no single one), then about copies of it beside another:
    an answer that changes depends on chance, on earlier calls, or on what else is in the batch. Each network
    is asked once in its life, if it takes such images.

    Args:
        owner: a defence.
        images: N×C×H×W that it takes, N ≥ 1; the first is used.
    """
    one = images[:1].detach()
    rows = torch.cat([1 - one, one.expand(_COPIES, *one.shape[1:])])
    for name, part in _parts(owner):
        if part in _repeatable:
            continue
        ask = _question(part)
        with torch.no_grad():  # answers are compared, not differentiated
            alone = _few(ask, rows)
            if alone is None:
                # The defence may change images first; what else is wrong shows when it asks itself.
                continue
            change = _change(part, ask(rows)[1:], alone)
        if change is not None:
            raise not_repeatable(
                name, f"gives one image other answers when asked again ({change:.1%} of their size)"
            )
        _repeatable.add(part)


def not_repeatable(argument: str, found: str) -> ArgumentError:
    """The error of what depends on more than an image."""
    return ArgumentError(
        argument,
        f"{found}; expected a function of the image alone, without randomness, state or batch statistics",
    )


def _parts(owner: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Classifiers and denoisers with their names; those of a defence inside included, exact ones not."""
    for name, part in owner.named_children():
        if hasattr(part, "respond"):
            yield from _parts(part)
        elif not isinstance(part, EmpiricalDenoiser | GaussianMixtureDenoiser):
            yield name, part


def _question(part: nn.Module) -> Callable[[Tensor], Tensor]:
    # Not by calling the modules, whose hooks are their user's.
    if not isinstance(part, Denoiser):
        return part.forward
    labelled = part.num_classes is not None and part.null_label is None
    sigma = part.nearest(min(max(_SIGMA, part.sigma_min), part.sigma_max))

    def ask(rows: Tensor) -> Tensor:
        label = torch.zeros(len(rows), dtype=torch.int64, device=rows.device) if labelled else None
        return part.checked_estimate(rows, sigma, label).clean

    return ask


def _few(ask: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor | None:
    """The answer to the copied image alone; beside a copy, where that fails; None where both do."""
    for number in (1, 2):
        try:
            return ask(rows[1 : 1 + number])[:1]
        except (ValueError, RuntimeError):
            pass
    return None


def _change(part: nn.Module, first: Tensor, second: Tensor) -> float | None:
    """How far answers differ, relative to the largest; None within what rounding may explain."""
    floats = [tensor for tensor in (first, *part.parameters()) if tensor.is_floating_point()]
    rounding = math.sqrt(max(torch.finfo(tensor.dtype).eps for tensor in floats))
    if not bool((first - second).isfinite().all()):
        return None if torch.allclose(first, second, equal_nan=True) else math.inf
    change = float((first - second).abs().max() / first.abs().max().clamp(min=_SMALL))
    return change if change > rounding else None
