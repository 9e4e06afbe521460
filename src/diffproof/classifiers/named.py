"""Classifiers by name: packaged ones, weights files, libraries, CIFAR ResNets, a user's own code."""

from __future__ import annotations

from pathlib import Path

from diffproof.checks import check_source
from diffproof.classifiers import factory, resnet, saved
from diffproof.classifiers.base import Classifier
from diffproof.classifiers.ensemble import EnsembleClassifier
from diffproof.classifiers.libraries import LIBRARIES
from diffproof.classifiers.spec import Kind, parse
from diffproof.data.classes import PACKAGED
from diffproof.files import members, named, warn_of_path
from diffproof.weights import packaged


@named("classifier")
def load_classifier(spec: str) -> Classifier:
    """A classifier, in evaluation mode.

    Args:
        spec: one of
            a packaged name ("digits");
            a .safetensors file of `diffproof train classifier` or `diffproof finetune`;
            "hf:FOLDER" or "hf:HUB_ID", an image classifier of transformers;
            "timm:NAME[@FILE]", "torchvision:NAME[@WEIGHTS]", "robustbench:NAME[@DATASET/THREAT]";
            "ensemble:A,B,…", the sum of the logits of two of these or more, whose specs have no commas;
            "resnet20@FILE" (or 32, 44, 56, 110), a CIFAR ResNet;
            "module.path:factory[@FILE]", your own code, which runs.

    Raises:
        ValueError: unknown name, missing library, unreadable file, weights that do not fit, code that fails.
    """
    kind, family, name, weights = parse(check_source("classifier", spec))
    if spec in packaged("classifier"):
        warn_of_path("classifier", spec, "the packaged classifier")
    if kind is Kind.FILE:
        classifier = saved.load(Path(name))
        if classifier.class_names is None and spec in packaged("classifier"):
            classifier.class_names = PACKAGED[spec]
    elif kind is Kind.ENSEMBLE:
        classifier = EnsembleClassifier([load_classifier(member) for member in members(spec)])
    elif kind is Kind.RESNET:
        classifier = resnet.load(name, Path(weights or ""))
    elif kind is Kind.LIBRARY:
        classifier = LIBRARIES[family](name, weights)
    else:
        classifier = factory.load(family, name, weights)
    return classifier.eval()
