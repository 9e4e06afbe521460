"""Run folders on a machine whose elementary functions round otherwise: they hold, continue and grow there."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from diffproof.cli.main import run
from helpers.libm import other_libm
from helpers.networks import packaged_again
from helpers.runs import attacked_rows, rows

pytestmark = pytest.mark.usefixtures("small_digits")

OWN = '''
import torch
import diffproof as dp


class Last(torch.nn.Module):
    """A network of labels and log noise levels, whatever schedule it has."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 64)
        torch.nn.init.constant_(self.embedding.weight, 0.1)
        self.embedding.weight.data += torch.arange(704.0).reshape(11, 64) / 6400

    def forward(self, x, timestep, label):
        time = timestep.to(x.dtype)[:, None, None, None] / 1e4
        return 0.1 * x + self.embedding(label).reshape(-1, 1, 8, 8) + time


def continuous():
    return dp.NetworkDenoiser(
        Last(), dp.VarianceExplodingSchedule(1e-4, 50.0), image_shape=(1, 8, 8), num_classes=10, null_label=10
    )


def mixture():
    images = dp.load_data("digits", limit=20).images
    return dp.GaussianMixtureDenoiser(images, 0.01 * torch.eye(64).expand(20, 64, 64))
'''
CERTIFY = "certify --data digits --sigma 0.25 --n0 5 --n 20 --seed 3"
ATTACK = (
    "attack --data digits --seed 3 --threat l2 --budget 0.5 --attack pgd:iterations=2 --draws 2"
    " --majority-of 2 --diagnose 0 --batch-size 1"
)
RUNS = {
    "none": f"{CERTIFY} --classifier digits --defense none",
    "dds": f"{CERTIFY} --denoiser digits --classifier digits --defense dds",
    "densepure": f"{CERTIFY} --denoiser digits --classifier digits --defense densepure:steps=2,votes=3",
    "mixture": f"{CERTIFY} --denoiser networks:mixture --classifier digits --defense dds",
    "dc": f"{CERTIFY} --denoiser digits --defense dc:timesteps=uniform:2",
    "dc, continuous": f"{CERTIFY} --denoiser networks:continuous --defense dc:timesteps=uniform:3",
    "diffpure": f"{ATTACK} --denoiser digits --classifier digits --defense diffpure:t_star=0.1,steps=1",
    "rdc": f"{ATTACK} --denoiser networks:continuous --defense"
    " rdc:timesteps=uniform:3,likelihood_timesteps=uniform:2,iterations=2,budget=0.1",
}


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    """A user's module in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "networks.py").write_text(OWN)
    # To a diffusion model that knows little, classes are so alike that rounding tells them apart.
    with packaged_again() if name == "dc" else nullcontext():
        yield
    sys.modules.pop("networks", None)


@pytest.mark.slow
@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("name", RUNS)
def test_a_folder_goes_from_one_machine_to_another_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    command, folder = shlex.split(RUNS[name]), str(tmp_path / "run")
    kept = attacked_rows if command[0] == "attack" else rows
    verified = ["verify", folder, "--trust", "--resample", "3"]
    assert run([*command, "--indices", "0:1", "--out", folder]) == 0
    first = kept(Path(folder))
    with pytest.MonkeyPatch.context() as there:
        other_libm(there)
        assert run(verified) == 0
        assert run([*command, "--indices", "0:2", "--out", folder]) == 0
        assert run(verified) == 0
        capsys.readouterr()
        assert run([*command, "--indices", "0:2", "--seed", "4", "--out", folder]) == 2
        assert capsys.readouterr().err.count("seed (3, now 4)") == 1
    assert run(verified) == 0
    assert run(["verify", folder, "--counts"]) == 0
    assert run([*command, "--indices", "0:3", "--out", folder]) == 0
    assert run(verified) == 0
    assert kept(Path(folder))[:1] == first
    if name in ("dds", "densepure"):
        levels = {json.loads(text)["grid_sigma"] for *_, text in rows(Path(folder))}
        assert len(levels) == 2
