"""The jobs of examples/jobs, each from its script to its last figure, on toys that a user could have."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from diffproof.cli.main import run
from diffproof.pictures import save_picture
from helpers.paths import EXAMPLES
from helpers.scripts import commands_of

pytestmark = pytest.mark.usefixtures("small_digits")

NETWORK = """
from torch import nn

def network():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    module.num_classes = 10
    return module
"""


def do(job: str, folder: Path, **variables: object) -> None:
    """Run what a script runs, command after command, in this process: it has the libraries loaded."""
    script = (EXAMPLES / "jobs" / f"{job}.sh").read_text()
    for command in commands_of(script, folder, variables):
        assert run(command) == 0, command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with pictures/, a network in my_network.py and its weights.pt, by ridge regression."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float() / 16
    for index in range(150):
        place = tmp_path / "pictures" / f"digit {digits.target[index]}" / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        save_picture(place, pixels[index][None])
    (tmp_path / "my_network.py").write_text(NETWORK)
    inputs = torch.cat([pixels.flatten(1), torch.ones(len(pixels), 1)], 1)
    targets = nn.functional.one_hot(torch.from_numpy(digits.target), 10).float()
    solved = torch.linalg.solve(inputs.T @ inputs + 30 * torch.eye(65), inputs.T @ targets).T
    torch.save({"1.weight": solved[:, :-1].contiguous(), "1.bias": solved[:, -1].contiguous()}, "weights.pt")
    yield tmp_path
    sys.modules.pop("my_network", None)


def table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def my_diffusion() -> None:
    """A diffusers pipeline of 8×8 grey pictures, untrained, in my_diffusion/."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained("my_diffusion")


def my_transformer(names: list[str]) -> None:
    """A vision transformer of 8×8 pictures, untrained, in my-vit/."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        id2label=dict(enumerate(names)),
        label2id={name: label for label, name in enumerate(names)},
    )
    ViTForImageClassification(config).save_pretrained("my-vit")
    size = {"height": 8, "width": 8}
    ViTImageProcessor(size=size, image_mean=[0.5], image_std=[0.5]).save_pretrained("my-vit")


@pytest.mark.parametrize("script", sorted((EXAMPLES / "jobs").glob("*.sh")), ids=lambda script: script.stem)
def test_a_job_is_not_stopped_by_what_it_wrote_itself(script: Path) -> None:
    text = script.read_text(encoding="utf-8").replace("\\\n", " ")
    writing = [line for line in text.splitlines() if "diffproof report" in line or "diffproof export" in line]
    assert writing
    assert all("--force" in line for line in writing)


@pytest.mark.slow
def test_an_own_classifier_and_checkpoint(folder: Path) -> None:
    my_diffusion()
    do(
        "own_model",
        folder,
        DATA="pictures",
        CLASSIFIER="my_network:network@weights.pt",
        DENOISER="my_diffusion",
        SIGMA=0.1,
        IMAGES=1,
        N0=5,
        N=15,
        ITERATIONS=1,
    )
    rows = {row["defence"]: row for row in table(folder / "own-model" / "report" / "table.csv")}
    assert list(rows) == ["none", "dds", "densepure:steps=2,votes=10"]
    assert {row["images"] for row in rows.values()} == {"1"}
    # A linear network sees through little noise.
    assert float(rows["none"]["certified_accuracy_at_0"]) >= 0.5
    (attacked,) = table(folder / "own-model" / "attack-report" / "table.csv")
    assert attacked["images"] == "1"


@pytest.mark.slow
def test_class_folders_and_a_transformer_without_a_diffusion_model(folder: Path) -> None:
    my_transformer(sorted(path.name for path in (folder / "pictures").iterdir()))
    given = {"DATA": "pictures", "MODEL": "hf:my-vit", "SIZE": 8, "N0": 5, "N": 30, "CHANNELS": "8"}
    do("class_folders", folder, **given, ITERATIONS=3, FINETUNING=3)
    # Again, as after an interruption: nothing is trained twice.
    do("class_folders", folder, **given)
    rows = table(folder / "class-folders" / "report" / "table.csv")
    assert len(rows) == 2
    # A tenth of 150.
    assert {row["images"] for row in rows} == {"15"}
    # The same pictures in train/, beside a test/.
    shutil.copytree("pictures", "parts/train")
    shutil.copytree("pictures", "parts/test")
    apart = {**given, "DATA": "parts", "SPLIT": "train", "OUT": "apart"}
    do("class_folders", folder, **apart, ITERATIONS=3, FINETUNING=3)
    assert {row["images"] for row in table(folder / "apart" / "report" / "table.csv")} == {"15"}


@pytest.mark.slow
def test_a_reviewer_with_a_copied_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--classifier my_network:network@weights.pt --defense none --sigma 0.25 --n0 10 --n 100"
    assert run(["certify", "--data", "pictures", "--limit", "8", *flags.split(), "--out", "run"]) == 0
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for name in ("run", "pictures", "weights.pt", "my_network.py"):
        shutil.move(folder / name, elsewhere / f"their-{name}".replace("-my", ""))
    sys.modules.pop("my_network", None)
    capsys.readouterr()
    # Neither data nor networks are where the run says.
    do("review", folder, RUN="elsewhere/their-run")
    assert "8 certificates" in capsys.readouterr().out
    assert len(table(folder / "review" / "images.csv")) == 8
    shutil.move(elsewhere / "their_network.py", folder / "my_network.py")
    do(
        "review",
        folder,
        RUN="elsewhere/their-run",
        DATA="elsewhere/their-pictures",
        CLASSIFIER="my_network:network@elsewhere/their-weights.pt",
    )
    assert "8 certificates hold, 3 drawn again" in capsys.readouterr().out


@pytest.mark.slow
def test_five_defenses_in_a_table(folder: Path, denoiser: Path) -> None:
    guide = "train guide --data digits --iterations 3 --budget 0.1 --out guide.safetensors"
    assert run(guide.split()) == 0
    do(
        "paper_table",
        folder,
        DATA="digits",
        CLASSIFIER="digits",
        GUIDE="guide.safetensors",
        DENOISER=denoiser,
        IMAGES=1,
        BUDGET=0.1,
        ITERATIONS=2,
        EOT=1,
        STEPS=1,
    )
    rows = table(folder / "paper-table" / "report" / "table.csv")
    assert [row["defence"].partition(":")[0] for row in rows] == [
        "none",
        "diffpure",
        "gdmp",
        "gradual",
        "agdm",
    ]
    assert {row["images"] for row in rows} == {"1"}


@pytest.mark.slow
def test_parts_of_a_big_run(folder: Path, denoiser: Path) -> None:
    given = {"DATA": "digits", "CLASSIFIER": "digits", "DENOISER": denoiser, "LAST": 5, "N0": 10, "N": 20}
    for part in range(3):
        do("shards", folder, PART=part, PARTS=3, SEED=5, **given)
    do("shards", folder)
    (row,) = table(folder / "shards" / "report" / "table.csv")
    whole = "certify --data digits --indices 0:5 --classifier digits --defense densepure:steps=2,votes=10"
    more = f"--denoiser {denoiser} --sigma 0.5 --n0 10 --n 20 --seed 5 --out whole"
    assert run([*whole.split(), *more.split()]) == 0
    assert run(["report", "whole", "--out", "whole-report"]) == 0
    (in_one,) = table(folder / "whole-report" / "table.csv")
    assert row.pop("run") == "shards/whole"
    del in_one["run"]
    assert row == in_one
