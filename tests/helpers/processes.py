"""Child processes that have everything loaded already."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from diffproof.cli.main import run


def forked(work: Callable[[], int], errors: int | None = None) -> int:
    """Start `work` in a child that has everything loaded already; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY) if errors is None else errors, 2)
        # pytest's captured streams belong to the parent.
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        status = work()
        sys.stderr.flush()
    finally:
        os._exit(status)


def outcome(work: Callable[[], int]) -> tuple[int, str]:
    """The exit status of a child, and what it wrote on standard error."""
    reader, writer = os.pipe()
    pid = forked(work, writer)
    os.close(writer)
    with open(reader, encoding="utf-8") as stream:
        errors = stream.read()
    return exit_status(pid), errors


def exit_status(pid: int, seconds: float = 300.0) -> int:
    """Wait for a child; negative is the signal that ended it, and one that hangs is killed."""
    give_up = time.monotonic() + seconds
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > give_up:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(ended[1])


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for another process; a minute without it is a failure, not a wait for ever."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def family(root: int) -> dict[int, str]:
    """The command lines of a process and all that it started, by number."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat = (path / "stat").read_text()
            names[int(path.name)] = (
                (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
        except OSError:
            continue
        parents[int(path.name)] = int(stat.rpartition(")")[2].split()[1])
    found = {root}
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return {one: names[one] for one in found if one in names}


def together(command: str, count: int = 2) -> tuple[list[int], list[str]]:
    """Run a command in several processes; their exit states and what each wrote on standard error."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    pids, readers = [], []
    for rank in range(count):
        reader, writer = os.pipe()

        def work(rank: int = rank) -> int:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            return run(shlex.split(command))

        pids.append(forked(work, writer))
        os.close(writer)
        readers.append(reader)
    states = [exit_status(pid) for pid in pids]
    errors = []
    for reader in readers:
        with open(reader, encoding="utf-8") as stream:
            errors.append(stream.read())
    return states, errors
