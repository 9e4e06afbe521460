"""What an installation has and whether it computes what it should: for `diffproof doctor`."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from diffproof.optional import BESIDE, install_line

# Extras of those who work on diffproof itself.
_OWN = ("dev", "docs")
# The self-test: this test digit, of which no draw is near a boundary. In each, two logits are over 0.5 apart,
# so that no rounding of any device changes the counts.
_DIGIT, _SIGMA, _N0, _N, _SEED = 36, 0.5, 20, 200, 0
_COUNTS = (180, 0, 0, 1, 2, 0, 6, 0, 8, 3)
_RADIUS = 0.454496


@dataclass(frozen=True)
class Library:
    """A library that diffproof asks for.

    Attributes:
        name: on PyPI.
        wanted: which versions, such as ">=2.6"; empty for any.
        version: the one that is installed, None for none.
        fits: whether it is installed in a version that is wanted.
    """

    name: str
    wanted: str
    version: str | None
    fits: bool


@dataclass(frozen=True)
class Extra:
    """An optional part of diffproof.

    Attributes:
        name: in `diffproof[name]`.
        libraries: that it asks for.
        install: the command that installs it.
    """

    name: str
    libraries: tuple[Library, ...]
    install: str

    @property
    def complete(self) -> bool:
        """Whether all its libraries are there."""
        return all(library.fits for library in self.libraries)


@dataclass(frozen=True)
class Cache:
    """A folder that downloads are kept in.

    Attributes:
        what: is kept there.
        folder: where.
        bytes: what it takes, None where it does not exist.
    """

    what: str
    folder: Path
    bytes: int | None


@dataclass(frozen=True)
class SelfTest:
    """One digit, certified as `diffproof certify` does.

    Attributes:
        device: where the networks ran.
        label: the certified class, None if it abstained.
        radius: its certified radius.
        counts: labels of the draws by class.
        right: whether label, radius and counts are what they are everywhere.
        seconds: what it took, loading included.
    """

    device: str
    label: int | None
    radius: float
    counts: tuple[int, ...]
    right: bool
    seconds: float


def required() -> tuple[Library, ...]:
    """The libraries that diffproof cannot do without."""
    return tuple(_library(one) for one in _requirements() if one.marker is None)


def extras() -> tuple[Extra, ...]:
    """The optional parts, those for work on diffproof itself left out."""
    names = metadata.metadata("diffproof").get_all("Provides-Extra") or []
    return tuple(_extra(name) for name in names if name not in _OWN)


def platform_line() -> str:
    """Python and the system, in a line."""
    return f"Python {platform.python_version()} on {platform.platform()}"


def devices() -> list[str]:
    """The devices that networks can run on, each with its memory; the processor first."""
    import torch

    from diffproof.memory import memory
    from diffproof.scale.workforce import cores

    found = [f"cpu ({cores()} cores, {memory() / 1e9:.1f} GB)"]
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(number)
        found.append(f"cuda:{number} ({about.name}, {about.total_memory / 1e9:.1f} GB)")
    return found + ["mps"] * torch.backends.mps.is_available()


def caches() -> tuple[Cache, ...]:
    """The folders of downloads, which libraries choose: HF_HOME and TORCH_HOME move them."""
    import torch
    from huggingface_hub import constants

    tables = os.environ.get("HF_DATASETS_CACHE", str(Path(constants.HF_HOME) / "datasets"))
    folders = {
        "models and data sets of the Hub": Path(constants.HF_HUB_CACHE),
        "prepared data sets": Path(tables),
        "weights of torchvision and RobustBench": Path(torch.hub.get_dir()),
    }
    return tuple(Cache(what, folder, _size(folder)) for what, folder in folders.items())


def self_test(device: str = "auto") -> SelfTest:
    """Certify a packaged digit and compare with what it must give, to the last draw.

    Args:
        device: see --device.

    Raises:
        ValueError: no such device.
    """
    import diffproof as dp
    from diffproof.runs.prepare import resolve_device

    start = time.monotonic()
    where = resolve_device(device)
    images, _ = dp.load_data("digits", split="test", indices=str(_DIGIT))
    defense = dp.DDS(dp.load_denoiser("digits"), dp.load_classifier("digits")).to(where)
    smoothed = dp.Smoothed(defense, sigma=_SIGMA)
    made = smoothed.certify(images[0].to(where), n0=_N0, n=_N, seed=_SEED, image_index=_DIGIT)
    right = made.label == 0 and made.counts == _COUNTS and abs(made.radius - _RADIUS) < 1e-6
    return SelfTest(str(where), made.label, made.radius, made.counts, right, time.monotonic() - start)


def _requirements() -> Iterator[Requirement]:
    yield from map(Requirement, metadata.requires("diffproof") or [])


def _extra(name: str) -> Extra:
    named = [one for one in _requirements() if one.marker and one.marker.evaluate({"extra": name})]
    beside = [Requirement(name)] if name in BESIDE else []
    return Extra(name, tuple(map(_library, [*named, *beside])), install_line(name))


def _library(wanted: Requirement) -> Library:
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return Library(wanted.name, str(wanted.specifier), None, fits=False)
    fits = wanted.specifier.contains(version, prereleases=True)
    return Library(wanted.name, str(wanted.specifier), version, fits)


def _size(folder: Path) -> int | None:
    """Bytes below a folder, links not followed."""
    if not folder.is_dir():
        return None
    return sum((Path(where) / name).lstat().st_size for where, _, names in os.walk(folder) for name in names)
