"""The digits and their split against scikit-learn's, and the parsing of indices."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

import diffproof as dp
from diffproof.data.indices import parse_indices


def test_digits_are_scikit_learns_over_sixteen() -> None:
    bunch = load_digits()
    both = [dp.load_data("digits", split=split) for split in ("train", "test")]
    assert [len(part) for part in both] == [1283, 514]
    # Disjoint and complete: put back in scikit-learn's order, the two splits are its whole data set.
    position = torch.arange(1797)
    in_test = (position % 7 == 0) | (position % 7 == 3)
    images, labels = torch.empty(1797, 1, 8, 8), torch.empty(1797, dtype=torch.int64)
    images[~in_test], labels[~in_test] = both[0]
    images[in_test], labels[in_test] = both[1]
    assert torch.equal(images[:, 0].double() * 16, torch.from_numpy(bunch.images))
    assert torch.equal(labels, torch.from_numpy(bunch.target))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_is_balanced_and_well_formed(split: str) -> None:
    data = dp.load_data("digits", split=split)
    images, labels = data
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert images.shape == (len(data), 1, 8, 8)
    assert data.image_shape == (1, 8, 8)
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert data.class_names == tuple("0123456789")
    assert (data.name, data.split) == ("digits", split)
    shares = torch.bincount(labels, minlength=10) / len(labels)
    assert float(shares.min()) > 0.08
    assert float(shares.max()) < 0.12


def test_splits_share_no_image() -> None:
    train, test = (dp.load_data("digits", split=split).images.flatten(1) for split in ("train", "test"))
    assert float(torch.cdist(train, test).min()) > 0.1


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("digit", "test", "data: unknown name 'digit'; did you mean digits?"),
        ("cifar10", "test", "data: unknown name 'cifar10'; known: digits"),
        ("digits", "tset", "split: unknown name 'tset'; did you mean test?"),
        ("digits", "validation", "split: unknown name 'validation'; known: test, train"),
    ],
)
def test_unknown_names_give_the_nearest(name: str, split: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message.replace('?', '[?]')}$"):
        dp.load_data(name, split=split)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:3", [0, 1, 2]),
        ("7", [7]),
        ("9", [9]),
        ("0:10:4", [0, 4, 8]),
        ("8,2:4", [2, 3, 8]),
        ("0:3,2:5,1", [0, 1, 2, 3, 4]),
        (" 1 , 4:6 ", [1, 4, 5]),
        ("0:10", list(range(10))),
    ],
)
def test_parse_indices(text: str, expected: list[int]) -> None:
    assert parse_indices(text, 10) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected start:stop or start:stop:step, got ''"),
        ("a", "expected start:stop or start:stop:step"),
        ("1:", "expected start:stop or start:stop:step"),
        (":5", "expected start:stop or start:stop:step"),
        ("0:1:2:3", "expected start:stop or start:stop:step"),
        ("0:2,", "expected start:stop or start:stop:step"),
        ("1.5", "expected start:stop or start:stop:step"),
        ("-1", "expected 0 ≤ start < stop and step ≥ 1"),
        ("-3:2", "expected 0 ≤ start < stop and step ≥ 1"),
        ("3:3", "expected 0 ≤ start < stop and step ≥ 1"),
        ("5:2", "expected 0 ≤ start < stop and step ≥ 1"),
        ("0:5:0", "expected 0 ≤ start < stop and step ≥ 1"),
        ("0:5:-1", "expected 0 ≤ start < stop and step ≥ 1"),
        ("10", r"the data has 10 images \(0 to 9\), got '10'"),
        ("0:11", r"the data has 10 images \(0 to 9\)"),
        ("0:2,8:12", r"the data has 10 images \(0 to 9\)"),
    ],
)
def test_parse_indices_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^indices: {message}"):
        parse_indices(text, 10)
