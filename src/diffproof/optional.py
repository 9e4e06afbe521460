"""Libraries of optional extras."""

from __future__ import annotations

import importlib
from types import ModuleType

from diffproof.errors import ArgumentError

# Extras that do not ask for their library, which pins others: what pip is to install beside them.
BESIDE = {"robustbench": "'robustbench>=1.1.1'"}


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    return " ".join(["pip install", f"'diffproof[{extra}]'", *filter(None, [BESIDE.get(extra)])])


def import_optional(module: str, extra: str) -> ModuleType:
    """Import a library of an optional extra.

    Raises:
        ValueError: it is not installed, or does not import.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == module.split(".")[0]:
            raise ArgumentError(module, f"not installed; {install_line(extra)}") from None
        raise ArgumentError(module, f"does not import: {one_line(error)}") from None
    except Exception as error:  # a library built for another torch may raise anything
        raise ArgumentError(module, f"installed but does not import: {one_line(error)}") from None


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's text on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
