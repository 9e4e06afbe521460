"""How many fewer draws sequential certification takes than a fixed number, at what certified accuracy.

Simulated on images whose p_A is distributed as in Cohen et al.'s log of CIFAR-10 at sigma = 0.25 (ResNet-110,
n = 100,000): its quantiles, 8.6% that abstain, 13% at the largest radius. A minute.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy.special import ndtr, ndtri

from diffproof.smoothing.bounds import radius_bound
from diffproof.smoothing.decisions import Decision
from diffproof.smoothing.sequential import RadiusTest

SIGMA, ALPHA, N = 0.25, 0.001, 100_000
SHARES, P_A = [0.086, 0.1, 0.25, 0.5, 0.75, 0.87], [0.5, 0.637, 0.797, 0.974, 0.9994, 0.99993]
IMAGES = 1_000


def images() -> np.ndarray:
    """The probabilities p_A of so many images."""
    share = (np.arange(IMAGES) + 0.5) / IMAGES
    p = ndtr(np.interp(share, SHARES, ndtri(P_A)))
    return np.where(share > SHARES[-1], 1.0, p)


def decide(test: RadiusTest, p: float, rng: np.random.Generator) -> Decision:
    """The decision about an image with draws of probability p."""
    hits: list[int] = []
    before = 0
    for look in test.checkpoints:
        hits.append((hits[-1] if hits else 0) + int(rng.binomial(look - before, p)))
        before = look
        if (decision := test.decide(hits)).stop:
            return decision
    raise AssertionError("the last checkpoint ends every test")


def main() -> None:
    """Print a line for each set of asked radii."""
    p, rng = images(), np.random.default_rng(0)
    hits = rng.binomial(N, p).tolist()
    fixed = np.array([radius_bound([hit, N - hit], 0, ALPHA, SIGMA).radius for hit in hits])
    asked = [0.25], [0.5], [0.75], [0.25, 0.5, 0.75], [0.0, 0.25, 0.5, 0.75]
    for share, radii in product((0.5, 0.0), asked):
        test = RadiusTest(radii, sigma=SIGMA, alpha=ALPHA, n=N, exact_share=share)
        ended = [decide(test, one, rng) for one in p.tolist()]
        draws = np.array([decision.draws for decision in ended])
        proved = np.array([len(decision.proofs) for decision in ended])
        accuracies = ", ".join(
            f"{radius:g}: {np.mean(proved > i):.1%} ({np.mean(fixed > radius):.1%})"
            for i, radius in enumerate(radii)
        )
        saved = f"{N / draws.mean():.0f} times fewer draws (median {np.median(draws):.0f})"
        print(f"exact share {share:g}: {saved}; certified {accuracies}")


if __name__ == "__main__":
    main()
