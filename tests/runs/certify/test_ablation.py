"""Ballots that a run keeps, and what fewer votes or draws would have certified."""

from __future__ import annotations

import csv
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffproof.cli.main import run
from diffproof.defenses.voting import NOT_CAST
from diffproof.noise import Stream
from diffproof.runs.certify import run as certify_run
from diffproof.runs.certify.ablation import Over, ballots_of, load_ablation, series
from diffproof.runs.certify.ballots import Ballots, unpacked
from diffproof.runs.certify.job import prepare
from diffproof.runs.certify.store import CertifyStore
from diffproof.smoothing.schedule import Unit
from helpers.command_line import Refused
from helpers.runs import PLAIN, certify_flags, change

RADII = [0.0, 0.1, 0.2]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, denoiser: Path) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "run"
    assert run([*certify_flags(folder, denoiser=denoiser), "--keep-ballots"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("votes", [1, 2, 5])
def test_fewer_votes_are_a_run_with_as_many(kept: Path, tmp_path: Path, denoiser: Path, votes: int) -> None:
    assert run(certify_flags(tmp_path / "few", denoiser=denoiser, votes=votes)) == 0
    found = load_ablation(kept, Over.VOTES, RADII)
    assert list(found.rows) == [1, 2, 5]
    with CertifyStore.reading(tmp_path / "few") as store:
        expected = store.results()
    for made, one in zip(found.rows[votes].results, expected, strict=True):
        for name in ("label", "radius", "p_a_lower", "selected", "selection_counts", "counts"):
            assert getattr(made.certificate, name) == getattr(one.certificate, name)


@pytest.mark.slow
@pytest.mark.parametrize("draws", [50, 100])
def test_fewer_draws_are_a_run_with_as_many(kept: Path, tmp_path: Path, denoiser: Path, draws: int) -> None:
    assert run(certify_flags(tmp_path / "few", denoiser=denoiser, n=draws)) == 0
    found = load_ablation(kept, Over.DRAWS, RADII)
    assert list(found.rows) == [1, 2, 5, 10, 20, 50, 100]
    with CertifyStore.reading(tmp_path / "few") as store:
        expected = store.results()
    for made, one in zip(found.rows[draws].results, expected, strict=True):
        for name in ("label", "radius", "p_a_lower", "selected", "counts", "n"):
            assert getattr(made.certificate, name) == getattr(one.certificate, name)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"stop": "sequential", "radii": "0,0.1"}])
def test_ballots_of_an_interrupted_run_are_those_of_a_whole_one(
    kept: Path, tmp_path: Path, denoiser: Path, changes: dict[str, object]
) -> None:
    with CertifyStore.reading(kept) as store:
        settings = replace(store.settings, indices="0:16:8", n=60, **changes)  # type: ignore[arg-type]
    job = prepare(settings)
    certify_run.run(job, tmp_path / "whole")
    calls = 0

    def stop(evaluations: int) -> None:
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            raise KeyboardInterrupt

    for interrupted in range(1_000):
        job = replace(job, settings=replace(job.settings, batch_size=(3, 64)[interrupted % 2]))
        try:
            certify_run.run(job, tmp_path / "run", stop)
            break
        except KeyboardInterrupt:
            continue
    assert interrupted > 3
    with CertifyStore.reading(tmp_path / "whole") as whole, CertifyStore.reading(tmp_path / "run") as again:
        for result in whole.results():
            for stream, (draw, ballots) in ballots_of(whole, result).items():
                made = ballots_of(again, result)[stream]
                assert torch.equal(draw, torch.arange(len(draw)))
                assert torch.equal(made[0], draw)
                assert torch.equal(made[1], ballots)
    # With all votes, it is the run itself.
    last = load_ablation(tmp_path / "run", Over.VOTES, RADII).rows[5]
    with CertifyStore.reading(tmp_path / "run") as store:
        assert last.results == store.results()


def test_series_of_values() -> None:
    assert series(1) == [1]
    assert series(40) == [1, 2, 5, 10, 20, 40]
    assert series(1_000) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000]


def test_ballots_come_back_in_the_order_of_draws_each_once() -> None:
    waiting = Ballots()
    waiting.add(Unit(7, Stream.ESTIMATION, 4, 9), torch.tensor([8, 4]), torch.tensor([[1, 2], [0, NOT_CAST]]))
    waiting.add(Unit(7, Stream.ESTIMATION, 0, 4), torch.tensor([2**32 - 1]), torch.tensor([[2, 2]]))
    ((index, stream, first),) = waiting.packed()
    assert (index, stream) == (7, Stream.ESTIMATION)
    waiting.clear()
    assert list(waiting.packed()) == []
    waiting.add(Unit(7, Stream.ESTIMATION, 4, 9), torch.tensor([4, 5]), torch.tensor([[0, NOT_CAST], [1, 1]]))
    ((_, _, second),) = waiting.packed()
    draw, ballots = unpacked([first, second])
    assert draw.tolist() == [4, 5, 8, 2**32 - 1]
    assert ballots.tolist() == [[0, NOT_CAST], [1, 1], [1, 2], [2, 2]]


@pytest.mark.slow
def test_the_report_shows_and_writes_it(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(kept)]) == 0
    assert "of 5 votes cast a draw, on average" in capsys.readouterr().out
    shutil.copytree(kept, tmp_path / "parted")
    change(
        tmp_path / "parted", "DELETE FROM images WHERE image_index = (SELECT max(image_index) FROM images)"
    )
    with CertifyStore.reading(kept) as store:
        planned = store.identity.planned
    for flags in ([], ["--over", "votes"]):
        assert run(["report", str(tmp_path / "parted"), *flags]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert f"parted: {planned - 1} of {planned} images are finished" in printed
    for over, values in (("votes", ["1", "2", "5"]), ("draws", ["1", "2", "5", "10", "20", "50", "100"])):
        flags = ["report", str(kept), "--over", over, "--at", "0,0.1", "--out", str(tmp_path / over)]
        assert run(flags) == 0
        assert over in capsys.readouterr().out
        with (tmp_path / over / f"over-{over}.csv").open() as file:
            lines = list(csv.DictReader(file))
        assert [line[over] for line in lines] == values
        with CertifyStore.reading(kept) as store:
            results = store.results()
        share = sum(one.correct and one.certificate.radius >= 0.1 for one in results) / len(results)
        assert float(lines[-1]["certified_accuracy_at_0.1"]) == pytest.approx(share, abs=1e-6)
        assert (tmp_path / over / f"over-{over}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_what_is_refused(kept: Path, tmp_path: Path, denoiser: Path, refused: Refused) -> None:
    plain, sequential = tmp_path / "plain", tmp_path / "sequential"
    flags = certify_flags(plain, **PLAIN, n=10)
    assert run(flags) == 0
    assert run([*certify_flags(sequential, denoiser=denoiser), "--keep-ballots", "--stop", "sequential"]) == 0
    over, single = ["--over", "votes"], certify_flags(tmp_path / "single", denoiser=denoiser, votes=1)
    for arguments, said in (
        (
            [*flags, "--keep-ballots"],
            "--keep-ballots: expected a defence that votes on draws, got none, one answer",
        ),
        (
            [*single, "--keep-ballots"],
            "--keep-ballots: expected a defence that votes on draws, got densepure:steps=2,votes=1, one",
        ),
        (["report", str(plain), *over], f"--over: {plain} kept no ballots; certify --keep-ballots does"),
        (["report", str(kept), str(plain), *over], "--over: expected one certification run, got 2 runs"),
        (["report", str(sequential), "--over", "draws"], "--over: expected a run of a fixed number of draws"),
    ):
        assert refused(arguments).startswith(said)
    for bad in (b"", zlib.compress(b"none"), b"\x93NUMPY"):
        change(sequential, "UPDATE ballots SET votes = ?", bad)
        assert "expected ballots as they were written" in refused(["report", str(sequential), *over])
    change(sequential, "DELETE FROM ballots")
    assert run(["verify", str(sequential), "--counts"]) == 1
    assert "lacks ballots of image 0" in refused(["report", str(sequential), *over])


@pytest.mark.slow
def test_verify_holds_ballots_against_counts(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(kept), "--counts"]) == 0
    edited = tmp_path / "edited"
    shutil.copytree(kept, edited)
    with CertifyStore.reading(edited) as store:
        draw, ballots = store.ballots(8)[Stream.ESTIMATION]
    ballots[3] = (ballots[3] + 1) % 10
    changed = Ballots()
    changed.add(Unit(8, Stream.ESTIMATION, 0, len(draw)), draw, ballots)
    ((*_, votes),) = changed.packed()
    change(edited, "UPDATE ballots SET votes = ? WHERE image_index = 8 AND stream = 1", votes)
    capsys.readouterr()
    assert run(["verify", str(edited), "--counts"]) == 1
    assert "image 8: its ballots do not give its counts" in capsys.readouterr().out
