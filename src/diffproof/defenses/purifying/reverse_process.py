"""Purification: diffuse an image, run the reverse process back, classify what comes out (Nie et al. 2022)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from diffproof import gradients
from diffproof.checks import check_at_least, check_listed, check_member, check_positive, check_share
from diffproof.defenses.base import noise_for
from diffproof.defenses.purifying.base import Purifier
from diffproof.denoisers.base import Denoiser, Estimate
from diffproof.errors import ArgumentError
from diffproof.gradients import Step
from diffproof.noise import MAX_STEP, Noise
from diffproof.reverse.levels import check_t_star, t_star_of, vp_sigmas
from diffproof.reverse.solvers import INTEGRATORS, Solver, solver_step

Draw = Callable[[], Tensor]


class StepLevels(NamedTuple):
    """The noise levels of a reverse step, in [0, 1] pixels.

    Attributes:
        before: where the step before it began; None in the first step of a round.
        sigma: where it begins.
        next_sigma: where it ends, 0 for the image.
    """

    before: float | None
    sigma: float
    next_sigma: float


class Purification(Purifier):
    """Images → diffused to noise level t*, back by the reverse process, perhaps several rounds → logits.

    Subclasses may guide the reverse process by `score_shift`. Every noise is a row's own: noise index 2k of a
    row belongs to step k of the chain, 2k + 1 to its guidance.

    Args:
        denoiser: any denoiser; its unconditional estimate is used.
        classifier: see Defense.
        t_star: noise level as a time of the papers' VP-SDE, in (0, 1] (timestep/1000), one for each round.
        steps: denoiser evaluations of a round, one for each; None for one a timestep, 1000·t*.
        solver: see Solver.

    Raises:
        ValueError: an argument is out of range, or the denoiser cannot start at t*.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: nn.Module,
        *,
        t_star: Sequence[float],
        steps: Sequence[int] | None = None,
        solver: Solver | str = Solver.DDPM,
    ) -> None:
        super().__init__(denoiser, classifier)
        self.t_star = tuple(check_t_star(time) for time in check_listed("t_star", t_star))
        check_at_least("rounds", len(self.t_star), 1)
        if steps is None:
            steps = [max(1, round(1000 * time)) for time in self.t_star]
        self.steps = tuple(check_at_least("steps", number, 1) for number in check_listed("steps", steps))
        # Each has two noises of its own, one of them for its guidance.
        if 2 * (sum(self.steps) + len(self.steps)) > MAX_STEP + 1:
            most = MAX_STEP // 2 - len(self.steps) + 1
            raise ArgumentError("steps", f"expected at most {most} in all rounds, got {sum(self.steps)}")
        if len(self.steps) != len(self.t_star):
            raise ArgumentError(
                "steps", f"expected one number for each of {len(self.t_star)} rounds, got {steps}"
            )
        self.solver = check_member("solver", solver, Solver)
        for time, levels in zip(self.t_star, self.levels(), strict=True):
            _check_start(denoiser, time, levels[0])

    def levels(self) -> list[list[float]]:
        """The descending noise levels of each round; after the last comes the image.

        Levels below the lowest that the denoiser knows are left out.
        """
        rounds = [vp_sigmas(time, steps) for time, steps in zip(self.t_star, self.steps, strict=True)]
        lowest = self.denoiser.sigma_min
        return [[levels[0], *(sigma for sigma in levels[1:] if sigma >= lowest)] for levels in rounds]

    @property
    def evaluations(self) -> int:
        """Denoiser evaluations of one image."""
        return sum(len(levels) for levels in self.levels())

    def with_steps(self, share: float) -> Self:
        """The same defence, networks shared, with this share of its steps: a surrogate for attacks.

        Raises:
            ValueError: share outside (0, 1].
        """
        check_share("share", share)
        surrogate = copy.copy(self)
        # A module keeps its parts and hooks in dictionaries, which a shallow copy would share.
        parts = {name: value.copy() for name, value in vars(self).items() if isinstance(value, dict)}
        vars(surrogate).update(parts)
        surrogate.steps = tuple(max(1, round(share * steps)) for steps in self.steps)
        return surrogate

    def diffused(self, images: Tensor, sigma: float, noise: Noise, index: int) -> Tensor:
        """Images at noise level sigma by the diffusion that is step `index` of the chain, N×C×H×W.

        Args:
            images: N×C×H×W.
            sigma: noise level in [0, 1] pixels.
            noise: one row an image.
            index: which step of the chain.
        """
        return images + sigma * noise.normal(images.shape[1:], 2 * index, images.dtype)

    def score_shift(self, noisy: Tensor, sigma: float, images: Tensor, draw: Draw) -> Tensor | None:
        """∇ with respect to `noisy` of what guides the process at a step, or None.

        Args:
            noisy: N×C×H×W, the state at noise level sigma.
            sigma: its noise level in [0, 1] pixels.
            images: N×C×H×W, the input of the defence.
            draw: standard normal noise like `noisy`, the same at each call.
        """
        return None

    def step_variance(self, estimate: Estimate, levels: StepLevels) -> Tensor | None:
        """Σ of DDPM's step in [0, 1] pixels, of its noise and its guidance; None for β̃, which ends at 0.

        Args:
            estimate: the denoiser's where the step begins.
            levels: of the step.
        """
        if levels.next_sigma == 0.0:
            return None
        return self.denoiser.learned_variance(estimate, levels.sigma, levels.next_sigma)

    def chain(self, noise: Noise) -> list[Step]:
        """The purification as pure steps for `diffproof.gradients`; the first state is the images."""
        chain: list[Step] = []
        for levels in self.levels():
            chain.append(self._diffusion(levels[0], noise, len(chain)))
            for before, sigma, next_sigma in zip([None, *levels], levels, [*levels[1:], 0.0], strict=False):
                chain.append(self._reverse(StepLevels(before, sigma, next_sigma), noise, len(chain)))
        return chain

    def purify(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """As any purifier's: the chain, a state a step kept."""
        noise = noise_for(images, noise)
        self.check_networks(images)
        return gradients.checkpointed(images, self.chain(noise))

    def settings(self) -> dict[str, Any]:
        """Method, noise levels, steps and solver."""
        return {
            "method": self.method,
            "t_star": list(self.t_star),
            "steps": list(self.steps),
            "solver": self.solver.value,
        }

    def _diffusion(self, sigma: float, noise: Noise, index: int) -> Step:
        def diffuse(state: Tensor, images: Tensor) -> Tensor:
            return self.diffused(state, sigma, noise, index)

        return diffuse

    def _reverse(self, levels: StepLevels, noise: Noise, index: int) -> Step:
        integrator = INTEGRATORS[self.solver]
        _, sigma, next_sigma = levels

        def step(noisy: Tensor, images: Tensor) -> Tensor:
            def draw() -> Tensor:
                return noise.normal(noisy.shape[1:], 2 * index + 1, noisy.dtype)

            estimate = self.denoiser.checked_estimate(noisy, sigma)
            clean = estimate.clean.clamp(0.0, 1.0) if integrator.clips else estimate.clean
            normal = None
            if integrator.noise_at(next_sigma):
                normal = noise.normal(noisy.shape[1:], 2 * index, noisy.dtype)
            variance = self.step_variance(estimate, levels) if integrator.learns else None
            following = solver_step(
                self.solver,
                noisy,
                clean,
                sigma,
                next_sigma,
                normal,
                score_shift=self.score_shift(noisy, sigma, images, draw),
                variance=variance,
            )
            return following if next_sigma > 0 else following.clamp(0.0, 1.0)

        return step


def _check_start(denoiser: Denoiser, t_star: float, sigma: float) -> None:
    """Raise ValueError, in the words of what was given, unless the denoiser can start at a time."""
    try:
        denoiser.check_sigma(sigma)
    except ArgumentError as error:
        raise ArgumentError(
            "t_star", f"the time {t_star:g} is the noise level {sigma:.6g}, but {error}"
        ) from None


def potential_gradient(potential: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """∇ of a potential at a point, itself differentiable wherever gradients are enabled.

    Args:
        potential: N×C×H×W → N values (or their sum).
        at: the point.
    """
    differentiable = torch.is_grad_enabled()
    # Always, so that running a step again gives the same bits, with a graph or without.
    with torch.enable_grad(), gradients.twice_differentiable():
        point = at if differentiable and at.requires_grad else at.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(
            potential(point).sum(), point, create_graph=differentiable, materialize_grads=True
        )
    return gradient if differentiable else gradient.detach()


def one_t_star(t_star: float | None, sigma: float | None) -> float:
    """The noise level of a purification, given as a time or as a sigma of [0, 1] pixels.

    Raises:
        ValueError: both or neither, or out of range.
    """
    if (t_star is None) == (sigma is None):
        raise ArgumentError("t_star, sigma", f"expected one of them, got {t_star!r} and {sigma!r}")
    return (
        check_t_star(t_star)
        if t_star is not None
        else t_star_of(check_positive("sigma", 0.0 if sigma is None else sigma))
    )
