"""A certificate: what was proved for one image, and all that is needed to recompute it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

from torch import Tensor

from diffproof.checks import check_pixels, check_tensor
from diffproof.errors import ArgumentError
from diffproof.fields import check_fields
from diffproof.notebooks import table
from diffproof.smoothing.bounds import RadiusBound, radius_bound
from diffproof.smoothing.grid_noise import as_noise
from diffproof.smoothing.rules import Settled, rule_of
from diffproof.smoothing.stopping import sequential_test
from diffproof.texts import parse_json
from diffproof.weights import hash_tensors


@dataclass(frozen=True)
class _Sequential:
    """What `Certificate.sequential` holds."""

    n: int
    radii: tuple[float, ...] | None
    tolerance: float | None
    futility: float
    hits: tuple[int, ...]
    stopped: str | None
    exact_share: float = 0.0


def certifies(proved: RadiusBound, sequential: bool) -> bool:
    """Whether bounds certify a label: a radius of 0 does where it was proved sequentially."""
    return proved.radius > 0 or (sequential and proved.p_a_lower > 0)


@dataclass(frozen=True)
class Certificate:
    """A label that does not change within an ℓ2 ball, proved up to a stated failure probability.

    What it says: with probability at least 1 − alpha over the draws, the *smoothed* classifier gives `label`
    to every image within `radius` (ℓ2, [0, 1] pixels, at the resolution where noise is added). The
    probability is per image, not for a whole data set. With noise on a grid the classifier is the program
    that runs, on this device with this precision and batch size, and the images are those of the grid; it
    takes any other image there first, so that the radius is less by `off_grid`. With continuous noise the
    statement holds for real numbers, and a program can break it within a small distance. What no certificate
    covers: the base classifier without smoothing. A draw's label may flip with the shape of its batch, by
    rounding in the networks: in float32 at most 300 in a million did (95% confidence), in bfloat16 far more
    (`benchmarks/flips.py`). And the draws must be news to the base classifier: one whose makers knew the seed
    can remember them. A drawn seed was not known; with a given one, it holds if the base does not know it.

    Attributes:
        label: the certified class, None if abstained.
        radius: certified ℓ2 radius, 0 if abstained.
        p_a_lower: lower bound of the selected class's probability.
        p_b_upper: upper bound of any other class's probability.
        selected: the class that the selection draws chose, even if abstained.
        selection_counts: labels of the n0 selection draws by class.
        counts: labels of the n estimation draws by class.
        n0: number of selection draws.
        n: number of estimation draws.
        alpha: failure probability of this certificate.
        bound: value of a Bound, such as "one-sided".
        sigma: noise level asked for and drawn, in [0, 1] pixels.
        grid_sigma: the denoiser's nearest trained level, None without a denoiser.
        seed: with the image's index and the draw's number it fixes all noise.
        image_index: the image's number in its data set.
        settings: what the defence states of itself: method, votes, steps, …
        denoiser_evaluations: images that went through the denoiser.
        classifier_evaluations: images that went through the classifier.
        naive_denoiser_evaluations: what a plain implementation would have spent, such as K·b a draw.
        naive_classifier_evaluations: what it would have spent, such as K a draw.
        weights_hash: SHA-256 of the defence's weights, None for a plain function.
        image_hash: SHA-256 of the image.
        version: version of this package.
        image_size: (height, width) at which noise was added: the radius is one of such images.
        classifier_size: (height, width) at which the classifier saw them, resized inside it; None for a plain
            function. Both are None in certificates of versions that did not record them.
        precision: dtype of the networks' weights, "float32" or "bfloat16"; without weights that of the image.
        compiled: whether torch.compile made the networks.
        device: kind of device that labelled the draws, such as "cpu" or "cuda". All three None as before.
        noise: value of a SmoothingNoise, "grid" or "continuous".
        levels: of the grid: images are multiples of 1/levels. None for continuous noise.
        failure_mass: at most the total variation distance between the noise that was drawn and rounded
            normals; counted against the class.
        off_grid: what the radius is less by for images between grid points, √(C·H·W)/(2·levels); 0 for
            continuous noise.
        moved: ℓ2 distance of the given image from the nearest one of the grid, which was certified.
        sequential: of draws that ended when it was decided: `n`, the most; the asked `radii`, or the
            `tolerance`; `futility`; `exact_share`, 0 for tests before there was one; `hits` of the selected
            class at each checkpoint; `stopped`, of a Stop. A proved radius of 0 is a label with radius 0.
            None for a fixed number of draws.
        scales: of classifiers that smooth at several noise levels: what `Rule.stated` says, and `scale`, the
            index among `sigmas` of the level that answers. Counts are those of the rule's blocks one after
            another, and `sigma` is the largest level, or that of the choice. None for one level.
        seed_drawn: whether the seed was drawn for it or its run, when the classifier was made already; False
            for one that was given.
    """

    label: int | None
    radius: float
    p_a_lower: float
    p_b_upper: float
    selected: int
    selection_counts: tuple[int, ...]
    counts: tuple[int, ...]
    n0: int
    n: int
    alpha: float
    bound: str
    sigma: float
    grid_sigma: float | None
    seed: int
    image_index: int
    settings: dict[str, Any] = field(hash=False)
    denoiser_evaluations: int
    classifier_evaluations: int
    naive_denoiser_evaluations: int
    naive_classifier_evaluations: int
    weights_hash: str | None
    image_hash: str
    version: str
    image_size: tuple[int, int] | None = None
    classifier_size: tuple[int, int] | None = None
    precision: str | None = None
    compiled: bool | None = None
    device: str | None = None
    noise: str = "continuous"
    levels: int | None = None
    failure_mass: float = 0.0
    off_grid: float = 0.0
    moved: float = 0.0
    sequential: dict[str, Any] | None = field(default=None, hash=False)
    scales: dict[str, Any] | None = field(default=None, hash=False)
    seed_drawn: bool = False

    @property
    def stopped(self) -> str | None:
        """Why its draws ended before all were made, value of a Stop; None for a fixed number of them."""
        return None if self.sequential is None else str(self.sequential["stopped"])

    @property
    def seed_told(self) -> str:
        """Where its seed came from, and what that asks of the base classifier."""
        if self.seed_drawn:
            return f"seed {self.seed} was drawn: nobody knew it before"
        return f"seed {self.seed} was given: what is certified holds if the base classifier does not know it"

    @property
    def abstained(self) -> bool:
        """Whether no class could be certified."""
        return self.label is None

    @property
    def settled(self) -> Settled | None:
        """What the counts at several noise levels prove, None for one level.

        Raises:
            ValueError: they are not those of the rule.
        """
        if self.scales is None:
            return None
        rule = rule_of(self.scales)
        return rule.settle(self.selection_counts, self.counts, self.alpha, self.failure_mass)

    @property
    def hits(self) -> int:
        """Estimation draws that got the selected class, at the level that answers."""
        settled = self.settled
        return self.counts[self.selected if settled is None else settled.cell]

    @property
    def bounded(self) -> int:
        """Estimation draws at the level that answers."""
        settled = self.settled
        return self.n if settled is None else settled.draws

    def recompute(self) -> RadiusBound:
        """Bounds and radius from the counts alone, as at certification."""
        if (settled := self.settled) is not None:
            return settled.proved
        if self.sequential is None:
            return radius_bound(
                self.counts, self.selected, self.alpha, self.sigma, self.bound, failure_mass=self.failure_mass
            )
        names = ("radii", "tolerance", "futility", "exact_share", "n")
        asked = {name: value for name, value in self.sequential.items() if name in names}
        asked.setdefault("exact_share", 0.0)
        test = sequential_test(**asked, sigma=self.sigma, alpha=self.alpha, failure_mass=self.failure_mass)
        return test.proved(self.sequential["hits"])[0]

    def covers(self, image: Tensor, other: Tensor) -> bool:
        """Whether the label is certified for another image, too: their distance, exact, is within the radius.

        On a grid both are brought there first, as the smoothed classifier does.

        Args:
            image: the image that was certified, C×H×W floats in [0, 1].
            other: of the same shape.

        Raises:
            ValueError: the images differ in shape, the first is not the one that was certified, or the other
                none of finite pixels in [0, 1].
        """
        check_pixels(check_tensor("image", image)[None], "image")
        if image.shape != check_tensor("other", other).shape:
            raise ArgumentError("other", f"expected shape {tuple(image.shape)}, got {tuple(other.shape)}")
        # As whole numbers, others may wrap around to ones nearby.
        check_pixels(other[None], "other")
        noise = as_noise(self.noise, self.sigma, self.levels)
        if hash_tensors({"image": noise.certified(image)}) != self.image_hash:
            raise ArgumentError("image", "expected the image that was certified, got another one")
        return not self.abstained and noise.square_distance(image, other) <= Fraction(self.radius) ** 2

    def _repr_html_(self) -> str:
        """What it says and rests on, for notebooks."""
        title = f"class {self.label} within an ℓ2 radius of {self.radius:.4f}"
        most = self.sequential and f" of at most {self.sequential['n']:,} ({self.stopped})"
        spent = f"{self.denoiser_evaluations:,}, classifier {self.classifier_evaluations:,}"
        grid = "" if self.levels is None else f", 1/{self.levels}"
        rows = {
            "image": self.image_index,
            "defence": ", ".join(f"{name} {value}" for name, value in self.settings.items()),
            "noise": f"sigma = {self.sigma:g}, {self.noise}{grid}",
            "draws": f"{self.n0:,} to select a class, {self.n:,}{most or ''} to bound its probability",
            f"draws of class {self.selected}": f"{self.hits:,} of {self.bounded:,}",
            "its probability": f"at least {self.p_a_lower:.4f}, with confidence 1 − {self.alpha:g}",
            "evaluations": f"denoiser {spent}",
            "seed": self.seed_told.removeprefix("seed "),
        }
        return table("abstained: no class is certified" if self.abstained else title, rows.items())

    def to_json(self) -> str:
        """All fields as JSON; floats survive exactly."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """The inverse of `to_json`.

        Raises:
            ValueError: the text is no certificate.
        """
        try:
            made = cls(**check_fields(cls, parse_json(text)))
            for name in ("radius", "image_index", "failure_mass", "off_grid", "moved"):
                if getattr(made, name) < 0:
                    raise ValueError(f"{name} is {getattr(made, name)}")
            if made.sequential is not None:
                made.sequential.setdefault("exact_share", 0.0)
                check_fields(_Sequential, made.sequential)
            if made.scales is not None:
                rule_of(made.scales)
            if not made.counts or (made.label is not None and made.label < 0):
                raise ValueError(f"label {made.label} of {len(made.counts)} classes")
        except (TypeError, ValueError, RecursionError) as error:
            raise ArgumentError("certificate", f"not readable: {error}") from None
        return made
