"""The files of a report, all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from diffproof.errors import ArgumentError

if TYPE_CHECKING:
    from diffproof.runs.attack.report import AttackReport
    from diffproof.runs.certify.report import Report


@dataclass(frozen=True)
class Files:
    """What a report is to write.

    Attributes:
        out: the folder of tables and pictures.
        single: further files by their flags, "html", "csv", "latex" or "figure".
        force: whether they may replace what is there.
        data: where the images of the page are, None for packaged data.
        trust: whether the page may open the data that runs name.
    """

    out: Path | None
    single: Mapping[str, Path]
    force: bool
    data: str | None
    trust: bool

    def check(self) -> None:
        """Raise ValueError where something is in the way of a single file, or two have one path."""
        from diffproof.checks import renamed
        from diffproof.files import check_out_file
        from diffproof.runs.columns import form_of

        for name, path in self.single.items():
            first = next(other for other in self.single if self.single[other] == path)
            if first != name:
                raise ArgumentError(name, f"--{first} writes to {path}, too")
            with renamed({"out": name}):
                check_out_file(path, force=self.force)
            if name == "figure":
                form_of(path)

    def write_certified(self, report: Report) -> list[Path]:
        """Write those of a report of certifications, and return their paths."""
        from diffproof.runs.certify.figures import draw_column, write_report
        from diffproof.runs.certify.tables import write_latex, write_table

        return self._write(report, write_report, csv=write_table, latex=write_latex, figure=draw_column)

    def write_attacked(self, report: AttackReport) -> list[Path]:
        """Write those of a report of attacks, and return their paths."""
        from diffproof.runs.attack.figures import draw_bars, write_attack_report
        from diffproof.runs.attack.tables import write_attack_latex, write_attack_table

        return self._write(
            report, write_attack_report, csv=write_attack_table, latex=write_attack_latex, figure=draw_bars
        )

    def _write(
        self, report: Report | AttackReport, folder: Callable[..., list[Path]], **writers: Callable[..., None]
    ) -> list[Path]:
        from diffproof.files import replacing
        from diffproof.runs.columns import form_of

        writers["html"] = self._write_page
        if "figure" in self.single:
            writers["figure"] = partial(writers["figure"], form=form_of(self.single["figure"]))
        with ExitStack() as stack:
            for name, path in self.single.items():
                writers[name](report, stack.enter_context(replacing(path)))
            written = [] if self.out is None else folder(report, self.out, force=self.force)
        return [*written, *self.single.values()]

    def _write_page(self, report: Report | AttackReport, path: Path) -> None:
        from diffproof.runs.places import Places
        from diffproof.web.report.opened import open_runs
        from diffproof.web.report.page import report_page

        places = Places({} if self.data is None else {"data": self.data}, self.trust)
        path.write_text(report_page(open_runs(report, places)), encoding="utf-8")
