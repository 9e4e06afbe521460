"""What a classifier's spec names, and its parts."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from diffproof.checks import unknown_name
from diffproof.classifiers import resnet
from diffproof.classifiers.libraries import LIBRARIES
from diffproof.errors import ArgumentError
from diffproof.files import expanded_spec, members
from diffproof.own_code import Address, plugin
from diffproof.weights import packaged

_CODE = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<function>[^\W\d]\w*)(@(?P<weights>.*))?")


class Kind(Enum):
    """What a spec names."""

    FILE = "weights file"
    LIBRARY = "library"
    RESNET = "CIFAR ResNet"
    CODE = "code"
    ENSEMBLE = "ensemble"


class Spec(NamedTuple):
    """A spec in its parts.

    Attributes:
        kind: what it names.
        family: the library, or the module.
        name: the file, model or function; of an ensemble the specs of its members.
        weights: what stands behind "@", None if nothing.
    """

    kind: Kind
    family: str
    name: str
    weights: str | None


def own_factories(spec: str) -> list[Address]:
    """The functions of a user's code, or of plug-ins, that a classifier's spec names.

    Raises:
        ValueError: as `parse`.
    """
    parsed = [parse(member) for member in members(spec)]
    return [Address(one.family, one.name) for one in parsed if one.kind is Kind.CODE]


def parse(spec: str) -> Spec:
    """Take a classifier's spec apart; see `load_classifier`.

    Raises:
        ValueError: it has none of the forms, or an unknown name.
    """
    files, spec = packaged("classifier"), expanded_spec(spec)
    if spec in files or Path(spec).is_file():
        return Spec(Kind.FILE, "", str(files.get(spec, spec)), None)
    if (parts := members(spec)) != [spec]:
        # Their commas would not be told from the others.
        if any(not part or part.startswith("ensemble:") for part in parts):
            raise ArgumentError(
                "classifier", f"expected ensemble:A,B,…, classifiers themselves, got {spec!r}"
            )
        return Spec(Kind.ENSEMBLE, "", spec.partition(":")[2], None)
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
    if declared := plugin("diffproof.classifiers", spec.partition("@")[0]):
        return Spec(Kind.CODE, declared.module, declared.name, spec.partition("@")[2] or None)
    if at:
        raise unknown_name("classifier", name, resnet.BLOCKS)
    if Path(spec).is_dir():
        raise ArgumentError(
            "classifier", f"{spec} is a folder; expected a file, or hf:{spec} for a transformers model"
        )
    if Path(spec).suffix == "" and "/" not in spec:
        prefixes = [f"{name}:" for name in (*LIBRARIES, "ensemble")]
        raise unknown_name("classifier", spec, [*files, *resnet.BLOCKS, *prefixes])
    return Spec(Kind.FILE, "", spec, None)
