"""A user's own code, named as module:name, and the plug-ins that an installed package declares.

It runs as the user's code, with all that that may do.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, NamedTuple

from diffproof.errors import ArgumentError
from diffproof.optional import one_line

_ADDRESS = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")


class Address(NamedTuple):
    """Where an object of a user's code is: "package.module:name"."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"


def address(text: str) -> Address | None:
    """The address that a text is, None where it has another form."""
    match = _ADDRESS.fullmatch(text)
    return None if match is None else Address(match["module"], match["name"])


def plugin(group: str, name: str) -> Address | None:
    """What an installed package declares under a name in its entry points, None where none does.

    Args:
        group: "diffproof.defenses", "diffproof.attacks", "diffproof.denoisers" or "diffproof.classifiers".
        name: of the entry point.
    """
    for point in importlib.metadata.entry_points(group=group, name=name):
        where = address(point.value.replace(" ", ""))
        if where is None:
            raise ArgumentError(
                group.rpartition(".")[2].removesuffix("s"),
                f"the plug-in {name!r} declares {point.value!r}, expected module:name",
            )
        return where
    return None


def plugins(group: str) -> list[str]:
    """The names that installed packages declare in a group of entry points; see `plugin`."""
    return sorted({point.name for point in importlib.metadata.entry_points(group=group)})


def source_hash(module: str) -> str | None:
    """SHA-256 of the file of a module; None where no file has it, as in a notebook, or it is not here.

    What that module imports is not part of it. Neither it nor a package that holds it is imported.
    """
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        with current_directory_first():
            found = _spec_of(module)
        file = None if found is None else found.origin
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else None


def _spec_of(module: str) -> ModuleSpec | None:
    """Where a module would be imported from; importlib's own function imports the packages that hold it."""
    top, *inner = module.split(".")
    try:
        found = importlib.util.find_spec(top)
    except ValueError:  # a module without a place, such as that of a script
        return None
    for name in inner:
        if found is None or found.submodule_search_locations is None:
            return None
        found = PathFinder.find_spec(name, [*found.submodule_search_locations])
    return found


def exists(module: str) -> bool:
    """Whether there is a module of this name, here or on Python's path; its parents are not imported."""
    with current_directory_first():
        return importlib.util.find_spec(module.split(".")[0]) is not None


def find(argument: str, where: Address, what: str = "function") -> Any:
    """Import a module, found as `python` would from the current directory, and take an object out of it.

    Args:
        argument: what errors are about: "classifier".
        where: the object.
        what: what it is to be, as errors call it.

    Raises:
        ValueError: no such module or object, or an exception while it is imported.
    """
    module, name = where
    with current_directory_first():
        if _is_standard(module):
            raise ArgumentError(
                argument, f"expected a module of your own, got {module} of Python's standard library"
            )
        try:
            home = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
                raise ArgumentError(
                    argument, f"no module {error.name} in {Path.cwd()} or on Python's path (for {where})"
                ) from None
            raise ArgumentError(argument, f"importing {module} failed: {one_line(error)}") from None
        except (Exception, SystemExit) as error:  # it is the user's code
            raise _failed(argument, f"importing {module} failed", error) from error
    found = getattr(home, name, None)
    if not callable(found):
        raise ArgumentError(argument, f"module {module} has no {what} {name}")
    # Of what another module defines, neither the kind nor the hash of the code would be known.
    origin = getattr(found, "__module__", None)
    if origin != module:
        raise ArgumentError(
            argument,
            f"expected a {what} that {module} defines itself, got {where}, a {type(found).__name__} of"
            f" {origin or 'Python'}",
        )
    return found


def _is_standard(module: str) -> bool:
    """Whether a module is Python's own, and no file of the current directory."""
    top = module.partition(".")[0]
    if top not in sys.stdlib_module_names:
        return False
    found = importlib.util.find_spec(top)
    origin = None if found is None else found.origin
    return origin is None or not Path(origin).is_relative_to(Path.cwd())


def build(argument: str, where: Address) -> Any:
    """What a function of a user's module returns that takes no arguments.

    Raises:
        ValueError: as `find`, or the function takes arguments, or an exception in it.
    """
    function = find(argument, where)
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        raise ArgumentError(argument, f"expected a function of Python, got {where}") from None
    needed = [one.name for one in parameters if one.default is one.empty and one.kind not in several]
    if needed:
        raise ArgumentError(
            argument, f"expected a function without arguments, got {where}({', '.join(needed)})"
        )
    with failing(argument, f"{where}()"):
        return function()


@contextmanager
def failing(argument: str, what: str) -> Iterator[None]:
    """While the user's code runs: the current directory's modules come first, any exception is one line."""
    with current_directory_first():
        try:
            yield
        except (ArgumentError, MemoryError):
            raise
        except (Exception, SystemExit) as error:  # it is the user's code
            raise _failed(argument, f"{what} failed", error) from error


def _failed(argument: str, what: str, error: BaseException) -> ArgumentError:
    return ArgumentError(argument, f"{what}: {type(error).__name__}: {one_line(error)}")


@contextmanager
def current_directory_first() -> Iterator[None]:
    """Modules of the current directory are found first, as `python` finds them."""
    # Only for the import and the call, so that no file there shadows a library that loads later.
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
