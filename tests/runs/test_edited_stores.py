"""Stores that somebody edited by hand: each is refused in one line that names the folder and the field."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from diffproof.cli.main import run
from helpers.command_line import Refused
from helpers.runs import certify_flags, change


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished attack run; read only."""
    folder = tmp_path_factory.mktemp("runs") / "attacked"
    flags = (
        "--data digits --indices 0:2 --classifier digits --defense none --threat linf --budget 0.1"
        " --diagnose 0 --attack pgd:iterations=1,eot=1 --gradient exact --draws 2 --majority-of 2"
    )
    assert run(["attack", *flags.split(), "--out", str(folder)]) == 0
    return folder


def cell(name: str, value: str) -> str:
    return f"UPDATE images SET certificate = json_set(certificate, '$.{name}', {value}) WHERE image_index = 0"


def setting(name: str, value: str) -> str:
    return f"UPDATE settings SET json = json_set(json, '$.{name}', {value})"


DEEP = "[" * 100_000
# What is done to a store of certificates, and what the line says.
CERTIFIED = [
    (cell("radius", "-1"), "image 0: certificate: not readable: radius is -1"),
    (cell("failure_mass", "-0.5"), "image 0: certificate: not readable: failure_mass is -0.5"),
    (cell("off_grid", "-1"), "image 0: certificate: not readable: off_grid is -1"),
    (cell("radius", "'x'"), "radius: expected a finite number, got 'x'"),
    (cell("radius", "json('[1]')"), "radius: expected a finite number, got [1]"),
    (cell("radius", "9e999"), "certificate: not readable"),
    (cell("n", "1e30"), "n: expected an integer, got 1e+30"),
    (cell("label", "'3'"), "label: expected an integer or null, got '3'"),
    (cell("label", "-1"), "label -1 of 10 classes"),
    (cell("counts", "json('[]')"), "of 0 classes"),
    (cell("counts", "json('[[1]]')"), "counts: expected a list, got [[1]]"),
    (cell("counts", "7"), "counts: expected a list, got 7"),
    (cell("settings", "3"), "settings: expected names with values, got 3"),
    (cell("image_size", "json('[8]')"), "image_size: expected a list or null, got [8]"),
    (cell("other", "1"), "unknown name 'other'"),
    ("UPDATE images SET certificate = json_remove(certificate, '$.alpha')", "alpha is missing"),
    ("UPDATE images SET certificate = x'ff'", "is corrupt: image 0: "),
    (f"UPDATE images SET certificate = '{DEEP}'", "is corrupt: image 0: certificate: not readable"),
    ("UPDATE images SET certificate = 'null'", "expected names with values, got None"),
    ("UPDATE images SET true_label = 'seven'", "image 0: true_label: expected an integer, got 'seven'"),
    ("UPDATE images SET true_label = -1", "image 0: true_label: expected an integer ≥ 0, got -1"),
    ("UPDATE images SET true_label = 0.5", "image 0: true_label: expected an integer, got 0.5"),
    ("UPDATE images SET seconds = 'soon'", "image 0: seconds: expected a finite number, got 'soon'"),
    ("UPDATE images SET seconds = 1e300", "image 0: seconds: expected a number ≥ 0, got 1e+300"),
    ("UPDATE images SET seconds = -1", "image 0: seconds: expected a number ≥ 0, got -1"),
    (
        "UPDATE images SET image_index = -5 WHERE image_index = 0",
        "image -5: image_index: expected an integer ≥ 0",
    ),
    (setting("sigma", "'x'"), "settings: sigma: expected a finite number, got 'x'"),
    (setting("sigma", "-1"), "sigma: expected"),
    (setting("n", "json('{}')"), "settings: n: expected an integer, got {}"),
    (setting("defense", "3"), "settings: defense: expected a text, got 3"),
    (setting("defense", "'nothing'"), "unknown name 'nothing'"),
    ("UPDATE settings SET planned = 'many'", "planned: expected an integer, got 'many'"),
    ("UPDATE settings SET planned = -1", "planned: expected an integer ≥ 1, got -1"),
    ("UPDATE settings SET code = '[1]'", "code: expected names with values, got [1]"),
    ("UPDATE settings SET code = '{\"a\": 1}'", "code: expected names with values, got {'a': 1}"),
    ("UPDATE settings SET weights_hash = x'00'", "weights_hash: expected a text, got b'\\x00'"),
    (f"UPDATE settings SET json = '{DEEP}'", "is corrupt: expected lists and mappings at most 16 deep"),
    (
        cell("settings.more", f"json('{'[' * 20}{']' * 20}')"),
        "not readable: expected lists and mappings at most",
    ),
    (
        "UPDATE images SET certificate = replace(certificate, '{', '{\"radius\": 9, ')",
        "certificate: not readable: 'radius' is given twice",
    ),
    (
        'UPDATE images SET certificate = replace(certificate, \'"settings": {\', \'"settings": {"a": NaN,\')',
        "not readable: expected finite numbers, got NaN",
    ),
    (
        f"UPDATE images SET certificate = '[' || printf('%.*c', {2**24}, ' ')",
        "not readable: expected at most 16,777,216 characters, got 16,777,217",
    ),
    ("UPDATE images SET certificate = x'ff'", "certificate: not readable: expected a text, got bytes"),
    ("INSERT INTO settings SELECT * FROM settings", "it holds settings of several runs"),
    ("CREATE VIEW more AS SELECT 1", "expected tables, got a view"),
    (
        "CREATE TRIGGER t AFTER DELETE ON images BEGIN DELETE FROM partial; END",
        "expected tables, got a trigger",
    ),
]


def found(name: str, value: str) -> str:
    return f"UPDATE attacked SET result = json_set(result, '$.{name}', {value}) WHERE image_index = 0"


ATTACKED = [
    (found("clean_labels", "7"), "image 0: clean_labels: expected a list, got 7"),
    (found("clean_labels", "json('[-1,-1]')"), "image 0: a label is negative"),
    (found("control_wrong", "3"), "image 0: control_wrong: expected true or false, got 3"),
    (found("result.norm", "'x'"), "image 0: norm: expected a finite number, got 'x'"),
    (found("result.forwards", "1e30"), "image 0: forwards: expected an integer, got 1e+30"),
    (found("version", "json('{}')"), "image 0: version: expected a text, got {}"),
    (found("result", "json('[]')"), "image 0: norm is missing"),
    (f"UPDATE attacked SET result = '{DEEP}'", "is corrupt: image 0: "),
    ("UPDATE attacked SET clean = x'00'", "image 0: clean: "),
    ("UPDATE attacked SET clean = 'text'", "image 0: clean: "),
    ("UPDATE attacked SET clean = 5", "image 0: clean: "),
    ("UPDATE attacked SET purified = zeroblob(100)", "image 0: purified: "),
    ("UPDATE attacked SET seconds = 'x'", "image 0: seconds: expected a finite number, got 'x'"),
    ("UPDATE attacked SET true_label = -3", "image 0: true_label: expected an integer ≥ 0, got -3"),
    ("INSERT INTO findings VALUES ('{')", "findings: "),
    ("INSERT INTO findings VALUES ('[3]')", "findings: expected names with values, got 3"),
]


@pytest.mark.parametrize(("statement", "message"), CERTIFIED)
def test_certificates(refused: Refused, small_run: Path, statement: str, message: str) -> None:
    shutil.copytree(small_run, "run")
    change(Path("run"), statement)
    for command in ("report", "export", "verify"):
        line = refused([command, "run"])
        assert line.startswith("run: the store in run is corrupt: ")
        assert message in line


@pytest.mark.parametrize(("statement", "message"), ATTACKED)
def test_attacked_images(refused: Refused, attacked: Path, statement: str, message: str) -> None:
    shutil.copytree(attacked, "run")
    change(Path("run"), statement)
    commands = ["report"] if "findings" in statement else ["report", "verify"]
    for command in commands:
        line = refused([command, "run"])
        assert line.startswith("run: the store in run is corrupt: ")
        assert message in line


TALLY = '{"counts": [%s], "draws": %s, "denoiser_evaluations": 0, "classifier_evaluations": 0}'


@pytest.mark.parametrize(
    ("tally", "message"),
    [
        (TALLY % ("-1, 3", 2), "image 8 in work: expected counts of at most 100 draws, got (-1, 3) of 2"),
        (TALLY % ("1000000, 0", 1000000), "expected counts of at most 100 draws"),
        (TALLY % ("3, 4", 5), "expected counts of at most 100 draws, got (3, 4) of 5"),
        (TALLY % ('"x"', 5), "counts: expected a list, got ['x']"),
        (TALLY % ("1", '"1"'), "draws: expected an integer, got '1'"),
        ("[" * 100_000, "image 8 in work"),
    ],
)
def test_an_image_in_work(small_run: Path, tmp_path: Path, tally: str, message: str) -> None:
    from diffproof.runs.certify.store import CertifyStore

    folder = Path(shutil.copytree(small_run, tmp_path / "run"))
    change(folder, "INSERT INTO partial VALUES (8, 'estimation', ?, 1.0)", tally)
    with CertifyStore.reading(folder) as store, pytest.raises(ValueError, match="is corrupt: ") as caught:
        store.partial(8)
    assert message in str(caught.value)


def test_text_that_is_no_text(refused: Refused, small_run: Path) -> None:
    shutil.copytree(small_run, "run")
    connection = sqlite3.connect("run/results.sqlite")
    with connection:
        connection.execute("UPDATE images SET certificate = CAST(x'ff' AS TEXT)")
    connection.close()
    assert refused(["report", "run"]).startswith("run: the store in run is corrupt: Could not decode")


@pytest.mark.parametrize(
    ("old", "new", "failure"),
    [
        ("sigma: 0.25", "sigma: 0.5", "settings.yaml says 'sigma: 0.5', with which the run was not made"),
        ("seed: 3", "seed: 3\nalpha: 0.1", "settings.yaml says 'alpha: 0.1 alpha: 0.001'"),
        ("sigma: 0.25\n", "", "settings.yaml lacks 'sigma: 0.25', with which the run was made"),
        ("bound: one-sided\n", "", "settings.yaml lacks 'bound: one-sided'"),
        ("indices: 0:40:8\n", "", "settings.yaml lacks 'which images'"),
        ("seed: 3", "seed: 4\nseed: 3", "settings.yaml says 'seed: 4 seed: 3'"),
        ("batch_size: 256", "# mine\n\nbatch_size: 2", None),
        ("held_out: false\n", "", None),
    ],
)
@pytest.mark.parametrize("flag", ["--counts", "--trust"])
def test_edited_settings(
    small_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    failure: str | None,
    flag: str,
) -> None:
    folder = shutil.copytree(small_run, tmp_path / "run")
    text = (folder / "settings.yaml").read_text()
    assert old in text
    (folder / "settings.yaml").write_text(text.replace(old, new))
    assert run(["verify", str(folder), flag]) == (failure is not None)
    assert failure is None or failure in capsys.readouterr().out


@pytest.mark.parametrize("command", ["report", "export", "certify"])
@pytest.mark.parametrize("gone", [False, True])
def test_edited_settings_are_told(
    small_run: Path,
    denoiser: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    gone: bool,
) -> None:
    folder = shutil.copytree(small_run, tmp_path / "run")
    line = certify_flags(folder, denoiser=denoiser) if command == "certify" else [command, str(folder)]
    capsys.readouterr()
    assert run(line) == 0
    assert "settings.yaml" not in capsys.readouterr().err
    path = folder / "settings.yaml"
    if gone:
        path.unlink()
    else:
        path.write_text(path.read_text().replace("n: 100\n", ""))
    assert run(line) == 0
    what = "is missing, expected the run's" if gone else "lacks 'n: 100', with which the run was made"
    assert f"warning: {folder}: settings.yaml {what}\n" in capsys.readouterr().err


def test_edited_settings_of_an_attack(
    attacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(attacked, tmp_path / "run")
    with (folder / "settings.yaml").open("a") as file:
        file.write("gradient: blind\n")
    assert run(["verify", str(folder), "--counts"]) == 1
    assert "settings.yaml says 'gradient: exact gradient: blind'" in capsys.readouterr().out


def test_an_attack_on_class_0_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--data digits --indices 0:1 --classifier digits --defense none --threat linf --budget 0.001"
    rest = "--diagnose 0 --attack pgd:iterations=1 --draws 1 --majority-of 1"
    assert run(["attack", *f"{flags} {rest}".split(), "--out", str(tmp_path / "run")]) == 0
    assert run(["verify", str(tmp_path / "run"), "--counts"]) == 0
    assert "one draw 100.0% (clean 100.0%)" in " ".join(capsys.readouterr().out.split())
