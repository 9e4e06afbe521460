"""Choosing images: at random by the seed, of each class, and apart from those that are trained on."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import diffproof as dp
from diffproof.data.indices import choose, hold_out
from diffproof.data.trained_on import TrainedOn

# In the order of their classes, as folders are: 200 images of class 0, 60 of class 1, 3 of class 2.
LABELS = torch.tensor([0] * 200 + [1] * 60 + [2] * 3)


def counts(indices: list[int]) -> list[int]:
    return torch.bincount(LABELS[indices], minlength=3).tolist()


@pytest.mark.parametrize(
    ("choice", "count"),
    [
        ({}, 263),
        ({"limit": 100}, 100),
        ({"limit": 263}, 263),
        ({"limit": 10_000}, 263),
        ({"indices": "0:263:2"}, 132),
        ({"indices": "0:263:2", "limit": 20}, 20),
        ({"indices": "7,3", "limit": 20}, 2),
        ({"per_class": 5}, 13),
        ({"per_class": 1}, 3),
        ({"per_class": 1_000}, 263),
        ({"per_class": 5, "limit": 6}, 6),
        ({"indices": "190:210", "per_class": 4}, 8),
        ({"without": range(100), "limit": 150}, 150),
        ({"without": range(200), "limit": 150}, 63),
        ({"without": range(263)}, 0),
    ],
)
def test_choices(choice: dict[str, Any], count: int) -> None:
    for seed in (0, 1):
        chosen = choose(LABELS, **choice, seed=seed)
        assert len(chosen) == count
        assert chosen == sorted(set(chosen)) == choose(LABELS, **choice, seed=seed)
        if "indices" in choice:
            assert set(chosen) <= set(choose(LABELS, indices=choice["indices"]))
        assert not set(chosen) & set(choice.get("without", ()))
        if "per_class" in choice and "indices" not in choice and "limit" not in choice:
            assert counts(chosen) == [min(choice["per_class"], number) for number in (200, 60, 3)]


@pytest.mark.parametrize("choice", [{"limit": 100}, {"per_class": 5}, {"indices": "0:263:2", "limit": 20}])
def test_another_seed_chooses_others(choice: dict[str, Any]) -> None:
    assert choose(LABELS, **choice, seed=1) != choose(LABELS, **choice, seed=0)


def test_a_limit_takes_every_class_by_its_share() -> None:
    # Hypergeometric: 76 of class 0 among 100, with a standard deviation of 3.4.
    found = torch.tensor([counts(choose(LABELS, limit=100, seed=seed)) for seed in range(50)]).double()
    mean = found.mean(0)
    assert abs(mean[0] - 100 * 200 / 263) < 4 * 3.4 / 50**0.5
    assert abs(mean[1] - 100 * 60 / 263) < 4 * 3.4 / 50**0.5
    # Nor is any place preferred: each image is taken in about 100/263 of all draws.
    taken = torch.bincount(torch.tensor([i for s in range(400) for i in choose(LABELS, limit=100, seed=s)]))
    assert float((taken / 400 - 100 / 263).abs().max()) < 5 * (0.38 * 0.62 / 400) ** 0.5


def test_more_images_are_added_to_those_of_a_smaller_number() -> None:
    few, more = (choose(LABELS, limit=limit) for limit in (40, 90))
    assert set(few) < set(more)
    assert set(choose(LABELS, per_class=2)) < set(choose(LABELS, per_class=9))


def test_what_is_chosen_is_the_same_on_every_machine() -> None:
    assert choose(LABELS, limit=6, seed=3) == choose(LABELS.int(), limit=6, seed=3)
    # The least of sha256("images 0 INDEX"), by Python's own sha256 alone.
    assert choose(torch.zeros(20, dtype=torch.int64), limit=5, seed=0) == [0, 1, 3, 9, 19]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"limit": 0}, "limit: expected an integer ≥ 1, got 0"),
        ({"per_class": 0}, "per_class: expected an integer ≥ 1, got 0"),
        ({"per_class": -1}, "per_class: expected an integer ≥ 1, got -1"),
        ({"limit": 2, "seed": 0.5}, "seed: expected an integer ≥ 0, got 0.5"),
        ({"indices": "0:264"}, "indices: the data has 263 images (0 to 262), got '0:264'"),
    ],
)
def test_bad_choices(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        choose(LABELS, **choice)


@pytest.mark.parametrize(
    ("share", "held"),
    [(0.1, [20, 6, 0]), (0.5, [100, 30, 2]), (0.9, [180, 54, 2]), (0.999, [199, 59, 2]), (0.01, [2, 1, 0])],
)
def test_shares_held_out(share: float, held: list[int]) -> None:
    everything = list(range(len(LABELS)))
    kept, apart = hold_out(LABELS, everything, share, seed=4)
    assert counts(apart) == held
    assert sorted(kept + apart) == everything
    assert hold_out(LABELS, everything, share, seed=4) == (kept, apart)
    assert hold_out(LABELS, everything, share, seed=5)[1] != apart
    # Those held out are none that a limit of the same seed would take first.
    if share == 0.1:
        assert len(set(apart) & set(choose(LABELS, limit=len(apart), seed=4))) < len(apart)


@pytest.mark.parametrize(
    ("share", "chosen", "message"),
    [
        (0.0, 100, "expected a number in (0, 1), got 0.0"),
        (1.0, 100, "expected a number in (0, 1), got 1.0"),
        (float("nan"), 100, "expected a number in (0, 1), got nan"),
        (0.1, 3, "0.1 of 3 images is none, as one a class stays"),
        (0.9, 1, "0.9 of 1 image is none, as one a class stays"),
    ],
)
def test_bad_shares(share: float, chosen: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^holdout: {re.escape(message)}$"):
        hold_out(LABELS, list(range(chosen)), share, seed=0)


def test_loaded_data_is_chosen_alike() -> None:
    whole = dp.load_data("digits")
    choices: list[dict[str, Any]] = [
        {"limit": 9, "seed": 2},
        {"per_class": 3},
        {"indices": "0:100", "limit": 9},
    ]
    for choice in choices:
        data = dp.load_data("digits", **choice)
        indices = choose(whole.labels, **choice)
        assert torch.equal(data.images, whole.images[indices])
        assert torch.equal(data.labels, whole.labels[indices])
    assert torch.bincount(dp.load_data("digits", per_class=3).labels).tolist() == [3] * 10


# ---- records


def data_of(seed: int = 0, name: str = "pets", split: str = "train", count: int = 40) -> dp.ImageData:
    images = torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed))
    return dp.ImageData(name, split, images, torch.arange(count) % 2, ("cat", "dog"))


@pytest.mark.parametrize(
    ("other", "size", "same"),
    [
        (data_of(), None, True),
        # Under another name it is the same; under the same name it may be other images.
        (data_of(name="copy", split="all"), None, True),
        (data_of(seed=1), None, False),
        (data_of(count=39), None, False),
        # At another size, as far as name and labels tell.
        (data_of(seed=1), 16, True),
        (data_of(seed=1, name="copy"), 16, False),
    ],
)
def test_records_know_their_data(other: dp.ImageData, size: int | None, same: bool) -> None:
    record = TrainedOn.of(data_of(), None, holdout=0.25, seed=3)
    assert record.same_data(TrainedOn.of(other, size)) == same
    assert TrainedOn.from_dict(record.as_dict()) == record
    kept, held = record.parted(data_of())
    assert (len(kept), len(held)) == (30, 10)
    assert torch.bincount(data_of().labels[held]).tolist() == [5, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "0"}, "seed"),
        ({"holdout": None, "count": None}, "count"),
        ({"colour": "red"}, "colour"),
        ({"limit": 10**30}, "limit"),
        ({"indices": ["0:3"]}, "indices"),
    ],
)
def test_damaged_records(change: dict[str, Any], message: str) -> None:
    with pytest.raises(
        ValueError, match=f"^weights: what they tell of their training is damaged: .*{message}"
    ):
        TrainedOn.from_dict(TrainedOn.of(data_of(), None).as_dict() | change)
    with pytest.raises(ValueError, match=r"^weights: what they tell of their training is damaged: "):
        TrainedOn.from_dict([1, 2])
