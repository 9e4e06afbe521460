"""Labels that are drawn again: rounding in the networks' precision holds, other draws do not."""

from __future__ import annotations

import json
import shlex
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

import diffproof as dp
from diffproof.cli.main import run
from helpers.runs import change, rows

COMMAND = (
    "certify --data digits --indices 0,30,40,50 --classifier digits --defense dds"
    " --sigma 0.35 --n0 10 --n 100 --seed 3 --denoiser"
)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def made(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, denoiser: Path
) -> tuple[str, Path]:
    """A precision and a run in it, of which a fifth of the draws are uncertain; read only."""
    folder = tmp_path_factory.mktemp("redrawn") / request.param
    command = [*shlex.split(COMMAND), str(denoiser), "--precision", request.param, "--batch-size", "256"]
    assert run([*command, "--out", str(folder)]) == 0
    return request.param, folder


def certificates(folder: Path) -> dict[int, dp.Certificate]:
    return {index: dp.Certificate.from_json(text) for index, _, text in rows(folder)}


def store(folder: Path, certificate: dp.Certificate) -> None:
    """Put a certificate in the place of its image's, with what its counts prove."""
    bound = certificate.recompute()
    label = certificate.selected if bound.radius > 0 else None
    proved = replace(certificate, **bound._asdict(), label=label)
    statement = "UPDATE images SET certificate = ? WHERE image_index = ?"
    change(folder, statement, proved.to_json(), proved.image_index)


def moved(certificate: dp.Certificate, number: int) -> dp.Certificate:
    """A certificate whose networks gave another label to so many draws of the fullest class."""
    counts = list(certificate.counts)
    top = counts.index(max(counts))
    counts[top] -= number
    counts[(top + 1) % len(counts)] += number
    return replace(certificate, counts=tuple(counts))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "number", "holds"),
    [
        ([0], 2, {"float32": True, "bfloat16": True}),
        ([0], 5, {"float32": False, "bfloat16": True}),
        ([0], 20, {"float32": False, "bfloat16": False}),
        # Of each alone it might be rounding, of all together it is not.
        ([0, 30, 50], 2, {"float32": False, "bfloat16": True}),
        ([0, 30, 40, 50], 5, {"float32": False, "bfloat16": False}),
    ],
)
def test_so_many_flips_hold_as_rounding_explains(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    made: tuple[str, Path],
    images: list[int],
    number: int,
    holds: dict[str, bool],
) -> None:
    precision, source = made
    folder = shutil.copytree(source, tmp_path / "run")
    for index in images:
        store(folder, moved(certificates(folder)[index], number))
    assert run(["verify", str(folder), "--trust", "--resample", "4"]) == (0 if holds[precision] else 1)
    out = capsys.readouterr().out
    assert out.count(f"at least {number} of 110 draws fell otherwise") == len(images)
    assert f"rounding in {precision} explains" in out or holds[precision]


@pytest.mark.slow
def test_a_wrong_seed_does_not_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], made: tuple[str, Path]
) -> None:
    folder = shutil.copytree(made[1], tmp_path / "run")
    with sqlite3.connect(folder / "results.sqlite") as connection:
        ((text,),) = connection.execute("SELECT json FROM settings")
    change(folder, "UPDATE settings SET json = ?", json.dumps({**json.loads(text), "seed": 4}))
    written = folder / "settings.yaml"
    written.write_text(written.read_text().replace("seed: 3", "seed: 4"))
    for certificate in certificates(folder).values():
        store(folder, replace(certificate, seed=4))
    assert run(["verify", str(folder), "--trust"]) == 0
    assert run(["verify", str(folder), "--trust", "--resample", "4"]) == 1
    assert "draws fell otherwise, rounding in" in capsys.readouterr().out


@pytest.mark.slow
def test_precisions_and_compiled_runs_are_kept_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], made: tuple[str, Path], denoiser: Path
) -> None:
    precision, source = made
    folder = shutil.copytree(source, tmp_path / "run")
    other = "float32" if precision == "bfloat16" else "bfloat16"
    first = certificates(folder)[0]
    assert (first.precision, first.compiled, first.device) == (precision, False, "cpu")
    command = [*shlex.split(COMMAND), str(denoiser), "--out", str(folder)]
    assert run([*command, "--precision", other]) == 2
    assert f"precision ({precision}, now {other})" in capsys.readouterr().err
    store(folder, replace(first, precision=other))
    assert run(["verify", str(folder), "--trust"]) == 1
    out = capsys.readouterr().out
    assert f"image 0: it was made in {other}, the run's networks are in {precision}" in out
    assert "certificates with 2 precisions" in out
    for certificate in certificates(folder).values():
        store(folder, replace(certificate, precision=precision, compiled=True))
    assert run(["verify", str(folder), "--counts"]) == 1
    assert "image 0: it was made by compiled networks, the run's are not" in capsys.readouterr().out
    # Those of earlier versions stated nothing.
    for certificate in certificates(folder).values():
        store(folder, replace(certificate, precision=None, compiled=None, device=None))
    assert run(["verify", str(folder), "--trust"]) == 0
