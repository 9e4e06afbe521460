"""Likelihood maximisation: an image moved, within a budget, to where a diffusion model finds it likelier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from diffproof import gradients
from diffproof.checks import check_at_least, check_member, check_not_negative, check_positive
from diffproof.defenses.base import noise_for
from diffproof.defenses.diffusion_classifier.levels import Weighting
from diffproof.defenses.diffusion_classifier.loss import DiffusionLoss
from diffproof.defenses.purifying.base import Purifier
from diffproof.defenses.purifying.reverse_process import potential_gradient
from diffproof.denoisers.base import Denoiser, per_row
from diffproof.errors import ArgumentError
from diffproof.gradients import Step
from diffproof.noise import Noise

# The noise of an iteration has this vote and the iteration's number; a diffusion classifier's begin above.
_VOTE = 2**14
# The released code's noise level, uniform between these, in [0, 1] pixels: theirs are of [−1, 1] data.
_LOWEST, _HIGHEST = 0.4 / 2, 0.6 / 2
# Its Adam: decays of the moments, and what keeps the quotient finite.
_FIRST, _SECOND, _TINY = 0.9, 0.999, 1e-8


class Norm(StrEnum):
    """The norm of the budget, which settles the direction of a step, too: its steepest.

    LINF: the sign of the momentum; each pixel within the budget.
    L2: the momentum at unit length; the Euclidean norm of the change within the budget.
    """

    LINF = "linf"
    L2 = "l2"


class Variant(StrEnum):
    """Whose algorithm.

    PAPER: Algorithm 1 of Chen et al. 2023.
    AUTHORS: what their released code runs (`likelihood_maximization_T1`): Adam with rate 0.1 on [−1, 1] data,
        on mean ‖denoised − x‖² at one noise level an image and step, uniform in [0.4, 0.6] of that data, the
        image being both what is noised and the target. Iterates may leave [0, 1], the last is clipped. The
        code's budget is so wide, 100 in ℓ2, that it binds nothing. It takes the same random numbers at each
        call; here they are those of the noise.
    """

    PAPER = "paper"
    AUTHORS = "authors"


class Ball(NamedTuple):
    """The changes within a budget."""

    norm: Norm
    budget: float

    def nearest(self, change: Tensor) -> Tensor:
        """The nearest change within the budget."""
        if self.norm is Norm.LINF:
            return change.clamp(-self.budget, self.budget)
        factor: Tensor = self.budget / _length(change, 2).clamp(min=self.budget)
        return change * factor


class _Updates:
    """What an iteration does to the image. Subclasses write `advanced`.

    A state is x̂ with its moments, N×(1 + moments)×C×H×W.

    Attributes:
        moments: tensors besides the image that an iteration hands on.
        usual_iterations: where none are asked for.
        usual_norm: where none is asked for.
        evaluations: of the denoiser, an iteration.
        loss: the diffusion loss that falls, None where it is not diffproof's.
    """

    moments: ClassVar[int]
    usual_iterations: ClassVar[int]
    usual_norm: ClassVar[Norm]
    evaluations: int
    loss: DiffusionLoss | None

    def __init__(
        self, denoiser: Denoiser, ball: Ball, step: float, momentum: float, loss: Mapping[str, Any]
    ) -> None:
        self.denoiser = denoiser
        self.ball = ball
        self.step = step
        self.momentum = momentum

    @staticmethod
    def usual_budget(norm: Norm) -> float:
        """The budget where none is asked for."""
        raise TypeError("written by subclasses")

    @staticmethod
    def usual_step(budget: float, iterations: int) -> float:
        """The step where none is asked for."""
        raise TypeError("written by subclasses")

    def settings(self) -> dict[str, Any]:
        """What results state besides what every variant has."""
        return {}

    def advanced(self, state: Tensor, images: Tensor, number: int, noise: Noise) -> Tensor:
        """The state after iteration `number`, from 0."""
        raise TypeError(f"{type(self).__name__} does not define advanced()")


class _Momentum(_Updates):
    """Variant.PAPER: Algorithm 1."""

    moments = 1
    usual_iterations = 10
    usual_norm = Norm.LINF
    loss: DiffusionLoss

    def __init__(
        self, denoiser: Denoiser, ball: Ball, step: float, momentum: float, loss: Mapping[str, Any]
    ) -> None:
        super().__init__(denoiser, ball, step, momentum, loss)
        self.loss = DiffusionLoss(denoiser, **loss)
        self.evaluations = len(self.loss.levels) * self.loss.samples

    @staticmethod
    def usual_budget(norm: Norm) -> float:
        """8/255, or 0.5 in ℓ2."""
        return 8 / 255 if norm is Norm.LINF else 0.5

    @staticmethod
    def usual_step(budget: float, iterations: int) -> float:
        """All iterations together reach the budget."""
        return budget / iterations

    def settings(self) -> dict[str, Any]:
        """Momentum and loss."""
        return {"momentum": self.momentum, "loss": self.loss.settings()}

    def advanced(self, state: Tensor, images: Tensor, number: int, noise: Noise) -> Tensor:
        """x̂ and m after an iteration."""
        point, momentum = state.unbind(1)
        linf = self.ball.norm is Norm.LINF
        # Nothing flows back through a sign, so its gradient needs no graph.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not linf):
            gradient = self.loss.unconditional_gradient(point, noise, vote=_VOTE + number)
            momentum = self.momentum * momentum - gradient / _length(gradient, 1)
        heading = momentum.sign() if linf else momentum / _length(momentum, 2)
        moved = images + self.ball.nearest(point + self.step * heading - images)
        # Clamping moves each pixel towards its image, so the point stays within the budget.
        return torch.stack([moved.clamp(0.0, 1.0), momentum], dim=1)


class _Adam(_Updates):
    """Variant.AUTHORS."""

    moments = 2
    usual_iterations = 5
    usual_norm = Norm.L2
    evaluations = 1
    loss = None

    def __init__(
        self, denoiser: Denoiser, ball: Ball, step: float, momentum: float, loss: Mapping[str, Any]
    ) -> None:
        super().__init__(denoiser, ball, step, momentum, loss)
        idle = {
            "momentum": momentum != 1.0,
            "sigmas": loss["sigmas"] is not None,
            "timesteps": loss["timesteps"] != "all",
            "weighting": loss["weighting"] != Weighting.SIMPLE,
            "samples": loss["samples"] != 1,
        }
        for name, given in idle.items():
            if given:
                raise ArgumentError(name, "the variant authors has its own Adam and loss, and takes none")
        denoiser.check_sigma(torch.tensor([_LOWEST, _HIGHEST]))

    @staticmethod
    def usual_budget(norm: Norm) -> float:
        """So wide that it binds nothing."""
        return 100.0

    @staticmethod
    def usual_step(budget: float, iterations: int) -> float:
        """Adam's rate, of [0, 1] pixels."""
        return 0.1 / 2

    def advanced(self, state: Tensor, images: Tensor, number: int, noise: Noise) -> Tensor:
        """x̂ and the two moments after an iteration."""
        point, first, second = state.unbind(1)
        own = noise.rows(torch.arange(len(noise)), torch.full_like(noise.vote, _VOTE + number))
        normal = own.normal(images.shape[1:], 0, images.dtype)
        uniform = torch.special.ndtr(own.normal((1,), 1, images.dtype))[:, 0]
        sigma = _LOWEST + (_HIGHEST - _LOWEST) * uniform

        def error(at: Tensor) -> Tensor:
            clean: Tensor = self.denoiser(at + per_row(sigma, at) * normal, sigma)
            # Of [−1, 1] data: 4 times the square, and half the gradient.
            return 2 * (clean - at).square().flatten(1).mean(1)

        gradient = potential_gradient(error, point)
        first = _FIRST * first + (1 - _FIRST) * gradient
        second = _SECOND * second + (1 - _SECOND) * gradient.square()
        # A root has no slope at 0, where the first moment is 0, too.
        variance = second / (1 - _SECOND ** (number + 1))
        positive = variance > 0
        deviation = torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)
        point = point - self.step * (first / (1 - _FIRST ** (number + 1))) / (deviation + _TINY)
        return torch.stack([images + self.ball.nearest(point - images), first, second], dim=1)


_UPDATES: dict[Variant, type[_Updates]] = {Variant.PAPER: _Momentum, Variant.AUTHORS: _Adam}


class LikelihoodMaximization(Purifier):
    """Images → images of a lower unconditional diffusion loss nearby → logits (Chen et al. 2023, eq. 8).

    An iteration of Algorithm 1: m ← μ·m − g/‖g‖₁ with g the gradient of the unconditional loss over all
    chosen levels under noise of its own, x̂ ← x̂ + γ·sign(m), clipped to the budget around the image and to
    [0, 1]. With ℓ2 the step is γ·m/‖m‖₂, and projected onto the ball.

    Gradients are exact, second-order terms included, for any number of iterations, in the memory of one level
    of one iteration, of two iterations of AUTHORS, and of the states between. A sign has no slope: with ℓ∞
    the exact gradient is the identity, but 0 for pixels clipped at 0 or 1.

    Args:
        denoiser: an unconditional one, or one with a null label.
        classifier: see Defense.
        iterations: N; None for 10, or the 5 of AUTHORS.
        budget: η, the largest norm of the change in [0, 1] pixels; None for 8/255 (ℓ∞) or 0.5 (ℓ2), and 100
            for AUTHORS.
        norm: see Norm; None for LINF, or L2 for AUTHORS.
        step: γ; None for budget/iterations, or Adam's 0.05 of [0, 1] pixels for AUTHORS.
        momentum: μ.
        variant: see Variant; AUTHORS has a loss of its own and takes neither momentum nor what follows.
        sigmas: the loss's noise levels, see DiffusionLoss; None for the denoiser's own.
        timesteps: those that are summed; see DiffusionLoss.
        weighting: their weights; see DiffusionLoss.
        samples: draws of noise at each level, at least 1.

    Attributes:
        loss: the diffusion loss that falls; None for AUTHORS.

    Raises:
        ValueError: an argument is out of range, or the denoiser lacks a null label or levels.
    """

    method = "likelihood"
    can = frozenset({"purify", "optimise"})

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: nn.Module,
        *,
        iterations: int | None = None,
        budget: float | None = None,
        norm: Norm | str | None = None,
        step: float | None = None,
        momentum: float = 1.0,
        variant: Variant | str = Variant.PAPER,
        sigmas: Sequence[float] | Tensor | str | None = None,
        timesteps: str = "all",
        weighting: Weighting | str = Weighting.SIMPLE,
        samples: int = 1,
    ) -> None:
        super().__init__(denoiser, classifier)
        if denoiser.num_classes is not None and denoiser.null_label is None:
            raise ArgumentError("denoiser", "expected a null label, for the unconditional loss, got none")
        self.variant = check_member("variant", variant, Variant)
        kind = _UPDATES[self.variant]
        self.norm = check_member("norm", kind.usual_norm if norm is None else norm, Norm)
        if iterations is None:
            iterations = kind.usual_iterations
        # Each has noise of its own.
        self.iterations = check_at_least("iterations", iterations, 1, _VOTE)
        if budget is None:
            budget = kind.usual_budget(self.norm)
        self.budget = check_positive("budget", budget)
        if step is None:
            step = kind.usual_step(budget, iterations)
        self.step = check_positive("step", step)
        self.momentum = check_not_negative("momentum", momentum)
        loss = {"sigmas": sigmas, "timesteps": timesteps, "weighting": weighting, "samples": samples}
        self._updates = kind(denoiser, Ball(self.norm, budget), step, momentum, loss)
        self.loss = self._updates.loss

    @property
    def evaluations(self) -> int:
        """Denoiser evaluations that purify one image, each with its gradient."""
        return self.iterations * self._updates.evaluations

    def purify(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """As any purifier's: within the budget of the images and within [0, 1]."""
        noise = noise_for(images, noise)
        self.check_networks(images)
        chain = [self._iteration(number, noise) for number in range(self.iterations)]
        return gradients.checkpointed(images, chain)

    def settings(self) -> dict[str, Any]:
        """Method, variant, iterations, budget, norm and step; of the paper's variant momentum and loss."""
        settings = {
            "method": self.method,
            "variant": self.variant.value,
            "iterations": self.iterations,
            "budget": self.budget,
            "norm": self.norm.value,
            "step": self.step,
        }
        return settings | self._updates.settings()

    def _iteration(self, number: int, noise: Noise) -> Step:
        """(x̂ with its moments, images) → x̂ with its moments, N×(1 + moments)×C×H×W; the last is x̂ alone."""

        def iterate(state: Tensor, images: Tensor) -> Tensor:
            if number == 0:
                state = torch.stack([state, *[torch.zeros_like(state)] * self._updates.moments], dim=1)
            state = self._updates.advanced(state, images, number, noise)
            return state[:, 0].clamp(0.0, 1.0) if number == self.iterations - 1 else state

        return iterate


def _length(vectors: Tensor, order: int) -> Tensor:
    """Norms N×1×1×1 of rows N×C×H×W, 1 for rows of zeros: what to divide by."""
    norm: Tensor = torch.linalg.vector_norm(vectors.flatten(1), ord=order, dim=1)[:, None, None, None]
    return torch.where(norm > 0, norm, 1.0)
