"""Classifiers that a user's own code builds."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from diffproof.classifiers.base import Classifier
from diffproof.classifiers.optional import one_line
from diffproof.errors import ArgumentError
from diffproof.weights import load_into, load_weights


def load(module: str, name: str, weights: str | None) -> Classifier:
    """Import a module and call a function of it. It runs as your code, with all that your code may do.

    Args:
        module: found as `python` would from the current directory ("package.models").
        name: a function without arguments, that returns a diffproof.Classifier, or a torch module from
            [0, 1] pixels to logits with an attribute `num_classes`.
        weights: a state dict of that module, or of the Classifier's network; None leaves it as it is.

    Raises:
        ValueError: no such module or function, an exception in either, something else returned, or weights
            that do not fit.
    """
    spec = f"{module}:{name}"
    with _current_directory_first():
        try:
            home = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
                raise ArgumentError(
                    "classifier", f"no module {error.name} in {Path.cwd()} or on Python's path (for {spec})"
                ) from None
            raise ArgumentError("classifier", f"importing {module} failed: {one_line(error)}") from None
        except Exception as error:  # it is the user's code
            raise _failed(f"importing {module} failed", error) from error
        if not callable(getattr(home, name, None)):
            raise ArgumentError("classifier", f"module {module} has no function {name}")
        try:
            built = getattr(home, name)()
        except MemoryError:
            raise
        except Exception as error:
            raise _failed(f"{spec}() failed", error) from error
    classifier = _as_classifier(built, spec)
    if weights is not None:
        load_into(classifier.network, load_weights(Path(weights)).tensors, weights)
    return classifier


def _failed(what: str, error: Exception) -> ArgumentError:
    return ArgumentError("classifier", f"{what}: {type(error).__name__}: {one_line(error)}")


def _as_classifier(built: object, spec: str) -> Classifier:
    if isinstance(built, Classifier):
        return built
    num_classes = getattr(built, "num_classes", None)
    if not isinstance(built, nn.Module) or not isinstance(num_classes, int):
        raise ArgumentError(
            "classifier",
            f"{spec}() returned {type(built).__name__}, expected a torch module with num_classes;"
            " or wrap it as diffproof.Classifier(module, num_classes, mean=…, std=…)",
        )
    return Classifier(built, num_classes)


@contextmanager
def _current_directory_first() -> Iterator[None]:
    # Only for the import and the call, so that no file there shadows a library that loads later.
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
