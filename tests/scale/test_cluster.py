"""Runs on workers of a real Ray cluster: the same results as those of one process, whoever is killed."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import diffproof as dp
from diffproof.cli.main import run
from diffproof.errors import ArgumentError
from diffproof.pictures import save_picture
from diffproof.runs.certify.store import CertifyStore
from diffproof.scale.cluster import Actor, Refusal
from diffproof.scale.engine import Worker
from helpers.command_line import Refused, words
from helpers.files import tree
from helpers.processes import family
from helpers.runs import PLAIN, certify_flags, contents

# Seconds after which what Ray does is a failure; here it takes a tenth of them.
PATIENCE = 300

# Ray leaves files open, of which Python would tell in the tests that run later.
CLUSTER = """
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
cluster.add_node(**node)
print(cluster.address, flush=True)
input()
cluster.shutdown()
"""
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


class Cluster(NamedTuple):
    """A cluster of two nodes, of which each has room for one worker."""

    address: str
    process: int

    def workers(self) -> list[int]:
        """Processes that are at work."""
        return [one for one, text in family(self.process).items() if text.startswith("ray::Actor.work")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One that ends with this module's tests."""
    pytest.importorskip("ray")
    arguments = [sys.executable, "-c", CLUSTER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(arguments, env=ENVIRONMENT, text=True, **pipes) as process:  # type: ignore[call-overload]
        late = threading.Timer(PATIENCE, process.kill)
        late.start()
        address = process.stdout.readline().strip()
        late.cancel()
        assert address, "a cluster does not start here"
        yield Cluster(address, process.pid)
        process.communicate("\n", timeout=PATIENCE)


def ended(arguments: list[str]) -> tuple[int, str]:
    """The exit status of a command line in a process of its own, and what it wrote on standard error."""
    command = [sys.executable, "-m", "diffproof", *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    return done.returncode, done.stderr


@pytest.mark.slow
def test_a_certification_of_which_a_worker_is_killed(
    cluster: Cluster, tmp_path: Path, denoiser: Path
) -> None:
    changes: dict[str, object] = {"denoiser": denoiser, "keep_ballots": True, "n": 2000}
    assert run(certify_flags(tmp_path / "here", **changes)) == 0

    over = threading.Event()

    def kill() -> None:
        while not (at_work := cluster.workers()) and not over.is_set():
            time.sleep(0.05)
        if at_work:
            os.kill(at_work[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    status, err = ended(certify_flags(tmp_path / "there", **changes, ray=cluster.address))
    over.set()
    killer.join()
    assert status == 0, err
    assert "is lost: its process ended" in err
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    with CertifyStore.reading(tmp_path / "there") as store:
        states = [worker.state for worker in store.progress.workers()]
    assert states.count("lost") == 1
    assert len(states) == 3


OWN = """
import os

import torch

from diffproof.classifiers.named import load_classifier

class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.num_classes = load_classifier("digits"), 10

    def forward(self, images):
        # Only one of the pictures has such a corner, and no negative of another.
        corner = images[:, 0, 0, 0]
        if ((corner > 0.9) & (corner < 0.99)).any():
            if DEADLY:
                os._exit(3)
            raise RuntimeError("what a picture")
        return self.inner(images)

def classifier():
    return Classifier()
"""


@pytest.mark.slow
@pytest.mark.parametrize("deadly", [False, True], ids=["raises", "kills"])
def test_a_poisoned_picture_is_named_and_the_others_are_done(
    deadly: bool,
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(f"DEADLY = {deadly}\n{OWN}")
    images, _ = dp.load_data("digits", indices="0:8")
    sound = images[4].clone()
    for corner in (0.95, 0.0):
        images[4, 0, 0, 0] = corner
        for index, image in enumerate(images):
            path = Path("pictures" if corner else "sound") / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            save_picture(path, image)
    assert not torch.equal(images[4], sound) or sound[0, 0, 0] == 0.0
    flags = {"defense": "diffpure:t_star=0.15,steps=2", "denoiser": "digits", "batch_size": 3, "seed": 0}
    asked = {**flags, "classifier": "own:classifier"}
    assert run(words("purify", "sound", **asked, out="here")) == 0
    status, err = ended(words("purify", "pictures", **asked, out="there", ray=cluster.address, ship=True))
    assert status == 1, err
    told = "workers are lost by it" if deadly else "what a picture"
    assert "picture 4.png failed on every worker: " in err
    assert told in err
    expected = {name for name in tree(Path("here")) if name.endswith(".png")}
    assert {name for name in tree(Path("there")) if name.endswith(".png")} == expected - {"4.png"}
    for name in expected - {"4.png", "sheet.png"}:
        assert Path("there", name).read_bytes() == Path("here", name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 0}, "--workers: expected an integer ≥ 1, got 0"),
        ({"workers": "some"}, "Invalid value for '--workers': expected a whole number or auto, got 'some'."),
        (
            {"workers": 2, "cpus_per_worker": 1000},
            "--workers: 2 with 1000 CPUs each are more than",
        ),
        (
            {"workers": 2, "gpus_per_worker": 1, "device": "cpu"},
            "--gpus-per-worker: the device is cpu, got",
        ),
        ({"workers": 2, "device": "cuda"}, "--device: workers without a GPU compute on cpu, got 'cuda'"),
        (
            {"workers": 2, "gpus_per_worker": 1.5},
            "--gpus-per-worker: expected a whole number ≥ 0",
        ),
        ({"ship": True}, "--ship: there are no workers without --workers or --ray"),
        ({"cpus_per_worker": 2}, "--cpus-per-worker: there are no workers without --workers or --ray"),
        ({"ray": "there"}, "--ray: expected HOST:PORT or auto, got 'there'"),
        ({"ray": "ray://there:10001"}, "--ray: expected HOST:PORT or auto, got 'ray://there:10001'"),
        ({"ray": "127.0.0.1:{port}"}, "--ray: nobody answers at 127.0.0.1:{port} (Connection refused)"),
        ({"ray": "nowhere.invalid:1"}, "--ray: nobody answers at nowhere.invalid:1 ("),
    ],
)
def test_bad_input_is_one_line(
    changes: dict[str, object],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    changes = {name: str(one).format(port=port) if name == "ray" else one for name, one in changes.items()}
    line = Refused(tmp_path, capsys)(certify_flags(tmp_path / "run", **PLAIN, **changes))
    assert line.startswith(message.format(port=port))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ArgumentError("data", "no such file: x.npz"), "data: no such file: x.npz"),
        (AttributeError("no forward"), "AttributeError: no forward"),
    ],
)
def test_a_worker_that_cannot_load_says_why_and_on_which_machine(error: Exception, told: str) -> None:
    def make() -> Worker:
        raise error

    assert Actor(make).hello() == Refusal(platform.node(), told)


def test_without_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    line = Refused(tmp_path, capsys)(certify_flags(tmp_path / "run", **PLAIN, workers=2))
    assert line == "--ray: not installed; pip install 'diffproof[ray]'"
