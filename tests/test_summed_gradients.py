"""Gradients of long sums, in float64: against full graphs, differences, and themselves."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diffproof.gradients import Term, checkpointed, summed, summed_gradient
from helpers.images import pictures

SHAPE = (2, 1, 2, 2)


def points(dtype: torch.dtype = torch.float64) -> Tensor:
    return pictures(shape=SHAPE[1:], dtype=dtype)


def weights(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, dtype=torch.float64, generator=generator)


def smooth_terms(count: int = 5) -> list[Term]:
    """Terms N×3 of N images, each with products of pixels, so that no second derivative is zero."""

    def term(index: int) -> Term:
        matrix = weights(4, 3, index)
        return lambda x: torch.sin(2 * x.flatten(1) @ matrix) * x.flatten(1).prod(1, keepdim=True).exp()

    return [term(index) for index in range(count)]


def linear_term(x: Tensor) -> Tensor:
    return 3 * x.flatten(1)[:, :3]


def constant_term(x: Tensor) -> Tensor:
    return torch.ones(len(x), 3, dtype=x.dtype)


def full(terms: list[Term]) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.stack([term(x) for term in terms]).sum(0)


def derivatives(function: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Value, gradient by one weighting of the values, and gradient of a function of that gradient."""
    leaf = points().requires_grad_()
    by = weights(2, 3, 100).requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, by, create_graph=True)
    second = torch.autograd.grad((gradient**3).sum() + value.square().sum(), (leaf, by))
    return [tensor.detach() for tensor in (value, gradient, *second)]


@pytest.mark.parametrize(
    "terms",
    [smooth_terms(), smooth_terms(1), [*smooth_terms(2), linear_term, constant_term]],
    ids=["smooth", "one", "with a linear and a constant one"],
)
def test_value_and_derivatives_are_those_of_the_full_graph(terms: list[Term]) -> None:
    expected = derivatives(full(terms))
    got = derivatives(lambda x: summed(x, terms))
    assert float(expected[2].abs().min()) > 0
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_derivatives_are_those_of_differences() -> None:
    def function(x: Tensor) -> Tensor:
        return summed(x, [*smooth_terms(3), linear_term])

    assert torch.autograd.gradcheck(function, points().requires_grad_())
    by = weights(2, 3, 100).requires_grad_()
    assert torch.autograd.gradgradcheck(function, points().requires_grad_(), by)


def attending(written_out: bool) -> Term:
    """Pixels attend to each other: by torch's function, or by its formula (Vaswani et al. 2017, eq. 1)."""

    def term(x: Tensor) -> Tensor:
        pixels = x.reshape(2, 1, 4, 1) * torch.linspace(1, 2, 3, dtype=x.dtype)
        query, key = pixels.sin(), pixels.cos()
        if written_out:
            mixed = (query @ key.mT / math.sqrt(3)).softmax(-1) @ pixels
        else:
            mixed = nn.functional.scaled_dot_product_attention(query, key, pixels)
        return mixed.sum((1, 2))

    return term


def test_second_derivatives_through_attention() -> None:
    # Those of torch's fused kernels, which run where none is asked for, have no derivative.
    leaf = points().requires_grad_()
    (gradient,) = torch.autograd.grad(attending(False)(leaf).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(gradient.sum(), leaf)

    expected = derivatives(full([attending(True), *smooth_terms(1)]))
    got = derivatives(lambda x: summed(x, [attending(False), *smooth_terms(1)]))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_only_a_constant_has_no_gradient() -> None:
    leaf = points().requires_grad_()
    (gradient,) = torch.autograd.grad(
        summed(leaf, [constant_term, constant_term]).sum(), leaf, create_graph=True
    )
    assert torch.equal(gradient, torch.zeros(SHAPE, dtype=torch.float64))
    (second,) = torch.autograd.grad(gradient.sum(), leaf)
    assert torch.equal(second, torch.zeros(SHAPE, dtype=torch.float64))


def test_gradient_without_the_values() -> None:
    terms, leaf = smooth_terms(), points().requires_grad_()
    (expected,) = torch.autograd.grad(summed(leaf, terms).sum(), leaf, create_graph=True)
    got = summed_gradient(leaf, terms)
    assert torch.equal(got, expected)
    seconds = [torch.autograd.grad((one**3).sum(), leaf)[0] for one in (got, expected)]
    torch.testing.assert_close(*seconds, rtol=1e-12, atol=1e-14)

    calls: list[bool] = []

    def watched(x: Tensor) -> Tensor:
        calls.append(x.requires_grad)
        return terms[0](x)

    with torch.no_grad():
        silent = summed_gradient(points(), [watched])
    assert not silent.requires_grad
    assert calls == [True], "one pass, and one with a graph"


def test_gradient_inside_a_chain_of_steps() -> None:
    # As likelihood maximisation: each step follows the gradient of a sum, the chain is differentiated.
    def step(state: Tensor, images: Tensor) -> Tensor:
        return state + 0.1 * summed_gradient(state, smooth_terms(3)) + 0.01 * images

    def plain_step(state: Tensor, images: Tensor) -> Tensor:
        point = state if state.requires_grad else state.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(full(smooth_terms(3))(point).sum(), point, create_graph=True)
        return state + 0.1 * gradient + 0.01 * images

    leaf = points().requires_grad_()
    (got,) = torch.autograd.grad((checkpointed(leaf, [step] * 3) ** 2).sum(), leaf)
    state = leaf
    for _ in range(3):
        state = plain_step(state, leaf)
    (expected,) = torch.autograd.grad((state**2).sum(), leaf)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_third_derivative_is_refused() -> None:
    leaf = points().requires_grad_()
    (gradient,) = torch.autograd.grad(summed(leaf, smooth_terms()).sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad((gradient**3).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        second.sum().backward()


@pytest.mark.parametrize("order", [1, 2])
def test_graphs_of_two_terms_never_live_at_once(order: int) -> None:
    alive: list[weakref.ref[Tensor]] = []
    peak, graphs = 0, 0

    def watched(term: Term) -> Term:
        def run(x: Tensor) -> Tensor:
            nonlocal peak, graphs
            hidden = 2 * x
            value = term(hidden) * hidden.sum()
            graphs += value.requires_grad
            alive.append(weakref.ref(hidden))
            peak = max(peak, sum(one() is not None for one in alive))
            return value

        return run

    def work(function: Callable[[Tensor, list[Term]], Tensor]) -> None:
        nonlocal peak, graphs
        alive.clear()
        peak = graphs = 0
        leaf = points().requires_grad_()
        value = function(leaf, [watched(term) for term in smooth_terms(6)])
        (gradient,) = torch.autograd.grad(value.sum(), leaf, create_graph=order == 2)
        if order == 2:
            torch.autograd.grad(gradient.square().sum(), leaf)

    work(lambda x, terms: full(terms)(x))
    assert (peak, graphs) == (6, 6)
    work(summed)
    assert peak == 1
    assert graphs == 6 * order


def test_the_sum_keeps_the_images_alone() -> None:
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        leaf = points().requires_grad_()
        summed(leaf, smooth_terms(6))
    assert [tensor.data_ptr() for tensor in packed] == [leaf.data_ptr()]


def test_no_graph_where_none_is_asked_for() -> None:
    layer = nn.Linear(4, 3).double()
    terms: list[Term] = [lambda x: layer(x.flatten(1))] * 3
    assert not summed(points(), terms).requires_grad
    with torch.no_grad():
        silent = summed(points().requires_grad_(), terms)
    assert not silent.requires_grad
    torch.testing.assert_close(silent, 3 * layer(points().flatten(1)).detach(), rtol=1e-14, atol=1e-14)
    # And no gradient to parameters where the images ask for theirs.
    summed(points().requires_grad_(), terms).sum().backward()
    assert layer.weight.grad is None


def test_backward_runs_in_the_autocast_of_forward() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    terms: list[Term] = [lambda x, scale=scale: torch.tanh(layer(scale * x.flatten(1))) for scale in (1, 2)]  # type: ignore[misc]

    def gradient(function: Callable[[Tensor], Tensor], forward: bool, backward: bool) -> Tensor:
        leaf = points(torch.float32).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=forward):
            value = function(leaf)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=backward):
            return torch.autograd.grad(value.float().sum(), leaf)[0]

    # Torch runs the products of a backward pass in the autocast around it, so each has its own truth.
    truth = {way: gradient(full(terms), *way) for way in ((True, False), (False, True), (True, True))}
    values = list(truth.values())
    for one, other in ((0, 1), (1, 2)):
        assert float((values[one] - values[other]).abs().max()) > 1e-4, "bfloat16 is told from float32"
    for way, expected in truth.items():
        got = gradient(lambda x: summed(x, terms), *way)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_no_terms_are_refused() -> None:
    for function in (summed, summed_gradient):
        with pytest.raises(ValueError, match="terms: expected an integer ≥ 1, got 0"):
            function(points(), [])
