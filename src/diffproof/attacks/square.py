"""Square Attack (Andriushchenko et al. 2020), by AutoAttack's package: black box, it asks for no gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from diffproof.attacks.base import Attack, Job, Traits
from diffproof.attacks.pyautoattack import NORMS, WatchedDefense, contained, one_row, package, package_seed
from diffproof.attacks.result import AttackResult
from diffproof.attacks.threat import L2, Linf, PixelThreat, Threat
from diffproof.attacks.views import AttackedDefense
from diffproof.checks import check_at_least
from diffproof.noise import MAX_DRAW


@dataclass(frozen=True)
class Square(Attack):
    """Random square-shaped changes, kept where they lower the margin; stops at the first success.

    Returns the image that it found, or the clean one where it found none. The schedule of sizes is rescaled
    to the number of queries, as in the paper. `first_success` counts evaluations of the image. Each image is
    attacked on its own, since the package draws the squares of a batch together.

    On a random defence the package's last look at an image is a single draw, and where that is right it hands
    back the clean one. What is returned then is the query whose draw had the largest margin, as Square itself
    chooses. Where the first look is wrong, the package does not attack the image: it is run again under the
    next draws, up to ten times in all, and only then is the image returned unchanged. The package's own
    count, for which any failed look is a failure, is the score "while optimising".

    Args:
        queries: most evaluations of an image, a few at the start and end aside.

    Raises:
        ValueError: queries < 1. Running it raises ValueError where the package is not installed.
    """

    queries: int = 5000

    name = "square"
    threats = (Linf, L2)
    needs_gradient = False

    def __post_init__(self) -> None:
        check_at_least("queries", self.queries, 1, MAX_DRAW - 3)

    def check(self, view: AttackedDefense, threat: Threat) -> None:
        """As any attack's; and the package must be installed."""
        super().check(view, threat)
        package("pyautoattack.square")

    def most_draws(self, result: AttackResult, num_classes: int) -> int:
        """All its queries, and the three at its start and end."""
        return self.queries + 3

    def most_evaluations(self, num_classes: int) -> tuple[int, int]:
        """A forward for each of its looks."""
        return self.queries + 3, 0

    def images_at_once(self, batch_size: int) -> int:
        """One: it attacks each image on its own."""
        return 1

    def traits(self) -> Traits:
        """Queries in place of gradients."""
        return Traits(None, 1, self.queries, "queries")

    def find(self, job: Job, threat: Threat) -> list[AttackResult]:
        """One run of the package an image, more where a random defence kept it from attacking."""
        assert isinstance(threat, PixelThreat)
        square = package("pyautoattack.square")
        results = []
        with contained(job), torch.no_grad():  # it never asks for a gradient
            for row in range(len(job.images)):
                watched = WatchedDefense(job, row, threat, by_looks=True)
                attack = square.SquareAttack(
                    watched,
                    norm=NORMS[threat.name],
                    n_queries=self.queries,
                    eps=threat.budget,
                    seed=package_seed(job, row),
                    resc_schedule=True,
                    device=job.images.device,
                )
                for _ in range(watched.runs):
                    adversarial = attack.perturb(*one_row(job, row))
                    if watched.attacked(adversarial[0]):
                        break
                results.append(watched.result(adversarial[0]))
        return results
