"""What every command is asked for that runs networks on images."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from diffproof.catalog import PRECISIONS
from diffproof.checks import MOST_PIXELS, MOST_ROWS, check_at_least, unknown_name
from diffproof.errors import ArgumentError
from diffproof.fields import check_fields
from diffproof.methods import own_class

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def check_device(name: str) -> None:
    """Raise ValueError unless a device can have this name."""
    if _DEVICE.fullmatch(name) is None:
        raise ArgumentError("device", f"expected auto, cpu, cuda, cuda:N or mps, got {name!r}")


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What every command is asked for that runs networks on images; the fields are its flags.

    But for `seed_drawn`: whether the seed was drawn for the run, rather than given.

    Raises:
        ValueError: a field out of range.
    """

    image_size: int | None = None
    seed: int
    seed_drawn: bool = False
    precision: str = "float32"
    batch_size: int = 256
    device: str = "auto"

    def __post_init__(self) -> None:
        check_at_least("batch_size", self.batch_size, 1, MOST_ROWS)
        check_at_least("seed", self.seed, 0)
        if self.image_size is not None:
            check_at_least("image_size", self.image_size, 1, MOST_PIXELS)
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        check_device(self.device)

    def as_dict(self) -> dict[str, Any]:
        """All fields that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        """The inverse of `as_dict`.

        Raises:
            ValueError: unknown or missing fields, or values out of range.
        """
        try:
            settings = check_fields(cls, settings)
        except ValueError as error:
            raise ArgumentError("settings", str(error)) from None
        if isinstance(settings.get("class_map"), str):
            # A path, which a run does not store and a stranger may.
            raise ArgumentError("settings", "class_map: expected a mapping, got a text")
        # The user's own code is not imported to read what it did, and may be gone.
        plain = {"defense": "none", "attack": "pgd"}
        own = [kind for kind in plain if settings.get(kind) and own_class(kind, settings[kind])]
        if not own:
            return cls(**settings)
        # All but that code's own settings are checked beside a method that takes any.
        some: dict[str, Any] = {kind: plain[kind] for kind in own}
        if "defense" in own:
            some |= {
                "classifier": "digits",
                "denoiser": None,
                **({"guide": None} if "guide" in settings else {}),
            }
        cls(**{**settings, **some})
        return cls._unchecked(settings)

    @classmethod
    def _unchecked(cls, settings: dict[str, Any]) -> Self:
        """Settings that name a class of the user's; they were checked when they were written."""
        made = object.__new__(cls)
        for field in fields(cls):
            object.__setattr__(made, field.name, settings.get(field.name, field.default))
        return made
