"""Certifies images of a data set together, so that networks stay full."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from torch import Tensor

from diffproof.bars import bar
from diffproof.checks import check_at_least, check_pixels, check_probability, renamed
from diffproof.classifiers.base import check_labels
from diffproof.defenses.base import CertifiableDefense
from diffproof.noise import MAX_DRAW, check_image_indices
from diffproof.seeds import settled_seed
from diffproof.smoothing.bounds import Bound, as_bound
from diffproof.smoothing.certificate import Certificate
from diffproof.smoothing.certification import Certification
from diffproof.smoothing.grid_noise import SmoothingNoise
from diffproof.smoothing.packing import Drawing, OfImage, OnVotes, Packing, SchedulePacking
from diffproof.smoothing.schedule import Counting, Schedule
from diffproof.smoothing.sequential import SequentialTest
from diffproof.smoothing.smoothed import BATCH_SIZE, Smoothed
from diffproof.smoothing.stopping import Stopping, stopping_test
from diffproof.smoothing.tally import Counted, Looks

OnEvaluations = Callable[[int], None]


@dataclass(frozen=True)
class Certifier:
    """What is drawn of each image of a data set, what labels it, and the certificate that follows.

    Attributes:
        smoothed: the classifier.
        image: gives images by their index, on the networks' device.
        test: what ends the draws of an image, from the failure mass of its noise; it gives None for a fixed
            number of them.
        n0: see `Smoothed.certify`.
        n: see `Smoothed.certify`.
        alpha: see `Smoothed.certify`.
        bound: see `Smoothed.certify`.
        seed: of all noise, in [0, 2^64).
        batch_size: see `Smoothed.packing`.
        seed_drawn: whether the seed was drawn.
    """

    smoothed: Smoothed
    image: OfImage
    test: Callable[[float], SequentialTest | None]
    n0: int
    n: int
    alpha: float
    bound: Bound | str
    seed: int
    batch_size: int
    seed_drawn: bool = False

    def test_of(self, image: Tensor) -> SequentialTest | None:
        """What ends the draws of an image, None for a fixed number of them."""
        return self.test(self.smoothed.noise.failure_mass(image.numel()))

    @property
    def evaluations_per_draw(self) -> int:
        """Images that would go through a network for one draw if votes were not stopped early."""
        return max(1, sum(self.smoothed.evaluations_per_draw))

    @property
    def evaluations_per_image(self) -> int:
        """The same for the selection and estimation draws of one image."""
        return (self.n0 + self.n) * self.evaluations_per_draw

    def counting(self, index: int, done: Counted | None = None, seconds: float = 0.0) -> Counting:
        """The draws of an image, from what was counted of it before; see Counting."""
        looks = self.test_of(self.image(index)) or Looks((self.n,))
        return Counting(index, self.n0, looks, self.smoothed.num_classes, done=done, seconds=seconds)

    def count(self, counting: Counting) -> Counted:
        """What is counted of one image in the end."""
        image = self.image(counting.image_index)
        return self.smoothed.count(image, counting, seed=self.seed, batch_size=self.batch_size)

    @overload
    def packing(self, draws: Schedule, on_ballots: OnVotes = ...) -> SchedulePacking: ...

    @overload
    def packing(self, draws: Drawing, on_ballots: OnVotes = ...) -> Packing: ...

    def packing(self, draws: Drawing, on_ballots: OnVotes = None) -> Packing:
        """What labels draws, those of a Schedule resumably; see `Packing` for ballots."""
        images: dict[int, Tensor] = {}

        def image(index: int) -> Tensor:
            if index not in images:
                for other in images.keys() - draws.in_work.keys():
                    del images[other]
                images[index] = self.smoothed.check_image(self.image(index))
            return images[index]

        return self.smoothed.packing(
            draws, image, seed=self.seed, batch_size=self.batch_size, on_ballots=on_ballots
        )

    def certificate(
        self, index: int, counted: Counted, computed: Mapping[str, Any] | None = None
    ) -> Certificate:
        """The certificate of an image of which all is counted; see `Smoothed.certificate`."""
        image = self.image(index)
        return self.smoothed.certificate(
            image,
            counted,
            alpha=self.alpha,
            seed=self.seed,
            image_index=index,
            seed_drawn=self.seed_drawn,
            bound=self.bound,
            test=self.test_of(image),
            computed=computed,
        )

    def certify(
        self, indices: Sequence[int], on_evaluations: OnEvaluations = lambda evaluations: None
    ) -> Iterator[Certificate]:
        """The certificates of images, each when it is finished, in whatever order that is.

        Args:
            indices: of the images.
            on_evaluations: called with how many evaluations are done that were not before, those that were
                found to be needless included.

        Raises:
            ValueError, MemoryError: see `Smoothed.certify`.
        """
        schedule = Schedule(indices, self.counting)
        packing, closed, told = self.packing(schedule), 0, 0
        while packing.step():
            for index in schedule.finished():
                yield self.certificate(index, schedule.close(index).counted)
                closed += 1
            drawn = packing.labelled + sum(one.draws for one in schedule.in_work.values())
            done = closed * self.evaluations_per_image + drawn * self.evaluations_per_draw + packing.begun
            on_evaluations(max(0, done - told))
            told = max(told, done)


def certify(
    images: Tensor,
    labels: Tensor,
    *,
    defense: CertifiableDefense | Callable[[Tensor], Tensor],
    sigma: float,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    seed: int | None = None,
    image_indices: Sequence[int] | None = None,
    batch_size: int = BATCH_SIZE,
    bound: Bound | str = Bound.ONE_SIDED,
    stop: Stopping | str = Stopping.FIXED,
    radii: Sequence[float] | None = None,
    tolerance: float | None = None,
    futility: float | None = None,
    exact_share: float | None = None,
    num_classes: int | None = None,
    noise: SmoothingNoise | str = SmoothingNoise.GRID,
    levels: int | None = None,
    progress: bool = False,
) -> Certification:
    """Certify the images of a data set, without a run folder.

    Each gets the certificate that `diffproof certify` gives it with the same settings, seed and index; draws
    of many images share batches, so that networks stay full. What is interrupted is lost: for hours of work
    take the command line.

    Args:
        images: N×C×H×W in [0, 1], on the networks' device.
        labels: N int64, the true ones.
        defense: see `Smoothed`.
        sigma: see `Smoothed`.
        n0: see `Smoothed.certify`.
        n: see `Smoothed.certify`.
        alpha: see `Smoothed.certify`; of each image.
        seed: see `Smoothed.certify`; one for all images.
        image_indices: N different integers in [0, 2^28), the images' indices in their data set; None for
            0, 1, ….
        batch_size: see `Smoothed.certify`.
        bound: see `Smoothed.certify`.
        stop: see `Smoothed.certify`.
        radii: see `Smoothed.certify`.
        tolerance: see `Smoothed.certify`.
        futility: see `Smoothed.certify`.
        exact_share: see `Smoothed.certify`.
        num_classes: see `Smoothed`.
        noise: see `Smoothed`.
        levels: see `Smoothed`; the command line takes those of the data, `ImageData.levels`.
        progress: show a bar that counts evaluations of networks, which needs diffproof[notebook].

    Raises:
        ValueError: an argument is out of range, or the base classifier's output is not what it should be.
        MemoryError: not even one image fits into memory.
    """
    with renamed({"base": "defense"}):
        smoothed = Smoothed(defense, sigma, num_classes=num_classes, noise=noise, levels=levels)
    check_pixels(images)
    check_labels(labels, len(images), smoothed.num_classes)
    indices = check_image_indices(image_indices, len(images))
    places = {index: place for place, index in enumerate(indices)}
    seed, drawn = settled_seed(seed)
    asked = {"radii": radii, "tolerance": tolerance, "futility": futility, "exact_share": exact_share}
    certifier = Certifier(
        smoothed,
        lambda index: images[places[index]],
        lambda failures: stopping_test(
            stop, bound, **asked, sigma=smoothed.sigma, alpha=alpha, n=n, failure_mass=failures
        ),
        check_at_least("n0", n0, 1, MAX_DRAW),
        check_at_least("n", n, 1, MAX_DRAW),
        check_probability("alpha", alpha),
        as_bound(bound),
        seed,
        batch_size,
        drawn,
    )
    with bar(progress, "certify", len(images) * certifier.evaluations_per_image, "evaluations") as advance:
        found = {one.image_index: one for one in certifier.certify(indices, advance)}
    return Certification(tuple(found[index] for index in indices), tuple(labels.tolist()))
