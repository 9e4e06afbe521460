"""Run folders in Python: the settings, rows and numbers that the command line shows."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import pytest

import diffproof as dp
from diffproof.cli.main import run
from diffproof.runs.export import export
from diffproof.runs.opened import AttackedRun, CertifiedRun
from helpers.command_line import words
from helpers.runs import PLAIN, certify_flags, change

ATTACK: dict[str, object] = {
    "data": "digits",
    "indices": "0:16:2",
    "classifier": "digits",
    "defense": "none",
    "threat": "linf",
    "budget": "0.1",
    "attack": "pgd:iterations=3",
    "draws": 2,
    "majority-of": 3,
    "diagnose": 0,
    "seed": 5,
}


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished attack run; read only."""
    folder = tmp_path_factory.mktemp("attacks") / "<i>run"
    assert run(words("attack", out=folder, **ATTACK)) == 0
    return folder


def test_a_certification_run_is_opened(small_run: Path) -> None:
    opened = dp.open_run(str(small_run))
    assert isinstance(opened, CertifiedRun)
    told = json.loads(export(small_run, "json"))
    assert opened.settings.as_dict() == told["settings"]
    assert opened.rows() == told["images"]
    assert opened.remarks
    assert opened.certification.labels == tuple(image["true_label"] for image in told["images"])
    frame = opened.frame()
    assert list(frame.index) == [image["image_index"] for image in told["images"]]
    assert list(frame.radius) == [image["radius"] for image in told["images"]]
    assert opened.certification.average_radius == pytest.approx((frame.radius * frame.correct).mean())
    assert opened.certification.certified_accuracy().value == frame.correct.mean()
    assert opened._repr_html_().count("<table>") == 2


def test_numbers_that_may_be_missing_are_whole(tmp_path: Path) -> None:
    assert run(certify_flags(tmp_path / "run", **PLAIN)) == 0
    frame = dp.open_run(tmp_path / "run").frame()
    assert frame.label.isna().any()
    assert not frame.label.isna().all()
    assert str(frame.label.dtype) == "Int64"
    # The same types where no image, or each, has one.
    change(tmp_path / "run", "DELETE FROM images WHERE json_extract(certificate, '$.label') IS NOT NULL")
    none = dp.open_run(tmp_path / "run").frame()
    assert none.label.isna().all()
    assert dict(none.dtypes) == dict(frame.dtypes)


def test_an_attack_run_is_opened_and_is_what_the_library_finds(attacked: Path) -> None:
    opened = dp.open_run(attacked)
    assert isinstance(opened, AttackedRun)
    told = json.loads(export(attacked, "json"))
    assert (opened.settings.as_dict(), opened.rows()) == (told["settings"], told["images"])
    data, indices = dp.load_data("digits"), range(0, 16, 2)
    found = dp.evaluate(
        dp.Undefended(dp.load_classifier("digits")),
        data.batch(indices),
        data.labels[list(indices)],
        attack="pgd:iterations=3",
        budget=0.1,
        draws=2,
        votes=3,
        seed=5,
        image_indices=indices,
    )
    assert (found.clean, found.attacked) == (opened.evaluation.clean, opened.evaluation.attacked)
    assert 0 < found.attacked.majority.value < 1
    for one, other in zip(found.images, opened.evaluation.images, strict=True):
        assert (one.image_index, one.labels) == (other.image_index, other.labels)
    frame = opened.frame()
    kinds = {str(kind): list(frame.columns[frame.dtypes == kind]) for kind in frame.dtypes.unique()}
    assert kinds["boolean"] == ["success"]
    assert kinds["Int64"] == ["first_success", "forwards", "backwards", "draws"]
    assert {"norm", "clean_right", "attacked_right", "zero_gradients"} <= set(kinds["float64"])
    assert frame.attacked_right.mean() == pytest.approx(found.attacked.fresh.value)
    page = opened._repr_html_()
    assert "&lt;i&gt;run" in page
    assert "<i>" not in page


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, small_run: Path) -> None:
    (tmp_path / "some").mkdir()
    for folder in (tmp_path / "none", tmp_path / "some", str(tmp_path / "some")):
        with pytest.raises(dp.ArgumentError, match=r"^run: .* is no run folder"):
            dp.open_run(folder)
    for wrong in (None, 3, b"run", math.pi):
        with pytest.raises(dp.ArgumentError, match=r"^run: expected a run folder, got"):
            dp.open_run(wrong)  # type: ignore[arg-type]


def test_a_run_without_a_finished_image_is_refused(tmp_path: Path, small_run: Path) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    change(tmp_path / "run", "DELETE FROM images")
    with pytest.raises(dp.ArgumentError, match="has no finished image yet"):
        dp.open_run(tmp_path / "run")


def test_what_pandas_is_for_says_where_to_get_it(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(dp.ArgumentError, match=r"^pandas: not installed; .*diffproof\[notebook\]"):
        dp.open_run(small_run).frame()


def test_runs_are_drawn_as_reports_draw_them(small_run: Path, attacked: Path) -> None:
    # Windows are nothing for a test.
    from matplotlib.figure import Figure

    certified, evaluated = dp.open_run(small_run), dp.open_run(attacked)
    assert isinstance(certified, CertifiedRun)
    assert isinstance(evaluated, AttackedRun)
    given = Figure().subplots()
    assert certified.plot(given) is given
    radii, shares = certified.certification.curve()
    (drawn, *_) = (cast(Any, line).get_xydata().tolist() for line in given.get_lines())
    assert drawn[:-1] == [[radius, 100 * share] for radius, share in zip(radii, shares, strict=True)]
    assert given.get_ylabel() == "certified accuracy (%)"
    both = (evaluated.evaluation.clean, evaluated.evaluation.attacked)
    bars = evaluated.plot(Figure().subplots()).patches
    widths = [cast(Any, bar).get_width() for bar in bars]
    assert widths == [100 * one.majority.value for one in both]
