"""Ray's beginning and end within a command: its files, its processes, and signals that come meanwhile."""

from __future__ import annotations

import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from diffproof.optional import import_optional

_PREFIX = "diffproof-"
_LOCK = "lock"
# Letters of the address of a socket that the operating system allows, less those that Ray adds.
_LONGEST_FOLDER = 40


@contextmanager
def own_folder() -> Iterator[Path]:
    """A new folder for Ray's own files, which goes at the end; its name leaves room for its sockets'.

    Those of commands that were killed go, too.
    """
    place = Path(tempfile.gettempdir())
    place = place if len(str(place)) <= _LONGEST_FOLDER else Path("/tmp")
    for other in place.glob(f"{_PREFIX}*"):
        _remove_if_left(other)
    # It has its name, by which others find it, once its lock is held.
    made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=place))
    with FileLock(made / _LOCK):
        folder = made.rename(place / made.name[1:])
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    """Remove such a folder of a command that is no more: nobody holds its lock."""
    # It may be somebody else's, or be held.
    with suppress(OSError):
        if (folder / _LOCK).is_file() and not folder.is_symlink():
            with FileLock(folder / _LOCK, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)


def begin(ray: Any, **settings: Any) -> None:
    """Call ray.init, so that neither a Ctrl-C nor SIGTERM is lost in it or leaves a process.

    Raises:
        KeyboardInterrupt: one of them came.
        Exception: what ray.init raises.
    """
    # Ray brings it.
    psutil = import_optional("psutil", "ray")
    this = psutil.Process()
    before = {*this.children(recursive=True)}
    with _signals() as came:
        try:
            ray.init(**settings)
        except BaseException:
            begun = {*this.children(recursive=True)} - before
            ray.shutdown()
            for process in begun:
                with suppress(psutil.Error):
                    process.kill()
            # Ray ends the process by SIGTERM.
            if came():
                raise KeyboardInterrupt from None
            raise
        if came():
            raise KeyboardInterrupt


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Gives what says whether SIGINT or SIGTERM came in this block, whatever took them."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    usual = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    seen = set[int]()

    def came() -> bool:
        with suppress(BlockingIOError):
            seen.update(reader.recv(1024))
        return not seen.isdisjoint((signal.SIGINT, signal.SIGTERM))

    try:
        yield came
    finally:
        signal.set_wakeup_fd(usual)
        reader.close()
        writer.close()
