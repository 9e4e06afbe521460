"""diffproof reproduce from end to end, on digits cut down."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from diffproof.cli.main import run
from diffproof.reproduce.entries import ENTRIES
from diffproof.reproduce.entry import Entry, Theory, Unavailable
from diffproof.reproduce.trainings import training, with_starts
from diffproof.runs.certify.store import CertifyStore

pytestmark = pytest.mark.usefixtures("small_digits")

DIGITS = "--data digits --classifier digits --denoiser digits --guide digits"


def reproduce(entry: str, out: Path, *further: str) -> int:
    return run(["reproduce", entry, *DIGITS.split(), "--quick", "--out", str(out), *further])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all entries, which share runs."""
    return tmp_path_factory.mktemp("reproduced")


LEFT_OUT = {
    *("densepure:tableE", "densepure:tableF", "dds:table5", "agdm:figure3c", "rdc:text-v2"),
}


def takes(name: str) -> list[str]:
    """The roles of an entry, and of what their trainings start from."""
    return with_starts(ENTRIES[name].needs)


def trainable(entry: Entry) -> bool:
    """Whether it has networks that are trained."""
    return any(training(role) is not None for role in entry.needs)


def table(out: Path, entry: str) -> list[dict[str, str]]:
    path = out / entry.replace(":", "-") / "beside_the_paper.csv"
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def results(out: Path) -> dict[Path, list[object]]:
    """The results of every run, with the seconds that they took."""
    found: dict[Path, list[object]] = {}
    for path in out.rglob("results.sqlite"):
        with CertifyStore.reading(path.parent) as store:
            found[path] = list(store.results())
    return found


@pytest.mark.slow
def test_a_table_of_certificates(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce("densepure:tableA", out) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "[1/7] diffproof certify --data digits --limit 2 --classifier digits" in told.out
    assert "no number of yours counts" in told.out
    lines = table(out, "densepure:tableA")
    assert len(lines) == 30
    first = lines[0]
    assert (first["method"], first["at"], first["printed"]) == ("DDS, σ=0.25", "ε=0", "88.0")
    # Ours is what its run folder says.
    with CertifyStore.reading(Path(first["runs"])) as store:
        right = [one.certified_at(0.0) for one in store.results()]
    assert float(first["ours"]) == 100 * sum(right) / len(right)
    assert len(right) == 2
    # 40 draws at σ = 0.25 prove no radius of 1: nothing stands there.
    assert [line["ours"] for line in lines if line["at"] == "ε=1"][:2] == ["", ""]
    # The same again runs nothing anew, and another table of these runs neither.
    found = results(out)
    assert reproduce("densepure:tableA", out) == 0
    assert reproduce("densepure:figure3", out) == 0
    assert results(out) == found
    assert len(found) == 6


@pytest.mark.slow
def test_a_plan_of_attacks_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce("rdc:text-momentum", tmp_path / "out", "--plan") == 0
    assert "RDC without momentum: not run yet" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_another_attack_is_named_below_the_table(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce("rdc:text-likelihood", out, "--attack", "pgd:iterations=1,eot=1") == 0
    told = capsys.readouterr().out
    assert "note: attacked by pgd:iterations=1,eot=1 in place of the paper's attacks on pixels" in told
    assert "--attack pgd:iterations=1,eot=1 " in told


@pytest.mark.slow
def test_a_plan_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce("densepure:tableC", tmp_path / "out", "--plan") == 0
    told = capsys.readouterr().out
    assert "$ diffproof certify" in told
    assert "evaluations of networks" in told
    assert "RS without denoiser (ViT-B/16), σ=0.25: not run yet" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        reproduce("densepure:table2", tmp_path, "--network", f"second={tmp_path / 'none.safetensors'}") == 1
    )
    told = capsys.readouterr()
    assert "none.safetensors" in told.err
    lines = table(tmp_path, "densepure:table2")
    done = {line["method"]: bool(line["ours"]) for line in lines if line["at"] == "ε=0"}
    assert [one for one, there in done.items() if there] == [
        "DDS, ViT-B/16, σ=0.25",
        "DensePure, ViT-B/16, σ=0.25",
    ]
    assert len(done) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, entry in ENTRIES.items() if not isinstance(entry, Unavailable | Theory)]
)
def test_every_entry_runs_on_digits(name: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optimal = ("--network", "optimal=empirical:digits") if name == "rdc:text-optimal" else ()
    status = reproduce(name, out, *optimal)
    told = capsys.readouterr()
    if name in LEFT_OUT:
        # All its rows are of networks of their own.
        assert status == 2
        (line,) = told.err.splitlines()
        assert line.startswith(f"diffproof: error: entry: {name} has no row to run: it lacks --network")
        assert not (out / name.replace(":", "-")).exists()
        return
    # The printed ℓ2 budget of 1 is large for digits, and a warning says so.
    assert [line for line in told.err.splitlines() if "warning: budget" not in line] == []
    lines = table(out, name)
    lacking = {line["lacking"] for line in lines}
    # What is left out says which network it takes, or why it is not run at all.
    assert all(
        one == "" or one.startswith(("needs --network", "the printed number", "diffproof has no"))
        for one in lacking
    )
    assert (status == 0) == (lacking == {""})
    assert any(line["runs"] for line in lines)


# What `--train` cannot make: networks of a user, and tables of such networks alone.
BROUGHT = {"droppath": "digits", "edm": "digits", "score": "digits", "second": "digits"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if trainable(entry)])
def test_every_entry_trains_its_networks_on_digits(
    name: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # EDM's noise levels are of its own networks, which digits has none of.
    given = {role: spec for role, spec in BROUGHT.items() if role in takes(name) and name != "rdc:text-v2"}
    brought = [("--network", f"{role}={spec}") for role, spec in given.items()]
    words = [word for pair in brought for word in pair]
    assert reproduce(name, out, "--train", "--iterations", "2", *words) in (0, 1)
    told = capsys.readouterr()
    assert [line for line in told.err.splitlines() if "warning" not in line] == []
    lacking = {line["lacking"] for line in table(out, name)}
    known = ("the printed number", "needs --network at-", "needs --network edm=")
    assert all(one == "" or one.startswith(known) for one in lacking)


@pytest.mark.slow
def test_a_row_by_another_bound(out: Path) -> None:
    # Without a diffusion model the other rows are left out.
    given = f"--data digits --network gaussian@0.25=digits --quick --n 400 --limit 4 --out {out}"
    assert run(["reproduce", "densepure:table1", *given.split()]) == 1
    ours = {line["method"]: line["ours"] for line in table(out, "densepure:table1") if line["at"] == "ε=0.25"}
    # Of the same counts the bound of differential privacy cannot prove this radius at all.
    assert float(ours["RS"]) > 0
    assert ours["PixelDP"] == ""


@pytest.mark.slow
def test_networks_are_trained_and_not_again(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce("dds:table5", out, "--train", "--iterations", "3") == 0
    assert all(line["lacking"] == "" for line in table(out, "dds:table5"))
    tuned = sorted((out / "networks-quick").glob("finetuned@*.safetensors"))
    assert [path.name for path in tuned] == [
        f"finetuned@{sigma}.safetensors" for sigma in ("0.25", "0.5", "1")
    ]
    before = [path.stat().st_mtime_ns for path in tuned]
    assert reproduce("dds:table5", out, "--train", "--iterations", "3") == 0
    assert [path.stat().st_mtime_ns for path in tuned] == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["densepure:tabel1"], "did you mean densepure:table1"),
        (["densepure:figure1"], "densepure:figure1 is not run: a drawing without numbers"),
        (["densepure:tableA"], "--out: expected a folder for the runs, got none"),
        (["densepure:tableA", "--out", "x"], "--data: expected a data set, got none"),
        (["densepure:tableA", "--data", "digits", "--out", "x", "--iterations", "3"], "is for --train"),
        (
            ["densepure:tableA", "--data", "digits", "--out", "x", "--indices", "0:3", "--limit", "2"],
            "--limit",
        ),
        (["densepure:tableA", "--data", "digits", "--out", "x", "--network", "second"], "expected ROLE=SPEC"),
        (["densepure:tableA", "--data", "digits", "--out", "x", "--network", "b=c"], "has no 'b'; it takes"),
        (
            ["densepure:tableA", "--data", "digits", "--out", "x"],
            "densepure:tableA has no row to run: it lacks --classifier SPEC, --denoiser SPEC",
        ),
        (
            ["densepure:tableF", "--data", "digits", "--out", "x", "--plan"],
            "it lacks --network gaussian@0.25/0.5/1=SPEC; --train makes those that diffproof can",
        ),
        (
            ["densepure:tableA", "--data", "digits", "--out", "x", "--attack", "pgd"],
            "--attack: densepure:tableA has no attack",
        ),
        (
            ["rdc:table1", "--data", "digits", "--out", "x", "--attack", "pgx"],
            "--attack: unknown name 'pgx'",
        ),
        # The data is looked at before the networks are asked for.
        (["densepure:tableA", "--data", "digitz", "--out", "x"], "--data: unknown name 'digitz'"),
        (["densepure:tableA", "--data", "digits", "--split", "tset", "--out", "x"], "--split: "),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["reproduce", *words]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_list_has_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reproduce", "list"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ENTRIES)
    assert "gaussian@0.25/0.5/1" in told
