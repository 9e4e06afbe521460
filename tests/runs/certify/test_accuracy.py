"""Runs that take images in random order until certified accuracy is known to a half-width."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffproof.cli.main import run
from diffproof.intervals import Share
from diffproof.runs.certify import run as certify_run
from diffproof.runs.certify.accuracy import accuracies, order, untaken
from diffproof.runs.certify.job import prepare
from diffproof.runs.certify.store import CertifyStore
from diffproof.runs.certify.verify import verify
from diffproof.runs.export import export
from diffproof.runs.settings import CertifySettings
from helpers.command_line import Refused
from helpers.runs import PLAIN, certify_flags, rows

GIVEN: dict[str, Any] = {"indices": "0:120", "sigma": 0.25, "n0": 3, "n": 15, "alpha": 0.01, "seed": 3}
WIDTH: dict[str, Any] = {"until_half_width": 0.15, "radii": "0.05"}


def settings(**changes: Any) -> CertifySettings:
    return CertifySettings(data="digits", classifier="digits", defense="none", **{**GIVEN, **changes})


def flags(out: Path, **changes: object) -> list[str]:
    return certify_flags(out, **{**PLAIN, **GIVEN, **WIDTH, **changes})


def test_the_order_is_a_permutation_by_the_seed() -> None:
    indices = list(range(5, 205))
    first, same, other = (
        order(indices if seed < 9 else indices[::-1], settings(seed=seed % 9, until_half_width=0.1))
        for seed in (3, 12, 4)
    )
    assert first == same != other
    assert sorted(first) == sorted(other) == indices
    # A third of the first half of such a permutation and of the indices are others, at least.
    assert len({*first[:100]} - {*indices[:100]}) > 30
    assert order(indices, settings()) == indices


def test_where_accuracy_is_to_be_known() -> None:
    assert settings(until_half_width=0.1).accuracy_radii == [0.0]
    assert settings(**WIDTH).accuracy_radii == [0.0, 0.05]
    sequential = {"n": 300, "stop": "sequential", "until_half_width": 0.1}
    assert settings(**sequential, radii="0.05,0.1").accuracy_radii == [0.05, 0.1]
    assert settings(**sequential).accuracy_radii == [0.0]


@pytest.mark.slow
def test_it_ends_when_it_is_known_and_goes_no_further(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, job = tmp_path / "run", prepare(settings(**WIDTH, batch_size=16))
    counted: list[int] = []

    def interrupt(evaluations: int) -> None:
        counted.append(evaluations)
        if sum(counted) > 10.5 * job.certifier.evaluations_per_image:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        certify_run.run(job, folder, interrupt)
    taken = order(job.indices, job.settings)
    with CertifyStore.reading(folder) as store:
        finished = store.finished()
        assert 5 < len(finished) <= 10
        assert finished == {*taken[: len(finished)]}
    counted.clear()
    results = {one.image_index: one for one in certify_run.run(job, folder, counted.append)}
    assert sum(counted) == 120 * job.certifier.evaluations_per_image
    # Against the intervals of each number of images, the first of all.
    number = len(results)
    assert {*taken[:number]} == {*results}
    assert 10 < number < 120
    for radius in (0.0, 0.05):
        hits = [results[i].correct and results[i].certificate.radius >= radius for i in taken[:number]]
        share = Share.of_sequence(hits, 120)
        assert accuracies(results, job.indices, job.settings)[radius] == share
        assert (share.high - share.low) / 2 <= 0.15
    widths = []
    for radius in (0.0, 0.05):
        hits = [results[i].correct and results[i].certificate.radius >= radius for i in taken[: number - 1]]
        share = Share.of_sequence(hits, 120)
        widths.append((share.high - share.low) / 2)
    assert max(widths) > 0.15
    # Without an interruption it is the same, and to continue does nothing.
    assert run(flags(tmp_path / "whole")) == 0
    assert rows(tmp_path / "whole") == rows(folder)
    seconds = rows(folder, "image_index, seconds")
    capsys.readouterr()
    assert run(flags(folder)) == 0
    assert rows(folder, "image_index, seconds") == seconds
    said = f"certified accuracy of all 120 images is {share_text(results, job)} (95% each, at any time)"
    assert said in capsys.readouterr().out
    assert run(["report", str(folder), "--at", "0,0.05"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert said in printed
    enough = f"{number} of 120 images, enough for a half-width of 0.15"
    assert f"{folder}: {enough}" in printed
    with pytest.warns(UserWarning, match=f": {enough}$"):
        export(folder)
    found = verify(folder)
    assert (found.failures, found.checked, found.remarks[0]) == ([], number, enough)


def share_text(results: Any, job: Any) -> str:
    shares = accuracies(results, job.indices, job.settings)
    return ", ".join(f"{one.low:.1%} to {one.high:.1%} at ε={radius:g}" for radius, one in shares.items())


@pytest.mark.parametrize(
    ("finished", "changes", "remark"),
    [
        (120, {}, None),
        (1, {}, "1 of 120 images is finished"),
        (2, {"stop": "sequential"}, "2 of 120 images are finished; those decided soon finish first"),
        (2, {"stop": "sequential", "until_half_width": 0.1}, "2 of 120 images are finished"),
    ],
)
def test_what_is_said_of_a_run_that_lacks_images(
    finished: int, changes: dict[str, Any], remark: str | None
) -> None:
    told = untaken({}, finished, 120, settings(**{"n": 300, **changes}))
    assert [one.partition(",")[0] for one in told] == [remark] * (remark is not None)


def test_other_images_are_another_run(tmp_path: Path, refused: Refused) -> None:
    job = prepare(settings(indices="0:3", **WIDTH))
    certify_run.run(job, Path("run"))
    assert "indices (0:3, now 0:4)" in refused(flags(Path("run"), indices="0:4"))
    with pytest.raises(ValueError, match=r"until_half_width \(0.15, now 0.2\)"):
        certify_run.run(
            replace(job, settings=settings(indices="0:3", **{**WIDTH, "until_half_width": 0.2})), Path("run")
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"until_half_width": 0}, "--until-half-width: expected a number in (0, 0.5), got 0.0"),
        ({"until_half_width": 0.5}, "--until-half-width: expected a number in (0, 0.5), got 0.5"),
        ({"until_half_width": "nan"}, "--until-half-width: expected a number in (0, 0.5), got nan"),
        ({"until_half_width": None}, "--radii: expected stop sequential with it, got fixed"),
        ({"radii": "0.5,0.1"}, "--radii: expected ascending numbers, got [0.5, 0.1]"),
        ({"radii": "-1"}, "--radii: expected a finite number ≥ 0, got -1.0"),
    ],
)
def test_what_cannot_be(refused: Refused, changes: dict[str, object], message: str) -> None:
    assert message in refused(flags(Path("run"), **changes))
