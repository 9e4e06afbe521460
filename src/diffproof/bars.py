"""Progress bars for whoever calls the library, in a notebook or a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from diffproof.checks import check_instance
from diffproof.optional import import_optional


@contextmanager
def bar(shown: bool, title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress bar, tqdm's: in a notebook a widget of it, in a terminal a line.

    Yields what is called with how many units are done since the last call.

    Args:
        shown: whether there is to be one.
        title: what stands before it.
        total: units in all.
        unit: what they are, such as "images".

    Raises:
        ValueError: tqdm is not installed.
    """
    if not check_instance("progress", shown, bool, "True or False"):
        yield lambda units: None
        return
    tqdm = import_optional("tqdm.auto", "notebook").tqdm
    with tqdm(desc=title, total=total, unit=f" {unit}") as line:
        yield line.update
