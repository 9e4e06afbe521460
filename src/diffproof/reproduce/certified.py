"""Tables of certified accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from diffproof.errors import ArgumentError
from diffproof.reproduce.entry import Cell, Entry, Line, missing, slug
from diffproof.reproduce.printed import Place
from diffproof.reproduce.quick import CHOICE, DRAWS, quick
from diffproof.reproduce.request import Request, Step

if TYPE_CHECKING:
    from diffproof.runs.certify.report import Row as Run

CIFAR_RADII = (0.0, 0.25, 0.5, 0.75, 1.0)
IMAGENET_RADII = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
SIGMAS = (0.25, 0.5, 1.0)
# The papers' chance of a wrong certificate.
_ALPHA = 0.001
_METRIC, _CLEAN = "certified_accuracy", "clean_accuracy_of_that_model"


@dataclass(frozen=True)
class Row:
    """A method of the table.

    Attributes:
        method: as printed.
        defense: its text.
        classifier: the role of its classifier; {sigma} in it stands for the noise level.
        denoiser: the role of its denoiser; None for a defence without one.
        printed: what the printed setting says besides sigma, such as " ViT-B/16".
        label: what tells it from another row of the same method.
        bound: another bound than Cohen's on the same run, of `diffproof report --bound`.
        why: why it is not run; "" for one that is.
    """

    method: str
    defense: str = "dds"
    classifier: str = "classifier"
    denoiser: str | None = "denoiser"
    printed: str = ""
    label: str = ""
    bound: str | None = None
    why: str = ""

    def roles(self, sigma: float) -> tuple[str, ...]:
        """The networks that it needs at a noise level."""
        given = (self.classifier.format(sigma=f"{sigma:g}"), self.denoiser)
        return tuple(role.format(sigma=f"{sigma:g}") for role in given if role is not None)


@dataclass(frozen=True)
class CertifiedTable(Entry):
    """Certified accuracy by method and radius.

    Attributes:
        rows: the methods.
        radii: the columns.
        sigmas: noise levels of the runs.
        best: whether the table has the best sigma at each radius, in brackets its accuracy at 0.
        images: how many test images the paper takes.
        n: its draws.
        votes: the printed setting of the votes that were cast, on average; "" for a table without.
        over: what else is drawn from the runs: "votes" or "draws", see `diffproof report --over`.
    """

    rows: Sequence[Row] = ()
    radii: Sequence[float] = CIFAR_RADII
    sigmas: Sequence[float] = SIGMAS
    best: bool = False
    images: int = 500
    n: int = 100_000
    votes: str = ""
    over: str | None = None

    @property
    def needs(self) -> list[str]:
        """See Entry."""
        roles = [
            role for row in self.rows if not row.why for sigma in self.sigmas for role in row.roles(sigma)
        ]
        return list(dict.fromkeys(roles))

    def steps(self, request: Request) -> list[Step]:
        """See Entry."""
        runs = [
            (row, sigma)
            for row in self.rows
            for sigma in self.sigmas
            if not self._lacking(row, sigma, request)
        ]
        steps = [step for row, sigma in runs for step in request.trainings(row.roles(sigma))]
        steps += [self._certify(row, sigma, request) for row, sigma in runs]
        folders = list(dict.fromkeys(str(self._folder(row, sigma, request)) for row, sigma in runs))
        if folders:
            shown, at = request.out / slug(self.name), ("--at", self._radii, "--force")
            steps.append(Step(("report", *folders, *at), shown))
            if self.over is not None:
                told = (*at, "--over", self.over)
                steps += [Step(("report", one, *told), shown / Path(one).name) for one in folders]
        return list(dict.fromkeys(steps))

    def columns(self) -> list[str]:
        """See Entry."""
        return [f"ε={radius:g}" for radius in self.radii] + ["votes a draw"] * bool(self.votes)

    def lines(self, request: Request) -> list[Line]:
        """See Entry."""
        if self.best:
            return [self._best(row, request) for row in self.rows]
        return [self._single(row, sigma, request) for sigma in self.sigmas for row in self.rows]

    @property
    def _radii(self) -> str:
        return ",".join(f"{radius:g}" for radius in self.radii)

    def _provable(self, sigma: float, request: Request) -> str:
        """The radii that a table tells of, 0 too, and that so many draws can prove, for --radii."""
        from diffproof.smoothing.sequential import RadiusTest

        def provable(radius: float) -> bool:
            try:
                RadiusTest([radius], sigma=sigma, alpha=_ALPHA, n=self._n(request))
            except ArgumentError:
                return False
            return True

        return ",".join(f"{radius:g}" for radius in sorted({0.0, *self.radii}) if provable(radius))

    def _lacking(self, row: Row, sigma: float, request: Request) -> str:
        return row.why or missing(row.defense, row.roles(sigma), request)

    def _defense(self, row: Row, request: Request) -> str:
        return quick("defense", row.defense) if request.quick else row.defense

    def _n(self, request: Request) -> int:
        return request.n or (DRAWS if request.quick else self.n)

    def _stop(self, row: Row, request: Request) -> str:
        # Another bound is of the counts of all draws.
        return request.stop if row.bound is None else "fixed"

    def _folder(self, row: Row, sigma: float, request: Request) -> Path:
        networks = (role for role in row.roles(sigma) if role not in ("classifier", "denoiser"))
        ballots, stop = "ballots" if self.over == "votes" else "", self._stop(row, request)
        # A sequential run proves what it is asked for: tables of other radii have runs of their own.
        radii = "" if stop == "fixed" else self._provable(sigma, request).replace(",", "-")
        sizes = [f"n{self._n(request)}", stop, radii, ballots, *request.chosen(self.images)[1:]]
        return request.out / slug(self._defense(row, request), f"{sigma:g}", *networks, *sizes)

    def _certify(self, row: Row, sigma: float, request: Request) -> Step:
        roles = row.roles(sigma)
        networks = dict(zip(("classifier", "denoiser"), roles, strict=False))
        flags = [word for name, role in networks.items() for word in (f"--{name}", request.spec(role) or "")]
        sizes = [
            "--n",
            str(self._n(request)),
            "--alpha",
            f"{_ALPHA:g}",
            *(("--n0", str(CHOICE)) if request.quick else ()),
        ]
        if self._stop(row, request) != "fixed":
            sizes += ["--stop", self._stop(row, request), "--radii", self._provable(sigma, request)]
        votes = ("--keep-ballots",) if self.over == "votes" else ()
        about = ("--defense", self._defense(row, request), "--sigma", f"{sigma:g}")
        chosen = request.chosen(self.images)
        words = ("certify", "--data", request.data, *chosen, *flags, *about, *sizes, *votes, *request.seeded)
        return Step(words, self._folder(row, sigma, request))

    def _label(self, row: Row, sigma: float | None) -> str:
        parts = [
            f"{row.method}{f', {row.label}' * bool(row.label)}",
            *([] if sigma is None else [f"σ={sigma:g}"]),
        ]
        return ", ".join(parts)

    def _single(self, row: Row, sigma: float, request: Request) -> Line:
        setting = _level(sigma) + row.printed
        lacking = self._lacking(row, sigma, request)
        run = None if lacking else _run(self._folder(row, sigma, request), row.bound)
        place = partial(Place, self.paper, self.number, row.method, setting, _METRIC)
        cells = [
            _cell([] if run is None else [run], radius, self.beside(place(_at(radius)), request))
            for radius in self.radii
        ]
        if self.votes:
            told = Place(self.paper, self.number, row.method, self.votes, "average_votes", _level(sigma))
            cast = None if run is None or run.votes is None else run.votes[0]
            cells.append(Cell(cast, printed=self.beside(told, request)))
        lacking = lacking or ("" if run else "not run yet")
        return Line(self._label(row, sigma), cells, [] if run is None else run.folders, lacking)

    def _best(self, row: Row, request: Request) -> Line:
        reasons = [self._lacking(row, sigma, request) for sigma in self.sigmas]
        loaded = [
            None if reason else _run(self._folder(row, sigma, request), row.bound)
            for reason, sigma in zip(reasons, self.sigmas, strict=True)
        ]
        runs = [run for run in loaded if run is not None]
        place = partial(Place, self.paper, self.number, row.method, f"best sigma{row.printed}")
        cells = []
        for radius in self.radii:
            best, clean = (self.beside(place(metric, _at(radius)), request) for metric in (_METRIC, _CLEAN))
            cells.append(_cell(runs, radius, best, clean, best=True))
        lacking = "" if runs else next(filter(None, reasons), "not run yet")
        return Line(self._label(row, None), cells, [run.folders[0] for run in runs], lacking)


def _at(radius: float) -> str:
    """A radius as the packaged numbers name it: 0, 0.25, 1.0."""
    return "0" if radius == 0 else str(float(radius))


def _level(sigma: float) -> str:
    """A noise level as the packaged numbers name it: sigma=0.25, sigma=1.0."""
    return f"sigma={float(sigma)}"


def _run(folder: Path, bound: str | None) -> Run | None:
    """A run's results so far, perhaps by another bound than its own; None where there are none."""
    from diffproof.runs.certify.report import load_row
    from diffproof.runs.certify.store import CertifyStore

    if not folder.is_dir():
        return None
    with CertifyStore.reading(folder) as store:
        if not store.results():
            return None
    return load_row(folder, bound)


def _cell(
    runs: Sequence[Run],
    radius: float,
    printed: float | None,
    clean: float | None = None,
    *,
    best: bool = False,
) -> Cell:
    """The best of some runs at a radius beside the printed number; in a table of the best with its accuracy
    at 0.

    Nothing stands where no run's n allows that radius.
    """
    able = [run for run in runs if run.largest_radius >= radius]
    if not able:
        return Cell(printed=printed, printed_clean=clean)
    chosen = max(able, key=lambda run: (run.certified_accuracy(radius), run.certified_accuracy(0.0)))
    share = chosen.certification.certified_accuracy(radius)
    at_zero = 100 * chosen.certified_accuracy(0.0) if best else None
    return Cell(100 * share.value, 100 * share.low, 100 * share.high, printed, at_zero, clean)
