"""Paths as users write them: the home folder wherever one is taken; names beside paths."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffproof as dp
from diffproof.cli.main import run
from diffproof.files import expanded, expanded_spec
from diffproof.pictures import save_picture
from diffproof.runs.certify.store import CertifyStore
from diffproof.weights import packaged, save_weights

OWN = """
import torch, diffproof
def make():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    return diffproof.Classifier(network, 10, image_shape=(1, 8, 8))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with data, networks, a picture and a configuration; the current folder is another."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    images, labels = dp.load_data("digits", indices="0:40")
    np.savez(home / "few.npz", images=images.numpy(), labels=labels.numpy())
    save_picture(home / "one.png", images[0])
    for kind in ("classifier", "denoiser"):
        shutil.copy(packaged(kind)["digits"], home / f"{kind}.safetensors")
    (here / "homely.py").write_text(OWN)
    tensors = {"1.weight": torch.full((10, 64), 0.5), "1.bias": torch.arange(10.0)}
    save_weights(home / "own.safetensors", tensors, {})
    (home / "run.yaml").write_text("data: ~/few.npz\nclassifier: ~/classifier.safetensors\nn: 20\nn0: 10\n")
    return home


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("~/a.pt", "/home/me/a.pt"),
        ("openai:cifar10_uncond@~/a.pt", "openai:cifar10_uncond@/home/me/a.pt"),
        ("resnet56@~/a.th", "resnet56@/home/me/a.th"),
        ("own.models:make@~/a.pt", "own.models:make@/home/me/a.pt"),
        ("hf:~/vit", "hf:/home/me/vit"),
        ("diffusers:~/unet", "diffusers:/home/me/unet"),
        ("empirical:~/pets:train:20", "empirical:/home/me/pets:train:20"),
        ("~", "/home/me"),
        ("~nobody-of-this-name/a.pt", "~nobody-of-this-name/a.pt"),
        ("resnet56@models/~/a.th", "resnet56@models/~/a.th"),
        ("backup~/a.pt", "backup~/a.pt"),
        ("digits", "digits"),
    ],
)
def test_the_home_folder_in_specs(spec: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded_spec(spec) == expected
    if spec.startswith("~"):
        assert expanded(spec) == Path(expected)


@pytest.mark.slow
def test_the_home_folder_in_python(home: Path) -> None:
    images, labels = dp.load_data("~/few.npz")
    assert torch.equal(labels, dp.load_data("digits", indices="0:40").labels)
    noisy = images + 0.5
    for spec, same in (
        ("~/denoiser.safetensors", "digits"),
        ("empirical:~/few.npz", f"empirical:{home}/few.npz"),
    ):
        denoisers = [dp.load_denoiser(one) for one in (spec, same)]
        first, second = (denoiser(noisy, 0.5, labels) for denoiser in denoisers)
        assert torch.equal(first, second)
    assert torch.equal(
        dp.load_classifier("~/classifier.safetensors")(images), dp.load_classifier("digits")(images)
    )
    expected = 0.5 * images.sum((1, 2, 3))[:, None] + torch.arange(10.0)
    torch.testing.assert_close(dp.load_classifier("homely:make@~/own.safetensors")(images), expected)


@pytest.mark.slow
def test_the_home_folder_on_the_command_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certify = "certify --defense none --sigma 0.1 --indices 0:2"
    files = "--data ~/few.npz --classifier=~/classifier.safetensors --n 20 --n0 10"
    assert run([*certify.split(), *files.split(), "--out=~/a"]) == 0
    assert run([*certify.split(), "--config=~/run.yaml", "--out", "~/b"]) == 0
    assert run(["certify", "--config", "~/a/settings.yaml", "--out", "~/c"]) == 0
    for name in "abc":
        with CertifyStore.reading(Path(f"~/{name}")) as store:
            assert store.finished() == {0, 1}
            assert store.settings.data == "~/few.npz"
        assert run(["verify", f"~/{name}", "--trust"]) == 0
    assert run(["report", "~/a", "~/b", "--out=~/tables"]) == 0
    assert run(["export", "~/a", "--out=~/a.tsv"]) == 0
    assert (home / "tables" / "table.csv").is_file()
    assert len((home / "a.tsv").read_text().splitlines()) == 3
    purify = "purify ~/one.png --denoiser ~/denoiser.safetensors --guide ~/classifier.safetensors"
    defense = ["--defense", "agdm:t_star=0.003,steps=1", "--out=~/pure"]
    assert run([*purify.split(), *defense]) == 0
    assert (home / "pure" / "one.png").is_file()
    assert "warning" not in capsys.readouterr().err
    training = "train classifier --data ~/few.npz --test-data ~/few.npz --iterations 1 --width 8"
    assert run([*training.split(), "--out=~/new.safetensors"]) == 0
    assert (home / "new.safetensors").is_file()
    assert not Path("~").exists()
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert "images are among the training images" in warning


LOADERS: dict[str, Callable[[str], Any]] = {
    "data": dp.load_data,
    "denoiser": dp.load_denoiser,
    "classifier": dp.load_classifier,
}


@pytest.mark.parametrize("argument", LOADERS)
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_packaged_name_is_what_it_always_is(
    argument: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = LOADERS[argument]("digits")
    monkeypatch.chdir(tmp_path)
    if kind == "folder":
        Path("digits").mkdir()
    else:
        Path("digits").write_text("nothing")
    what = {"data": "data set", "denoiser": "diffusion model", "classifier": "classifier"}[argument]
    message = f"^{argument}: digits is the packaged {what}; ./digits is the {kind} of that name$"
    with pytest.warns(UserWarning, match=message) as told:
        loaded = LOADERS[argument]("digits")
    assert len(told) == 1
    if argument == "data":
        assert torch.equal(loaded.labels, expected.labels)
    else:
        assert loaded.describe() == expected.describe()


def test_a_path_that_looks_like_a_name_is_that_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    with pytest.raises(ValueError, match=r"^data: "):
        dp.load_data("./digits")
    with pytest.raises(ValueError, match=r"^classifier: \./digits is a folder; expected a file"):
        dp.load_classifier("./digits")


@pytest.mark.slow
def test_a_folder_called_cifar10_is_not_taken_for_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("cifar10").mkdir()
    message = r"^data: cifar10 is the Hub's uoft-cs/cifar10; \./cifar10 is the folder of that name$"
    with pytest.warns(UserWarning, match=message), pytest.raises(ValueError, match=r"^data: "):
        dp.load_data("cifar10")
