"""What the demo works with: data, networks by their specs, and defences of these by text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from diffproof.checks import loading
from diffproof.classifiers.base import Classifier
from diffproof.classifiers.named import load_classifier
from diffproof.data.classes import match_classes
from diffproof.data.images import ImageData
from diffproof.data.named import load_data
from diffproof.defenses.base import Defense
from diffproof.defenses.named import load_defense
from diffproof.denoisers.base import Denoiser
from diffproof.denoisers.named import load_denoiser
from diffproof.errors import ArgumentError
from diffproof.methods import describe, parse
from diffproof.runs.defense import with_levels


@dataclass(frozen=True)
class Networks:
    """The specs of the networks that a visitor of the page has chosen.

    Attributes:
        classifier: one of the studio's.
        denoiser: one of the studio's.
        guide: one of the studio's; None where it has none.
    """

    classifier: str
    denoiser: str
    guide: str | None = None


@dataclass(frozen=True)
class Studio:
    """Data and networks, loaded.

    Attributes:
        data: images with labels.
        classifiers: by their specs.
        denoisers: by their specs.
        guides: classifiers that guide a reverse process, by their specs; perhaps none.
        device: where the networks are.
    """

    data: ImageData
    classifiers: Mapping[str, Classifier]
    denoisers: Mapping[str, Denoiser]
    guides: Mapping[str, Classifier]
    device: torch.device
    _defenses: dict[tuple[str, Networks], Defense] = field(default_factory=dict, repr=False)

    @classmethod
    def load(
        cls,
        data: str,
        classifiers: Sequence[str],
        denoisers: Sequence[str],
        guides: Sequence[str] = (),
        *,
        device: torch.device,
        split: str | None = None,
        image_size: int | None = None,
        class_map: str | None = None,
    ) -> Studio:
        """Load all of it.

        Args:
            data: see `load_data`.
            classifiers: specs, at least one; see `load_classifier`.
            denoisers: specs, at least one; see `load_denoiser`.
            guides: specs; see `load_classifier`.
            device: where the networks are to be.
            split: see `load_data`.
            image_size: see `load_data`.
            class_map: see `match_classes`.

        Raises:
            ValueError: unreadable data or networks, other classes, or images of another size.
        """
        images = load_data(data, split, image_size=image_size)
        with loading("classifier"):
            answering = {spec: load_classifier(spec).to(device) for spec in classifiers}
        with loading("denoiser"):
            diffusion = {spec: load_denoiser(spec).to(device) for spec in denoisers}
        with loading("guide"):
            guiding = {spec: load_classifier(spec).to(device) for spec in guides}
        networks = (*diffusion.values(), *answering.values(), *guiding.values())
        images = images.fitting(*networks)
        for classifier in answering.values():
            images = match_classes(images, classifier, class_map)
        made = cls(images, answering, diffusion, guiding, device)
        for network in networks:
            shape: tuple[int, int, int] | None = getattr(network, "image_shape", None)
            if shape is not None and shape != images.image_shape:
                raise ArgumentError(
                    "data",
                    f"{images.name} has {_shown(images.image_shape)} images, a network takes {_shown(shape)}"
                    " (channels×height×width); an image size (--image-size) brings images to a square",
                )
        return made

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the pictures that the page works on."""
        return self.data.image_shape

    def class_name(self, label: int) -> str:
        """What a class is called."""
        names = self.data.class_names
        return names[label] if 0 <= label < len(names) else str(label)

    def defense(self, text: str, networks: Networks) -> Defense:
        """A defence of these networks; made once.

        Args:
            text: see `load_defense`.
            networks: its networks; those that it has no place for are left out.

        Raises:
            ValueError: unknown text or networks, or what does not fit together.
        """
        key = (text, networks)
        if key not in self._defenses:
            method = parse("defense", text)
            takes = describe("defense", method.name).takes
            denoiser = self.denoisers[networks.denoiser]
            guide = None if networks.guide is None else self.guides[networks.guide]
            classifier = self.classifiers[networks.classifier]
            given = {"classifier": classifier, "denoiser": denoiser, "guide": guide}
            load: Callable[..., Defense] = partial(load_defense, with_levels(method, denoiser))
            self._defenses[key] = load(**{name: given[name] for name in given if name in takes})
        return self._defenses[key]


def _shown(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
