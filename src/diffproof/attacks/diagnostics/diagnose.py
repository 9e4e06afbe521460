"""Checks of an attack evaluation on itself: signs that a defence looks robust because the attack is weak.

In the spirit of AutoAttack's warnings (Croce & Hein 2020) and of the checklists of Athalye et al. (2018, 3.1)
and Carlini et al. (2019, "On evaluating adversarial robustness").
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffproof.attacks.base import Attack, Job, Traits, check_arguments
from diffproof.attacks.diagnostics.finding import Finding
from diffproof.attacks.diagnostics.gradient_checks import gradient_agreement, vanishing_gradient
from diffproof.attacks.diagnostics.probe import ANOTHER, FROZEN, Probe
from diffproof.attacks.threat import L2, Perceptual, Threat
from diffproof.attacks.views import AttackedDefense
from diffproof.intervals import sign_test

# Level of the sign tests of random defences: false alarms over draws of noise, given what the attack found.
_ALPHA = 1e-3
# Share of images above chance that an unbounded attack may leave.
_LEFT = 0.1


def diagnose(
    view: AttackedDefense,
    images: Tensor,
    labels: Tensor,
    *,
    threat: Threat,
    attack: Attack,
    seed: int,
    image_indices: Sequence[int],
    batch_size: int,
) -> list[Finding]:
    """Check an attack evaluation on a handful of images.

    The checks, in order; those that do not apply are left out:
    gradient-agreement: the attack's gradient under frozen noise agrees with finite differences; how far
        BPDA's points from it.
    vanishing-gradient: that gradient is not (nearly) zero where the answers change within the ball.
    larger-budget: twice the budget finds as many wrong answers; not where the budget is the largest there is.
    unbounded: a budget that allows any image breaks the defence.
    randomness-without-eot: the attack averages over a random defence's noise, and a defence that calls itself
        deterministic is so.
    probabilities: the defence answers with logits.
    black-box: random points of the ball do no better than the attack.
    The first two and the last are not for an attack that asks for no gradient.

    An image costs three runs of the attack, a forward for each of its iterations, and up to 128 forwards and
    3 gradients, each a forward and a backward, more; 68 forwards if the defence is not random. The third
    gradient is for comparison, BPDA's or the exact one; where neither applies there are two.

    Args:
        view: the defence as the attack sees it.
        images: N×C×H×W in [0, 1]; 1 to 8 of them will do.
        labels: N int64, the true ones.
        threat: what the evaluated attack may change.
        attack: the attack that is evaluated.
        seed: see Attack.run. The checks' own noise is of the stream DIAGNOSTICS.
        image_indices: see Attack.run.
        batch_size: see Attack.run.

    Raises:
        ValueError: as running the attack; or it is none of diffproof's.
    """
    traits = attack.traits()
    index = check_arguments(view, images, labels, threat, image_indices, batch_size, seed)
    probe = Probe(
        Job(view, images.detach(), labels.to(images.device), index, seed, batch_size), threat, attack
    )
    attacked = probe.wrong(probe.run(threat.budget))
    findings = [gradient_agreement(probe, traits), vanishing_gradient(probe, traits)]
    if threat.budget < _whole(probe):
        findings.append(larger_budget(probe, attacked))
    findings += [unbounded(probe, traits), randomness_without_eot(probe, traits), probabilities(probe)]
    findings.append(black_box(probe, traits, attacked))
    return [finding for finding in findings if finding is not None]


def larger_budget(probe: Probe, attacked: Tensor) -> Finding:
    """Twice the budget must find as many wrong answers, in the same fresh draws."""
    budget = min(2 * probe.threat.budget, _whole(probe))
    doubled = probe.wrong(probe.run(budget))
    fewer, measured = _loses(doubled, attacked, probe.job.view.defense.random)
    measured = {"wrong": measured["second"], "wrong_larger": measured["first"], "p": measured["p"]}
    message = (
        f"{measured['wrong']:.0%} wrong at the budget {probe.threat.budget:g},"
        f" {measured['wrong_larger']:.0%} at {budget:g}"
    )
    if fewer:
        message += (
            f" (p = {measured['p']:.1g}): the larger ball holds the smaller one's images, so the attack is"
            " stuck; raise its iterations, change its step, or look for masked gradients"
        )
    return Finding("larger-budget", not fewer, message, measured)


def unbounded(probe: Probe, traits: Traits) -> Finding:
    """With a budget that allows any image, the attack must leave no more right answers than chance.

    Passes up to 1/num_classes + 0.1 and three standard errors of the draws of noise.
    """
    wrong = probe.wrong(probe.run(_whole(probe))).double()
    number, draws = wrong.shape
    variance = float(wrong.var(1).sum()) / draws if draws > 1 else 0.0
    error = math.sqrt(variance) / number
    right, allowed = 1 - float(wrong.mean()), 1 / probe.job.view.num_classes + _LEFT + 3 * error
    message = f"a budget of {_whole(probe):.3g} leaves {right:.0%} right (at most {allowed:.0%})"
    if right > allowed:
        message += (
            ": no classifier is robust to that, so the attack fails for another reason;"
            f" raise its {traits.effort}, or look for masked gradients"
        )
    measured = {"right": right, "allowed": allowed, "standard_error": error}
    return Finding("unbounded", right <= allowed, message, measured)


def randomness_without_eot(probe: Probe, traits: Traits) -> Finding:
    """Whether noise changes what the attack sees, and whether the defence knows that it is random.

    A defence must answer alike under the same noise; one that says `random` is False, always.
    """
    view, at = probe.job.view, probe.job.images[None]
    seen = [probe.logits(view, at, draw) for draw in (FROZEN, ANOTHER)]
    logits = [probe.logits(view.defense, at, draw) for draw in (FROZEN, FROZEN, ANOTHER)]
    # Noise of its own comes from the global generator: other draws at each call, the same in each run.
    with torch.random.fork_rng():
        torch.manual_seed(probe.job.seed)
        logits += [probe.logits(view.defense, at, None) for _ in range(2)]
    size = float(logits[0].abs().amax())

    def change(first: Tensor, second: Tensor) -> float:
        return float((first - second).abs().amax()) / size if size > 0 else 0.0

    same, without = change(logits[0], logits[1]), change(logits[3], logits[4])
    measured = {
        "change_seen": change(*seen),
        "change_same_noise": same,
        "change_defense": max(same, without, change(logits[0], logits[2])),
    }
    problem = ""
    if same > probe.rounding:
        what = f"logits change by {same:.2g} of their size under the same noise"
        problem = ": the defence draws some of its own; take all of it from the noise it is given"
    elif not view.defense.random and measured["change_defense"] > probe.rounding:
        what = f"logits change by {measured['change_defense']:.2g} of their size from call to call"
        problem = ", but the defence says it is not random; set random = True, or one draw scores it"
    else:
        what = (
            f"logits change by {measured['change_seen']:.2g} of their size with the noise (eot {traits.eot})"
        )
        if measured["change_seen"] > probe.rounding and traits.eot == 1 and traits.loss is not None:
            problem = f": the attack follows one draw of noise at a time; {traits.averaging}"
    return Finding("randomness-without-eot", not problem, what + problem, measured)


def probabilities(probe: Probe) -> Finding:
    """Rows in [0, 1] that sum to 1 are probabilities, which flatten losses. Their logarithms are fine."""
    logits = probe.logits(probe.job.view.defense, probe.job.images[None], FROZEN)[0]
    rounding = probe.rounding
    low, high = float(logits.min()), float(logits.max())
    away = float((logits.sum(1) - 1).abs().max())
    found = low >= -rounding and high <= 1 + rounding and away <= rounding
    message = f"the defence answers in [{low:.3g}, {high:.3g}]"
    if found:
        message += (
            " and rows sum to 1: probabilities, on which losses are flat; give the logits before softmax"
        )
    return Finding("probabilities", not found, message, {"low": low, "high": high, "sum_minus_one": away})


def black_box(probe: Probe, traits: Traits, attacked: Tensor) -> Finding | None:
    """The best of as many random points of the ball as the attack has iterations must not beat the attack.

    The best is that of the largest margin under one draw of noise; it is scored under fresh ones.
    """
    if traits.loss is None:
        return None
    points = probe.points(traits.iterations)
    logits = probe.logits(probe.job.view.defense, points, FROZEN)
    true = torch.nn.functional.one_hot(probe.job.labels, logits.shape[2]).bool()
    margins = logits.masked_fill(true, -torch.inf).amax(2) - logits.masked_fill(~true, -torch.inf).amax(2)
    best = points[margins.argmax(0), torch.arange(len(probe.job.labels), device=points.device)]
    fewer, measured = _loses(attacked, probe.wrong(best), probe.job.view.defense.random)
    measured = {"wrong": measured["first"], "wrong_random": measured["second"], "p": measured["p"]}
    message = (
        f"{measured['wrong']:.0%} wrong by the attack, {measured['wrong_random']:.0%} by the best of"
        f" {traits.iterations} random points"
    )
    if fewer:
        message += f" (p = {measured['p']:.1g}): gradients mislead the attack; look for masked ones"
    return Finding("black-box", not fewer, message, measured)


def _whole(probe: Probe) -> float:
    """The budget that allows any image; of StAdv, any pixel to come from anywhere within half an image."""
    if isinstance(probe.threat, Perceptual):
        # Features of any image are as long as those of another, but for maps that are 0.
        return 2.0 * probe.longest_features()
    return math.sqrt(probe.job.images[0].numel()) if isinstance(probe.threat, L2) else 1.0


def _loses(first: Tensor, second: Tensor, random: bool) -> tuple[bool, dict[str, float]]:
    """Whether the first of two N×draws tables, paired by draw, holds fewer wrong answers, and the shares.

    For a random defence the one-sided sign test must say so at level _ALPHA, which is how often the scoring's
    noise alone raises a false alarm about the images that were found. Draws of an image share what was found
    for it, so the luck of the attack that found it is not in the level; no test over a handful of images
    could reach it.
    """
    lost, gained = int((second & ~first).sum()), int((first & ~second).sum())
    p = sign_test(lost, gained)
    shares = {"first": float(first.double().mean()), "second": float(second.double().mean()), "p": p}
    return (p < _ALPHA if random else lost > gained), shares
