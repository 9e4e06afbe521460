"""The certificates of many images together: certified accuracy at any radius, average certified radius."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from diffproof.checks import check_number
from diffproof.errors import ArgumentError
from diffproof.intervals import Share
from diffproof.notebooks import table
from diffproof.smoothing.certificate import Certificate
from diffproof.wording import counted

# Where a notebook shows certified accuracy, as far as radii go.
_RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Certification:
    """The certificates of the images of a data set.

    An image counts as right where its certificate has its true label. Intervals are Clopper and Pearson's at
    95% over images, as if these were drawn at random; each certificate besides is wrong with its own alpha.

    Attributes:
        certificates: one an image, in their order; at least one.
        labels: the true classes.

    Raises:
        ValueError: no image, or not as many labels as certificates.
    """

    certificates: tuple[Certificate, ...]
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.certificates) == len(self.labels):
            found = f"{len(self.certificates)} and {len(self.labels)}"
            raise ArgumentError("labels", f"expected one a certificate, one at least, got {found}")

    def __len__(self) -> int:
        return len(self.certificates)

    def __iter__(self) -> Iterator[Certificate]:
        return iter(self.certificates)

    @property
    def correct(self) -> tuple[bool, ...]:
        """Whether the certified label of each image is the true one; False where it abstained."""
        return tuple(one.label == label for one, label in zip(self.certificates, self.labels, strict=True))

    @property
    def _certified(self) -> list[float]:
        """The radius of each image, −1 where the label is wrong or there is none."""
        pairs = zip(self.certificates, self.correct, strict=True)
        return [one.radius if right else -1.0 for one, right in pairs]

    def certified_accuracy(self, radius: float = 0.0) -> Share:
        """Share of images certified correctly with at least this ℓ2 radius; abstentions count as wrong.

        Of certificates that asked for radii, accuracy at another is that at the next larger one.

        Args:
            radius: in [0, 1] pixels, ≥ 0.

        Raises:
            ValueError: the radius is negative or no number.
        """
        least = check_number("radius", radius, lambda number: number >= 0, "a number ≥ 0")
        return self._share([one >= least for one in self._certified])

    @property
    def average_radius(self) -> float:
        """Average certified radius (ACR): mean radius, 0 where wrong or abstained (Zhai et al. 2020)."""
        return float(np.mean([max(0.0, one) for one in self._certified]))

    @property
    def wrong(self) -> Share:
        """Share of images whose certificate gives a wrong label."""
        pairs = zip(self.certificates, self.correct, strict=True)
        return self._share([not right and not one.abstained for one, right in pairs])

    @property
    def abstained(self) -> Share:
        """Share of images without a certified label."""
        return self._share([one.abstained for one in self.certificates])

    def curve(self) -> tuple[list[float], list[float]]:
        """Certified accuracy as a step function: its breakpoints, ascending, and its value after each.

        `matplotlib.pyplot.step(*certification.curve(), where="post")` draws it.
        """
        radii = sorted(one for one in self._certified if one >= 0)
        right = range(len(radii), -1, -1)
        return [0.0, *radii], [count / len(self) for count in right]

    def _repr_html_(self) -> str:
        """Certified accuracy at some radii and what else a report says of them, for notebooks."""
        asked, most = (self.certificates[0].sequential or {}).get("radii"), max(self._certified)
        radii = asked or [radius for radius in _RADII if radius <= most or radius == 0]
        return table(
            counted(len(self), "image"),
            [
                *((f"certified accuracy at ε = {one:g}", self.certified_accuracy(one)) for one in radii),
                ("average certified radius", f"{self.average_radius:.3f}"),
                ("wrong", self.wrong),
                ("abstained", self.abstained),
            ],
            ("", "share of images, and its 95% interval"),
        )

    def _share(self, hits: list[bool]) -> Share:
        return Share.of(sum(hits) / len(hits), len(hits))
