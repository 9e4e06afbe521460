"""The files that a training writes: found to be writable, and its own until the command ends."""

from __future__ import annotations

import os
from pathlib import Path

import click

from diffproof.errors import ArgumentError

_LOCK = ".lock"
# What is written beside the weights.
_BESIDE = (".checkpoint", ".samples.png", ".loss.csv", ".loss.png", _LOCK)


def claim(out: Path, *, force: bool) -> None:
    """Keep other trainings from an output until the command ends; of several processes, the first one does.

    Args:
        out: the weights file; others are written beside it.
        force: whether it may replace a file that is there.

    Raises:
        ValueError: no such folder or none that takes files, a file that is there already, a link in the place
            of one, or another training of it.
    """
    from diffproof.files import check_no_link, check_out_file, created
    from diffproof.training.processes import is_first

    try:
        check_out_file(out, force=force)
        beside = [out.with_suffix(suffix) for suffix in _BESIDE]
        for path in beside:
            check_no_link(path)
        if not is_first():
            return
        _lock(out)
        for path in (out, *beside):
            # Where `replacing` writes first.
            probe = Path(f"{os.path.realpath(path)}.new")
            created(probe)
            probe.unlink()
    except OSError as error:
        raise ArgumentError("out", f"cannot write {out}: {error.strerror}") from None


def _lock(out: Path) -> None:
    """Lock an output; ValueError where another process has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(out.with_suffix(_LOCK), timeout=0)
    # What is in its way, it does not say.
    os.close(os.open(lock.lock_file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666))
    try:
        lock.acquire()
    except Timeout:
        raise ArgumentError("out", f"another process is training {out}") from None

    def end() -> None:
        # Before it is free: another process that takes it in between sees that it is no more.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()

    click.get_current_context().call_on_close(end)
