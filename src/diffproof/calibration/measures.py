"""Whether probabilities are as good as they say, and the temperature that mends them.

Functions of logits or probabilities alone, whatever classifier they come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from torch import Tensor

from diffproof.checks import check_at_least, check_tensor
from diffproof.errors import ArgumentError
from diffproof.intervals import Share

# How far a row of probabilities may be from 1, for those of bfloat16.
_ROW_SUM = 0.01
_MOST_BINS = 100_000
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies in (low, high]; the first bin holds a confidence of 0, too.

    Attributes:
        low: the lower edge.
        high: the upper edge.
        count: how many images it holds.
        confidence: their mean confidence, None without images.
        accuracy: the share labelled rightly with its 95% Clopper–Pearson interval, None without images.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: Share | None


@dataclass(frozen=True)
class Reliability:
    """How far confidence and accuracy agree (Guo et al. 2017, section 2).

    Attributes:
        bins: bins of equal width, ascending.
        accuracy: share of all images that are labelled rightly.
        confidence: mean confidence over all images.
        ece: expected calibration error, Σ (count/N)·|accuracy − confidence| over the bins. With few images it
            is above 0 for perfect probabilities, too: the absolute value counts the scatter of every bin.
        mce: maximum calibration error, the largest |accuracy − confidence| of a bin that holds images.
        nll: mean negative log-likelihood −log p_label in nats; infinite if a label has probability 0.
        brier: Brier (1950) score, the mean of Σ_k (p_k − [k = label])², in [0, 2].
    """

    bins: tuple[Bin, ...]
    accuracy: float
    confidence: float
    ece: float
    mce: float
    nll: float
    brier: float


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
    """Compare the probability of each image's likeliest class, its confidence, with how often that is right.

    Args:
        probabilities: N×K, in [0, 1], rows that sum to 1.
        labels: N integers in [0, K).
        bins: how many of equal width.

    Raises:
        ValueError: wrong shapes or ranges, or no image.
    """
    check_at_least("bins", bins, 1, _MOST_BINS)
    _check(probabilities, labels, "probabilities")
    values, labels = probabilities.detach().double().cpu(), labels.detach().cpu()
    low, high = float(values.min()), float(values.max())
    if low < 0.0 or high > 1.0 + _ROW_SUM:
        raise ArgumentError(
            "probabilities", f"expected values in [0, 1], got [{low:.4g}, {high:.4g}]; softmax logits"
        )
    sums = values.sum(1)
    worst = float(sums[(sums - 1).abs().argmax()])
    if abs(worst - 1) > _ROW_SUM:
        raise ArgumentError("probabilities", f"expected rows that sum to 1, got a row of sum {worst:.4g}")
    confidence, predicted = values.max(1)
    right = (predicted == labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    which = torch.bucketize(confidence, edges[1:-1])
    made = []
    for i in range(bins):
        inside = which == i
        count = int(inside.sum())
        made.append(
            Bin(
                low=float(edges[i]),
                high=float(edges[i + 1]),
                count=count,
                confidence=float(confidence[inside].mean()) if count else None,
                accuracy=Share.of(float(right[inside].mean()), count) if count else None,
            )
        )
    gaps = [
        (b.count, abs(b.accuracy.value - b.confidence))
        for b in made
        if b.accuracy is not None and b.confidence is not None
    ]
    given = values.gather(1, labels[:, None].long())[:, 0]
    brier = values.square().sum(1) - 2 * given + 1
    return Reliability(
        bins=tuple(made),
        accuracy=float(right.mean()),
        confidence=float(confidence.mean()),
        ece=sum(count * gap for count, gap in gaps) / len(labels),
        mce=max(gap for _, gap in gaps),
        nll=float(-given.log().mean()),
        brier=float(brier.mean()),
    )


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T whose softmax(logits/T) has the least mean negative log-likelihood (Guo et al. 2017).

    Take images that the classifier was not trained on, and others than those that calibration is reported
    of. What is minimised is convex in 1/T and has its least value where the softmax's mean logit is the
    label's logit, both on average over the images.

    Args:
        logits: N×K with K ≥ 2, of the classifier at temperature 1, without a prior: T divides all of a logit,
            while a diffusion classifier's temperature divides its losses alone.
        labels: N integers in [0, K).

    Raises:
        ValueError: wrong shapes, NaN or infinity, no image, or no best temperature: 0 would be best, since
            each label has the largest logit of its row, or infinity, since labels have on average no larger
            logits than other classes.
    """
    _check(logits, labels, "logits")
    if logits.shape[1] < 2:
        raise ArgumentError("logits", f"expected two classes or more, got shape {tuple(logits.shape)}")
    values = logits.detach().double().cpu()
    # Less each row's largest: neither the softmax nor the derivative changes, and no exponential overflows.
    values = values - values.max(1, keepdim=True).values
    label_logits = values.gather(1, labels.detach().cpu().long()[:, None])[:, 0]
    excess = float(label_logits.mean() - values.mean())
    if excess <= 0:
        raise ArgumentError(
            "logits",
            "expected larger ones for the labels than for other classes on average, else the best"
            f" temperature is infinite, got {excess:.4g} above the mean",
        )
    if not bool((label_logits < 0).any()):
        raise ArgumentError(
            "logits",
            f"expected at least one wrong label among {len(values)} images, else the best temperature"
            " is 0, got none; take more images",
        )

    def slope(inverse: float) -> float:
        """d(mean negative log-likelihood)/d(1/T), which increases with 1/T."""
        expected = (torch.softmax(inverse * values, 1) * values).sum(1)
        return float((expected - label_logits).mean())

    # In units of the largest difference between two logits of an image.
    upper = 1 / float(-values.min())
    while slope(upper) < 0:
        upper *= 2
    return 1 / float(brentq(slope, 0.0, upper, xtol=upper * 1e-15))


def _check(scores: Tensor, labels: Tensor, name: str) -> None:
    """Raise ValueError unless these are N×K finite floats and N labels in [0, K), N ≥ 1."""
    check_tensor(name, scores)
    check_tensor("labels", labels, "a torch tensor of integers")
    if not scores.is_floating_point() or scores.ndim != 2 or scores.numel() == 0:
        raise ArgumentError(
            name, f"expected floats N×K with N ≥ 1, got {scores.dtype} of shape {tuple(scores.shape)}"
        )
    if not bool(torch.isfinite(scores).all()):
        raise ArgumentError(name, "expected finite values, got NaN or infinity")
    if labels.dtype not in _INTEGERS or labels.shape != scores.shape[:1]:
        raise ArgumentError(
            "labels", f"expected {len(scores)} integers, got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= scores.shape[1]:
        raise ArgumentError("labels", f"expected classes in [0, {scores.shape[1]}), got {low} to {high}")
