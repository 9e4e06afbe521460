"""Gradients of purifications, in float64: against full graphs, differences, forward mode, and themselves."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.defenses.purifying.reverse_process import potential_gradient
from diffproof.gradients import Step, adjoint, checkpointed, plain
from helpers.classifiers import linear_classifier
from helpers.denoisers import ToyDenoiser
from helpers.gradients import direction, pulled
from helpers.images import SHAPE, pictures
from helpers.noise import noise_of
from helpers.purifications import ROUNDS, SOLVERS, Guided, Unguided, purification
from helpers.tensors import error

KINDS = [Unguided, Guided]


# Exact.


@pytest.mark.parametrize("every", [1, 3, 100])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_the_full_graph(
    kind: type[dp.Purification], solver: dp.Solver, every: int
) -> None:
    chain = purification(kind, solver).chain(noise_of())
    assert len(chain) == 2 + 4 + 3
    expected, full = pulled(lambda x: plain(x, chain), pictures(), direction(1))
    output, gradient = pulled(lambda x: checkpointed(x, chain, every=every), pictures(), direction(1))
    assert torch.equal(output, expected)
    assert error(gradient, full) < 1e-12


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_have_the_gradient_of_the_full_graph(kind: type[dp.Purification], solver: dp.Solver) -> None:
    defense, noise, labels = purification(kind, solver), noise_of(), torch.tensor([0, 2])

    def loss(logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    full = pulled(
        lambda x: loss(defense.classifier(plain(x, defense.chain(noise)))), pictures(), torch.ones(2)
    )
    got = pulled(lambda x: loss(defense(x, noise)), pictures(), torch.ones(2))
    assert torch.equal(got[0], full[0])
    assert error(got[1], full[1]) < 1e-12


@pytest.mark.slow
def test_guidance_changes_value_and_gradient() -> None:
    # Each part of the potential counts: its value, its double backward, the path through the images.
    for solver in SOLVERS:
        chains = {kind: purification(kind, solver).chain(noise_of()) for kind in KINDS}

        def run(images: Tensor, guide: Tensor, chain: Sequence[Step]) -> Tensor:
            state = images
            for step in chain:
                state = step(state, guide)
            return state

        def constant(images: Tensor) -> Tensor:
            return run(images, images.detach(), chains[Guided])  # noqa: B023

        guided, unguided = (
            pulled(lambda x, chain=chains[kind]: run(x, x, chain), pictures(), direction(1))  # type: ignore[misc]
            for kind in (Guided, Unguided)
        )
        assert error(guided[0], unguided[0]) > 0.01
        assert error(guided[1], unguided[1]) > 0.1
        assert error(pulled(constant, pictures(), direction(1))[1], guided[1]) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_central_differences(kind: type[dp.Purification], solver: dp.Solver) -> None:
    defense, images, by, noise = purification(kind, solver), pictures(), direction(1), noise_of()
    denoiser = defense.denoiser
    assert isinstance(denoiser, ToyDenoiser)
    output, gradient = pulled(lambda x: defense.purify(x, noise), images, by)
    if solver is dp.Solver.SDE:
        clamped = (output == 0) | (output == 1)
    else:
        estimates = torch.stack(denoiser.estimates)
        clamped = (estimates < 0) | (estimates > 1)
    assert 0.05 < float(clamped.double().mean()) < 0.95

    width = 1e-5
    slopes = torch.empty(images.numel(), dtype=torch.float64)
    for index in range(images.numel()):
        offset = torch.zeros(images.numel(), dtype=torch.float64)
        offset[index] = width
        above, below = (
            defense.purify(images + sign * offset.reshape(images.shape), noise) for sign in (1, -1)
        )
        slopes[index] = ((above - below) * by).sum() / (2 * width)
    assert float(gradient.abs().min()) > 0
    assert error(gradient, slopes.reshape(images.shape)) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_backward_mode_is_the_transpose_of_forward_mode(solver: dp.Solver) -> None:
    chain, images = purification(Unguided, solver).chain(noise_of()), pictures()
    u, v = direction(1), direction(2)
    pushed = torch.func.jvp(lambda x: plain(x, chain), (images,), (v,))[1].detach()
    _, gradient = pulled(lambda x: checkpointed(x, chain), images, u)
    assert float((pushed * u).sum()) == pytest.approx(float((v * gradient).sum()), rel=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_backward_mode_is_the_transpose_of_differences_under_guidance(solver: dp.Solver) -> None:
    chain, images = purification(Guided, solver).chain(noise_of()), pictures()
    u, v, width = direction(1), direction(2), 1e-5
    with torch.no_grad():
        pushed = (plain(images + width * v, chain) - plain(images - width * v, chain)) / (2 * width)
    _, gradient = pulled(lambda x: checkpointed(x, chain), images, u)
    assert float((pushed * u).sum()) == pytest.approx(float((v * gradient).sum()), rel=1e-7)


# Recomputation.


class Recorder:
    """A chain that keeps the state after each step, and by which call of its step it came about."""

    def __init__(self, chain: Sequence[Step]) -> None:
        self.calls: list[tuple[int, Tensor]] = []
        self.chain = [self._recorded(index, step) for index, step in enumerate(chain)]

    def _recorded(self, index: int, step: Step) -> Step:
        def recorded(state: Tensor, images: Tensor) -> Tensor:
            following = step(state, images)
            self.calls.append((index, following.detach().clone()))
            return following

        return recorded


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", KINDS)
def test_states_are_recomputed_to_the_bit_and_once(
    kind: type[dp.Purification], solver: dp.Solver, every: int
) -> None:
    recorder = Recorder(purification(kind, solver).chain(noise_of()))
    pulled(lambda x: checkpointed(x, recorder.chain, every=every), pictures(), direction(1))
    count = len(recorder.chain)
    forward, backward = recorder.calls[:count], recorder.calls[count:]
    assert [index for index, _ in forward] == list(range(count))
    # The graphs of the last two blocks are kept.
    blocks = [list(range(start, min(start + every, count))) for start in range(0, count, every)][:-2]
    assert [index for index, _ in backward] == [index for block in reversed(blocks) for index in block]
    assert all(torch.equal(state, forward[index][1]) for index, state in backward)


@pytest.mark.parametrize("solver", [dp.Solver.DDPM, dp.Solver.SDE])
def test_noise_that_is_drawn_again_is_seen(solver: dp.Solver) -> None:
    # The first call of a step has the noise of the honest chain, each later call another.
    defense = purification(Unguided, solver)
    chain = defense.chain(noise_of())
    calls = [0] * len(chain)

    def redrawn(index: int) -> Step:
        def step(state: Tensor, images: Tensor) -> Tensor:
            again = defense.chain(noise_of(seed=calls[index]))[index]
            calls[index] += 1
            return again(state, images)

        return step

    recorder = Recorder([redrawn(index) for index in range(len(chain))])
    output, wrong = pulled(lambda x: checkpointed(x, recorder.chain), pictures(), direction(1))
    expected, full = pulled(lambda x: plain(x, chain), pictures(), direction(1))
    assert torch.equal(output, expected)
    assert error(wrong, full) > 0.01
    forward, backward = recorder.calls[: len(chain)], recorder.calls[len(chain) :]
    # The last two keep their graphs and are not called again.
    assert [index for index, _ in backward] == list(range(len(chain) - 2))[::-1]
    # Only the step to the image, last of either round, has no noise in DDPM.
    same = [index for index, state in backward if torch.equal(state, forward[index][1])]
    assert same == ([4] if solver is dp.Solver.DDPM else [])


# Memory and state.


@pytest.mark.parametrize("every", [1, 3])
def test_one_state_a_step_is_kept_and_the_graphs_of_two(every: int) -> None:
    chain = purification(Guided, dp.Solver.DDPM).chain(noise_of())

    def kept(work: Callable[[Tensor], Tensor]) -> int:
        packed: list[weakref.ref[Tensor]] = []

        def pack(tensor: Tensor) -> Tensor:
            packed.append(weakref.ref(tensor))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = work(pictures().requires_grad_())
        assert output.requires_grad
        # Guidance saves tensors for itself and lets go of them within its step.
        return sum(tensor() is not None for tensor in packed)

    graphs: list[bool] = []

    def watched(step: Step) -> Step:
        def run(state: Tensor, images: Tensor) -> Tensor:
            following = step(state, images)
            graphs.append(following.requires_grad)
            return following

        return run

    states = kept(lambda x: checkpointed(x, [watched(step) for step in chain], every=every))
    of_graphs = min(2 * every, len(chain))
    assert graphs == [False] * (len(chain) - of_graphs) + [True] * of_graphs
    longer = [*chain, *chain]
    assert kept(lambda x: checkpointed(x, longer, every=every)) - states == len(chain) // every
    assert kept(lambda x: plain(x, longer)) - kept(lambda x: plain(x, chain)) > 10 * len(chain)


def autocast_purification() -> tuple[dp.Purification, Tensor]:
    denoiser = ToyDenoiser()
    denoiser.network.float()
    defense = Guided(denoiser, linear_classifier(), solver=dp.Solver.DDPM, **ROUNDS)
    return defense, pictures(dtype=torch.float32)


def test_backward_runs_in_the_autocast_of_forward() -> None:
    defense, images = autocast_purification()
    chain, by = defense.chain(noise_of()), direction(1).float()

    def cast(work: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return work(x)

        return run

    output, gradient = pulled(cast(lambda x: checkpointed(x, chain)), images, by)
    expected, full = pulled(cast(lambda x: plain(x, chain)), images, by)
    _, uncast = pulled(lambda x: plain(x, chain), images, by)
    assert torch.equal(output, expected)
    assert error(uncast, full) > 1e-4, "bfloat16 is told from float32"
    assert error(gradient, full) < 1e-6

    # And the other way round: a forward pass without autocast is not run again with it.
    leaf = images.clone().requires_grad_()
    output = checkpointed(leaf, chain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (gradient,) = torch.autograd.grad(output, leaf, by)
    assert error(gradient, uncast) < 1e-5


def test_parameters_may_be_frozen() -> None:
    defense, noise = purification(Guided, dp.Solver.DDPM), noise_of()
    expected = pulled(lambda x: defense(x, noise), pictures(), torch.ones(2, 3, dtype=torch.float64))
    defense.requires_grad_(False)
    frozen = pulled(lambda x: defense(x, noise), pictures(), torch.ones(2, 3, dtype=torch.float64))
    assert all(torch.equal(*pair) for pair in zip(frozen, expected, strict=True))


def test_images_need_no_gradient() -> None:
    defense, noise = purification(Guided, dp.Solver.DDPM), noise_of()
    purified = defense.purify(pictures().requires_grad_(), noise)
    with torch.no_grad():
        silent = defense.purify(pictures().requires_grad_(), noise)
    assert torch.equal(silent, purified)
    assert not silent.requires_grad
    # No graph to parameters either, nor to what guidance differentiates by.
    unasked = defense.purify(pictures(), noise)
    assert torch.equal(unasked, purified)
    assert not unasked.requires_grad
    assert defense(pictures(), noise).requires_grad, "the classifier can be trained behind it"


def test_parameters_get_no_gradient_from_a_purification() -> None:
    defense = purification(Guided, dp.Solver.DDPM)
    defense(pictures().requires_grad_(), noise_of()).sum().backward()
    assert all(parameter.grad is None for parameter in defense.denoiser.parameters())
    assert all(parameter.grad is not None for parameter in defense.classifier.parameters())


def test_gradient_twice_but_no_second_derivative() -> None:
    chain, leaf = purification(Guided, dp.Solver.ODE).chain(noise_of()), pictures().requires_grad_()
    output = checkpointed(leaf, chain)
    first, again = (torch.autograd.grad(output.sum(), leaf, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    (gradient,) = torch.autograd.grad((output**2).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_images_changed_before_the_backward_pass_are_refused() -> None:
    chain, images = purification(Unguided, dp.Solver.DDPM).chain(noise_of()), pictures()
    leaf = images.requires_grad_()
    output = checkpointed(leaf, chain)
    with torch.no_grad():
        leaf += 0.1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_no_step_is_the_identity_and_a_step_may_ignore_its_images() -> None:
    assert torch.equal(pulled(lambda x: checkpointed(x, []), pictures(), direction(1))[1], direction(1))
    steps: list[Step] = [lambda state, images: 2 * state, lambda state, images: 3 * state + images]
    gradient = pulled(lambda x: checkpointed(x, steps), pictures(), direction(1))[1]
    assert error(gradient, 7 * direction(1)) < 1e-15


@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_every_that_is_refused(every: Any) -> None:
    with pytest.raises(ValueError, match=f"every: expected an integer ≥ 1, got {every}"):
        checkpointed(pictures(), [], every=every)


def test_gradient_of_a_potential() -> None:
    at, images = direction(1), pictures().requires_grad_()

    def potential(point: Tensor) -> Tensor:
        return (point**3 * images).flatten(1).sum(1)

    with torch.no_grad():
        silent = potential_gradient(potential, at)
    assert not silent.requires_grad
    torch.testing.assert_close(silent, 3 * at**2 * images.detach(), rtol=1e-14, atol=0)
    # By the images where the point is a constant, and by both where it is not; at a leaf or inside a graph.
    (by_images,) = torch.autograd.grad(potential_gradient(potential, at).sum(), images)
    torch.testing.assert_close(by_images, 3 * at**2, rtol=1e-14, atol=0)
    leaf = at.clone().requires_grad_()
    for point, factor in ((leaf, 1.0), (2 * leaf, 2.0)):
        both = torch.autograd.grad(potential_gradient(potential, point).sum(), (leaf, images))
        torch.testing.assert_close(both[0], 6 * factor**2 * at * images.detach(), rtol=1e-14, atol=0)
        torch.testing.assert_close(both[1], 3 * factor**2 * at**2, rtol=1e-14, atol=0)


# The adjoint ODE.


def smooth() -> dp.GaussianMixtureDenoiser:
    means = 0.5 + 0.05 * torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(5))
    return dp.GaussianMixtureDenoiser(means.double(), torch.full((3,), 0.02))


@pytest.mark.slow
def test_error_of_the_adjoint_falls_like_the_step() -> None:
    images, by, noise = 0.5 + 0.1 * direction(3), direction(1), noise_of()
    errors: dict[int, float] = {}
    for steps in (20, 80):
        defense = dp.DiffPure(smooth(), linear_classifier(), t_star=0.1, steps=steps, solver="ode")
        output, exact = pulled(lambda x, own=defense: own.purify(x, noise), images, by)  # type: ignore[misc]
        again, gradient = pulled(lambda x, own=defense: own.purify_by_adjoint(x, noise), images, by)  # type: ignore[misc]
        torch.testing.assert_close(again, output, rtol=1e-12, atol=0)
        assert 0 < float(output.min()) < float(output.max()) < 1, "no kink in the field"
        errors[steps] = error(gradient, exact)
    assert 3 < errors[20] / errors[80] < 5
    assert 1e-4 < errors[80] < 0.01


def test_adjoint_of_a_linear_field() -> None:
    # d state/d sigma = M·state: the adjoint multiplies by (1 + h·M)ᵀ, step by step in the other order.
    matrix = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64)
    start, by = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.3, 0.7], dtype=torch.float64)
    sigmas = [1.0, 0.7, 0.5, 0.1]
    output, gradient = pulled(lambda x: adjoint(x, sigmas, lambda state, _: matrix @ state), start, by)
    expected, eye = torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    for width in (-0.3, -0.2, -0.4):
        expected = (eye + width * matrix) @ expected
    torch.testing.assert_close(output, expected @ start, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, expected.T @ by, rtol=1e-14, atol=0)


@pytest.mark.parametrize("solver", [dp.Solver.DDPM, dp.Solver.SDE])
def test_adjoint_is_that_of_the_ode(solver: dp.Solver) -> None:
    defense = dp.DiffPure(smooth(), linear_classifier(), t_star=0.1, steps=3, solver=solver)
    with pytest.raises(ValueError, match=f"gradient: the adjoint is that of the solver ode, got {solver}"):
        defense.purify_by_adjoint(pictures(), noise_of())


def test_adjoint_without_gradients() -> None:
    defense = dp.DiffPure(smooth(), linear_classifier(), t_star=0.1, steps=3, solver="ode")
    plain_images = defense.purify_by_adjoint(pictures(), noise_of())
    assert not plain_images.requires_grad
    torch.testing.assert_close(plain_images, defense.purify(pictures(), noise_of()), rtol=1e-12, atol=1e-14)
