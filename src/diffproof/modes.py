"""Modules whose training mode changes what they compute."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, ModuleType

from torch import nn
from torch.jit import ScriptModule
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
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    if any(isinstance(hook, SpectralNorm) for hook in hooks):
        return True
    # A script's code cannot be read here.
    known = isinstance(module, _BatchNorm | _DropoutNd | nn.RReLU | _SpectralNorm | ScriptModule)
    own = filter(None, (*hooks, vars(module).get("forward")))
    return known or _class_asks_for_its_mode(type(module).__mro__) or any(map(_asks_for_its_mode, own))


@functools.cache
def _class_asks_for_its_mode(line: tuple[type, ...]) -> bool:
    return any(_asks_for_its_mode(value) for base in line if _is_own(base) for value in vars(base).values())


def _asks_for_its_mode(code: object) -> bool:
    """Whether a function, or one that it calls by name, reads `training`, as for a functional dropout."""
    open_ones, seen = [code], set[FunctionType]()
    while open_ones:
        one = inspect.unwrap(open_ones.pop())  # type: ignore[arg-type]
        function = getattr(one, "__func__", one)
        if not isinstance(function, FunctionType) or function in seen or not _is_own(function):
            continue
        seen.add(function)
        names = set(_names(function.__code__))
        if "training" in names:
            return True
        used = [function.__globals__.get(name) for name in names]
        modules = [one for one in used if isinstance(one, ModuleType)]
        open_ones += [*used, *(vars(module).get(name) for module in modules for name in names)]
    return False


def _names(code: CodeType) -> Iterator[str]:
    """The names and texts of a code and of those within it."""
    for one in (*code.co_names, *code.co_consts):
        if isinstance(one, CodeType):
            yield from _names(one)
        elif isinstance(one, str):
            yield one


def _is_own(code: object) -> bool:
    """Whether a class or function is a user's, or of a library that brings networks."""
    return str(getattr(code, "__module__", None)).split(".")[0] not in ("torch", "builtins", "diffproof")
