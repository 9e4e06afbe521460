"""Pages of a browser that one test after the other turns to its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any


def prepare(
    page: Any,
    stack: ExitStack,
    complaints: list[str],
    asked: Callable[[Any], None],
    color_scheme: str,
    width: int,
) -> None:
    """Give a page its look, and hear what it says and asks for until the stack ends.

    Args:
        page: of playwright.
        stack: the visit.
        complaints: where its messages and errors go.
        asked: is told each request.
        color_scheme: light or dark.
        width: of the window, in pixels.
    """

    def listen(event: str, heard: Callable[[Any], None]) -> None:
        page.on(event, heard)
        stack.callback(page.remove_listener, event, heard)

    page.emulate_media(media="screen", color_scheme=color_scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.mouse.move(0, 0)
    listen("console", lambda message: complaints.append(message.text))
    listen("pageerror", lambda error: complaints.append(str(error)))
    listen("request", asked)
