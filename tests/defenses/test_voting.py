"""Votes against a plain Python reference and a brute force over all ways in which a vote can go on."""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffproof.defenses.voting import (
    NOT_CAST,
    majority,
    standing,
    trailing_run,
    votes_needed,
    votes_to_majority,
    winner,
)

Ballot = tuple[int, ...]

# Classes, votes and consensus of every small election: consensus 0 stands for the plain majority.
SMALL = [(3, k, c) for k in range(1, 7) for c in range(k + 1)]
SMALL += [(2, k, c) for k in (7, 8, 9) for c in (0, 1, 2, 3, 4, 5, k)]


def plain_majority(ballot: Ballot) -> int:
    """Most votes; Counter keeps the order of first appearance, and max takes the first of equals."""
    counts = Counter(ballot)
    return max(counts, key=lambda label: counts[label])


def plain_winner(ballot: Ballot, consensus: int | None) -> int:
    """Stop at the first `consensus` equal labels in a row, else the majority of all."""
    if consensus is not None:
        for end in range(consensus, len(ballot) + 1):
            if len(set(ballot[end - consensus : end])) == 1:
                return ballot[end - 1]
    return plain_majority(ballot)


def rule(classes: int, votes: int, consensus: int | None) -> Callable[[Ballot], frozenset[int]]:
    """The function that says which labels can still win after the first votes, by trying all completions."""

    @functools.cache
    def possible(cast: Ballot) -> frozenset[int]:
        if len(cast) == votes:
            return frozenset([plain_winner(cast, consensus)])
        return frozenset().union(*(possible((*cast, label)) for label in range(classes)))

    return possible


def as_tensor(ballots: list[Ballot], votes: int) -> Tensor:
    return torch.tensor([[*ballot, *[NOT_CAST] * (votes - len(ballot))] for ballot in ballots])


def reveal(full: Tensor, classes: int, consensus: int | None) -> tuple[Tensor, Tensor]:
    """Cast votes in the portions that votes_needed asks for; the ballots then, and the votes cast."""
    position = torch.arange(full.shape[1])
    cast = torch.zeros(len(full), dtype=torch.int64)
    while True:
        ballots = torch.where(position < cast[:, None], full, NOT_CAST)
        needed = votes_needed(ballots, classes, consensus)
        assert int(needed.min()) >= 0
        if not bool(needed.any()):
            return ballots, cast
        cast += needed
        assert int(cast.max()) <= full.shape[1]


@pytest.mark.parametrize(("classes", "votes"), [(1, 3), (2, 7), (3, 6), (5, 4)])
def test_majority_of_every_ballot(classes: int, votes: int) -> None:
    ballots = list(itertools.product(range(classes), repeat=votes))
    expected = [plain_majority(ballot) for ballot in ballots]
    assert majority(as_tensor(ballots, votes), classes).tolist() == expected


@pytest.mark.parametrize(
    ("ballot", "label"),
    [((2, 0, 0, 2), 2), ((1, 0, 0, 1), 1), ((0, 1, 1, 0), 0), ((3, 2, 1, 0), 3), ((2, 1, 1, 0, 0), 1)],
)
def test_a_tie_goes_to_the_label_seen_first_among_the_tied(ballot: Ballot, label: int) -> None:
    assert majority(as_tensor([ballot], len(ballot)), 4).tolist() == [label]


def test_standing_counts_only_votes_cast() -> None:
    now = standing(torch.tensor([[2, 0, 0, NOT_CAST], [1, NOT_CAST, NOT_CAST, NOT_CAST]]), 3)
    assert now.counts.tolist() == [[2, 0, 1], [0, 1, 0]]
    assert now.first_seen.tolist() == [[1, 4, 0], [4, 0, 4]]
    assert now.leader.tolist() == [0, 1]
    assert now.cast.tolist() == [3, 1]
    # Label 2 could still tie and was seen first; label 1 needs two of four votes for the same reason.
    assert votes_to_majority(now, 4).tolist() == [1, 1]


def test_trailing_run_against_groupby() -> None:
    votes = 6
    ballots = [b for length in range(votes + 1) for b in itertools.product(range(3), repeat=length)]
    runs = [[len(list(group)) for _, group in itertools.groupby(ballot)] for ballot in ballots]
    expected = [run[-1] if run else 0 for run in runs]
    cast = torch.tensor([len(ballot) for ballot in ballots])
    assert trailing_run(as_tensor(ballots, votes), cast).tolist() == expected


@pytest.mark.parametrize(("classes", "votes", "consensus"), SMALL)
def test_voting_stops_exactly_when_the_winner_is_fixed(classes: int, votes: int, consensus: int) -> None:
    rule_of = consensus or None
    possible = rule(classes, votes, rule_of)
    ballots = list(itertools.product(range(classes), repeat=votes))
    partial, cast = reveal(as_tensor(ballots, votes), classes, rule_of)

    assert winner(partial, classes, rule_of).tolist() == [plain_winner(ballot, rule_of) for ballot in ballots]
    # One vote at a time, the earliest moment at which every completion has the same winner: voting in
    # portions stops at that very vote, never later and never earlier.
    earliest = [
        next(length for length in range(votes + 1) if len(possible(ballot[:length])) == 1)
        for ballot in ballots
    ]
    assert cast.tolist() == earliest


@pytest.mark.parametrize(("classes", "votes", "consensus"), SMALL)
def test_portions_are_the_least_number_of_votes_that_can_decide(
    classes: int, votes: int, consensus: int
) -> None:
    rule_of = consensus or None
    possible = rule(classes, votes, rule_of)

    @functools.cache
    def least(cast: Ballot) -> int:
        if len(possible(cast)) == 1:
            return 0
        return 1 + min(least((*cast, label)) for label in range(classes))

    every = (b for length in range(votes + 1) for b in itertools.product(range(classes), repeat=length))
    # Ballots that go on after their winner is fixed never arise.
    ballots = [b for b in every if all(len(possible(b[:length])) > 1 for length in range(len(b)))]
    needed = votes_needed(as_tensor(ballots, votes), classes, rule_of)
    assert needed.tolist() == [least(ballot) for ballot in ballots]


@pytest.mark.parametrize("consensus", [None, 1, 2, 3, 5, 10, 39, 40])
@pytest.mark.parametrize("classes", [2, 10])
def test_long_ballots_of_all_kinds(classes: int, consensus: int | None) -> None:
    votes, chance = 40, random.Random(classes)
    ballots: list[Ballot] = []
    for i in range(300):
        # From unanimous to uniformly random labels, so that both early and late decisions occur.
        weights = [1.0, *[i / 300] * (classes - 1)]
        ballots.append(tuple(chance.choices(range(classes), weights, k=votes)))
    partial, cast = reveal(as_tensor(ballots, votes), classes, consensus)
    assert winner(partial, classes, consensus).tolist() == [plain_winner(b, consensus) for b in ballots]
    one_by_one = [sequential_cast(ballot, classes, consensus) for ballot in ballots]
    assert all(portions <= single for portions, single in zip(cast.tolist(), one_by_one, strict=True))
    if consensus is None:
        assert cast.tolist() == one_by_one
        # The first ballot is unanimous: 20 of 40 votes decide it, since ties go to the label seen first.
        assert int(cast.min()) == 20
        assert int(cast.max()) == votes


def sequential_cast(ballot: Ballot, classes: int, consensus: int | None) -> int:
    """Votes that a one-by-one rule casts: stop at the consensus; without one, once no rival can overtake."""
    for length in range(1, len(ballot) + 1):
        cast, left = ballot[:length], len(ballot) - length
        if consensus is not None:
            if length >= consensus and len(set(cast[-consensus:])) == 1:
                return length
            continue
        leader = plain_majority(cast)
        # The rival's best case: all outstanding votes.
        rivals = (label for label in range(classes) if label != leader)
        if all(plain_majority((*cast, *[rival] * left)) == leader for rival in rivals):
            return length
    return len(ballot)


def test_rows_do_not_influence_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    full = torch.randint(3, (50, 9), generator=generator)
    cast = torch.randint(1, 10, (50, 1), generator=generator)
    ballots = torch.where(torch.arange(9) < cast, full, NOT_CAST)
    together = votes_needed(ballots, 3, 4)
    alone = torch.cat([votes_needed(ballots[i : i + 1], 3, 4) for i in range(50)])
    assert torch.equal(together, alone)
    assert together.unique().numel() > 1


@st.composite
def elections(draw: st.DrawFn) -> tuple[int, Ballot, int, int | None]:
    """Classes, all votes of a row, how many of them are cast, and the consensus; larger than SMALL."""
    classes, votes = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    # Runs of equal labels, which single draws would seldom make.
    runs = st.lists(st.tuples(st.integers(0, classes - 1), st.integers(1, 6)), min_size=votes, max_size=votes)
    ballot = tuple(label for label, times in draw(runs) for _ in range(times))[:votes]
    consensus = draw(st.none() | st.integers(1, votes))
    return classes, ballot, draw(st.integers(1, votes)), consensus


@pytest.mark.slow
@given(elections())
def test_large_elections(election: tuple[int, Ballot, int, int | None]) -> None:
    """The winner of all votes, and one that is decided early is the winner of all."""
    classes, ballot, cast, consensus = election
    expected = plain_winner(ballot, consensus)
    # Votes after a consensus are never cast.
    ends = [k for k in range(1, len(ballot) + 1) if consensus is not None and k >= consensus]
    end = next((k for k in ends if len(set(ballot[k - (consensus or 0) : k])) == 1), len(ballot))
    whole, early = (as_tensor([ballot[:count]], len(ballot)) for count in (end, min(cast, end)))
    assert votes_needed(whole, classes, consensus).tolist() == [0]
    assert winner(whole, classes, consensus).tolist() == [expected]
    needed = int(votes_needed(early, classes, consensus)[0])
    assert 0 <= needed <= len(ballot) - min(cast, end)
    if needed == 0:
        assert winner(early, classes, consensus).tolist() == [expected]
