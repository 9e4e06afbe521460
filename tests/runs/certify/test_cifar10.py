"""The packaged CIFAR-10 denoiser, and certification of CIFAR-10 images from local files, offline."""

from __future__ import annotations

import json
import shlex
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch

import diffproof as dp
from diffproof.cli.main import run
from diffproof.weights import load_weights, packaged
from helpers.libm import other_libm
from helpers.paths import ROOT, SHARED
from helpers.runs import rows

IMAGES = SHARED / "data" / "cifar10" / "test-first512.parquet"
RESNETS = SHARED / "models" / "cifar10"
RESULTS = ROOT / "docs" / "results" / "resnet56"
NEEDS_SHARED = pytest.mark.skipif(
    not (IMAGES.is_file() and RESNETS.is_dir()), reason="no ../shared with CIFAR-10 beside the repository"
)


def resnet(name: str) -> str:
    (path,) = RESNETS.glob(f"{name}-*.th")
    return f"{name}@{path}"


def test_the_packaged_denoiser_is_what_it_says() -> None:
    path = packaged("denoiser")["cifar10"]
    assert path.stat().st_size <= 20_000_000
    tensors, description = load_weights(path)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert description["training"]["command"].startswith("diffproof train denoiser --data ")
    denoiser = dp.load_denoiser("cifar10")
    assert (denoiser.image_shape, denoiser.num_classes, denoiser.null_label) == ((3, 32, 32), 10, 10)
    assert {parameter.dtype for parameter in denoiser.parameters()} == {torch.float32}


@pytest.mark.slow
def test_the_packaged_denoiser_takes_noise_off_a_smooth_image() -> None:
    """Without any data: a colour gradient with noise comes back closer, with a label or without."""
    denoiser = dp.load_denoiser("cifar10")
    ramp = torch.linspace(0.3, 0.7, 32)
    image = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), torch.full((32, 32), 0.5)])
    noise = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for sigma in (0.1, 0.25, 0.5):
            noisy = image + sigma * noise
            for label in (None, torch.tensor([0, 3, 8, 9])):
                error = (denoiser(noisy, sigma, label) - image).square().mean().sqrt()
                assert float(error) < 0.35 * sigma


@pytest.mark.slow
@NEEDS_SHARED
@pytest.mark.parametrize(("sigma", "least"), [(0.12, 0.74), (0.25, 0.56), (0.5, 0.30)])
def test_one_shot_denoising_lifts_resnet56(sigma: float, least: float) -> None:
    """One fixed draw for each image, so the share is a number; `least` leaves room for other platforms."""
    images, labels = dp.load_data(str(IMAGES))
    classifier, denoiser = dp.load_classifier(resnet("resnet56")), dp.load_denoiser("cifar10")
    noisy = images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        bare = (classifier(noisy[::12]).argmax(1) == labels[::12]).float().mean()
        denoised = classifier(dp.one_shot(denoiser, noisy[::12], sigma)).argmax(1) == labels[::12]
    assert float(bare) < 0.3
    assert float(denoised.float().mean()) > least


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small ViT for 40×40 images with random weights, as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=40,
        patch_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        id2label=dict(enumerate(CLASSES)),
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 40, "width": 40}).save_pretrained(folder)
    return f"hf:{folder}"


CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.mark.slow
@NEEDS_SHARED
@pytest.mark.parametrize("network", ["resnet20", "vit"])
def test_certification_from_local_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest, network: str
) -> None:
    classifier = request.getfixturevalue("vit") if network == "vit" else resnet(network)
    command = (
        f"certify --data {IMAGES} --indices 0:512:256 --classifier {classifier} --denoiser cifar10"
        f" --defense densepure:steps=2,votes=3 --sigma 0.25 --n0 1 --n 3 --out {tmp_path / 'run'}"
    )
    assert run(shlex.split(command)) == 0
    with sqlite3.connect(tmp_path / "run" / "results.sqlite") as connection:
        rows = connection.execute("SELECT image_index, true_label, certificate FROM images").fetchall()
    labels = dp.load_data(str(IMAGES)).labels
    assert [(index, label) for index, label, _ in rows] == [(0, int(labels[0])), (256, int(labels[256]))]
    for *_, text in rows:
        certificate = json.loads(text)
        assert certificate["image_size"] == [32, 32]
        assert certificate["classifier_size"] == ([40, 40] if network == "vit" else [32, 32])
        assert sum(certificate["counts"]) == 3
    assert run(["verify", str(tmp_path / "run"), "--resample", "1", "--trust"]) == 0
    assert "2 certificates hold, 1 drawn again" in capsys.readouterr().out


@pytest.mark.slow
@NEEDS_SHARED
@pytest.mark.parametrize("name", ["none-0.25", "dds-0.25"])
def test_the_runs_beside_the_results_hold_and_continue_on_any_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = shutil.copytree(RESULTS / name, tmp_path / name)
    before = rows(folder)
    # Their paths begin there.
    monkeypatch.chdir(ROOT)
    other_libm(monkeypatch)
    assert run(["verify", str(folder), "--trust"]) == 0
    assert "128 certificates hold" in capsys.readouterr().out
    assert run(["certify", "--config", str(folder / "settings.yaml"), "--out", str(folder)]) == 0
    assert rows(folder) == before


def test_runs_of_the_same_networks_beside_the_results_have_the_same_hash() -> None:
    hashes: dict[str, set[str]] = {}
    for folder in sorted(RESULTS.iterdir()):
        with sqlite3.connect(folder / "results.sqlite") as connection:
            ((settings, found),) = connection.execute("SELECT json, weights_hash FROM settings")
            certificates = connection.execute("SELECT certificate FROM images").fetchall()
        assert {json.loads(text)["weights_hash"] for (text,) in certificates} == {found}
        networks = {name: json.loads(settings).get(name) for name in ("classifier", "denoiser")}
        hashes.setdefault(str(networks), set()).add(found)
    assert len(hashes) == 8
    assert all(len(found) == 1 for found in hashes.values())
    assert len(set.union(*hashes.values())) == 8
