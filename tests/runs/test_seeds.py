"""Seeds: drawn where none is given, kept, stated and taken up again; of seeds that are known, it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import diffproof as dp
from diffproof.cli.main import run
from diffproof.data.indices import choose
from diffproof.pictures import save_picture
from diffproof.runs.certify.store import CertifyStore
from diffproof.seeds import drawn_seed
from helpers.command_line import Refused
from helpers.runs import PLAIN, certify_flags, change, rows

pytestmark = pytest.mark.usefixtures("small_digits")

FEW: dict[str, Any] = {**PLAIN, "seed": None, "indices": "0:2", "n0": 2, "n": 10}
GOLDEN = Path(__file__).parents[1] / "golden" / "runs" / "certified"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds are drawn, as they are outside this suite."""
    monkeypatch.setattr("diffproof.seeds.drawn_seed", drawn_seed)


def stored(folder: Path) -> dict[str, Any]:
    """What a folder's settings.yaml says."""
    found: dict[str, Any] = yaml.safe_load((folder / "settings.yaml").read_text())
    return found


def counts(folder: Path) -> list[tuple[object, ...]]:
    """What the certificates of a run say, but where their seed is from."""
    found = [json.loads(text) for _, _, text in rows(folder)]
    return [tuple(value for name, value in one.items() if name != "seed_drawn") for one in found]


def origins(folder: Path) -> set[bool]:
    """Whether the seeds of a run's certificates were drawn."""
    return {json.loads(text)["seed_drawn"] for _, _, text in rows(folder)}


class Remembering:
    """Class 1 of every image that it saw while it learned, class 0 of any other."""

    def __init__(self) -> None:
        self.learning, self.known = True, set[bytes]()

    def __call__(self, images: Tensor) -> Tensor:
        seen = [row.numpy().tobytes() for row in images]
        self.known |= {*seen} if self.learning else set()
        return torch.tensor([int(one in self.known) for one in seen])


@pytest.mark.usefixtures("drawn")
def test_a_base_that_remembers_the_draws_of_seed_0_gets_no_false_certificate_unasked() -> None:
    """It answers 0 nearly everywhere; a draw of the 64 pixels on the grid hardly ever comes twice."""
    image = torch.full((1, 8, 8), 0.5)
    base = Remembering()
    smoothed = dp.Smoothed(base, 0.25, num_classes=2)
    smoothed.certify(image, n0=10, n=50, seed=0)
    base.learning = False
    known = smoothed.certify(image, n0=10, n=50, seed=0)
    assert (known.label, known.seed_drawn) == (1, False)
    assert known.radius > 0
    assert (
        known.seed_told == "seed 0 was given: what is certified holds if the base classifier does not know it"
    )
    certified = dp.certify(
        image[None], torch.tensor([0]), defense=base, sigma=0.25, num_classes=2, n0=10, n=50
    )
    for honest in (smoothed.certify(image, n0=10, n=50), *certified.certificates):
        assert (honest.label, honest.seed_drawn) == (0, True)
        assert honest.seed_told == f"seed {honest.seed} was drawn: nobody knew it before"
        assert smoothed.certify(image, n0=10, n=50, seed=honest.seed).counts == honest.counts
    assert smoothed.predict(image, n=50, seed=0) == 0  # of another stream
    assert smoothed.predict(image, n=50) == 0
    assert len({drawn_seed() for _ in range(9)}) == 9
    assert max(drawn_seed() for _ in range(99)) >= 2**60


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_a_seed_is_drawn_once_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run keeps it; what continues the run has it, and what repeats it gives it."""
    a, b, c = (tmp_path / name for name in "abc")
    for folder in (a, b):
        assert run(certify_flags(folder, **FEW)) == 0
        assert "was given" not in capsys.readouterr().out
        assert origins(folder) == {stored(folder)["seed_drawn"]} == {True}
    assert stored(a)["seed"] != stored(b)["seed"]
    assert run(certify_flags(a, **{**FEW, "indices": "0:4"})) == 0
    assert run(certify_flags(a, **{**FEW, "indices": "0:6:5", "seed": stored(a)["seed"]})) == 0
    assert origins(a) == {True}
    capsys.readouterr()
    assert run(["certify", "--config", str(a / "settings.yaml"), "--out", str(c)]) == 0
    assert "was given: what is certified holds if the base classifier does not know it" in " ".join(
        capsys.readouterr().out.split()
    )
    assert counts(a) == counts(c)
    assert origins(c) == {stored(c)["seed_drawn"]} == {False}
    for folder in (a, c):
        assert run(["verify", str(folder), "--trust", "--resample", "2"]) == 0
    edit = "UPDATE images SET certificate = replace(certificate, ?, ?)"
    change(c, edit, '"seed_drawn": false', '"seed_drawn": true')
    assert run(["verify", str(c), "--counts"]) == 1
    assert "seed_drawn is True, the run's is False" in capsys.readouterr().out


def test_other_seeds_are_refused_in_one_line(refused: Refused) -> None:
    assert run(certify_flags(Path("run"), **{**FEW, "seed": 3})) == 0
    line = refused(certify_flags(Path("run"), **{**FEW, "seed": 4}))
    assert line == "--out: run holds a run with other settings: seed (3, now 4)"
    assert run(certify_flags(Path("drawn"), **FEW)) == 0
    assert refused(certify_flags(Path("drawn"), **{**FEW, "seed": 4})).endswith(", now 4)")
    assert run(certify_flags(Path("run"), **{**FEW, "indices": "0:3"})) == 0
    assert (stored(Path("run"))["seed"], origins(Path("run"))) == (3, {False})
    assert refused(certify_flags(Path("x"), **{**FEW, "seed": "random"})).startswith(
        "Invalid value for '--seed'"
    )


def test_runs_of_before_say_that_their_seed_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with CertifyStore.reading(GOLDEN) as store:
        results, settings = store.results(), store.settings
    assert not settings.seed_drawn
    assert not any(one.certificate.seed_drawn for one in results)
    assert run(["verify", str(GOLDEN), "--counts"]) == 0
    assert f"the seed {settings.seed} was given" in " ".join(capsys.readouterr().out.split())
    # One of this version that states nothing of it goes on.
    assert run(certify_flags(tmp_path, **{**FEW, "seed": 0})) == 0
    change(tmp_path, "UPDATE images SET certificate = replace(certificate, ', \"seed_drawn\": false', '')")
    change(tmp_path, "UPDATE settings SET json = replace(json, '\"seed_drawn\": false, ', '')")
    path = tmp_path / "settings.yaml"
    path.write_text(path.read_text().replace("seed_drawn: false\n", ""))
    for more in ({}, {"seed": 0}):
        assert run(certify_flags(tmp_path, **{**FEW, **more, "indices": f"0:{3 + len(more)}"})) == 0
    assert capsys.readouterr().err == ""
    assert run(["verify", str(tmp_path), "--counts"]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_shards_share_a_seed_that_somebody_gives(refused: Refused) -> None:
    told = "--seed: shards of a run share one; expected the same integer for each of them"
    assert refused(certify_flags(Path("s0"), **FEW, shard="0/2")) == told
    for number, seed in ((0, 5), (1, 6)):
        assert run(certify_flags(Path(f"s{number}"), **{**FEW, "seed": seed}, shard=f"{number}/2")) == 0
    assert refused(["merge", "whole", "s0", "s1"]) == "shards: s1 is of another run than s0: seed (5, now 6)"
    # The folder has it.
    assert run(certify_flags(Path("s0"), **FEW, shard="0/2")) == 0
    planned = certify_flags(Path("x"), **FEW)
    del planned[planned.index("--out") : planned.index("--out") + 2]
    for shard in ([], ["--shard", "0/2"]):
        assert run(["plan", *planned, *shard]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_runs_without_a_seed_have_the_same_random_images(tmp_path: Path) -> None:
    chosen = {**FEW, "indices": "0:99", "limit": 3}
    folders = [tmp_path / name for name in "abc"]
    for folder in folders[:2]:
        assert run(certify_flags(folder, **chosen)) == 0
        # The same command goes on.
        assert run(certify_flags(folder, **chosen)) == 0
    assert run(["certify", "--config", str(folders[0] / "settings.yaml"), "--out", str(folders[2])]) == 0
    images = [[row[0] for row in rows(folder)] for folder in folders]
    assert images[0] == images[1] == images[2]
    labels = dp.load_data("digits", split="test").labels
    assert images[0] == choose(labels, indices="0:99", limit=3, seed=0)


@pytest.mark.usefixtures("drawn")
def test_reports_name_drawn_seeds_only_where_nothing_else_tells_runs_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, n in (("a", 10), ("b", 12), ("c", 12)):
        assert run(certify_flags(tmp_path / name, **{**FEW, "n": n})) == 0
    capsys.readouterr()
    assert run(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert "n = 10" in out
    assert "seed" not in out
    assert run(["report", str(tmp_path / "b"), str(tmp_path / "c")]) == 0
    assert f"seed = {stored(tmp_path / 'c')['seed']}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_pictures_are_purified_with_a_drawn_seed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_picture(tmp_path / "in" / "a.png", dp.load_data("digits", indices="0").images[0])
    words = [
        "purify",
        str(tmp_path / "in"),
        "--denoiser",
        "digits",
        "--defense",
        "diffpure:t_star=0.3,steps=1",
    ]
    for name in ("a", "b"):
        assert run([*words, "--out", str(tmp_path / name)]) == 0
        assert stored(tmp_path / name)["seed_drawn"]
    assert stored(tmp_path / "a")["seed"] != stored(tmp_path / "b")["seed"]
    given = ["--config", str(tmp_path / "a" / "settings.yaml"), "--out", str(tmp_path / "c")]
    assert run(["purify", str(tmp_path / "in"), *given]) == 0
    pictures = [(tmp_path / name / "a.png").read_bytes() for name in "abc"]
    assert pictures[0] == pictures[2] != pictures[1]
    assert not stored(tmp_path / "c")["seed_drawn"]


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_attacks_state_the_seed_that_was_drawn() -> None:
    images, labels = dp.load_data("digits", split="test", indices="0:2")
    defense = dp.DDS(dp.load_denoiser("digits"), dp.load_classifier("digits"), sigma=0.25)
    asked: dict[str, Any] = {"attack": "pgd:iterations=1", "threat": "linf", "budget": 0.1}
    found = [dp.attack(defense, images, labels, **asked) for _ in range(2)]
    seeds = [{one.seed for one in each} for each in found]
    assert [len(each) for each in seeds] == [1, 1]
    assert seeds[0] != seeds[1]
    (seed,) = seeds[0]
    again = dp.attack(defense, images, labels, **asked, seed=seed)
    assert all(torch.equal(a.adversarial, b.adversarial) for a, b in zip(found[0], again, strict=True))
    evaluated = dp.evaluate(defense, images, labels, **asked, draws=2, votes=2)
    repeated = dp.evaluate(defense, images, labels, **asked, draws=2, votes=2, seed=evaluated.seed)
    assert [one.labels for one in repeated.images] == [one.labels for one in evaluated.images]
