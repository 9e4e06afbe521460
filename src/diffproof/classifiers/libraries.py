"""Classifiers of other libraries, by the name of the library."""

from __future__ import annotations

from collections.abc import Callable

from diffproof.classifiers import huggingface, robustbench, timm, torchvision
from diffproof.classifiers.base import Classifier

# LIBRARY:NAME[@WEIGHTS]
LIBRARIES: dict[str, Callable[[str, str | None], Classifier]] = {
    "hf": lambda name, _: huggingface.load(name),
    "timm": timm.load,
    "torchvision": torchvision.load,
    "robustbench": robustbench.load,
}
