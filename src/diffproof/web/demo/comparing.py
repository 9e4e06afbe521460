"""Several defences on one picture: each attacked by itself, and certified where it can be."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diffproof.defenses.base import CertifiableDefense
from diffproof.errors import ArgumentError
from diffproof.smoothing.certificate import Certificate
from diffproof.smoothing.smoothed import Smoothed
from diffproof.web.demo.attacking import Attacked, attacked
from diffproof.web.demo.picture import Picture
from diffproof.web.demo.studio import Networks, Studio


@dataclass(frozen=True)
class Compared:
    """One defence on the picture.

    Attributes:
        text: the defence.
        attack: what the attack on it did; None where it cannot be run.
        certificate: of the defence under its own sigma; None for one without.
        seconds: that both took.
        problem: why it cannot be run, "" where it can.
    """

    text: str
    attack: Attacked | None
    certificate: Certificate | None
    seconds: float
    problem: str = ""


def compared(
    studio: Studio,
    networks: Networks,
    texts: Sequence[str],
    picture: Picture,
    *,
    threat: str,
    budget: float,
    iterations: int,
    n: int,
) -> Iterator[Compared]:
    """The defences one after the other; what one cannot do stands in its row.

    Args:
        studio: makes the defences.
        networks: theirs.
        texts: the defences.
        picture: what they are tried on.
        threat: see `attacked`.
        budget: see `attacked`.
        iterations: see `attacked`.
        n: see `Smoothed.certify`, of a sequential certification.
    """
    for text in texts:
        start = time.monotonic()
        try:
            defense = studio.defense(text, networks)
            attack = attacked(defense, picture, threat=threat, budget=budget, iterations=iterations, eot=1)
            certificate = None
            if isinstance(defense, CertifiableDefense) and defense.sigma is not None:
                smoothed = Smoothed(defense, defense.sigma, levels=picture.levels)
                certificate = smoothed.certify(
                    picture.image, n0=50, n=n, seed=0, image_index=picture.index, stop="sequential"
                )
        except ArgumentError as error:
            yield Compared(text, None, None, time.monotonic() - start, str(error))
        else:
            yield Compared(text, attack, certificate, time.monotonic() - start)
