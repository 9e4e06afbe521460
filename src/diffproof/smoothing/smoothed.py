"""Randomized smoothing of any base classifier: CERTIFY and PREDICT of Cohen et al. (2019)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, overload

from torch import Tensor

from diffproof.checks import (
    MOST_ROWS,
    check_at_least,
    check_device,
    check_pixels,
    check_positive,
    check_probability,
    check_shape,
    check_tensor,
)
from diffproof.defenses.base import CertifiableDefense
from diffproof.defenses.labelling import Batches, Labeller
from diffproof.defenses.repeatability import check_repeatable
from diffproof.errors import ArgumentError
from diffproof.noise import MAX_DRAW, Stream, check_image_index, check_seed
from diffproof.seeds import settled_seed
from diffproof.smoothing.arithmetic import arithmetic
from diffproof.smoothing.bounds import Bound, RadiusBound, as_bound, prediction, radius_bound
from diffproof.smoothing.certificate import Certificate, certifies
from diffproof.smoothing.grid_noise import Added, SmoothingNoise, as_noise
from diffproof.smoothing.label_function import Constancy, LabelFunction, check_base, trained_level
from diffproof.smoothing.packing import Drawing, OfImage, OnVotes, Packing, SchedulePacking
from diffproof.smoothing.schedule import Counting, Schedule
from diffproof.smoothing.sequential import SequentialTest
from diffproof.smoothing.stopping import Stopping, stopping_test
from diffproof.smoothing.tally import Counted, Looks, Tally
from diffproof.version import version
from diffproof.weights import checksums, hash_tensors

BATCH_SIZE = 256


class Smoothed:
    """The smoothed classifier: the class that `base` gives most often to image + sigma·N(0, I), rounded.

    Args:
        base: a CertifiableDefense, or any function from noisy images N×C×H×W to N integer labels.
        sigma: standard deviation of the noise in [0, 1] pixels.
        num_classes: number of labels; needed for a function, read off a defence.
        noise: "grid", or "continuous" for comparison with the literature; see SmoothingNoise.
        levels: images are brought to multiples of 1/levels first, and the noise has whole levels; None for
            255, the levels of 8-bit images. Continuous noise has none.

    Raises:
        ValueError: sigma ≤ 0 or outside the denoiser's range, num_classes missing, or levels that do not fit.

    Warns:
        UserWarning: the denoiser's nearest trained noise level is over 1% from sigma.
    """

    def __init__(
        self,
        base: CertifiableDefense | Callable[[Tensor], Tensor],
        sigma: float,
        *,
        num_classes: int | None = None,
        noise: SmoothingNoise | str = SmoothingNoise.GRID,
        levels: int | None = None,
    ) -> None:
        self.sigma = check_positive("sigma", sigma)
        self._hashed: tuple[tuple[object, ...], str] | None = None
        self.num_classes = check_base(base, num_classes)
        self.grid_sigma = trained_level(base, self.sigma)
        self.base = base
        self.noise: Added = as_noise(noise, self.sigma, levels)
        self._function = LabelFunction(base, self.num_classes)
        self._constancy = Constancy([base if isinstance(base, CertifiableDefense) else self._function])
        # The batch size that memory allowed last, once it ran out.
        self._fitting_batch: int | None = None

    def certify(
        self,
        image: Tensor,
        *,
        n0: int = 100,
        n: int = 10_000,
        alpha: float = 0.001,
        seed: int | None = None,
        image_index: int = 0,
        batch_size: int = BATCH_SIZE,
        bound: Bound | str = Bound.ONE_SIDED,
        stop: Stopping | str = Stopping.FIXED,
        radii: Sequence[float] | None = None,
        tolerance: float | None = None,
        futility: float | None = None,
        exact_share: float | None = None,
    ) -> Certificate:
        """Certify one image: n0 draws choose a class, n independent draws bound its probability.

        With stop="sequential" the latter end when what is asked is proved or hopeless, at the same alpha.

        Args:
            image: C×H×W floats in [0, 1]. On a grid, the nearest image of it is the one that is certified.
            n0: draws that select the class, ≥ 1.
            n: draws that bound its probability, ≥ 1.
            alpha: probability, over the draws, that the certificate is wrong, in (0, 1).
            seed: in [0, 2^64); fixes the noise, with the image's index. None draws one: a base classifier can
                remember the draws of a seed that it knows.
            image_index: the image's index in its data set, in [0, 2^28).
            batch_size: most images that go through a network at once; the result does not depend on it.
            bound: see Bound.
            stop: "fixed", after n draws, or "sequential", after n at most.
            radii: ℓ2 radii that a sequential certification asks for, ascending; see RadiusTest. None for the
                largest that can be proved.
            tolerance: growth of the largest radius that is worth more draws; None for 0.01. See
                RadiusSequence.
            futility: predictive probability of what is lacking at which draws end, in [0, 1]; None for 0.02.
            exact_share: of alpha, for an exact test of all n draws, in [0, 1); None for 0.5. See RadiusTest.

        Returns:
            A Certificate; `label` is None where it abstains.

        Raises:
            ValueError: an argument is out of range, or the base classifier's output is not what it should be.
            MemoryError: not even one image fits into memory.
        """
        bound = as_bound(bound)
        check_probability("alpha", alpha)
        n0 = check_at_least("n0", n0, 1, MAX_DRAW)
        n = check_at_least("n", n, 1, MAX_DRAW)
        self.check_asked(n0, n, bound, stop)
        failures = self.noise.failure_mass(check_tensor("image", image).numel())
        asked = {"radii": radii, "tolerance": tolerance, "futility": futility, "exact_share": exact_share}
        test = stopping_test(stop, bound, **asked, n=n, sigma=self.sigma, alpha=alpha, failure_mass=failures)
        seed, drawn = settled_seed(seed)
        counting = Counting(check_image_index(image_index), n0, test or Looks((n,)), self.num_classes)
        counted = self.count(image, counting, seed=seed, batch_size=batch_size)
        address: dict[str, Any] = {"seed": seed, "seed_drawn": drawn, "image_index": image_index}
        return self.certificate(image, counted, alpha=alpha, bound=bound, test=test, **address)

    def predict(
        self,
        image: Tensor,
        *,
        n: int = 1_000,
        alpha: float = 0.001,
        seed: int | None = None,
        image_index: int = 0,
        batch_size: int = BATCH_SIZE,
    ) -> int | None:
        """The smoothed classifier's label, or None to abstain.

        Args:
            image: see `certify`.
            n: number of draws, ≥ 1.
            alpha: probability, over the draws, of a label other than the smoothed classifier's, at most; in
                (0, 1).
            seed: see `certify`.
            image_index: see `certify`.
            batch_size: see `certify`.

        Raises:
            ValueError, MemoryError: as in `certify`.
        """
        check_probability("alpha", alpha)
        stream, (seed, _) = Stream.PREDICTION, settled_seed(seed)
        tally = self.tally(image, n, stream=stream, seed=seed, image_index=image_index, batch_size=batch_size)
        return prediction(tally.counts, alpha)

    def tally(
        self,
        image: Tensor,
        draws: int,
        *,
        stream: Stream,
        seed: int,
        image_index: int,
        batch_size: int = BATCH_SIZE,
    ) -> Tally:
        """Count the labels of noisy draws.

        Args:
            image: C×H×W floats in [0, 1].
            draws: how many, ≥ 1.
            stream: what the draws are for; fixes the noise, with the seed and the image's index.
            seed: see `certify`.
            image_index: see `certify`.
            batch_size: see `packing`.

        Raises:
            ValueError, MemoryError: as in `certify`.
        """
        draws = check_at_least("n", draws, 1, MAX_DRAW)
        counting = Counting(check_image_index(image_index), draws, None, self.num_classes, first=stream)
        tally = self.count(image, counting, seed=seed, batch_size=batch_size).selection
        assert tally is not None
        return tally

    def count(self, image: Tensor, counting: Counting, *, seed: int, batch_size: int = BATCH_SIZE) -> Counted:
        """What is counted of one image in the end.

        Args:
            image: C×H×W floats in [0, 1].
            counting: how many draws of which kind.
            seed: see `certify`.
            batch_size: see `packing`.

        Raises:
            ValueError, MemoryError: as in `certify`.
        """
        self.check_image(image)
        schedule = Schedule([counting.image_index], lambda index: counting)
        packing = self.packing(schedule, lambda index: image, seed=seed, batch_size=batch_size)
        while packing.step():
            pass
        return counting.counted

    @overload
    def packing(
        self, draws: Schedule, image: OfImage, *, seed: int, batch_size: int = ..., on_ballots: OnVotes = ...
    ) -> SchedulePacking: ...

    @overload
    def packing(
        self, draws: Drawing, image: OfImage, *, seed: int, batch_size: int = ..., on_ballots: OnVotes = ...
    ) -> Packing: ...

    def packing(
        self,
        draws: Drawing,
        image: OfImage,
        *,
        seed: int,
        batch_size: int = BATCH_SIZE,
        on_ballots: OnVotes = None,
    ) -> Packing:
        """What labels draws.

        Args:
            draws: a Schedule, or whatever gives units and takes tallies.
            image: gives images by their index, C×H×W, that have passed `check_image`.
            seed: see `certify`.
            batch_size: most images that go through a network at once. When memory runs out it is halved, with
                a warning, for the rest of this object's life.
            on_ballots: see Packing.
        """
        batch_size = check_at_least("batch_size", batch_size, 1, MOST_ROWS)
        check_seed(seed)
        self._constancy.begin()
        return (SchedulePacking if isinstance(draws, Schedule) else Packing)(
            self._labeller(min(batch_size, self._fitting_batch or batch_size)),
            self.noise.added,
            draws,
            image,
            num_classes=self.num_classes,
            seed=seed,
            on_halved=partial(setattr, self, "_fitting_batch"),
            on_ballots=on_ballots,
        )

    def check_asked(self, n0: int, n: int, bound: Bound | str, stop: Stopping | str) -> None:
        """Raise ValueError for a way to certify that is none for this classifier; any is."""

    def check_image(self, image: Tensor) -> Tensor:
        """The image, or ValueError where it is none that the base classifier takes as it should."""
        if check_tensor("image", image).ndim != 3:
            raise ArgumentError("image", f"expected C×H×W, got shape {tuple(image.shape)}")
        check_pixels(image[None], "image")
        if isinstance(self.base, CertifiableDefense):
            check_shape(image[None], self.base.image_shape, "model")
            check_device(image, self.base, "defence")
            self.base.check_evaluation_mode()
            check_repeatable(self.base, image[None])
        return image

    def _labeller(self, batch_size: int) -> Labeller:
        if isinstance(self.base, CertifiableDefense):
            return self.base.chosen_labeller(self.sigma, batch_size)
        return Batches(self._function.classify, batch_size, mixed=True)

    def certificate(
        self,
        image: Tensor,
        counted: Counted,
        *,
        alpha: float,
        seed: int,
        image_index: int,
        seed_drawn: bool = False,
        bound: Bound | str = Bound.ONE_SIDED,
        test: SequentialTest | None = None,
        computed: Mapping[str, Any] | None = None,
    ) -> Certificate:
        """The certificate that complete tallies prove; `certify` in its last step.

        Args:
            image: see `certify`.
            counted: what `tally.counting` yields last.
            alpha: see `certify`.
            seed: see `certify`.
            image_index: see `certify`.
            seed_drawn: whether the seed was drawn.
            bound: see Bound.
            test: what ended the estimation draws; None for a fixed number of them.
            computed: the arithmetic of who labelled the draws; None for this process.

        Raises:
            ValueError: see `check_unchanged`.
        """
        alpha = check_probability("alpha", alpha)
        selection, estimation = counted.selection, counted.estimation
        assert selection is not None
        assert estimation is not None
        self.check_unchanged()
        naive, failure_mass = self.evaluations_per_draw, self.noise.failure_mass(image.numel())
        selected, proved, scales = self._settled(selection, estimation, alpha, bound, failure_mass)
        proved, asked = (proved, None) if test is None else test.proved(counted.hits)
        draws = selection.draws + estimation.draws
        image_size, classifier_size = self.sizes(image)
        return Certificate(
            label=selected if certifies(proved, test is not None) else None,
            radius=proved.radius,
            p_a_lower=proved.p_a_lower,
            p_b_upper=proved.p_b_upper,
            selected=selected,
            selection_counts=selection.counts,
            counts=estimation.counts,
            n0=selection.draws,
            n=estimation.draws,
            alpha=alpha,
            bound=as_bound(bound).value,
            sigma=self.sigma,
            grid_sigma=self.grid_sigma,
            seed=check_seed(seed),
            image_index=check_image_index(image_index),
            settings=self.certificate_settings(),
            denoiser_evaluations=selection.denoiser_evaluations + estimation.denoiser_evaluations,
            classifier_evaluations=selection.classifier_evaluations + estimation.classifier_evaluations,
            naive_denoiser_evaluations=draws * naive[0],
            naive_classifier_evaluations=draws * naive[1],
            weights_hash=self.weights_hash(),
            image_hash=self.image_hash(image),
            image_size=image_size,
            classifier_size=classifier_size,
            version=version(),
            **(arithmetic(self.base, image) if computed is None else computed),
            noise=self.noise.name.value,
            levels=self.noise.levels,
            failure_mass=failure_mass,
            off_grid=self.noise.off_grid(image.numel()),
            moved=self.noise.moved(image),
            sequential=asked,
            scales=scales,
            seed_drawn=seed_drawn,
        )

    def _settled(
        self, selection: Tally, estimation: Tally, alpha: float, bound: Bound | str, failure_mass: float
    ) -> tuple[int, RadiusBound, dict[str, Any] | None]:
        """The class, what a fixed number of draws proves of it, and the rule if there are several levels."""
        label = selection.selected
        proved = radius_bound(estimation.counts, label, alpha, self.sigma, bound, failure_mass=failure_mass)
        return label, proved, None

    def check_unchanged(self) -> None:
        """Raise ValueError where the base changed since labelling began: its draws are of two functions."""
        self._constancy.check()

    @property
    def evaluations_per_draw(self) -> tuple[int, int]:
        """Denoiser and classifier evaluations of a draw by a plain implementation."""
        if not isinstance(self.base, CertifiableDefense):
            return 0, 1
        return self.base.evaluations_per_draw(self.sigma)

    def certificate_settings(self) -> dict[str, Any]:
        """What the base classifier states of itself in certificates."""
        return self.base.settings() if isinstance(self.base, CertifiableDefense) else {"method": "function"}

    def sizes(self, image: Tensor) -> tuple[tuple[int, int], tuple[int, int] | None]:
        """(height, width) where a C×H×W image gets noise, and where a classifier sees it, if one does."""
        size = (image.shape[1], image.shape[2])
        return size, self.base.classifier_size(*size) if isinstance(self.base, CertifiableDefense) else None

    def image_hash(self, image: Tensor) -> str:
        """SHA-256 of the image that is certified for a given one."""
        return hash_tensors({"image": self.noise.certified(image)})

    def weights_hash(self) -> str | None:
        """SHA-256 of the defence's weights and adapters as they are now, None for a plain function."""
        if not isinstance(self.base, CertifiableDefense):
            return None
        tensors, described = self.base.state_dict(), self.base.describe()
        # Hashing the weights of a large network takes seconds, seeing that they are the same does not.
        now = (described, *checksums(tensors))
        if self._hashed is None or self._hashed[0] != now:
            self._hashed = now, hash_tensors(tensors, described)
        return self._hashed[1]
