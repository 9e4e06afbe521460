"""APNDC and EPNDC against the formulas of Chen et al. 2024, an image, class and level at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import diffproof as dp
from diffproof.cli.main import run
from diffproof.defenses.diffusion_classifier.loss import CLASSIFIER_VOTE
from helpers.denoisers import CountingMixture, mixture_around
from helpers.images import SHAPE, pictures
from helpers.noise import noise_of
from helpers.tensors import error

pytestmark = pytest.mark.usefixtures("small_digits")

TAU, LEVELS = 0.25, 12
KINDS: dict[str, Any] = {"apndc": dp.APNDC, "epndc": dp.EPNDC}


def three_classes(variance: float = 0.02) -> CountingMixture:
    """A round component a class."""
    return mixture_around(pictures(3, 5), variance, component_labels=[0, 1, 2])


def noisy() -> Tensor:
    return pictures() + TAU * noise_of().normal(SHAPE, 0, torch.float64)


def levels() -> list[float]:
    """σ' of [−1, 1] data, from 2τ to 3 in equal steps."""
    return torch.linspace(2 * TAU, 3.0, LEVELS, dtype=torch.float64).tolist()


def weight(index: int, *, authors: bool = False) -> float:
    """λ(σ')·p(σ')·Δσ' of EDM's training (Karras et al. 2022, table 1)."""
    sigma, step = levels()[index], (3.0 - 2 * TAU) / (LEVELS - 1)
    square = 1.2**2 if authors else 1.2**-2
    density = math.exp(-((math.log(sigma) + 1.2) ** 2) * square / 2) / (sigma * 1.2 * math.sqrt(2 * math.pi))
    return (sigma**2 + 0.25) / (sigma * 0.5) ** 2 * density * step


def denoised(z: Tensor, sigma: float, label: int | None) -> Tensor:
    """D of one image, all in [−1, 1]."""
    labels = None if label is None else torch.tensor([label])
    clean: Tensor = three_classes()(((z + 1) / 2)[None], sigma / 2, labels)
    return 2 * clean[0] - 1


def epsilon(row: int, index: int) -> Tensor:
    noise = noise_of()
    own = noise.rows(torch.tensor([row]), torch.tensor([CLASSIFIER_VOTE]))
    return own.normal(SHAPE, index, torch.float64)[0]


def papers_epndc(x: Tensor, row: int, label: int, *, authors: bool) -> float:
    """The sum of the released code (EPNDC of NDC.py), the norm in the place of the mean."""
    total, s, tau = 0.0, levels(), 2 * TAU
    for i in range(5, LEVELS - 1):
        low, high = s[i], s[i + 1]
        z = x + math.sqrt(high**2 - tau**2) * epsilon(row, i + 1)
        p = ((high**2 - low**2) * denoised(z, high, label) + low**2 * z) / high**2
        q = ((high**2 - low**2) * x + (low**2 - tau**2) * z) / (high**2 - tau**2)
        factor = high**2 * (high**2 - tau**2) / (4 * (high - low) ** 2 * (low**2 - tau**2))
        total += weight(i, authors=authors) * factor * float((p - q).square().sum())
    return total


def papers_apndc(x: Tensor, row: int, label: int, *, authors: bool) -> float:
    """Σ w_i·‖D(x̂ + σ_i·ε, y) − x̂‖² of the image denoised without a class."""
    clean, total = denoised(x, 2 * TAU, None).clamp(-1, 1), 0.0
    for i, sigma in enumerate(levels()):
        found = denoised(clean + sigma * epsilon(row, i), sigma, label)
        total += weight(i, authors=authors) * float((found - clean).square().sum())
    return total


@pytest.mark.parametrize("authors", [False, True])
@pytest.mark.parametrize("method", list(KINDS))
def test_logits_are_the_papers(method: str, authors: bool) -> None:
    papers: Callable[..., float] = {"apndc": papers_apndc, "epndc": papers_epndc}[method]
    weighting = "edm-authors" if authors else "edm"
    defense = KINDS[method](three_classes(), levels=LEVELS, weighting=weighting)
    images = noisy()
    expected = torch.tensor(
        [
            [-papers(2 * image - 1, row, label, authors=authors) for label in range(3)]
            for row, image in enumerate(images)
        ],
        dtype=torch.float64,
    )
    got = defense.logits(images, TAU, noise_of())
    assert float((expected - expected.mean(1, keepdim=True)).abs().max()) > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(defense.labels(images, TAU, noise_of().after_first()), got.argmax(1))


@pytest.mark.parametrize("method", list(KINDS))
def test_labels_are_those_of_bayes(method: str) -> None:
    """Components of equal variance: the likelier class of x_τ is that of the nearer mean."""
    means = pictures(3, 5)
    truth = torch.arange(60) % 3
    spread = math.sqrt(0.02) * noise_of(60, seed=1).normal(SHAPE, 0, torch.float64)
    images = means[truth] + spread + 0.1 * noise_of(60).normal(SHAPE, 0, torch.float64)
    distances = (images[:, None] - means).flatten(2).norm(dim=2)
    first, second = distances.sort(1)[0][:, :2].unbind(1)
    # log p differs by (d_2² − d_1²)/(2(v + τ²)).
    clear = (second**2 - first**2) / (2 * (0.02 + 0.1**2)) > 3
    labels = KINDS[method](three_classes(), levels=40).labels(images, 0.1, noise_of(60).after_first())
    assert int(clear.sum()) > 20
    assert torch.equal(labels[clear], distances.argmin(1)[clear])


@pytest.mark.parametrize("method", list(KINDS))
def test_a_race_spends_less_for_the_same_labels(method: str) -> None:
    images = pictures(3, 5)[torch.arange(12) % 3] + 0.1 * noise_of(12).normal(SHAPE, 0, torch.float64)
    found = []
    for race_error in (None, 0.01):
        defense = KINDS[method](three_classes(), levels=60, race_error=race_error)
        found.append(defense.classify(images, 0.1, noise_of(12).after_first(), 64))
        assert found[-1].denoiser_evaluations == defense.denoiser.spent
    assert torch.equal(found[0].labels, found[1].labels)
    assert found[0].denoiser_evaluations == 12 * defense.evaluations_per_draw(0.1)[0]
    assert found[1].denoiser_evaluations < 0.5 * found[0].denoiser_evaluations


@pytest.mark.parametrize("method", list(KINDS))
def test_gradients_are_differences(method: str) -> None:
    defense = KINDS[method](three_classes(), levels=9)
    images = noisy().requires_grad_()
    way = noise_of(seed=9).normal(SHAPE, 0, torch.float64)
    gradient = torch.autograd.grad(defense.logits(images, TAU, noise_of())[:, 1].sum(), images)[0]
    with torch.no_grad():
        ends = [
            defense.logits(images + sign * 1e-5 * way, TAU, noise_of())[:, 1].sum() for sign in (1.0, -1.0)
        ]
    assert error((gradient * way).sum()[None], (ends[0] - ends[1])[None] / 2e-5) < 1e-6


@pytest.mark.parametrize("method", list(KINDS))
def test_what_is_refused(method: str) -> None:
    kind = KINDS[method]
    unconditional = mixture_around(pictures(3, 5))
    with pytest.raises(ValueError, match=r"^denoiser: expected a class-conditional one"):
        kind(unconditional)
    with pytest.raises(ValueError, match=r"^levels: expected an integer ≥ \d"):
        kind(three_classes(), levels=1)
    with pytest.raises(ValueError, match=r"^weighting: expected edm or edm-authors, got simple"):
        kind(three_classes(), weighting="simple")
    with pytest.raises(ValueError, match=r"^sigma: expected 0 < sigma < 1.5, the highest level, got 1.5"):
        dp.Smoothed(kind(three_classes(), levels=9), 1.5)
    labelled = three_classes()
    labelled.null_label = None
    if method == "apndc":
        with pytest.raises(ValueError, match=r"^denoiser: expected a null label, to denoise without a class"):
            kind(labelled)
    else:
        assert kind(labelled, levels=9).labels(noisy(), TAU, noise_of().after_first()).shape == (2,)


@pytest.mark.slow
@pytest.mark.parametrize("method", list(KINDS))
def test_digits_are_certified_and_verified(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--data digits --indices 0:20:10 --denoiser digits --defense {method}:levels=8,race_error=0.1"
    words = ["certify", *flags.split(), "--sigma", "0.25", "--n0", "4", "--n", "12", "--out"]
    assert run([*words, str(tmp_path / "run")]) == 0
    assert run(["verify", str(tmp_path / "run"), "--resample", "1", "--trust"]) == 0
    assert run(["report", str(tmp_path / "run")]) == 0
    assert method in capsys.readouterr().out
    assert run([*words[:-1], "--classifier", "digits", "--out", str(tmp_path / "other")]) == 2
    assert f"classifier: the method '{method}' takes none" in capsys.readouterr().err
    words[words.index("0.25")] = "1.5"
    assert run([*words, str(tmp_path / "other")]) == 2
    assert "expected 0 < sigma < 1.5" in capsys.readouterr().err
