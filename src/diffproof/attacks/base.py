"""What every attack is: settings, and a `run` whose result for an image depends on that image alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from diffproof.attacks.losses import Loss
from diffproof.attacks.result import AttackResult
from diffproof.attacks.threat import Threat
from diffproof.attacks.views import AttackedDefense, GradientMode
from diffproof.checks import (
    MOST_ROWS,
    check_at_least,
    check_device,
    check_pixels,
    check_shape,
)
from diffproof.classifiers.base import check_labels
from diffproof.defenses.repeatability import check_repeatable, check_unchanged, weights_of
from diffproof.errors import ArgumentError
from diffproof.noise import check_image_indices, check_seed

# More iterations, or draws of one, would run for years or take gigabytes. Both together are below 2^32.
MOST_GRADIENTS = 50_000


@dataclass(frozen=True)
class Job:
    """What an attack is run on, checked.

    Attributes:
        view: the defence as the attack sees it.
        images: N×C×H×W in [0, 1].
        labels: N int64 on their device.
        image_indices: N int64 on the CPU.
        seed: see Attack.run.
        batch_size: see Attack.run.
    """

    view: AttackedDefense
    images: Tensor
    labels: Tensor
    image_indices: Tensor
    seed: int
    batch_size: int

    @property
    def images_at_once(self) -> int:
        """How many images, repeats included, the defence takes in a batch of so many rows; at least one."""
        return self.view.images_at_once(self.batch_size)


@dataclass(frozen=True)
class Traits:
    """What the diagnostics ask of an attack.

    Attributes:
        loss: what it raises; None for an attack that asks for no gradient.
        eot: draws of noise a gradient.
        iterations: gradients it asks for, or evaluations where it asks for none.
        effort: the settings that make it stronger.
        averaging: what makes it average over draws of noise.
    """

    loss: Loss | None
    eot: int
    iterations: int
    effort: str = "iterations and eot"
    averaging: str = "raise its eot"


@dataclass(frozen=True)
class Attack:
    """The settings of an attack. Subclasses write `find`."""

    # What `diffproof.methods` asks a class.
    kind: ClassVar[str] = "attack"

    name: ClassVar[str]
    # The threat models it can stay within, and whether it differentiates the defence.
    threats: ClassVar[tuple[type[Threat], ...]]
    needs_gradient: ClassVar[bool] = True

    def check(self, view: AttackedDefense, threat: Threat) -> None:
        """Raise ValueError if the attack cannot be run on this defence, or cannot stay within the threat."""
        if not isinstance(threat, self.threats):
            known = ", ".join(sorted(kind.name for kind in self.threats))
            raise ArgumentError("threat", f"{self.name} attacks within {known}, got {threat.name}")
        if not self.needs_gradient and view.gradient in (GradientMode.BPDA, GradientMode.ADJOINT):
            raise ArgumentError("gradient", f"{self.name} follows none, so {view.gradient} does nothing")

    def traits(self) -> Traits:
        """What the diagnostics ask of the attack: by its settings loss, eot, iterations where it has them."""
        loss = Loss(getattr(self, "loss", Loss.CE)) if self.needs_gradient else None
        return Traits(loss, self.repeats, int(getattr(self, "iterations", 1)))

    @property
    def repeats(self) -> int:
        """Draws of noise that it evaluates an image under at once."""
        return int(getattr(self, "eot", None) or 1)

    def most_draws(self, result: AttackResult, num_classes: int) -> int:
        """How many draws of noise the attack would have seen of this image if it had found nothing."""
        return result.draws

    def most_evaluations(self, num_classes: int) -> tuple[int, int]:
        """Forwards and backwards, see AttackResult, that it spends on an image that is never wrong."""
        traits = self.traits()
        steps = traits.iterations * traits.eot
        return steps + traits.eot, steps if self.needs_gradient else 0

    def images_at_once(self, batch_size: int) -> int:
        """How many images fill a batch of so many rows; at least one."""
        return max(1, batch_size // self.repeats)

    def of_fixed_noise(self) -> Attack:
        """The attack on a defence whose noise is fixed: one draw a gradient, since all were the same."""
        has_eot = any(one.name == "eot" for one in fields(self))
        return replace(self, eot=1) if has_eot and self.repeats > 1 else self  # type: ignore[call-arg]

    def find(self, job: Job, threat: Threat) -> list[AttackResult]:
        """A result an image. Written by subclasses."""
        raise TypeError(f"{type(self).__name__} does not define find()")

    def run(
        self,
        view: AttackedDefense,
        images: Tensor,
        labels: Tensor,
        *,
        threat: Threat,
        seed: int,
        image_indices: Sequence[int],
        batch_size: int,
    ) -> list[AttackResult]:
        """Attack images, one result each.

        Args:
            view: the defence as the attack sees it.
            images: N×C×H×W in [0, 1].
            labels: N int64, the true ones.
            threat: one of `threats`.
            seed: in [0, 2^64). With an image's index it fixes all noise of the image: what the attack sees of
                a random defence, on a stream of its own, and random starts.
            image_indices: N integers in [0, 2^28), the images' numbers in their data set.
            batch_size: most rows in the networks at once, ≥ 1, repeats for the expectation over noise
                included, and a row for each class where a diffusion model classifies. It changes no result.

        Raises:
            ValueError: an argument is out of range, the attack cannot stay within the threat, the defence
                has no gradient that the attack needs, or it is in training mode.
        """
        self.check(view, threat)
        indices = check_arguments(view, images, labels, threat, image_indices, batch_size, seed)
        job = Job(view, images.detach(), labels.to(images.device), indices, seed, batch_size)
        began = weights_of(view.defense)
        found = self.find(job, threat)
        check_unchanged(view.defense, began)
        return found


def check_draws(iterations: int, eot: int) -> None:
    """Raise ValueError unless an attack can draw noise of its own for each gradient."""
    check_at_least("iterations", iterations, 1, MOST_GRADIENTS)
    check_at_least("eot", eot, 1, MOST_GRADIENTS)


def check_arguments(
    view: AttackedDefense,
    images: Tensor,
    labels: Tensor,
    threat: Threat | None,
    image_indices: Sequence[int] | None,
    batch_size: int,
    seed: int,
) -> Tensor:
    """The indices as a tensor, N int64, 0, 1, … for None; ValueError for what Attack.run refuses."""
    check_pixels(images)
    check_seed(seed)
    if threat is not None:
        threat.check_images(images)
    check_at_least("batch_size", batch_size, 1, MOST_ROWS)
    check_shape(images, view.defense.image_shape, "defence")
    check_device(images, view.defense, "defence")
    view.defense.check_evaluation_mode()
    check_repeatable(view.defense, images)
    check_labels(labels, len(images), view.num_classes)
    return torch.tensor(check_image_indices(image_indices, len(images)), dtype=torch.int64)
