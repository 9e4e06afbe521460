"""Randomized smoothing at several noise levels: a cascade, or one that a chooser names for the image."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffproof.checks import check_at_least
from diffproof.defenses.base import CertifiableDefense
from diffproof.defenses.labelling import Batches, Labelled, Labeller
from diffproof.defenses.repeatability import check_repeatable
from diffproof.errors import ArgumentError
from diffproof.noise import Noise
from diffproof.smoothing.bounds import Bound, RadiusBound
from diffproof.smoothing.grid_noise import Added, SmoothingNoise, as_noise
from diffproof.smoothing.label_function import Constancy, LabelFunction, check_base, trained_level
from diffproof.smoothing.rules import Block, Cascade, Chosen, Rule, check_asked
from diffproof.smoothing.smoothed import Smoothed
from diffproof.smoothing.stopping import Stopping
from diffproof.smoothing.tally import Tally
from diffproof.weights import hash_tensors

Base = CertifiableDefense | Callable[[Tensor], Tensor]


class BlockNoise:
    """Noise of several levels: a row whose draw is i modulo their number has that of level i.

    Args:
        noises: of the levels, on one grid.
    """

    def __init__(self, noises: Sequence[Added]) -> None:
        self._noises = tuple(noises)
        self.sigma = max(one.sigma for one in noises)

    @property
    def name(self) -> SmoothingNoise:
        """See Added."""
        return self._noises[0].name

    @property
    def levels(self) -> int | None:
        """See Added."""
        return self._noises[0].levels

    def certified(self, image: Tensor) -> Tensor:
        """See Added."""
        return self._noises[0].certified(image)

    def moved(self, image: Tensor) -> float:
        """See Added."""
        return self._noises[0].moved(image)

    def square_distance(self, image: Tensor, other: Tensor) -> Fraction:
        """See Added."""
        return self._noises[0].square_distance(image, other)

    def added(self, image: Tensor, noise: Noise) -> Tensor:
        """See Added."""
        parts = [(rows, self._noises[place].added(image, own)) for place, rows, own in self.split(noise)]
        order = torch.cat([rows for rows, _ in parts]).argsort()
        return torch.cat([noisy for _, noisy in parts])[order]

    def failure_mass(self, size: int) -> float:
        """The largest of any level."""
        return max(one.failure_mass(size) for one in self._noises)

    def off_grid(self, size: int) -> float:
        """See Added."""
        return self._noises[0].off_grid(size)

    def split(self, noise: Noise) -> list[tuple[int, Tensor, Noise]]:
        """The levels that rows have, which rows, and their noise."""
        places = noise.draw % len(self._noises)
        found = []
        for place in places.unique().tolist():
            rows = (places == place).nonzero()[:, 0]
            found.append((place, rows, noise.rows(rows, noise.vote[rows])))
        return found


class Scaled(Smoothed):
    """A classifier that smooths at several noise levels, by a rule; see MultiScale and DualSmoothed.

    Draws are shared evenly between the levels: n of them are n over their number at each. Its `num_classes`
    is the number of counts, labels of all levels one after another. A number of draws is fixed beforehand,
    and bounds are one-sided.

    Args:
        base: see Smoothed.
        rule: what makes one classifier of the levels.
        chooser: what chooses a level, where the rule has a block for it; see DualSmoothed.
        num_classes: see Smoothed.
        noise: see Smoothed.
        levels: see Smoothed.

    Raises:
        ValueError: see Smoothed, or the base cannot label images at one of the levels.
    """

    noise: BlockNoise

    def __init__(
        self,
        base: Base,
        rule: Rule,
        *,
        chooser: Base | None = None,
        num_classes: int | None = None,
        noise: SmoothingNoise | str = SmoothingNoise.GRID,
        levels: int | None = None,
    ) -> None:
        classes = check_base(base, num_classes)
        self.rule, self.chooser = rule, chooser
        self.blocks = rule.blocks(classes)
        sigma = next((block.sigma for block in self.blocks if block.chooses), max(rule.sigmas))
        for other in rule.sigmas:
            trained_level(base, other)
        with warnings.catch_warnings():
            # Said of each level already.
            warnings.simplefilter("ignore", UserWarning)
            super().__init__(base, max(rule.sigmas), num_classes=num_classes, noise=noise, levels=levels)
        self.sigma = sigma
        self.noise = BlockNoise([as_noise(noise, block.sigma, levels) for block in self.blocks])
        self.num_classes = sum(block.labels for block in self.blocks)
        each = [self._labels(block) for block in self.blocks]
        self._constancy = Constancy(each)
        self._functions = [
            # A worker gets it in pieces, which a function without a name does not survive.
            one.classify if isinstance(one, LabelFunction) else partial(_classified, one, block.sigma)
            for one, block in zip(each, self.blocks, strict=True)
        ]

    @property
    def evaluations_per_draw(self) -> tuple[int, int]:
        """Those of the dearest level."""
        each = [
            one.evaluations_per_draw(block.sigma) if isinstance(one, CertifiableDefense) else (0, 1)
            for one, block in zip(map(self._labelling, self.blocks), self.blocks, strict=True)
        ]
        return max(one[0] for one in each), max(one[1] for one in each)

    def check_asked(self, n0: int, n: int, bound: Bound | str, stop: Stopping | str) -> None:
        """Raise ValueError for a sequential or two-sided certification, or fewer draws than levels."""
        check_asked(len(self.blocks), n0, n, bound, stop)

    def predict(self, image: Tensor, *, n: int = 1_000, alpha: float = 0.001, **address: Any) -> int | None:
        """The label of a certificate of n draws, of which a tenth select the class; None to abstain.

        Args:
            image: see `certify`.
            n: number of draws, ≥ 1.
            alpha: see `certify`.
            address: `seed`, `image_index` and `batch_size`; see `certify`.

        Raises:
            ValueError, MemoryError: as in `certify`.
        """
        n = check_at_least("n", n, 2 * len(self.blocks))
        n0 = max(len(self.blocks), n // 10)
        return self.certify(image, n0=n0, n=n - n0, alpha=alpha, **address).label

    def check_image(self, image: Tensor) -> Tensor:
        """See Smoothed; the chooser must take it, too."""
        super().check_image(image)
        if isinstance(self.chooser, CertifiableDefense):
            self.chooser.check_evaluation_mode()
            check_repeatable(self.chooser, image[None])
        return image

    def weights_hash(self) -> str | None:
        """See Smoothed; that of both, where a defence chooses."""
        own = super().weights_hash()
        if not isinstance(self.chooser, CertifiableDefense):
            return own
        chooser = hash_tensors(self.chooser.state_dict(), self.chooser.describe())
        return hash_tensors({}, f"{own} chosen by {chooser}")

    def certificate_settings(self) -> dict[str, Any]:
        """Those of the base, and under `chooser` those of what chooses."""
        own = super().certificate_settings()
        if isinstance(self.chooser, CertifiableDefense):
            return own | {"chooser": self.chooser.settings()}
        return own

    def _settled(
        self, selection: Tally, estimation: Tally, alpha: float, bound: Bound | str, failure_mass: float
    ) -> tuple[int, RadiusBound, dict[str, Any] | None]:
        settled = self.rule.settle(selection.counts, estimation.counts, alpha, failure_mass)
        return settled.label, settled.proved, self.rule.stated() | {"scale": settled.scale}

    def _labelling(self, block: Block) -> Base:
        if not block.chooses:
            return self.base
        assert self.chooser is not None
        return self.chooser

    def _labels(self, block: Block) -> CertifiableDefense | LabelFunction:
        base = self._labelling(block)
        return base if isinstance(base, CertifiableDefense) else LabelFunction(base, block.labels)

    def _labeller(self, batch_size: int) -> Labeller:
        return Batches(self._classify, batch_size)

    def _classify(self, noisy: Tensor, noise: Noise, batch_size: int) -> Labelled:
        """Labels as places among the counts."""
        labels = torch.zeros(len(noisy), dtype=torch.int64, device=noisy.device)
        spent = [0, 0]
        for place, rows, own in self.noise.split(noise):
            found = self._functions[place](noisy[rows], own, batch_size)
            labels[rows] = found.labels.long() + sum(block.labels for block in self.blocks[:place])
            spent[0] += found.denoiser_evaluations
            spent[1] += found.classifier_evaluations
        return Labelled(labels, *spent)


class MultiScale(Scaled):
    """The largest noise level at which some class is likelier than a threshold answers (Jeong & Shin 2023).

    See `rules.Cascade` for the classifier and its certificate.

    Args:
        base: see Smoothed.
        sigmas: the noise levels, ascending, in [0, 1] pixels.
        threshold: the probability that a class must have, in [0.5, 1).
        num_classes: see Smoothed.
        noise: see Smoothed.
        levels: see Smoothed.

    Raises:
        ValueError: see Scaled, or the levels do not ascend.
    """

    def __init__(
        self,
        base: Base,
        sigmas: Sequence[float],
        *,
        threshold: float = 0.5,
        num_classes: int | None = None,
        noise: SmoothingNoise | str = SmoothingNoise.GRID,
        levels: int | None = None,
    ) -> None:
        rule = Cascade(tuple(sigmas), threshold)
        super().__init__(base, rule, num_classes=num_classes, noise=noise, levels=levels)


class DualSmoothed(Scaled):
    """The noise level is chosen for the image by a classifier that is smoothed itself (arXiv 2512.01782).

    See `rules.Chosen` for the certificate. Which level suits an image is what a chooser is trained for.

    Args:
        base: see Smoothed.
        sigmas: the noise levels, ascending, in [0, 1] pixels.
        chooser: labels noisy images with the index of a level: a CertifiableDefense of as many classes, or a
            function.
        choice_sigma: the noise under which it does, in [0, 1] pixels.
        num_classes: see Smoothed.
        noise: see Smoothed.
        levels: see Smoothed.

    Raises:
        ValueError: see Scaled, the levels do not ascend, or the chooser has not as many classes as there are
            levels, or takes not this noise.
    """

    def __init__(
        self,
        base: Base,
        sigmas: Sequence[float],
        *,
        chooser: Base,
        choice_sigma: float,
        num_classes: int | None = None,
        noise: SmoothingNoise | str = SmoothingNoise.GRID,
        levels: int | None = None,
    ) -> None:
        rule = Chosen(tuple(sigmas), choice_sigma)
        given = len(rule.sigmas) if not isinstance(chooser, CertifiableDefense) else None
        found = check_base(chooser, given, "chooser")
        if found != len(rule.sigmas):
            raise ArgumentError(
                "chooser", f"expected a class for each of {len(rule.sigmas)} levels, got {found}"
            )
        trained_level(chooser, choice_sigma)
        super().__init__(base, rule, chooser=chooser, num_classes=num_classes, noise=noise, levels=levels)


def _classified(
    base: CertifiableDefense, sigma: float, noisy: Tensor, noise: Noise, batch_size: int
) -> Labelled:
    return base.classify(noisy, sigma, noise, batch_size)
