"""Whether the networks of a defence are functions of an image alone: no chance, state or batch."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffproof.denoisers.base import Denoiser
from diffproof.denoisers.empirical import EmpiricalDenoiser
from diffproof.denoisers.gaussian_mixture import GaussianMixtureDenoiser
from diffproof.errors import ArgumentError
from diffproof.weights import checksums

# Noise level at which a denoiser is tried, where it takes that.
_SIGMA = 0.25
# Copies of an image in a batch; each is another chance that randomness shows.
_COPIES = 4
# Torch compiles a network once more for batches of fewer, which takes longer than these.
_COMPILED = 16
# Answers below this are compared as if they were of this size: they may be nothing but rounding.
_SMALL = 1e-3


@dataclass(frozen=True)
class _Answer:
    """What a network said of images when it proved to be a function, and a sum of what it consisted of."""

    rows: Tensor
    said: Tensor
    weights: tuple[object, ...]


_answers: weakref.WeakKeyDictionary[nn.Module, _Answer] = weakref.WeakKeyDictionary()


# Whether networks are called only to see what they are.
_checking = ContextVar("checking", default=False)


def checking() -> bool:
    """Whether a network is called only to see whether it is a function: no work that anybody counts."""
    return _checking.get()


@contextmanager
def _while_checking() -> Iterator[None]:
    token = _checking.set(True)
    try:
        yield
    finally:
        _checking.reset(token)


def check_repeatable(owner: nn.Module, images: Tensor) -> None:
    """Raise ValueError unless every network of a defence gives an image the same answer twice.

    Asked about an image alone (or a pair, if it takes no single one), then about copies of it beside another:
    an answer that changes depends on chance, on earlier calls, or on what else is in the batch. Each network
    is asked once in its life, if it takes such images and memory so many; see `check_unchanged`.

    Args:
        owner: a defence.
        images: N×C×H×W that it takes, N ≥ 1; the first is used.
    """
    one = images[:1].detach()
    rows = torch.cat([1 - one, one.expand(_COPIES, *one.shape[1:])])
    for name, part in _parts(owner):
        if part in _answers:
            continue
        with torch.no_grad(), _while_checking():  # answers are compared, not differentiated
            alone = _few(part, rows)
            if alone is None:
                # The defence may change images first; what else is wrong shows when it asks itself.
                continue
            beside = _fitting(part, rows)
            if beside is None:
                continue
            change = _change(part, beside[1:], alone.said)
        if change is not None:
            raise not_repeatable(
                name, f"gives one image other answers when asked again ({change:.1%} of their size)"
            )
        _answers[part] = alone


def weights_of(owner: nn.Module) -> tuple[object, ...]:
    """A short account of all weights and statistics of a defence; see `check_unchanged`."""
    return checksums(owner.state_dict())


def check_unchanged(owner: nn.Module, began: tuple[object, ...] | None = None) -> None:
    """Raise ValueError if a network of a defence is another by now, or answers otherwise than when checked.

    What was computed with it since then may be of two networks. Those that got other weights before `began`,
    or are on another device since they were checked, are not asked.

    Args:
        owner: a defence, after `check_repeatable`.
        began: `weights_of` it when the work began; None not to compare weights.
    """
    for was, now in zip(began or (), weights_of(owner) if began else (), strict=True):
        if was != now:
            owned, _, tensor = str(now[0]).partition(".")  # type: ignore[index]
            raise not_repeatable(owned, f"changes its own {tensor} while it answers")
    for name, part in _parts(owner):
        known = _answers.get(part)
        if known is None:
            continue
        try:
            with torch.no_grad(), _while_checking():
                rows = known.rows
                if any("forward" in vars(module) for module in part.modules()):
                    rows = rows[:1].expand(_COMPILED, *rows.shape[1:])
                change = _change(part, _question(part)(rows)[:1], known.said)
        except (ValueError, RuntimeError):
            continue
        if change is not None and known.weights == _weights(part):
            raise not_repeatable(
                name, f"gives an image another answer by now than at first ({change:.1%} of its size)"
            )


def _weights(part: nn.Module) -> tuple[object, ...]:
    """A short account of a network's weights and statistics, and where they are."""
    statistics = {name: tensor for name, tensor in part.named_buffers() if "running_" in name}
    tensors = {**dict(part.named_parameters()), **statistics}
    return *checksums(tensors), *(tensor.device for tensor in tensors.values())


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


def _few(part: nn.Module, rows: Tensor) -> _Answer | None:
    """The answer to the copied image alone; beside a copy, where that fails; None where both do."""
    for few in (rows[1:2], rows[1:3]):
        try:
            # Whoever changes what it is given has no effect on what it is asked later.
            return _Answer(few.clone(), _question(part)(few)[:1].clone(), _weights(part))
        except Exception:
            # Whatever a user's own network raises, the defence names when it asks itself.
            pass
    return None


def _fitting(part: nn.Module, rows: Tensor) -> Tensor | None:
    """The answers to all rows; to fewer where it fails, for lack of memory or at the made-up first one."""
    for some in (rows, rows[:2], rows[1:3]):
        try:
            return _question(part)(some)
        except Exception:
            # As above.
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
