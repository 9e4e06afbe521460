"""Whether the gradient that an attack follows is that of the defence, and whether there is any."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffproof.attacks.base import Traits
from diffproof.attacks.diagnostics.finding import Finding
from diffproof.attacks.diagnostics.probe import FROZEN, Probe, Value, ascent
from diffproof.attacks.losses import Loss, loss_values
from diffproof.attacks.threat import L2
from diffproof.attacks.views import AttackedDefense, GradientMode
from diffproof.defenses.purifying.base import Purifier

# Random directions, and points of the ball, at which slopes are taken.
_DIRECTIONS = 4
# Half of the longest difference, and how far images are moved off their own values.
LONGEST = 0.01
# By what each difference is shorter than the one before, and how many there are: as far as rounding allows.
_SHORTER = {torch.float64: (16, 5), torch.float32: (4, 3)}
# Largest relative error of a gradient, median over images: this much, and so many times the differences' own
# error, but at most the last. Honest evaluations stay below a half of it (tests/attacks/diagnostics).
_ERROR, _SPREADS, _LARGEST = 1e-3, 10.0, 0.05
# A gradient this much smaller than what the logits change by within the ball has vanished.
_TINY = 0.01


class _Slopes(NamedTuple):
    """Slopes of the logits in the direction in which the loss grows.

    Attributes:
        probe: what they were measured with.
        at: where, N×C×H×W.
        raised: the value whose gradient is asked for.
        gradient: that gradient by autograd, N×C×H×W.
        told: slopes by it along D random directions and, last, along itself, (D + 1)×N.
        differences: those by central differences of L lengths, L×(D + 1)×N.
    """

    probe: Probe
    at: Tensor
    raised: Value
    gradient: Tensor
    told: Tensor
    differences: Tensor


def _measure(probe: Probe, loss: Loss, dtype: torch.dtype) -> _Slopes:
    """Measure slopes with images and networks of (at least) this dtype."""
    if probe.precision > torch.finfo(dtype).eps:
        probe = probe.in_precision(dtype)
    images, view = probe.job.images, probe.job.view
    factor, number = _SHORTER[dtype]
    lengths = [LONGEST / factor**i for i in range(number)]
    # Equal pixels are a kink of maxima, and of ReLUs without a bias.
    at = probe.beside(LONGEST)

    def raised(logits: Tensor, labels: Tensor) -> Tensor:
        weights, _ = ascent(loss, logits.detach(), labels)
        return (logits * weights.to(logits.dtype)).sum(1)

    gradient = probe.gradient(view, at, raised)
    weights, _ = ascent(loss, probe.logits(view.defense, at[None], FROZEN)[0], probe.job.labels)
    directions = torch.cat([probe.normals(_DIRECTIONS, images.shape[1:], step=1), gradient[None]])
    directions = torch.stack([L2(1.0).steepest(direction) for direction in directions])
    moves = torch.cat([length * directions for length in lengths])
    slopes = probe.slopes(view.defense, at, weights, moves).unflatten(0, (number, -1))
    told = (directions.double() * gradient.double()).flatten(2).sum(2)
    return _Slopes(probe, at, raised, gradient, told, slopes)


def gradient_agreement(probe: Probe, traits: Traits) -> Finding | None:
    """The attack's gradient against central differences of the defence, noise frozen.

    Both are of the logits in the direction in which the loss grows, so that a flat loss cannot hide what the
    networks do; along random directions and along the attack's gradient itself. Each difference is taken at
    several lengths, of which that one counts which agrees best; the two that are nearest to each other tell
    their error. Longer ones run across the kinks of a network, rounding spoils shorter ones: so all is
    measured in float64, or in float32 where the defence cannot run so. Pixels are first moved at random, so
    that none is at a kink between equal pixels and no difference straddles the edge of the pixel range. Only
    an EXACT gradient can fail; the finding on another says how far from the true one it points, and that on
    an EXACT one of a defence that purifies how far from it BPDA's would.
    """
    if traits.loss is None:
        return None
    own = probe.precision
    try:
        slopes = _measure(probe, traits.loss, torch.float64)
    except Exception:  # a network of the user's may be made for float32 alone, and then raises anything
        slopes = _measure(probe, traits.loss, torch.float32)
    probe, at, raised, gradient, told, differences = slopes
    images, view = probe.job.images, probe.job.view
    norm = gradient.double().flatten(1).norm(dim=1)

    def relative(wrong: Tensor, true: Tensor) -> Tensor:
        """L×N: how wrong the slopes of one length are, in all directions together."""
        sizes = true[:, :-1].norm(dim=1), told[:-1].norm(dim=0).expand(len(true), -1)
        across = _ratio(wrong[:, :-1].norm(dim=1), *sizes)
        along = _ratio(wrong[:, -1].abs(), true[:, -1].abs(), norm.expand(len(true), -1))
        return torch.maximum(across, along)

    # A gradient that is none of the defence's agrees with the differences of no length.
    error = float(relative(differences - told, differences).amin(0).median())
    apart, nearest = relative(differences.diff(dim=0), differences[1:]).min(0)
    spread, true = float(apart.median()), differences[1 + nearest, :, torch.arange(len(nearest))].T
    # E (∇f·u)² = |∇f|²/D for a random unit direction u.
    size = (true[:-1].square().mean(0) * images[0].numel()).sqrt()
    measured = {
        "error": error,
        "spread": spread,
        "difference_cosine": float(_ratio(true[-1], size).median()),
    }
    if view.gradient is not GradientMode.EXACT:
        message = (
            f"the {view.gradient.value} gradient has the cosine {measured['difference_cosine']:.2f}"
            " with finite differences"
        )
        exact = probe.gradient(AttackedDefense(view.defense), at, raised)
        if bool(exact.any()):
            measured["cosine"] = _cosine(gradient, exact)
            message += f", {measured['cosine']:.2f} with the exact gradient"
        return Finding("gradient-agreement", True, f"{message} (median over images)", measured)
    allowed = measured["allowed"] = min(_LARGEST, _ERROR + _SPREADS * spread)
    finer = None if probe.precision == own else str(images.dtype).removeprefix("torch.")
    message = _said_of_an_exact_gradient(error, spread, allowed, finer)
    if isinstance(view.defense, Purifier) and bool(gradient.any()):
        bpda = probe.gradient(AttackedDefense(view.defense, GradientMode.BPDA), at, raised)
        measured["bpda_cosine"] = _cosine(bpda, gradient)
        message += (
            f"; the bpda gradient has the cosine {measured['bpda_cosine']:.2f} with the exact one (median"
            " over images)"
        )
    return Finding("gradient-agreement", error <= allowed, message, measured)


def _said_of_an_exact_gradient(error: float, spread: float, allowed: float, finer: str | None) -> str:
    """How far it is from finite differences, and what may be wrong where that is too far."""
    message = f"gradient and finite differences differ by {error:.2g} of their size (at most {allowed:.2g})"
    message += "" if finer is None else f", in {finer}"
    if error > allowed and spread > error / 2:
        message += (
            f", but differences of two lengths differ by {spread:.2g} themselves: nothing is known about the"
            " gradient; make the defence deterministic under given noise, or, if that is rounding, let it"
            " run in float64"
        )
    elif error > allowed:
        message += (
            ": the gradient is not that of the defence; look for noise drawn again going backward, detached"
            " parts and functions with a backward pass of their own"
        )
    return message


def vanishing_gradient(probe: Probe, traits: Traits) -> Finding | None:
    """Images where the attack's gradient predicts (nearly) no change within the ball, while there is one."""
    if traits.loss is None:
        return None
    loss, images, view = traits.loss, probe.job.images, probe.job.view
    gradient = probe.gradient(view, images, lambda logits, labels: loss_values(loss, logits, labels)).double()
    points = torch.cat([images[None], probe.points(_DIRECTIONS)])
    logits = probe.logits(view.defense, points, FROZEN)
    direction, slope = ascent(loss, logits[0], probe.job.labels)
    true = ((logits[1:] - logits[0]) * direction).sum(2).norm(dim=0)
    told = (gradient * (points[1:] - images).double()).flatten(2).sum(2).norm(dim=0)
    # The loss's own slope is divided out: a step of the attack has the same length for any.
    told = _ratio(told, slope)
    # Logits that differ by rounding only have not changed.
    changed = true > probe.rounding * logits.abs().amax((0, 2))
    zero, ratio = (gradient == 0).flatten(1).all(1), _ratio(told, true)
    vanished = changed & (ratio < _TINY)
    measured = {
        "vanished": float(vanished.double().mean()),
        "zero": float(zero.double().mean()),
        "ratio": float(ratio.median()),
    }
    message = (
        f"the gradient vanishes on {measured['vanished']:.0%} of the images ({measured['zero']:.0%} zero)"
    )
    if bool(vanished.any()):
        message += (
            " although the answers change within the budget: it is masked, by saturation or rounding; attack"
            " with the loss margin, with the gradient bpda if the defence purifies, or in finer floats"
            " (float32; from Python float64, too)"
        )
    return Finding("vanishing-gradient", not bool(vanished.any()), message, measured)


def _cosine(first: Tensor, second: Tensor) -> float:
    """The median over images of the cosine of two gradients; 0 where one is 0."""
    cosines = torch.cosine_similarity(first.double().flatten(1), second.double().flatten(1), eps=0.0)
    return float(cosines.nan_to_num(0.0).median())


def _ratio(value: Tensor, *scales: Tensor) -> Tensor:
    """A value by the largest of the scales; 0 where they are 0."""
    scale = torch.stack(scales).amax(0)
    return torch.where(scale > 0, value / scale, 0.0)
