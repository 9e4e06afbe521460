"""Run folders: what they hold, how they continue, and what report, export and verify make of them."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
import yaml
from scipy.stats import beta, norm

import diffproof as dp
from diffproof.cli.main import run
from diffproof.defenses.named import compile_networks
from diffproof.runs.certify.figures import write_report
from diffproof.runs.certify.job import CertifyRun, prepare
from diffproof.runs.certify.report import load_report
from diffproof.runs.certify.run import run as run_job
from diffproof.runs.certify.store import CertifyStore
from diffproof.runs.certify.tables import cells, header
from diffproof.runs.certify.verify import verify
from diffproof.runs.export import export
from diffproof.runs.places import Places
from diffproof.runs.prepare import resolve_device
from diffproof.runs.settings import CertifySettings
from diffproof.runs.settings_file import settings_text
from diffproof.weights import hash_tensors, load_weights, packaged, save_weights
from helpers.command_line import composed
from helpers.runs import PLAIN, SMALL_RUN, certify_flags, change, rows

TRUSTED = Places({}, trust=True)
GIVEN = "the seed 3 was given: what is certified holds if the base classifier does not know it"


def certify(out: Path, **changes: object) -> list[tuple[Any, ...]]:
    assert run(certify_flags(out, **changes)) == 0
    return rows(out)


@pytest.fixture(scope="session")
def mixed_run(tmp_path_factory: pytest.TempPathFactory, denoiser: Path) -> Path:
    """40 images: certified rightly, certified wrongly and abstained."""
    folder = tmp_path_factory.mktemp("runs") / "mixed"
    certify(folder, denoiser=denoiser, defense="dds", indices="0:40", sigma=0.35)
    return folder


@pytest.fixture
def copy(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the small run, to change."""
    return shutil.copytree(small_run, tmp_path / "copy")


def rewrite(folder: Path, index: int, **changes: object) -> None:
    """Change fields of a stored certificate."""
    (text,) = [row[2] for row in rows(folder) if row[0] == index]
    fields = {**json.loads(text), **changes}
    change(folder, "UPDATE images SET certificate = ? WHERE image_index = ?", json.dumps(fields), index)


# What a run folder holds


def test_a_run_folder_holds_settings_and_one_row_an_image(small_run: Path, denoiser: Path) -> None:
    assert {path.name for path in small_run.iterdir()} == {"settings.yaml", "results.sqlite", "lock"}
    settings = yaml.safe_load((small_run / "settings.yaml").read_text())
    assert settings.items() >= composed({**SMALL_RUN, "denoiser": str(denoiser)}).items()
    stored = rows(small_run)
    labels = dp.load_data("digits", split="test").labels
    assert [(index, label) for index, label, _ in stored] == [(i, int(labels[i])) for i in range(0, 40, 8)]
    assert all(seconds > 0 for (seconds,) in rows(small_run, "seconds"))
    with CertifyStore.reading(small_run) as store:
        assert store.partial(0).estimation is None
        assert store.settings.n == SMALL_RUN["n"]


@pytest.mark.slow
def test_stored_certificates_are_the_librarys(small_run: Path, denoiser: Path) -> None:
    images, _ = dp.load_data("digits", split="test")
    defense = dp.DensePure(dp.load_denoiser(str(denoiser)), dp.load_classifier("digits"), steps=2, votes=5)
    smoothed = dp.Smoothed(defense, sigma=0.25, levels=240)
    for index, _, text in rows(small_run)[:2]:
        certificate = smoothed.certify(images[index], n0=20, n=100, alpha=0.001, seed=3, image_index=index)
        assert dp.Certificate.from_json(text) == certificate


@pytest.mark.slow
def test_the_batch_size_changes_nothing(tmp_path: Path, denoiser: Path) -> None:
    changes = {"denoiser": denoiser, "indices": "0:16:8", "n0": 4, "n": 12}
    one, seven, many = (
        certify(tmp_path / str(size), **changes, batch_size=size, device="cpu") for size in (1, 7, 256)
    )
    assert len(one) == 2
    assert one == seven == many


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        {"defense": "none", "denoiser": None},
        {"defense": "dds", "bound": "two-sided", "indices": "7"},
        {"defense": "densepure", "consensus": 2, "step_rule": "log-sigma", "precision": "bfloat16"},
        {"defense": "densepure", "steps": "full", "votes": 2, "sigma": 0.02, "n0": 2, "n": 3},
    ],
)
def test_settings_yaml_repeats_a_run(tmp_path: Path, denoiser: Path, method: dict[str, object]) -> None:
    changes = {"denoiser": denoiser, "indices": "10:30:15", "alpha": 1e-5, **method}
    first = certify(tmp_path / "first", **changes)
    config = tmp_path / "first" / "settings.yaml"
    assert run(["certify", "--config", str(config), "--out", str(tmp_path / "again")]) == 0
    assert rows(tmp_path / "again") == first
    assert (tmp_path / "again" / "settings.yaml").read_text() == config.read_text()


@pytest.mark.slow
def test_a_config_gives_what_its_flags_give(tmp_path: Path) -> None:
    # 10:30 and 1e-2 are no text to YAML's own rules; null means that a flag is not given.
    (tmp_path / "config.yaml").write_text(
        "data: digits\nindices: 10:30\nclassifier: digits\ndefense: none\ndenoiser: null\nsigma: 1\n"
        f"n0: 5\nn: 10\nalpha: 1e-2\nbatch-size: 64\nout: {tmp_path / 'from-config'}\n"
    )
    assert run(["certify", "--config", str(tmp_path / "config.yaml"), "--seed", "3"]) == 0
    flags = {"indices": "10:30", "sigma": 1, "n0": 5, "n": 10, "alpha": 0.01, "batch_size": 64}
    expected = certify(tmp_path / "from-flags", **PLAIN, **flags)
    assert rows(tmp_path / "from-config") == expected
    assert [index for index, *_ in expected] == list(range(10, 30))
    texts = [(tmp_path / name / "settings.yaml").read_text() for name in ("from-config", "from-flags")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("written", ["before the grid", "today", "by hand"])
def test_a_config_from_before_noise_was_on_a_grid_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], written: str
) -> None:
    certify(tmp_path / "first", **PLAIN, indices="7", n0=5, n=10)
    config = tmp_path / "first" / "settings.yaml"
    lines = config.read_text().splitlines(keepends=True)
    kept = {
        "before the grid": [line for line in lines if not line.startswith(("noise:", "levels:", "stop:"))],
        "today": lines,
        "by hand": [line for line in lines if line.startswith(("data:", "sigma:", "defense:", "n:", "n0:"))],
    }[written]
    (tmp_path / "c.yaml").write_text("".join(kept))
    capsys.readouterr()
    command = ["certify", "--config", str(tmp_path / "c.yaml"), "--classifier", "digits", "--indices", "7"]
    assert run([*command, "--out", str(tmp_path / "again")]) == 0
    (first, *others) = (*capsys.readouterr().err.splitlines(), "")
    said = "whose noise was continuous, as none was on a grid then; here it is on a grid, if --noise does not"
    assert (said in first) == (written == "before the grid")
    assert not any("continuous" in line for line in others)


@pytest.mark.slow
def test_a_method_is_a_mapping_or_its_text_in_a_config(tmp_path: Path, denoiser: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "defense:\n  name: densepure\n  steps: 2\n  votes: 3\n  consensus: null\n  eta: 0.5\n"
    )
    flags = certify_flags(
        tmp_path / "mapping", denoiser=denoiser, indices="1", defense=None, steps=None, votes=None
    )
    assert run([*flags, "--config", str(tmp_path / "config.yaml")]) == 0
    with CertifyStore.reading(tmp_path / "mapping") as store:
        assert store.settings.defense == "densepure:steps=2,votes=3,consensus=none,eta=0.5"
        assert store.settings.describe() == "densepure:steps=2,votes=3,eta=0.5"
    expected = certify(tmp_path / "text", denoiser=denoiser, indices="1", steps=2, votes=3, eta=0.5)
    assert rows(tmp_path / "mapping") == expected


def test_flags_win_over_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("n: 10\nsigma: 0.75\n")
    flags = certify_flags(tmp_path / "run", **PLAIN, n=20, sigma=None, indices="1")
    assert run([*flags, "--config", str(tmp_path / "config.yaml")]) == 0
    with CertifyStore.reading(tmp_path / "run") as store:
        assert (store.settings.n, store.settings.sigma) == (20, 0.75)


needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler"
)


def compiled_beside_plain(tmp_path: Path, **changes: object) -> None:
    """A run of compiled networks finds what that of the same networks does as they are."""
    plain = certify(tmp_path / "plain", **changes)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert run([*certify_flags(tmp_path / "compiled", **changes), "--compile"]) == 0
    # Both networks, once each, and nothing of them left to run as it was.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]
    compiled = rows(tmp_path / "compiled")
    assert [row[:2] for row in compiled] == [row[:2] for row in plain]
    for (*_, before), (*_, after) in zip(plain, compiled, strict=True):
        old, new = dp.Certificate.from_json(before), dp.Certificate.from_json(after)
        assert (old.weights_hash, old.image_hash) == (new.weights_hash, new.image_hash)
        # The same noise: rounding moves a draw at the border between two labels at most.
        moved = sum(abs(a - b) for a, b in zip(old.counts, new.counts, strict=True)) // 2
        assert moved <= 1


# Each layer takes its seconds to compile.
SMALL = "helpers.classifiers:small_digits"
TO_COMPILE: dict[str, object] = {"defense": "dds", "indices": "0:40:16", "batch_size": 100}


@pytest.mark.slow
@needs_compiler
def test_compiled_networks_label_as_others_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {
        **TO_COMPILE,
        "denoiser": "helpers.denoisers:two_convolutions",
        "classifier": SMALL,
    }
    compiled_beside_plain(tmp_path, **changes)
    found = verify(tmp_path / "compiled", resample=1, places=TRUSTED)
    assert (found.resampled, found.failures, found.remarks) == ([0], [], [GIVEN])
    capsys.readouterr()
    assert run(certify_flags(tmp_path / "compiled", **changes)) == 2
    assert "compile (True, now False)" in capsys.readouterr().err


@pytest.mark.slow
def test_every_layer_of_a_unet_becomes_part_of_one_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch would compile, decomposed as for its compiler, runs as it is, which saves a minute."""

    def decomposed(module: torch.fx.GraphModule, inputs: list[torch.Tensor], **_: object) -> Any:
        from torch._dynamo.backends.registry import lookup_backend

        return lookup_backend("aot_eager_decomp_partition")(module, inputs)

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", decomposed)
    compiled_beside_plain(tmp_path, denoiser="helpers.denoisers:two_blocks", **TO_COMPILE)


@pytest.mark.slow
def test_a_run_is_compiled_again_only_to_draw_again(
    tmp_path: Path, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    with CertifyStore.reading(small_run) as store:
        settings = replace(store.settings, compile=True)
    change(tmp_path / "run", "UPDATE settings SET json = ?", json.dumps(settings.as_dict()))
    text = tmp_path / "run" / "settings.yaml"
    text.write_text(text.read_text().replace("compile: false", "compile: true"))
    compiled: list[bool] = []

    def spy(settings: CertifySettings) -> Any:
        compiled.append(settings.compile)
        return prepare(replace(settings, compile=False))

    monkeypatch.setattr("diffproof.runs.certify.verify.prepare", spy)
    for resample in (0, 1):
        assert verify(tmp_path / "run", resample=resample, places=TRUSTED).failures == []
    assert compiled == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [True, False])
def test_networks_of_torchs_own_classes_are_compiled(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    torch._dynamo.reset()
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    defense = dp.Undefended(dp.Classifier(network, 3, image_shape=(1, 8, 8)).eval())
    before = hash_tensors(defense.state_dict())
    if wanted:
        compile_networks(defense)
    graphs: list[object] = []

    def keep(graph: object, *_: object, **__: object) -> object:
        graphs.append(graph)
        return graph

    # The graph that Dynamo hands on, not compiled to machine code.
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", keep)
    defense.classifier(torch.rand(5, 1, 8, 8))
    assert bool(graphs) == wanted
    assert hash_tensors(defense.state_dict()) == before


def test_an_error_without_words_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("diffproof.classifiers.base.Classifier.forward", fail)
    with pytest.raises(ValueError, match=r"the networks cannot label digits: RuntimeError$"):
        prepare(CertifySettings(seed=0, data="digits", classifier="digits", defense="none", sigma=0.5))


@pytest.mark.slow
def test_no_compiler_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, str(tmp_path / "none")))
    # What torch has compiled before, here or in earlier runs, would do without a compiler.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    assert run([*certify_flags(tmp_path / "run", **PLAIN, classifier=SMALL), "--compile"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "diffproof: error: --compile: torch cannot compile the networks: InvalidCxxCompiler"
    )
    assert line.endswith("leave --compile out to do without")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@needs_compiler
def test_a_compilation_that_fails_in_the_middle_of_a_run_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepared(settings: CertifySettings, *, here: bool) -> CertifyRun:
        job = prepare(settings, here=here)
        torch._dynamo.reset()
        monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, str(tmp_path / "none")))
        return job

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("diffproof.runs.certify.job.prepare", prepared)
    assert run([*certify_flags(tmp_path / "run", **PLAIN, classifier=SMALL), "--compile"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("diffproof: error: --compile: torch cannot compile the networks: ")
    assert line.endswith("leave --compile out to do without")


# Continuing


def test_continuing_a_finished_run_redoes_nothing(copy: Path, denoiser: Path) -> None:
    columns = "image_index, true_label, certificate, seconds"
    before = rows(copy, columns)
    changed = {"batch_size": 7, "device": "cpu"}
    assert run(certify_flags(copy, denoiser=denoiser, **changed)) == 0
    assert rows(copy, columns) == before


@pytest.mark.slow
def test_continuing_does_what_is_left(copy: Path, small_run: Path, denoiser: Path) -> None:
    columns = "image_index, true_label, certificate, seconds"
    change(copy, "DELETE FROM images WHERE image_index IN (8, 32)")
    kept = rows(copy, columns)
    # A partial tally of an image in work is continued, not thrown away.
    assert run(certify_flags(copy, denoiser=denoiser)) == 0
    assert rows(copy) == rows(small_run)
    assert [row for row in rows(copy, columns) if row[0] not in (8, 32)] == kept


@pytest.mark.slow
def test_an_interrupted_image_continues_from_its_tallies(
    tmp_path: Path, small_run: Path, denoiser: Path
) -> None:
    with CertifyStore.reading(small_run) as store:
        job = prepare(replace(store.settings, batch_size=16))
    seen: list[int] = []

    def interrupt(evaluations: int) -> None:
        seen.append(evaluations)
        # Image 0 is done after 120 draws; stop in the middle of the next one's estimation.
        if sum(seen) >= (120 + 20 + 40) * job.certifier.evaluations_per_draw:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, tmp_path / "run", interrupt)
    with CertifyStore.reading(tmp_path / "run") as store:
        partial = store.partial(8)
        assert store.finished() == {0}
    assert partial.selection is not None
    assert partial.estimation is not None
    assert partial.selection.draws == 20
    assert 0 < partial.estimation.draws < 100
    assert sum(partial.estimation.counts) == partial.estimation.draws
    assert partial.seconds > 0
    # A tally that was tampered with would show in the result: it is used, not drawn again.
    seen.clear()
    counted: list[int] = []
    results = run_job(job, tmp_path / "run", counted.append)
    assert rows(tmp_path / "run") == rows(small_run)
    assert [result.image_index for result in results] == [0, 8, 16, 24, 32]
    assert sum(counted) == 5 * 120 * job.certifier.evaluations_per_draw
    # What was saved of it counts at once.
    assert max(counted[1:]) >= partial.estimation.draws * job.certifier.evaluations_per_draw


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "seed (3, now 4)"),
        ({"sigma": 0.5, "n": 200}, "sigma (0.25, now 0.5), n (100, now 200)"),
        (
            {"votes": 6, "consensus": 2},
            "defense (densepure:steps=2,votes=5, now densepure:steps=2,votes=6,consensus=2)",
        ),
        ({"steps": 3}, "defense (densepure:steps=2,votes=5, now densepure:steps=3,votes=5)"),
        ({"split": "train"}, "split (test, now train), the images or labels in the data"),
        ({"indices": "0:9", "split": "train"}, "split (test, now train), the images or labels in the data"),
        ({"alpha": 0.01, "bound": "two-sided"}, "alpha (0.001, now 0.01), bound (one-sided, now two-sided)"),
        ({"precision": "bfloat16"}, "precision (float32, now bfloat16), the weights in the files"),
        (
            {"step_rule": "paper", "n0": 21},
            "defense (densepure:steps=2,votes=5, now densepure:steps=2,votes=5,step_rule=paper),"
            " n0 (20, now 21)",
        ),
    ],
)
def test_other_settings_are_refused(
    copy: Path, denoiser: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], message: str
) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    assert run(certify_flags(copy, denoiser=denoiser, **changes)) == 2
    expected = f"diffproof: error: --out: {copy} holds a run with other settings: {message}"
    *warned, line = capsys.readouterr().err.splitlines()
    assert line == expected
    # The denoiser was trained on the other split.
    assert ["trained on" in one for one in warned] == [True] * (changes.get("split") == "train")
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


@pytest.mark.parametrize("changed", ["images", "labels"])
def test_a_run_does_not_continue_on_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: str
) -> None:
    """The same file name and number of images, other pixels or labels."""
    digits = dp.load_data("digits", indices="0:4")
    images, labels = digits.images[:, 0].numpy(), digits.labels.numpy()
    np.savez(tmp_path / "some.npz", images=images, labels=labels)
    flags = {"data": tmp_path / "some.npz", "indices": "0:2", "defense": "none", "split": None, "n": 20}
    assert run(certify_flags(tmp_path / "run", **flags)) == 0
    images, labels = (images[::-1], labels) if changed == "images" else (images, labels[::-1])
    np.savez(tmp_path / "some.npz", images=images, labels=labels)
    capsys.readouterr()
    assert run(certify_flags(tmp_path / "run", **flags)) == 2
    assert capsys.readouterr().err.endswith(
        "holds a run with other settings: the images or labels in the data\n"
    )


def test_other_weights_under_the_same_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "classifier.safetensors"
    tensors, description = load_weights(packaged("classifier")["digits"])
    save_weights(path, tensors, description)
    certify(tmp_path / "run", **PLAIN, classifier=path, indices="0")
    save_weights(path, {**tensors, "head.bias": tensors["head.bias"] + 0.5}, description)
    assert run(certify_flags(tmp_path / "run", **PLAIN, classifier=path, indices="0")) == 2
    expected = "holds a run with other settings: the weights in the files\n"
    assert capsys.readouterr().err.endswith(expected)
    assert run(["verify", str(tmp_path / "run"), "--trust"]) == 1
    assert "the weights are not those it was made with" in capsys.readouterr().out


def test_settings_say_what_is_wrong() -> None:
    good: dict[str, Any] = {
        "seed": 0,
        "data": "digits",
        "classifier": "digits",
        "defense": "none",
        "sigma": 0.5,
    }
    assert CertifySettings.from_dict(good).as_dict().items() >= good.items()
    with pytest.raises(
        ValueError, match=r"^settings: unknown name 'sigmas'; did you mean sigma or scales or image_size\?"
    ):
        CertifySettings.from_dict({**good, "sigmas": 1})
    with pytest.raises(ValueError, match=r"^settings: sigma is missing"):
        CertifySettings.from_dict({name: value for name, value in good.items() if name != "sigma"})
    with pytest.raises(ValueError, match="denoiser: the method 'dds' needs one"):
        CertifySettings.from_dict({**good, "defense": "dds"})
    # Equal up to what changes no result.
    settings = CertifySettings(**good)
    assert settings.differences(replace(settings, batch_size=1, device="cpu")) == []
    assert settings.differences(replace(settings, n=5)) == ["n (10000, now 5)"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"defense": "none", "denoiser": None}, "none"),
        ({"defense": "dds"}, "dds"),
        ({}, "densepure"),
        ({"defense": "densepure:votes=10,steps=full"}, "densepure:votes=10,steps=full"),
        ({"defense": "densepure:steps=10,consensus=3"}, "densepure:consensus=3"),
    ],
)
def test_methods_are_told_apart(changes: dict[str, Any], name: str) -> None:
    fields: dict[str, Any] = {
        "seed": 0,
        "data": "digits",
        "classifier": "digits",
        "denoiser": "digits",
        "defense": "densepure",
        "sigma": 0.5,
    }
    assert CertifySettings(**{**fields, **changes}).describe() == name


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda() -> None:
    assert resolve_device("auto") == torch.device("cpu")
    for name, there in (("cuda", "no CUDA device"), ("cuda:1", "no CUDA device"), ("mps", "no Metal device")):
        with pytest.raises(ValueError, match=f"device: there is {there}.*; cpu and auto always work"):
            resolve_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda 1", "mps:0", "CPU", ""])
def test_a_device_that_none_is_called(name: str) -> None:
    with pytest.raises(ValueError, match=r"device: expected auto, cpu, cuda, cuda:N or mps, got '"):
        resolve_device(name)


# Report


def recomputed(folder: Path) -> Any:
    """Labels and radii of a run from nothing but the stored counts, by scipy's beta and normal quantiles."""
    import pandas as pd

    found = []
    for index, true_label, text in rows(folder):
        fields = json.loads(text)
        label = int(np.argmax(fields["selection_counts"]))
        count, n = fields["counts"][label], sum(fields["counts"])
        p_a = beta.ppf(fields["alpha"], count, n - count + 1) if count else 0.0
        radius = fields["sigma"] * norm.ppf(p_a) if p_a > 0.5 else 0.0
        predicted = label if p_a > 0.5 else -1
        found.append((index, true_label, predicted, radius, predicted == true_label))
    return pd.DataFrame(found, columns=["idx", "label", "predict", "radius", "correct"])


RADII = (0.0, 0.1, 0.25, 0.3, 0.5, 0.75)


@pytest.mark.slow
def test_report_numbers_against_a_recomputation(
    mixed_run: Path, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = recomputed(mixed_run)
    # The run has all three kinds, or the comparison would be of little use.
    assert 0 < (mixed.predict == -1).sum() < 40
    assert ((mixed.predict != -1) & ~mixed.correct).sum() > 0
    assert 0 < mixed.correct.sum() < 40
    at = ",".join(map(str, RADII))
    out = tmp_path / "report"
    assert run(["report", str(mixed_run), str(small_run), "--at", at, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    with (out / "table.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    # Rows by sigma.
    assert [row["run"] for row in table] == [str(small_run), str(mixed_run)]
    for row, data in zip(table, (recomputed(small_run), mixed), strict=True):
        assert int(row["images"]) == len(data)
        for radius in RADII:
            share = (data.correct & (data.radius >= radius)).mean()
            assert float(row[f"certified_accuracy_at_{radius:g}"]) == pytest.approx(share, abs=1e-6)
        assert float(row["acr"]) == pytest.approx((data.radius * data.correct).mean(), abs=1e-6)
        wrong = (~data.correct & (data.predict != -1)).mean()
        assert float(row["wrong"]) == pytest.approx(wrong, abs=1e-6)
        assert float(row["abstained"]) == pytest.approx((data.predict == -1).mean(), abs=1e-6)
        assert (row["n0"], row["n"], row["alpha"]) == ("20", "100", "0.001")
    # What a person reads has the same numbers, and a dash beyond what 100 draws can prove.
    line = next(line for line in shown.splitlines() if " dds " in line)
    read = [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
    largest = 0.35 * norm.ppf(0.001 ** (1 / 100))
    shares = [
        f"{(mixed.correct & (mixed.radius >= radius)).mean():.1%}" if radius <= largest else "–"
        for radius in RADII
    ]
    acr = (mixed.radius * mixed.correct).mean()
    abstained = (mixed.predict == -1).mean()
    wrong = (~mixed.correct & (mixed.predict != -1)).mean()
    assert wrong > 0
    assert read == ["dds", "0.35", "40", *shares, f"{acr:.3f}", f"{wrong:.1%}", f"{abstained:.1%}"]
    assert shares[-1] == "–" != shares[-2]
    assert "the runs are over different images: their rows do not compare" in shown
    assert f"n = 100 and alpha = 0.001 allow no radius above {largest:.3f}" in shown


def test_report_has_dashes_exactly_where_n_and_alpha_allow_no_radius(mixed_run: Path) -> None:
    largest = 0.35 * float(norm.ppf(0.001 ** (1 / 100)))
    report = load_report([mixed_run], [0.0, largest - 1e-6, largest + 1e-6])
    shown = dict(zip(header(report), cells(report, report.rows[0]), strict=True))
    assert [shown[name] for name in header(report)[3:6]][2] == "–"
    assert [shown[name] for name in header(report)[3:6]].count("–") == 1
    # A radius at exactly the largest that was reached counts: certified at ≥ ε.
    top = max(result.certificate.radius for result in report.rows[0].results if result.correct)
    assert report.rows[0].certified_accuracy(top) > 0
    assert report.rows[0].certified_accuracy(math.nextafter(top, 9)) == 0


def test_the_curve_is_certified_accuracy_at_every_radius(mixed_run: Path) -> None:
    (row,) = load_report([mixed_run], [0.0]).rows
    data = recomputed(mixed_run)
    radii, shares = row.certification.curve()
    assert radii == sorted(radii)
    for probe in np.linspace(0, 0.9, 181):
        # The value of the step function just right of its last breakpoint at or below the probe.
        value = shares[int(np.searchsorted(radii, probe, side="right")) - 1]
        assert value == pytest.approx((data.correct & (data.radius > probe)).mean())
    # The area under the curve is the average certified radius.
    area = sum(s * (b - a) for s, a, b in zip(shares, radii, radii[1:], strict=False))
    assert area == pytest.approx(row.average_radius, rel=1e-12)


def test_an_unfinished_run_is_remarked(copy: Path, small_run: Path) -> None:
    change(copy, "DELETE FROM images WHERE image_index > 8")
    report = load_report([copy], [0.0])
    finished, votes = report.remarks
    assert finished == f"{copy}: 2 of 5 images are finished"
    assert votes.endswith(" of 5 votes cast a draw, on average")
    assert len(load_report([small_run], [0.0]).remarks) == 1
    both = load_report([copy, small_run], [0.0]).remarks
    assert "the runs are over different images: their rows do not compare" in both
    change(copy, "DELETE FROM images")
    with pytest.raises(ValueError, match=r"run: .* has no finished image yet"):
        load_report([copy], [0.0])
    with pytest.raises(ValueError, match=r"run: .* has no finished image yet"):
        verify(copy, places=TRUSTED)


@pytest.mark.parametrize("radii", [[], [-0.1], [math.nan], [math.inf]])
def test_report_refuses_radii(small_run: Path, radii: list[float]) -> None:
    with pytest.raises(ValueError, match="at: expected radii ≥ 0"):
        load_report([small_run], radii)


def test_report_needs_a_run() -> None:
    with pytest.raises(ValueError, match="runs: expected at least one run folder"):
        load_report([], [0.0])


@pytest.mark.slow
def test_the_picture_is_a_picture(mixed_run: Path, small_run: Path, tmp_path: Path) -> None:
    report = load_report([mixed_run, small_run], RADII)
    table, picture, *_ = write_report(report, tmp_path / "new" / "report", force=False)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = matplotlib.image.imread(picture)
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 700
    grey = pixels[..., :3].mean(2)
    # Two panels, each with ink of its own, on a mostly white page.
    for half in np.array_split(grey, 2, axis=1):
        assert 0.01 < (half < 0.9).mean() < 0.5
    # Both lines are there in their colours.
    for colour in ("D55E00", "0072B2"):
        rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)])
        assert (np.abs(pixels[..., :3] - rgb).max(2) < 0.02).sum() > 100
    # A single unbroken run gives a valid picture too, and nothing is overwritten unasked.
    before = picture.read_bytes(), table.read_bytes()
    with pytest.raises(ValueError, match=r"out: .*table.csv exists; --force overwrites it"):
        write_report(report, tmp_path / "new" / "report", force=False)
    table.unlink()
    with pytest.raises(ValueError, match=r"out: .*curve.png exists; --force overwrites it"):
        write_report(report, tmp_path / "new" / "report", force=False)
    assert not table.exists()
    write_report(report, tmp_path / "new" / "report", force=True)
    assert (picture.read_bytes(), table.read_bytes()) == before


def test_rows_of_other_noise_are_told_apart(tmp_path: Path, small_run: Path) -> None:
    other = shutil.copytree(small_run, tmp_path / "continuous")
    with CertifyStore.reading(small_run) as store:
        settings = replace(store.settings, noise="continuous", levels=None)
    change(other, "UPDATE settings SET json = ?", json.dumps(settings.as_dict()))
    (other / "settings.yaml").write_text(settings_text(settings, {}))
    name = settings.describe()
    assert [load_report([one], [0.0]).rows[0].settings.noise for one in (small_run, other)] == [
        "grid",
        "continuous",
    ]
    report = load_report([small_run, other], [0.0])
    assert sorted(report.label(row) for row in report.rows) == [
        f"{name}, continuous noise",
        f"{name}, grid noise",
    ]


@pytest.mark.slow
def test_long_names_stay_inside_the_picture(tmp_path: Path, small_run: Path) -> None:
    for model in (f"its-{'very-' * 20}fine-tuned-copy", "a-model-with-a-long-name", "another-model", "b"):
        shutil.copytree(small_run, tmp_path / "runs" / model)
        with CertifyStore.reading(small_run) as store:
            settings = replace(
                store.settings, classifier=f"hf:{'folder/' * 9}{model}", data=f"{'long/' * 30}x"
            )
        change(tmp_path / "runs" / model, "UPDATE settings SET json = ?", json.dumps(settings.as_dict()))
        (tmp_path / "runs" / model / "settings.yaml").write_text(settings_text(settings, {}))
    report = load_report(list((tmp_path / "runs").iterdir()), [0.0])
    names = [report.label(row).partition(", ")[2] for row in report.rows]
    assert names == sorted(names)
    assert len(set(names)) == 4
    picture = write_report(report, tmp_path / "report", force=False)[1]
    pixels = matplotlib.image.imread(picture)[..., :3]
    for edge in (pixels[:, :3], pixels[:, -3:], pixels[:3], pixels[-3:]):
        assert bool((edge == 1.0).all())


@pytest.mark.slow
def test_a_run_that_certifies_nothing_is_drawn(tmp_path: Path) -> None:
    certify(tmp_path / "run", **PLAIN, indices="0:2", n0=1, n=1)
    picture = write_report(load_report([tmp_path / "run"], [0.0, 1.0]), tmp_path / "report", force=False)[1]
    assert matplotlib.image.imread(picture).std() > 0.01


# Export


def test_export_as_cohens_analysis_reads_it(mixed_run: Path, tmp_path: Path) -> None:
    import pandas as pd

    path = tmp_path / "run.tsv"
    assert run(["export", str(mixed_run), "--format", "cohen", "--out", str(path)]) == 0
    # Their analysis: a table with tabs; certified accuracy = mean of correct AND radius ≥ r.
    table = pd.read_csv(path, delimiter="\t")
    assert list(table.columns) == ["idx", "label", "predict", "radius", "correct", "time"]
    expected = recomputed(mixed_run)
    for radius in (*RADII, *expected.radius):
        # In steps of 1e-12, as scipy's quantiles in two ways differ in the last places.
        share = (table["correct"] & (table["radius"] >= radius - 1e-12)).mean()
        assert share == (expected.correct & (expected.radius >= radius - 1e-12)).mean()
    assert set(table["correct"]) == {0, 1}
    for name in ("idx", "label", "predict"):
        assert table[name].tolist() == expected[name].tolist()
    assert (table["predict"] == -1).any()
    assert np.allclose(table["radius"], expected["radius"], atol=1e-12)
    assert (table["correct"] == (table["predict"] == table["label"])).all()
    times = pd.to_timedelta(table["time"]).dt.total_seconds()
    assert np.allclose(times, [seconds for (seconds,) in rows(mixed_run, "seconds")], atol=1e-5)


def test_export_refuses(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^format: unknown name 'cohn'; did you mean cohen"):
        export(small_run, "cohn")
    with pytest.raises(ValueError, match=r"run: .*none is no run folder \(results.sqlite is missing\)"):
        export(tmp_path / "none", "cohen")


# Verify


@pytest.mark.slow
def test_verify_passes_on_a_good_run(
    small_run: Path, mixed_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (small_run / "results.sqlite").read_bytes()
    assert run(["verify", str(small_run), "--resample", "2", "--trust"]) == 0
    checked = f"{GIVEN}\nchecked: counts, radii, images, true labels, weights\n"
    left = "not checked: draws of {} images, which --resample makes again\n"
    assert capsys.readouterr().out == f"{checked}{left.format(3)}5 certificates hold, 2 drawn again\n"
    assert run(["verify", str(mixed_run), "--trust"]) == 0
    assert capsys.readouterr().out == f"{checked}{left.format(40)}40 certificates hold\n"
    assert verify(small_run, resample=99, places=TRUSTED).resampled == [0, 8, 16, 24, 32]
    assert (small_run / "results.sqlite").read_bytes() == before


def shifted(folder: Path, index: int, field: str, move: int) -> tuple[int, ...]:
    """Counts with `move` draws taken from the fullest class and given to the next."""
    (text,) = [row[2] for row in rows(folder) if row[0] == index]
    counts = list(json.loads(text)[field])
    top = counts.index(max(counts))
    counts[top] -= move
    counts[(top + 1) % len(counts)] += move
    return tuple(counts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda c: {"radius": c.radius + 0.001}, "its counts prove radius"),
        (lambda c: {"radius": math.nextafter(c.radius, 9) + 1e-8}, "its counts prove radius"),
        (lambda c: {"p_a_lower": c.p_a_lower + 0.001}, "its counts prove radius"),
        (lambda c: {"label": (c.label + 1) % 10}, "its counts prove radius"),
        (lambda c: {"label": None}, "its counts prove radius"),
        (lambda c: {"counts": [100 if i == c.selected else 0 for i in range(10)]}, "its counts prove radius"),
        (lambda c: {"counts": [*c.counts[:9], c.counts[9] + 1]}, "its counts do not add up to n0 and n"),
        (lambda c: {"selection_counts": [0] * 10}, "its counts do not add up to n0 and n"),
        (
            lambda c: {"counts": [-1, *c.counts[1:9], c.counts[9] + c.counts[0] + 1]},
            "not those of 10 classes",
        ),
        (lambda c: {"counts": [*c.counts, 0]}, "not those of 10 classes"),
        (lambda c: {"alpha": 2.0}, "alpha is 2.0, the run's is 0.001"),
        (lambda c: {"selected": (c.selected + 1) % 10}, "did not get the most selection draws"),
        (lambda c: {"selected": 17}, "did not get the most selection draws"),
        (lambda c: {"selected": c.selected - 10}, "did not get the most selection draws"),
        (lambda c: {"alpha": 0.01}, "alpha is 0.01, the run's is 0.001"),
        (lambda c: {"sigma": 0.5}, "sigma is 0.5, the run's is 0.25"),
        (lambda c: {"n": 99}, "n is 99, the run's is 100"),
        (lambda c: {"n0": 21}, "n0 is 21, the run's is 20"),
        (lambda c: {"bound": "two-sided"}, "bound is two-sided, the run's is one-sided"),
        (lambda c: {"seed": 4}, "seed is 4, the run's is 3"),
        (lambda c: {"image_index": 9}, "it was made for image 9"),
        (lambda c: {"grid_sigma": 0.3}, "grid_sigma is 0.3, the denoiser's is"),
        (lambda c: {"settings": {**c.settings, "votes": 6}}, "made by a defence with other settings"),
        (lambda c: {"weights_hash": "0" * 64}, "the weights are not those it was made with"),
        (lambda c: {"image_hash": "0" * 64}, "the image is not the one it was made for"),
        (lambda c: {"levels": 255}, "levels is 255, the run's is 240"),
        (lambda c: {"noise": "continuous"}, "noise is continuous, the run's is grid"),
        (lambda c: {"failure_mass": 0.0}, "it states less failure mass than its noise has"),
        (lambda c: {"off_grid": 0.0}, "off_grid is 0.0, expected 0.01666"),
        (lambda c: {"moved": 0.001}, "moved is 0.001, expected 0.0"),
    ],
)
def test_verify_catches_a_changed_certificate(
    copy: Path,
    capsys: pytest.CaptureFixture[str],
    changes: Callable[[dp.Certificate], dict[str, object]],
    message: str,
) -> None:
    (text,) = [row[2] for row in rows(copy) if row[0] == 24]
    certificate = dp.Certificate.from_json(text)
    assert certificate.label is not None
    rewrite(copy, 24, **changes(certificate))
    assert run(["verify", str(copy), "--trust"]) == 1
    _, *lines, _, _, last = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("image 24: ", "certificates with 2 ")) for line in lines)
    assert any(message in line for line in lines)
    assert last == f"{len(lines)} failure{'s' * (len(lines) > 1)} in 5 certificates"


def test_verify_catches_changed_rows(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(copy, "UPDATE images SET true_label = (true_label + 1) % 10 WHERE image_index = 8")
    change(copy, "UPDATE images SET image_index = 600 WHERE image_index = 32")
    change(copy, "UPDATE images SET image_index = 25 WHERE image_index = 24")
    assert run(["verify", str(copy), "--trust"]) == 1
    out = capsys.readouterr().out
    assert "image 8: the data gives another true label" in out
    assert "image 600: the data has no such image" in out
    assert "image 25: the image is not the one it was made for" in out
    assert "image 25: it was made for image 24" in out


@pytest.mark.parametrize("radius", ["NaN", "Infinity", '"x"', "null"])
def test_a_certificate_with_no_number_for_a_radius_is_named(
    copy: Path, capsys: pytest.CaptureFixture[str], radius: str
) -> None:
    (text,) = [row[2] for row in rows(copy) if row[0] == 8]
    stored = json.loads(text)["radius"]
    spoilt = text.replace(f'"radius": {stored!r}', f'"radius": {radius}')
    assert spoilt != text
    change(copy, "UPDATE images SET certificate = ? WHERE image_index = 8", spoilt)
    for command in (["verify"], ["report"], ["export"]):
        assert run([*command, str(copy)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(
            f"diffproof: error: run: the store in {copy} is corrupt: image 8: certificate: not readable"
        )
        assert error.count("\n") == 1


def test_unfinished_runs_say_so(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(copy, "DELETE FROM images WHERE image_index = 32")
    assert run(["verify", str(copy), "--trust"]) == 0
    assert "4 of 5 images are finished" in capsys.readouterr().out
    assert run(["export", str(copy)]) == 0
    assert capsys.readouterr().err == f"diffproof: warning: {copy}: 4 of 5 images are finished\n"


@pytest.mark.slow
@pytest.mark.parametrize("field", ["counts", "selection_counts"])
def test_only_drawing_again_catches_consistent_lies(
    copy: Path, capsys: pytest.CaptureFixture[str], field: str
) -> None:
    counts = shifted(copy, 0, field, 3)
    rewrite(copy, 0, **{field: counts})
    with CertifyStore.reading(copy) as store:
        proved = store.results()[0].certificate.recompute()
    label = json.loads(rows(copy)[0][2])["selected"] if proved.radius > 0 else None
    numbers = {"p_a_lower": proved.p_a_lower, "p_b_upper": proved.p_b_upper, "radius": proved.radius}
    rewrite(copy, 0, **numbers, label=label)
    assert run(["verify", str(copy), "--trust"]) == 0
    capsys.readouterr()
    assert run(["verify", str(copy), "--resample", "1", "--trust"]) == 1
    # 3 of 120 draws moved.
    assert "image 0: drawn again, at least 3 of 120 draws fell otherwise" in capsys.readouterr().out


def test_verify_refuses(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resample: expected a number ≥ 0, got -1"):
        verify(small_run, resample=-1, places=TRUSTED)
    with pytest.raises(ValueError, match="is no run folder"):
        verify(tmp_path, places=TRUSTED)


# Stores that are not what they should be


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DROP TABLE images", "no such table: images"),
        ("DROP TABLE settings", "no such table: settings"),
        ("DELETE FROM settings", "it holds no settings"),
        ("UPDATE settings SET json = '{'", "Expecting property name"),
        ("UPDATE settings SET json = '5'", "expected names with values, got 5"),
        ("UPDATE settings SET json = '{\"x\": 1}'", "settings: unknown name 'x'"),
        ("ALTER TABLE settings DROP COLUMN weights_hash", "no such column: weights_hash"),
        ("UPDATE images SET certificate = 'x'", "certificate: not readable"),
        ("UPDATE images SET certificate = '[]'", "certificate: not readable"),
        ("UPDATE images SET certificate = '{}'", "certificate: not readable"),
    ],
)
def test_a_corrupt_store_is_named(copy: Path, statement: str, message: str) -> None:
    change(copy, statement)
    with pytest.raises(ValueError, match=f"^run: the store in .*copy is corrupt: .*{re.escape(message)}"):
        load_report([copy], [0.0])


@pytest.mark.parametrize("tally", ["{", "5", "{}", '{"counts": [1], "other": 2}'])
def test_a_corrupt_partial_tally_is_named(copy: Path, denoiser: Path, tally: str) -> None:
    change(copy, "DELETE FROM images WHERE image_index = 8")
    change(copy, "INSERT INTO partial VALUES (8, 'estimation', ?, 1.0)", tally)
    with CertifyStore.reading(copy) as store, pytest.raises(ValueError, match=r"the store in .* is corrupt"):
        store.partial(8)


def test_a_classifier_of_other_classes_is_refused(tmp_path: Path) -> None:
    tensors, description = load_weights(packaged("classifier")["digits"])
    path = tmp_path / "seven.safetensors"
    cut = {name: t[:7] if name.startswith("head") else t for name, t in tensors.items()}
    save_weights(path, cut, {**description, "num_classes": 7})
    settings = CertifySettings(seed=0, data="digits", classifier=str(path), defense="none", sigma=0.5)
    with pytest.raises(ValueError, match="classifier: has 7 classes, but digits has 10"):
        prepare(settings)
