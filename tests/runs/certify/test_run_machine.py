"""Any sequence of commands on a run folder, kills among them, against a model of what it may hold."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from diffproof.cli.main import run
from diffproof.errors import ArgumentError
from diffproof.runs.certify import run as certify_run
from diffproof.runs.certify.job import CertifyRun, prepare
from diffproof.runs.certify.store import CertifyStore
from diffproof.runs.settings import CertifySettings
from helpers.files import tree
from helpers.processes import exit_status, forked
from helpers.runs import rows

INDICES = [0, 40, 80]
N0 = 4
# Runs that differ in what counts: settings of one are refused in a folder of another.
KINDS: dict[str, dict[str, Any]] = {
    "few": {"n": 12},
    "more": {"n": 16},
    "asked": {"n": 36, "stop": "sequential", "radii": "0,0.05"},
}


def asked(kind: str, batch_size: int) -> CertifySettings:
    """The settings of a run; the batch size changes none of its results."""
    return CertifySettings(
        data="digits",
        indices="0:120:40",
        classifier="digits",
        defense="none",
        sigma=0.25,
        n0=N0,
        **KINDS[kind],
        alpha=0.01,
        seed=3,
        batch_size=batch_size,
    )


class Machine(RuleBasedStateMachine):
    """A folder, and what is known of it: whose settings it has, and images that are finished for good."""

    whole: dict[str, list[tuple[Any, ...]]]
    jobs: dict[tuple[str, int], CertifyRun]

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.folder = self.home / "run"
        self.kind: str | None = None
        self.finished = 0

    def teardown(self) -> None:
        shutil.rmtree(self.home)

    def job(self, kind: str, batch_size: int) -> CertifyRun:
        key = kind, batch_size
        if key not in self.jobs:
            self.jobs[key] = prepare(asked(kind, batch_size))
        return self.jobs[key]

    @rule(kind=st.sampled_from(sorted(KINDS)), batch_size=st.sampled_from([1, 7, 50]))
    def certify(self, kind: str, batch_size: int) -> None:
        """To the end, or refused without a change."""
        before = tree(self.folder)
        if self.kind not in (None, kind):
            with pytest.raises(
                ArgumentError, match=rf"^out: .* other settings: n \({KINDS[self.kind or kind]['n']}, now"
            ):
                certify_run.run(self.job(kind, batch_size), self.folder)
            assert tree(self.folder) == before
            return
        results = certify_run.run(self.job(kind, batch_size), self.folder)
        assert [result.image_index for result in results] == INDICES
        self.kind, self.finished = kind, len(INDICES)

    @rule(
        kind=st.sampled_from(sorted(KINDS)),
        batch_size=st.sampled_from([1, 7]),
        draws=st.integers(1, 3 * (N0 + max(kind["n"] for kind in KINDS.values()))),
        softly=st.booleans(),
    )
    def stop(self, kind: str, batch_size: int, draws: int, softly: bool) -> None:
        """Killed, or interrupted, after so many draws, of an evaluation each."""
        if self.kind not in (None, kind):
            return
        job, counted = self.job(kind, batch_size), 0

        def on_evaluations(more: int) -> None:
            nonlocal counted
            counted += more
            if counted >= draws:
                os.kill(os.getpid(), signal.SIGINT if softly else signal.SIGKILL)

        def work() -> int:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            certify_run.COMMIT_EVERY = 0.0
            try:
                certify_run.run(job, self.folder, on_evaluations)
            except KeyboardInterrupt:
                return 130
            return 0

        status = exit_status(forked(work))
        assert status in (0, 130 if softly else -signal.SIGKILL)
        self.kind = kind
        with CertifyStore.reading(self.folder) as store:
            held = len(store.finished())
        assert held >= self.finished
        assert status != 0 or held == len(INDICES)
        self.finished = held

    @rule()
    def verify(self) -> None:
        """Every certificate holds, where there is one."""
        expected = 0 if self.finished else 2
        assert run(["verify", str(self.folder), "--resample", "1"]) == expected

    @precondition(lambda self: self.kind is not None)
    @rule()
    def export(self) -> None:
        """A line for each finished image."""
        out = self.home / "export.tsv"
        assert run(["export", str(self.folder), "--out", str(out), "--force"]) == 0
        lines = out.read_text().splitlines()[1:]
        assert [int(line.split("\t")[0]) for line in lines] == INDICES[: self.finished]

    @invariant()
    def what_is_finished_stays_and_is_right(self) -> None:
        """The folder holds the first images of the run that nobody stopped, byte for byte."""
        if self.kind is None:
            assert not self.folder.exists()
        else:
            assert rows(self.folder) == self.whole[self.kind][: self.finished]


@pytest.mark.slow
def test_any_sequence_of_commands_keeps_the_folder_right(tmp_path: Path) -> None:
    whole, jobs = {}, {(kind, 50): prepare(asked(kind, 50)) for kind in KINDS}
    for kind in KINDS:
        certify_run.run(jobs[kind, 50], tmp_path / kind)
        whole[kind] = rows(tmp_path / kind)

    class Prepared(Machine):
        pass

    Prepared.whole, Prepared.jobs = whole, jobs
    machine = Prepared.TestCase
    machine.settings = settings(max_examples=12, stateful_step_count=15)
    machine().runTest()
