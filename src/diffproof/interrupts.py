"""SIGTERM, which ends jobs of batch systems, as Ctrl-C: else a process ends and saves nothing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def interrupt(number: int, frame: object) -> None:
    """What a signal does within `terminated_as_interrupted`."""
    raise KeyboardInterrupt


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Within this block SIGTERM is a Ctrl-C; in a thread, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)
