"""Settings of runs: validated, written to settings.yaml, compared when a run continues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self

from diffproof.catalog import DEFENSES, able
from diffproof.checks import (
    MOST_DRAWS,
    check_at_least,
    check_number,
    check_positive,
    check_probability,
    unknown_name,
)
from diffproof.data.classes import read_class_map
from diffproof.data.indices import written_indices
from diffproof.errors import ArgumentError
from diffproof.methods import MethodSpec, check_networks, check_not_idle, describe, own_class, parse, told
from diffproof.runs.flags import Flags
from diffproof.runs.shards import Shard
from diffproof.smoothing.bounds import Bound, largest_radius
from diffproof.smoothing.grid_noise import as_noise
from diffproof.smoothing.rules import Cascade, Chosen, Rule, check_asked
from diffproof.smoothing.sequential import RadiusSequence, SequentialTest, check_radii
from diffproof.smoothing.stopping import Stopping, stopping_test
from diffproof.values import number

# Those that have noise of their own.
_MOST_CERTIFIED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class RunSettings(Flags):
    """What every run over the images of a data set is asked for.

    Raises:
        ValueError: a field out of range.
    """

    # A run may continue with other values of these: they do not change its results.
    FREE: ClassVar[tuple[str, ...]] = ("batch_size", "device")
    # Which images: a run may get more of them.
    SELECTION: ClassVar[tuple[str, ...]] = ("indices", "per_class", "limit", "held_out")

    data: str
    split: str | None = None
    indices: str | None = None
    per_class: int | None = None
    limit: int | None = None
    held_out: bool = False
    class_map: Any = None
    skip_unreadable: bool = False
    shard: str | None = None
    defense: str
    classifier: str | None = None
    denoiser: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("per_class", "limit"):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), 1)
        if self.class_map is not None:
            # The map itself, so that the folder needs no other file.
            object.__setattr__(self, "class_map", read_class_map(self.class_map))
        if self.shard is not None:
            object.__setattr__(self, "shard", str(Shard.parse(self.shard)))
        object.__setattr__(self, "defense", str(self.method))

    def of_images(self, indices: Sequence[int]) -> Self:
        """These settings for the images of these indices, which ascend."""
        usual = {field.name: field.default for field in fields(self) if field.name in self.SELECTION}
        chosen: dict[str, Any] = {**usual, "indices": written_indices(indices)}
        return replace(self, **chosen)

    def of_shard(self, shard: str | None) -> Self:
        """These settings for another shard, or for the whole run; code that they name is not imported."""
        return self.from_dict({**self.as_dict(), "shard": shard})

    def differences(self, other: Self) -> list[str]:
        """Fields that change results and differ, as "name (this, other)"."""
        mine, others = asdict(self), asdict(other)
        return [
            f"{name} ({self._shown(name, mine[name])}, now {self._shown(name, others[name])})"
            for name in mine
            if name not in (*self.FREE, *self.SELECTION)
            and not (name == "seed_drawn" and self.seed != other.seed)
            and not self._same(name, mine[name], others[name])
        ]

    def _same(self, name: str, value: Any, other: Any) -> bool:
        """Whether two values of a field say the same; only code that `other` names is imported."""
        if value == other or None in (value, other):
            return bool(value == other)
        if name in ("defense", "attack") and own_class(name, value) != own_class(name, other):
            return False
        return bool(self.meant(name, value) == self.meant(name, other))

    def meant(self, name: str, value: Any) -> Any:
        """What a field's value says, the same for every way to write it: 2/10 is 0.2, defaults are there."""
        if value is not None and name in ("defense", "attack"):
            try:
                return parse(name, value).filled()
            except ArgumentError:
                # Of a class that is not here.
                return value
        return value

    @staticmethod
    def _shown(name: str, value: Any) -> Any:
        """A field's value as a message has it: methods without what is at its default."""
        methods = value is not None and name in ("defense", "attack")
        if isinstance(value, dict):
            return f"{len(value)} classes: {value}"[:60] + "…"
        return told(name, value) if methods else value

    @property
    def choice_seed(self) -> int:
        """What chooses images at random: of a drawn seed 0, so that runs without --seed have the same."""
        return 0 if self.seed_drawn else self.seed

    @property
    def method(self) -> MethodSpec:
        """The defence with its settings."""
        return parse("defense", self.defense)

    def describe(self) -> str:
        """The defence as a row of a table names it, without what is at its default."""
        return told("defense", self.defense)


@dataclass(frozen=True, kw_only=True)
class CertifySettings(RunSettings):
    """What `diffproof certify` is asked for.

    Raises:
        ValueError: a field out of range.
    """

    sigma: float
    n0: int = 100
    n: int = 10_000
    alpha: float = 0.001
    bound: str = "one-sided"
    noise: str = "grid"
    levels: int | None = None
    stop: str = Stopping.FIXED.value
    radii: str | None = None
    tolerance: float | None = None
    futility: float | None = None
    exact_share: float | None = None
    scales: str | None = None
    threshold: float | None = None
    chooser: str | None = None
    until_half_width: float | None = None
    keep_ballots: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        method = describe("defense", self.method.name)
        if "certify" not in method.can:
            known = ", ".join(able(DEFENSES, "certify"))
            raise ArgumentError(
                "defense",
                f"expected one that can be certified ({known}, or a class of diffproof.CertifiableDefense),"
                f" got {method.name!r}",
            )
        check_not_idle(self.method, "certify")
        check_networks(method.name, classifier=self.classifier, denoiser=self.denoiser)
        check_positive("sigma", self.sigma)
        check_probability("alpha", self.alpha)
        for name in ("n0", "n"):
            check_at_least(name, getattr(self, name), 1, _MOST_CERTIFIED)
        if self.bound not in tuple(Bound):
            raise unknown_name("bound", self.bound, tuple(Bound))
        as_noise(self.noise, self.sigma, self.levels)
        if self.until_half_width is not None:
            between = "a number in (0, 0.5)"
            check_number("until_half_width", self.until_half_width, lambda width: 0 < width < 0.5, between)
            if self.shard is not None:
                raise ArgumentError("shard", "--until-half-width ends a run by all of its images")
        if self.radii is not None:
            texts = (f"{one!r}".removesuffix(".0") for one in self.asked_radii or ())
            object.__setattr__(self, "radii", ",".join(texts))
        self._check_scales()
        test = self.test()
        if test is not None:
            tolerance = test.tolerance if isinstance(test, RadiusSequence) else None
            object.__setattr__(self, "tolerance", tolerance)
            object.__setattr__(self, "futility", test.futility)
            object.__setattr__(self, "exact_share", test.exact_share)

    def _check_scales(self) -> None:
        rule = self.rule()
        if rule is None:
            for name in ("threshold", "chooser"):
                if getattr(self, name) is not None:
                    raise ArgumentError(name, f"expected scales with it, got {getattr(self, name)}")
            return
        object.__setattr__(self, "scales", ",".join(f"{one!r}".removesuffix(".0") for one in rule.sigmas))
        check_asked(len(rule.blocks(2)), self.n0, self.n, self.bound, self.stop)
        for sigma in rule.sigmas:
            as_noise(self.noise, sigma, self.levels)
        if self.keep_ballots:
            raise ArgumentError("keep_ballots", "no run at several noise levels keeps them; leave it out")
        if self.chooser is None and self.sigma != rule.sigmas[-1]:
            given = f"the largest of the scales is {rule.sigmas[-1]:g}; expected that, got {self.sigma:g}"
            raise ArgumentError("sigma", given)

    def rule(self) -> Rule | None:
        """What makes one classifier of several noise levels; None for one level."""
        if self.scales is None:
            return None
        sigmas = _numbers("scales", self.scales)
        if self.chooser is None:
            return Cascade(sigmas, 0.5 if self.threshold is None else self.threshold)
        if self.threshold is not None:
            raise ArgumentError("threshold", f"a chooser needs none, got {self.threshold}")
        return Chosen(sigmas, self.sigma)

    @property
    def accuracy_radii(self) -> list[float]:
        """Where certified accuracy is to be known: at 0 and radii that are named, or at those asked for."""
        named = self.asked_radii or []
        return sorted({0.0, *named}) if self.stop == Stopping.FIXED or not named else named

    def differences(self, other: Self) -> list[str]:
        """See RunSettings; which images is a difference where a run ends at a half-width among them."""
        found = super().differences(other)
        if self.until_half_width is not None:
            chosen = {name: (getattr(self, name), getattr(other, name)) for name in self.SELECTION}
            found += [f"{name} ({one}, now {new})" for name, (one, new) in chosen.items() if one != new]
        return found

    @property
    def asked_radii(self) -> list[float] | None:
        """The radii as numbers, None where none are asked for."""
        return None if self.radii is None else list(_numbers("radii", self.radii))

    def test(self, failure_mass: float = 0.0) -> SequentialTest | None:
        """What ends the draws of an image, None for a fixed number of them.

        Args:
            failure_mass: of the noise of that image, see `bounds.radius_bound`.

        Raises:
            ValueError: see `stopping_test`.
        """
        radii = self.asked_radii
        if self.stop == Stopping.FIXED and self.until_half_width is not None and radii is not None:
            # Of interest only.
            check_radii(radii)
            radii = None
        return stopping_test(
            self.stop,
            self.bound,
            radii=radii,
            tolerance=self.tolerance,
            futility=self.futility,
            exact_share=self.exact_share,
            sigma=self.sigma,
            alpha=self.alpha,
            n=self.n,
            failure_mass=failure_mass,
        )

    def largest_radius(self, num_classes: int) -> float:
        """The largest radius that was asked for or, where none was, that n and alpha allow."""
        if (rule := self.rule()) is not None:
            return rule.largest(self.n, self.alpha)
        test = self.test()
        if test is not None:
            return test.largest
        return largest_radius(self.n, self.alpha, self.sigma, self.bound, num_classes)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        """The inverse of `as_dict`; before noise was on a grid, or had an exact test, nothing was said of it.

        Raises:
            ValueError: see Flags.
        """
        if isinstance(settings, dict):
            before: dict[str, Any] = {"noise": "continuous"}
            if settings.get("stop") == Stopping.SEQUENTIAL:
                before["exact_share"] = 0.0
            settings = before | settings
        return super().from_dict(settings)


def _numbers(name: str, text: str) -> tuple[float, ...]:
    """The numbers of a text with commas between."""
    try:
        return tuple(number(one.strip()) for one in text.split(","))
    except ValueError:
        raise ArgumentError(name, f"expected numbers with commas between, got {text!r}") from None


@dataclass(frozen=True, kw_only=True)
class AttackRequest(RunSettings):
    """What `diffproof attack` is asked for.

    Fields that are None are left to the protocol; `runs.attack.settled.settle` fills them in, and the
    attack's own settings, which makes `AttackSettings` of them.

    Raises:
        ValueError: a field out of range.
    """

    guide: str | None = None
    threat: str
    budget: str
    attack: str | None = None
    gradient: str | None = None
    surrogate_share: float | None = None
    protocol: str | None = None
    draws: int | None = None
    majority_of: int | None = None
    fixed_noise: bool = False
    diagnose: int = 4
    batch_size: int = 64

    def __post_init__(self) -> None:
        from diffproof.attacks.papers import PROTOCOLS
        from diffproof.attacks.threat import load_threat
        from diffproof.attacks.views import GradientMode

        super().__post_init__()
        if self.attack is not None:
            object.__setattr__(self, "attack", str(parse("attack", self.attack)))
        for name, names in (("protocol", tuple(PROTOCOLS)), ("gradient", tuple(GradientMode))):
            if getattr(self, name) is not None and getattr(self, name) not in names:
                raise unknown_name(name, getattr(self, name), names)
        check_networks(self.method.name, classifier=self.classifier, denoiser=self.denoiser, guide=self.guide)
        load_threat(self.threat, self.budget)
        for name in ("draws", "majority_of"):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), 1, MOST_DRAWS)
        check_at_least("diagnose", self.diagnose, 0)


@dataclass(frozen=True, kw_only=True)
class AttackSettings(AttackRequest):
    """What an attack run does: a request with nothing left open.

    Raises:
        ValueError: a field out of range.
    """

    attack: str = "pgd"
    gradient: str = "exact"
    draws: int = 10
    majority_of: int = 10

    def differences(self, other: Self) -> list[str]:
        """See RunSettings; the batch size, too, decides which images a shard has."""
        found = super().differences(other)
        if self.shard is not None and self.batch_size != other.batch_size:
            found.append(f"batch_size ({self.batch_size}, now {other.batch_size})")
        return found

    def meant(self, name: str, value: Any) -> Any:
        """As any run's; the budget as a number."""
        from diffproof.attacks.threat import parse_budget

        return parse_budget(value) if name == "budget" else super().meant(name, value)

    def describe_attack(self) -> str:
        """The attack with what tells it from others: "pgd:iterations=200,eot=20 exact, linf 8/255"."""
        attack = told("attack", self.attack)
        share = "" if self.surrogate_share is None else f" {self.surrogate_share:g}"
        return f"{attack} {self.gradient}{share}, {self.threat} {self.budget}"
