"""What every run over images loads first: the images, their indices, the device."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TypeVar

import torch

from diffproof.checks import unknown_name
from diffproof.classifiers.base import Classifier, check_class_count, check_classes
from diffproof.data.images import ImageData
from diffproof.data.indices import parse_indices
from diffproof.data.named import load_data
from diffproof.defenses.base import Defense
from diffproof.errors import ArgumentError
from diffproof.runs.settings import DEVICES, RunSettings

S = TypeVar("S", bound=RunSettings)


def load_images(settings: S) -> tuple[S, ImageData, list[int]]:
    """The settings with the split that the data has, the data, and the indices of the run's images.

    Raises:
        ValueError: no such data, split or images.
    """
    data = load_data(settings.data, settings.split, image_size=settings.image_size)
    spec = f"0:{len(data)}" if settings.indices is None else settings.indices
    indices = parse_indices(spec, len(data))[: settings.limit]
    return replace(settings, split=data.split), data, indices


def check_classes_of(defense: Defense, data: ImageData) -> None:
    """Raise ValueError unless the classes that a defence answers with can be those of the data.

    Warn of a diffusion model that classifies into more.
    """
    part, names, named = defense.classifier, data.class_names, data.classes_named
    if isinstance(part, Classifier):
        check_classes(part, names, classes_named=named, source=data.name)
    else:
        # The diffusion model classifies, whose labels have no names.
        check_class_count("denoiser", defense.num_classes, names, classes_named=named, source=data.name)
        if defense.num_classes > len(names):
            warnings.warn(
                f"data has {len(names)} classes, the denoiser {defense.num_classes}: it chooses among all of"
                " its own, and the data's labels are taken for the first of them",
                stacklevel=3,
            )


def resolve_device(name: str) -> torch.device:
    """The device of a --device value: auto takes CUDA where there is one.

    Raises:
        ValueError: another name, or cuda without a CUDA device.
    """
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES)
    if name == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("device", "no CUDA device is available; expected cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def first_line(error: Exception) -> str:
    """The first line of what torch has to say about an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
