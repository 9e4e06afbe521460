"""Modules whose training mode changes what they compute."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from diffproof.errors import ArgumentError


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """A network in evaluation mode, each of its modules in its own mode again afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def check_evaluation_mode(owner: nn.Module, name: str = "defense") -> None:
    """Raise ValueError for a module in training mode that computes something else than in evaluation mode.

    And for one that normalises by its batch in any mode.

    Args:
        owner: with all the modules in it.
        name: of the owner; errors are about its part that holds the module, where it has parts.
    """
    for path, module in owner.named_modules():
        part, kind = path.split(".")[0] if name == "defense" else "", type(module).__name__
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ArgumentError(
                part or name, f"{kind} keeps no running statistics, so labels depend on their batch"
            )
        if module.training and _differs_in_training(module):
            raise ArgumentError(
                part or name,
                f"{kind} is in training mode, so labels depend on their batch or on chance; call .eval()"
                " first",
            )


def _differs_in_training(module: nn.Module) -> bool:
    if isinstance(module, _InstanceNorm):
        return module.track_running_stats
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return module.dropout > 0
    if any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()):
        return True
    known = isinstance(module, _BatchNorm | _DropoutNd | nn.RReLU | _SpectralNorm)
    return known or _asks_for_its_mode(type(module).__mro__)


@functools.cache
def _asks_for_its_mode(line: tuple[type, ...]) -> bool:
    """Whether the code of a class, given with its bases, reads `training`, as for a functional dropout."""
    own = [base for base in line if base.__module__.split(".")[0] not in ("torch", "builtins")]
    functions = [inspect.unwrap(value) for base in own for value in vars(base).values() if callable(value)]
    codes = [getattr(function, "__code__", None) for function in functions]
    return any(_reads(code, "training") for code in codes if code is not None)


def _reads(code: CodeType, name: str) -> bool:
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    return name in code.co_names or any(_reads(one, name) for one in inner)
