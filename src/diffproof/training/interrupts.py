"""Ctrl-C during a training: heard at the end of a step, where all state fits together."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class InterruptedBetweenStepsError(KeyboardInterrupt):
    """Ctrl-C was pressed, and no step is half done."""


@contextmanager
def interrupts_put_off() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back; yields what raises it if it was pressed. Pressed again, it acts at once.

    Where something else handles the signal already, or in a thread, nothing is held back.
    """
    pressed = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            signal.default_int_handler(number, frame)
        pressed = True

    def raise_if_pressed() -> None:
        if pressed:
            raise InterruptedBetweenStepsError

    python_handles = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not python_handles or threading.current_thread() is not threading.main_thread():
        yield raise_if_pressed
        return
    signal.signal(signal.SIGINT, remember)
    try:
        yield raise_if_pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
