"""Several classifiers as one: the sum of their logits (Horváth et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffproof.classifiers.base import Classifier
from diffproof.errors import ArgumentError


class EnsembleClassifier(Classifier):
    """The sum of the logits of classifiers, each with its own resizing, normalisation and precision.

    Args:
        members: two or more, with the same classes, for the same images.

    Raises:
        ValueError: fewer than two, or members of other classes or other images.
    """

    def __init__(self, members: Sequence[Classifier]) -> None:
        if len(members) < 2:
            raise ArgumentError(
                "classifier", f"expected two members or more of an ensemble, got {len(members)}"
            )
        first = members[0]
        for name in ("num_classes", "image_shape", "channels", "class_names"):
            known = [value for one in members if (value := getattr(one, name)) is not None]
            other = next((value for value in known if value != known[0]), None)
            if other is not None:
                raise ArgumentError(
                    "classifier", f"the members of an ensemble have {_WORDS[name]} {known[0]} and {other}"
                )
        names = next((one.class_names for one in members if one.class_names is not None), None)
        super().__init__(nn.ModuleList(members), first.num_classes, class_names=names)
        self.image_shape = next((one.image_shape for one in members if one.image_shape is not None), None)
        self.channels = next((one.channels for one in members if one.channels is not None), None)

    @property
    def members(self) -> list[Classifier]:
        """The classifiers, in order."""
        assert isinstance(self.network, nn.ModuleList)
        return [one for one in self.network if isinstance(one, Classifier)]

    def describe(self) -> str:
        """What defines the function besides its tensors."""
        return f"sum of logits of [{'] and ['.join(one.describe() for one in self.members)}]"

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The largest (height, width) at which a member sees an image of height × width."""
        sizes = [one.input_size(height, width) for one in self.members]
        return max(sizes, key=lambda size: size[0] * size[1])

    def forward(self, images: Tensor) -> Tensor:
        """Logits N×num_classes of images N×C×H×W; differentiable. Raises what a member does."""
        return torch.stack([one(images) for one in self.members]).sum(0)


_WORDS = {
    "num_classes": "numbers of classes",
    "image_shape": "images",
    "channels": "channels",
    "class_names": "classes",
}
