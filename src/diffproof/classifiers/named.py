"""Classifiers by name: packaged ones, weights files, libraries, CIFAR ResNets, a user's own code."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from diffproof.checks import unknown_name
from diffproof.classifiers import factory, huggingface, resnet, robustbench, saved, timm, torchvision
from diffproof.classifiers.base import Classifier
from diffproof.errors import ArgumentError
from diffproof.weights import packaged

# LIBRARY:NAME[@WEIGHTS]
LIBRARIES: dict[str, Callable[[str, str | None], Classifier]] = {
    "hf": lambda name, _: huggingface.load(name),
    "timm": timm.load,
    "torchvision": torchvision.load,
    "robustbench": robustbench.load,
}
_CODE = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<function>[^\W\d]\w*)(@(?P<weights>.*))?")


class Kind(Enum):
    """What a spec names."""

    FILE = "weights file"
    LIBRARY = "library"
    RESNET = "CIFAR ResNet"
    CODE = "code"


class Spec(NamedTuple):
    """A spec in its parts.

    Attributes:
        kind: what it names.
        family: the library, or the module. name: the file, model or function.
        weights: what stands behind "@", None if nothing.
    """

    kind: Kind
    family: str
    name: str
    weights: str | None


def parse(spec: str) -> Spec:
    """Take a classifier's spec apart; see `load_classifier`.

    Raises:
        ValueError: it has none of the forms, or an unknown name.
    """
    files = packaged("classifier")
    if spec in files or Path(spec).is_file():
        return Spec(Kind.FILE, "", str(files.get(spec, spec)), None)
    name, at, weights = spec.partition("@")
    if name in resnet.BLOCKS:
        if not weights:
            raise ArgumentError("classifier", f"expected {name}@FILE, got {spec!r}")
        return Spec(Kind.RESNET, "", name, weights)
    if spec.endswith(".safetensors") and ":" not in spec:
        return Spec(Kind.FILE, "", spec, None)
    family, colon, rest = spec.partition(":")
    if colon and family in LIBRARIES:
        name, at, weights = (rest, "", "") if family == "hf" else rest.partition("@")
        if not name or (at and not weights):
            raise ArgumentError("classifier", f"expected {family}:NAME, got {spec!r}")
        return Spec(Kind.LIBRARY, family, name, weights or None)
    if match := _CODE.fullmatch(spec):
        return Spec(Kind.CODE, match["module"], match["function"], match["weights"] or None)
    if at:
        raise unknown_name("classifier", name, resnet.BLOCKS)
    if Path(spec).is_dir():
        raise ArgumentError(
            "classifier", f"{spec} is a folder; expected a file, or hf:{spec} for a transformers model"
        )
    if Path(spec).suffix == "" and "/" not in spec:
        raise unknown_name("classifier", spec, [*files, *resnet.BLOCKS, *(f"{name}:" for name in LIBRARIES)])
    return Spec(Kind.FILE, "", spec, None)


def load_classifier(spec: str) -> Classifier:
    """A classifier, in evaluation mode.

    Args:
        spec: one of
            a packaged name ("digits");
            a .safetensors file of `diffproof train classifier` or `diffproof finetune`;
            "hf:FOLDER" or "hf:HUB_ID", an image classifier of transformers;
            "timm:NAME[@FILE]", "torchvision:NAME[@WEIGHTS]", "robustbench:NAME[@DATASET/THREAT]";
            "resnet20@FILE" (or 32, 44, 56, 110), a CIFAR ResNet;
            "module.path:factory[@FILE]", your own code, which runs.

    Raises:
        ValueError: unknown name, missing library, unreadable file, weights that do not fit, code that fails.
    """
    kind, family, name, weights = parse(spec)
    if kind is Kind.FILE:
        classifier = saved.load(Path(name))
    elif kind is Kind.RESNET:
        classifier = resnet.load(name, Path(weights or ""))
    elif kind is Kind.LIBRARY:
        classifier = LIBRARIES[family](name, weights)
    else:
        classifier = factory.load(family, name, weights)
    return classifier.eval()
