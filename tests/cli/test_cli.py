"""What the command line makes of bad input: one line, exit status 2, and nothing written."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import norm

from diffproof.cli.main import main, run
from diffproof.runs.certify import job as certify
from diffproof.runs.settings import CertifySettings
from diffproof.weights import load_weights, packaged, save_weights
from helpers.command_line import Refused
from helpers.files import Trap, tree
from helpers.processes import outcome
from helpers.runs import PLAIN, certify_flags, change, rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": 0}, "sigma: expected a finite number > 0, got 0.0"),
        ({"sigma": -0.5}, "sigma: expected a finite number > 0, got -0.5"),
        ({"sigma": "nan"}, "sigma: expected a finite number > 0, got nan"),
        ({"sigma": "inf"}, "sigma: expected a finite number > 0, got inf"),
        ({"sigma": "half"}, "Invalid value for '--sigma': 'half' is not a valid float."),
        ({"sigma": 1e6}, "sigma: expected levels·sigma ≤ 2048, got 255·1e+06"),
        ({"sigma": 1, "levels": 4096}, "levels: expected levels·sigma ≤ 2048, got 4096·1"),
        ({"sigma": 1e6, "noise": "continuous"}, "(the denoiser's range), got 1e+06"),
        ({"sigma": 1e-6}, "(the denoiser's range), got 1e-06"),
        ({"steps": 0}, "steps: expected an integer ≥ 1, or full, got '0' (of defense densepure)"),
        ({"steps": -3}, "steps: expected an integer ≥ 1, or full, got '-3'"),
        ({"steps": "all"}, "steps: expected an integer ≥ 1, or full, got 'all'"),
        ({"steps": 999}, "levels up to sigma = 0.25, got 999 steps"),
        ({"votes": 0}, "votes: expected an integer ≥ 1, got '0'"),
        ({"consensus": 0}, "consensus: expected an integer ≥ 1, or none, got '0'"),
        ({"consensus": 6}, "consensus: expected consensus ≤ votes = 5, got 6"),
        ({"n0": 0}, "n0: expected an integer ≥ 1, got 0"),
        ({"n": 0}, "n: expected an integer ≥ 1, got 0"),
        ({"n": -1}, "n: expected an integer ≥ 1, got -1"),
        ({"n": "1e4"}, "Invalid value for '--n': '1e4' is not a valid integer."),
        ({"alpha": 0}, "alpha: expected a number in (0, 1), got 0.0"),
        ({"alpha": 1}, "alpha: expected a number in (0, 1), got 1.0"),
        ({"alpha": "nan"}, "alpha: expected a number in (0, 1), got nan"),
        ({"seed": -1}, "seed: expected 0 ≤ seed < 2^64, got -1"),
        ({"seed": 2**64}, f"seed: expected 0 ≤ seed < 2^64, got {2**64}"),
        ({"batch_size": 0}, "--batch-size: expected an integer ≥ 1, got 0"),
        ({"data": "digit"}, "data: unknown name 'digit'; did you mean digits?"),
        ({"data": "imagenets"}, "data: unknown name 'imagenets'; did you mean imagenet or digits?"),
        ({"split": "tests"}, "split: unknown name 'tests'; did you mean test?"),
        ({"denoiser": "digts"}, "denoiser: unknown name 'digts'; did you mean digits?"),
        ({"denoiser": None}, "denoiser: the method 'densepure' needs one"),
        ({"classifier": "digitz"}, "classifier: unknown name 'digitz'; did you mean digits?"),
        ({"classifier": "x/y"}, "weights: no such file: x/y"),
        ({"classifier": "."}, "classifier: . is a folder; expected a file, or hf:. for a transformers model"),
        ({"defense": "dense-pure"}, "defense: unknown name 'dense-pure'; did you mean densepure"),
        ({"defense": "ddS"}, "defense: unknown name 'ddS'; did you mean dds?"),
        ({"step_rule": "log"}, "step_rule: expected authors, paper or log-sigma, got 'log'"),
        (
            {"bound": "twosided"},
            "--bound: expected one of one-sided, two-sided, pixeldp, got 'twosided'; did you mean two-sided",
        ),
        (
            {"precision": "float16"},
            "--precision: expected one of float32, bfloat16, got 'float16'; did you mean bfloat16",
        ),
        ({"device": "cpu0"}, "device: expected auto, cpu, cuda, cuda:N or mps, got 'cpu0'"),
        ({"indices": "0:515"}, "indices: the data has 514 images (0 to 513), got '0:515'"),
        ({"indices": "514"}, "indices: the data has 514 images (0 to 513), got '514'"),
        ({"indices": "5:5"}, "indices: expected 0 ≤ start < stop and step ≥ 1, got '5:5'"),
        ({"indices": ""}, "indices: expected start:stop or start:stop:step, got ''"),
        ({"indices": "a:b"}, "indices: expected start:stop or start:stop:step, got 'a:b'"),
        ({"data": None}, "Missing option '--data'."),
        ({"classifier": None}, "classifier: the method 'densepure' needs one, got None"),
        ({"defense": None}, "Missing option '--defense'."),
        ({"sigma": None}, "Missing option '--sigma'."),
        ({"voets": 3}, "No such option '--voets'"),
        ({"config": "none.yaml"}, "config: cannot read none.yaml"),
    ],
)
def test_certify_refuses_flags(
    refused: Refused, denoiser: Path, changes: dict[str, object], message: str
) -> None:
    assert message in refused(certify_flags(Path("out/run"), **{"denoiser": denoiser, **changes}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_certify_refuses_a_missing_device(refused: Refused) -> None:
    message = refused(certify_flags(Path("out"), **PLAIN, device="cuda"))
    assert message == "--device: there is no CUDA device, got 'cuda'; cpu and auto always work"


def test_certify_needs_out(refused: Refused) -> None:
    arguments = certify_flags(Path("out"), **PLAIN)[:-2]
    assert arguments[-2] != "--out"
    assert refused(arguments) == "Missing option '--out'."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sigmas: 0.5", "config: unknown name 'sigmas'; did you mean sigma or scales or image_size?"),
        ("help: 1", "config: unknown name 'help'; did you mean ship or held_out?"),
        ("- sigma", "config: expected names and values in c.yaml, got list"),
        ("", "config: expected names and values in c.yaml, got"),
        ("sigma: [0.25, 0.5]", "config: expected one value for sigma, got ['0.25', '0.5']"),
        ("sigma: 1\nsigma: 2", "config: cannot read c.yaml: sigma is given twice"),
        ("defense: {name: dds, name: none}", "config: cannot read c.yaml: name is given twice"),
        ("defense: {steps: 3}", "config: defense: expected its name as a text under name, got None"),
        ("defense: {name: [dds]}", "config: defense: expected its name as a text under name, got ['dds']"),
        ("defense: {name: densepure, steps: '2,votes=3'}", "config: steps: expected an integer"),
        ("defense: {name: dds, 'sigma=3,eta': 1}", "config: sigma=3,eta: no setting of the defense"),
        (
            "defense: {name: densepure, steps: {a: 1}}",
            "config: steps: expected an integer ≥ 1, or full, got {'a'",
        ),
        (
            "defense: {name: 'densepure:steps=2', votes: 3}",
            "config: defense: expected name to be a name alone",
        ),
        ("sigma: {a: 1}", "config: expected one value for sigma, got {'a': '1'}"),
        ("sigma: '", "config: cannot read c.yaml: while scanning a quoted scalar"),
        ("sigma: !!python/object/apply:os.mkdir [ran]", "config: expected one value for sigma"),
        ("sigma: half", "sigma in c.yaml: 'half' is not a valid float."),
        ("sigma: 0.5\nn: 1.5", "n in c.yaml: '1.5' is not a valid integer."),
        ("sigma: 0.5\nn: true", "n in c.yaml: 'true' is not a valid integer."),
        ("sigma: 0.5\ndefense: densepure", "denoiser: the method 'densepure' needs one"),
        (
            "sigma: 0.5\ndefense: {name: dds, steps: 3}",
            "steps: no setting of the defense 'dds'",
        ),
        ("sigma: 0.5\nindices: ''", "indices in c.yaml: expected start:stop or start:stop:step, got ''"),
        ("sigma: 0.5\nindices: 10:99", "indices in c.yaml: expected"),
    ],
)
def test_certify_refuses_configs(refused: Refused, text: str, message: str) -> None:
    Path("c.yaml").write_text(text)
    if text.endswith("10:99"):
        Path("c.yaml").write_text(text.replace("10:99", "99:10"))
    flags = certify_flags(
        Path("out"), **{**PLAIN, "sigma": None, "defense": None, "n": None, "indices": None}
    )
    if "defense" not in text:
        flags += ["--defense", "none"]
    assert message in refused([*flags, "--config", "c.yaml"])


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x00"])
def test_certify_refuses_a_config_that_is_no_text(refused: Refused, content: bytes) -> None:
    Path("c.yaml").write_bytes(content)
    assert "config: cannot read c.yaml" in refused(
        [*certify_flags(Path("out"), **PLAIN), "--config", "c.yaml"]
    )


# Weights


Change = Callable[[str, torch.Tensor], torch.Tensor]


def edited(source: Path, how: Change, entries: dict[str, object]) -> str:
    """A copy of weights with other tensors and description."""
    tensors, description = load_weights(source)
    changed = {name: how(name, tensor) for name, tensor in tensors.items()}
    save_weights(Path("edited.safetensors"), changed, {**description, **entries})
    return "edited.safetensors"


def same(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def nan(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor


def seven_classes(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:7] if name.startswith("head") else tensor


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tensors", "entries", "message"),
    [
        ("classifier", seven_classes, {"num_classes": 7}, "classifier: has 7 classes, but digits has 10"),
        (
            "classifier",
            same,
            {"num_classes": 7},
            "does not fit the network: misshapen head.weight, head.bias",
        ),
        ("classifier", seven_classes, {}, "does not fit the network: misshapen head.weight, head.bias"),
        ("classifier", nan, {}, "does not fit the network: not finite features.0.weight, "),
        ("denoiser", nan, {}, "does not fit the network: not finite unet.conv_in.weight, "),
        (
            "classifier",
            same,
            {"image_shape": [1, 16, 16]},
            "takes (1, 16, 16) images, but the denoiser gives",
        ),
        (
            "classifier",
            same,
            {"image_shape": [3, 8, 8]},
            "description is wrong: mean, std: expected 3 values",
        ),
        ("classifier", same, {"width": -1}, "classifier: the weights file's description is wrong: "),
        (
            "classifier",
            same,
            {"width": "16"},
            "width: expected an integer ≥ 1, got '16'",
        ),
        ("classifier", same, {"num_classes": 10**9}, "num_classes: expected at most 1048576, got 1000000000"),
        ("classifier", same, {"std": [0.0]}, "std: expected positive values, got [0.0]"),
        ("classifier", same, {"kind": "denoiser"}, "this one describes denoiser"),
        ("denoiser", same, {"kind": "guide"}, "this one describes guide"),
        ("denoiser", same, {"schedule": {"name": "x"}}, "schedule: unknown name 'x'; known: cosine"),
        (
            "denoiser",
            same,
            {"prediction": "noise"},
            "prediction: expected one of epsilon, sample, v_prediction",
        ),
        ("denoiser", same, {"null_label": 11}, "null_label: expected 0 ≤ null_label < 11, got 11"),
        ("denoiser", same, {"network": {}}, "the weights file's description is wrong: "),
    ],
)
def test_certify_refuses_weights_that_do_not_fit(
    refused: Refused,
    denoiser: Path,
    kind: str,
    tensors: Change,
    entries: dict[str, object],
    message: str,
) -> None:
    source = packaged("classifier")["digits"] if kind == "classifier" else denoiser
    path = edited(source, tensors, entries)
    assert message in refused(certify_flags(Path("out"), **{"denoiser": denoiser, kind: path}))


def test_a_classifier_of_other_images_is_refused_without_a_denoiser_too(refused: Refused) -> None:
    path = edited(packaged("classifier")["digits"], same, {"image_shape": [1, 16, 16]})
    message = refused(certify_flags(Path("out"), **PLAIN, classifier=path))
    assert message.startswith("images: the model takes 1×16×16 (channels×height×width), got 1×8×8")
    assert message.endswith("; --image-size 16 brings pictures of files there")


@pytest.mark.parametrize("flag", ["classifier", "denoiser"])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("content", ["empty", "half", "random"])
def test_certify_refuses_damaged_weights(
    refused: Refused, denoiser: Path, flag: str, name: str, content: str
) -> None:
    whole = denoiser.read_bytes()
    contents = {"empty": b"", "half": whole[: len(whole) // 2], "random": bytes(range(256)) * 9}
    Path(name).write_bytes(contents[content])
    message = refused(certify_flags(Path("out"), **{"denoiser": denoiser, flag: name}))
    assert message.startswith(f"--{flag}: weights: {name} is ")


@pytest.mark.parametrize("flag", ["classifier", "denoiser"])
def test_certify_refuses_a_pickle_with_code(refused: Refused, denoiser: Path, flag: str) -> None:
    torch.save({"a": Trap(Path("ran"))}, "w.pt")
    message = refused(certify_flags(Path("out"), **{"denoiser": denoiser, flag: "w.pt"}))
    assert "w.pt is a pickle that holds code" in message
    assert not Path("ran").exists()


@pytest.mark.parametrize("parts", [(), ("unet",)])
def test_certify_refuses_a_folder_that_is_no_pipeline(refused: Refused, parts: tuple[str, ...]) -> None:
    Path("model", *parts).mkdir(parents=True)
    assert "unet/config.json is missing" in refused(certify_flags(Path("out"), denoiser="model"))


# Where to write


def test_certify_refuses_a_file_as_folder(refused: Refused) -> None:
    Path("out").write_text("precious")
    assert refused(certify_flags(Path("out"), **PLAIN)) == "--out: out is a file, expected a folder"
    line = "--out: cannot make the run folder out/deeper: Not a directory"
    assert refused(certify_flags(Path("out/deeper"), **PLAIN)) == line


@pytest.mark.parametrize("name", ["thesis.tex", "settings.yml", "results.sqlite-wal"])
def test_certify_refuses_a_folder_with_other_files(refused: Refused, name: str) -> None:
    Path("out").mkdir()
    Path("out", name).write_text("precious")
    message = refused(certify_flags(Path("out"), **PLAIN))
    assert message == "--out: out holds other files and is no run folder"


@pytest.mark.parametrize("place", ["/proc/run", "/proc/self/run", "/dev/null/run"])
def test_commands_refuse_places_that_cannot_be_written(refused: Refused, small_run: Path, place: str) -> None:
    reason = "Not a directory" if place.startswith("/dev") else "No such file or directory"
    line = f"--out: cannot make the run folder {place}: {reason}"
    assert refused(certify_flags(Path(place), **PLAIN)) == line
    networks = "--denoiser digits --classifier digits --defense diffpure:t_star=0.1,steps=1"
    attack = f"attack --data digits --limit 1 {networks} --threat linf --budget 0.1 --out {place}"
    assert refused(attack.split()) == line
    refused(["report", str(small_run), "--out", place])
    refused(["export", str(small_run), "--out", place])
    assert not Path(place).exists()


def test_train_refuses_a_place_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", "digits", "--width", "2", "--iterations", "1", "--out", "/proc/w.safetensors"]
    assert run(["train", "classifier", *flags]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if " steps " not in line]
    assert len(lines) == 1
    assert lines[0].startswith("diffproof: error: ")
    assert "/proc/w.safetensors" in lines[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(bytes(range(256)) * 64),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.write_bytes(path.read_bytes()[:-4096]),
        lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\x99" * 4096 + path.read_bytes()[8192:]),
        lambda path: change(path.parent, "DROP TABLE images"),
        lambda path: change(path.parent, "DROP TABLE settings"),
        lambda path: change(path.parent, "DELETE FROM settings"),
        lambda path: change(path.parent, "UPDATE settings SET json = 'x'"),
    ],
)
def test_every_command_names_a_corrupt_store(
    refused: Refused, small_run: Path, denoiser: Path, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(small_run, "run")
    damage(Path("run/results.sqlite"))
    for arguments in (
        certify_flags(Path("run"), denoiser=denoiser),
        ["report", "run"],
        ["report", "run", "--out", "report"],
        ["export", "run"],
        ["export", "run", "--out", "run.tsv"],
        ["verify", "run"],
    ):
        name = "--out" if arguments[0] == "certify" else "run"
        assert refused(arguments).startswith(f"{name}: the store in run is corrupt: "), arguments


@pytest.mark.parametrize("command", ["report", "export", "verify"])
def test_commands_refuse_what_is_no_run(refused: Refused, command: str) -> None:
    Path("empty").mkdir()
    Path("file").write_text("")
    for name in ("empty", "file", "nowhere"):
        assert refused([command, name]) == f"run: {name} is no run folder (results.sqlite is missing)"
    assert refused([command]).startswith("Missing argument 'RUN")


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("0,0.5,0", "--at: expected each radius once, got '0,0.5,0'"),
        ("٣", "--at: expected numbers with commas between, got '٣'"),
        ("garbage", "--at: expected numbers with commas between, got 'garbage'"),
        ("", "--at: expected numbers with commas between, got ''"),
        ("0,,1", "--at: expected numbers with commas between, got '0,,1'"),
        ("-1", "--at: expected radii ≥ 0, got [-1.0]"),
        ("0,nan", "--at: expected radii ≥ 0, got [0.0, nan]"),
        ("inf", "--at: expected radii ≥ 0, got [inf]"),
    ],
)
def test_report_refuses_radii(refused: Refused, small_run: Path, at: str, message: str) -> None:
    assert refused(["report", str(small_run), "--at", at, "--out", "report"]) == message


def test_a_run_without_a_finished_image_has_no_report(refused: Refused, small_run: Path) -> None:
    shutil.copytree(small_run, "run")
    change(Path("run"), "DELETE FROM images")
    assert refused(["report", "run"]) == "run: run has no finished image yet"
    assert refused(["verify", "run"]) == "run: run has no finished image yet"


def test_verify_refuses(refused: Refused, small_run: Path) -> None:
    assert (
        refused(["verify", str(small_run), "--resample", "-1"]) == "--resample: expected a number ≥ 0, got -1"
    )
    message = refused(["verify", str(small_run), "--trust", "--device", "gpu"])
    assert message == "--device: expected auto, cpu, cuda, cuda:N or mps, got 'gpu'"


@pytest.mark.slow
def test_verify_without_its_weights(refused: Refused, denoiser: Path) -> None:
    shutil.copy(denoiser, "w.safetensors")
    assert run(certify_flags(Path("run"), denoiser="w.safetensors", indices="0", n=10)) == 0
    Path("w.safetensors").unlink()
    assert refused(["verify", "run", "--trust"]) == "--denoiser: weights: no such file: w.safetensors"
    # A report needs no weights.
    assert run(["report", "run"]) == 0


def test_export_refuses(refused: Refused, small_run: Path) -> None:
    message = refused(["export", str(small_run), "--format", "xml", "--out", "run.xml"])
    assert message == "--format: unknown name 'xml'; known: cohen, csv, json, robustbench"
    Path("run.tsv").write_text("precious")
    arguments = ["export", str(small_run), "--out", "run.tsv"]
    assert refused(arguments) == "--out: run.tsv exists; --force overwrites it"
    assert run([*arguments, "--force"]) == 0
    assert Path("run.tsv").read_text().startswith("idx\tlabel\tpredict\tradius\tcorrect\ttime\n")
    Path("folder").mkdir()
    arguments = ["export", str(small_run), "--out", "folder", "--force"]
    assert refused(arguments) == "--out: folder is a folder, expected to write a file there"


def test_export_writes_into_pipes_and_not_through_links_to_files(
    refused: Refused, tmp_path: Path, small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(small_run)]) == 0
    expected = capsys.readouterr().out
    Path("target.tsv").write_text("precious")
    Path("link.tsv").symlink_to("target.tsv")
    for force in ([], ["--force"]):
        line = refused(["export", str(small_run), "--out", "link.tsv", *force])
        assert line == "--out: link.tsv is a link, which is not followed"
    assert Path("target.tsv").read_text() == "precious"
    pipe, link = tmp_path / "pipe", tmp_path / "led"
    os.mkfifo(pipe)
    link.symlink_to("pipe")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        for out in (pipe, link):
            assert run(["export", str(small_run), "--out", str(out), "--force"]) == 0
            assert os.read(reader, 1 << 16).decode() == expected
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {"target.tsv", "link.tsv", "pipe", "led"}


@pytest.mark.parametrize("there", ["table.csv", "curve.png"])
def test_report_overwrites_only_with_force(refused: Refused, small_run: Path, there: str) -> None:
    Path("report").mkdir()
    Path("report", there).write_text("precious")
    Path("report", "notes.txt").write_text("mine")
    arguments = ["report", str(small_run), "--out", "report"]
    assert refused(arguments) == f"--out: report/{there} exists; --force overwrites it"
    assert run([*arguments, "--force"]) == 0
    assert {path.name for path in Path("report").iterdir()} == {"table.csv", "curve.png", "notes.txt"}
    assert b"precious" not in Path("report", there).read_bytes()
    assert Path("report/notes.txt").read_text() == "mine"


def test_report_refuses_a_file_as_folder(refused: Refused, small_run: Path) -> None:
    Path("report").write_text("precious")
    assert "report" in refused(["report", str(small_run), "--out", "report"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["certfy"], "No such command 'certfy'"),
        (["--verbose"], "No such option '--verbose'"),
        (["train", "guides"], "No such command 'guides'"),
        (["report", "a", "--bogus"], "No such option '--bogus'"),
        (["export", "a", "b"], "Got unexpected extra argument (b)"),
        (["verify", "a", "--resample", "x"], "Invalid value for '--resample': 'x' is not a valid integer."),
    ],
)
def test_unknown_commands_and_flags(refused: Refused, arguments: list[str], message: str) -> None:
    assert message in refused(arguments)


# What is said when all is well, or nearly


def test_certify_says_what_it_did(
    tmp_path: Path, denoiser: Path, small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(small_run, tmp_path / "run")
    assert run(certify_flags(folder, denoiser=denoiser)) == 0
    lines = capsys.readouterr().out.splitlines()
    largest = 0.25 * norm.ppf(0.001 ** (1 / 100))
    assert lines[0].startswith("densepure:steps=2,votes=5, sigma = 0.25: 5 images, certified accuracy ")
    assert lines[0].endswith(f"(n = 100 and alpha = 0.001 allow radii up to {largest:.4f})")
    assert lines[1] == "radii hold for images in steps of 1/240; for any other, less 0.017"
    assert lines[2] == "the seed 3 was given: what is certified holds if the base classifier does not know it"
    # 5 images of 120 draws: K·b = 10 denoiser and K = 5 classifier evaluations each, had all been made.
    assert " instead of 6,000 (" in lines[3]
    assert " instead of 3,000 (" in lines[3]
    assert lines[4:] == [f"run folder: {folder}"]


@pytest.mark.parametrize(("n", "warns"), [(9, True), (10, False)])
def test_too_few_draws_for_any_radius_warn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], n: int, warns: bool
) -> None:
    # alpha^(1/n) > ½ needs n ≥ log2(1/0.001) = 9.97 draws.
    assert run(certify_flags(tmp_path / "run", **PLAIN, n=n, indices="0")) == 0
    captured = capsys.readouterr()
    warned = [line for line in captured.err.splitlines() if line.startswith("diffproof: warning: ")]
    limit = f"n = {n} and alpha = 0.001 allow radii up to {max(0.0, 0.25 * norm.ppf(0.001 ** (1 / n))):.4f}"
    expected = [f"diffproof: warning: {limit}: n is too small to certify any radius"] if warns else []
    assert warned == expected
    assert limit in captured.out


def test_a_failed_verification_has_exit_status_1(
    tmp_path: Path, small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(small_run, tmp_path / "run")
    change(folder, "UPDATE images SET true_label = 9 - true_label WHERE image_index = 16")
    assert run(["verify", str(folder), "--trust"]) == 1
    captured = capsys.readouterr()
    seed, first, *_, last = captured.out.splitlines()
    assert seed.startswith("the seed 3 was given: ")
    assert (first, last) == ("image 16: the data gives another true label", "1 failure in 5 certificates")
    assert captured.err == ""


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert "certify" in capsys.readouterr().err
    assert run(["--help"]) == 0
    assert "diffproof certify --data digits" in capsys.readouterr().out
    assert run(["--version"]) == 0
    assert "0.1.0" in capsys.readouterr().out


def test_main_exits_with_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["diffproof", "verify", "nowhere"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2


def in_a_process(*arguments: str, program: str) -> tuple[int, str]:
    """Exit status and standard error of a real process."""
    words = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.slow
def test_real_processes_end_in_one_line(tmp_path: Path, small_run: Path) -> None:
    """Two that end as Python does, forked from one that has loaded all, for whose start one must wait."""
    program = """
import json, os, sys
from diffproof.cli import main
import diffproof.cli.main
outputs, *lines = json.loads(sys.argv.pop())
for output, line in zip(outputs, lines, strict=True):
    if not os.fork():
        os.dup2(os.open(output, os.O_WRONLY), 1)
        sys.argv = ["diffproof", *line]
        break
    print(os.waitstatus_to_exitcode(os.wait()[1]), file=sys.stderr)
else:
    sys.exit()
main()
"""
    out = tmp_path / "out"
    lines = [certify_flags(out, **PLAIN, sigma=-1), ["export", str(small_run)]]
    status, err = in_a_process(json.dumps([["/dev/null", "/dev/full"], *lines]), program=program)
    assert status == 0
    assert err.splitlines() == [
        "diffproof: error: --sigma: expected a finite number > 0, got -1.0",
        "2",
        "diffproof: error: standard output: [Errno 28] No space left on device",
        "2",
    ]
    assert not out.exists()


def test_settings_that_a_network_cannot_take_end_in_one_line(
    tmp_path: Path, denoiser: Path, refused: Refused
) -> None:
    assert refused(certify_flags(tmp_path / "out", denoiser=denoiser, steps=999)).startswith(
        "--defense: steps: "
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", ["export", "report"])
def test_a_full_disk_costs_no_old_file(tmp_path: Path, small_run: Path, command: str) -> None:
    out = tmp_path / "out"
    assert run([command, str(small_run), "--out", str(out)]) == 0
    before = tree(tmp_path)

    def with_limit() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        return run([command, str(small_run), "--out", str(out), "--force"])

    status, err = outcome(with_limit)
    assert status == 2
    assert err.startswith("diffproof: error: ")
    assert "File too large" in err
    assert err.count("\n") == 1
    assert tree(tmp_path) == before


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_outputs_take_nothing_from_a_run(tmp_path: Path, closed: tuple[int, ...]) -> None:
    """As a shell's >&- and 2>&-: else the store is the next file to be opened, and gets their numbers."""
    out = tmp_path / "out"

    def work() -> int:
        for number in closed:
            os.close(number)
            setattr(sys, ("stdin", "stdout", "stderr")[number], None)
        sys.argv = ["diffproof", *certify_flags(out, **PLAIN, n=10, indices="0:2")]
        try:
            main()
        except SystemExit as ended:
            os.write(2, b"below the store")
            return int(str(ended.code))
        return 70

    assert outcome(work)[0] == 0
    assert len(rows(out)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("coding", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_screens_without_utf_8_get_question_marks(
    tmp_path: Path, small_run: Path, coding: dict[str, str]
) -> None:
    words = [sys.executable, "-m", "diffproof", "report", str(small_run), "--at", "0,1"]
    done = subprocess.run(words, capture_output=True, env={**os.environ, **coding}, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"?=0" in done.stdout
    assert done.stdout.isascii()


@pytest.mark.slow
def test_a_current_directory_that_is_gone_is_one_line(tmp_path: Path) -> None:
    gone = f"import os; os.chdir({str(tmp_path)!r}); os.rmdir({str(tmp_path)!r})\n"
    program = gone + "from diffproof.cli.main import main\nmain()"
    status, err = in_a_process(*certify_flags(Path("/nowhere"), **PLAIN), program=program)
    line = "diffproof: error: the current directory is gone (No such file or directory); change to one\n"
    assert (status, err) == (2, line)


@pytest.mark.slow
def test_no_memory_for_the_batch_halves_it_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process in an address space that is too small for the batch asked for."""
    prepare, flags = certify.prepare, {**PLAIN, "n": 15_000, "indices": "0"}

    def limited(settings: CertifySettings, **given: Any) -> certify.CertifyRun:
        job = prepare(settings, **given)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 48 * 2**20, resource.RLIM_INFINITY))
        return job

    def work() -> int:
        # M_ARENA_MAX: the arena of a thread takes 64 MB of addresses, or none, as the threads happen to run.
        ctypes.CDLL(None).mallopt(-8, 1)
        monkeypatch.setattr(certify, "prepare", limited)
        return run(certify_flags(tmp_path / "run", **flags, batch_size=15_000))

    # 15,000 draws in one batch take over 50 MB for one layer; the halves of them soon fit.
    status, err = outcome(work)
    assert status == 0, err
    lines = [line for line in err.splitlines() if " evaluations" not in line]
    assert lines
    said = "diffproof: warning: no memory for the batch: going on with "
    assert [line for line in lines if not line.startswith(said)] == []
    assert run(certify_flags(tmp_path / "whole", **flags, batch_size=1000)) == 0
    halved, whole = (json.loads(rows(tmp_path / name)[0][2]) for name in ("run", "whole"))
    assert halved["n"] == whole["n"] == sum(halved["counts"]) == 15_000
    # The same draws; a convolution rounds otherwise in another batch shape, which may turn a tie.
    moved = sum(abs(a - b) for a, b in zip(halved["counts"], whole["counts"], strict=True)) // 2
    assert moved <= 3


def test_the_store_is_plain_sqlite(small_run: Path) -> None:
    connection = sqlite3.connect(small_run / "results.sqlite")
    try:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    finally:
        connection.close()
    of_results = {"settings", "images", "partial", "planned", "part", "work", "ballots"}
    assert {name for (name,) in names} == of_results | {"progress", "efforts", "workers", "failures"}
