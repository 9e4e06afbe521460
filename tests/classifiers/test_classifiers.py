"""Classifiers of all families: what they compute, how images are prepared, misuse that ends in one line."""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import diffproof as dp
from diffproof.classifiers import resnet
from diffproof.classifiers.preprocessing import Resize
from diffproof.classifiers.saved import describe_base
from diffproof.classifiers.spec import Kind, parse
from diffproof.cli.main import run
from diffproof.optional import import_optional
from diffproof.weights import load_weights, save_weights
from helpers.classifiers import randomised
from helpers.files import Trap
from helpers.huggingface import save_model
from helpers.paths import SHARED


def fails(spec: str) -> str:
    """The one line that loading ends in."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        dp.load_classifier(spec)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- resizing


def levels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray[Any, Any]:
    """Random 8-bit pixels (H×W×C) in [64, 192): so that bicubic overshoot does not clip."""
    return np.random.default_rng(seed).integers(64, 192, (height, width, channels), dtype=np.uint8)


def as_tensor(pixels: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 25), (9, 64)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(24, 24), (50, 61), 48, 7])
def test_resizing_is_pillows(height: int, width: int, interpolation: Any, size: Any) -> None:
    resize = Resize(size, interpolation=interpolation)
    pixels = levels(height, width)
    rows, columns = resize.output(height, width)
    theirs = Image.fromarray(pixels).resize((columns, rows), getattr(Image.Resampling, interpolation.upper()))
    # Pillow rounds to 8 bits once in each direction.
    assert (resize(as_tensor(pixels)) - as_tensor(np.array(theirs))).abs().max() * 255 < 1.6
    if not isinstance(size, tuple):
        assert min(rows, columns) == size
        assert max(rows, columns) == int(size * max(height, width) / min(height, width))


@pytest.mark.parametrize(
    ("crop", "rounded", "first"),
    [((4, 4), False, 2), ((5, 5), False, 1), ((5, 5), True, 2), ((3, 3), True, 2), ((3, 3), False, 2)],
)
def test_crop_is_central(crop: tuple[int, int], rounded: bool, first: int) -> None:
    # A rest of 3 is halved to 1.5: down to 1, or to the even 2.
    images = torch.arange(64.0).reshape(1, 1, 8, 8)
    cut = Resize((8, 8), crop=crop, round_crop=rounded)(images)
    assert tuple(cut.shape[2:]) == crop
    assert cut[0, 0, 0, 0] == first * 8 + first


def test_resizing_is_differentiable() -> None:
    images = torch.rand(1, 2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    resize = Resize(6, crop=(5, 6))
    assert torch.autograd.gradcheck(resize, images.requires_grad_())
    # Linear, so that noise is not clipped on its way: pixels far outside [0, 1] too.
    torch.testing.assert_close(resize(images * 100 - 50), resize(images) * 100 - 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "resize: expected a size ≥ 1"),
        ({"size": (4, 0)}, "resize: expected a size ≥ 1"),
        ({"size": 8, "crop": (9, 8)}, r"resize: expected a crop of at most \(8, 8\), got \(9, 8\)"),
        ({"size": 8, "interpolation": "lanczos"}, "interpolation: unknown name 'lanczos'"),
    ],
)
def test_resize_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Resize(**arguments)


# ---- the protocol


def test_classifier_resizes_inside() -> None:
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images.mean((2, 3))

    classifier = dp.Classifier(Watch(), 3, mean=[0.5] * 3, std=[0.25] * 3, resize=Resize((10, 12)))
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    classifier(images).sum().backward()
    assert seen[0].shape == (2, 3, 10, 12)
    torch.testing.assert_close(seen[0], (Resize((10, 12))(images) - 0.5) / 0.25)
    assert images.grad is not None
    assert images.grad.abs().min() > 0
    assert (classifier.channels, classifier.image_shape) == (3, None)
    assert classifier.input_size(4, 5) == (10, 12)
    with pytest.raises(ValueError, match="images: the classifier takes 3 channels, got 1"):
        classifier(images[:, :1])


def test_certificates_name_both_sizes() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    resize = Resize(8, crop=(8, 8))
    classifier = dp.Classifier(network, 4, mean=[0.5] * 3, std=[0.5] * 3, resize=resize).eval()
    smoothed = dp.Smoothed(dp.Undefended(classifier), 0.25)
    certificate = smoothed.certify(torch.full((3, 5, 6), 0.5), n0=5, n=10)
    assert (certificate.image_size, certificate.classifier_size) == ((5, 6), (8, 8))
    again = dp.Certificate.from_json(certificate.to_json())
    assert again == certificate
    old = {k: v for k, v in json.loads(certificate.to_json()).items() if not k.endswith("_size")}
    assert dp.Certificate.from_json(json.dumps(old)).image_size is None
    plain = dp.Smoothed(lambda noisy: torch.zeros(len(noisy), dtype=torch.long), 0.25, num_classes=2)
    certificate = plain.certify(torch.full((3, 5, 6), 0.5), n0=5, n=10)
    assert (certificate.image_size, certificate.classifier_size) == ((5, 6), None)


def test_every_setting_of_the_preprocessing_is_in_the_hash() -> None:
    variants = [
        None,
        Resize(8),
        Resize((8, 8)),
        Resize(8, crop=(7, 7)),
        Resize(8, crop=(7, 7), round_crop=True),
        Resize(8, interpolation="bilinear"),  # type: ignore[arg-type]
    ]
    parts = [dp.Classifier(nn.Flatten(), 2, resize=resize).describe() for resize in variants]
    assert len(set(parts)) == len(parts)
    assert parts[0] == "classes 2, images None"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (3, 8, 8), "resize": Resize(8)}, "image_shape, resize: expected one of them"),
        ({"class_names": ["a"]}, "class_names: expected 2 names, got 1"),
    ],
)
def test_classifier_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dp.Classifier(nn.Flatten(), 2, **arguments)


def test_denoiser_and_classifier_must_agree_on_channels() -> None:
    denoiser = dp.load_denoiser("digits")
    classifier = dp.Classifier(nn.Flatten(), 2, mean=[0.5] * 3, std=[0.5] * 3, resize=Resize(8))
    with pytest.raises(ValueError, match="classifier: takes 3 channels, but the denoiser gives 1"):
        dp.DDS(denoiser, classifier)


# ---- CIFAR ResNets


def cifar_images() -> tuple[Tensor, Tensor]:
    path = SHARED / "data/cifar10/test-first512.parquet"
    if not path.is_file():
        pytest.skip(f"no CIFAR-10 images at {path}")
    table = pytest.importorskip("pyarrow.parquet").read_table(path)
    images = [Image.open(io.BytesIO(row["bytes"])) for row in table.column("img").to_pylist()]
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    return pixels.float() / 255, torch.tensor(table.column("label").to_pylist())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "correct"),
    [("resnet20", "resnet20-12fca82f.th", 182), ("resnet56", "resnet56-4bfd9763.th", 188)],
)
def test_cifar_resnets_have_their_accuracy(name: str, file: str, correct: int) -> None:
    """Of 200 images 91 and 94%."""
    images, labels = (part[:200] for part in cifar_images())
    classifier = dp.load_classifier(f"{name}@{SHARED / 'models/cifar10' / file}")
    with torch.no_grad():
        assert int((classifier(images).argmax(1) == labels).sum()) == correct


@pytest.mark.parametrize(("name", "layers"), [("resnet20", 20), ("resnet44", 44), ("resnet110", 110)])
def test_cifar_resnets_have_their_depth(name: str, layers: int) -> None:
    modules = list(resnet.build(name, 10).network.modules())
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in modules) == layers


def test_shortcut_subsamples_and_pads_both_sides() -> None:
    block = resnet.BasicBlock(2, 6, 2).eval()
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    images = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    out = block(images)
    assert torch.equal(out[:, 2:4], images[:, :, ::2, ::2])
    assert not out[:, :2].any()
    assert not out[:, 4:].any()


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("counters", [True, False])
def test_resnet_files_of_all_shapes_load(tmp_path: Path, prefix: str, nested: bool, counters: bool) -> None:
    network = randomised(resnet.build("resnet20", 7).network)
    state = {
        prefix + key: tensor
        for key, tensor in network.state_dict().items()
        if counters or not key.endswith("num_batches_tracked")
    }
    path = tmp_path / "w.th"
    torch.save({"state_dict": state, "best_prec1": 91.7} if nested else state, path)
    classifier = dp.load_classifier(f"resnet20@{path}")
    assert (classifier.num_classes, classifier.image_shape, classifier.training) == (7, (3, 32, 32), False)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = network((images - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(classifier(images), expected)


def test_a_converted_resnet_loads(tmp_path: Path) -> None:
    network = randomised(resnet.build("resnet20", 10).network)
    state = {f"module.{key}": tensor for key, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "w.th")
    assert run(["convert", str(tmp_path / "w.th"), str(tmp_path / "w.safetensors")]) == 0
    classifiers = [dp.load_classifier(f"resnet20@{tmp_path / name}") for name in ("w.th", "w.safetensors")]
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(classifiers[1](images), classifiers[0](images), rtol=0, atol=0)


def test_resnet_files_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "w.th"
    torch.save(resnet.build("resnet20", 10).network.state_dict(), path)
    assert "does not fit the network: missing layer1.3.conv1.weight" in fails(f"resnet32@{path}")
    assert "classifier: unknown name 'resnet18'; did you mean resnet" in fails(f"resnet18@{path}")
    assert "expected resnet20@FILE" in fails("resnet20")
    assert "weights: no such file" in fails(f"resnet20@{tmp_path / 'none'}")
    torch.save({"a": torch.ones(2)}, path)
    assert "it has no matrix linear.weight" in fails(f"resnet20@{path}")
    torch.save([torch.ones(2)], path)
    assert "holds one list, expected a state dict" in fails(f"resnet20@{path}")


@pytest.mark.parametrize("spec", ["resnet20@", f"{__name__}:make_network@", ""])
def test_pickled_code_never_runs(tmp_path: Path, spec: str) -> None:
    marker, path = tmp_path / "ran", tmp_path / "w.th"
    path.write_bytes(pickle.dumps({"state_dict": {"linear.weight": torch.ones(2, 2), "x": Trap(marker)}}))
    assert "is a pickle that may hold code" in fails(f"{spec}{path}")
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()


# ---- transformers


KINDS = ["vit", "beit", "deit", "shorter", "raw", "swin", "convnext", "convnext384", "resnet"]


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_models_agree(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    model, prepare = save_model(tmp_path / "m", kind)
    capfd.readouterr()
    classifier = dp.load_classifier(f"hf:{tmp_path / 'm'}")
    assert capfd.readouterr() == ("", "")
    assert classifier.class_names == tuple(f"class {i}" for i in range(10))
    assert not classifier.training
    for height, width in ((32, 32), (45, 61), (300, 20)):
        pixels = levels(height, width)
        expected = prepare(images=[Image.fromarray(pixels)], return_tensors="pt")["pixel_values"].float()
        ours = classifier.network_input(as_tensor(pixels).float())
        assert ours.shape == expected.shape
        assert ours.shape[2:] == classifier.input_size(height, width)
        # In 8-bit levels: Pillow rounds twice, ours not at all.
        off = float(((ours - expected) * classifier.std).abs().max()) * 255
        print(f"{kind} {height}×{width}: {off:.2f} levels")
        assert off < (3.2 if kind == "raw" else 1.6)
        with torch.no_grad():
            torch.testing.assert_close(classifier.network(expected), model(pixel_values=expected).logits)
    images = torch.rand(1, 3, 33, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    classifier(images).square().sum().backward()
    assert images.grad is not None
    assert bool(images.grad.any())


@pytest.mark.slow
def test_grey_transformers_model_certifies_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m", "vit", channels=1, size=16)
    spec, out = f"hf:{tmp_path / 'm'}", tmp_path / "run"
    flags = ["--data", "digits", "--indices", "0:2", "--sigma", "0.25", "--n0", "5", "--n", "20"]
    flags += ["--classifier", spec, "--out", str(out)]
    assert run(["certify", *flags, "--defense", "dds", "--denoiser", "digits"]) == 0
    assert run(["verify", str(out), "--resample", "1", "--trust"]) == 0
    from diffproof.runs.certify.store import CertifyStore

    with CertifyStore.reading(out) as store:
        certificate = store.results()[0].certificate
    assert (certificate.image_size, certificate.classifier_size) == ((8, 8), (16, 16))
    # Another function of the same weights is another run.
    config = tmp_path / "m/config.json"
    config.write_text(config.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    more = [*flags, "--defense", "dds", "--denoiser", "digits", "--indices", "0:3"]
    assert run(["certify", *more]) == 2
    assert "other settings: the weights in the files" in capsys.readouterr().err


def test_transformers_misuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tmp_path / "good"
    tf = pytest.importorskip("transformers", reason="transformers is not installed")
    model, prepare = save_model(good, "vit")
    assert "expected hf:NAME" in fails("hf:")
    assert "expected a folder of save_pretrained or a Hub id" in fails(f"hf:{tmp_path / 'none'}")
    assert "expected a folder of save_pretrained or a Hub id" in fails("hf:vit")

    headless = tmp_path / "headless"
    model.vit.save_pretrained(headless)
    prepare.save_pretrained(headless)
    assert "has no fitting weights for classifier.bias" in fails(f"hf:{headless}")

    no_processor = tmp_path / "no-processor"
    model.save_pretrained(no_processor)
    assert f"hf: cannot load {no_processor}" in fails(f"hf:{no_processor}")

    damaged = tmp_path / "damaged"
    save_model(damaged, "vit")
    whole = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert f"hf: cannot load {damaged}" in fails(f"hf:{damaged}")

    def edited(**changes: Any) -> str:
        path = good / "preprocessor_config.json"
        before = json.loads(path.read_text())
        path.write_text(json.dumps({**before, **changes}))
        try:
            return fails(f"hf:{good}")
        finally:
            path.write_text(json.dumps(before))

    assert "expected bilinear (2) or bicubic (3), got Pillow's filter 1" in edited(resample=1)
    assert "expected a size by height and width" in edited(size={"shortest_edge": 8, "longest_edge": 9})
    assert "a centre crop without resizing" in edited(do_resize=False, do_center_crop=True)
    size = {"height": 32, "width": 32}
    flipped = {"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True}
    message = "MobileViTImageProcessorPil prepares images in a way that is not supported"
    assert message in edited(size=size, crop_size=size, **flipped)
    assert tf.utils.logging.is_progress_bar_enabled()


def test_transformers_code_in_a_folder_never_runs(tmp_path: Path) -> None:
    save_model(tmp_path / "m", "vit")
    marker = tmp_path / "ran"
    config = tmp_path / "m/config.json"
    (tmp_path / "m/evil.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    good = json.loads(config.read_text())
    remote = {"AutoConfig": "evil.C", "AutoModelForImageClassification": "evil.M"}
    config.write_text(json.dumps({**good, "model_type": "unknown-kind", "auto_map": remote}))
    assert "hf: cannot load" in fails(f"hf:{tmp_path / 'm'}")
    config.write_text(json.dumps(good))
    (tmp_path / "m/model.safetensors").unlink()
    (tmp_path / "m/pytorch_model.bin").write_bytes(pickle.dumps({"a": Trap(marker)}))
    assert "hf: cannot load" in fails(f"hf:{tmp_path / 'm'}")
    assert not marker.exists()


def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(name: str, **rest: Any) -> str:
        # Where nothing listens, the cache is asked at once and the network not at all.
        asked.append((name, hub.constants.HF_HUB_OFFLINE))
        raise OSError("no route\nto host")

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setattr("diffproof.hub._reachable", lambda endpoint: False)
    text = fails("hf:google/vit-base-patch16-224")
    assert "is no folder here and cannot be had from the Hub or its cache: no route to host" in text
    assert "hf download google/vit-base-patch16-224" in text
    assert asked == [("google/vit-base-patch16-224", True)]

    save_model(tmp_path / "m", "vit")
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **rest: str(tmp_path / "m"))
    assert dp.load_classifier("hf:owner/name").num_classes == 10


# ---- timm, torchvision, robustbench


def imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # beside another torch it may fail in any way
        pytest.skip(f"{module} does not import: {' '.join(str(error).split())[:100]}")


def test_timm_models(tmp_path: Path) -> None:
    timm = imported("timm")
    network = randomised(timm.create_model("resnet18", num_classes=7))
    torch.save(network.state_dict(), tmp_path / "w.pt")
    classifier = dp.load_classifier(f"timm:resnet18@{tmp_path / 'w.pt'}")
    assert classifier.num_classes == 7
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**config, is_training=False)
    pixels = levels(61, 45)
    expected = transform(Image.fromarray(pixels))[None]
    ours = classifier.network_input(as_tensor(pixels).float())
    assert float(((ours - expected) * classifier.std).abs().max()) * 255 < 1.6
    torch.testing.assert_close(classifier.network(expected), network(expected))
    assert "timm: cannot load 'resnet18x'" in fails("timm:resnet18x")


@pytest.mark.parametrize(
    ("changes", "size", "crop"),
    [
        ({}, 235, (224, 224)),
        ({"crop_mode": "squash"}, (235, 235), (224, 224)),
        ({"crop_pct": 1.0}, 224, (224, 224)),
        ({"input_size": (3, 192, 224), "crop_mode": "squash"}, (202, 235), (192, 224)),
    ],
)
def test_timm_configurations(changes: dict[str, Any], size: Any, crop: Any) -> None:
    from diffproof.classifiers.timm import resize_of

    config = {"input_size": (3, 224, 224), "crop_pct": 0.95, "crop_mode": "center"}
    config["interpolation"] = "bilinear"
    resize = resize_of({**config, **changes})
    assert (resize.size, resize.crop, resize.round_crop) == (size, crop, True)
    assert resize.interpolation == "bilinear"
    for bad in ({"crop_mode": "border"}, {"input_size": (3, 192, 224)}):
        with pytest.raises(ValueError, match=r"timm: expected crop_mode center \(square\) or squash"):
            resize_of({**config, **bad})
    with pytest.raises(ValueError, match="interpolation: unknown name 'lanczos'"):
        resize_of({**config, "interpolation": "lanczos"})


def fake_library(monkeypatch: pytest.MonkeyPatch, name: str, load: Callable[..., nn.Module]) -> str:
    """Put a stand-in for a library in its place whose models come from `load`; returns the spec of one."""
    fakes: dict[str, dict[str, Any]] = {
        "timm": {"timm": {"create_model": load}},
        "torchvision": {
            "torchvision.models": {
                "list_models": lambda module: ["net"],
                "get_model_weights": lambda name: Enum("Weights", ["DEFAULT"]),
                "get_model": load,
            }
        },
        "robustbench": {
            "robustbench": {"load_model": load},
            "robustbench.model_zoo": {"model_dicts": {"cifar10": {"Linf": {"net": {}}}}},
            "robustbench.model_zoo.enums": {"BenchmarkDataset": str, "ThreatModel": str},
        },
    }
    for module, content in fakes[name].items():
        fake = ModuleType(module)
        vars(fake).update(content)
        monkeypatch.setitem(sys.modules, module, fake)
    return f"{name}:net"


@pytest.mark.parametrize("library", ["timm", "torchvision", "robustbench"])
@pytest.mark.parametrize("allowed", [True, False])
def test_libraries_run_no_pickled_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, allowed: bool
) -> None:
    force, allow = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    monkeypatch.setenv(allow, "1") if allowed else monkeypatch.delenv(allow, raising=False)
    monkeypatch.delenv(force, raising=False)
    marker, path = tmp_path / "ran", tmp_path / "pytorch_model.bin"
    torch.save({"state_dict": {"a": torch.ones(1)}, "other": Trap(marker)}, path)

    def load(*_: object, **__: object) -> nn.Module:
        torch.load(path, map_location="cpu", weights_only=False)
        raise AssertionError("the file has loaded")

    text = fails(fake_library(monkeypatch, library, load))
    assert text == (
        f"{library}: cannot load 'net': weights: the file is a pickle that holds code, or is damaged, and was"
        " not loaded"
    )
    assert not marker.exists()
    assert (os.environ.get(force), os.environ.get(allow)) == (None, "1" if allowed else None)


@pytest.mark.parametrize("classes", [7, 1000])
def test_torchvision_models(tmp_path: Path, classes: int) -> None:
    models = imported("torchvision.models")
    network = randomised(models.get_model("resnet18", num_classes=classes))
    torch.save(network.state_dict(), tmp_path / "w.pt")
    classifier = dp.load_classifier(f"torchvision:resnet18@{tmp_path / 'w.pt'}")
    assert classifier.num_classes == classes
    pixels = levels(61, 45)
    expected = models.ResNet18_Weights.DEFAULT.transforms()(Image.fromarray(pixels))[None]
    ours = classifier.network_input(as_tensor(pixels).float())
    assert float(((ours - expected) * classifier.std).abs().max()) * 255 < 1.6
    torch.testing.assert_close(classifier.network(expected), network(expected))
    assert "torchvision model: unknown name 'resnet17'" in fails("torchvision:resnet17")
    assert "unknown name 'IMAGENET1K_V9'; did you mean IMAGENET1K_V1" in fails(
        "torchvision:resnet18@IMAGENET1K_V9"
    )


def test_robustbench_names() -> None:
    assert "robustbench data set: unknown name 'cifar'" in fails("robustbench:X@cifar/L2")
    assert "robustbench threat model: unknown name 'L3'" in fails("robustbench:X@cifar10/L3")
    imported("robustbench")
    assert "robustbench model: unknown name" in fails("robustbench:NoSuchModel2020")


@pytest.mark.parametrize(
    ("spec", "module", "extra"),
    [
        ("hf:owner/name", "transformers", "hf"),
        ("timm:resnet18", "timm", "timm"),
        ("torchvision:resnet18", "torchvision.models", "torchvision"),
        ("robustbench:X", "robustbench", "robustbench"),
    ],
)
def test_missing_and_broken_libraries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: str, module: str, extra: str
) -> None:
    real = importlib.import_module

    def failing(error: Exception) -> Callable[..., Any]:
        def importing(name: str, *rest: Any) -> Any:
            if name == module:
                raise error
            return real(name, *rest)

        return importing

    missing = ModuleNotFoundError("No module", name=module.split(".")[0])
    monkeypatch.setattr(importlib, "import_module", failing(missing))
    assert fails(spec).startswith(f"{module}: not installed; pip install 'diffproof[{extra}]'")
    broken = RuntimeError("operator torchvision::nms does not exist\nmore")
    monkeypatch.setattr(importlib, "import_module", failing(broken))
    assert fails(spec) == f"{module}: installed but does not import: {' '.join(str(broken).split())}"
    other = ModuleNotFoundError("No module named 'gdown'", name="gdown")
    monkeypatch.setattr(importlib, "import_module", failing(other))
    assert fails(spec) == f"{module}: does not import: No module named 'gdown'"


def test_import_optional_gives_the_module() -> None:
    assert import_optional("json", "hf") is json


# ---- a user's own code


def make_network() -> nn.Module:
    """What test specs call."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    network.num_classes = 3  # type: ignore[assignment]
    return network


CODE = """
import torch
from torch import nn
import diffproof as dp

def network():
    made = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout())
    made.num_classes = 3
    return made

def classifier():
    return dp.Classifier(network(), 3, image_shape=(1, 2, 2), mean=[0.5], std=[0.5])

def bare():
    return nn.Linear(4, 3)

def fail():
    raise KeyError("first\\nsecond")

number = 3
"""


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `mycode.models` in the current directory."""
    (tmp_path / "mycode").mkdir()
    (tmp_path / "mycode/models.py").write_text(CODE)
    (tmp_path / "mycode/broken.py").write_text("import os\n1 / 0\n")
    (tmp_path / "mycode/needs.py").write_text("import not_there_at_all\n")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "mycode"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    return tmp_path


@pytest.mark.parametrize("name", ["network", "classifier"])
def test_own_code(user_code: Path, name: str) -> None:
    path = list(sys.path)
    weights = {"1.weight": torch.arange(12.0).reshape(3, 4), "1.bias": torch.ones(3)}
    torch.save(weights, user_code / "w.pt")
    classifier = dp.load_classifier(f"mycode.models:{name}@w.pt")
    images = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    inputs = images if name == "network" else (images - 0.5) / 0.5
    torch.testing.assert_close(classifier(images), inputs.flatten(1) @ weights["1.weight"].T + 1)
    assert (classifier.num_classes, classifier.training) == (3, False)
    assert sys.path == path
    assert dp.load_classifier(f"mycode.models:{name}").num_classes == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mycode.none:f", "classifier: no module mycode.none in"),
        ("nocode:f", "classifier: no module nocode in"),
        ("mycode.models:none", "classifier: module mycode.models has no function none"),
        ("mycode.models:number", "classifier: module mycode.models has no function number"),
        ("mycode.models:fail", "classifier: mycode.models:fail() failed: KeyError: 'first\\\\nsecond'"),
        ("mycode.models:bare", "returned Linear, expected a torch module with num_classes; or wrap it"),
        ("mycode.broken:f", "importing mycode.broken failed: ZeroDivisionError: division by zero"),
        ("mycode.needs:f", "classifier: importing mycode.needs failed: No module named 'not_there_at_all'"),
        ("mycode.models:network@none.pt", "weights: no such file: none.pt"),
    ],
)
def test_own_code_that_fails(user_code: Path, spec: str, message: str) -> None:
    assert message.replace("\\\\", "\\") in fails(spec)


# ---- specs and weights files


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("runs/a@b.safetensors", (Kind.FILE, "", "runs/a@b.safetensors", None)),
        ("hf:a/b", (Kind.LIBRARY, "hf", "a/b", None)),
        ("hf:folder@1", (Kind.LIBRARY, "hf", "folder@1", None)),
        ("timm:hf-hub:timm/x", (Kind.LIBRARY, "timm", "hf-hub:timm/x", None)),
        ("torchvision:resnet50@IMAGENET1K_V2", (Kind.LIBRARY, "torchvision", "resnet50", "IMAGENET1K_V2")),
        ("resnet20@runs/w.safetensors", (Kind.RESNET, "", "resnet20", "runs/w.safetensors")),
        ("resnet56@a/b@c.th", (Kind.RESNET, "", "resnet56", "a/b@c.th")),
        ("my.models:make", (Kind.CODE, "my.models", "make", None)),
        ("models:make@a/w.pt", (Kind.CODE, "models", "make", "a/w.pt")),
    ],
)
def test_specs(spec: str, expected: tuple[Any, ...]) -> None:
    assert tuple(parse(spec)) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:", "classifier: expected timm:NAME, got 'timm:'"),
        ("timm:x@", "classifier: expected timm:NAME, got 'timm:x@'"),
        ("digit", "classifier: unknown name 'digit'; did you mean digits?"),
        ("resnet57", "classifier: unknown name 'resnet57'; did you mean resnet"),
    ],
)
def test_specs_that_are_none(spec: str, message: str) -> None:
    assert message in fails(spec)


def save_copy(path: Path, spec: str, **extra: Any) -> dp.Classifier:
    """A changed copy of a classifier as a weights file, and the copy."""
    copy = dp.load_classifier(spec)
    randomised(copy.network, seed=5)
    save_weights(path, copy.network.state_dict(), {**describe_base(spec), **extra})
    return copy


@pytest.mark.slow
def test_changed_copies_load(tmp_path: Path) -> None:
    torch.save(resnet.build("resnet20", 5).network.state_dict(), tmp_path / "r.th")
    save_model(tmp_path / "m", "vit")
    (tmp_path / "gone").mkdir()
    images = {
        "digits": torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        f"resnet20@{tmp_path / 'r.th'}": torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        f"hf:{tmp_path / 'm'}": torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0)),
    }
    for number, (spec, batch) in enumerate(images.items()):
        path = tmp_path / f"{number}.safetensors"
        copy = save_copy(path, spec, training={"sigma": 0.5})
        (tmp_path / "r.th").rename(tmp_path / "gone/r.th") if number == 1 else None
        loaded = dp.load_classifier(str(path))
        torch.testing.assert_close(loaded(batch), copy(batch), rtol=0, atol=0)
        assert loaded.describe() == copy.describe()
        # A copy of the copy, whose description is the copy's without what only tells of its training.
        again = tmp_path / f"{number}-again.safetensors"
        twice = save_copy(again, str(path))
        torch.testing.assert_close(dp.load_classifier(str(again))(batch), twice(batch), rtol=0, atol=0)
        assert "training" not in load_weights(again).description


@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_a_changed_copy_carries_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(Path("my-model"), family)
    copy = save_copy(Path("w.safetensors"), "hf:my-model")
    images = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    Path("my-model").rename("gone")
    state = torch.get_rng_state()
    loaded = dp.load_classifier("w.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.training
    # Where weights lie in memory may change the last bits.
    torch.testing.assert_close(loaded(images), copy(images), rtol=0, atol=1e-6)
    assert (loaded.class_names, loaded.describe()) == (copy.class_names, copy.describe())
    again = save_copy(Path("again.safetensors"), "w.safetensors")
    torch.testing.assert_close(
        dp.load_classifier("again.safetensors")(images), again(images), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([1], r"the weights file's files of 'hf:.*' are no texts by name"),
        ({"config.json": 3}, r"the weights file's files of 'hf:.*' are no texts by name"),
        ({}, "cannot build the configuration of hf:"),
        ({"config.json": "{"}, "cannot build the configuration of hf:"),
        ({"../config.json": "{}"}, "cannot build the configuration of hf:"),
        ({"config.json": '{"model_type": "gpt2"}'}, "cannot build the configuration of hf:"),
        ({"config.json": '{"model_type": "vit", "hidden_size": 120000}'}, "asks for more parameters than"),
    ],
)
def test_damaged_configurations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(Path("my-vit"), "vit")
    save_copy(Path("w.safetensors"), "hf:my-vit")
    tensors, description = load_weights(Path("w.safetensors"))
    save_weights(Path("w.safetensors"), tensors, description | {"files": files})
    with pytest.raises(ValueError, match=message):
        dp.load_classifier("w.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my-vit", "w.safetensors"]


def test_a_changed_copy_says_which_folder_it_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save_model(Path("my-vit"), "vit")
    copy = save_copy(Path("w.safetensors"), "hf:my-vit")
    # As earlier versions wrote it.
    tensors, description = load_weights(Path("w.safetensors"))
    save_weights(Path("w.safetensors"), tensors, {**description, "files": None})
    images = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    # From elsewhere; then beside the folder that moved; then without it.
    monkeypatch.chdir(tmp_path / "there")
    Path("../here/w.safetensors").rename("w.safetensors")
    assert torch.equal(dp.load_classifier("w.safetensors")(images), copy(images))
    (tmp_path / "here/my-vit").rename("my-vit")
    assert torch.equal(dp.load_classifier("w.safetensors")(images), copy(images))
    Path("my-vit").rename("other")
    with pytest.raises(ValueError, match=r"changed weights of hf:.*/here/my-vit, which must be there, too"):
        dp.load_classifier("w.safetensors")


def test_a_weights_file_does_not_choose_code(user_code: Path) -> None:
    path = user_code / "w.safetensors"
    copy = save_copy(path, "mycode.models:classifier")
    text = fails(str(path))
    assert "which is code; if you trust that code, give mycode.models:classifier@FILE" in text
    images = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dp.load_classifier(f"mycode.models:classifier@{path}")(images), copy(images))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"base": 3}, "the weights file's base is no text: 3"),
        ({"base": "digits"}, "the weights file's base 'digits' is no library's classifier"),
        ({"base": "resnet20@x"}, "the weights file's base 'resnet20@x' is no library's classifier"),
        ({"architecture": "resnet21", "num_classes": 10}, "unknown name 'resnet21'"),
        ({"architecture": "resnet20"}, "incomplete: 'num_classes'"),
        ({"architecture": ["x"], "num_classes": 10}, "the weights file's description is wrong"),
        ({"architecture": "resnet20", "num_classes": "x"}, "the weights file's description is wrong"),
    ],
)
def test_bad_descriptions(tmp_path: Path, description: dict[str, Any], message: str) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(1)}, {"kind": "classifier", **description})
    assert message in fails(str(path))
