"""Settings of a certification run: validated, written to settings.yaml, compared when a run continues."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from diffproof.checks import check_at_least, check_positive, check_probability, unknown_name
from diffproof.smoothing.bounds import Bound

PRECISIONS = ("float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")
# A run may continue with other values of these: they do not change its results.
_FREE = ("batch_size", "device")


@dataclass(frozen=True)
class CertifySettings:
    """What `diffproof certify` is asked for; the fields are its flags.

    Fields that a method has no use for are set to None: denoiser for "none"; steps, votes, consensus and
    step_rule for all but "densepure". steps may be "full".

    Raises:
        ValueError: a field out of range.
    """

    data: str
    classifier: str
    method: str
    sigma: float
    denoiser: str | None = None
    split: str | None = None
    indices: str | None = None
    limit: int | None = None
    image_size: int | None = None
    steps: int | str | None = 10
    votes: int | None = 40
    consensus: int | None = None
    step_rule: str | None = "authors"
    n0: int = 100
    n: int = 10_000
    alpha: float = 0.001
    bound: str = "one-sided"
    seed: int = 0
    precision: str = "float32"
    compile: bool = False
    batch_size: int = 256
    device: str = "auto"

    def __post_init__(self) -> None:
        from diffproof.defenses.named import CERTIFIABLE

        if self.method not in CERTIFIABLE:
            raise unknown_name("method", self.method, CERTIFIABLE)
        if isinstance(self.steps, str) and self.steps != "full":
            raise ValueError(f"steps: expected a number or full, got {self.steps!r}")
        if self.method != "densepure":
            for name in ("steps", "votes", "consensus", "step_rule"):
                object.__setattr__(self, name, None)
        if self.method == "none":
            object.__setattr__(self, "denoiser", None)
        elif self.denoiser is None:
            raise ValueError(f"denoiser: the method {self.method!r} needs one")
        check_positive("sigma", self.sigma)
        check_probability("alpha", self.alpha)
        for name in ("n0", "n", "batch_size"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("seed", self.seed, 0)
        for name in ("limit", "image_size"):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), 1)
        for name, known in (("bound", tuple(Bound)), ("precision", PRECISIONS), ("device", DEVICES)):
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)

    def as_dict(self) -> dict[str, Any]:
        """All fields that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> CertifySettings:
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
            raise ValueError(f"settings: {error}") from None

    def differences(self, other: CertifySettings) -> list[str]:
        """Fields that change results and differ, as "name (this, other)"."""
        mine, others = asdict(self), asdict(other)
        return [
            f"{name} ({mine[name]}, now {others[name]})"
            for name in mine
            if name not in _FREE and mine[name] != others[name]
        ]

    def describe(self) -> str:
        """The method with what tells it from others, as a row of a table: "densepure b=10 K=40"."""
        if self.method != "densepure":
            return self.method
        steps = "full" if self.steps == "full" else f"b={self.steps}"
        consensus = "" if self.consensus is None else f" k={self.consensus}"
        rule = "" if self.step_rule == "authors" else f" {self.step_rule}"
        return f"densepure {steps} K={self.votes}{consensus}{rule}"
