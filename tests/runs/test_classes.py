"""Classes of a run: one mapping, settled when the run is prepared, for labels, folder and checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

import diffproof as dp
from diffproof.cli.main import run
from diffproof.runs.attack.store import AttackStore
from diffproof.runs.certify.job import prepare
from diffproof.runs.certify.store import CertifyStore
from diffproof.runs.settings import CertifySettings
from diffproof.weights import load_weights
from helpers.animals import ANIMALS, animal_classifier, animal_folder, grey
from helpers.command_line import Refused, words

pytestmark = pytest.mark.usefixtures("small_digits")

OWN = """
from helpers.animals import ANIMALS, animal_classifier
def backwards(): return animal_classifier(ANIMALS[::-1], ANIMALS[::-1])
def nameless(): return animal_classifier(ANIMALS[::-1])
def background(): return animal_classifier([None, *ANIMALS], ["background", *ANIMALS])
"""
# Five classes, of which the folder has three, under other words.
SUBSET = {"Katze": "cat", "Hund": "dog", "Elch": "elk"}
CERTIFY = {"split": None, "defense": "none", "sigma": 0.01, "n0": 4, "n": 20, "alpha": 0.1}


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, classifiers in a module, and a class map."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo.py").write_text(OWN)
    animal_folder(tmp_path / "all", {name: name for name in ANIMALS})
    animal_folder(tmp_path / "some", SUBSET)
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(SUBSET))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "classifier", "class_map", "labels"),
    [
        ("some", "zoo:backwards", "map.yaml", {"Elch": 0, "Hund": 1, "Katze": 2}),
        ("some", "zoo:background", "map.yaml", {"Elch": 5, "Hund": 4, "Katze": 3}),
        ("some", "zoo:nameless", '{"Katze": 2, "Hund": 1, "Elch": 0}', {"Elch": 0, "Hund": 1, "Katze": 2}),
        ("all", "zoo:background", str(dict(zip(ANIMALS, range(1, 6), strict=True))).replace("'", '"'),
         dict(zip(ANIMALS, range(1, 6), strict=True))),
    ],
)  # fmt: skip
def test_a_class_map_gives_the_labels_of_a_run(
    data: str,
    classifier: str,
    class_map: str,
    labels: dict[str, int],
    zoo: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {**CERTIFY, "data": data, "classifier": classifier, "class_map": class_map}
    assert run(words("certify", **given, out="a")) == 0
    assert "certified accuracy 100.0%" in capsys.readouterr().out
    # Folders are in the order of their names, two images each.
    expected = [label for _, label in sorted(labels.items()) for _ in range(2)]
    with CertifyStore.reading(zoo / "a") as store:
        assert [result.true_label for result in store.results()] == expected
    # The folder has the map itself.
    (zoo / "map.yaml").unlink()
    assert run(["verify", "a", "--trust", "--resample", "2"]) == 0
    assert run(["certify", "--config", "a/settings.yaml", "--trust", "--out", "b"]) == 0
    stores = []
    for name in "ab":
        with CertifyStore.reading(zoo / name) as store:
            stores.append((store.settings.class_map, store.identity, [r.true_label for r in store.results()]))
    assert stores[0] == stores[1]
    assert run(["export", "a", "--out", "a.tsv"]) == 0
    written = [line.split("\t")[1] for line in (zoo / "a.tsv").read_text().splitlines()[1:]]
    assert list(map(int, written)) == expected


@pytest.mark.slow
def test_another_class_map_is_another_run(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {**CERTIFY, "data": "some", "classifier": "zoo:backwards", "out": "a"}
    assert run(words("certify", **given, class_map="map.yaml")) == 0
    # Written in another way it is the same.
    (zoo / "same.json").write_text('{"Elch": "elk", "Hund": "dog", "Katze": "cat"}')
    assert run(words("certify", **given, class_map="same.json")) == 0
    capsys.readouterr()
    (zoo / "map.yaml").write_text(yaml.safe_dump({**SUBSET, "Katze": "dog", "Hund": "cat"}))
    assert run(words("certify", **given, class_map="map.yaml")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        "diffproof: error: --out: a holds a run with other settings: class_map (3 classes: {"
    )
    assert len(line) < 500


@pytest.mark.slow
def test_an_attack_sees_the_labels_of_the_class_map(zoo: Path) -> None:
    given = {"data": "some", "classifier": "zoo:background", "class_map": "map.yaml", "defense": "none"}
    attack = {"threat": "linf", "budget": 0.01, "attack": "pgd:iterations=2", "diagnose": 0, "out": "a"}
    assert run(words("attack", **given, **attack)) == 0
    with AttackStore.reading(zoo / "a") as store:
        images = [image.evaluated for image in store.results()]
    assert [one.true_label for one in images] == [5, 5, 4, 4, 3, 3]
    assert all(label == one.true_label for one in images for label in (*one.clean_labels, *one.labels))
    assert run(["verify", "a", "--trust", "--resample", "2"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier": "zoo:backwards", "data": "all"}, "--classifier: its classes are not in the order"),
        ({"classifier": "zoo:background", "data": "all"}, "--classifier: has 6 classes (one of them"),
        ({"classifier": "zoo:backwards"}, "--classifier: has 5 classes, but some has 3; a class map"),
        ({"classifier": "zoo:backwards", "class_map": "no.yaml"}, "--class-map: no such file: no.yaml"),
        ({"classifier": "zoo:nameless", "class_map": "map.yaml"}, "--class-map: 'Elch': the classifier"),
        (
            {"defense": "dc:timesteps=uniform:2", "denoiser": "empirical:all", "data": "mixed", "sigma": 0.1},
            "--denoiser: its classes are not in the order of mixed: 'Bee' is label 0 there, but its label 1",
        ),
    ],
)  # fmt: skip
def test_runs_with_other_classes_are_refused(
    changes: dict[str, object], message: str, zoo: Path, refused: Refused
) -> None:
    animal_folder(zoo / "mixed", {"Bee": "bee", "ant2": "ant", "cat": "cat", "dog": "dog", "fly": "elk"})
    line = refused(words("certify", **{**CERTIFY, "data": "some", **changes}, out="a"))
    assert line.startswith(message)


@pytest.mark.slow
def test_settings_in_python_take_a_class_map(zoo: Path) -> None:
    job = prepare(
        CertifySettings(
            seed=0, data="some", defense="none", classifier="zoo:backwards", sigma=0.1, class_map=SUBSET
        )
    )
    assert job.data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert job.settings.class_map == SUBSET


@pytest.mark.slow
def test_trained_files_name_their_classes(zoo: Path, refused: Refused) -> None:
    animal_folder(zoo / "other", {f"z {name}" if name == "bee" else name: name for name in ANIMALS})
    training = ["--iterations", "2", "--batch-size", "4"]
    small = [*training, "--width", "4"]
    assert run(["train", "classifier", "--data", "all", "--out", "c.safetensors", *small]) == 0
    # It is trained further on other images of the same classes.
    more = ["--classifier", "c.safetensors", "--out", "more.safetensors", *training]
    assert run(["train", "guide", "--data", "all", *more]) == 0
    assert refused(["train", "guide", "--data", "other", "--force", *more]).startswith(
        "--classifier: its classes are not"
    )
    for name in ("c", "more"):
        assert load_weights(zoo / f"{name}.safetensors").description["class_names"] == list(ANIMALS)
        assert dp.load_classifier(f"{name}.safetensors").class_names == ANIMALS
    given = {**CERTIFY, "classifier": "more.safetensors"}
    assert run(words("certify", **given, data="all", out="a")) == 0
    message = (
        "--classifier: its classes are not in the order of other: 'cat' is label 1 there, but its label 2"
    )
    assert refused(words("certify", **given, data="other", out="b")).startswith(message)
    data = dp.load_data("all")
    with pytest.raises(
        ValueError, match=r"^guide: its classes are not in the order of the classifier: 'elk' is"
    ):
        dp.AGDM(dp.EmpiricalDenoiser(data.images), animal_classifier(ANIMALS[::-1], ANIMALS[::-1]),
                guide=dp.load_classifier("more.safetensors"))  # fmt: skip
    # On a part of the classes it is fine-tuned by a class map.
    (zoo / "part.yaml").write_text("Katze: cat\nHund: 3\nElch: elk\n")
    tune = ["finetune", "--classifier", "c.safetensors", "--denoiser", "empirical:all", "--sigma", "0.2"]
    assert (
        run([*tune, "--data", "some", "--class-map", "part.yaml", "--out", "t.safetensors", *training]) == 0
    )
    assert dp.load_classifier("t.safetensors").class_names == ANIMALS


@pytest.mark.slow
def test_trained_denoisers_name_their_classes(zoo: Path, refused: Refused) -> None:
    small = ["--iterations", "1", "--batch-size", "2", "--channels", "8", "--out", "d.safetensors"]
    assert run(["train", "denoiser", "--data", "all", *small]) == 0
    assert load_weights(zoo / "d.safetensors").description["class_names"] == list(ANIMALS)
    animal_folder(zoo / "other", {f"z {name}" if name == "bee" else name: name for name in ANIMALS})
    given = {**CERTIFY, "defense": "dc:timesteps=uniform:2", "denoiser": "d.safetensors", "sigma": 0.1}
    message = "--denoiser: its classes are not in the order of other: 'cat' is label 1 there, but its label 2"
    assert refused(words("certify", **given, data="other", out="b")).startswith(message)
    assert run(words("certify", **given, data="all", indices="0", out="a")) == 0


def test_packaged_networks_name_their_classes() -> None:
    assert dp.load_classifier("digits").class_names == tuple("0123456789")
    assert dp.load_denoiser("digits").class_names == tuple("0123456789")


@pytest.mark.slow
def test_archives_of_other_classes_are_matched_by_name(
    zoo: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of two archives numbers its texts for itself."""
    for name, animals in {"a": "ant bee cat", "b": "bee cat", "c": "dog elk"}.items():
        values = [grey(animal) for animal in animals.split() for _ in range(6)]
        pixels = (255 * np.array(values)).astype(np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
        np.savez(zoo / f"{name}.npz", images=pixels, labels=np.repeat(animals.split(), 6))
    training = "--iterations 300 --learning-rate 0.01 --width 8 --batch-size 16"
    given = ["train", "classifier", "--data", "a.npz", *training.split()]
    assert run([*given, "--test-data", "b.npz", "--out", "w.safetensors"]) == 0
    said = capsys.readouterr()
    assert "accuracy on 12 clean test images: 100.00%" in said.out
    assert "data: a.npz: classes in alphabetical order: ant, bee, cat are the labels 0 to 2" in said.err
    assert refused([*given, "--test-data", "c.npz", "--out", "v.safetensors"]) == (
        "--test-data: has the class 'dog'; expected one of that name in a.npz, got none"
    )
    # The weights name their classes.
    certify = words("certify", **{**CERTIFY, "data": "b.npz", "classifier": "w.safetensors"}, out="r")
    assert "but b.npz has 2; a class map (--class-map FILE) says which is which" in refused(certify)
    assert run([*certify, "--class-map", '{"bee": "bee", "cat": "cat"}']) == 0
    assert "certified accuracy 100.0%" in capsys.readouterr().out
