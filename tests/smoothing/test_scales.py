"""Several noise levels: cascades and chosen levels against exact classifiers, radii and false certificates.

The base classifiers label images by their first pixel alone, so that every probability is a difference of
normal ones and the nearest image with another answer lies along that axis.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm
from torch import Tensor

import diffproof as dp
from diffproof.cli.main import run
from diffproof.noise import Noise, Stream
from diffproof.smoothing.bounds import lower_bound, upper_bound
from diffproof.smoothing.grid_noise import as_noise
from diffproof.smoothing.rules import Cascade, Chosen, Rule, rule_of
from diffproof.smoothing.scaled import BlockNoise

pytestmark = pytest.mark.usefixtures("small_digits")

SIGMAS = (0.25, 0.5, 1.0)
# The share of false certificates is a binomial one: a sound rule fails with this probability, at most.
FALSE_ALARM = 1e-6
# Class 0 between 0 and 0.7, class 1 below and class 2 above: a half-space each but the first.
EDGES, LABELS = (0.0, 0.7), (1, 0, 2)


def probabilities(place: float, sigma: float) -> np.ndarray[Any, Any]:
    """Of the three classes at a first pixel, under noise."""
    below = norm.cdf((np.array(EDGES) - place) / sigma)
    pieces = np.diff([0.0, *below, 1.0])
    return np.array([pieces[[at == label for at in LABELS]].sum() for label in range(3)])


def cascade_answer(place: float, threshold: float) -> int | None:
    """The class of the first level, from the largest down, that has one above the threshold."""
    for sigma in SIGMAS[::-1]:
        shares = probabilities(place, sigma)
        if shares.max() > threshold:
            return int(shares.argmax())
    return None


def choice(place: float, sigma: float) -> np.ndarray[Any, Any]:
    """Of the levels: the chooser names the smallest below 0.6, the middle one to 1.2, the largest beyond."""
    return np.diff([0.0, *norm.cdf((np.array([0.6, 1.2]) - place) / sigma), 1.0])


def chosen_answer(place: float, sigma: float) -> int:
    return int(probabilities(place, SIGMAS[int(choice(place, sigma).argmax())]).argmax())


def true_radius(answer: Any, place: float, reach: float = 3.0) -> float:
    """How far the answer stays, on a fine line; 0 where there is none."""
    own = answer(place)
    if own is None:
        return 0.0
    for step in np.arange(1, round(reach / 1e-3)) * 1e-3:
        if answer(place + step) != own or answer(place - step) != own:
            return float(step)
    return reach


def drawn(rng: np.random.Generator, shares: list[np.ndarray[Any, Any]], draws: int) -> list[int]:
    return [int(one) for block in shares for one in rng.multinomial(draws, block)]


def false_rate(
    rule: Rule,
    shares: list[np.ndarray[Any, Any]],
    label: int | None,
    radius: float,
    alpha: float,
    images: int = 600,
) -> tuple[int, int]:
    """False and all certificates of many images with these probabilities."""
    rng, false, certified = np.random.default_rng(3), 0, 0
    for _ in range(images):
        settled = rule.settle(drawn(rng, shares, 40), drawn(rng, shares, 300), alpha, 0.0)
        certified += settled.proved.radius > 0
        false += settled.proved.radius > 0 and (settled.label != label or settled.proved.radius > radius)
    assert false <= binom.ppf(1 - FALSE_ALARM, images, alpha)
    return false, certified


# Where a level is at its threshold, or an answer about to change.
@pytest.mark.parametrize("place", [-0.6, -0.1, 0.0, 0.1, 0.35, 0.62, 0.9])
def test_a_cascade_is_hardly_ever_wrong(place: float) -> None:
    rule, alpha = Cascade(SIGMAS), 0.1
    shares = [probabilities(place, sigma) for sigma in SIGMAS[::-1]]
    radius = true_radius(lambda at: cascade_answer(at, 0.5), place)
    false_rate(rule, shares, cascade_answer(place, 0.5), radius, alpha)


@pytest.mark.parametrize("place", [-0.2, 0.02, 0.35, 0.58, 0.7, 0.9, 1.25])
def test_a_chosen_level_is_hardly_ever_wrong(place: float) -> None:
    rule, alpha = Chosen(SIGMAS, 0.3), 0.1
    shares = [choice(place, 0.3), *(probabilities(place, sigma) for sigma in SIGMAS)]
    radius = true_radius(lambda at: chosen_answer(at, 0.3), place)
    false_rate(rule, shares, chosen_answer(place, 0.3), radius, alpha)


@pytest.mark.slow
def test_false_certificates_at_the_threshold_of_every_level() -> None:
    """The worst cases: the true radius is 0, since a probability is at the threshold."""
    alpha = 0.1
    other = np.array([0.2, 0.3, 0.5])
    own = np.array([0.95, 0.04, 0.01])
    # The smallest level answers 0 for sure; a larger one is about to answer 2.
    for place in range(2):
        shares = [np.array([0.45, 0.45, 0.1])] * 2 + [own]
        shares[place] = other
        false_rate(Cascade(SIGMAS), shares, 0, 0.0, alpha, 2000)
    # Level by level the class itself is at the threshold, and no other one is.
    for place in range(3):
        shares = [np.array([0.3, 0.3, 0.4])] * 3
        shares[place] = np.array([0.5, 0.3, 0.2])
        false_rate(Cascade(SIGMAS), shares, None, 0.0, alpha, 2000)
    # A chooser that wavers, and a class that does.
    split = np.array([0.5, 0.5, 0.0])
    false_rate(Chosen(SIGMAS, 0.3), [split, own, other, own], None, 0.0, alpha, 2000)
    false_rate(Chosen(SIGMAS, 0.3), [own, split, own, own], None, 0.0, alpha, 2000)


def test_most_of_what_is_true_is_certified() -> None:
    shares = [np.array([0.4, 0.35, 0.25]), np.array([0.45, 0.3, 0.25]), np.array([0.99, 0.01, 0.0])]
    false, certified = false_rate(Cascade(SIGMAS), shares, 0, 9.0, 0.1)
    assert false == 0
    # Some have another class ahead at first, of which the larger levels say nothing.
    assert certified > 500


def flat(blocks: list[list[int]]) -> list[int]:
    return [count for block in blocks for count in block]


def papers_radius(
    selection: list[list[int]], counts: list[list[int]], stage: int, alpha: float, p0: float
) -> float:
    """Theorem 3.1 of Jeong & Shin 2023, with Clopper and Pearson's bounds at alpha/(stage + 1)."""
    label, own, n = int(np.argmax(selection[stage])), alpha / (stage + 1), [sum(one) for one in counts]
    sigmas, q = SIGMAS[::-1], norm.ppf
    radii = [sigmas[stage] * (q(lower_bound(counts[stage][label], n[stage], own)) - q(p0))]
    for j in range(stage):

        def above(some: list[int], draws: int) -> tuple[float, float]:
            others = [count for at, count in enumerate(some) if at != label]
            return 1 - lower_bound(some[label], draws, own), max(
                upper_bound(count, draws, own / len(others)) for count in others
            )

        way = int(np.argmin(above(selection[j], sum(selection[j]))))
        radii.append(sigmas[j] * (q(p0) - q(above(counts[j], n[j])[way])))
    return max(0.0, float(min(radii)))


@pytest.mark.parametrize("threshold", [0.5, 0.6])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_radius_is_the_papers(stage: int, threshold: float) -> None:
    mixed, clear = [30, 40, 30], [4, 3, 93]
    selection = [mixed if at < stage else clear for at in range(3)]
    counts = [[10 * count + at for count in block] for at, block in enumerate(selection)]
    rule = Cascade(SIGMAS, threshold)
    settled = rule.settle(flat(selection), flat(counts), 0.01, 0.0)
    assert (settled.label, settled.scale, settled.cell) == (2, 2 - stage, 3 * stage + 2)
    expected = papers_radius(selection, counts, stage, 0.01, threshold)
    assert expected > 0.05
    assert settled.proved.radius <= expected
    assert settled.proved.radius == pytest.approx(expected, rel=1e-6)
    less = rule.settle(flat(selection), flat(counts), 0.01, 0.01)
    assert 0 < less.proved.radius < settled.proved.radius


def test_the_radius_of_a_chosen_level() -> None:
    votes, found = [1, 2, 97], [[5, 90, 5], [5, 90, 5], [2, 0, 98]]
    counts = [*votes, *found[0], *found[1], *found[2]]
    settled = Chosen(SIGMAS, 0.3).settle(counts, counts, 0.01, 0.0)
    choice_radius = 0.3 * norm.ppf(lower_bound(97, 100, 0.005))
    assert (settled.label, settled.scale, settled.cell) == (2, 2, 11)
    assert settled.proved.radius == pytest.approx(choice_radius, rel=1e-6)
    wide = Chosen(SIGMAS, 3.0).settle(counts, counts, 0.01, 0.0)
    assert wide.proved.radius == pytest.approx(1.0 * norm.ppf(lower_bound(98, 100, 0.005)), rel=1e-6)


@pytest.mark.parametrize("rule", [Cascade(SIGMAS, 0.6), Chosen(SIGMAS, 0.3)])
def test_a_rule_is_made_again(rule: Rule) -> None:
    assert rule_of(rule.stated() | {"scale": 1}) == rule
    sizes = [block.labels for block in rule.blocks(3)]
    unanimous = [300 if at == 0 else 0 for size in sizes for at in range(size)]
    if isinstance(rule, Chosen):
        unanimous[:3] = [0, 0, 300]
    radius = rule.settle(unanimous, unanimous, 0.01, 0.0).proved.radius
    assert rule.largest(300 * len(sizes), 0.01) == pytest.approx(radius, rel=1e-6)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"kind": "best", "sigmas": [0.1, 0.2]}, "scales: expected the kind cascade or chosen"),
        ({"kind": "cascade", "sigmas": [0.2, 0.1]}, "scales: expected two or more ascending noise levels"),
        ({"kind": "cascade", "sigmas": [0.2]}, "scales: expected two or more ascending noise levels"),
        ({"kind": "cascade"}, "scales: not readable: 'sigmas'"),
        (
            {"kind": "cascade", "sigmas": [0.1, 0.2], "threshold": 0.4},
            r"threshold: expected a number in",
        ),
        ({"kind": "chosen", "sigmas": [0.1, 0.2], "choice_sigma": 0.0}, "choice_sigma: expected"),
    ],
)
def test_rules_that_are_none(stated: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        rule_of(stated)


# The program.


def by_first_pixel(noisy: Tensor) -> Tensor:
    return torch.tensor(LABELS)[torch.bucketize(noisy[:, 0, 0, 0].double(), torch.tensor(EDGES).double())]


def image(place: float) -> Tensor:
    return torch.full((1, 1, 2), place)


def test_draws_have_the_noise_of_their_level() -> None:
    """Twelve standard errors of each standard deviation: chance fails this once in 10^30."""
    noise = BlockNoise([as_noise("grid", sigma, None) for sigma in SIGMAS])
    draws = Noise.for_draws(0, Stream.ESTIMATION, 0, 0, 600)
    added = noise.added(torch.full((1, 8, 8), 0.4), draws) - 0.4
    for place, sigma in enumerate(SIGMAS):
        own = added[place::3]
        assert float(own.std()) == pytest.approx(sigma, rel=12 / (2 * own.numel()) ** 0.5)
        alone = as_noise("grid", sigma, None).added(torch.full((1, 8, 8), 0.4), draws)[place::3] - 0.4
        assert torch.equal(own, alone)


@pytest.mark.slow
def test_the_program_certifies_what_the_counts_say() -> None:
    smoothed = dp.MultiScale(by_first_pixel, SIGMAS, num_classes=3, noise="continuous")
    found = smoothed.certify(image(0.35), n0=90, n=900, alpha=0.01, seed=5)
    # No class has half of the probability at the largest level; class 0 does at the smaller ones.
    assert found.scales == {"kind": "cascade", "sigmas": [0.25, 0.5, 1.0], "threshold": 0.5, "scale": 0}
    assert found.label == 0
    assert 0 < found.radius < true_radius(lambda at: cascade_answer(at, 0.5), 0.35)
    assert found.recompute().radius == found.radius
    for block, sigma in enumerate(SIGMAS[::-1]):
        own = found.counts[3 * block : 3 * block + 3]
        assert sum(own) == 300
        expected = 300 * probabilities(0.35, sigma)
        # Five standard errors each: once in 2·10^5, at fixed seeds.
        assert np.abs(np.array(own) - expected).max() < 5 * np.sqrt(300 / 4)
    assert dp.Certificate.from_json(found.to_json()) == found
    again = smoothed.certify(image(0.35), n0=90, n=900, alpha=0.01, seed=5, batch_size=7)
    assert again.counts == found.counts
    assert smoothed.predict(image(0.35), n=900) == 0
    assert smoothed.predict(image(0.7), n=60) is None


def test_a_chooser_and_a_base() -> None:
    def chooser(noisy: Tensor) -> Tensor:
        return torch.bucketize(noisy[:, 0, 0, 0].double(), torch.tensor([0.6, 1.2]).double())

    smoothed = dp.DualSmoothed(
        by_first_pixel, SIGMAS, chooser=chooser, choice_sigma=0.3, num_classes=3, noise="continuous"
    )
    found = smoothed.certify(image(0.3), n0=80, n=1600, alpha=0.01)
    assert found.label == 0
    assert found.scales is not None
    assert found.scales["scale"] == 0
    assert 0 < found.radius < true_radius(lambda at: chosen_answer(at, 0.3), 0.3)
    assert (found.hits, found.bounded) == (found.counts[3], 400)
    with pytest.raises(ValueError, match=r"^chooser: expected a class for each of 3 levels, got 10"):
        dp.DualSmoothed(
            by_first_pixel,
            SIGMAS,
            chooser=dp.Undefended(dp.load_classifier("digits")),
            choice_sigma=0.3,
            num_classes=3,
        )


@pytest.mark.slow
def test_it_is_sent_to_workers() -> None:
    defense = dp.Undefended(dp.load_classifier("digits"))
    smoothed = dp.DualSmoothed(
        defense, [0.05 * one for one in range(1, 11)], chooser=defense, choice_sigma=0.2
    )
    sent = pickle.loads(pickle.dumps(smoothed))
    picture = dp.load_data("digits", indices="0:1").images[0]
    found = [one.certify(picture, n0=11, n=22).counts for one in (smoothed, sent)]
    assert found[0] == found[1]


def test_what_several_levels_do_not_have() -> None:
    smoothed = dp.MultiScale(by_first_pixel, SIGMAS, num_classes=3)
    with pytest.raises(ValueError, match=r"^bound: several noise levels have their own"):
        smoothed.certify(image(0.3), n0=9, n=9, bound="two-sided")
    with pytest.raises(ValueError, match=r"^stop: expected fixed with several noise levels"):
        smoothed.certify(image(0.3), n0=9, n=9, stop="sequential")
    with pytest.raises(ValueError, match=r"^n0: 3 noise levels share the draws; expected as many, got 2"):
        smoothed.certify(image(0.3), n0=2, n=9)


# Run folders.


def certify(folder: Path, *more: str, defense: str = "dds") -> list[str]:
    flags = f"--data digits --indices 0:20:5 --denoiser digits --classifier digits --defense {defense}"
    return ["certify", *flags.split(), "--n0", "30", "--n", "90", *more, "--out", str(folder)]


@pytest.mark.slow
def test_a_run_at_several_levels_goes_on_and_is_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    levels = ["--sigma", "0.5", "--scales", "0.12,0.25,0.5"]
    folder = tmp_path / "run"
    assert run([*certify(folder, *levels), "--indices", "0:10:5"]) == 0
    assert run(certify(folder, *levels)) == 0
    opened = dp.open_run(folder)
    assert isinstance(opened.settings.scales, str)  # type: ignore[union-attr]
    assert run(["verify", str(folder), "--resample", "2", "--trust"]) == 0
    assert run(["verify", str(folder), "--counts"]) == 0
    assert run(["report", str(folder)]) == 0
    assert "scales 0.12,0.25,0.5" in " ".join(capsys.readouterr().out.split())
    images, _ = dp.load_data("digits", indices="0:20:5")
    defense = dp.load_defense(
        "dds", denoiser=dp.load_denoiser("digits"), classifier=dp.load_classifier("digits")
    )
    stored = next(one for one in opened.certification if one.image_index == 5)  # type: ignore[union-attr]
    smoothed = dp.MultiScale(defense, (0.12, 0.25, 0.5), levels=stored.levels)
    own = smoothed.certify(images[1], n0=30, n=90, image_index=5)
    assert (own.counts, own.radius, own.scales) == (stored.counts, stored.radius, stored.scales)
    assert run([*certify(folder, *levels), "--threshold", "0.6"]) == 2
    assert "threshold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--sigma 0.25 --scales 0.12,0.5",
            "the largest of the scales is 0.5; expected that, got 0.25",
        ),
        ("--sigma 0.5 --scales 0.5,0.12", "scales: expected two or more ascending noise levels"),
        ("--sigma 0.5 --scales 0.25,x", "scales: expected numbers with commas between"),
        ("--sigma 0.5 --threshold 0.6", "threshold: expected scales with it, got 0.6"),
        ("--sigma 0.5 --chooser digits", "chooser: expected scales with it, got digits"),
        ("--sigma 0.5 --scales 0.25,0.5 --threshold 0.4", "threshold: expected a number in [0.5, 1)"),
        ("--sigma 0.5 --scales 0.25,0.5 --stop sequential", "stop: expected fixed with several noise levels"),
        ("--sigma 0.5 --scales 0.25,0.5 --chooser digits", "chooser: expected a class for each of 2 levels"),
    ],
)
def test_levels_that_are_refused(
    flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(certify(tmp_path / "run", *flags.split())) == 2
    assert message.replace("scales: ", "") in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_chooser_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A classifier of ten classes chooses among ten levels."""
    scales = ",".join(f"{0.1 + 0.02 * one:.2f}" for one in range(10))
    folder = tmp_path / "run"
    words = certify(folder, "--sigma", "0.2", "--scales", scales, "--chooser", "digits", defense="dds")
    words[words.index("90")] = "220"
    assert run(words) == 0
    assert run(["verify", str(folder), "--resample", "1", "--trust"]) == 0
    assert run(["report", str(folder)]) == 0
    assert "by digits" in " ".join(capsys.readouterr().out.split())
