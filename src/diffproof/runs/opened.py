"""Run folders for Python and notebooks: settings, rows, numbers and pictures of what is finished."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffproof.attacks.evaluation import Evaluation
from diffproof.checks import shown
from diffproof.errors import ArgumentError
from diffproof.notebooks import table
from diffproof.optional import import_optional
from diffproof.runs.attack.figures import draw_axis as draw_bars
from diffproof.runs.attack.report import AttackReport, AttackRow, load_attack_report
from diffproof.runs.attack.store import AttackStore
from diffproof.runs.certify.figures import draw_axis as draw_curve
from diffproof.runs.certify.report import Report, Row, load_report
from diffproof.runs.export import attacked_row, certified_row
from diffproof.runs.settings import AttackSettings, CertifySettings
from diffproof.smoothing.certification import Certification

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

# What pandas would take for floats where some are missing, and for objects where all are.
_MAY_BE_MISSING = {
    **dict.fromkeys(("label", "first_success", "forwards", "backwards", "draws"), "Int64"),
    **dict.fromkeys(("scale", "clean_right", "attacked_right", "norm", "zero_gradients"), "float64"),
    "success": "boolean",
}


class OpenedRun:
    """What a run folder holds, read once. Subclasses say what kind of run it is.

    Args:
        folder: the run's.
        report: of this run alone.

    Attributes:
        folder: the run's.
        remarks: what `diffproof report` says below its table.
    """

    def __init__(self, folder: Path, report: Report | AttackReport) -> None:
        self.folder, self.remarks = folder, list(report.remarks)

    def rows(self) -> list[dict[str, Any]]:
        """An image a row, with the columns of `diffproof export --format json`. Written by subclasses."""
        raise NotImplementedError

    def frame(self) -> DataFrame:
        """The rows as a pandas frame, by the index of the image in its data set.

        Raises:
            ValueError: pandas is not installed.
        """
        pandas, rows = import_optional("pandas", "notebook"), self.rows()
        kinds = {name: kind for name, kind in _MAY_BE_MISSING.items() if name in rows[0]}
        frame: DataFrame = pandas.DataFrame(rows).astype(kinds)
        return frame.set_index("image_index")


class CertifiedRun(OpenedRun):
    """A certification run, as `open_run` gives it."""

    def __init__(self, folder: Path, report: Report) -> None:
        super().__init__(folder, report)
        self._report = report

    @property
    def _row(self) -> Row:
        return self._report.rows[0]

    @property
    def settings(self) -> CertifySettings:
        """What it was asked for."""
        return self._row.settings

    @property
    def certification(self) -> Certification:
        """The certificates of its finished images, and the report's numbers."""
        return self._row.certification

    def plot(self, axes: Axes | None = None) -> Axes:
        """Certified accuracy over radius, drawn as `diffproof report` draws it.

        Args:
            axes: of matplotlib's, to draw on; None for new ones.
        """
        axes = _axes(axes)
        draw_curve(axes, self._report)
        axes.legend()
        return axes

    def rows(self) -> list[dict[str, Any]]:
        """See OpenedRun."""
        return [certified_row(one) for one in self._row.results]

    def _repr_html_(self) -> str:
        """Settings and numbers, for notebooks."""
        told = f"sigma = {self.settings.sigma:g}, n = {self.settings.n:,}, alpha = {self.settings.alpha:g}"
        return _shown(self, "certification", told) + self.certification._repr_html_()


class AttackedRun(OpenedRun):
    """An attack run, as `open_run` gives it."""

    def __init__(self, folder: Path, report: AttackReport) -> None:
        super().__init__(folder, report)
        self._report = report

    @property
    def _row(self) -> AttackRow:
        return self._report.rows[0]

    @property
    def settings(self) -> AttackSettings:
        """What it was asked for, with all that its protocol and the attack filled in."""
        return self._row.settings

    @property
    def evaluation(self) -> Evaluation:
        """What was found for each finished image, and the report's scores."""
        found = tuple(one.evaluated for one in self._row.results)
        return Evaluation(found, self._row.clean, self._row.attacked, self.settings.seed)

    def plot(self, axes: Axes | None = None) -> Axes:
        """Accuracy of the majority without and after the attack, drawn as `diffproof report` draws it.

        Args:
            axes: of matplotlib's, to draw on; None for new ones.
        """
        axes = _axes(axes)
        draw_bars(axes, self._report)
        return axes

    def rows(self) -> list[dict[str, Any]]:
        """See OpenedRun."""
        return [attacked_row(one) for one in self._row.results]

    def _repr_html_(self) -> str:
        """Settings and scores, for notebooks."""
        return _shown(self, "attack", self.settings.describe_attack()) + self.evaluation._repr_html_()


def _axes(axes: Axes | None) -> Axes:
    """The given axes, or new ones."""
    from matplotlib import pyplot

    return pyplot.subplots()[1] if axes is None else axes


def _shown(run: CertifiedRun | AttackedRun, kind: str, told: str) -> str:
    rows = {
        "data": f"{run.settings.data} ({run.settings.split})",
        "defence": run.settings.describe(),
        kind: told,
    }
    notes = [("note", remark) for remark in run.remarks]
    return table(f"{kind} run {run.folder}", [*rows.items(), *notes])


def open_run(folder: str | os.PathLike[str]) -> CertifiedRun | AttackedRun:
    """What is finished of a run folder of `diffproof certify` or `diffproof attack`, live or not.

    Args:
        folder: the run's.

    Returns:
        Its `settings`, `rows()` and `frame()`, an image each, `remarks`, a picture by `plot()`, and its
        numbers: a `certification`, see Certification, or an `evaluation`, see Evaluation.

    Raises:
        ValueError: no run folder, a corrupt store, or no image is finished yet.
    """
    if not isinstance(folder, str | os.PathLike):
        raise ArgumentError("run", f"expected a run folder, got {shown(folder)}")
    path = Path(folder)
    if AttackStore.holds(path):
        return AttackedRun(path, load_attack_report([path]))
    return CertifiedRun(path, load_report([path], [0.0]))
