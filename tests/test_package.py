"""The package as a whole: what importing it loads, its names, its command line's texts, its weights."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
import yaml

import diffproof as dp
from diffproof.cli.main import diffproof as command_group
from diffproof.cli.main import run
from diffproof.optional import BESIDE
from diffproof.weights import load_weights, packaged
from helpers.command_line import words
from helpers.paths import ROOT

HEAVY = ("diffusers", "sklearn", "matplotlib", "click", "rich", "torch", "scipy", "filelock", "yaml")


def loaded_by(statement: str) -> set[str]:
    """Modules that a fresh interpreter holds after a statement."""
    program = (
        "import sys, json, io, contextlib\n"
        "with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):\n"
        f"    {statement}\n"
        "print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("import diffproof").intersection(HEAVY)


@pytest.mark.slow
def test_certifying_digits_loads_no_library_that_it_does_not_need(tmp_path: Path) -> None:
    networks = {"data": "digits", "denoiser": "digits", "classifier": "digits", "defense": "dds"}
    line = words("certify", **networks, sigma=0.5, indices=0, n0=1, n=1, out=tmp_path / "run")
    loaded = loaded_by(f"from diffproof.cli.main import run; assert run({line}) == 0")
    assert {"torch", "scipy.special", "diffproof.smoothing.smoothed"} <= loaded
    # Each takes as long to import as a good part of torch.
    heavy = {
        "diffusers",
        "sklearn",
        "matplotlib",
        "scipy.stats",
        "scipy.optimize",
        "PIL",
        "pandas",
        "transformers",
    }
    assert not loaded & {*heavy, "torch._dynamo", "torch.distributed.fsdp", "sympy", "diffproof.attacks"}


def test_a_folder_that_cannot_be_had_is_refused_without_torch(tmp_path: Path) -> None:
    flags = {"data": "digits", "classifier": "digits", "defense": "none", "out": tmp_path / "taken"}
    lines = [words("certify", **flags, sigma=0.5), words("attack", **flags, threat="linf", budget=0.1)]
    (tmp_path / "taken").touch()
    loaded = loaded_by(
        f"from diffproof.cli.main import run; assert [run(line) for line in {lines}] == [2, 2]"
    )
    assert "diffproof.runs.folder" in loaded
    assert "torch" not in loaded


def test_help_loads_only_click() -> None:
    lines = [
        [],
        ["--help"],
        ["--version"],
        ["certify", "--help"],
        ["report", "--help"],
        ["methods"],
        ["methods", "gdmp"],
        ["train", "denoiser", "-h"],
        ["completion", "bash"],
    ]
    # One after the other: none of them loads more.
    loaded = loaded_by(
        f"from diffproof.cli.main import run; assert [run(line) for line in {lines}] == [2, *[0] * 8]"
    )
    assert "click" in loaded
    assert not loaded.intersection(set(HEAVY) - {"click"})


def test_completing_loads_only_click(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_DIFFPROOF_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "diffproof certify --defense dense")
    monkeypatch.setenv("COMP_CWORD", "3")
    statement = "from diffproof.cli.main import run\n    with contextlib.suppress(SystemExit): run([])"
    loaded = loaded_by(statement)
    assert "diffproof.catalog" in loaded
    assert not loaded.intersection({*HEAVY, "numpy"} - {"click"})


@pytest.mark.slow
def test_status_loads_no_network_library(tmp_path: Path) -> None:
    line = words("certify", data="digits", classifier="digits", defense="none", sigma=1, indices=0, n0=1, n=1)
    assert run([*line, "--out", str(tmp_path / "run")]) == 0
    loaded = loaded_by(
        f"from diffproof.cli.main import run; assert run(['status', {str(tmp_path / 'run')!r}]) == 0"
    )
    assert "diffproof.runs.status" in loaded
    assert not loaded.intersection({*HEAVY, "numpy"} - {"click", "rich"})


def test_every_public_name_resolves() -> None:
    assert len(dp.__all__) == len(set(dp.__all__)) >= 15
    for name in dp.__all__:
        thing = getattr(dp, name)
        assert getattr(thing, "__name__", None) == name
        assert thing.__module__.startswith("diffproof.")
        assert thing.__doc__, name
    assert dir(dp) == sorted(dp.__all__)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'diffproof' has no attribute 'DensPure'"):
        _ = dp.DensPure


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for child, sub in command.commands.items():
            yield from commands(sub, f"{name} {child}")


@pytest.mark.parametrize(("name", "command"), list(commands(command_group, "diffproof")))
def test_every_command_and_flag_is_documented(name: str, command: click.Command) -> None:
    assert command.help
    assert command.help.strip().splitlines()[0].endswith("."), f"{name}: {command.help}"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"
            sentence = re.sub(r" \[default: [^]]*\]$", "", parameter.help)
            assert sentence.endswith("."), f"{name} {parameter.name}: {parameter.help}"


def packaged_files() -> list[tuple[str, Path]]:
    return [(kind, packaged(kind).get("digits", Path("missing"))) for kind in ("denoiser", "classifier")]


def test_errors_name_extras_that_have_what_is_missing() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    # Libraries whose names on PyPI are others, or that come with another.
    other = {"pytorch_msssim": "pytorch-msssim", "psutil": "ray"}
    asked = set[tuple[str, str]]()
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        asked |= {*re.findall(r'import_optional\("(\w+)[\w.]*", "(\w+)"\)', text)}
    assert {("transformers", "hf"), ("ray", "ray")} <= asked
    for module, extra in asked:
        names = {re.split(r"[<>=;]", one)[0] for one in extras[extra]}
        assert other.get(module, module) in names or module in BESIDE, (module, extra)


def test_packaged_weights_are_small() -> None:
    sizes = [path.stat().st_size for _, path in packaged_files()]
    assert min(sizes) > 0
    assert sum(sizes) <= 2_000_000


@pytest.mark.parametrize("kind", ["denoiser", "classifier"])
def test_packaged_weights_name_their_command_and_seed(kind: str) -> None:
    tensors, description = load_weights(packaged(kind)["digits"])
    assert tensors
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())
    training = description["training"]
    words = shlex.split(training["command"])
    assert words[:3] == ["diffproof", "train", kind]
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    assert flags["--seed"] == str(training["seed"])
    assert flags["--out"] == f"digits-{kind}.safetensors"
    # Each recorded flag is one that the command takes today.
    group = command_group.commands["train"]
    assert isinstance(group, click.Group)
    known = {name for option in group.commands[kind].params for name in option.opts}
    assert set(flags) <= known


def test_packaged_classifier_on_the_clean_test_split() -> None:
    images, labels = dp.load_data("digits", split="test")
    classifier = dp.load_classifier("digits")
    assert not classifier.training
    share = float((classifier(images).argmax(1) == labels).double().mean())
    assert share >= 0.97
    recorded = load_weights(packaged("classifier")["digits"]).description["training"]["test"]["accuracy"]
    assert share == pytest.approx(recorded, abs=1e-6)


@pytest.mark.slow
def test_packaged_denoiser_denoises_and_fits_the_classifier() -> None:
    images, _ = dp.load_data("digits", split="test")
    denoiser = dp.load_denoiser("digits")
    assert not denoiser.training
    assert denoiser.image_shape == dp.load_classifier("digits").image_shape == (1, 8, 8)
    assert denoiser.num_classes == denoiser.null_label == 10
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(images.shape, generator=generator)
    mean = dp.load_data("digits", split="train").images.mean(0)
    guess = float((mean - images).pow(2).mean().sqrt())
    for sigma in (0.25, 0.5, 1.0):
        error = float((denoiser(images + sigma * noise, sigma) - images).detach().pow(2).mean().sqrt())
        # Better than leaving the image alone, and than the mean image, which sees nothing.
        assert error < sigma
        assert error < guess


def test_the_project_s_files_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert f"## {project['version']}\n" in (ROOT / "CHANGELOG.md").read_text()
    table = (ROOT / "docs" / "install.md").read_text()
    assert all(f"`{extra}`" in table for extra in project["optional-dependencies"])
    for template in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert {"name", "description", "body"} <= set(yaml.safe_load(template.read_text()))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's files with its source distribution and its wheel in dist/."""
    copy = tmp_path_factory.mktemp("built")
    for part in ("src", "tests", "docs", "examples", "benchmarks"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    single = {path.name for path in ROOT.iterdir() if path.is_file()} - {".git", ".gitignore"}
    for name in single:
        shutil.copy(ROOT / name, copy / name)
    (copy / "wanted").write_text("\n".join(_files(copy)))
    program = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", program], cwd=copy, capture_output=True, check=True)
    return copy


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_distributions_are_complete(built: Path) -> None:
    """What is in the repository is in the source distribution, whose wheel has what the package needs."""
    wanted = set((built / "wanted").read_text().splitlines())
    (archive,) = (built / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as source:
        held = {name.partition("/")[2] for name in source.getnames()}
    assert wanted - held == set()
    (made,) = (built / "dist").glob("*.whl")
    with zipfile.ZipFile(made) as wheel:
        names = set(wheel.namelist())
    package = {name.removeprefix("src/") for name in wanted if name.startswith("src/")}
    assert {"diffproof/py.typed", "diffproof/assets/digits-denoiser.safetensors"} <= package
    assert package - names == set()
    assert not any(name.startswith(("tests/", "docs/")) for name in names)


@pytest.mark.slow
def test_the_wheel_works_away_from_the_checkout(built: Path, tmp_path: Path) -> None:
    """Its libraries are those of this environment; tests/clean_install.sh makes whole ones."""
    (made,) = (built / "dist").glob("*.whl")
    place, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(made) as wheel:
        wheel.extractall(place)
    program = """
from importlib.metadata import entry_points
(script,) = set(entry_points(group="console_scripts", name="diffproof"))
main = script.load()
print(__import__("diffproof").__file__)
main(["doctor", "--device", "cpu"])
"""
    environment = {**os.environ, "PYTHONPATH": str(place)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=elsewhere, env=environment, check=True, capture_output=True, text=True)
    where, *_, tested = done.stdout.splitlines()
    assert Path(where).is_relative_to(place)
    assert ": passed; " in tested
