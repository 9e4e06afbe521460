"""What is served: the page of some runs and how far they are, made again when asked for after a change."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from threading import Lock

from diffproof.errors import ArgumentError
from diffproof.runs.places import Places
from diffproof.runs.reports import load_any_report
from diffproof.runs.watching import Seen, Watched
from diffproof.web.markup import tag
from diffproof.web.report.opened import open_runs
from diffproof.web.report.page import STRIP, Live, report_page, waiting_page
from diffproof.wording import counted

# Lines of runs at work, at most; seconds after which a browser without scripts asks again, at least.
_LINES, _SECONDS = 4, 10


@dataclass(frozen=True)
class Shown:
    """What is shown at a moment.

    Attributes:
        page: the report's, with a place for how far its runs are.
        version: of the page, a hash.
        lines: how far the runs are, and why they cannot be read now, in words.
        troubled: whether they cannot.
        every: seconds until the page asks again.
        at: when this was seen.
    """

    page: str
    version: str
    lines: list[str]
    troubled: bool
    every: float
    at: str

    @property
    def state(self) -> bytes:
        """What the page asks for again and again, as JSON."""
        told = {"version": self.version, "lines": self.lines, "troubled": self.troubled}
        return json.dumps(told).encode()

    @cached_property
    def document(self) -> bytes:
        """The page as it is served."""
        lines = [tag("p", line) for line in (f"Live, as of {self.at}.", *self.lines)]
        strip = tag(
            "aside",
            lines,
            id="live",
            class_="live troubled" if self.troubled else "live",
            aria_label="How far the runs are",
            data_version=self.version,
            data_every=self.every,
            data_at=self.at,
        )
        return self.page.replace(STRIP, strip).encode()

    @cached_property
    def packed(self) -> bytes:
        """The page by gzip, fast: most of it are pictures, which hardly get smaller."""
        return gzip.compress(self.document, compresslevel=1, mtime=0)

    @cached_property
    def tag(self) -> str:
        """What tells whether somebody has the page already."""
        return f'"{hashlib.sha256(self.document).hexdigest()[:16]}"'


class Board:
    """The page of some runs; for several threads.

    Args:
        folders: of the runs; they need not be there yet.
        places: where their images may be read from.
        every: seconds between two looks at them.

    Raises:
        ValueError: a folder is no run, runs are of two kinds or of different data, or no data is where it was
            said to be.
        OSError: a folder cannot be read.
    """

    def __init__(self, folders: Sequence[Path], places: Places, every: float) -> None:
        self._places, self._every = places, every
        assets = files("diffproof.web.live")
        script, style = ((assets / f"live.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
        self._live = Live(script, style, max(_SECONDS, math.ceil(every)))
        self._watched = Watched(folders, self._page)
        self._looking, self._looked = Lock(), time.monotonic()
        self._seen: Seen[str] | None = None
        self._shown = self._of(self._watched.look())

    def shown(self) -> Shown:
        """What is to be shown now. Whoever asks while another thread makes the page gets that before."""
        if time.monotonic() - self._looked >= self._every and self._looking.acquire(blocking=False):
            try:
                self._shown = self._of(self._watched.look())
            except (ArgumentError, OSError) as error:
                self._shown = replace(self._shown, lines=[f"The runs cannot be read: {error}"], troubled=True)
            finally:
                self._looked = time.monotonic()
                self._looking.release()
        return self._shown

    def _page(self, folders: Sequence[Path]) -> str:
        return report_page(open_runs(load_any_report(folders), self._places), self._live)

    def _of(self, seen: Seen[str]) -> Shown:
        page = waiting_page(self._live) if seen.made is None else seen.made
        known = self._seen is not None and self._seen.made is seen.made
        version = self._shown.version if known else hashlib.sha256(page.encode()).hexdigest()[:16]
        self._seen = seen
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        return Shown(page, version, _lines(seen), bool(seen.trouble), self._every, at)


def _lines(seen: Seen[str]) -> list[str]:
    """How far the runs are that are not finished, and how many are."""
    finished = sum(one.state == "finished" for one in seen.statuses)
    going = replace(seen, statuses=[one for one in seen.statuses if one.state != "finished"], trouble="")
    lines = going.told(moving=True)
    further = len(lines) - _LINES
    more = [f"{counted(further, 'further run')} not finished."] if further > 0 else []
    done = [f"{counted(finished, 'run')} finished."] if finished else []
    trouble = [f"The runs cannot be read now: {seen.trouble}"] if seen.trouble else []
    return [*trouble, *lines[:_LINES], *more, *done]
