"""Tables of robust accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from diffproof.intervals import Share
from diffproof.reproduce.entry import Cell, Entry, Line, missing, slug
from diffproof.reproduce.printed import Place
from diffproof.reproduce.quick import quick
from diffproof.reproduce.request import Request, Step

if TYPE_CHECKING:
    from diffproof.runs.attack.report import AttackRow as Run


@dataclass(frozen=True)
class Threat:
    """An attack of the table.

    Attributes:
        at: its column, as printed.
        threat: "linf", "l2" or "stadv".
        budget: as `diffproof attack` takes it.
        attack: its text.
        score: which score the paper reports: "fresh", "majority" or "optimisation".
        protocol: see `diffproof attack --protocol`.
        on: its printed column on other data sets.
    """

    at: str
    threat: str
    budget: str
    attack: str
    score: str = "fresh"
    protocol: str | None = None
    on: Mapping[str, str] = field(default_factory=dict)


AUTOATTACK = "autoattack:version=rand"
# Of classifiers alone: the version rand leaves out its targeted attacks and Square.
_STANDARD = "autoattack:version=standard"
LINF = Threat("linf 8/255", "linf", "8/255", AUTOATTACK)
L2 = Threat("l2 0.5", "l2", "0.5", AUTOATTACK)
STADV = Threat("StAdv 0.05", "stadv", "0.05", "stadv:iterations=100")


@dataclass(frozen=True)
class Clean:
    """A column of accuracy without an attack.

    Attributes:
        at: its printed column.
        metric: the printed measure.
        of: the threat, by its place, whose run tells.
        setting: the printed setting, where it is not the row's.
    """

    at: str = "clean"
    metric: str = "robust_accuracy"
    of: int = 0
    setting: str | None = None


@dataclass(frozen=True)
class Row:
    """A defence of the table.

    Attributes:
        method: as printed.
        defense: its text.
        networks: the role of each network by its flag.
        printed: the printed setting.
        label: what tells it from another row of the same method.
        gradient: what its attacks follow; None for the exact gradient.
        attacks: its own texts of attacks, by column, in place of the table's.
        at: its own printed column, for a table of one column.
        instead: what is run in its place, by column, where the paper has a model for each.
        why: why it is not run; "" for one that is.
    """

    method: str
    defense: str = "none"
    networks: Mapping[str, str] = field(default_factory=lambda: {"classifier": "classifier"})
    printed: str = ""
    label: str = ""
    gradient: str | None = None
    attacks: Mapping[str, str] = field(default_factory=dict)
    at: str | None = None
    instead: Mapping[str, Row] = field(default_factory=dict)
    why: str = ""

    def under(self, threat: Threat) -> Row:
        """What is run in a column."""
        return self.instead.get(threat.at, self)


# Networks of a purifying defence.
PURIFYING = {"classifier": "classifier", "denoiser": "denoiser"}
GUIDED = {**PURIFYING, "guide": "guide"}


def diffpure(printed: str) -> Row:
    """DiffPure as its authors have it on CIFAR-10 (Nie et al. 2022), with less noise under ℓ2 0.5."""
    less = Row("DiffPure", "diffpure:t_star=0.075", PURIFYING, printed)
    return Row("DiffPure", "diffpure:t_star=0.1", PURIFYING, printed, instead={L2.at: less})


@dataclass(frozen=True)
class AttackedTable(Entry):
    """Robust accuracy by defence and attack.

    Attributes:
        rows: the defences.
        threats: the attacks.
        clean: its columns of accuracy without an attack.
        average: whether its last column is the mean over the attacks.
        images: how many test images the paper takes.
        diagnose: images on which the gradient is examined, whose findings `diffproof report` prints.
    """

    rows: Sequence[Row] = ()
    threats: Sequence[Threat] = (LINF,)
    clean: Sequence[Clean] = (Clean(),)
    average: bool = False
    images: int = 512
    diagnose: int = 4

    @property
    def needs(self) -> list[str]:
        """See Entry."""
        rows = [row.under(threat) for row in self.rows for threat in self.threats]
        return list(dict.fromkeys(role for row in rows if not row.why for role in row.networks.values()))

    def steps(self, request: Request) -> list[Step]:
        """See Entry."""
        pairs = [(row.under(threat), threat) for row in self.rows for threat in self.threats]
        runs = [(row, threat) for row, threat in pairs if not self._lacking(row, request)]
        steps = [step for row, _ in runs for step in request.trainings(tuple(row.networks.values()))]
        attacks = [self._attack(row, threat, request) for row, threat in runs]
        folders = list(dict.fromkeys(str(step.out) for step in attacks))
        if folders:
            attacks.append(Step(("report", *folders, "--force"), request.out / slug(self.name)))
        return list(dict.fromkeys([*steps, *attacks]))

    def columns(self) -> list[str]:
        """See Entry."""
        clean = [one.at if "clean" in one.at else f"clean, {one.at}" for one in self.clean]
        return [*clean, *(threat.at for threat in self.threats), *(["average"] if self.average else [])]

    def lines(self, request: Request) -> list[Line]:
        """See Entry."""
        return [self._line(row, request) for row in self.rows]

    def _lacking(self, row: Row, request: Request) -> str:
        return row.why or missing(row.defense, tuple(row.networks.values()), request)

    @staticmethod
    def _replaced(row: Row, threat: Threat, request: Request) -> bool:
        """Whether the user's attack stands in place of the paper's."""
        return request.attack is not None and threat.at not in row.attacks and threat.threat != STADV.threat

    def _texts(self, row: Row, threat: Threat, request: Request) -> tuple[str, str]:
        """The defence and the attack of a cell."""
        text = row.attacks.get(threat.at, threat.attack)
        if self._replaced(row, threat, request):
            text = request.attack or ""
        elif text == AUTOATTACK and row.defense == "none":
            text = _STANDARD
        if request.quick:
            return quick("defense", row.defense), quick("attack", text)
        return row.defense, text

    def _folder(self, row: Row, threat: Threat, request: Request) -> Path:
        roles = (role for flag, role in row.networks.items() if role != flag)
        defense, attack = self._texts(row, threat, request)
        sizes = request.chosen(self.images)[1:]
        budget = threat.budget.replace("/", "over")
        # An attack of the same text, but without the paper's protocol, is another run.
        plain = "plain" if threat.protocol is not None and self._replaced(row, threat, request) else ""
        parts = (defense, *roles, threat.threat, budget, attack, plain, row.gradient or "", *sizes)
        return request.out / slug(*parts)

    def _attack(self, row: Row, threat: Threat, request: Request) -> Step:
        defense, attack = self._texts(row, threat, request)
        flags = [
            word for name, role in row.networks.items() for word in (f"--{name}", request.spec(role) or "")
        ]
        how = ["--threat", threat.threat, "--budget", threat.budget]
        replaced = self._replaced(row, threat, request)
        if threat.protocol is not None and attack == threat.attack and not replaced:
            how += ["--protocol", threat.protocol]
        else:
            how += ["--attack", attack]
        if row.gradient is not None:
            how += ["--gradient", row.gradient]
        sizes = ["--diagnose", "0" if request.quick else str(self.diagnose)]
        sizes += ["--draws", "2", "--majority-of", "2"] if request.quick else []
        chosen = request.chosen(self.images)
        words = ("attack", "--data", request.data, *chosen, *flags, "--defense", defense, *how, *sizes)
        return Step((*words, *request.seeded), self._folder(row, threat, request))

    def _line(self, row: Row, request: Request) -> Line:
        reasons = {one.at: self._lacking(row.under(one), request) for one in self.threats}
        lacking = next(filter(None, reasons.values()), "")
        able = [one for one in self.threats if not reasons[one.at]]
        folders = {one.at: self._folder(row.under(one), one, request) for one in able}
        loaded = {at: _run(folder) for at, folder in folders.items()}
        runs = [loaded.get(threat.at) for threat in self.threats]
        clean = []
        for one in self.clean:
            setting = row.printed if one.setting is None else one.setting
            place = Place(self.paper, self.number, row.method, setting, one.metric, one.at)
            clean.append(_cell(runs[one.of], "clean", self.threats[one.of], self.beside(place, request)))
        told = partial(Place, self.paper, self.number, row.method, row.printed, "robust_accuracy")
        attacked = []
        for threat, run in zip(self.threats, runs, strict=True):
            at = threat.on.get(request.data, row.at or threat.at)
            printed = self.beside(told(at), request)
            attacked.append(_cell(run, "attacked", threat, printed))
        average = [_mean(attacked, self.beside(told("average"), request))]
        found = [folders[at] for at, run in loaded.items() if run is not None]
        label = f"{row.method}{f', {row.label}' * bool(row.label)}"
        cells = [*clean, *attacked, *(average if self.average else [])]
        return Line(label, cells, found, lacking or ("" if found else "not run yet"))


def _cell(run: Run | None, when: str, threat: Threat, printed: float | None) -> Cell:
    """A score, "clean" or "attacked", of a run beside the printed one."""
    if run is None:
        return Cell(printed=printed)
    share: Share = getattr(getattr(run, when), threat.score)
    return Cell(100 * share.value, 100 * share.low, 100 * share.high, printed)


def _mean(cells: Sequence[Cell], printed: float | None) -> Cell:
    """The mean of some scores, if all are there; it has no interval."""
    ours = [cell.ours for cell in cells if cell.ours is not None]
    return Cell(fmean(ours) if len(ours) == len(cells) else None, printed=printed)


def _run(folder: Path) -> Run | None:
    """A run's results so far; None where there are none."""
    from diffproof.runs.attack.report import load_attack_report
    from diffproof.runs.attack.store import AttackStore

    if not folder.is_dir() or not AttackStore.holds(folder):
        return None
    with AttackStore.reading(folder) as store:
        if not store.results():
            return None
    return load_attack_report([folder]).rows[0]
