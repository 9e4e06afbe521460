"""What every run over images loads first: the images, their indices, the device."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import replace
from typing import TypeVar

import torch

from diffproof.classifiers.base import Classifier
from diffproof.data.classes import check_names, match_classes
from diffproof.data.images import ImageData
from diffproof.data.indices import choose
from diffproof.data.named import load_data
from diffproof.data.trained_on import trained_on
from diffproof.defenses.base import Defense
from diffproof.errors import ArgumentError
from diffproof.runs.flags import check_device
from diffproof.runs.settings import RunSettings
from diffproof.runs.shards import check_images

S = TypeVar("S", bound=RunSettings)


def load_images(settings: S) -> tuple[S, ImageData, list[int]]:
    """The settings with the split that the data has, the data, and the indices of the run's images.

    A warning says how many of them the networks were trained on, where their weights files tell.

    Raises:
        ValueError: no such data, split or images, or none that was held out of training.
    """
    data = load_data(settings.data, settings.split, image_size=settings.image_size)
    networks = {
        name: getattr(settings, name, None) for name in ("classifier", "denoiser", "guide", "chooser")
    }
    known = trained_on(data, settings.image_size, networks)
    if settings.held_out and not known:
        raise ArgumentError(
            "held_out",
            f"no weights file here tells that it was trained on {data.name} ({data.split}); take the split"
            " that one was trained on, or all of this one, without the flag",
        )
    trained = set().union(*known.values())
    indices = choose(
        data.labels,
        indices=settings.indices,
        per_class=settings.per_class,
        limit=settings.limit,
        seed=settings.choice_seed,
        without=trained if settings.held_out else (),
    )
    if not indices:
        raise ArgumentError("held_out", f"{_who(known)} trained on all of these images")
    seen = {name: among for name, among in known.items() if among.intersection(indices)}
    if seen:
        count = len(set().union(*seen.values()).intersection(indices))
        warnings.warn(
            f"data: {count} of {len(indices)} images are among those that {_who(seen)} trained on;"
            " --held-out leaves them out",
            stacklevel=3,
        )
    if settings.seed_drawn and (settings.per_class or settings.limit):
        # By their numbers: who repeats the run gives its seed, which would choose others.
        settings = settings.of_images(indices)
    if settings.skip_unreadable:
        data, indices = data.skipping(indices)
    check_images(settings.shard, len(indices))
    return replace(settings, split=data.split), data, indices


def _who(networks: Collection[str]) -> str:
    return " and ".join(f"the {name}" for name in networks) + (" was" if len(networks) == 1 else " were")


def classes_for(defense: Defense, data: ImageData, settings: RunSettings) -> ImageData:
    """The data with the labels that a defence's answers are compared with; see `match_classes`.

    Raises:
        ValueError: the classes that the defence answers with cannot be those of the data.
    """
    guide = getattr(getattr(defense, "guide", None), "class_names", None)
    if guide is not None and data.classes_named and settings.class_map is None:
        check_names("guide", guide, data.class_names, data.name)
    if isinstance(defense.classifier, Classifier):
        return match_classes(data, defense.classifier, settings.class_map)
    # The diffusion model classifies.
    model = getattr(defense, "denoiser", None) or defense
    return match_classes(data, model, settings.class_map, owner="denoiser")


def resolve_device(name: str) -> torch.device:
    """The device of a --device value: auto takes CUDA where there is one.

    Raises:
        ValueError: another name, or a device that is not here.
    """
    check_device(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    if name.startswith("cuda") and int(name.partition(":")[2] or 0) >= count:
        there = f"only {count} of them, from cuda:0" if count else "no CUDA device"
        raise ArgumentError("device", f"there is {there}, got {name!r}; cpu and auto always work")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ArgumentError("device", "there is no Metal device (mps); cpu and auto always work")
    return torch.device(name)


def first_line(error: Exception) -> str:
    """The first line of what torch has to say about an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
