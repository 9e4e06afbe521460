"""Classifiers of RobustBench's model zoo."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from diffproof.checks import unknown_name
from diffproof.classifiers.base import Classifier
from diffproof.classifiers.preprocessing import Interpolation, Resize
from diffproof.errors import ArgumentError
from diffproof.optional import import_optional, one_line
from diffproof.weights import only_data

_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_THREATS = ("Linf", "L2", "corruptions", "corruptions_3d")
# What the zoo's entries of ImageNet models name.
_RESIZES = {
    "Res256Crop224": Resize(256, (224, 224), round_crop=True, interpolation=Interpolation.BILINEAR),
    "BicubicRes256Crop224": Resize(256, (224, 224), round_crop=True),
    "Res224": Resize((224, 224), interpolation=Interpolation.BILINEAR),
}


def load(name: str, choice: str | None) -> Classifier:
    """A RobustBench model; normalisation is part of its network. Its weights lie in torch's hub folder and
    load as data only.

    Args:
        name: its name in the model zoo ("Carmon2019Unlabeled").
        choice: "dataset/threat" with dataset cifar10, cifar100 or imagenet and threat Linf, L2, corruptions
            or corruptions_3d; None for cifar10/Linf.

    Raises:
        ValueError: robustbench is missing, a name unknown, the weights not to be had or a pickle with
            code in it, or ImageNet images prepared in a way that is not supported.
    """
    dataset, _, threat = (choice or "cifar10/Linf").partition("/")
    if dataset not in _CLASSES:
        raise unknown_name("robustbench data set", dataset, _CLASSES)
    if threat not in _THREATS:
        raise unknown_name("robustbench threat model", threat, _THREATS)
    zoo = import_optional("robustbench", "robustbench")
    entries = import_optional("robustbench.model_zoo", "robustbench").model_dicts
    enums = import_optional("robustbench.model_zoo.enums", "robustbench")
    models = entries[enums.BenchmarkDataset(dataset)][enums.ThreatModel(threat)]
    if name not in models:
        raise unknown_name("robustbench model", name, models)
    resize = None
    if dataset == "imagenet":
        preparation = models[name].get("preprocessing")
        if preparation not in _RESIZES:
            raise ArgumentError(
                "robustbench", f"{name} prepares images by {preparation}, which is not supported"
            )
        resize = _RESIZES[preparation]
    folder = Path(torch.hub.get_dir()) / "robustbench"
    try:
        with only_data():
            network: nn.Module = zoo.load_model(name, model_dir=folder, dataset=dataset, threat_model=threat)
    except MemoryError:
        raise
    except Exception as error:  # a failed download, a damaged file, …
        raise ArgumentError("robustbench", f"cannot load {name!r}: {one_line(error)}") from None
    return Classifier(
        network,
        _CLASSES[dataset],
        image_shape=None if resize else (3, 32, 32),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        resize=resize,
    )
