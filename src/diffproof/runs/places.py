"""Where the data and networks of a stored run are: given anew, or what the run names, if that is trusted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from diffproof.data.named import HUB_NAMES, SHIPPED
from diffproof.errors import ArgumentError
from diffproof.files import expanded, members
from diffproof.methods import own_class
from diffproof.runs.settings import RunSettings
from diffproof.runs.store import Identity
from diffproof.weights import packaged

S = TypeVar("S", bound=RunSettings)
PLACES = ("data", "denoiser", "classifier", "guide", "chooser")
# What stands before a path in a spec, and behind it.
_PATH = re.compile(r"(?P<before>.*@|hf:|diffusers:|empirical:)?(?P<path>[^:@]+)(?P<after>:.*)?")


@dataclass(frozen=True)
class Places:
    """What a command says of a stored run's data and networks.

    Attributes:
        given: sources and specs in place of the run's, by name; see PLACES.
        trust: whether to open files and run code that the run itself names.
    """

    given: Mapping[str, str]
    trust: bool = False

    def check(self, settings: RunSettings, folder: Path) -> None:
        """Raise ValueError if a run names files or code, and is not trusted, or has no such place."""
        for name in self.given:
            if getattr(settings, name, None) is None:
                raise ArgumentError(name, f"the run in {folder} has none, got {self.given[name]!r}")
        foreign = [] if self.trust else _foreign(settings, self.given)
        if foreign:
            raise ArgumentError(
                "run",
                f"{folder} names {', '.join(foreign)}: --trust opens and runs what it names, if you trust who"
                " made it; --data, --denoiser, --classifier, --guide and --chooser give it anew; --counts"
                " needs none",
            )

    def data(self, settings: RunSettings, folder: Path) -> str | None:
        """Where the images of a run may be read from; None where what it names is not trusted.

        A data set of the Hub is fetched only for who trusts, too.
        """
        if "data" in self.given:
            return self.given["data"]
        if settings.data in SHIPPED:
            return settings.data
        return _found(settings.data, folder) if self.trust else None

    def settle(self, settings: S, identity: Identity, folder: Path) -> tuple[S, list[str]]:
        """The settings with these places and exactly the run's images, and remarks on where things were.

        A path that the run names is one from the current folder or, if there is none, from the run folder.
        Whether it leads to the same data and weights, their hashes say.

        Raises:
            ValueError: a class of the user's that the run names is not what it was.
        """
        places, remarks = dict(self.given), []
        for name in PLACES:
            stored = getattr(settings, name, None)
            if stored is None or name in places:
                continue
            places[name] = _found(stored, folder)
            if places[name] != stored:
                remarks.append(f"{name} is read from the run folder: {places[name]}")
        settings = settings.of_images(identity.indices) if identity.indices else settings
        changed: dict[str, Any] = dict(places)
        return replace(settings, **changed), remarks


def _foreign(settings: RunSettings, given: Mapping[str, str]) -> list[str]:
    """What settings name that does not come with diffproof, in words."""
    ours = {
        "data": {*SHIPPED, *HUB_NAMES},
        "denoiser": {*packaged("denoiser"), *(f"empirical:{name}" for name in SHIPPED)},
        "classifier": {*packaged("classifier")},
        "guide": {*packaged("classifier")},
        "chooser": {*packaged("classifier")},
    }
    found = []
    for name, known in ours.items():
        spec = getattr(settings, name, None)
        if spec is not None and name not in given and not known.issuperset(members(spec)):
            found.append(f"the {name} {spec!r}")
    for kind in ("defense", "attack"):
        text = getattr(settings, kind, None)
        if text is not None and (where := own_class(kind, text)) is not None:
            found.append(f"the code {where}")
    return found


def _found(spec: str, folder: Path) -> str:
    """A spec whose path is only in the run folder, with that path; any other as it is."""
    if (parts := members(spec)) != [spec]:
        return f"ensemble:{','.join(_found(part, folder) for part in parts)}"
    match = _PATH.fullmatch(spec)
    if match is None:
        return spec
    path, beside = expanded(match["path"]), folder / match["path"]
    if path.is_absolute() or path.exists() or not beside.exists():
        return spec
    return f"{match['before'] or ''}{beside}{match['after'] or ''}"
