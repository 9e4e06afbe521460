"""One case of the fuzzer: run in a forked child under limits, then judged.

What the oracle holds against a case:

- a traceback, an exit status that no command has, or a signal that ended it;
- more than 60 seconds of the processor, or 60 seconds without any;
- more than 2 GiB of memory (the largest resident size of the child);
- a line of output longer than 500 characters, or one with control characters in it;
- a mistake that is told in other than one line, or a command that fails and has written its output;
- code of a module that no word of the command line names, or a file changed to which only links lead;
- nonsense: NaN in what it prints; or a run of `certify` or `attack` that ended well and has other results
  than the sound run although its store says that settings, weights and data are the same.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffproof.cli.main import run
from diffproof.errors import LONGEST_LINE
from fuzz.sound import RAN, STRANGE, VICTIM

MOST_SECONDS, MOST_MEMORY = 60.0, 2**31
# So that no case takes the machine down: address space beyond what the parent has, and bytes of a file.
_ADDRESSES, _FILE = 6 * 2**30, 2**30
_CRASHED = 70
# A progress bar is redrawn in place.
_BAR = re.compile(r"\d+/\d+ .* \d+:\d\d:\d\d left ")


@dataclass(frozen=True)
class Case:
    """A case.

    Attributes:
        kind: what was made unsound, such as "flag certify --sigma" or "file npz".
        words: the command line, or what tells a call.
        prepare: makes the case's folder from a copy of the sound one; it is the current folder then.
        work: what is run; its exit status. None runs `words`.
        out: what the command writes.
    """

    kind: str
    words: list[str]
    prepare: Callable[[], None] = lambda: None
    work: Callable[[], int] | None = None
    out: str = "out"


@dataclass(frozen=True)
class Finding:
    """What is wrong with a case: a name to group by, and what was seen."""

    name: str
    seen: str


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    status: int
    hangs: bool
    memory: int
    stdout: str
    stderr: str


def tried(case: Case, folder: Path) -> Ended:
    """Run a case in a child, in this folder."""
    before = Path.cwd()
    os.chdir(folder)
    case.prepare()
    os.chdir(before)
    started = time.monotonic()
    # The child's output lies beside its folder.
    streams = [folder.with_suffix(end) for end in (".out", ".err")]
    pid = os.fork()
    if not pid:
        _in_child(case, folder, streams)
    hangs, worked = False, (0.0, started)
    while True:
        done, state, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        used, now = _processor_seconds(pid), time.monotonic()
        if used > worked[0]:
            worked = used, now
        hangs = used > MOST_SECONDS or now - worked[1] > MOST_SECONDS
        if hangs:
            os.kill(pid, signal.SIGKILL)
            _, state, usage = os.wait4(pid, 0)
            break
        time.sleep(0.005)
    texts = [stream.read_bytes()[: 2**20].decode("utf-8", "backslashreplace") for stream in streams]
    status = os.waitstatus_to_exitcode(state)
    return Ended(status, hangs, usage.ru_maxrss * 1024, *texts)


def _processor_seconds(pid: int) -> float:
    """What a child has used; on a busy machine more time goes by."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _in_child(case: Case, folder: Path, streams: list[Path]) -> None:
    status = _CRASHED
    try:
        os.setpgid(0, 0)
        for number, stream in enumerate(streams, start=1):
            os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        # Captured streams of a test belong to the parent.
        for name, number in (("stdout", 1), ("stderr", 2)):
            setattr(sys, name, os.fdopen(number, "w", errors="backslashreplace", closefd=False))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESSES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE, resource.RLIM_INFINITY))
        os.chdir(folder)
        status = run(case.words) if case.work is None else case.work()
    except SystemExit:
        status = _CRASHED + 1
    except BaseException:  # what a user would see as a traceback
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def judged(case: Case, ended: Ended, folder: Path, sound: dict[str, object]) -> list[Finding]:
    """What is wrong with how a case ended; nothing, as a rule."""
    found = []
    lines = [line for line in (ended.stdout + ended.stderr).splitlines() if not _BAR.search(line)]
    if ended.hangs:
        found.append(Finding("hangs", " ".join(lines[-1:])[:200]))
    elif "Traceback (most recent call last)" in ended.stderr or ended.status not in (0, 1, 2):
        found.append(_crash(ended))
    if (folder / RAN).exists() and not any(STRANGE in word or word == "--trust" for word in case.words):
        found.append(Finding("code ran", " ".join(case.words)[:200]))
    if (folder / VICTIM).read_bytes() != b"precious" and VICTIM not in case.words:
        found.append(Finding("written through a link", " ".join(case.words)[:200]))
    if ended.memory > MOST_MEMORY:
        found.append(Finding("memory", f"{ended.memory / 2**30:.1f} GiB"))
    if "allocate" in ended.stderr or "no memory" in ended.stderr:
        found.append(Finding("memory asked for", lines[-1][:200]))
    for line in lines:
        if len(line) > LONGEST_LINE:
            found.append(Finding("long line", f"{len(line)} characters: {line[:100]}"))
        # Tabs separate the columns that `export` prints.
        elif not line.replace("\t", " ").isprintable():
            found.append(Finding("control characters", ascii(line)[:200]))
    if ended.status == 2:
        errors = [line for line in ended.stderr.splitlines() if line.startswith("diffproof: error: ")]
        if len(errors) != 1:
            found.append(Finding("no single line", ended.stderr[-300:]))
        if case.work is None and case.out and (folder / case.out).is_file():
            found.append(Finding("half written", case.out))
    if ended.status == 0:
        # A file may be called so.
        if re.search(r"^(?!written: ).*\bnan\b", ended.stdout, re.IGNORECASE | re.MULTILINE):
            found.append(Finding("nonsense: NaN", ended.stdout[-300:]))
        other = _other_results(case, folder, sound)
        if other is not None:
            found.append(other)
    return found[:2]


def _crash(ended: Ended) -> Finding:
    """An exception by its type and the last place in diffproof that it came through."""
    if ended.status < 0:
        return Finding(f"signal {-ended.status}", ended.stderr[-300:])
    places = re.findall(r'File "[^"]*/diffproof/([\w/]+\.py)", line \d+, in (\w+)', ended.stderr)
    last = (ended.stderr.strip().splitlines() or [f"exit status {ended.status}"])[-1]
    where = ":".join(places[-1]) if places else "?"
    return Finding(f"{last.partition(':')[0][:60]} in {where}", last[:300])


def identity(folder: Path) -> tuple[object, object] | None:
    """What a run says that it is made of, and its results without the seconds; None for no run."""
    if not (folder / "results.sqlite").is_file():
        return None
    connection = sqlite3.connect(folder / "results.sqlite")
    try:
        settings = connection.execute("SELECT * FROM settings").fetchone()
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        table, columns = (
            ("images", "image_index, true_label, certificate")
            if "images" in tables
            else ("attacked", "image_index, true_label, result, clean, adversarial, purified")
        )
        rows = connection.execute(f"SELECT {columns} FROM {table} ORDER BY image_index").fetchall()
    finally:
        connection.close()
    made_of = json.loads(settings[0]), settings[1:]
    for name in ("batch_size", "device", "data", "classifier", "denoiser"):
        made_of[0].pop(name, None)
    return made_of, rows


def _other_results(case: Case, folder: Path, sound: dict[str, object]) -> Finding | None:
    """A run that says that it is the sound one, and holds other results."""
    command = case.words[0] if case.words else ""
    mine = identity(folder / case.out)
    theirs = sound.get(command)
    if mine is None or not isinstance(theirs, tuple) or mine[0] != theirs[0] or mine[1] == theirs[1]:
        return None
    return Finding("nonsense: other results of the same settings, weights and data", str(mine[0])[:200])
