"""Odd data through the commands that run and train networks: one line that names the flag."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from diffproof.cli.main import run
from diffproof.pictures import save_picture
from helpers.command_line import Refused
from helpers.images import pictures

CERTIFY = "certify --defense none --sigma 0.25 --n0 2 --n 4 --classifier pen:make --out o"
ATTACK = (
    "attack --defense none --threat linf --budget 0.1 --attack pgd:iterations=1,eot=1 --diagnose 0 --draws 1"
    " --majority-of 1 --classifier pen:make --out o"
)
TRAIN = "train classifier --iterations 1 --batch-size 4 --width 2 --out o.safetensors"
# Takes images of any size and any number of channels.
ZOO = """
import torch
import diffproof as dp

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(9.0))

    def forward(self, images):
        mean = images.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1) * self.scale

def make():
    return dp.Classifier(Net(), 2).eval()
"""


@pytest.fixture
def place(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with class folders of pictures of two sizes, of some splits, and damaged."""
    monkeypatch.syspath_prepend(str(refused.folder))
    Path("pen.py").write_text(ZOO)
    for row, image in enumerate(pictures(8, shape=(3, 8, 8))):
        label = "ab"[row % 2]
        for folder in (f"sizes/{label}", f"damaged/{label}", f"parts/train/{label}", f"parts/val/{label}"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            save_picture(
                Path(folder, f"{row}.png"), image[:, :, :6] if row == 5 and folder == "sizes/b" else image
            )
    shutil.copytree("parts/train", "late/test")
    shutil.copytree("parts/val", "late/val")
    for name, size, classes in (("small", 4, 2), ("lone", 8, 1)):
        labels = np.arange(4) % classes
        np.savez(f"{name}.npz", images=pictures(4, shape=(3, size, size)).numpy(), labels=labels)
    damaged = Path("damaged/a/2.png")
    damaged.write_bytes(damaged.read_bytes()[:-40])
    return refused.folder


ONE_SIZE = "; an image size (--image-size) brings them to one"
SIZES = f"--data: sizes/b/5.png is 3×8×6 (channels×height×width), others are 3×8×8{ONE_SIZE}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{CERTIFY} --data sizes", SIZES),
        (f"{ATTACK} --data sizes", SIZES),
        *((f"plan {line} --data sizes".replace(" --out o", ""), SIZES) for line in (CERTIFY, ATTACK)),
        (
            f"{TRAIN} --data parts --test-data parts",
            "--test-data: expected one of train, val; parts has no 'test'",
        ),
        (
            "train denoiser --data parts --extra-data late --channels 8 --out o.safetensors",
            "--extra-data: expected one of test, val; late has no 'train'",
        ),
        (
            f"{TRAIN} --data parts/train --test-data damaged",
            "--test-data: damaged/a/2.png cannot be decoded: image file is truncated; --skip-unreadable"
            " leaves such pictures out",
        ),
        (f"{TRAIN} --data parts/train --test-data sizes", SIZES.replace("--data", "--test-data")),
        (
            f"{TRAIN} --data small.npz --test-data lone.npz",
            "--test-data: expected images of 4×4 as in small.npz, got 8×8",
        ),
        (f"{TRAIN} --data lone.npz", "--data: expected several classes, got '0' alone"),
        (
            "train denoiser --data parts --extra-data sizes --channels 8 --out o.safetensors",
            SIZES.replace("--data", "--extra-data"),
        ),
        (
            'finetune --data parts/train --classifier digits --class-map {"a":0,"b":1}'
            " --denoiser empirical:parts/train --sigma 1 --out o.safetensors",
            "--classifier: takes (1, 8, 8) images, but the denoiser gives (3, 8, 8)",
        ),
        # Flags that would not help, of which one is there, are not named.
        (
            "finetune --data sizes --image-size 8 --classifier pen:make --denoiser empirical:sizes --sigma 1"
            " --out o.safetensors",
            SIZES.replace("--data", "--denoiser: 'empirical:sizes'").removesuffix(ONE_SIZE),
        ),
        (
            "finetune --data damaged --skip-unreadable --classifier pen:make --denoiser empirical:damaged"
            " --sigma 1 --out o.safetensors",
            "--denoiser: 'empirical:damaged': damaged/a/2.png cannot be decoded: image file is truncated",
        ),
    ],
)
def test_one_line(place: Path, capsys: pytest.CaptureFixture[str], line: str, message: str) -> None:
    assert run(line.split()) == 2
    *layout, said = capsys.readouterr().err.splitlines()
    assert all(other.startswith(("data: ", "diffproof: warning: n = 4 ")) for other in layout)
    assert said == f"diffproof: error: {message}"
    assert not any(place.glob("o*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "shared"),
    [("--indices 0:40", ""), ("--indices 0:40 --split test", "40 of 514")],
)
def test_the_default_images_to_measure_on_are_not_those_of_the_training(
    place: Path, capsys: pytest.CaptureFixture[str], flags: str, shared: str
) -> None:
    assert run([*TRAIN.split(), "--data", "digits", *flags.split()]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert told == [
        f"diffproof: warning: data: {shared} test images are among the training images: what is measured on"
        " them says nothing of other images"
    ] * bool(shared)
