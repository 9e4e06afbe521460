"""Classifiers that a user's own code builds."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from diffproof.classifiers.base import Classifier
from diffproof.errors import ArgumentError
from diffproof.own_code import Address, build
from diffproof.weights import load_into, load_weights
from diffproof.wording import kind_of


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
    where = Address(module, name)
    classifier = _as_classifier(build("classifier", where), str(where))
    classifier.address = str(where)
    if weights is not None:
        load_into(classifier.network, load_weights(Path(weights)).tensors, weights)
    return classifier


def _as_classifier(built: object, spec: str) -> Classifier:
    if isinstance(built, Classifier):
        return built
    num_classes = getattr(built, "num_classes", None)
    if not isinstance(built, nn.Module) or not isinstance(num_classes, int):
        raise ArgumentError(
            "classifier",
            f"{spec}() returned {kind_of(built)}, expected a torch module with num_classes;"
            " or wrap it as diffproof.Classifier(module, num_classes, mean=…, std=…)",
        )
    return Classifier(built, num_classes)
