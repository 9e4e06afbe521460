"""Folders of transformers: the logits that the library itself gives, or one line that says why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import diffproof as dp
from helpers.huggingface import save_model

tf = pytest.importorskip("transformers", reason="transformers is not installed")

Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "vit"
    save_model(folder, "vit")
    return folder


@pytest.fixture
def folder(tmp_path: Path, saved: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "m"))


def settings(file: str, **values: Any) -> Edit:
    """Other values in a file of the folder."""

    def edit(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return edit


def config(**values: Any) -> Edit:
    return settings("config.json", **values)


def prepared(**values: Any) -> Edit:
    return settings("preprocessor_config.json", **values)


def tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Edit:
    """Other tensors in the weights file."""

    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return edit


def holding(**extra: Any) -> Edit:
    return tensors(
        lambda state: {**state, **{name.replace("__", "."): value for name, value in extra.items()}}
    )


def written(name: str, content: dict[str, Any]) -> Edit:
    def edit(folder: Path) -> None:
        (folder / name).write_text(json.dumps(content))

    return edit


def without(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


QUERY = "vit__encoder__layer__0__attention__attention__query"
LORA = {f"{QUERY}__lora_A__default__weight": torch.ones(2, 16)}
SIZE = {"height": 32, "width": 32}
REFUSED: dict[str, tuple[Edit, str]] = {
    "an adapter beside": (written("adapter_config.json", {"peft_type": "LORA"}), "it holds an adapter"),
    "an adapter inside": (holding(**LORA), r"takes all weights: vit.*lora_A"),
    "fewer layers": (config(num_hidden_layers=1), r"takes all weights: vit\.layers\.1"),
    "without biases": (config(qkv_bias=False), r"takes all weights: vit\.layers\.0.*bias"),
    "more layers": (config(num_hidden_layers=3), r"no fitting weights for vit\.layers\.2"),
    "more classes": (
        config(id2label={str(i): f"c{i}" for i in range(12)}),
        r"classifier.bias \(\[10\] in the file, not \[12\]\)",
    ),
    "one output": (
        lambda folder: (
            config(id2label={"0": "x"})(folder),
            tensors(lambda state: {k: v[:1] if k.startswith("classifier") else v for k, v in state.items()})(
                folder
            ),
        )[0],
        "num_classes: expected an integer ≥ 2, got 1",
    ),
    "a wrapper's names": (
        tensors(lambda state: {f"module.{name}": value for name, value in state.items()}),
        "names in its file begin with 'module.': save the bare model",
    ),
    "integers": (
        tensors(lambda state: {name: (10 * value).to(torch.int8) for name, value in state.items()}),
        "its weights are quantised, such as classifier.bias; save it in floats",
    ),
    "NaN": (
        tensors(lambda state: {**state, "classifier.bias": state["classifier.bias"] * torch.nan}),
        "holds NaN or infinite weights: classifier.bias",
    ),
    "quantised": (config(quantization_config={"quant_method": "own"}), "its weights are quantised"),
    "code": (
        config(auto_map={"AutoModelForImageClassification": "modeling.M"}),
        r"by its config.json it is made by code of its own \(modeling.M\), which never runs",
    ),
    "code that prepares": (
        prepared(auto_map={"AutoImageProcessor": "own.P"}),
        r"by its preprocessor_config.json it is made by code of its own \(own.P\)",
    ),
    "regression": (config(problem_type="regression"), "predicts numbers, not classes"),
    "no configuration": (without("config.json"), "config.json is missing"),
    "no processor": (without("preprocessor_config.json"), "preprocessor_config.json is missing, which says"),
    "a factor of 0": (prepared(rescale_factor=0), "expected a rescale_factor > 0, got 0.0"),
    "a factor of NaN": (prepared(rescale_factor=float("nan")), "expected a rescale_factor > 0, got nan"),
    "a factor of text": (prepared(rescale_factor="1/255"), "cannot read the image processor of"),
    "one mean": (prepared(image_mean=[0.5], image_std=[0.5]), "expected 3 values of image_mean, got 1"),
    "four means": (prepared(image_mean=[0.5] * 4), "expected 3 values of image_mean, got 4"),
    "negative means": (prepared(image_mean=[-1.0] * 3), r"m: mean: expected means in \[0, 1\]"),
    "a std of 0": (prepared(image_std=[0.5, 0.0, 0.5]), "m: std: expected positive values"),
    "a huge size": (prepared(size={"height": 10**6, "width": 10**6}), "expected a size of 1 to 4096 pixels"),
    "no size": (prepared(size={"height": 0, "width": 32}), "expected a size of 1 to 4096 pixels"),
    "a size in text": (prepared(size={"height": "32", "width": "32"}), "expected a size of 1 to 4096 pixels"),
    "a large crop": (
        prepared(do_center_crop=True, crop_size={"height": 64, "width": 64}),
        r"m: resize: expected a crop of at most \(32, 32\)",
    ),
    "a filter by name": (prepared(resample="bicubic"), "got Pillow's filter 'bicubic'"),
    "no filter": (prepared(resample=None), "got Pillow's filter None"),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_would_be_another_function(folder: Path, case: str) -> None:
    edit, message = REFUSED[case]
    edit(folder)
    with pytest.raises(dp.ArgumentError, match=message) as caught:
        dp.load_classifier(f"hf:{folder}")
    assert caught.value.argument == "hf"
    assert str(folder) in str(caught.value)


def sharded(folder: Path) -> None:
    model = tf.ViTForImageClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="5KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


SAME: dict[str, Edit] = {
    "shards": sharded,
    "a pickle of tensors": pickled,
    "half precision": tensors(lambda state: {name: value.bfloat16() for name, value in state.items()}),
    "label2id is a list": config(label2id=["a"]),
    "pixels up to 255": prepared(do_rescale=False, image_mean=[127.5] * 3, image_std=[127.5] * 3),
    "another factor": prepared(rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3),
    "one mean for all": prepared(image_mean=0.4, image_std=0.3),
    "a crop": prepared(size={"height": 40, "width": 40}, do_center_crop=True, crop_size=SIZE),
    "an odd crop": prepared(size={"shortest_edge": 37}, do_center_crop=True, crop_size=32),
    "dropout for training": config(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5),
    "outputs of all layers": config(output_attentions=True, output_hidden_states=True),
}


def both(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of one image here and by transformers alone."""
    rows, columns = np.mgrid[0:45, 0:61]
    waves = [120 + 60 * np.sin(rows / (4 + c)) * np.cos(columns / (5 + c)) for c in range(3)]
    image = np.stack(waves, -1).round().astype(np.uint8)
    processor = tf.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = tf.AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(**processor(images=[Image.fromarray(image)], return_tensors="pt")).logits
        ours = dp.load_classifier(f"hf:{folder}")(torch.tensor(image).permute(2, 0, 1)[None] / 255)
    return ours, theirs


@pytest.mark.parametrize("case", SAME)
def test_folders_that_are_the_same_function(folder: Path, case: str) -> None:
    SAME[case](folder)
    ours, theirs = both(folder)
    # Pillow rounds to 8 bits.
    assert float((ours - theirs).abs().max()) < 0.02 * float(theirs.std())


TOLD: dict[str, tuple[Edit, str]] = {
    "the pretraining's mask": (
        holding(vit__embeddings__mask_token=torch.ones(1, 1, 16)),
        "does not use: vit.embeddings.mask_token",
    ),
    "another head": (holding(head__weight=torch.ones(3, 16)), "does not use: head.weight"),
    "several classes an image": (
        config(problem_type="multi_label_classification"),
        "trained for several classes an image",
    ),
}


@pytest.mark.parametrize("case", TOLD)
def test_folders_with_more_than_is_used(folder: Path, case: str) -> None:
    edit, message = TOLD[case]
    edit(folder)
    with pytest.warns(UserWarning, match=message):
        ours, theirs = both(folder)
    assert float((ours - theirs).abs().max()) < 0.02 * float(theirs.std())


def test_parts_read_each_other_whatever_the_configuration_asks(folder: Path) -> None:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = dp.load_classifier(f"hf:{folder}")(image)
    config(return_dict=False)(folder)
    assert torch.equal(dp.load_classifier(f"hf:{folder}")(image), before)


def test_an_error_inside_the_model_is_one_line(folder: Path) -> None:
    prepared(do_resize=False)(folder)
    message = r"ViTForImageClassification of transformers.* failed: ValueError: Input image size \(20\*32\)"
    with pytest.raises(dp.ArgumentError, match=message):
        dp.load_classifier(f"hf:{folder}")(torch.rand(1, 3, 20, 32))


@pytest.mark.parametrize(
    "change", [{"hidden_act": "relu"}, {"num_attention_heads": 4}, {"layer_norm_eps": 0.1}]
)
def test_hashes_tell_functions_of_the_same_weights(folder: Path, change: dict[str, Any]) -> None:
    before = dp.load_classifier(f"hf:{folder}").describe()
    config(transformers_version="4.0", architectures=["ViTModel"], _name_or_path="there", dtype="float16")(
        folder
    )
    assert dp.load_classifier(f"hf:{folder}").describe() == before
    config(**change)(folder)
    assert dp.load_classifier(f"hf:{folder}").describe() != before
