"""Ensembles: sums of logits of classifiers that each see the image in their own way."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

import diffproof as dp
from diffproof.cli.main import run
from diffproof.data.trained_on import records_of
from diffproof.runs.labels import short_spec
from diffproof.weights import hash_tensors, save_weights


def saved(path: Path, seed: int, **more: object) -> str:
    """A small random classifier's weights file."""
    from diffproof.classifiers.saved import build_classifier

    description = {
        "kind": "classifier",
        "image_shape": [1, 8, 8],
        "num_classes": 10,
        "width": 4,
        "mean": [0.1 * seed],
        "std": [0.2 + 0.1 * seed],
        **more,
    }
    torch.manual_seed(seed)
    save_weights(path, build_classifier(description).network.state_dict(), description)
    return str(path)


@pytest.fixture
def members(tmp_path: Path) -> list[str]:
    return [saved(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2, 3)]


def test_logits_are_the_sum_of_those_of_members(members: list[str]) -> None:
    # Of other normalisations, and one in another precision.
    parts = [dp.load_classifier(one) for one in members]
    whole = dp.load_classifier(f"ensemble:{','.join(members)}")
    assert isinstance(whole, dp.EnsembleClassifier)
    assert not whole.training
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = parts[0](images) + parts[1](images) + parts[2](images)
    torch.testing.assert_close(whole(images), expected)
    found, wanted = (torch.autograd.grad(of.square().sum(), images)[0] for of in (whole(images), expected))
    torch.testing.assert_close(found, wanted)
    whole.members[1].bfloat16()
    assert whole(images).dtype == torch.float32
    assert whole.num_classes == 10
    assert whole.image_shape == (1, 8, 8)


def test_a_member_may_resize_and_another_not() -> None:
    def member(size: int, resize: dp.Resize | None) -> dp.Classifier:
        network = nn.Sequential(nn.Flatten(), nn.Linear(size * size, 3))
        return dp.Classifier(network, 3, resize=resize)

    whole = dp.EnsembleClassifier([member(8, None), member(16, dp.Resize(16))])
    assert whole(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    assert whole.input_size(8, 8) == (16, 16)


def test_the_hash_is_of_all_members_in_order(members: list[str]) -> None:
    def hashed(*specs: str) -> str:
        whole = dp.load_classifier(f"ensemble:{','.join(specs)}")
        return hash_tensors(whole.state_dict(), whole.describe())

    first, second, third = members
    assert (
        len({hashed(first, second), hashed(second, first), hashed(first, third), hashed(first, first)}) == 4
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ensemble:digits", "expected two members or more of an ensemble, got 1"),
        ("ensemble:digits,", "expected ensemble:A,B,…, classifiers themselves, got 'ensemble:digits,'"),
        ("ensemble:digits,ensemble:digits,digits", "expected ensemble:A,B,…, classifiers themselves, got"),
        ("ensemble:digits,digit", "unknown name 'digit'; did you mean digits?"),
        ("ensemble:digits,{five}", "the members of an ensemble have numbers of classes 10 and 5"),
        ("ensemble:digits,{rgb}", "the members of an ensemble have images (1, 8, 8) and (3, 8, 8)"),
    ],
)
def test_wrong_ensembles_are_refused(tmp_path: Path, spec: str, message: str) -> None:
    five = saved(tmp_path / "five.safetensors", 1, num_classes=5)
    rgb = saved(tmp_path / "rgb.safetensors", 1, image_shape=[3, 8, 8], mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(ValueError, match=r"^classifier: ") as caught:
        dp.load_classifier(spec.format(five=five, rgb=rgb))
    assert message in str(caught.value)


@pytest.mark.slow
def test_what_members_were_trained_on_is_told(tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    small = "--data digits --limit 40 --iterations 1 --batch-size 4 --width 4"
    assert run(shlex.split(f"train classifier {small} --out {out}")) == 0
    assert records_of(f"ensemble:digits,{out}") == records_of(str(out)) != []
    assert short_spec(f"ensemble:digits,{out}") == "ensemble of digits, w"


def test_it_certifies_verifies_and_moves(tmp_path: Path, members: list[str]) -> None:
    folder, spec = tmp_path / "run", f"ensemble:digits,{members[0]}"
    line = f"certify --data digits --indices 0:2 --defense none --classifier {spec} --sigma 0.1"
    assert run(shlex.split(f"{line} --n0 5 --n 30 --out {folder}")) == 0
    # The run names a file of the user's.
    assert run(["verify", str(folder)]) == 2
    assert run(["verify", str(folder), "--trust"]) == 0
    Path(members[0]).rename(folder / "moved.safetensors")
    assert (
        run(["verify", str(folder), "--classifier", f"ensemble:digits,{folder / 'moved.safetensors'}"]) == 0
    )


def test_an_ensemble_is_not_trained_further(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "w.safetensors"
    line = f"train classifier --data digits --classifier ensemble:digits,digits --out {out}"
    assert run(shlex.split(line)) == 2
    assert capsys.readouterr().err == (
        "diffproof: error: --classifier: expected one network to train further,"
        " got 'ensemble:digits,digits'\n"
    )
