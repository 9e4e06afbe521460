"""DiffPure: purification by the reverse SDE, the probability-flow ODE or DDPM (Nie et al. 2022)."""

from __future__ import annotations

from torch import Tensor, nn

from diffproof import gradients
from diffproof.defenses.base import noise_for
from diffproof.defenses.purifying.reverse_process import Purification, one_t_star
from diffproof.denoisers.base import Denoiser
from diffproof.errors import ArgumentError
from diffproof.noise import Noise
from diffproof.reverse.solvers import Solver


class DiffPure(Purification):
    """Diffuse to t*, integrate back, classify (Nie et al. 2022, algorithm 1 and section 3.2).

    Args:
        denoiser: see Purification.
        classifier: see Purification.
        t_star: noise level as a time in (0, 1], this or sigma; 0.1 is the paper's for ℓ∞ 8/255 on CIFAR-10.
        sigma: the noise level in [0, 1] pixels, in (0, 76.08], in place of t_star.
        steps: denoiser evaluations, ≥ 1; None for the paper's dt = 1/1000.
        solver: the paper's SDE, or ODE or DDPM; see Solver.

    Raises:
        ValueError: an argument is out of range, t_star and sigma are both given or neither is, or the
            denoiser cannot start there.
    """

    method = "diffpure"

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: nn.Module,
        *,
        t_star: float | None = None,
        sigma: float | None = None,
        steps: int | None = None,
        solver: Solver | str = Solver.SDE,
    ) -> None:
        super().__init__(
            denoiser,
            classifier,
            t_star=[one_t_star(t_star, sigma)],
            steps=None if steps is None else [steps],
            solver=solver,
        )

    def purify_by_adjoint(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """As `purify`, with the gradient of the adjoint ODE in place of the exact one.

        Raises:
            ValueError: the solver is not the ODE.
        """
        if self.solver is not Solver.ODE:
            raise ArgumentError("gradient", f"the adjoint is that of the solver ode, got {self.solver.value}")
        (levels,) = self.levels()
        diffuse, *_, last = self.chain(noise_for(images, noise))

        def velocity(noisy: Tensor, sigma: float) -> Tensor:
            clean: Tensor = self.denoiser(noisy, sigma)
            return (noisy - clean.clamp(0.0, 1.0)) / sigma

        final = gradients.adjoint(diffuse(images, images), levels, velocity)
        return last(final, images)
