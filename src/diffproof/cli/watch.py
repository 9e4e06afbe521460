"""diffproof watch: the report of runs in the terminal, again whenever there is more of them."""

from __future__ import annotations

import io
import shutil
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

import click

from diffproof.cli.flags import command
from diffproof.cli.paths import PATH
from diffproof.cli.screen import echo, said
from diffproof.errors import ArgumentError
from diffproof.wording import counted

if TYPE_CHECKING:
    from diffproof.runs.attack.report import AttackReport
    from diffproof.runs.certify.report import Report
    from diffproof.runs.watching import Seen

    Shown = Seen[Report | AttackReport]


def _every(context: click.Context, parameter: click.Parameter, value: float) -> float:
    # Not a number is in no range, and beyond none.
    if not 0.1 <= value <= 86_400:
        raise ArgumentError("every", f"expected 0.1 to 86400 seconds, got {value:g}")
    return value


every_option = click.option(
    "--every",
    type=float,
    default=2.0,
    metavar="SECONDS",
    callback=_every,
    help="Look so often whether something changed, every 0.1 to 86400 seconds.",
)


@command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@every_option
def watch(runs: tuple[Path, ...], every: float) -> None:
    """Show the report of RUNS again and again, as images are finished, until all runs are.

    Below how far each run is stands what diffproof report says: in a terminal in place of what stood there
    before, into a pipe whenever it changed. A folder that is not there yet is waited for. Nothing is written
    to RUNS, and their commands are not disturbed. Ctrl-C ends it; what was shown last stays.
    """
    from diffproof.runs.reports import load_any_report
    from diffproof.runs.watching import Watched

    watched = Watched(runs, load_any_report)
    seen = watched.look()
    screen = _Terminal() if _is_terminal() and not seen.finished else _Pipe()
    with screen:
        try:
            screen.show(seen)
            while not seen.finished:
                time.sleep(every)
                seen = watched.look()
                screen.show(seen)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the runs were only looked at") from None


def _is_terminal() -> bool:
    """Whether lines on standard output can be replaced."""
    from rich.console import Console

    console = Console()
    return console.is_terminal and not console.is_dumb_terminal


class _Pipe:
    """What changed, one below the other."""

    def __init__(self) -> None:
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, seen: Shown) -> None:
        """Print what is seen, if it is not what was printed last."""
        text = _text(seen, moving=False)
        if text != self._last:
            echo(f"\n{text}" if self._last else text, nl=False)
        self._last = text


class _Terminal:
    """A screen of its own, of which what was shown last stays."""

    def __init__(self) -> None:
        from rich.console import Console

        self._screen = Console().screen()
        self._last: Shown | None = None

    def __enter__(self) -> Self:
        self._screen.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._screen.__exit__(*problem)
        if self._last is not None:
            echo(_text(self._last, moving=True), nl=False)

    def show(self, seen: Shown) -> None:
        """Replace what is shown, as far as there is room."""
        from rich.text import Text

        self._last = seen
        lines = _text(seen, moving=True).splitlines()
        head = f"at {time.strftime('%H:%M:%S')}; Ctrl-C ends this, not the runs"
        room = max(shutil.get_terminal_size().lines - 2, 1)
        cut = len(lines) - room
        if cut > 0:
            lines[room - 1 :] = [f"… {counted(cut + 1, 'more line')}: in a higher window, or at the end"]
        self._screen.update(Text.from_ansi("\n".join([head, *lines])))


def _text(seen: Shown, *, moving: bool) -> str:
    """What is to be read, in the width and the letters of standard output."""
    from diffproof.cli.tables import print_attack_report, print_report
    from diffproof.runs.certify.report import Report

    with redirect_stdout(_Lines(sys.stdout)) as lines:
        for line in seen.told(moving=moving):
            said(line)
        if isinstance(seen.made, Report):
            print_report(seen.made)
        elif seen.made is not None:
            print_attack_report(seen.made)
    return lines.getvalue()


class _Lines(io.StringIO):
    """Text that is made as if it went to a stream."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()
