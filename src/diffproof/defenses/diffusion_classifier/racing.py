"""Racing: a diffusion classifier's label without its whole sum, by dropping classes that cannot win any more.

The label of a diffusion classifier is the class with the smallest sum of T terms, each one network
evaluation of each of K classes. A race visits the terms in a random order, the informative noise levels
first, keeps an unbiased estimate of every paired difference between two classes' sums, and drops a class as
soon as the estimates would be too unlikely if its sum were the smallest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffproof.checks import check_at_least, check_probability
from diffproof.classifiers.base import predicted_labels
from diffproof.defenses.diffusion_classifier.loss import DiffusionLoss
from diffproof.errors import ArgumentError
from diffproof.noise import MAX_VOTE, Noise

# The order of a row comes from a vote of its own: it must be independent of the losses' noise.
_ORDER_VOTE = MAX_VOTE

# The largest variance that pixels in [0, 1] can have.
_LARGEST_VARIANCE = 0.25

# The part of the visits that the profile does not decide: it bounds 1/chance where the profile is wrong.
_UNIFORM_PART = 0.1

# ρ of the mixture, in squared increments of unit size: the tightest for about this many terms.
_MIXTURE = 8.0

# Pairs of classes whose evidence is kept at once.
_PAIRS_AT_ONCE = 2**22

Losses = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Race:
    """The labels of N images by racing, and what they cost.

    Attributes:
        labels: N int64.
        evaluations: N int64, network evaluations; a pass that gives every class counts once.
        visited: N int64, terms of the sum (a noise level and one draw of ε) that were visited.
        decided: N bool: one class was left before the terms ran out. Where false, the label is that of the
            exact sum among the classes that were left.
    """

    labels: Tensor
    evaluations: Tensor
    visited: Tensor
    decided: Tensor


def informative_shares(levels: Tensor, weights: Tensor) -> Tensor:
    """How likely each term of the sum is visited first.

    If a component of the data of class y were N(μ_y, v), ε_θ would depend on y through −σ·μ_y/(v + σ²), and
    the squared errors of two classes would differ by a multiple of w·σ²/(v + σ²)². Where the components'
    variances v spread evenly in the logarithm up to V, as in natural images, and classes differ in
    proportion to v, these add up to w·∫_0^V σ²/(v + σ²)² dv = w·V/(V + σ²). That profile is mixed with the
    weights alone (a defensive
    mixture: Hesterberg, Technometrics 37, 1995).

    Args:
        levels: L noise levels σ in [0, 1] pixels.
        weights: L positive factors w of the squared errors.

    Returns:
        L positive float64 values that sum to 1.
    """
    levels, weights = levels.double(), weights.double()
    profile = weights / (_LARGEST_VARIANCE + levels**2)
    return (1 - _UNIFORM_PART) * profile / profile.sum() + _UNIFORM_PART * weights / weights.sum()


def visiting_order(noise: Noise, shares: Tensor) -> tuple[Tensor, Tensor]:
    """A random order of L terms for each row, by successive sampling without replacement, and what is left.

    The next term is i with probability shares[i] over the shares that are left. So do the rings of
    exponential clocks, each at the rate of its share, follow one another (Efraimidis and Spirakis, Inf.
    Process. Lett. 97, 2006).

    Args:
        noise: N rows. The order is a pure function of a row's indices.
        shares: L positive float64 values.

    Returns:
        order: N×L int64, the term at each position.
        left: N×L float64, the shares of the terms from that position on: the term there came next with the
            probability of its share over this.
    """
    row = torch.arange(len(noise), device=noise.draw.device)
    normal = noise.rows(row, torch.full_like(row, _ORDER_VOTE)).normal((len(shares),), 0, torch.float64)
    clocks = -torch.special.log_ndtr(normal) / shares
    order = clocks.argsort(dim=1, stable=True)
    # Summed from the end: no cancellation where little is left, and the last probability is exactly 1.
    return order, shares[order].flip(1).cumsum(1).flip(1)


def log_evidence(total: Tensor, squares: Tensor) -> Tensor:
    """log of a supermartingale that starts at 1 where increments x have signs symmetric given the past.

    2·√(ρ/(V + ρ))·exp(M²/(2(V + ρ)))·Φ(M/√(V + ρ)) with M = Σ x and V = Σ x²: the mean over λ ~ |N(0, 1/ρ)|
    of exp(λ·M − λ²·V/2), which is a supermartingale for each λ (de la Peña, Ann. Probab. 27, 1999); the
    one-sided normal mixture of Howard et al., Ann. Statist. 49, 2021, Proposition 6.

    Args:
        total: M.
        squares: V, same shape.
    """
    spread = squares + _MIXTURE
    z = total / spread.sqrt()
    tail: Tensor = torch.special.log_ndtr(z)
    return math.log(2) + 0.5 * (math.log(_MIXTURE) - spread.log()) + 0.5 * z**2 + tail


def race_terms(
    losses: Losses, noise: Noise, shares: Tensor, prior: Tensor, *, error: float, one_pass: bool = False
) -> Race:
    """Race the classes of N images, whose losses are asked for as they are needed; see `race`.

    Args:
        losses: called with P rows, their P terms and P×K, which classes of each are still in the race;
            returns P×K losses, of which only those are looked at.
        noise: see `visiting_order`.
        shares: see `visiting_order`.
        prior: K values; the winner has the smallest sum of losses minus prior.
        error: in (0, 1).
        one_pass: whether losses of all classes count as one evaluation.

    Raises:
        ValueError: losses that are not finite.
    """
    order, left = visiting_order(noise, shares)
    images, terms, count = *order.shape, len(prior)
    alive = torch.ones(images, count, dtype=torch.bool)
    visited = torch.zeros(images, dtype=torch.int64)
    evaluations = torch.zeros(images, dtype=torch.int64)
    seen = torch.zeros(images, count, dtype=torch.float64)
    power, total, squares = (torch.zeros(images, count, count, dtype=torch.float64) for _ in range(3))
    table = prior.new_zeros(images, terms, count)
    own = torch.eye(count, dtype=torch.bool)
    limit = math.log((count - 1) / error) if count > 1 else 0.0
    running = torch.arange(images if count > 1 else 0)
    for position in range(terms):
        if len(running) == 0:
            break
        term, here = order[running, position], alive[running]
        values = losses(running, term, here)
        if not bool(torch.isfinite(values[here]).all()):
            raise ArgumentError("denoiser", "expected finite losses, got NaN or infinity")
        values = values.masked_fill(~here, 0.0)
        table[running, term] = values.to(table.dtype)
        visited[running] += 1
        evaluations[running] += 1 if one_pass else here.sum(1)

        rest = left[running, position, None]
        estimate = seen[running] + values * rest / shares[term, None] - prior
        seen[running] += values
        gap = estimate[:, :, None] - estimate[:, None, :]
        gap = gap.masked_fill(~(here[:, :, None] & here[:, None, :]), 0.0)
        # Estimates get surer as less is left. A step's size, though not its sign, is in its own unit: it is
        # at most √(steps so far), and none outweighs all later ones.
        gap = gap / rest[:, :, None]
        power[running] += gap**2
        unit = (power[running] / (position + 1)).sqrt()
        step = torch.where(unit > 0.0, gap / unit, 0.0)
        total[running] += step
        squares[running] += step**2
        against = log_evidence(total[running], squares[running]).masked_fill(own, -math.inf).logsumexp(2)
        # Whatever the evidence, the class that least speaks against stays.
        least = against.masked_fill(~here, math.inf).argmin(1, keepdim=True)
        stays = (against < limit).scatter(1, least, True)
        alive[running] = here & stays
        running = running[alive[running].sum(1) > 1]
    decided = alive.sum(1) == 1
    labels = alive.int().argmax(1)
    if not bool(decided.all()):
        open_ = (~decided).nonzero()[:, 0]
        sums = table[open_, 0]
        # One after the other, as the whole sum is formed: the label is the same bits' argmax.
        for later in range(1, terms):
            sums = sums + table[open_, later]
        labels[open_] = predicted_labels((prior - sums).masked_fill(~alive[open_], -math.inf))
    return Race(labels, evaluations, visited, decided)


def race(
    loss: DiffusionLoss,
    images: Tensor,
    noise: Noise,
    *,
    prior: Tensor,
    error: float,
    batch_size: int,
    sigma: float = 0.0,
) -> Race:
    """The labels that the whole sum of a diffusion loss gives, with fewer network evaluations.

    With d_i the difference of two classes' terms and p_i the chance of the term that was drawn,
    Σ_{j<i} d_j + d_i/p_i is an unbiased estimate of the difference of their sums, given all that was drawn
    before (Des Raj, J. Amer. Statist. Assoc. 51, 1956). Divided by the root mean square of the estimates so
    far, it is an increment x of `log_evidence`. A class is dropped when the mean of that evidence against it
    over its K − 1 rivals reaches 1/error (Ville's inequality; the mean of supermartingales is one, so that
    the union over rivals is in it).

    The error is the probability, over the order of the terms, that the class with the smallest sum is
    dropped. It is exact where the estimates have signs symmetric about the true difference when that is
    zero, and otherwise holds in the limit of many terms, as for a self-normalised mean; the classes' losses
    are unbounded, so that no bound without an assumption exists. What the true label is, or what other draws
    of ε would say, it leaves open.

    Args:
        loss: the diffusion loss that is summed, all classes under the same noise.
        images: N×C×H×W in [0, 1], or noisy ones at noise level `sigma`.
        noise: one row an image. It fixes the losses and, independently of them, the order.
        prior: num_classes values; the winner has the smallest sum of losses minus prior.
        error: in (0, 1).
        batch_size: rows in the denoiser at once, of an image and a class each. The result does not depend
            on it, floating-point ties aside.
        sigma: see `DiffusionLoss.losses`.

    Raises:
        ValueError: error outside (0, 1), losses that are not finite, or what
            the denoiser cannot take.
    """
    check_probability("error", error)
    check_at_least("batch_size", batch_size, 1)
    one_pass, device = loss.denoiser.one_pass, images.device
    index = torch.tensor(loss.above(sigma)).repeat_interleave(loss.samples)
    draws = index * loss.samples + torch.arange(loss.samples).repeat(len(index) // loss.samples)
    shares = informative_shares(
        torch.tensor(loss.levels, dtype=torch.float64)[index],
        torch.tensor([loss.share(one, sigma) for one in index.tolist()], dtype=torch.float64),
    )
    # The order is drawn and kept where the same bits come out for every device.
    cpu = torch.device("cpu")
    noise, own = noise.to(device), noise.to(cpu)
    prior = prior.cpu()

    def losses(rows: Tensor, terms: Tensor, wanted: Tensor) -> Tensor:
        row, label = wanted.nonzero(as_tuple=True) if not one_pass else (torch.arange(len(rows)), None)
        found = []
        for part in torch.arange(len(row)).split(batch_size):
            chosen = rows[row[part]].to(device)
            labels = None if label is None else label[part].to(device)
            rows_noise = noise.rows(chosen, noise.vote[chosen])
            draw = draws[terms[row[part]]].to(device)
            found.append(loss.draw_losses(images[chosen], rows_noise, draw, labels, sigma).cpu())
        values = torch.cat(found)
        return values if one_pass else values.new_zeros(wanted.shape).masked_scatter(wanted, values)

    at_once = min(batch_size, max(1, _PAIRS_AT_ONCE // len(prior) ** 2))
    races = []
    with torch.no_grad():
        for i, part in enumerate(torch.arange(len(images)).split(at_once)):
            start = i * at_once
            races.append(
                race_terms(
                    lambda rows, terms, wanted, start=start: losses(rows + start, terms, wanted),  # type: ignore[misc]
                    own.rows(part, own.vote[part]),
                    shares,
                    prior,
                    error=error,
                    one_pass=one_pass,
                )
            )
    return Race(
        labels=torch.cat([one.labels for one in races]).to(device),
        evaluations=torch.cat([one.evaluations for one in races]),
        visited=torch.cat([one.visited for one in races]),
        decided=torch.cat([one.decided for one in races]),
    )
