"""Runs whose draws end when it is decided: continuing, batches, reports, exports and verification."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

import diffproof as dp
from diffproof.cli.main import run
from diffproof.runs.certify import run as certify_run
from diffproof.runs.certify.job import prepare
from diffproof.runs.certify.report import load_report
from diffproof.runs.certify.store import CertifyStore
from diffproof.runs.certify.tables import cells
from diffproof.runs.certify.verify import verify
from diffproof.runs.settings import CertifySettings
from diffproof.smoothing.certifier import Certifier
from diffproof.smoothing.schedule import Counting
from diffproof.smoothing.tally import Counted
from helpers.command_line import Refused
from helpers.runs import PLAIN, certify_flags, change, rows

RADII = [0.0, 0.1, 0.3]
ASKED = {"radii": "0,0.1,0.3"}
LARGEST = {"tolerance": 0.05}


def flags(out: Path, **changes: object) -> list[str]:
    given = {**PLAIN, "indices": "0:80:8", "n": 600, "stop": "sequential", **ASKED, **changes}
    return certify_flags(out, **given)


def settings(**changes: Any) -> CertifySettings:
    given = {
        "seed": 0,
        "indices": "8:40:16",
        "n0": 6,
        "n": 90,
        "sigma": 0.25,
        "stop": "sequential",
        **changes,
    }
    return CertifySettings(data="digits", classifier="digits", defense="none", **given)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images that were asked for three radii; read only."""
    folder = tmp_path_factory.mktemp("sequential") / "asked"
    assert run(flags(folder)) == 0
    return folder


def certificates(folder: Path) -> list[tuple[int, dp.Certificate]]:
    """True labels and certificates."""
    return [(label, dp.Certificate.from_json(text)) for _, label, text in rows(folder)]


@pytest.mark.slow
def test_stored_certificates_are_the_librarys(asked: Path) -> None:
    images, _ = dp.load_data("digits", split="test")
    smoothed = dp.Smoothed(dp.Undefended(dp.load_classifier("digits")), sigma=0.25, levels=240)
    for _, stored in certificates(asked)[:3]:
        index = stored.image_index
        asking: dict[str, Any] = {"n0": 20, "n": 600, "seed": 3, "stop": "sequential", "radii": RADII}
        assert stored == smoothed.certify(images[index], image_index=index, **asking)
    # Some of everything, or the tests below would say less.
    assert {one.radius for _, one in certificates(asked)} >= {0.0, 0.1}
    assert {one.stopped for _, one in certificates(asked)} >= {"hopeless"}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"radii": "0,0.05"}, {"tolerance": 0.05}])
def test_interrupted_after_every_network_call(tmp_path: Path, changes: dict[str, Any]) -> None:
    job = prepare(settings(**changes))
    certify_run.run(job, tmp_path / "whole")
    reached = now = 0

    def stop(evaluations: int) -> None:
        nonlocal reached, now
        now += evaluations
        # A command that continues is told first of what those before did.
        if now > reached:
            reached, now = now, 0
            raise KeyboardInterrupt

    for interrupted in range(1_000):
        now = 0
        job = replace(job, settings=replace(job.settings, batch_size=(1, 2, 4)[interrupted % 3]))
        try:
            certify_run.run(job, tmp_path / "run", stop)
            break
        except KeyboardInterrupt:
            with CertifyStore.reading(tmp_path / "run") as store:
                partials = [store.partial(index) for index in job.indices]
            for partial in partials:
                draws = 0 if partial.estimation is None else partial.estimation.draws
                test = job.certifier.test_of(job.data.pixels[job.indices[0]])
                assert test is not None
                assert len(partial.hits) == sum(look <= draws for look in test.checkpoints)
    assert interrupted > 20
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"radii": "0,0.05"}, {"tolerance": 0.05}])
def test_the_batch_size_changes_nothing_and_progress_ends(tmp_path: Path, changes: dict[str, Any]) -> None:
    made = []
    for size in (1, 7, 64):
        job, counted = prepare(settings(batch_size=size, **changes)), list[int]()
        results = certify_run.run(job, tmp_path / str(size), counted.append)
        made.append(rows(tmp_path / str(size)))
        assert sum(counted) == len(job.indices) * job.certifier.evaluations_per_image
        assert any(result.certificate.n < 90 for result in results)
    assert made[0] == made[1] == made[2]


@pytest.mark.slow
def test_settings_are_compared_and_repeat_the_run(asked: Path, tmp_path: Path, refused: Refused) -> None:
    shutil.copytree(asked, "run")
    for changes, message in (
        ({"radii": "0,0.1"}, "radii (0,0.1,0.3, now 0,0.1)"),
        ({"radii": None}, "radii (0,0.1,0.3, now None), tolerance (None, now 0.01)"),
        ({"futility": 0.5}, "futility (0.02, now 0.5)"),
        ({"stop": None, "radii": None}, "stop (sequential, now fixed), radii (0,0.1,0.3, now None)"),
    ):
        assert message in refused(flags(Path("run"), **changes))
    # What says the same is the same.
    assert run(flags(Path("run"), radii="0.0, 1/10,0.30", futility=0.02)) == 0
    again = ["--config", str(asked / "settings.yaml"), "--out", str(tmp_path / "again")]
    assert run(["certify", *again]) == 0
    assert rows(tmp_path / "again") == rows(asked)


def test_a_run_of_an_earlier_version_had_fixed_draws(tmp_path: Path) -> None:
    fixed = {**PLAIN, "indices": "0:16:8", "n": 30}
    assert run(certify_flags(tmp_path / "run", **fixed)) == 0
    change(tmp_path / "run", "UPDATE settings SET json = json_remove(json, '$.stop')")
    text = tmp_path / "run" / "settings.yaml"
    text.write_text(text.read_text().replace("stop: fixed\n", ""))
    assert run(["verify", str(tmp_path / "run"), "--counts"]) == 0
    assert run(certify_flags(tmp_path / "run", **fixed)) == 0


def test_a_run_before_there_was_an_exact_test_goes_on_without(tmp_path: Path) -> None:
    old, begun = tmp_path / "old", {"indices": "0:80:16", "exact_share": 0.0}
    assert run(flags(old, **begun)) == 0
    change(old, "UPDATE settings SET json = json_remove(json, '$.exact_share')")
    change(old, "UPDATE images SET certificate = json_remove(certificate, '$.sequential.exact_share')")
    text = old / "settings.yaml"
    assert "exact_share: 0.0\n" in text.read_text()
    text.write_text(text.read_text().replace("exact_share: 0.0\n", ""))
    assert run(["verify", str(old), "--counts"]) == 0
    assert run(flags(old)) == 0
    assert run(["verify", str(old), "--counts"]) == 0
    assert run(flags(tmp_path / "without", exact_share=0.0)) == 0
    shares = []
    for folder in (old, tmp_path / "without"):
        with CertifyStore.reading(folder) as store:
            shares.append([one.certificate for one in store.results()])
    assert [one.sequential for one in shares[0]] == [one.sequential for one in shares[1]]
    assert run(["certify", "--config", str(text), "--out", str(tmp_path / "again")]) == 0
    with CertifyStore.reading(tmp_path / "again") as store:
        assert store.settings.exact_share == 0.0


def test_a_config_of_ones_own_has_the_exact_test(tmp_path: Path) -> None:
    own = {"data": "digits", "defense": "none", "classifier": "digits", "sigma": 0.25, "n": 200, "limit": 1}
    lines = {**own, "stop": "sequential", "radii": 0.1, "futility": 0.05}
    (tmp_path / "own.yaml").write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
    assert run(["certify", "--config", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "run")]) == 0
    with CertifyStore.reading(tmp_path / "run") as store:
        assert store.settings.exact_share == 0.5


def test_the_exact_test_is_the_default_and_recorded(asked: Path, refused: Refused) -> None:
    shutil.copytree(asked, "run")
    with CertifyStore.reading(Path("run")) as store:
        assert store.settings.exact_share == 0.5
        stated = [one.certificate.sequential for one in store.results()]
        assert all(one is not None and one["exact_share"] == 0.5 for one in stated)
    assert "exact_share (0.5, now 0.2)" in refused(flags(Path("run"), exact_share=0.2))
    change(
        Path("run"), "UPDATE images SET certificate = json_set(certificate, '$.sequential.exact_share', 0.2)"
    )
    assert run(["verify", "run", "--counts"]) == 1


REFUSED = [
    ({"stop": None}, "--radii: expected stop sequential with it, got fixed"),
    ({"stop": None, "radii": None, "tolerance": 0.1}, "--tolerance: expected stop sequential with it"),
    ({"stop": None, "radii": None, "futility": 0.1}, "--futility: expected stop sequential with it"),
    ({"stop": None, "radii": None, "exact_share": 0.1}, "--exact-share: expected stop sequential with it"),
    ({"exact_share": 1}, "--exact-share: expected a number in [0, 1), got 1.0"),
    ({"exact_share": "nan"}, "--exact-share: expected a number in [0, 1), got nan"),
    ({"tolerance": 0.1}, "--tolerance: asked radii need none, got 0.1"),
    ({"bound": "two-sided"}, "--bound: sequential certificates are one-sided, got two-sided"),
    (
        {"radii": "0,1"},
        "--radii: 1 cannot be proved: at sigma 0.25 and alpha 0.001 600 draws prove at most 0.",
    ),
    ({"radii": "0.1,0"}, "--radii: expected ascending numbers, got [0.1, 0.0]"),
    ({"radii": "0.1,0.1"}, "--radii: expected ascending numbers, got [0.1, 0.1]"),
    ({"radii": "-0.1,0"}, "--radii: expected a finite number ≥ 0, got -0.1"),
    ({"radii": "nan"}, "--radii: expected numbers with commas between, got 'nan'"),
    ({"radii": "0,,1"}, "--radii: expected numbers with commas between, got '0,,1'"),
    ({"radii": ""}, "--radii: expected numbers with commas between, got ''"),
    ({"radii": None, "tolerance": 0}, "--tolerance: expected a finite number > 0, got 0.0"),
    ({"radii": None, "tolerance": -1}, "--tolerance: expected a finite number > 0, got -1.0"),
    ({"futility": 1.5}, "--futility: expected a number in [0, 1], got 1.5"),
    ({"alpha": 0.7}, "--alpha: expected a number in (0, 0.5], got 0.7"),
    ({"stop": "sequentially"}, "--stop: expected one of fixed, sequential, got 'sequentially'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_flags_that_cannot_be(refused: Refused, changes: dict[str, object], message: str) -> None:
    assert message in refused(flags(Path("run"), **changes))


# Report and export


@pytest.mark.slow
def test_the_report_is_a_hand_count(asked: Path, tmp_path: Path) -> None:
    report = load_report([asked], [0.0, 0.05, 0.1, 0.3, 0.4])
    (row,), made = report.rows, certificates(asked)

    def share(radius: float) -> float:
        return sum(one.label == label and one.radius >= radius for label, one in made) / len(made)

    # Between the asked radii it is that of the next larger one; beyond them nothing was asked for.
    expected = [f"{share(radius):.1%}" for radius in (0.0, 0.1, 0.1, 0.3)]
    assert cells(report, row)[3:8] == [*expected, "–"]
    assert row.largest_radius == 0.3
    draws = fmean(one.n for _, one in made)
    assert draws < 600
    (remark,) = report.remarks
    assert remark == (
        f"{asked}: asked for radii 0,0.1,0.3; accuracy at others is that at the next larger one, ACR that"
        f" of the proved ones; {draws:,.0f} draws an image instead of 600, {600 / draws:.1f} times fewer"
    )
    assert set(row.certification.curve()[0]) <= set(RADII)
    assert run(["report", str(asked), "--out", str(tmp_path / "report")]) == 0
    with (tmp_path / "report" / "table.csv").open(encoding="utf-8") as file:
        (line,) = csv.DictReader(file)
    assert (line["n"], line["radii"]) == ("600", "0,0.1,0.3")
    assert float(line["draws"]) == pytest.approx(draws)
    assert float(line["acr"]) == pytest.approx(
        fmean(one.radius * (one.label == label) for label, one in made), abs=1e-6
    )


@pytest.mark.slow
def test_sequential_rows_are_told_from_fixed_ones(asked: Path, tmp_path: Path) -> None:
    assert run(flags(tmp_path / "largest", **{**LARGEST, "radii": None, "indices": "0:24:8"})) == 0
    assert run(flags(tmp_path / "fixed", stop=None, radii=None, n=100, indices="0:24:8")) == 0
    report = load_report([tmp_path / "fixed", tmp_path / "largest"], [0.0, 0.7])
    assert [report.label(row) for row in report.rows] == ["none", "none, sequential"]
    limits = [row.largest_radius for row in report.rows]
    for n, limit in zip(("n = 100", "sequential n = 600"), limits, strict=True):
        what = f"sigma = 0.25: {n} and alpha = 0.001 allow no radius above {limit:.3f} (– in the table)"
        assert what in report.remarks
    assert all(one.radius <= limits[1] for _, one in certificates(tmp_path / "largest"))
    assert verify(tmp_path / "largest").failures == []


def test_exports_say_how_many_draws_and_why(asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["export", str(asked), "--format", "csv"]) == 0
    table = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert run(["export", str(asked), "--format", "json"]) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    assert run(["export", str(asked)]) == 0
    cohen = list(csv.DictReader(capsys.readouterr().out.splitlines(), delimiter="\t"))
    for row, image, line, (label, one) in zip(table, images, cohen, certificates(asked), strict=True):
        assert one.sequential is not None
        assert (int(row["draws"]), row["stopped"]) == (one.n, one.sequential["stopped"])
        assert (image["draws"], image["hits"]) == (one.n, one.sequential["hits"])
        # A label with a radius of 0 is no abstention.
        assert int(line["predict"]) == (-1 if one.label is None else one.label)
        assert int(line["correct"]) == (one.label == label)


# Verification


@pytest.mark.slow
def test_a_good_run_holds_and_is_drawn_again(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verify(asked)
    assert (found.checked, found.failures) == (10, [])
    drawn: dict[int, int] = {}
    count = Certifier.count

    def spy(certifier: Certifier, counting: Counting) -> Counted:
        counted = count(certifier, counting)
        if counted.estimation is not None:
            drawn[counting.image_index] = counted.estimation.draws
        return counted

    monkeypatch.setattr(Certifier, "count", spy)
    assert run(["verify", str(asked), "--resample", "10"]) == 0
    assert drawn == {one.image_index: one.n for _, one in certificates(asked)}


def edited(folder: Path, radius: float, what: str) -> str:
    """A copy of a folder, with fields of the first certificate of a radius edited."""
    index, text = next(
        (index, text)
        for index, _, text in rows(folder)
        if json.loads(text)["radius"] == radius and json.loads(text)["label"] is not None
    )
    made = json.loads(text)
    stated = made["sequential"]
    last = stated["hits"][-1]
    match what:
        case "radius":
            made["radius"] = 0.3
        case "radii":
            stated["radii"] = [0.0, 0.2, 0.3]
            made["radius"] = 0.2
        case "stopped":
            stated["stopped"] = "spent"
        case "label":
            made["label"] = None
        case "hits at the end":
            made["sequential"]["hits"][-1] = last - 1
        case "impossible hits":
            made["sequential"]["hits"][0] = 33
        case "a look less":
            stated["hits"].pop()
        case "another n":
            stated["n"] = 500
        case "fixed":
            made |= {"sequential": None, "n": 600}
            made["counts"][made["selected"]] += 600 - sum(made["counts"])
        case "more alpha":
            stated["futility"] = 0.5
        case "fewer draws":
            made["n"] -= 1
    shutil.copytree(folder, "run")
    change(Path("run"), "UPDATE images SET certificate = ? WHERE image_index = ?", json.dumps(made), index)
    return f"image {index}: "


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("radius", "its counts prove radius 0.100000, the certificate says 0.300000"),
        ("radii", "radii is [0.0, 0.2, 0.3], expected [0.0, 0.1, 0.3]"),
        ("stopped", "stopped is spent, expected hopeless"),
        ("label", "its counts prove radius 0.100000, the certificate says 0.100000"),
        ("hits at the end", "its hits do not end with its draws"),
        ("impossible hits", "it cannot be: hits: expected 0 to "),
        ("a look less", "its hits do not end with its draws"),
        ("another n", "n is 500, expected 600"),
        ("fixed", "its draws did not end as the run's"),
        ("more alpha", "futility is 0.5, expected 0.02"),
        ("fewer draws", "its counts do not add up to n0 and n"),
    ],
)
def test_edits_are_found(
    asked: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    image = edited(asked, 0.1, what)
    assert run(["verify", "run", "--counts"]) == 1
    assert f"{image}{message}" in capsys.readouterr().out


def otherwise(folder: Path) -> tuple[int, str]:
    """An image and a certificate with other hits at a look before the last, from which the same follows."""
    for index, _, text in rows(folder):
        made = json.loads(text)
        hits, test = made["sequential"]["hits"], settings(n=600, **ASKED).test(made["failure_mass"])
        assert test is not None
        for place in range(len(hits) - 1):
            for move in (-6, 6):
                others = [*hits[:place], hits[place] + move, *hits[place + 1 :]]
                made["sequential"]["hits"] = others
                try:
                    same = test.proved(others)[0] == test.proved(hits)[0] and test.enough(others)
                except ValueError:
                    continue
                if same and not test.enough(others[:-1]):
                    return index, json.dumps(made)
    raise AssertionError("no such certificate")


@pytest.mark.slow
def test_only_drawing_again_finds_hits_that_could_have_been(
    asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    index, text = otherwise(asked)
    shutil.copytree(asked, "run")
    change(Path("run"), "UPDATE images SET certificate = ? WHERE image_index = ?", text, index)
    assert run(["verify", "run", "--counts"]) == 0
    assert run(["verify", "run", "--resample", "10"]) == 1
    assert f"image {index}: drawn again, at least 6 of " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("json_set(certificate, '$.sequential', json('{}'))", "n is missing"),
        ("json_set(certificate, '$.sequential.n', 'x')", "n: expected an integer, got 'x'"),
        (
            "json_set(certificate, '$.sequential.hits', json('[1,\"a\"]'))",
            "hits: expected a list, got [1, 'a']",
        ),
        ("json_set(certificate, '$.sequential.radii', 3)", "radii: expected a list or null, got 3"),
        ("json_set(certificate, '$.sequential.more', 3)", "unknown name 'more'"),
    ],
)
def test_what_is_no_certificate_is_one_line(asked: Path, refused: Refused, edit: str, message: str) -> None:
    shutil.copytree(asked, "run")
    change(Path("run"), f"UPDATE images SET certificate = {edit} WHERE image_index = 0")
    for command in ("report", "export", "verify"):
        line = refused([command, "run"])
        assert line.startswith("run: the store in run is corrupt: image 0: ")
        assert message in line


@pytest.mark.parametrize("hits", ["[]", "[31]", "[30, 31, 33]", "[31, 30]", '["a", 3]', "3"])
def test_hits_of_an_image_in_work_that_cannot_be(asked: Path, tmp_path: Path, hits: str) -> None:
    folder = Path(shutil.copytree(asked, tmp_path / "run"))
    tally = {"counts": [35], "draws": 35, "denoiser_evaluations": 0, "classifier_evaluations": 35}
    change(folder, "INSERT INTO partial VALUES (8, 'estimation', ?, 1.0)", json.dumps(tally))
    change(folder, "INSERT INTO partial VALUES (8, 'hits', ?, 1.0)", hits)
    corrupt = pytest.raises(ValueError, match=r"is corrupt: image 8 in work: ")
    with CertifyStore.reading(folder) as store, corrupt:
        store.partial(8, (32, 34, 36))
