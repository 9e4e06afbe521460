"""Ctrl-C and SIGTERM during a training: heard at the end of a step, where all state fits together."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from diffproof.interrupts import interrupt


class InterruptedBetweenStepsError(KeyboardInterrupt):
    """Ctrl-C was pressed, and no step is half done."""


@contextmanager
def interrupts_put_off() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back; yields what raises it if it was pressed. Pressed again, it acts at once.

    So it is with SIGTERM where that is a Ctrl-C. Where something else handles a signal already, or in a
    thread, nothing is held back.
    """
    pressed = False
    usual: dict[signal.Signals, Callable[[int, FrameType | None], object]] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: interrupt,
    }

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            usual[signal.Signals(number)](number, frame)
        pressed = True

    def raise_if_pressed() -> None:
        if pressed:
            raise InterruptedBetweenStepsError

    in_main = threading.current_thread() is threading.main_thread()
    held = [number for number, handler in usual.items() if in_main and signal.getsignal(number) is handler]
    for number in held:
        signal.signal(number, remember)
    try:
        yield raise_if_pressed
    finally:
        for number in held:
            signal.signal(number, usual[number])
