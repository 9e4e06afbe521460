"""What networks were trained on, as their weights files tell it, and which images are among it."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from diffproof.checks import loading
from diffproof.data.images import ImageData
from diffproof.data.indices import choose, hold_out
from diffproof.errors import ArgumentError
from diffproof.fields import check_fields
from diffproof.files import expanded, members
from diffproof.formats import Format, format_of
from diffproof.weights import hash_tensors, load_weights

# Images, evenly spaced, that tell data from other data of the same name.
_FEW = 16
# Most images that are decoded to be compared, evenly spaced.
_COMPARED = 5000
_UNREADABLE = "unreadable"
# Data set, split and number of images that the packaged networks, whose files do not tell, were trained on.
_PACKAGED = {"digits": ("digits", "train", 1_283), "cifar10": ("uoft-cs/cifar10", "train", 50_000)}


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """Images of a data set, told by how they were chosen.

    Attributes:
        data: its name.
        split: which split of it.
        count: images that the split has.
        labels: SHA-256 of all their labels.
        images: SHA-256 of a few of them.
        image_size: the size that they were brought to, None for their own.
        indices: see `choose`.
        per_class: see `choose`.
        limit: see `choose`.
        holdout: share of what was chosen that was held out; None for nothing.
        seed: of the choice.
    """

    data: str
    split: str
    count: int
    labels: str
    images: str
    image_size: int | None = None
    indices: str | None = None
    per_class: int | None = None
    limit: int | None = None
    holdout: float | None = None
    seed: int = 0

    @classmethod
    def of(cls, whole: ImageData, image_size: int | None, **choice: Any) -> Self:
        """The record of a choice among all images of a split, as they are read.

        Args:
            whole: those.
            image_size: the size that they were brought to.
            choice: the other fields.
        """
        few = [_hashed(whole, index) for index in range(0, len(whole), max(1, len(whole) // _FEW))]
        return cls(
            data=whole.name,
            split=whole.split,
            count=len(whole),
            labels=hash_tensors({"labels": whole.labels}),
            images=hashlib.sha256("".join(few).encode()).hexdigest(),
            image_size=image_size,
            **choice,
        )

    @classmethod
    def from_dict(cls, found: Any) -> Self:
        """The inverse of `as_dict`, for what a file holds.

        Raises:
            ValueError: it is none.
        """
        try:
            return cls(**check_fields(cls, found))
        except ValueError as error:
            raise ArgumentError("weights", f"what they tell of their training is damaged: {error}") from None

    def as_dict(self) -> dict[str, Any]:
        """All fields that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def parted(self, whole: ImageData) -> tuple[list[int], list[int]]:
        """Indices of the images that were trained on, and of those held out.

        Raises:
            ValueError: see `choose` and `hold_out`.
        """
        chosen = choose(
            whole.labels, indices=self.indices, per_class=self.per_class, limit=self.limit, seed=self.seed
        )
        if self.holdout is None:
            return chosen, []
        return hold_out(whole.labels, chosen, self.holdout, self.seed)

    def same_data(self, other: TrainedOn) -> bool:
        """Whether two records are of the same images; of other sizes, as far as names and labels tell."""
        if (self.count, self.labels) != (other.count, other.labels):
            return False
        if self.image_size == other.image_size:
            return self.images == other.images
        return (self.data, self.split) == (other.data, other.split)


def shared_images(data: ImageData, *others: ImageData | None) -> int:
    """How many images of a data set are among others, pixel by pixel; of each, at most 5,000 are looked at.

    Args:
        data: the images.
        others: those that they may be among.
    """
    known = {_hashed(one, index) for one in others if one is not None for index in _compared(one)}
    return sum(_hashed(data, index) in known - {_UNREADABLE} for index in _compared(data))


def _compared(data: ImageData) -> range:
    return range(0, len(data), -(-len(data) // _COMPARED))


def _hashed(data: ImageData, index: int) -> str:
    try:
        return hash_tensors({"image": data.pixels[index]})
    except ArgumentError:
        # Whether it may be left out is for those to say who need it.
        return _UNREADABLE


def records_of(spec: str | None) -> list[TrainedOn]:
    """What the weights file that a network's spec names tells of its training; nothing where it tells none.

    Raises:
        ValueError: an unreadable file, or a damaged record.
    """
    if spec is None:
        return []
    if (parts := members(spec)) != [spec]:
        return [record for part in parts for record in records_of(part)]
    # A file's own name may have an "@", too.
    named = (expanded(spec), expanded(spec.partition("@")[2]))
    # Of names that no system can have, isfile says no.
    path = next((path for path in named if os.path.isfile(path)), None)
    if path is None or format_of(path) is not Format.SAFETENSORS:
        return []
    training = load_weights(path).description.get("training")
    found = training.get("images", []) if isinstance(training, Mapping) else []
    if not isinstance(found, list):
        raise ArgumentError("weights", f"{path}: what it tells of its training is damaged")
    return [TrainedOn.from_dict(one) for one in found]


def trained_on(
    whole: ImageData, image_size: int | None, networks: Mapping[str, str | None]
) -> dict[str, set[int]]:
    """Which images of a split each network was trained on, of those that tell.

    A warning says where a network was trained on other images of the same name.

    Args:
        whole: the split, as it is read.
        image_size: the size that its images were brought to.
        networks: specs by what they are called, such as "classifier".

    Raises:
        ValueError: see `records_of`.
    """
    found: dict[str, set[int]] = {}
    for name, spec in networks.items():
        parts = [] if spec is None else members(spec)
        if any(_PACKAGED.get(part) == (whole.name, whole.split, len(whole)) for part in parts):
            found[name] = set(range(len(whole)))
            continue
        with loading(name):
            records = records_of(spec)
        for record in records:
            if (record.data, record.split) != (whole.name, whole.split) and record.count != len(whole):
                continue
            if record.same_data(TrainedOn.of(whole, image_size)):
                found.setdefault(name, set()).update(record.parted(whole)[0])
            elif (record.data, record.split) == (whole.name, whole.split):
                warnings.warn(
                    f"{name}: it was trained on other images called {whole.name} ({whole.split});"
                    " whether some of these are among them is not known",
                    stacklevel=3,
                )
    return found
