"""Settings of runs: validated, written to settings.yaml, compared when a run continues."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from diffproof.catalog import ATTACKS, DEFENSES, able
from diffproof.checks import check_at_least, check_positive, check_probability, unknown_name
from diffproof.errors import ArgumentError
from diffproof.smoothing.bounds import Bound

PRECISIONS = ("float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What every command is asked for that runs networks on images; the fields are its flags.

    Raises:
        ValueError: a field out of range.
    """

    image_size: int | None = None
    seed: int = 0
    precision: str = "float32"
    batch_size: int = 256
    device: str = "auto"

    def __post_init__(self) -> None:
        check_at_least("batch_size", self.batch_size, 1)
        check_at_least("seed", self.seed, 0)
        if self.image_size is not None:
            check_at_least("image_size", self.image_size, 1)
        for name, known in (("precision", PRECISIONS), ("device", DEVICES)):
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)

    def as_dict(self) -> dict[str, Any]:
        """All fields that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        """The inverse of `as_dict`.

        Raises:
            ValueError: unknown or missing fields, or values out of range.
        """
        names = {field.name for field in fields(cls)}
        for name in settings:
            if name not in names:
                raise unknown_name("settings", name, names)
        try:
            return cls(**settings)
        except TypeError as error:
            raise ArgumentError("settings", str(error)) from None

    def given(self, names: Sequence[str]) -> dict[str, Any]:
        """Those of these fields that are there and set."""
        return {name: value for name, value in self.as_dict().items() if name in names}


@dataclass(frozen=True, kw_only=True)
class RunSettings(Flags):
    """What every run over the images of a data set is asked for.

    Raises:
        ValueError: a field out of range.
    """

    # A run may continue with other values of these: they do not change its results.
    FREE: ClassVar[tuple[str, ...]] = ("batch_size", "device")

    data: str
    split: str | None = None
    indices: str | None = None
    limit: int | None = None
    classifier: str | None = None
    denoiser: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit is not None:
            check_at_least("limit", self.limit, 1)

    def differences(self, other: Self) -> list[str]:
        """Fields that change results and differ, as "name (this, other)"."""
        mine, others = asdict(self), asdict(other)
        return [
            f"{name} ({mine[name]}, now {others[name]})"
            for name in mine
            if name not in self.FREE and self.meant(name, mine[name]) != self.meant(name, others[name])
        ]

    def meant(self, name: str, value: Any) -> Any:
        """What a field's value says, the same for every way to write it."""
        return value

    def describe(self) -> str:
        """The method with what tells it from others, as a row of a table. Written by subclasses."""
        raise TypeError(f"{type(self).__name__} does not define describe()")


@dataclass(frozen=True, kw_only=True)
class CertifySettings(RunSettings):
    """What `diffproof certify` is asked for.

    Fields that a method has no use for are set to None: denoiser for "none"; steps, votes, consensus and
    step_rule for all but "densepure". steps may be "full". The fields of "dc" are refused for others, and its
    own defaults apply where they are None.

    Raises:
        ValueError: a field out of range.
    """

    method: str
    sigma: float
    steps: int | str | None = 10
    votes: int | None = 40
    consensus: int | None = None
    step_rule: str | None = "authors"
    timesteps: str | None = None
    weighting: str | None = None
    race_error: float | None = None
    n0: int = 100
    n: int = 10_000
    alpha: float = 0.001
    bound: str = "one-sided"
    compile: bool = False

    def __post_init__(self) -> None:
        from diffproof.defenses.named import check_networks

        certifiable = able(DEFENSES, "certify")
        if self.method not in certifiable:
            raise unknown_name("method", self.method, certifiable)
        if isinstance(self.steps, str) and self.steps != "full":
            raise ArgumentError("steps", f"expected a number or full, got {self.steps!r}")
        if self.method != "densepure":
            for name in ("steps", "votes", "consensus", "step_rule"):
                object.__setattr__(self, name, None)
        if self.method == "none":
            object.__setattr__(self, "denoiser", None)
        check_networks(self.method, classifier=self.classifier, denoiser=self.denoiser)
        super().__post_init__()
        check_positive("sigma", self.sigma)
        check_probability("alpha", self.alpha)
        for name in ("n0", "n"):
            check_at_least(name, getattr(self, name), 1)
        if self.bound not in tuple(Bound):
            raise unknown_name("bound", self.bound, tuple(Bound))

    def describe(self) -> str:
        """The method with what tells it from others, as a row of a table: "densepure b=10 K=40"."""
        if self.method != "densepure":
            return " ".join([self.method, *(f"{k}={v}" for k, v in self.given(CLASSIFYING_FIELDS).items())])
        steps = "full" if self.steps == "full" else f"b={self.steps}"
        consensus = "" if self.consensus is None else f" k={self.consensus}"
        rule = "" if self.step_rule == "authors" else f" {self.step_rule}"
        return f"densepure {steps} K={self.votes}{consensus}{rule}"


# Flags of certify that are those of "dc" alone.
CLASSIFYING_FIELDS = ("timesteps", "weighting", "race_error")
# Flags that settle a defence, and those that settle an attack.
DEFENSE_FIELDS = (
    "t_star",
    "defense_sigma",
    "steps",
    "solver",
    "rounds",
    "likeness",
    "scale",
    "purify_budget",
    "where",
    "label",
    "distance",
    "diffuse",
    "timesteps",
    "weighting",
    "samples",
    "shared_noise",
    "reduction",
    "likelihood_timesteps",
    "likelihood_iterations",
    "likelihood_norm",
    "variant",
    "votes",
    "consensus",
    "step_rule",
)
ATTACK_FIELDS = (
    "iterations",
    "eot",
    "step",
    "loss",
    "mean_of",
    "direction",
    "random_start",
    "learning_rate",
    "smoothness",
    "weight",
    "weights",
    "share",
    "version",
    "queries",
)

# As tables have them.
_SHORT = {"t_star": "t*", "defense_sigma": "σ", "purify_budget": "budget"}


@dataclass(frozen=True, kw_only=True)
class PurificationFlags:
    """What settles a purification, as its flags take it; what is None is left to the defence."""

    defense: str
    guide: str | None = None
    t_star: str | None = None
    defense_sigma: float | None = None
    steps: str | None = None
    solver: str | None = None
    rounds: int | None = None
    likeness: str | None = None
    scale: float | None = None
    purify_budget: str | None = None
    where: str | None = None
    label: str | None = None
    distance: str | None = None
    diffuse: bool | None = None
    timesteps: str | None = None
    weighting: str | None = None
    samples: int | None = None
    shared_noise: bool | None = None
    reduction: str | None = None
    likelihood_timesteps: str | None = None
    likelihood_iterations: int | None = None
    likelihood_norm: str | None = None
    variant: str | None = None


@dataclass(frozen=True, kw_only=True)
class AttackSettings(PurificationFlags, RunSettings):
    """What `diffproof attack` is asked for.

    Fields that are None are left to the defence, the attack and the protocol; `runs.attack.prepare` fills in
    those of the attack and the scoring.

    Raises:
        ValueError: a field out of range.
    """

    votes: int | None = None
    consensus: int | None = None
    step_rule: str | None = None
    threat: str
    budget: str
    attack: str | None = None
    gradient: str | None = None
    surrogate_share: float | None = None
    protocol: str | None = None
    iterations: int | None = None
    eot: int | None = None
    step: float | None = None
    loss: str | None = None
    mean_of: str | None = None
    direction: str | None = None
    random_start: bool | None = None
    learning_rate: float | None = None
    smoothness: float | None = None
    weight: float | None = None
    weights: str | None = None
    share: float | None = None
    version: str | None = None
    queries: int | None = None
    draws: int | None = None
    majority_of: int | None = None
    diagnose: int = 4
    batch_size: int = 64

    def __post_init__(self) -> None:
        from diffproof.attacks.papers import PROTOCOLS
        from diffproof.attacks.threat import load_threat
        from diffproof.attacks.views import GradientMode
        from diffproof.defenses.named import check_networks

        if self.defense == "none":
            object.__setattr__(self, "denoiser", None)
        super().__post_init__()
        known: tuple[tuple[str, Iterable[str]], ...] = (
            ("defense", DEFENSES),
            ("attack", ATTACKS),
            ("protocol", PROTOCOLS),
            ("gradient", tuple(GradientMode)),
        )
        for name, names in known:
            if getattr(self, name) is not None and getattr(self, name) not in names:
                raise unknown_name(name, getattr(self, name), names)
        check_networks(self.defense, classifier=self.classifier)
        load_threat(self.threat, self.budget)
        for name in ("draws", "majority_of"):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), 1)
        check_at_least("diagnose", self.diagnose, 0)

    def meant(self, name: str, value: Any) -> Any:
        """Budgets, noise levels and weights as numbers: 0.10 is 0.1, 2/10 is 0.2."""
        from diffproof.attacks.threat import parse_budget

        if value is None or name not in ("budget", "purify_budget", "t_star", "weights"):
            return value
        try:
            return [parse_budget(part) for part in str(value).split(",")]
        except ValueError:
            return value

    def describe(self) -> str:
        """The defence with what tells it from others, as a row of a table: "diffpure t*=0.1 steps=20"."""
        return " ".join(
            [
                self.defense,
                *(f"{_SHORT.get(name, name)}={value}" for name, value in self.given(DEFENSE_FIELDS).items()),
            ]
        )

    def describe_attack(self) -> str:
        """The attack with what tells it from others: "pgd 200×20 exact step=0.007, linf 8/255"."""
        parts = [str(self.attack)]
        if self.version is not None:
            parts.append(self.version)
        if self.iterations is not None:
            parts.append(f"{self.iterations}×{self.eot}")
        elif self.eot is not None:
            parts.append(f"eot={self.eot}")
        share = "" if self.surrogate_share is None else f" {self.surrogate_share:g}"
        parts.append(f"{self.gradient}{share}")
        usual = {one.name: as_flag(one.default) for one in ATTACKS[str(self.attack)].settings}
        told = {"version", "iterations", "eot"}
        parts += [
            f"{name}={value}"
            for name, value in self.given(ATTACK_FIELDS).items()
            if name not in told and value != usual[name]
        ]
        return f"{' '.join(parts)}, {self.threat} {self.budget}"


def as_flag(value: Any) -> Any:
    """A setting as its flag takes it: an enum's value, numbers with commas, anything else as it is."""
    if isinstance(value, tuple | list):
        return ",".join(f"{number:g}" for number in value)
    return str(value) if isinstance(value, str) else value
