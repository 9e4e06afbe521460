"""The fixtures of the suite: tiny weights made by the real commands, a small run, a refusing command line."""

from __future__ import annotations

import gc
import logging
import os

# The networks here are so small that threads only wait for each other, and a process that is forked from one
# with threads may hang; set before torch loads.
os.environ["OMP_NUM_THREADS"] = "1"
# A process of the suite gets the width of a terminal that its captured output does not go to.
os.environ.pop("COLUMNS", None)

from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

# The same examples every time, however long a loaded machine takes for one.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")
# What libraries log is not printed among what a command says.
logging.getLogger().addHandler(logging.NullHandler())
# Asserts in helpers show their values, too.
pytest.register_assert_rewrite("helpers")
# What is imported and collected stays: looking through it for garbage would take a sixth of the start, and
# again and again during the tests.
gc.disable()

from diffproof.cli.main import run  # noqa: E402
from diffproof.weights import packaged  # noqa: E402
from helpers.command_line import Refused  # noqa: E402
from helpers.networks import packaged_again  # noqa: E402
from helpers.runs import certify_flags  # noqa: E402


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    monkeypatch.chdir(tmp_path)
    return Refused(tmp_path, capsys)


@pytest.fixture(scope="session", autouse=True)
def short_samples() -> Iterator[None]:
    """Few steps for the sheet of samples, which takes most of a training as short as those of the suite."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffproof.training.sheets._STEPS", 2)
        yield


@pytest.fixture(scope="session", autouse=True)
def fixed_seeds() -> Iterator[None]:
    """What a test gives no seed gets 0 as if it had been drawn, so that its numbers are always the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffproof.seeds.drawn_seed", lambda: 0)
        yield


@pytest.fixture
def all_seeds_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """To draw a seed fails: what must come out the same again gives its own."""

    def drawn() -> int:
        raise AssertionError("a seed is drawn")

    monkeypatch.setattr("diffproof.seeds.drawn_seed", drawn)


@pytest.fixture(scope="session")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser good enough to certify something, trained in seconds by the real command.

    Once for all processes of the suite: the first one trains, the others wait. Run folders each makes for
    itself, because a command holds the lock of the one it works in.
    """
    base = tmp_path_factory.getbasetemp()
    # The folder of one of several processes lies in the folder of the suite.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "weights"
    folder.mkdir(exist_ok=True)
    path, done = folder / "denoiser.safetensors", folder / "done"
    with FileLock(folder / "lock"):
        if not done.exists():
            flags = "--data digits --channels 8 --batch-size 64 --learning-rate 0.005 --iterations 100"
            assert run(["train", "denoiser", *flags.split(), "--force", "--out", str(path)]) == 0
            done.touch()
    return path


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory, denoiser: Path) -> Path:
    """The folder of the packaged networks as it is, but that the denoiser of digits is `denoiser`."""
    folder = tmp_path_factory.mktemp("assets")
    for kind in ("classifier", "denoiser"):
        for name, path in packaged(kind).items():
            (folder / path.name).symlink_to(denoiser if (name, kind) == ("digits", "denoiser") else path)
    return folder


@pytest.fixture(scope="module")
def small_digits(assets: Path) -> Iterator[None]:
    """The denoiser "digits" is a tenth of itself, for modules whose point is not what it knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffproof.weights._ASSETS", assets)
        yield


@pytest.fixture
def packaged_digits(small_digits: None) -> Iterator[None]:
    """It is the packaged one again, for a test whose point is what that knows."""
    with packaged_again():
        yield


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, denoiser: Path) -> Path:
    """A finished run of SMALL_RUN; read only, copy it to change it."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    assert run(certify_flags(folder, denoiser=denoiser)) == 0
    return folder
