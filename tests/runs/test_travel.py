"""Run folders that travel: extended, copied, verified elsewhere, read by strangers."""

from __future__ import annotations

import csv
import json
import os
import resource
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

import diffproof as dp
from diffproof.cli.main import guarded, run
from diffproof.runs.certify import run as certify_run
from diffproof.runs.certify.job import prepare
from diffproof.runs.settings import CertifySettings
from diffproof.weights import packaged
from helpers.command_line import words
from helpers.files import tree
from helpers.processes import outcome
from helpers.runs import attacked_rows, change, rows

pytestmark = pytest.mark.usefixtures("small_digits")

CERTIFY = shlex.split(
    "certify --data digits --classifier digits --defense none --sigma 0.25 --n0 5 --n 20 --seed 3"
)
ATTACK = shlex.split(
    "attack --data digits --classifier digits --denoiser digits --defense diffpure:t_star=0.1,steps=1"
    " --seed 3 --threat l2 --budget 0.5 --attack pgd:iterations=2 --draws 2 --majority-of 2 --diagnose 0"
)


# Extended


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then", "union", "more"),
    [
        ("--indices 0:3", "--indices 0:6", "0:6", 0),
        ("--indices 3:6", "--indices 0:6", "0:6", 0),
        ("--indices 0:6:2", "--indices 1:6:2", "0:6", 3),
        ("--indices 0:6", "--indices 0:2", "0:6", 4),
        ("--indices 7,3", "--indices 5", "3,5,7", 2),
        ("--indices 0:9:2 --limit 2", "--indices 0:9:2 --limit 5", "0:9:2", 0),
        ("--indices 0:9:2 --limit 5", "--indices 20 --limit 1", "0:9:2,20", 5),
        ("--indices 0:12 --per-class 1", "--indices 0:12", "0:12", 0),
    ],
)
def test_a_folder_gets_more_images_and_keeps_those_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first: str, then: str, union: str, more: int
) -> None:
    folder, fresh = tmp_path / "run", tmp_path / "fresh"
    assert run([*CERTIFY, *first.split(), "--out", str(folder)]) == 0
    before = rows(folder, "image_index, true_label, certificate, seconds")
    capsys.readouterr()
    assert run([*CERTIFY, *then.split(), "--batch-size", "7", "--out", str(folder)]) == 0
    warned = capsys.readouterr().err
    told = f" has {more} images more than are asked for here, which stay"
    assert (told in warned) == (more > 0)
    assert {*before} <= {*rows(folder, "image_index, true_label, certificate, seconds")}
    assert run([*CERTIFY, "--indices", union, "--out", str(fresh)]) == 0
    assert rows(folder) == rows(fresh)
    # What the folder says of itself makes all of it again, and it holds.
    assert run(["certify", "--config", str(folder / "settings.yaml"), "--out", str(tmp_path / "again")]) == 0
    assert rows(tmp_path / "again") == rows(folder)
    assert run(["verify", str(folder)]) == 0
    assert run(["report", str(folder)]) == 0
    assert "are finished" not in capsys.readouterr().out


@pytest.mark.slow
def test_an_extended_attack_is_one_over_all_images(tmp_path: Path) -> None:
    folder, fresh = tmp_path / "run", tmp_path / "fresh"
    for indices, out in (("0:2", folder), ("0:4", folder), ("0:4", fresh)):
        # In groups of other sizes, float32 may round otherwise.
        assert run([*ATTACK, "--indices", indices, "--batch-size", "1", "--out", str(out)]) == 0
    assert attacked_rows(folder) == attacked_rows(fresh)
    assert yaml.safe_load((folder / "settings.yaml").read_text())["indices"] == "0:4"
    assert run(["verify", str(folder), "--resample", "2"]) == 0


@pytest.mark.parametrize("changed", ["old", "new", "fewer"])
def test_the_images_it_has_must_be_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: str
) -> None:
    digits = dp.load_data("digits", limit=6)
    images, labels = digits.images[:, 0].numpy(), digits.labels.numpy()
    file, folder = tmp_path / "some.npz", tmp_path / "run"
    np.savez(file, images=images, labels=labels)
    flags = [*CERTIFY, "--data", str(file), "--out", str(folder)]
    assert run([*flags, "--indices", "1:4"]) == 0
    before = tree(folder)
    images = images.copy()
    if changed == "fewer":
        images, labels = images[:2], labels[:2]
    else:
        images[2 if changed == "old" else 5] = 0.5
    np.savez(file, images=images, labels=labels)
    capsys.readouterr()
    status = run([*flags, "--indices", "0:2" if changed == "fewer" else "1:6"])
    if changed == "new":
        assert status == 0
        return
    assert status == 2
    assert "with other settings: the images or labels in the data" in capsys.readouterr().err
    assert tree(folder) == before


def test_a_folder_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run([*CERTIFY, "--indices", "0:3", "--out", str(folder)]) == 0
    before = rows(folder)
    for statement in (
        "DROP TABLE planned",
        "DROP TABLE work",
        "DROP TABLE ballots",
        "CREATE TABLE underway (image_index INTEGER, stream TEXT, draws INTEGER)",
        "DELETE FROM images WHERE image_index = 2",
    ):
        change(folder, statement)
    for command in (["verify", str(folder)], ["report", str(folder)], ["export", str(folder)]):
        assert run(command) == 0
    # Which images it was to have, their hash alone says, so that it gets no others before it is finished.
    assert run([*CERTIFY, "--indices", "0:5", "--out", str(folder)]) == 2
    assert run([*CERTIFY, "--indices", "0:3", "--out", str(folder)]) == 0
    assert rows(folder) == before
    assert run([*CERTIFY, "--indices", "0:5", "--out", str(folder)]) == 0
    assert rows(folder)[:3] == before


# Copied


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a run and with the files of its data and classifier, named relatively."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    shutil.copy(packaged("classifier")["digits"], "c.safetensors")
    digits = dp.load_data("digits", limit=6)
    images, labels = digits.images[:, 0].numpy(), digits.labels.numpy()
    np.savez("some.npz", images=images, labels=labels)
    named = {"data": "some.npz", "classifier": "c.safetensors", "indices": "0:3", "out": "run"}
    assert run([*CERTIFY, *words(**named)]) == 0
    return home


COUNTS = "not checked: images, true labels, weights, code; whether the networks give these counts\n"


@pytest.mark.parametrize(
    ("where", "flags", "status", "said"),
    [
        (
            ".",
            "",
            2,
            "names the data 'some.npz', the classifier 'c.safetensors': --trust opens and",
        ),
        (".", "--data some.npz", 2, "names the classifier 'c.safetensors': --trust "),
        (".", "--classifier digits", 2, "names the data 'some.npz': --trust"),
        (
            ".",
            "--trust",
            0,
            "not checked: draws of 3 images, which --resample makes again\n3 certificates",
        ),
        (".", "--trust --resample 3", 0, "not checked: nothing\n3 certificates hold, 3 drawn again\n"),
        (
            ".",
            "--data some.npz --classifier c.safetensors",
            0,
            "checked: counts, radii, images, true labels",
        ),
        (".", "--data some.npz --classifier digits --resample 1", 0, "hold, 1 drawn again\n"),
        (".", "--data digits --classifier digits", 2, "data: split: unknown name 'all'; known: test, train"),
        (".", "--counts", 0, COUNTS + "3 certificates hold\n"),
        ("..", "--counts", 0, "from the counts: certified accuracy "),
        ("..", "--trust", 2, "some.npz"),
        ("..", "--trust --data home/some.npz --classifier home/c.safetensors", 0, "3 certificates hold"),
        (".", "--data other.npz --classifier digits", 1, "image 1: the image is not the one it was made for"),
        (".", "--data few.npz --classifier digits", 2, "the data has 2 images (0 to 1), got '0:3'"),
        (".", "--data some.npz --classifier other.safetensors", 1, "image 0: the weights are not those it w"),
        (".", "--data nowhere.npz --classifier digits", 2, "data: no such file: nowhere.npz"),
        (".", "--denoiser digits", 2, "denoiser: the run in run has none, got 'digits'"),
        (".", "--guide digits", 2, "guide: the run in run has none, got 'digits'"),
        (".", "--counts --data some.npz", 2, "--counts needs neither data nor networks, got --data some.npz"),
        (".", "--counts --trust", 2, "trust: --counts needs neither data nor networks, got --trust"),
        (".", "--counts --resample 1", 2, "drawing again needs data and networks, got 1 and --counts"),
    ],
)
def test_verifying(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
    flags: str,
    status: int,
    said: str,
) -> None:
    digits = dp.load_data("digits", limit=6)
    images, labels = digits.images[:, 0].numpy(), digits.labels.numpy()
    np.savez("few.npz", images=images[:2], labels=labels[:2])
    images[1] = 0.5
    np.savez("other.npz", images=images, labels=labels)
    if "other.safetensors" in flags:
        training = "train classifier --data digits --iterations 1 --batch-size 2 --out other.safetensors"
        assert run(training.split()) == 0
    monkeypatch.chdir(where)
    folder = os.path.relpath(home / "run")
    capsys.readouterr()
    assert run(["verify", folder, *flags.split()]) == status
    captured = capsys.readouterr()
    assert said in captured.out + captured.err
    assert captured.err.count("diffproof: error: ") == (status == 2)


def test_a_path_is_of_the_current_folder_or_else_of_the_run_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("some.npz", "c.safetensors"):
        shutil.copy(name, home / "run" / name)
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    capsys.readouterr()
    assert run(["verify", "../run", "--trust"]) == 0
    assert (
        "data is read from the run folder: ../run/some.npz\nclassifier is read from"
        in capsys.readouterr().out
    )
    # What is in the current folder comes first, and its hash tells that it is another.
    digits = dp.load_data("digits", indices="50:56")
    np.savez("some.npz", images=digits.images[:, 0].numpy(), labels=digits.labels.numpy())
    assert run(["verify", "../run", "--trust"]) == 1
    assert "image 0: the image is not the one it was made for" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("radius", 9.0, "its counts prove radius "),
        ("label", 77, "its counts prove radius "),
        ("n0", 6, "n0 is 6, the run's is 5"),
        ("counts", [20] + [0] * 8, "its counts are not those of 9 classes"),
        ("counts", [21] + [0] * 9, "its counts do not add up to n0 and n"),
        ("selected", 9, "the selected class did not get the most selection draws"),
        ("settings", {"method": "dds"}, "method is dds, the run's is none"),
        ("settings", {"method": "none", "votes": 5}, "certificates with 2 settings of the defence"),
        ("grid_sigma", 0.3, "certificates with 2 noise levels of the denoiser"),
        ("classifier_evaluations", 26, "classifier_evaluations is 26, expected at most 25"),
        ("weights_hash", "0" * 64, "the weights are not those that the run was made with"),
        ("image_index", 1, "it was made for image 1"),
        (None, 9, "image 9: the run has no such image"),
    ],
)
def test_counts_alone_tell_what_was_changed(
    home: Path, capsys: pytest.CaptureFixture[str], field: str | None, value: object, said: str
) -> None:
    (text,) = (text for index, _, text in rows(home / "run") if index == 0)
    if field is None:
        change(home / "run", "UPDATE images SET image_index = ? WHERE image_index = 0", value)
    else:
        changed = json.dumps({**json.loads(text), field: value})
        change(home / "run", "UPDATE images SET certificate = ? WHERE image_index = 0", changed)
    (home / "some.npz").unlink()
    capsys.readouterr()
    assert run(["verify", "run", "--counts"]) == 1
    assert said in capsys.readouterr().out


# Of strangers


STRANGE = """
from pathlib import Path

import diffproof as dp

Path("marker").touch()


class Own(dp.Undefended):
    pass


class OwnAttack(dp.PGD):
    pass


def classifier():
    return dp.load_classifier("digits")
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    Path("strange.py").write_text(STRANGE)
    yield tmp_path
    sys.modules.pop("strange", None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        [*CERTIFY, "--indices", "0:2", "--defense", "strange:Own", "--out", "run"],
        [*CERTIFY, "--indices", "0:2", "--classifier", "strange:classifier", "--out", "run"],
        [*ATTACK, "--indices", "0:2", "--attack", "strange:OwnAttack:iterations=1", "--out", "run"],
        [*ATTACK, "--indices", "0:2", "--classifier", "strange:classifier", "--out", "run"],
    ],
)
def test_the_code_that_a_folder_names_runs_only_when_it_is_trusted(
    stranger: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert run(command) == 0
    marker, form = stranger / "marker", "json"

    def forget() -> None:
        marker.unlink(missing_ok=True)
        sys.modules.pop("strange", None)

    forget()
    for harmless in (
        ["report", "run", "--out", "report"],
        ["export", "run", "--format", form],
        ["verify", "run", "--counts"],
    ):
        assert run(harmless) == 0, harmless
    capsys.readouterr()
    assert run(["verify", "run"]) == 2
    error = capsys.readouterr().err
    assert "strange:" in error
    assert "--trust opens and runs what it names, if you trust who made it" in error
    # Nor does another run in that folder.
    assert run([*CERTIFY, "--indices", "0:2", "--out", "run"]) == 2
    assert not marker.exists()
    assert run(["verify", "run", "--trust"]) == 0
    assert marker.exists()


@pytest.mark.parametrize("name", ["lock", "results.sqlite", "settings.yaml", "results.sqlite.new"])
def test_links_in_a_run_folder_are_not_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder, target = tmp_path / "run", tmp_path / "target"
    assert run([*CERTIFY, "--indices", "0:2", "--out", str(folder)]) == 0
    (folder / name).rename(target) if (folder / name).exists() else target.write_text("precious")
    if name.endswith(".new"):
        (folder / "results.sqlite").unlink()
    before = target.read_bytes()
    (folder / name).symlink_to(target)
    capsys.readouterr()
    assert run([*CERTIFY, "--indices", "0:4", "--out", str(folder)]) == 2
    expected = f"diffproof: error: --out: {folder / name} is a link, expected a file of the run's own\n"
    assert capsys.readouterr().err == expected
    if name == "results.sqlite":
        for command in ("report", "verify", "export"):
            assert run([command, str(folder)]) == 2
            assert "is a link, expected a file" in capsys.readouterr().err
    assert target.read_bytes() == before


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_of_a_run_folder_have_the_modes_of_other_files(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        assert run([*CERTIFY, "--indices", "0:1", "--out", str(tmp_path / "run")]) == 0
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir()}
    # SQLite gives its own at most 644.
    assert modes == {"settings.yaml": mode, "results.sqlite": mode & 0o644, "lock": mode}


# Exported


@pytest.mark.usefixtures("packaged_digits")
@pytest.mark.slow
def test_an_attack_as_csv_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    # So much noise that some images are wrong without an attack.
    noisy = ["--defense", "diffpure:t_star=0.3,steps=1"]
    assert run([*ATTACK, *noisy, "--indices", "0:6", "--out", str(folder)]) == 0
    capsys.readouterr()
    assert run(["export", str(folder)]) == 0
    table = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert run(["export", str(folder), "--format", "json", "--out", str(tmp_path / "run.json")]) == 0
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["settings"] == yaml.safe_load((folder / "settings.yaml").read_text())
    stored = attacked_rows(folder)
    assert [int(row["image_index"]) for row in table] == [image["image_index"] for image in told["images"]]
    for row, image, (index, label, result, _, adversarial, _) in zip(
        table, told["images"], stored, strict=True
    ):
        fields = json.loads(result)
        assert (image["image_index"], image["true_label"]) == (index, label)
        assert (image["clean_labels"], image["labels"]) == (fields["clean_labels"], fields["labels"])
        assert image["clean_right"] == fields["clean_labels"].count(label) / 2
        assert image["attacked_right"] == fields["labels"].count(label) / 2
        assert image["attacked"] == (adversarial is not None)
        if fields["result"] is not None:
            assert {name: image[name] for name in fields["result"]} == fields["result"]
        # A line of the table is the same but for the lists.
        assert {name: "" if image[name] is None else str(image[name]) for name in row} == {
            name: {"0": "False", "1": "True"}[value]
            if name in ("attacked", "success", "control_wrong") and value
            else value
            for name, value in row.items()
        }
    assert {image["attacked"] for image in told["images"]} == {True, False}


def test_a_certification_as_csv_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert run([*CERTIFY, "--indices", "0:6", "--out", str(folder)]) == 0
    capsys.readouterr()
    assert run(["export", str(folder), "--format", "csv"]) == 0
    table = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert run(["export", str(folder), "--format", "json"]) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    for row, image, (index, label, text) in zip(table, images, rows(folder), strict=True):
        certificate = json.loads(text)
        assert (image["image_index"], image["true_label"]) == (index, label)
        assert {name: image[name] for name in certificate if name in image} == {
            name: certificate[name] for name in certificate if name in image
        }
        assert (int(row["image_index"]), float(row["radius"])) == (index, certificate["radius"])
        assert row["label"] == ("" if certificate["label"] is None else str(certificate["label"]))
        assert int(row["correct"]) == (certificate["label"] == label)


@pytest.mark.slow
def test_an_attack_has_no_format_of_cohen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*ATTACK, "--indices", "0:1", "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert run(["export", str(tmp_path / "run"), "--format", "cohen"]) == 2
    assert (
        "format: cohen is for certifications, expected csv or json for an attack" in capsys.readouterr().err
    )


# Gone and full


def test_a_folder_that_is_deleted_under_a_run_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job = prepare(
        CertifySettings(
            seed=0, data="digits", classifier="digits", defense="none", sigma=0.25, n0=5, n=50, limit=2
        )
    )

    def vanish(evaluations: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def work() -> int:
        certify_run.COMMIT_EVERY = 0.0
        return guarded(lambda: certify_run.run(job, folder, vanish))

    status, errors = outcome(work)
    assert status == 2
    assert [line.startswith("diffproof: error: cannot write to ") for line in errors.splitlines()] == [True]
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", [CERTIFY, ATTACK])
@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_is_full_in_the_middle_of_a_report_leaves_nothing_half_written(
    tmp_path: Path, command: list[str], there: bool
) -> None:
    folder, out = tmp_path / "run", tmp_path / "report"
    assert run([*command, "--indices", "0:2", "--out", str(folder)]) == 0
    if there:
        assert run(["report", str(folder), "--out", str(out)]) == 0
    before = tree(out) if there else {}

    def report() -> int:
        # The table fits, the picture does not.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
        return run(["report", str(folder), "--out", str(out), "--force"])

    status, errors = outcome(report)
    assert status == 2
    (line,) = errors.splitlines()
    assert line.startswith("diffproof: error: ")
    assert (tree(out) == before) if there else not out.exists()
