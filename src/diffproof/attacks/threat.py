"""Threat models: what an attack may change, and by how much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffproof.checks import check_known, check_positive, shown
from diffproof.errors import ArgumentError
from diffproof.values import number


def parse_budget(budget: str | float) -> float:
    """A budget as a number: 0.0314, "0.0314" or "8/255".

    Raises:
        ValueError: it is no number, or not a finite one above 0.
    """
    try:
        value = number(budget) if isinstance(budget, str) else budget
    except ValueError:
        raise ArgumentError(
            "budget", f"expected a number or a fraction like 8/255, got {shown(budget)}"
        ) from None
    return check_positive("budget", value)


@dataclass(frozen=True)
class Threat:
    """What an attack may do to an image.

    Args:
        budget: the largest norm of a perturbation, > 0, of [0, 1] pixels; of Flow in halves of the image's
            width or height, of Perceptual a distance of features. At most 1, but
            for L2 the norm of a change from black to white, and for Perceptual any.

    Raises:
        ValueError: the budget is not a finite number above 0, or larger than the threat can mean.
    """

    name: ClassVar[str]
    # The largest budget that makes sense, None for any.
    largest: ClassVar[float | None] = 1.0
    budget: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", check_positive("budget", self.budget))
        if self.largest is not None and self.budget > self.largest:
            raise self._too_large(self.largest)

    def check_images(self, images: Tensor) -> None:
        """Raise ValueError if the budget is larger than any change of such images, N×C×H×W, can be."""

    def _too_large(self, largest: float) -> ArgumentError:
        hint = f"; does {self.budget:g} mean {self.budget:g}/255?" if isinstance(self, PixelThreat) else ""
        return ArgumentError("budget", f"expected {self.name} in (0, {largest:g}], got {self.budget:g}{hint}")


class PixelThreat(Threat):
    """A perturbation added to the pixels, in a ball of a norm; perturbed pixels stay in [0, 1]."""

    def norm(self, perturbation: Tensor) -> Tensor:
        """N norms of N×C×H×W."""
        raise TypeError(f"{type(self).__name__} does not define norm()")

    def project(self, perturbation: Tensor) -> Tensor:
        """The nearest perturbation in the ball, N×C×H×W."""
        raise TypeError(f"{type(self).__name__} does not define project()")

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of unit norm that a gradient grows fastest in; 0 where the gradient is 0."""
        raise TypeError(f"{type(self).__name__} does not define steepest()")

    def spread(self, normal: Tensor, uniform: Tensor) -> Tensor:
        """A point uniform in the ball, of standard normals N×C×H×W and N uniforms in (0, 1)."""
        raise TypeError(f"{type(self).__name__} does not define spread()")

    def clip(self, points: Tensor, images: Tensor) -> Tensor:
        """Perturbed images within the ball around `images` and within [0, 1], N×C×H×W.

        Clamping pixels after projecting moves each of them towards its image, so the point stays in the ball.
        """
        return (images + self.project(points - images)).clamp(0.0, 1.0)


class Linf(PixelThreat):
    """No pixel changes by more than the budget, at most 1."""

    name = "linf"

    def norm(self, perturbation: Tensor) -> Tensor:
        """Largest absolute value."""
        return perturbation.flatten(1).abs().amax(1)

    def project(self, perturbation: Tensor) -> Tensor:
        """Each pixel clamped."""
        return perturbation.clamp(-self.budget, self.budget)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Sign."""
        return gradient.sign()

    def spread(self, normal: Tensor, uniform: Tensor) -> Tensor:
        """Each pixel uniform in ± budget."""
        inside: Tensor = self.budget * (2 * torch.special.ndtr(normal) - 1)
        return inside


class L2(PixelThreat):
    """The Euclidean norm of the change is at most the budget."""

    name = "l2"
    largest = None

    def check_images(self, images: Tensor) -> None:
        """Raise ValueError if the budget is above the distance from black to white."""
        largest = math.sqrt(images[0].numel())
        # A budget of just that distance may be above it by its rounding.
        if self.budget > largest * (1 + 1e-9):
            raise self._too_large(largest)

    def norm(self, perturbation: Tensor) -> Tensor:
        """Euclidean norm."""
        norm: Tensor = torch.linalg.vector_norm(perturbation.flatten(1), dim=1)
        return norm

    def project(self, perturbation: Tensor) -> Tensor:
        """Scaled down to the budget where it is longer."""
        norm = _column(self.norm(perturbation))
        return torch.where(norm > self.budget, perturbation * (self.budget / norm), perturbation)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient at unit length."""
        # Divided by its largest entry first, whose square could otherwise underflow.
        scale = _column(gradient.flatten(1).abs().amax(1))
        scaled = gradient / torch.where(scale > 0, scale, 1.0)
        norm = _column(self.norm(scaled))
        unit: Tensor = scaled / torch.where(norm > 0, norm, 1.0)
        return unit

    def spread(self, normal: Tensor, uniform: Tensor) -> Tensor:
        """A uniform direction, at a radius budget·u^(1/d)."""
        radius = self.budget * uniform ** (1 / normal[0].numel())
        return self.steepest(normal) * _column(radius)


class Flow(Threat):
    """Pixels move by at most the budget, as a part of half the image's width or height (Xiao et al. 2018).

    0.05 is the papers' bound. The units are those of `torch.nn.functional.grid_sample`: moving by a pixel
    takes 2/width.
    """

    name = "stadv"

    def norm(self, flow: Tensor) -> Tensor:
        """Largest absolute movement of each flow, N×H×W×2."""
        return flow.flatten(1).abs().amax(1)


class Perceptual(Threat):
    """The features of the defence's classifier change by at most the budget (Laidlaw et al. 2021).

    Their distance is that of `attacks.features`, whose budget 0.5 is the authors' on CIFAR-10. It is one of
    two images and a network, so the attack that stays within it says how far it went.
    """

    name = "perceptual"
    largest = None


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


THREATS: dict[str, type[Threat]] = {cls.name: cls for cls in (Linf, L2, Flow, Perceptual)}


def load_threat(name: str, budget: str | float) -> Threat:
    """A threat model by name.

    Args:
        name: "linf", "l2", "stadv" or "perceptual".
        budget: see Threat; a number, or a text like "8/255".

    Raises:
        ValueError: unknown name, or a budget out of range.
    """
    return check_known("threat", name, THREATS)(parse_budget(budget))
