"""What a table or a figure of a paper is: runs, and how their results stand beside the printed ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffproof.catalog import DEFENSES
from diffproof.reproduce.printed import Place, number
from diffproof.reproduce.request import Request, Step

# The papers' data sets by ours.
_NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}


@dataclass(frozen=True)
class Cell:
    """A number of the user's beside the printed one, both in percent.

    Attributes:
        ours: the user's; None where there is none.
        low: lower end of its 95% interval.
        high: upper end.
        printed: the paper's; None where it prints none.
        clean: accuracy at radius 0 of the model that ours is of, where a table chooses among several.
        printed_clean: the paper's.
    """

    ours: float | None = None
    low: float | None = None
    high: float | None = None
    printed: float | None = None
    clean: float | None = None
    printed_clean: float | None = None


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        label: the method, as printed, and its settings.
        cells: one a column.
        folders: of the runs that it is made of.
        lacking: why there is no result of the user's; "" where there is one.
    """

    label: str
    cells: Sequence[Cell]
    folders: Sequence[Path] = ()
    lacking: str = ""


@dataclass(frozen=True)
class Entry:
    """A table or figure of a paper.

    Attributes:
        paper: as `printed` names it.
        number: of the table or figure, such as "1" or "figure4".
        title: what it shows, in a line.
        dataset: the printed numbers' data set, where a request's data has none.
        part: what is behind its name where a printed table is several entries.
    """

    paper: str
    number: str
    title: str
    dataset: str = "CIFAR-10"
    part: str = ""

    @property
    def name(self) -> str:
        """What it is asked for by: "densepure:table1"."""
        prefix = "" if self.number.startswith(("figure", "text", "theory")) else "table"
        return f"{self.paper.lower()}:{prefix}{self.number}{self.part}"

    @property
    def needs(self) -> list[str]:
        """Roles of networks that a full result needs."""
        raise NotImplementedError

    def steps(self, request: Request) -> list[Step]:
        """The commands that make it: trainings, runs, pictures."""
        raise NotImplementedError

    def columns(self) -> list[str]:
        """Names of the table's columns behind the rows' labels."""
        raise NotImplementedError

    def lines(self, request: Request) -> list[Line]:
        """The table, of the runs that are there."""
        raise NotImplementedError

    def beside(self, place: Place, request: Request) -> float | None:
        """A printed number, of the data set of the request if the paper has it there."""
        of = _NAMES.get(request.data, self.dataset)
        found = number(of, place)
        # Numbers of other data stand beside a data set that the papers do not have.
        elsewhere = request.data not in _NAMES or self.dataset not in _NAMES.values()
        return number(self.dataset, place) if found is None and elsewhere else found


@dataclass(frozen=True)
class Unavailable(Entry):
    """One that is not run.

    Attributes:
        why: the reason, in a line.
    """

    why: str = ""

    @property
    def needs(self) -> list[str]:
        """See Entry."""
        return []


@dataclass(frozen=True)
class Theory(Entry):
    """Pictures of the theory, computed exactly: no networks."""

    @property
    def needs(self) -> list[str]:
        """See Entry."""
        return []

    def steps(self, request: Request) -> list[Step]:
        """See Entry."""
        out = request.out / "theory"
        return [Step(("theory", "--force", *(("--points", "3") if request.quick else ())), out)]

    def columns(self) -> list[str]:
        """See Entry."""
        return []

    def lines(self, request: Request) -> list[Line]:
        """See Entry."""
        return []


def missing(defense: str, roles: Sequence[str], request: Request) -> str:
    """Why a row cannot be run; "" where it can.

    Args:
        defense: its text.
        roles: of its networks.
        request: what the user brings.
    """
    name = defense.partition(":")[0]
    if name not in DEFENSES:
        return f"diffproof has no {name}"
    lacking = request.lacking(roles)
    return request.lacks(lacking) if lacking else ""


def slug(*parts: object) -> str:
    """A folder's name of some parts."""
    texts = (re.sub(r"[^\w@.-]", "-", str(part)) for part in parts)
    return "_".join(filter(None, texts))
