"""Images of a run: chosen by its seed, and apart from those that its networks were trained on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffproof as dp
from diffproof.cli.main import run
from diffproof.data.indices import choose, hold_out
from diffproof.data.trained_on import trained_on
from diffproof.runs.attack.store import AttackStore
from diffproof.runs.certify.store import CertifyStore
from diffproof.runs.labels import short_spec
from diffproof.weights import load_weights, save_weights
from helpers.command_line import Refused, words

pytestmark = pytest.mark.usefixtures("small_digits")

CERTIFY = {
    "data": "few.npz",
    "classifier": "c.safetensors",
    "defense": "none",
    "sigma": 0.1,
    "n0": 4,
    "n": 10,
}
ATTACK = {
    "threat": "linf",
    "budget": 0.01,
    "attack": "pgd:iterations=1",
    "diagnose": 0,
    "draws": 1,
    "majority_of": 1,
}
TRAIN = ["train", "classifier", "--data", "few.npz", "--iterations", "1", "--batch-size", "4", "--width", "4"]
SHARE, SEED = 0.2, 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `place` has; read only."""
    folder = tmp_path_factory.mktemp("choosing")
    images, labels = dp.load_data("digits", per_class=6)
    order = labels.argsort(stable=True)
    np.savez(folder / "few.npz", images=images[order].numpy(), labels=labels[order].numpy())
    np.savez(folder / "more.npz", images=images[order].numpy(), labels=labels[order].numpy()[::-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run([*TRAIN, "--holdout", str(SHARE), "--seed", str(SEED), "--out", "c.safetensors"]) == 0
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 60 digits in the order of their classes, and a classifier trained on 48 of them."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def parted(place: Path) -> tuple[list[int], list[int]]:
    labels = dp.load_data("few.npz").labels
    return hold_out(labels, range(len(labels)), SHARE, SEED)


def finished(folder: str) -> list[int]:
    with CertifyStore.reading(Path(folder)) as store:
        return sorted(store.finished())


def warnings_of(capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    lines = capsys.readouterr().err.splitlines()
    return (line.removeprefix("diffproof: warning: ") for line in lines if "warning" in line)


@pytest.mark.slow
def test_images_chosen_at_random(place: Path) -> None:
    labels = dp.load_data("few.npz").labels
    choices: dict[str, dict[str, Any]] = {
        "a": {"limit": 7},
        "b": {"per_class": 1},
        "c": {"indices": "0:30", "limit": 4},
    }
    for name, choice in choices.items():
        given = {**CERTIFY, "classifier": "digits", **choice, "seed": 2}
        assert run(words("certify", **given, out=name)) == 0
        expected = choose(labels, **choice, seed=2)
        assert finished(name) == expected
        assert len({int(labels[index]) for index in expected}) >= 3
        # The same command finds nothing to do, the folder repeats the run, and another seed is another run.
        assert run(words("certify", **given, out=name)) == 0
        assert run(["certify", "--config", f"{name}/settings.yaml", "--out", f"{name}2"]) == 0
        assert finished(f"{name}2") == expected
        assert run(["verify", name, "--trust", "--resample", "1"]) == 0
        # What is finished stays, whatever is asked for later.
        assert run(words("certify", **{**given, "limit": 5}, out=name)) == 0
        assert set(expected) <= set(finished(name))
        assert run(words("certify", **{**given, "seed": 3}, out=name)) == 2
    attack = {
        **ATTACK,
        "data": "few.npz",
        "classifier": "digits",
        "defense": "none",
        "per_class": 1,
        "seed": 2,
    }
    assert run(words("attack", **attack, out="d")) == 0
    with AttackStore.reading(place / "d") as store:
        assert sorted(store.finished()) == finished("b")
    assert run(["verify", "d", "--trust"]) == 0


@pytest.mark.slow
def test_what_was_trained_on_is_said_and_left_out(
    place: Path, parted: tuple[list[int], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    trained, held = parted
    assert (len(trained), len(held)) == (48, 12)
    capsys.readouterr()
    said = " images are among those that the classifier was trained on; --held-out leaves them out"
    for name, choice, seen in (
        ("all", {}, 48),
        ("some", {"indices": ",".join(map(str, [*trained[:3], *held[:2]]))}, 3),
        ("held", {"indices": ",".join(map(str, held))}, 0),
        ("kept", {"held_out": True}, 0),
        ("few", {"held_out": True, "limit": 5}, 0),
        ("of", {"held_out": True, "indices": "0:30"}, 0),
    ):
        assert run(words("certify", **CERTIFY, **choice, out=name)) == 0
        count = len(finished(name))
        assert list(warnings_of(capsys)) == [f"data: {seen} of {count}{said}"] * bool(seen)
        assert run(["verify", name, "--trust"]) == 0
        capsys.readouterr()
    assert finished("kept") == held
    assert set(finished("few")) < set(held)
    assert finished("of") == [index for index in held if index < 30]
    attack = {**ATTACK, "data": "few.npz", "classifier": "c.safetensors", "defense": "none", "out": "attack"}
    assert run(words("attack", **attack, held_out=True)) == 0
    with AttackStore.reading(place / "attack") as store:
        assert sorted(store.finished()) == held
    assert list(warnings_of(capsys)) == []


@pytest.mark.slow
def test_the_record_goes_on_with_the_weights(
    place: Path, parted: tuple[list[int], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    (first,) = load_weights(place / "c.safetensors").description["training"]["images"]
    assert (first["data"], first["split"], first["holdout"], first["seed"]) == ("few.npz", "all", SHARE, SEED)
    # Trained further on ten of the images that were held out, it has been trained on these, too.
    more = ["--classifier", "c.safetensors", "--indices", ",".join(map(str, parted[1][:10]))]
    training = [*TRAIN[:-2], *more, "--out", "more.safetensors"]
    assert run(training) == 0
    second, third = load_weights(place / "more.safetensors").description["training"]["images"]
    assert second == first
    assert third["indices"] == more[-1]
    capsys.readouterr()
    assert run(words("certify", **{**CERTIFY, "classifier": "more.safetensors"}, held_out=True, out="a")) == 0
    assert finished("a") == parted[1][10:]
    assert run(words("certify", **{**CERTIFY, "classifier": "more.safetensors"}, out="b")) == 0
    (line,) = warnings_of(capsys)
    assert line.startswith("data: 58 of 60 images are among those that the classifier was trained on")
    # Other images of the same name are not known to be the same.
    (place / "more.npz").replace("few.npz")
    assert run(words("certify", **CERTIFY, indices="0:2", out="c")) == 0
    assert list(warnings_of(capsys)) == [
        "classifier: it was trained on other images called few.npz (all); whether some of these are among"
        " them is not known"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["me@work/c.safetensors", "c.pt"])
def test_the_record_is_found_whatever_the_file_is_called(
    place: Path, parted: tuple[list[int], list[int]], name: str
) -> None:
    (place / name).parent.mkdir(exist_ok=True)
    (place / "c.safetensors").rename(place / name)
    assert set(trained_on(dp.load_data("few.npz"), None, {"classifier": name})["classifier"]) == set(
        parted[0]
    )


def test_what_packaged_networks_were_trained_on_is_known() -> None:
    networks = {"classifier": "digits", "denoiser": "digits", "guide": None}
    train = dp.load_data("digits", split="train")
    every = set(range(len(train)))
    assert trained_on(train, None, networks) == {"classifier": every, "denoiser": every}
    assert trained_on(dp.load_data("digits"), None, networks) == {}
    images = torch.zeros(len(train), 1, 8, 8)
    other = dp.ImageData("own", "train", images, torch.zeros(len(train), dtype=torch.int64), ["0"])
    assert trained_on(other, None, networks) == {}


@pytest.mark.slow
def test_held_out_images_are_measured_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*TRAIN, "--holdout", "0.5", "--per-class", "4", "--out", "d.safetensors"]) == 0
    assert "accuracy on 20 clean test images" in capsys.readouterr().out
    assert run([*TRAIN, "--holdout", "0.5", "--test-data", "few.npz", "--out", "e.safetensors"]) == 0
    assert "accuracy on 60 clean test images" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"classifier": "digits", "held_out": True},
            "--held-out: no weights file here tells that it was trained on",
        ),
        (
            {"held_out": True, "indices": "TRAINED"},
            "--held-out: the classifier was trained on all of these images",
        ),
        ({"limit": 0}, "--limit: expected an integer ≥ 1, got 0"),
        ({"per_class": 0}, "--per-class: expected an integer ≥ 1, got 0"),
        (
            {"classifier": "bad.safetensors"},
            "--classifier: weights: what they tell of their training is damaged: ",
        ),
    ],
)
def test_choices_that_are_refused(
    flags: dict[str, object], message: str, place: Path, parted: tuple[list[int], list[int]], refused: Refused
) -> None:
    weights = load_weights(place / "c.safetensors")
    save_weights(
        place / "bad.safetensors", weights.tensors, {**weights.description, "training": {"images": [3]}}
    )
    flags = {name: str(parted[0][0]) if value == "TRAINED" else value for name, value in flags.items()}
    assert refused(words("certify", **{**CERTIFY, **flags}, out="a")).startswith(message)


@pytest.mark.parametrize(
    ("spec", "short"),
    [
        ("resnet56@models/resnet56.th", "resnet56"),
        ("score_sde:vp/net@a.pth", "score_sde:vp/net"),
        ("/home/me@work/c.safetensors", "c"),
    ],
)
def test_reports_name_networks_without_their_folders(spec: str, short: str) -> None:
    assert short_spec(spec) == short


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train classifier", "train denoiser", "train guide", "finetune"])
def test_measuring_on_training_images_is_told(
    place: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    images, labels = dp.load_data("few.npz")
    other, _ = dp.load_data("digits", "train", indices="0:20")
    for name, chosen in (
        ("same", images[:20]),
        ("half", torch.cat([other[:10], images[:10]])),
        ("new", other),
    ):
        np.savez(f"{name}.npz", images=chosen.numpy(), labels=labels[:20].numpy())
    more = {
        "train denoiser": "--channels 8",
        "train guide": "--inner-steps 1",
        "finetune": "--classifier digits --denoiser digits --sigma 0.5",
    }
    line = f"{command} --data few.npz --iterations 1 --batch-size 4 --force --out w.safetensors"
    line += f" {more.get(command, '')}"
    # All commands ask one function.
    sets = {"half": 10} if command in more else {"same": 20, "half": 10, "new": 0}
    for name, shared in sets.items():
        capsys.readouterr()
        assert run([*line.split(), "--test-data", f"{name}.npz"]) == 0
        told = [text for text in warnings_of(capsys) if text.startswith("test_data")]
        assert told == [
            f"test_data: {shared} of 20 images are among the training images: what is measured on them says"
            " nothing of other images"
        ] * (shared > 0)
