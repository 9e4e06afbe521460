"""Gradients through long chains of steps: exact ones in constant memory, and the adjoint ODE.

A chain is a list of pure functions (state, images) → next state; its first state is `images`. Pure means that
a step called twice returns the same bits; its noise is a function of indices (`diffproof.noise`), not drawn.
Those of chains return what the chain returns, and differ in how they go backward; those of long sums have
gradients that can be differentiated again.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffproof.checks import check_at_least
from diffproof.errors import ArgumentError

Step = Callable[[Tensor, Tensor], Tensor]


def plain(images: Tensor, steps: Sequence[Step]) -> Tensor:
    """The chain itself: autograd keeps every step's graph."""
    state = images
    for step in steps:
        state = step(state, images)
    return state


def checkpointed(images: Tensor, steps: Sequence[Step], *, every: int = 1) -> Tensor:
    """The chain with exact gradients in constant memory, a state a step aside.

    Going backward runs each step again from its stored state, one at a time, and includes the path of
    `images` into every step. Only the last two keep their graphs and are not run again, unless a second
    backward pass asks for it. Gradients flow to `images` only, not to parameters, and once, not twice; where
    `images` asks for none, no graph is built at all.

    Args:
        images: first state and second argument of every step.
        steps: pure functions.
        every: keep only each `every`-th state; so many steps then count as one.

    Raises:
        ValueError: every < 1.
    """
    check_at_least("every", every, 1)
    if not (torch.is_grad_enabled() and images.requires_grad):
        # A graph to parameters, which get no gradient, would hold every step in memory.
        with torch.no_grad():
            return plain(images, steps)
    output: Tensor = _Checkpointed.apply(images, tuple(steps), every)  # type: ignore[no-untyped-call]
    return output


@dataclass(frozen=True)
class _Autocast:
    """The autocast state of the forward pass, for the backward pass, which runs outside it."""

    device: str
    dtype: torch.dtype
    enabled: bool

    @classmethod
    def of(cls, tensor: Tensor) -> _Autocast:
        device = tensor.device.type
        return cls(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))

    def again(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.enabled)


# With frozen parameters running a step again costs half of its forward and backward pass: sparing two steps
# of ten brings the whole below 1.4 times plain autograd.
_KEPT_GRAPHS = 2


@dataclass(frozen=True)
class _Part:
    """Consecutive steps of a chain, run once with a graph: its two leaves, and where they lead."""

    start: Tensor
    through: Tensor
    end: Tensor

    @classmethod
    def run(cls, steps: Sequence[Step], state: Tensor, images: Tensor) -> _Part:
        with torch.enable_grad():
            start, through = state.detach().requires_grad_(), images.detach().requires_grad_()
            end = start
            for step in steps:
                end = step(end, through)
        return cls(start, through, end)

    def pulled(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The products of `grad` with the Jacobians by the first state and by the images."""
        by_state, by_images = torch.autograd.grad(
            self.end, (self.start, self.through), grad, allow_unused=True, materialize_grads=True
        )
        return by_state, by_images


class _Checkpointed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, steps: tuple[Step, ...], every: int) -> Tensor:
        parts = [steps[start : start + every] for start in range(0, len(steps), every)]
        recomputed = max(0, len(parts) - _KEPT_GRAPHS)
        state, states, graphs = images, [], []
        for i, part in enumerate(parts):
            # The first state is `images` itself.
            if i:
                states.append(state)
            if i < recomputed:
                for step in part:
                    state = step(state, images)
            else:
                graphs.append(_Part.run(part, state, images))
                state = graphs[-1].end.detach()
        ctx.save_for_backward(images, *states)
        ctx.parts, ctx.graphs, ctx.autocast = parts, graphs, _Autocast.of(images)
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        images, *later = ctx.saved_tensors
        states, total = [images, *later], torch.zeros_like(images)

        def again(i: int) -> _Part:
            with ctx.autocast.again():
                return _Part.run(ctx.parts[i], states[i], images)

        for i in reversed(range(len(ctx.parts))):
            # A graph serves once: its memory goes back before the next part is run.
            grad, direct = (ctx.graphs.pop() if ctx.graphs else again(i)).pulled(grad)
            total = total + direct
        return total + grad, None, None


def twice_differentiable() -> AbstractContextManager[None]:
    """Attention by formulas whose gradients have gradients; those of torch's fused kernels have none."""
    return sdpa_kernel(SDPBackend.MATH)


Term = Callable[[Tensor], Tensor]


def summed(images: Tensor, terms: Sequence[Term]) -> Tensor:
    """Σ_i terms[i](images), with exact first and second derivatives in the memory of one term.

    Going backward runs each term again, one at a time, and so does going backward through the gradient. As
    with `checkpointed`, gradients flow to `images` only, and where `images` asks for none no graph is built.
    A third derivative is refused.

    Args:
        images: the argument of every term.
        terms: pure functions images → a tensor, of one shape for all.

    Raises:
        ValueError: no terms.
    """
    check_at_least("terms", len(terms), 1)
    if not (torch.is_grad_enabled() and images.requires_grad):
        with torch.no_grad():
            return _sum(images, terms)
    output: Tensor = _Summed.apply(images, tuple(terms))  # type: ignore[no-untyped-call]
    return output


def summed_gradient(images: Tensor, terms: Sequence[Term]) -> Tensor:
    """∇ of the sum of all values of `summed`, like `images`; itself differentiable once.

    It spares the pass that would tell the values.

    Args:
        images: see `summed`.
        terms: see `summed`.

    Raises:
        ValueError: no terms.
    """
    check_at_least("terms", len(terms), 1)

    def scalar(term: Term) -> Term:
        return lambda x: term(x).sum()

    one = torch.ones((), dtype=images.dtype, device=images.device)
    gradient: Tensor = _SummedGradient.apply(  # type: ignore[no-untyped-call]
        images, one, tuple(scalar(term) for term in terms), _Autocast.of(images)
    )
    return gradient


def _sum(images: Tensor, terms: Sequence[Term]) -> Tensor:
    first, *others = terms
    total = first(images)
    for term in others:
        total = total + term(images)
    return total


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, terms: tuple[Term, ...]) -> Tensor:
        ctx.save_for_backward(images)
        ctx.terms, ctx.autocast = terms, _Autocast.of(images)
        return _sum(images, terms)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (images,) = ctx.saved_tensors
        pulled: Tensor = _SummedGradient.apply(images, *grads, ctx.terms, ctx.autocast)  # type: ignore[no-untyped-call]
        return pulled, None


class _SummedGradient(torch.autograd.Function):
    """(x, g) → Σ_i J_i(x)ᵀ·g: what `_Summed` sends backward, as a function of its own."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, grad: Tensor, terms: tuple[Term, ...], autocast: _Autocast
    ) -> Tensor:
        ctx.save_for_backward(images, grad)
        ctx.terms, ctx.autocast = terms, autocast
        total = torch.zeros_like(images)
        for term in terms:
            total = total + _pulled(term, images, grad, autocast, again=False)[1]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        images, grad = ctx.saved_tensors
        by_images, by_grad = torch.zeros_like(images), torch.zeros_like(grad)
        for term in ctx.terms:
            with torch.enable_grad():
                weight = grad.detach().requires_grad_()
                leaf, pulled = _pulled(term, images, weight, ctx.autocast, again=True)
            # The gradient of a term that does not depend on the images is a constant.
            if pulled.requires_grad:
                direct, through = torch.autograd.grad(
                    pulled, (leaf, weight), grads, allow_unused=True, materialize_grads=True
                )
                by_images, by_grad = by_images + direct, by_grad + through
        return by_images, by_grad, None, None


def _pulled(
    term: Term, images: Tensor, grad: Tensor, autocast: _Autocast, *, again: bool
) -> tuple[Tensor, Tensor]:
    """A leaf that equals the images, and J(leaf)ᵀ·grad of a term, with a graph where asked for again."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        with autocast.again(), twice_differentiable() if again else contextlib.nullcontext():
            value = term(leaf)
        if not value.requires_grad:
            return leaf, torch.zeros_like(leaf)
        (pulled,) = torch.autograd.grad(
            value, leaf, grad, create_graph=again, allow_unused=True, materialize_grads=True
        )
    return leaf, pulled


Velocity = Callable[[Tensor, float], Tensor]


def adjoint(state: Tensor, sigmas: Sequence[float], velocity: Velocity) -> Tensor:
    """Euler's method for d state/d sigma = velocity, whose gradient is the adjoint ODE's in constant memory.

    Going backward integrates state and adjoint together from the final state (Chen et al. 2018, "Neural
    ordinary differential equations", algorithm 1). The states it reconstructs are not those of the forward
    pass, so the gradient is inexact by the size of the steps.

    Args:
        state: the state at sigmas[0].
        sigmas: the noise levels to visit.
        velocity: a pure function of state and level.
    """
    if not (torch.is_grad_enabled() and state.requires_grad):
        with torch.no_grad():
            return _euler(state, sigmas, velocity)
    output: Tensor = _Adjoint.apply(state, tuple(sigmas), velocity)  # type: ignore[no-untyped-call]
    return output


def _euler(state: Tensor, sigmas: Sequence[float], velocity: Velocity) -> Tensor:
    for sigma, following in itertools.pairwise(sigmas):
        state = state + (following - sigma) * velocity(state, sigma)
    return state


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, sigmas: tuple[float, ...], velocity: Velocity) -> Tensor:
        final = _euler(state, sigmas, velocity)
        ctx.save_for_backward(final)
        ctx.sigmas, ctx.velocity, ctx.autocast = sigmas, velocity, _Autocast.of(state)
        return final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        (state,) = ctx.saved_tensors
        backward = ctx.sigmas[::-1]
        for sigma, earlier in itertools.pairwise(backward):
            with torch.enable_grad(), ctx.autocast.again():
                at = state.detach().requires_grad_()
                slope = ctx.velocity(at, sigma)
            (pulled,) = torch.autograd.grad(slope, at, grad)
            state = state + (earlier - sigma) * slope.detach()
            grad = grad - (earlier - sigma) * pulled
        return grad, None, None


StepLoss = Callable[[Tensor, Tensor], Tensor]


def checkpointed_with_losses(
    images: Tensor, steps: Sequence[Step], losses: Sequence[StepLoss | None]
) -> tuple[Tensor, Tensor]:
    """`checkpointed`, and the sum of losses of its states, whose gradients are as exact.

    Memory is that of two states a step. A step without a loss begins a round: the losses after it, up to the
    next such step, are of their own state and of the one that the round began with.

    Args:
        images: see `checkpointed`.
        steps: see `checkpointed`.
        losses: pure functions (state after a step, state before its round) → N values, one for each step, or
            None.

    Returns:
        The last state, and N sums of losses.

    Raises:
        ValueError: another number of losses than steps.
    """
    if len(losses) != len(steps):
        raise ArgumentError("losses", f"expected one for each of {len(steps)} steps, got {len(losses)}")
    chain = [_carrying(i == 0, step, loss) for i, (step, loss) in enumerate(zip(steps, losses, strict=True))]
    final = checkpointed(images, chain)
    (_, state), total = _carried(final, images)
    return state, total


def _carrying(first: bool, step: Step, loss: StepLoss | None) -> Step:
    """The step on rows that hold their sum of losses, the state before their round, and the state."""

    def carry(carried: Tensor, images: Tensor) -> Tensor:
        if first:
            start, state, total = carried, carried, carried.new_zeros(len(carried))
        else:
            (start, state), total = _carried(carried, images)
        if loss is None:
            start = state
        state = step(state, images)
        if loss is not None:
            total = total + loss(state, start)
        return torch.cat([total[:, None], start.flatten(1), state.flatten(1)], dim=1)

    return carry


def _carried(carried: Tensor, images: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    start, state = carried[:, 1:].reshape(len(images), 2, *images.shape[1:]).unbind(1)
    return (start, state), carried[:, 0]
