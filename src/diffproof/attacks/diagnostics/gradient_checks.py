"""Whether the gradient that an attack follows is that of the defence, and whether there is any."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffproof.attacks.base import Traits
from diffproof.attacks.diagnostics.finding import Finding
from diffproof.attacks.diagnostics.probe import FROZEN, Probe, ascent
from diffproof.attacks.losses import loss_values
from diffproof.attacks.threat import L2
from diffproof.attacks.views import AttackedDefense, GradientMode
from diffproof.defenses.purifying.base import Purifier

# Random directions, and points of the ball, at which slopes are taken.
_DIRECTIONS = 4
# Longest difference in units of the root of the precision, which balances rounding and kinks; and at most.
_UNITS, _LONGEST = 32.0, 0.1
# Largest relative error of a gradient, median over images: this much, and so many times the differences' own
# error, but at most the last. Honest evaluations stay below a half of it (tests/attacks/diagnostics).
_ERROR, _SPREADS, _LARGEST = 1e-3, 10.0, 0.05
# A gradient this much smaller than what the logits change by within the ball has vanished.
_TINY = 0.01


def gradient_agreement(probe: Probe, traits: Traits) -> Finding | None:
    """The attack's gradient against central differences of the defence, noise frozen.

    Both are of the logits in the direction in which the loss grows, so that a flat loss cannot hide what the
    networks do; along random directions and along the attack's gradient itself. Each difference is taken at
    three lengths, of which the nearest two count and tell its error. Pixels are first moved away from 0 and 1
    by the longest, so that no difference straddles the edge of the pixel range. Only an EXACT gradient can
    fail; the finding on another says how far from the true one it points, and that on an EXACT one of a
    defence that purifies how far from it BPDA's would. Half-precision networks are checked in float32, since
    differences tell nothing beside their rounding.
    """
    if traits.loss is None:
        return None
    half = probe.precision > torch.finfo(torch.float32).eps
    if half:
        probe = probe.in_single_precision()
    loss, images, view = traits.loss, probe.job.images, probe.job.view
    lengths = [min(_LONGEST, _UNITS * math.sqrt(probe.precision)) / 4**i for i in range(3)]
    at = images.clamp(lengths[0], 1 - lengths[0])

    def raised(logits: Tensor, labels: Tensor) -> Tensor:
        weights, _ = ascent(loss, logits.detach(), labels)
        return (logits * weights.to(logits.dtype)).sum(1)

    gradient = probe.gradient(view, at, raised)
    norm = gradient.double().flatten(1).norm(dim=1)
    weights, _ = ascent(loss, probe.logits(view.defense, at[None], FROZEN)[0], probe.job.labels)
    directions = torch.cat([probe.normals(_DIRECTIONS, images.shape[1:], step=1), gradient[None]])
    directions = torch.stack([L2(1.0).steepest(direction) for direction in directions])
    moves = torch.cat([length * directions for length in lengths])
    slopes = probe.slopes(view.defense, at, weights, moves).unflatten(0, (len(lengths), -1))
    apart, best = slopes.diff(dim=0).abs().min(0)
    true = slopes[1:].gather(0, best[None])[0]
    told = (directions.double() * gradient.double()).flatten(2).sum(2)

    def relative(difference: Tensor) -> Tensor:
        across = _ratio(difference[:-1].norm(dim=0), true[:-1].norm(dim=0), told[:-1].norm(dim=0))
        along = _ratio(difference[-1].abs(), true[-1].abs(), norm)
        return torch.maximum(across, along)

    error, spread = float(relative(true - told).median()), float(relative(apart).median())
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
    message = _said_of_an_exact_gradient(error, spread, allowed, half=half)
    if isinstance(view.defense, Purifier) and bool(gradient.any()):
        bpda = probe.gradient(AttackedDefense(view.defense, GradientMode.BPDA), at, raised)
        measured["bpda_cosine"] = _cosine(bpda, gradient)
        message += (
            f"; the bpda gradient has the cosine {measured['bpda_cosine']:.2f} with the exact one (median"
            " over images)"
        )
    return Finding("gradient-agreement", error <= allowed, message, measured)


def _said_of_an_exact_gradient(error: float, spread: float, allowed: float, *, half: bool) -> str:
    """How far it is from finite differences, and what may be wrong where that is too far."""
    message = f"gradient and finite differences differ by {error:.2g} of their size (at most {allowed:.2g})"
    message += ", in float32" * half
    if error > allowed and spread > error / 2:
        message += (
            f", but differences of two lengths differ by {spread:.2g} themselves: nothing is known about the"
            " gradient; make the defence deterministic under given noise, or, if that is rounding, diagnose"
            " it from Python with networks and images in float64"
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
