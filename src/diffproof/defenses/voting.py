"""Majority voting over a sequence of labels, and when further votes can no longer change its winner."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NOT_CAST = -1


class Standing(NamedTuple):
    """Each draw's votes so far.

    Attributes:
        counts: N×C votes by class.
        first_seen: N×C position at which a class first got a vote, `votes` where it has none.
        leader: N labels that win as it stands; ties go to the label seen earliest.
        cast: N votes cast.
    """

    counts: Tensor
    first_seen: Tensor
    leader: Tensor
    cast: Tensor


def standing(ballots: Tensor, num_classes: int) -> Standing:
    """Count ballots.

    Args:
        ballots: N×K labels in the order of voting, NOT_CAST at the end of a row where votes are outstanding.
        num_classes: number of classes.
    """
    rows, votes = ballots.shape
    is_cast = ballots != NOT_CAST
    # Outstanding votes go to an extra class that is dropped again.
    index = torch.where(is_cast, ballots, num_classes)
    counts = ballots.new_zeros(rows, num_classes + 1).scatter_add_(1, index, torch.ones_like(index))
    position = torch.arange(votes, device=ballots.device).expand(rows, votes)
    seen = ballots.new_full((rows, num_classes + 1), votes).scatter_reduce_(1, index, position, "amin")
    counts, seen = counts[:, :num_classes], seen[:, :num_classes]
    leader = (counts * (votes + 1) - seen).argmax(1)
    return Standing(counts, seen, leader, is_cast.sum(1))


def majority(ballots: Tensor, num_classes: int) -> Tensor:
    """The label with the most votes of each row; ties go to the label that appeared earliest.

    Args:
        ballots: N×K labels in the order of voting, at least one cast in each row.
        num_classes: number of classes.
    """
    return standing(ballots, num_classes).leader


def votes_to_majority(now: Standing, votes: int) -> Tensor:
    """The least number of further votes after which the leader cannot be overtaken any more.

    With R votes outstanding, after m of them for the leader L a rival c reaches at most count_c + R − m, and
    loses a tie if L was seen first: the least m with count_L + m ≥ count_c + R − m (+1 if c wins ties). No
    other order of votes decides earlier, so voting in such portions never casts a vote too many.
    """
    left = votes - now.cast
    leading = now.counts.gather(1, now.leader[:, None])
    leader_seen = now.first_seen.gather(1, now.leader[:, None])
    rival_wins_ties = (now.first_seen < leader_seen).long()
    short = left[:, None] - (leading - now.counts) + rival_wins_ties
    needed = torch.div(short + 1, 2, rounding_mode="floor")
    needed.scatter_(1, now.leader[:, None], 0)
    return needed.amax(1).clamp(min=0)


def trailing_run(ballots: Tensor, cast: Tensor) -> Tensor:
    """How many of the latest votes of each row agree with its last one; 0 where none is cast."""
    votes = ballots.shape[1]
    last = ballots.gather(1, (cast - 1).clamp(min=0)[:, None])
    position = torch.arange(votes, device=ballots.device)
    differs = (ballots != last) & (position < cast[:, None])
    latest_other = torch.where(differs, position, -1).amax(1)
    return torch.where(cast > 0, cast - 1 - latest_other, 0)


def votes_needed(ballots: Tensor, num_classes: int, consensus: int | None) -> Tensor:
    """The least number of further votes that could decide each row; 0 where it is decided.

    Args:
        ballots: N×K labels in the order of voting, NOT_CAST where outstanding.
        num_classes: number of classes.
        consensus: k consecutive equal labels decide at once (DensePure, appendix D.8); None for a plain
            majority of K.
    """
    votes = ballots.shape[1]
    now = standing(ballots, num_classes)
    needed = votes_to_majority(now, votes)
    if consensus is None:
        return needed
    left = votes - now.cast
    run = trailing_run(ballots, now.cast)
    # The majority decides only once no other label can still reach a consensus: fewer than k votes are left
    # for a new run, and the current run is the leader's or too short to be completed.
    last = ballots.gather(1, (now.cast - 1).clamp(min=0)[:, None])[:, 0]
    rival_run = (last != now.leader) & (left >= consensus - run)
    needed = torch.maximum(needed, left - consensus + 1).clamp(min=0)
    needed = torch.where((needed == 0) & rival_run, 1, needed)
    return torch.where(left == 0, 0, torch.minimum(needed, consensus - run))


def winner(ballots: Tensor, num_classes: int, consensus: int | None) -> Tensor:
    """The label of each decided row: that of the consensus where there is one, else the majority's."""
    if consensus is None:
        return majority(ballots, num_classes)
    now = standing(ballots, num_classes)
    last = ballots.gather(1, (now.cast - 1)[:, None])[:, 0]
    return torch.where(trailing_run(ballots, now.cast) >= consensus, last, now.leader)
