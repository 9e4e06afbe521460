"""A certificate as it grows, draw by draw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from diffproof.defenses.base import CertifiableDefense, Defense
from diffproof.errors import ArgumentError
from diffproof.smoothing.bounds import Bound
from diffproof.smoothing.certificate import Certificate
from diffproof.smoothing.certifier import Certifier
from diffproof.smoothing.schedule import Schedule
from diffproof.smoothing.sequential import RadiusSequence
from diffproof.smoothing.smoothed import Smoothed
from diffproof.smoothing.stopping import Stopping, stopping_test
from diffproof.smoothing.tally import Counted
from diffproof.web.demo.picture import Picture


@dataclass(frozen=True)
class Growth:
    """How far a certification is.

    Attributes:
        counted: labels of the draws so far.
        points: draws and the radius that they prove, None for none, at each look so far. All of them hold at
            once with probability 1 − alpha: the radius never shrinks.
        most: the most draws that bound the class's probability.
        largest: the radius that these would prove if all gave the class.
        certificate: what is proved in the end, None before.
    """

    counted: Counted
    points: tuple[tuple[int, float | None], ...]
    most: int
    largest: float
    certificate: Certificate | None = None


def growing(
    defense: Defense,
    picture: Picture,
    *,
    sigma: float,
    n: int,
    n0: int = 50,
    alpha: float = 0.001,
    seed: int = 0,
    batch_size: int = 64,
) -> Iterator[Growth]:
    """Certify a picture sequentially, and show each step.

    Args:
        defense: one that can be certified.
        picture: what is certified.
        sigma: see Smoothed.
        n: see `Smoothed.certify`.
        n0: see `Smoothed.certify`.
        alpha: see `Smoothed.certify`.
        seed: see `Smoothed.certify`.
        batch_size: draws from one step to the next; the certificate does not depend on it.

    Raises:
        ValueError: an argument is out of range, or the defence cannot be certified.
    """
    if not isinstance(defense, CertifiableDefense):
        raise ArgumentError(
            "defense",
            f"expected one that can be certified, as none, dds, densepure, dc; got {defense.method}",
        )
    smoothed = Smoothed(defense, sigma, levels=picture.levels)
    failures = smoothed.noise.failure_mass(picture.image.numel())
    asked = {"radii": None, "tolerance": None, "futility": None, "exact_share": None}
    test = stopping_test(
        Stopping.SEQUENTIAL, Bound.ONE_SIDED, **asked, n=n, sigma=sigma, alpha=alpha, failure_mass=failures
    )
    assert isinstance(test, RadiusSequence)
    index, points = picture.index, list[tuple[int, float | None]]()
    certifier = Certifier(
        smoothed, lambda _: picture.image, lambda _: test, n0, n, alpha, Bound.ONE_SIDED, seed, batch_size
    )
    schedule = Schedule([index], certifier.counting)
    packing = certifier.packing(schedule)
    while packing.step():
        counted = schedule.in_work[index].counted
        for look in range(len(points), len(counted.hits)):
            decision = test.decide(counted.hits[: look + 1])
            points.append((decision.draws, decision.radius))
        if schedule.finished():
            certificate = certifier.certificate(index, counted)
            yield Growth(counted, tuple(points), n, test.largest, certificate)
            return
        yield Growth(counted, tuple(points), n, test.largest)
