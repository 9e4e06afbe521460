"""Calibration against closed forms, scikit-learn and scipy, and its picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from torch import Tensor

import diffproof as dp
from diffproof.pictures import read_picture


def sampled(temperature: float, number: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Logits of 10 classes, and labels drawn from softmax(logits/temperature)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(number, 10, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(logits / temperature, 1), 1, generator=generator)[:, 0]
    return logits, labels


@pytest.mark.parametrize("gap", [1e-6, 0.7, 30.0, 1e6])
@pytest.mark.parametrize("right", [6, 9])
def test_temperature_of_two_classes_has_a_closed_form(gap: float, right: int) -> None:
    # Each image says `gap` for class 0, and a share p of them is: p/(1 − p) = exp(gap/T).
    logits = torch.tensor([[gap, 0.0]] * 10, dtype=torch.float64)
    labels = (torch.arange(10) >= right).long()
    expected = gap / math.log(right / (10 - right))
    assert dp.fit_temperature(logits, labels) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_of_sampled_labels_is_recovered(temperature: float) -> None:
    logits, labels = sampled(temperature, 5000)
    # The Fisher information of 1/T is the logits' variance under the softmax. Beyond 5 standard errors lie
    # 6e-7 of a normal distribution.
    probabilities = torch.softmax(logits / temperature, 1)
    mean = (probabilities * logits).sum(1)
    information = ((probabilities * logits.square()).sum(1) - mean.square()).sum()
    error = 1 / dp.fit_temperature(logits, labels) - 1 / temperature
    assert abs(error) < 5 / math.sqrt(information)


def test_temperature_is_where_a_general_minimiser_ends() -> None:
    logits, labels = sampled(2.0, 50)
    values, of = logits.numpy(), labels.numpy()

    def loss(log_temperature: float) -> float:
        scaled = values / math.exp(log_temperature)
        return float(np.mean(np.log(np.exp(scaled).sum(1)) - scaled[np.arange(50), of]))

    found = minimize_scalar(loss, bounds=(-1, 4), method="bounded", options={"xatol": 1e-10})
    # A minimiser that compares values sees its place to the root of their precision only.
    assert dp.fit_temperature(logits, labels) == pytest.approx(math.exp(found.x), rel=1e-6)


def test_temperature_follows_the_scale_and_no_shift_of_logits() -> None:
    logits, labels = sampled(1.5, 200)
    alone = dp.fit_temperature(logits, labels)
    assert dp.fit_temperature(1000 * logits, labels) == pytest.approx(1000 * alone, rel=1e-9)
    shift = torch.arange(200.0)[:, None]
    assert dp.fit_temperature(logits - shift, labels) == pytest.approx(alone, rel=1e-9)
    assert dp.fit_temperature(logits.float(), labels.int()) == pytest.approx(alone, rel=1e-5)


def test_temperature_of_images_of_one_class_is_found() -> None:
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    assert dp.fit_temperature(logits, torch.zeros(4, dtype=torch.long)) == pytest.approx(2 / math.log(3))


RIGHT = torch.tensor([0, 1])
SEPARATED = torch.tensor([[3.0, 0.0, 1.0], [0.0, 3.0, 1.0]])


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (
            SEPARATED,
            RIGHT,
            "at least one wrong label among 2 images, else the best temperature is 0, got none",
        ),
        (SEPARATED, torch.tensor([1, 0]), "best temperature is infinite, got -1.333 above the mean"),
        (torch.zeros(2, 3), RIGHT, "best temperature is infinite, got 0 above the mean"),
        (torch.zeros(2, 1), torch.zeros(2).long(), r"expected two classes or more, got shape \(2, 1\)"),
        (torch.zeros(0, 3), torch.zeros(0).long(), r"N×K with N ≥ 1, got torch.float32 of shape \(0, 3\)"),
        (torch.zeros(3), torch.zeros(3).long(), r"logits: expected floats N×K .* of shape \(3,\)"),
        (SEPARATED.long(), RIGHT, "logits: expected floats N×K with N ≥ 1, got torch.int64"),
        (SEPARATED.log(), RIGHT, "logits: expected finite values, got NaN or infinity"),
        (SEPARATED, RIGHT[:1], r"labels: expected 2 integers, got torch.int64 of shape \(1,\)"),
        (SEPARATED, RIGHT.double(), "labels: expected 2 integers, got torch.float64"),
        (SEPARATED, torch.tensor([0, 3]), r"labels: expected classes in \[0, 3\), got 0 to 3"),
        (SEPARATED, torch.tensor([-1, 2]), r"labels: expected classes in \[0, 3\), got -1 to 2"),
    ],
)
def test_temperature_refuses(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        dp.fit_temperature(logits, labels)
    assert "\n" not in str(raised.value)


def test_reliability_by_hand() -> None:
    probabilities = torch.tensor([[0.75, 0.25], [0.625, 0.375], [0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
    measured = dp.reliability(probabilities, torch.tensor([0, 1, 0, 1]), bins=4)
    # An edge belongs to the bin below it, and no confidence of two classes is below a half.
    assert [b.count for b in measured.bins] == [0, 1, 2, 1]
    assert [(b.low, b.high) for b in measured.bins] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]
    assert [b.confidence for b in measured.bins] == [None, 0.5, 0.6875, 1.0]
    assert measured.bins[0].accuracy is None
    assert [b.accuracy.value for b in measured.bins if b.accuracy] == [1.0, 0.5, 1.0]
    assert measured.ece == pytest.approx((0.5 + 2 * 0.1875 + 0) / 4)
    assert measured.mce == 0.5
    assert (measured.accuracy, measured.confidence) == (0.75, 0.71875)
    assert measured.nll == pytest.approx(-math.log(0.75 * 0.375 * 0.5) / 4)
    assert measured.brier == pytest.approx(2 * (0.25**2 + 0.625**2 + 0.5**2) / 4)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_reliability_is_that_of_scikit_learn_and_scipy(bins: int) -> None:
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import log_loss

    logits, labels = sampled(2.0, 300)
    probabilities = torch.softmax(logits, 1)
    measured = dp.reliability(probabilities, labels, bins)
    confidence, predicted = probabilities.numpy().max(1), probabilities.numpy().argmax(1)
    right = predicted == labels.numpy()
    filled = [(b, b.accuracy) for b in measured.bins if b.accuracy is not None]
    accuracies, confidences = calibration_curve(right, confidence, n_bins=bins)
    assert [share.value for _, share in filled] == pytest.approx(list(accuracies))
    assert [b.confidence for b, _ in filled] == pytest.approx(list(confidences))
    for b, share in filled:
        hits = int(right[(confidence > b.low) & (confidence <= b.high)].sum())
        interval = binomtest(hits, b.count).proportion_ci(0.95, "exact")
        assert (share.low, share.high) == pytest.approx(tuple(interval), abs=1e-12)
    assert sum(b.count for b in measured.bins) == 300
    assert measured.nll == pytest.approx(log_loss(labels.numpy(), probabilities.numpy()))
    one_hot = np.eye(10)[labels.numpy()]
    assert measured.brier == pytest.approx(np.square(probabilities.numpy() - one_hot).sum(1).mean())


def test_calibrated_probabilities_are_found_calibrated() -> None:
    logits, labels = sampled(1.0, 5000)
    measured = dp.reliability(torch.softmax(logits, 1), labels)
    # Unequal probabilities within a bin scatter less than equal ones; 15 bins: a false alarm in 1.5e-5.
    for b in measured.bins:
        if b.accuracy is not None and b.confidence is not None:
            assert binomtest(round(b.accuracy.value * b.count), b.count, b.confidence).pvalue > 1e-6
    overconfident = dp.reliability(torch.softmax(3 * logits, 1), labels)
    assert overconfident.ece > 5 * measured.ece
    assert overconfident.confidence > overconfident.accuracy == measured.accuracy
    mended = dp.reliability(torch.softmax(3 * logits / dp.fit_temperature(3 * logits, labels), 1), labels)
    assert mended.nll <= measured.nll < overconfident.nll
    assert mended.ece < 0.25 * overconfident.ece


def test_a_label_of_probability_0_costs_infinitely_much() -> None:
    measured = dp.reliability(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([1, 0]))
    assert measured.nll == math.inf
    assert measured.brier == pytest.approx((2 + 0.5) / 2)


@pytest.mark.parametrize(
    ("probabilities", "labels", "bins", "message"),
    [
        (SEPARATED, RIGHT, 15, r"expected values in \[0, 1\], got \[0, 3\]; softmax logits"),
        (torch.tensor([[-0.5, 1.5]]), RIGHT[:1], 15, r"got \[-0.5, 1.5\]; softmax logits"),
        (torch.tensor([[0.5, 0.25]]), RIGHT[:1], 15, "expected rows that sum to 1, got a row of sum 0.75"),
        (torch.tensor([[math.nan, 1.0]]), RIGHT[:1], 15, "probabilities: expected finite values"),
        (torch.zeros(0, 2), RIGHT[:0], 15, "probabilities: expected floats N×K with N ≥ 1"),
        (torch.tensor([[0.5, 0.5]]), RIGHT, 15, "labels: expected 1 integers, got torch.int64"),
        (torch.tensor([[0.5, 0.5]]), RIGHT[:1], 0, "bins: expected an integer ≥ 1, got 0"),
    ],
)
def test_reliability_refuses(probabilities: Tensor, labels: Tensor, bins: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dp.reliability(probabilities, labels, bins)


def points_height(path: Path) -> float:
    """The mean height of the points and their intervals, from 0 to 1 of the picture."""
    picture = read_picture(path, 3)
    blue = torch.tensor([0x00, 0x72, 0xB2])[:, None, None] / 255
    rows = torch.nonzero(((picture - blue).abs().amax(0) < 0.02)[: int(0.6 * picture.shape[1])])[:, 0]
    assert len(rows) > 100
    return 1 - float(rows.double().mean()) / picture.shape[1]


@pytest.mark.slow
def test_the_diagram_shows_accuracy_and_every_panel(tmp_path: Path) -> None:
    probabilities = torch.tensor([[0.7, 0.3]] * 200)
    often, seldom = (
        dp.reliability(probabilities, (torch.arange(200) >= right).long()) for right in (180, 90)
    )
    high, low, both = tmp_path / "high.png", tmp_path / "low.png", tmp_path / "both.png"
    dp.save_reliability(high, {"often": often})
    dp.save_reliability(low, {"seldom": seldom})
    dp.save_reliability(both, {"often": often, "seldom": seldom})
    assert points_height(high) > points_height(both) > points_height(low) + 0.1
    assert read_picture(both, 3).shape[2] > 1.5 * read_picture(high, 3).shape[2]
    with pytest.raises(ValueError, match="measured: expected at least one reliability, got none"):
        dp.save_reliability(tmp_path / "none.png", {})
    assert not (tmp_path / "none.png").exists()
