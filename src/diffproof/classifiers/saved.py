"""Classifiers by name and by weights file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffproof.checks import unknown_name
from diffproof.classifiers.cnn import SmallCNN
from diffproof.classifiers.protocol import Classifier
from diffproof.weights import load_into, load_weights, packaged


def build_classifier(description: dict[str, Any]) -> Classifier:
    """The classifier that a weights file describes, with fresh weights.

    Raises:
        ValueError: the description is of something else, or incomplete.
    """
    if description.get("kind") != "classifier":
        raise ValueError(
            f"classifier: expected a file of `diffproof train classifier`, which describes its network;"
            f" this one describes {description.get('kind', 'nothing')}"
        )
    try:
        channels, height, width = description["image_shape"]
        num_classes = description["num_classes"]
        network = SmallCNN(channels, num_classes, description["width"])
        return Classifier(
            network,
            num_classes,
            image_shape=(channels, height, width),
            mean=description["mean"],
            std=description["std"],
        )
    except KeyError as error:
        raise ValueError(f"classifier: the weights file's description is incomplete: {error}") from None
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"classifier: the weights file's description is wrong: {error}") from None


def load_classifier(spec: str) -> Classifier:
    """A classifier, in evaluation mode.

    Args:
        spec: a packaged name ("digits"), or a .safetensors file written by `diffproof train classifier`.

    Raises:
        ValueError: unknown name, unreadable file, or weights that do not fit.
    """
    known = packaged("classifier")
    path = known.get(spec, Path(spec))
    if not path.exists() and path.suffix == "" and "/" not in spec:
        raise unknown_name("classifier", spec, known)
    tensors, description = load_weights(path)
    classifier = build_classifier(description)
    load_into(classifier.network, tensors, str(path))
    return classifier.eval()
