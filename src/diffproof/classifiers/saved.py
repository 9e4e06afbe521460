"""Weights files of classifiers: trained ones, and fine-tuned copies of any other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffproof.checks import check_at_least, check_class_names, check_flag, renamed
from diffproof.classifiers import huggingface, hybrid, resnet
from diffproof.classifiers.base import Classifier
from diffproof.classifiers.cnn import SmallCNN
from diffproof.classifiers.libraries import LIBRARIES
from diffproof.classifiers.spec import Kind, parse
from diffproof.errors import ArgumentError
from diffproof.weights import load_into, load_weights, no_larger_than


def build_classifier(description: dict[str, Any]) -> Classifier:
    """The classifier that a weights file describes, with fresh weights or those of its base.

    Args:
        description: "kind" must be "classifier". With "base", the spec of another classifier, that one is
            loaded; with "architecture", a CIFAR ResNet or a HybridViT is built; otherwise a SmallCNN.
            "class_names" name its classes, where it has them.

    Raises:
        ValueError: the description is of something else, or incomplete, or its base is not to be had.
    """
    if description.get("kind") != "classifier":
        raise ArgumentError(
            "classifier",
            "expected a file of `diffproof train classifier`, which describes its network;"
            f" this one describes {description.get('kind', 'nothing')}",
        )
    classifier = _load_base(description) if "base" in description else _build_own(description)
    if "class_names" in description:
        with renamed({"class_names": "classifier"}):
            classifier.class_names = check_class_names(description["class_names"], classifier.num_classes)
    return classifier


# Classes and channels beyond these are of no network, and torch says so in words of its memory.
_MOST = 2**20


def _build_own(description: dict[str, Any]) -> Classifier:
    try:
        num_classes = check_at_least("num_classes", description["num_classes"], 2, _MOST)
        if description.get("architecture") == hybrid.NAME:
            network, size = hybrid.build(description)
            return hybrid.HybridClassifier(network, num_classes, description["image_shape"], size)
        if "architecture" in description:
            return resnet.build(description["architecture"], num_classes)
        channels, height, width = description["image_shape"]
        first = check_at_least("width", description["width"], 1, _MOST)
        batch_norm = check_flag("batch_norm", description.get("batch_norm", True))
        depth = check_at_least("channels", channels, 1, _MOST)
        return Classifier(
            SmallCNN(depth, num_classes, first, batch_norm=batch_norm),
            num_classes,
            image_shape=(channels, height, width),
            mean=description["mean"],
            std=description["std"],
        )
    except KeyError as error:
        raise ArgumentError("classifier", f"the weights file's description is incomplete: {error}") from None
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ArgumentError("classifier", f"the weights file's description is wrong: {error}") from None


def _load_base(description: Mapping[str, Any]) -> Classifier:
    spec, files = description["base"], description.get("files")
    if not isinstance(spec, str):
        raise ArgumentError("classifier", f"the weights file's base is no text: {spec!r}")
    kind, family, name, weights = parse(spec)
    if kind is Kind.CODE:
        # A file of tensors must not choose which code runs.
        raise ArgumentError(
            "classifier",
            f"the weights file holds weights of {spec}, which is code; if you trust that code,"
            f" give {spec.partition('@')[0]}@FILE",
        )
    if kind is not Kind.LIBRARY:
        raise ArgumentError("classifier", f"the weights file's base {spec!r} is no library's classifier")
    if family == "hf" and files is not None:
        if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
            raise ArgumentError("classifier", f"the weights file's files of {spec!r} are no texts by name")
        return huggingface.build(files, f"the configuration of {spec}").eval()
    try:
        return LIBRARIES[family](name, weights).eval()
    except ArgumentError as error:
        raise ArgumentError(
            "classifier",
            f"the weights file holds changed weights of {spec}, which must be there, too (or its folder"
            f" beside the weights file): {error}",
        ) from None


def describe_base(spec: str) -> dict[str, Any]:
    """What the description of a weights file must hold for a changed copy of classifier `spec` to load.

    The file then holds the state dict of the copy's `Classifier.network`. Copies of weights files and CIFAR
    ResNets load without the original's file; so do those of "hf:", whose configuration they hold; those of
    other libraries' classifiers load the original first; those of code load as "module.path:factory@FILE".

    Raises:
        ValueError: unknown or unreadable spec.
    """
    parsed = parse(spec)
    if parsed.kind is Kind.FILE:
        description = load_weights(Path(parsed.name)).description
        build_classifier(description)
        return {name: value for name, value in description.items() if name in _STRUCTURE}
    if parsed.kind is Kind.ENSEMBLE:
        raise ArgumentError("classifier", f"expected one network to train further, got {spec!r}")
    if parsed.kind is Kind.RESNET:
        classes = resnet.load(parsed.name, Path(parsed.weights or "")).num_classes
        return {"kind": "classifier", "architecture": parsed.name, "num_classes": classes}
    if parsed.family == "hf" and Path(parsed.name).expanduser().is_dir():
        # The copy may be loaded from elsewhere.
        spec = f"hf:{Path(parsed.name).expanduser().resolve()}"
    if parsed.family == "hf":
        return {"kind": "classifier", "base": spec, "files": huggingface.configuration(parsed.name)}
    return {"kind": "classifier", "base": spec}


_STRUCTURE = (
    *("kind", "base", "files", "architecture", "image_shape"),
    *("num_classes", "class_names", "width", "mean", "std", "batch_norm", "patch", "depth", "heads"),
)


def load(path: Path) -> Classifier:
    """The classifier of a weights file.

    Raises:
        ValueError: unreadable file, no description of a classifier, or weights that do not fit.
    """
    tensors, description = load_weights(path)
    family, _, folder = str(description.get("base")).partition(":")
    beside = path.parent / Path(folder).name
    if family == "hf" and not Path(folder).expanduser().is_dir() and beside.is_dir():
        description["base"] = f"hf:{beside}"
    with no_larger_than(sum(tensor.numel() for tensor in tensors.values())):
        classifier = build_classifier(description)
    load_into(classifier.network, tensors, str(path))
    return classifier
