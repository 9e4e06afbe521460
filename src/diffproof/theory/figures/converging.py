"""The figures behind the picture of how the reverse process converges."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffproof.errors import ArgumentError
from diffproof.reverse.solvers import Solver
from diffproof.theory.densities import GaussianMixture
from diffproof.theory.figures.setting import Setting
from diffproof.theory.reverse_sde import Distance, convergence, order

# Steps whose error is drawn: of chains in closed form, and of those on a grid.
_CHAIN_STEPS, _GRID_STEPS = ([2**i for i in range(2, end)] for end in (11, 8))
# The least divergence in nats that float64 tells from its rounding, with some room.
_ROUNDING = 2e-12


@dataclass(frozen=True)
class Convergence:
    """The reverse process's distance to the posterior by its steps, by what it is of."""

    setting: Setting
    noisy: Tensor
    distances: dict[str, list[Distance]]

    def order(self, name: str) -> float:
        """That of KL in 1/steps, measured at the four finest."""
        return order(self.distances[name][-4:])

    def __str__(self) -> str:
        parts = [
            f"{name} {self.order(name):.2f} (KL {found[-1].kl:.1e} after {found[-1].steps} steps)"
            for name, found in self.distances.items()
        ]
        return f"KL(posterior ‖ reverse process) ∝ steps^-order, order measured: {', '.join(parts)}"


def converge(setting: Setting, noisy: Tensor) -> Convergence:
    """From one noisy point 2: of the density's heaviest component alone, and of pixel 1 alone.

    Raises:
        ValueError: rounding hides how far the finest steps miss at this noise level.
    """
    density, sigma, marginal, first = setting.density, setting.sigma, setting.marginal(), noisy[:1]
    # Euler–Maruyama misses least, and by the square of its steps: the coarsest tell of the finest.
    coarsest = convergence(marginal, first, sigma, _GRID_STEPS[:1], Solver.SDE)[0].kl
    if coarsest * (_GRID_STEPS[0] / _GRID_STEPS[-1]) ** 2 < _ROUNDING:
        told = f"rounding hides how far Euler–Maruyama misses at the noise level {sigma:.2g}"
        raise ArgumentError("t_star", f"{told}; expected a later time")
    heaviest = [int(density.log_weights.argmax())]
    alone = GaussianMixture(density.means[heaviest], density.covariances[heaviest], labels=[0])
    chains = {
        "one Gaussian, ancestral": convergence(alone, noisy, sigma, _CHAIN_STEPS),
        "pixel 1, ancestral": convergence(marginal, first, sigma, _GRID_STEPS),
        "pixel 1, Euler–Maruyama": convergence(marginal, first, sigma, _GRID_STEPS, Solver.SDE),
    }
    return Convergence(setting, noisy, chains)
