"""Certifying a data set without a folder: the certificates of the command line, and what they come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

import diffproof as dp
from diffproof.cli.main import run
from diffproof.runs.certify.report import load_report
from helpers.runs import PLAIN, certify_flags, rows

INDICES = range(0, 40, 8)
SETTINGS: dict[str, Any] = {"sigma": 0.25, "n0": 20, "n": 100, "seed": 3}


def certified(defense: Any, **changes: Any) -> dp.Certification:
    """The images of the small run, certified here."""
    data = dp.load_data("digits")
    given = {**SETTINGS, "image_indices": INDICES, "levels": data.levels, **changes}
    return dp.certify(data.batch(INDICES), data.labels[list(INDICES)], defense=defense, **given)


@pytest.fixture(scope="module")
def plain() -> dp.Undefended:
    return dp.Undefended(dp.load_classifier("digits"))


def as_stored(certification: dp.Certification) -> list[tuple[int, int, str]]:
    """As the finished images of a run folder."""
    pairs = zip(certification, certification.labels, strict=True)
    return [(one.image_index, label, one.to_json()) for one, label in pairs]


@pytest.mark.slow
def test_it_gives_the_certificates_of_the_command_line(small_run: Path, denoiser: Path) -> None:
    defense = dp.DensePure(dp.load_denoiser(str(denoiser)), dp.load_classifier("digits"), steps=2, votes=5)
    found = certified(defense, batch_size=17)
    assert as_stored(found) == rows(small_run)
    (row,) = load_report([small_run], [0.0]).rows
    assert found.average_radius == row.average_radius > 0
    assert found.certified_accuracy(0.1).value == row.certified_accuracy(0.1) > 0
    assert (found.wrong.value, found.abstained.value) == (row.wrong, row.abstained)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"stop": "sequential", "radii": "0.05,0.2"},
        {"stop": "sequential", "tolerance": 0.05, "futility": 0.1},
        {"noise": "continuous", "bound": "two-sided"},
    ],
    ids=lambda how: next(reversed(how)),
)
def test_so_do_other_settings(how: dict[str, Any], plain: dp.Undefended, tmp_path: Path) -> None:
    assert run(certify_flags(tmp_path / "run", **PLAIN, **how)) == 0
    given = {**how, "radii": [float(one) for one in how["radii"].split(",")]} if "radii" in how else how
    levels = {"levels": None} if "noise" in how else {}
    assert as_stored(certified(plain, **given, **levels)) == rows(tmp_path / "run")


def test_an_image_has_the_certificate_that_it_has_alone(plain: dp.Undefended) -> None:
    smoothed = dp.Smoothed(plain, 0.25, levels=dp.load_data("digits").levels)
    one = smoothed.certify(dp.load_data("digits").images[16], n0=20, n=100, seed=3, image_index=16)
    assert certified(plain).certificates[2] == one


def brightness(images: Tensor) -> Tensor:
    return (images.mean((1, 2, 3)) > 0.5).long()


def test_a_function_is_certified_and_counted() -> None:
    images = torch.tensor([0.0, 1.0, 0.5, 0.9]).reshape(4, 1, 1, 1).expand(4, 1, 2, 2)
    given: dict[str, Any] = {"sigma": 0.25, "n": 500, "num_classes": 2, "noise": "continuous"}
    found = dp.certify(images, torch.tensor([0, 1, 0, 0]), defense=brightness, **given)
    assert len(found) == 4
    # The third is on the boundary, the fourth far on the other side.
    assert [one.label for one in found] == [0, 1, None, 1]
    assert found.correct == (True, True, False, False)
    assert (found.abstained.value, found.wrong.value) == (0.25, 0.25)
    radii = [one.radius for one in found.certificates[:2]]
    assert found.average_radius == pytest.approx(sum(radii) / 4)
    for radius, hits in [(0.0, 2), (max(radii), sum(one == max(radii) for one in radii)), (9.0, 0)]:
        share, exact = found.certified_accuracy(radius), binomtest(hits, 4).proportion_ci(0.95)
        assert (share.value, share.images) == (hits / 4, 4)
        assert (share.low, share.high) == pytest.approx((exact.low, exact.high))
    assert found.curve() == ([0.0, *sorted(radii)], [0.5, 0.25, 0.0])


def test_a_certification_has_a_label_for_each_certificate(plain: dp.Undefended) -> None:
    made = certified(plain)
    for labels in (made.labels[1:], ()):
        with pytest.raises(dp.ArgumentError, match="labels: expected one a certificate"):
            dp.Certification(made.certificates, labels)
    with pytest.raises(dp.ArgumentError, match="one at least"):
        dp.Certification((), ())
    for radius in (-0.1, float("nan"), "0.5"):
        with pytest.raises(dp.ArgumentError, match="radius: expected a number ≥ 0"):
            made.certified_accuracy(radius)  # type: ignore[arg-type]
