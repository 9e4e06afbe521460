"""Sequential certification: what is proved when, by hand and by simulation, and why it stops."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binom, norm

from diffproof.smoothing.bounds import lower_bound
from diffproof.smoothing.decisions import Decision, Proof, Stop, checkpoints
from diffproof.smoothing.eprocess import chance_of_reaching, critical_counts, lower_limit
from diffproof.smoothing.sequential import RadiusSequence, RadiusTest


def draw(test: RadiusTest | RadiusSequence, p: float, seed: int) -> tuple[Decision, list[int]]:
    """The decision about an image whose draws hit with probability p, and its hits at the checkpoints."""
    rng = np.random.default_rng(seed)
    hits: list[int] = []
    before = 0
    for look in test.checkpoints:
        hits.append((hits[-1] if hits else 0) + int(rng.binomial(look - before, p)))
        before = look
        if (decision := test.decide(hits)).stop:
            return decision, hits
    raise AssertionError("it must end at the last checkpoint")


def radii(decision: Decision) -> list[float]:
    return [proof.radius for proof in decision.proofs]


@pytest.fixture(scope="module")
def three() -> RadiusTest:
    return RadiusTest([0.25, 0.5, 0.75], sigma=0.25, alpha=0.001, n=20_000, exact_share=0.0)


def test_checkpoints_are_fixed_and_geometric() -> None:
    looks = checkpoints(100_000, [11, 43, 318, 200_000])
    assert looks[:4] == (11, 32, 34, 36)
    assert {43, 318} < set(looks)
    assert looks[-1] == 100_000
    assert all(b <= 1.05 * a + 1 for a, b in pairwise(looks[1:]))
    assert len(looks) < 180
    assert checkpoints(5) == (5,)
    assert checkpoints(32) == (32,)


def test_unanimous_draws_prove_each_radius_as_soon_as_they_can(three: RadiusTest) -> None:
    decision = three.decide(three.checkpoints[: three.checkpoints.index(5418) + 1])
    assert decision.stop is Stop.PROVED
    assert [(proof.radius, proof.draws, proof.hits) for proof in decision.proofs] == [
        (0.25, 43, 43),
        (0.5, 318, 318),
        (0.75, 5418, 5418),
    ]
    assert decision.radius == 0.75
    assert [proof.p_a_lower for proof in decision.proofs] == pytest.approx(norm.cdf([1, 2, 3]), rel=1e-15)
    assert decision.draws == decision.hits == 5418


@pytest.mark.slow
def test_a_decision_is_one_of_the_hits_so_far(three: RadiusTest) -> None:
    assert three.decide([]) == Decision(None, 0, 0)
    for p, seed in [(1.0, 0), (0.99, 1), (0.9, 2), (0.6, 3), (0.1, 4)]:
        decision, hits = draw(three, p, seed)
        # Again, by another object, as after an interruption; before the end none stops.
        again = RadiusTest([0.25, 0.5, 0.75], sigma=0.25, alpha=0.001, n=20_000, exact_share=0.0)
        assert again.decide(tuple(hits)) == decision
        assert [again.decide(hits[:k]).stop for k in range(len(hits))] == [None] * len(hits)
        # What is proved stays proved, by the same counts, whatever comes after.
        for k in range(len(hits)):
            proofs = again.decide(hits[:k]).proofs
            assert proofs == decision.proofs[: len(proofs)]


def test_what_is_proved_can_be_proved_again_from_its_counts(three: RadiusTest) -> None:
    for seed in range(30):
        decision, _ = draw(three, 0.97, seed)
        for proof in decision.proofs:
            assert proof.draws in three.checkpoints
            assert proof.hits >= critical_counts(proof.draws, proof.p_a_lower, 0.001)
            assert proof.p_a_lower >= norm.cdf(proof.radius / 0.25) - 1e-15


def test_a_radius_counts_only_after_all_smaller_ones() -> None:
    # 0.3 and 0.31 of sigma are so near that the order in which they pass is a matter of the atom at 1.
    test = RadiusTest([0.0, 0.25, 0.5], sigma=0.25, alpha=0.001, n=1_000, exact_share=0.0)
    for seed in range(40):
        decision, hits = draw(test, 0.985, seed)
        passed = []
        for radius in test.radii:
            critical = critical_counts(test.checkpoints[: len(hits)], norm.cdf(radius / 0.25), 0.001)
            passed.append(bool(np.any(np.array(hits) >= critical)))
        proved = 3 if all(passed) else passed.index(False)
        assert radii(decision) == list(test.radii[:proved])


def test_a_passage_is_not_lost_by_later_misses(three: RadiusTest) -> None:
    looks = three.checkpoints
    end = looks.index(43)
    # Unanimous for 43 draws, then only misses: 0.25 stays proved, and the rest is hopeless.
    hits = [min(look, 43) for look in looks[: end + 4]]
    decision = three.decide(hits)
    assert radii(decision) == [0.25]
    assert decision.stop is Stop.HOPELESS
    assert decision.proofs[0] == Proof(0.25, decision.proofs[0].p_a_lower, 43, 43)


@pytest.mark.parametrize(("p", "most"), [(0.0, 32), (0.3, 32), (0.6, 60), (0.75, 400)])
def test_lost_images_cost_little(p: float, most: int) -> None:
    test = RadiusTest([0.25], sigma=0.25, alpha=0.001, n=100_000)
    ended = [draw(test, p, seed)[0] for seed in range(40)]
    assert {decision.stop for decision in ended} == {Stop.HOPELESS}
    assert np.mean([decision.draws for decision in ended]) <= most
    assert not any(decision.proofs for decision in ended)


def test_a_miss_at_the_start_does_not_end_what_takes_thousands_of_draws() -> None:
    # 0.75 takes 5418 hits. One miss in 32 makes it improbable, but 5% of these draws are looked at.
    for n, stop in [(100_000, None), (5_500, Stop.HOPELESS)]:
        test = RadiusTest([0.75], sigma=0.25, alpha=0.001, n=n, exact_share=0.0)
        assert test.decide([31]).stop is stop
        hits = [look - 1 for look in test.checkpoints if look < 0.05 * 5418]
        assert chance_of_reaching(int(critical_counts(n, norm.cdf(3.0), 0.001)), n, 31, 32) < 0.02
        assert test.decide(hits).stop is stop
    patient = RadiusTest([0.75], sigma=0.25, alpha=0.001, n=100_000, exact_share=0.0)
    assert patient.decide([look - 5 for look in patient.checkpoints if look < 300]).stop is Stop.HOPELESS


def test_without_futility_only_the_impossible_ends() -> None:
    test = RadiusTest([0.5], sigma=0.25, alpha=0.001, n=2_000, futility=0.0, exact_share=0.0)
    needed = int(critical_counts(2_000, norm.cdf(2.0), 0.001))
    for seed in range(10):
        decision, hits = draw(test, 0.95, seed)
        assert decision.stop is Stop.HOPELESS
        assert decision.hits + 2_000 - decision.draws < needed
        before = test.checkpoints[len(hits) - 2]
        assert hits[-2] + 2_000 - before >= needed
    # All misses allowed are made: it ends with all draws.
    spent = RadiusTest([0.5], sigma=0.25, alpha=0.001, n=400, futility=0.0, exact_share=0.0)
    missing = 400 - int(critical_counts(400, norm.cdf(2.0), 0.001))
    decision = spent.decide([max(0, look - missing - 1) for look in spent.checkpoints])
    assert (decision.stop, decision.proofs) == (Stop.SPENT, ())


def test_all_draws_are_tested_exactly() -> None:
    # The fewest hits whose binomial tail at p0 = Φ(1) is half of alpha; the e-process asks for more.
    n, p0 = 1_000, norm.cdf(1.0)
    exact = int(binom.isf(0.0005, n, p0)) + 1
    assert exact < critical_counts(n, p0, 0.001) - 5
    tests = {
        share: RadiusTest([0.25], sigma=0.25, alpha=0.001, n=n, futility=0.0, exact_share=share)
        for share in (0.0, 0.5)
    }
    for hits, share, stop in [
        (exact, 0.5, Stop.PROVED),
        (exact - 1, 0.5, Stop.SPENT),
        (exact, 0.0, Stop.SPENT),
        (int(critical_counts(n, p0, 0.001)), 0.0, Stop.PROVED),
    ]:
        # Misses first, as many as there are: no earlier look proves anything.
        test = tests[share]
        decision = test.decide([max(0, look - (n - hits)) for look in test.checkpoints])
        assert (decision.stop, decision.draws) == (stop, n)
        assert radii(decision) == [0.25] * (stop is Stop.PROVED)
    # Before n the e-process alone decides, with the other half of alpha.
    unanimous = [test.decide(test.checkpoints).proofs[0].draws for test in tests.values()]
    assert unanimous == [43, 47]
    assert critical_counts(46, p0, 0.0005) == 47


def test_what_only_the_exact_test_can_prove_is_no_mistake() -> None:
    # Of 46 hits of 46: their chance at p0, Φ(1)^46 = 0.00035, is below half of alpha, twice of it is not.
    test = RadiusTest([0.25], sigma=0.25, alpha=0.001, n=46)
    assert test.decide(test.checkpoints).stop is Stop.PROVED
    with pytest.raises(ValueError, match=r"radii: 0.25 cannot be proved"):
        RadiusTest([0.25], sigma=0.25, alpha=0.001, n=42, exact_share=0.0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_false_radii_are_as_rare_with_the_exact_test(share: float) -> None:
    # At the worst p, alpha = 0.1, 100,000 images that are looked at to the end. The exact test alone errs in
    # share·alpha of them, less its steps; both together in no more than alpha. Were the rate 0.1 itself, it
    # would come out above 0.1028 once in 1,000 times.
    test = RadiusTest([0.25], sigma=0.25, alpha=0.1, n=500, futility=0.0, exact_share=share)
    looks = np.array(test.checkpoints)
    rng = np.random.default_rng(16)
    hits = rng.binomial(np.diff([0, *looks]), norm.cdf(1.0), (100_000, len(looks))).cumsum(1)
    ever = critical_counts(looks, norm.cdf(1.0), 0.1 * (1 - share))
    exact = int(binom.isf(0.1 * share, 500, norm.cdf(1.0))) + 1
    false = (hits >= ever).any(1) | (hits[:, -1] >= exact)
    assert 0.8 * 0.1 * share < false.mean() < 0.1028
    for row in range(0, 100_000, 500):
        assert bool(test.decide(hits[row].tolist()).proofs) == false[row]


def test_the_sequence_of_radii_ends_with_the_exact_bound() -> None:
    sequence = RadiusSequence(sigma=0.5, alpha=0.001, n=1_000, tolerance=1e-6, futility=0.0)
    decision = sequence.decide([round(0.9 * look) for look in sequence.checkpoints])
    assert decision.proofs[0].p_a_lower == lower_bound(900, 1_000, 0.0005) > lower_limit(900, 1_000, 0.0005)
    assert sequence.largest == pytest.approx(0.5 * norm.ppf(0.0005**0.001), rel=1e-12)
    # Below ½ neither proves anything.
    assert sequence.decide([look // 3 for look in sequence.checkpoints]).radius is None


@pytest.mark.slow
def test_futility_gives_up_what_it_says() -> None:
    # With probabilities from the prediction's prior, an image that it gives up would have been proved at n as
    # often as predicted, 2% at most.
    test = RadiusTest([0.25], sigma=0.25, alpha=0.001, n=10_000, futility=0.02, exact_share=0.0)
    critical = int(critical_counts(10_000, norm.cdf(1.0), 0.001))
    rng, lost = np.random.default_rng(6), []
    for seed in range(700):
        p = rng.beta(0.5, 0.5)
        decision, _ = draw(test, p, seed)
        if decision.stop is Stop.HOPELESS:
            assert chance_of_reaching(critical, 10_000, decision.hits, decision.draws) <= 0.02
            lost.append(binom.sf(critical - decision.hits - 1, 10_000 - decision.draws, p))
    assert len(lost) > 230
    assert 0.0005 < np.mean(lost) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("asked", [[0.25, 0.5, 0.75], [0.0, 0.25, 0.5, 0.75]])
def test_draws_saved_on_images_like_cohens(asked: list[float]) -> None:
    # p_A of ResNet-110 on CIFAR-10 at sigma 0.25: 8.6% abstain, 13% are at the maximal radius.
    rng = np.random.default_rng(7)
    shares, levels = [0.086, 0.1, 0.25, 0.5, 0.75, 0.87], [0.5, 0.637, 0.797, 0.974, 0.9994, 0.99993]
    share = rng.random(150)
    p = np.where(share > 0.87, 1.0, norm.cdf(np.interp(share, shares, norm.ppf(levels))))
    p[share < 0.086] = 0.5
    test = RadiusTest(asked, sigma=0.25, alpha=0.001, n=100_000)
    ended = [draw(test, chance, seed)[0] for seed, chance in enumerate(p)]
    # 12 to 19 times fewer, with a standard error of some 14%, at the accuracies of all 100,000 draws.
    assert np.mean([decision.draws for decision in ended]) < 100_000 / 8
    for radius in asked:
        certified = np.mean([radius in radii(decision) for decision in ended])
        bounds = [lower_bound(int(rng.binomial(100_000, chance)), 100_000, 0.001) for chance in p]
        assert abs(certified - np.mean(np.array(bounds) > norm.cdf(radius / 0.25))) < 0.025


def test_failures_of_draws_raise_what_is_needed() -> None:
    plain, careful = (
        RadiusTest([0.25], sigma=0.25, alpha=0.001, n=1_000, failure_mass=mass) for mass in (0.0, 0.01)
    )
    first = [test.decide(test.checkpoints[:20]).proofs[0] for test in (plain, careful)]
    assert first[1].p_a_lower == pytest.approx(first[0].p_a_lower + 0.01, rel=1e-12)
    assert first[1].draws > first[0].draws
    sequences = (
        RadiusSequence(sigma=0.25, alpha=0.001, n=1_000, tolerance=0.01, failure_mass=mass)
        for mass in (0.0, 0.01)
    )
    with_none, with_some = (sequence.decide(sequence.checkpoints) for sequence in sequences)
    assert with_some.radius is not None
    assert with_none.radius is not None
    assert with_some.radius == pytest.approx(
        0.25 * norm.ppf(norm.cdf(with_none.radius / 0.25) - 0.01), rel=1e-9
    )


@pytest.fixture(scope="module")
def growing() -> RadiusSequence:
    return RadiusSequence(sigma=0.5, alpha=0.001, n=10_000, tolerance=0.02, exact_share=0.0)


@pytest.mark.slow
def test_the_radius_grows_to_the_tolerance(growing: RadiusSequence) -> None:
    for p, seed in [(1.0, 0), (0.9, 2), (0.6, 3)]:
        decision, hits = draw(growing, p, seed)
        radius = decision.radius
        assert radius is not None
        assert len(decision.proofs) == 1
        assert 0.8 * 0.5 * norm.ppf(min(p, 0.9995)) - 0.05 < radius < 0.5 * norm.ppf(p)
        assert decision.stop in (Stop.SETTLED, Stop.SPENT)
        # A running maximum, from the counts that the proof states.
        proved = [growing.decide(hits[:k]).radius or 0.0 for k in range(len(hits) + 1)]
        assert proved == sorted(proved)
        proof = decision.proofs[0]
        assert critical_counts(proof.draws, proof.p_a_lower, 0.001) <= proof.hits
        assert radius == pytest.approx(0.5 * norm.ppf(proof.p_a_lower), rel=1e-12)


@pytest.mark.slow
def test_a_larger_tolerance_ends_sooner(growing: RadiusSequence) -> None:
    coarse = RadiusSequence(sigma=0.5, alpha=0.001, n=10_000, tolerance=0.1)
    for seed in range(2):
        fine, rough = draw(growing, 0.95, seed)[0], draw(coarse, 0.95, seed)[0]
        assert rough.draws < fine.draws
        assert rough.radius is not None
        assert fine.radius is not None
        assert rough.radius <= fine.radius + 1e-12


def test_abstaining_images_end_soon(growing: RadiusSequence) -> None:
    for p in (0.0, 0.2, 0.4):
        decision, _ = draw(growing, p, seed=0)
        assert (decision.stop, decision.radius) == (Stop.HOPELESS, None)
        assert decision.draws < 600


@pytest.mark.slow
def test_without_futility_the_radius_ends_where_it_cannot_grow() -> None:
    sequence = RadiusSequence(sigma=0.5, alpha=0.001, n=1_000, tolerance=0.05, futility=0.0, exact_share=0.0)
    for seed in range(2):
        decision, hits = draw(sequence, 0.9, seed)
        if decision.stop is Stop.SETTLED:
            assert decision.radius is not None
            # Were all further draws to hit, it would not be worth it; at the look before, it was.
            rest = [look - decision.draws + decision.hits for look in sequence.checkpoints[len(hits) :]]
            best = sequence.decide([*hits, *rest]).radius
            assert best is not None
            assert best <= decision.radius + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.6, 0.9])
def test_the_radius_is_too_large_where_the_test_of_the_true_one_errs(p: float) -> None:
    # So the false alarms of the e-process bound those of the sequence of radii, at any time.
    sequence = RadiusSequence(sigma=1.0, alpha=0.4, n=400, tolerance=1e-9, futility=0.0, exact_share=0.0)
    critical = critical_counts(sequence.checkpoints, p, 0.4)
    rng, wrong = np.random.default_rng(8), 0
    for _ in range(80):
        hits = np.cumsum(rng.binomial(np.diff([0, *sequence.checkpoints]), p))
        radius = sequence.decide(hits.tolist()).radius
        too_large = radius is not None and radius > norm.ppf(p)
        assert too_large == np.any(hits >= critical)
        wrong += too_large
    assert 0 < wrong < 32


def bad_hits() -> list[tuple[Sequence[int], str]]:
    return [
        ([33], r"hits: expected 0 to 32 of 32, got 33"),
        ([-1], r"hits: expected 0 to 32 of 32, got -1"),
        ([20, 19], r"hits: expected 20 to 22 of 34, got 19"),
        ([20, 23], r"hits: expected 20 to 22 of 34, got 23"),
        ([0] * 500, r"hits: expected at most \d+ numbers, got 500"),
    ]


@pytest.mark.parametrize(("hits", "message"), bad_hits())
def test_hits_that_no_draws_give(growing: RadiusSequence, hits: Sequence[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        growing.decide(hits)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"radii": [0.25, 1.2]},
            r"radii: 1.2 cannot be proved: at sigma 0.25 and alpha 0.001 1000 draws prove",
        ),
        ({"radii": [9e9]}, r"radii: 9e\+09 cannot be proved"),
        ({"radii": [0.5, 0.25]}, r"radii: expected ascending numbers, got \[0.5, 0.25\]"),
        ({"radii": [0.5, 0.5]}, r"radii: expected ascending numbers, got \[0.5, 0.5\]"),
        ({"radii": []}, r"radii: expected ascending numbers, got \[\]"),
        ({"radii": [-0.1]}, r"radii: expected a finite number ≥ 0, got -0.1"),
        ({"radii": 0.5}, r"radii: expected a list, got 0.5"),
        ({"sigma": 0}, r"sigma: expected a finite number > 0, got 0"),
        ({"alpha": 0.6}, r"alpha: expected a number in \(0, 0.5\], got 0.6"),
        ({"n": 0}, r"n: expected an integer ≥ 1, got 0"),
        ({"futility": 1.5}, r"futility: expected a number in \[0, 1\], got 1.5"),
        ({"exact_share": 1.0}, r"exact_share: expected a number in \[0, 1\), got 1.0"),
        ({"exact_share": 0.9, "alpha": 5e-324}, r"exact_share: leaves nothing of alpha 4.94066e-324"),
        ({"exact_share": -0.1}, r"exact_share: expected a number in \[0, 1\), got -0.1"),
        ({"failure_mass": -1.0}, r"failure_mass: expected a finite number ≥ 0, got -1.0"),
        ({"n": 5}, r"radii: 0.25 cannot be proved: .* 5 draws prove at most 0, if all hit"),
    ],
)
def test_arguments_out_of_range(given: dict[str, object], message: str) -> None:
    arguments = {"radii": [0.25], "sigma": 0.25, "alpha": 0.001, "n": 1_000, **given}
    with pytest.raises(ValueError, match=message):
        RadiusTest(**arguments)  # type: ignore[arg-type]


def test_tolerances_out_of_range() -> None:
    for tolerance in (0.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"tolerance: expected a finite number > 0, got"):
            RadiusSequence(sigma=0.5, alpha=0.001, n=10, tolerance=tolerance)
