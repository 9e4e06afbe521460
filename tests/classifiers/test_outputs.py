"""What a user's network gives back or raises: logits are found where they are, anything else is one line."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.cli.main import run
from helpers.command_line import Refused


class Answers(nn.Module):
    """Gives its logits in the form that `shape` makes of them."""

    num_classes = 3

    def __init__(self, shape: Any = lambda logits: logits, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, outputs)
        self.shape = shape

    def forward(self, images: Tensor) -> Any:
        return self.shape(self.linear(images.flatten(1)))


IMAGES = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "shape",
    [
        lambda logits: logits,
        lambda logits: SimpleNamespace(loss=None, logits=logits),
        lambda logits: {"logits": logits, "features": torch.zeros(2, 7)},
        lambda logits: OrderedDict(features=logits.exp(), logits=logits),
    ],
)
def test_logits_are_taken_where_they_are(shape: Any) -> None:
    network = Answers(shape)
    expected = network.linear(IMAGES.flatten(1))
    assert torch.equal(dp.Classifier(network, 3)(IMAGES), expected)
    # A module that is not wrapped is asked by the defence.
    assert torch.equal(dp.Undefended(network)(IMAGES), expected)


def test_the_output_of_transformers_is_taken() -> None:
    from transformers.modeling_outputs import ImageClassifierOutput

    network = Answers(lambda logits: ImageClassifierOutput(logits=logits))
    assert torch.equal(dp.Classifier(network, 3)(IMAGES), network.linear(IMAGES.flatten(1)))


@pytest.mark.parametrize(
    ("shape", "got"),
    [
        (lambda logits: (logits, logits), "got tuple of 2"),
        (lambda logits: [logits], "got list of 1"),
        (lambda logits: {"out": logits, "aux": logits}, "got keys out, aux"),
        (lambda logits: {"logits": None}, "got keys logits"),
        (lambda logits: SimpleNamespace(out=logits), "got SimpleNamespace"),
        (lambda logits: None, "got NoneType"),
        (lambda logits: logits.detach().numpy(), "got ndarray"),
        (lambda logits: 3.0, "got float"),
    ],
)
def test_other_outputs_are_named(shape: Any, got: str) -> None:
    for module in (dp.Classifier(Answers(shape), 3), dp.Undefended(Answers(shape))):
        with pytest.raises(ValueError, match=f"classifier: expected a tensor of logits .*{got}"):
            module(IMAGES)


@pytest.mark.parametrize(
    ("shape", "outputs", "message"),
    [
        (lambda logits: logits, 4, r"expected logits 2×3, got shape \(2, 4\); is one of them a background\?"),
        (lambda logits: logits, 2, r"expected logits 2×3, got shape \(2, 2\)$"),
        (lambda logits: logits[None], 3, r"expected logits 2×3, got shape \(1, 2, 3\)$"),
        (lambda logits: logits.argmax(1), 3, "expected 3 logits an image, got torch.int64"),
    ],
)
def test_logits_of_another_number_are_refused(shape: Any, outputs: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dp.Classifier(Answers(shape, outputs), 3)(IMAGES)


def raising(error: BaseException) -> Any:
    def shape(logits: Tensor) -> Tensor:
        raise error

    return shape


ERRORS = [
    (AssertionError("expected 224 pixels"), "AssertionError: expected 224 pixels"),
    (AssertionError(), "AssertionError: no message"),
    (KeyError("head"), "KeyError: 'head'"),
    (RuntimeError("first\nsecond"), "RuntimeError: first$"),
    (NotImplementedError("no backend"), "NotImplementedError: no backend"),
    (TypeError("x" * 1000), "TypeError: x{200}$"),
    (OSError("disk"), "OSError: disk"),
    (ZeroDivisionError("division by zero"), "ZeroDivisionError"),
    (StopIteration(), "StopIteration: no message"),
    (SystemExit(1), "SystemExit: 1"),
]


@pytest.mark.parametrize(("error", "message"), ERRORS)
def test_an_exception_in_a_network_is_one_line(error: BaseException, message: str) -> None:
    network = Answers(raising(error))
    denoiser = dp.NetworkDenoiser(Asked(error), dp.DiscreteSchedule.linear())
    calls: tuple[tuple[str, Callable[[], object]], ...] = (
        ("classifier", lambda: dp.Classifier(network, 3)(IMAGES)),
        ("classifier", lambda: dp.Undefended(network)(IMAGES)),
        ("denoiser", lambda: denoiser(IMAGES, 0.25)),
        ("denoiser", lambda: Own(error)(IMAGES, 0.25)),
    )
    for argument, call in calls:
        with pytest.raises(
            ValueError, match=f"^{argument}: .* of .*test_outputs failed: {message}"
        ) as raised:
            call()
        assert raised.value.__cause__ is error


class Asked(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        raise self.error


class Own(dp.Denoiser):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def estimate(self, noisy: Tensor, sigma: Any, label: Tensor | None) -> Any:
        raise self.error


def test_no_memory_is_no_fault_of_the_network() -> None:
    for error in (MemoryError(), torch.OutOfMemoryError("no memory")):
        with pytest.raises(type(error)):
            dp.Classifier(Answers(raising(error)), 3)(IMAGES)


CODE = """
from torch import nn


class Broken(nn.Module):
    num_classes = 10

    def forward(self, images):
        assert images.shape[-1] == 224, "expected 224 pixels"


def make():
    return Broken()


def plain():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 10))
    network.num_classes = 10
    return network
"""


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("make", "--classifier: Broken of {code}:make failed: AssertionError: expected 224 pixels"),
        (
            "plain",
            "--classifier: Sequential of {code}:plain failed: RuntimeError: mat1 and mat2 shapes cannot",
        ),
    ],
)
def test_the_command_line_says_it_in_a_line_or_in_full(
    refused: Refused, capsys: pytest.CaptureFixture[str], factory: str, message: str
) -> None:
    code = f"broken_{factory}"
    Path(f"{code}.py").write_text(CODE)
    line = ["certify", "--data", "digits", "--limit", "1", "--sigma", "0.5", "--defense", "none"]
    line += ["--classifier", f"{code}:{factory}", "--out", "run"]
    Path("__pycache__").mkdir(exist_ok=True)
    assert run(line) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"diffproof: error: {message.format(code=code)}")
    assert said.endswith("; diffproof --traceback … shows where\n")
    assert len(said.splitlines()) == 1
    assert run(["--traceback", *line]) == 2
    whole = capsys.readouterr().err
    assert whole.startswith("Traceback (most recent call last)")
    assert f'{code}.py", line' in whole or factory == "plain"
    assert "shows where" not in whole.splitlines()[-1]
    assert message.format(code=code) in whole.splitlines()[-1]
    # Of the next command nothing is left.
    assert run(line) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def save_vit(folder: Path) -> str:
    """A tiny ViT of the classes cat, dog, eel; its spec."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=8,
        patch_size=4,
    )
    config.id2label = {0: "cat", 1: "dog", 2: "eel"}
    config.label2id = {"cat": 0, "dog": 1, "eel": 2}
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    size = {"height": 8, "width": 8}
    transformers.ViTImageProcessorPil(size=size).save_pretrained(folder)
    return f"hf:{folder}"


def test_labels_that_are_not_numbered_from_0(tmp_path: Path) -> None:
    spec, file = save_vit(tmp_path), tmp_path / "config.json"
    whole = json.loads(file.read_text())
    assert dp.load_classifier(spec).class_names == ("cat", "dog", "eel")

    def numbered(names: dict[str, str]) -> None:
        file.write_text(json.dumps({**whole, "id2label": names}))

    for names in ({"1": "cat", "2": "dog", "3": "eel"}, {"0": "cat", "2": "dog", "7": "eel"}):
        numbered(names)
        with pytest.warns(UserWarning, match=r"id2label of .* numbers 3 classes [01], 2, [37], not from 0"):
            classifier = dp.load_classifier(spec)
        assert (classifier.num_classes, classifier.class_names) == (3, None)
        assert classifier(torch.rand(1, 3, 8, 8)).shape == (1, 3)
    numbered({"2": "eel", "0": "cat", "1": "dog"})
    assert dp.load_classifier(spec).class_names == ("cat", "dog", "eel")
    numbered({"0": "cat", "2": "eel"})
    with pytest.raises(
        ValueError, match=r"no fitting weights .*id2label in its config.json numbers 2 classes 0, 2"
    ):
        dp.load_classifier(spec)


def test_names_that_say_nothing_or_two_things(tmp_path: Path) -> None:
    spec, file = save_vit(tmp_path), tmp_path / "config.json"
    whole = json.loads(file.read_text())
    # Those that transformers makes up.
    made_up = {str(index): f"LABEL_{index}" for index in range(3)}
    file.write_text(json.dumps({**whole, "id2label": made_up}))
    assert dp.load_classifier(spec).class_names is None
    file.write_text(json.dumps({**whole, "label2id": {"cat": 1, "dog": 0, "eel": 2}}))
    with pytest.warns(UserWarning, match="'cat' is 0 in id2label, 1 in label2id"):
        assert dp.load_classifier(spec).class_names is None
    # No contradiction: nothing, texts, and a name of two classes, as in ImageNet.
    for back in (None, {"cat": "0", "dog": "1", "eel": "2"}):
        file.write_text(json.dumps({**whole, "label2id": back}))
        assert dp.load_classifier(spec).class_names == ("cat", "dog", "eel")
    twice = {"id2label": {"0": "crane", "1": "dog", "2": "crane"}, "label2id": {"crane": 2, "dog": 1}}
    file.write_text(json.dumps({**whole, **twice}))
    assert dp.load_classifier(spec).class_names == ("crane", "dog", "crane")


def test_weights_that_were_not_fetched(tmp_path: Path) -> None:
    spec = save_vit(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match=r"model.safetensors is a Git LFS pointer .*fetch it with `git lfs "):
        dp.load_classifier(spec)
