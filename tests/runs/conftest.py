"""A small certification run, finished or at work, for tests of what its folder tells."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from diffproof.runs.attack import run as attack_run
from diffproof.runs.certify import run as certify_run
from diffproof.runs.certify.job import CertifyRun, prepare
from diffproof.runs.settings import CertifySettings
from helpers.processes import forked, until
from helpers.runs import TOLD, rows


@pytest.fixture(scope="session")
def told_job() -> CertifyRun:
    """The run of TOLD."""
    return prepare(CertifySettings(**TOLD))


@pytest.fixture(scope="session")
def told_run(told_job: CertifyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, finished; read only."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    certify_run.run(told_job, folder)
    return folder


@pytest.fixture
def copy(told_run: Path, tmp_path: Path) -> Path:
    """It, to be changed."""
    return Path(shutil.copytree(told_run, tmp_path / "copy"))


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit after every call, so that what is told does not depend on the machine."""
    monkeypatch.setattr(certify_run, "COMMIT_EVERY", 0.0)
    monkeypatch.setattr(attack_run, "TELL_EVERY", 0.0)


@pytest.fixture
def at_work(told_job: CertifyRun, often: None) -> Callable[[Path, Path], int]:
    """Begins it in another process, which waits at its first finished image until a file is there."""

    def begin(folder: Path, go_on: Path) -> int:
        def wait(evaluations: int) -> None:
            if folder.exists() and rows(folder):
                until(go_on.exists)

        def work() -> int:
            certify_run.run(told_job, folder, wait)
            return 0

        pid = forked(work)
        until(lambda: (folder / "results.sqlite").exists() and bool(rows(folder)))
        return pid

    return begin
