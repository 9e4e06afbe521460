"""How many workers a command has, and what each of them takes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from diffproof.checks import check_at_least
from diffproof.errors import ArgumentError

# More than any cluster has.
_MOST = 100_000
_ADDRESS = re.compile(r"(?P<host>\[[^\[\]\s]+\]|[^:\s/\[\]]+):(?P<port>\d{1,5})")


@dataclass(frozen=True, kw_only=True)
class Workforce:
    """What a command asks for.

    Attributes:
        workers: how many, or "auto" for one a GPU, or one a processor core where none is used.
        ray: HOST:PORT of a Ray cluster, or "auto" for that of this machine; None for processes that begin and
            end with the command.
        gpus_per_worker: that each has; None for 1 where there are any and the device is not the CPU.
        cpus_per_worker: that each has; None for 1, or what there is for each on this machine.
        ship: send weights and images to the workers, instead of letting each read its own files.

    Raises:
        ValueError: a number out of range, or an address that is none.
    """

    workers: int | str = "auto"
    ray: str | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: int | None = None
    ship: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.workers, int):
            check_at_least("workers", self.workers, 1, _MOST)
        if self.gpus_per_worker is not None:
            gpus = self.gpus_per_worker
            whole = float(gpus).is_integer()
            if not (0 <= gpus < 1 or whole) or not 0 <= gpus <= _MOST:
                raise ArgumentError(
                    "gpus_per_worker", f"expected a whole number ≥ 0, or a share of one, got {gpus:g}"
                )
        if self.cpus_per_worker is not None:
            check_at_least("cpus_per_worker", self.cpus_per_worker, 1, _MOST)
        if self.ray is not None and self.ray != "auto":
            match = _ADDRESS.fullmatch(self.ray)
            if match is None or not 0 < int(match["port"]) < 65536:
                raise ArgumentError("ray", f"expected HOST:PORT or auto, got {self.ray!r}")

    @property
    def host_and_port(self) -> tuple[str, int] | None:
        """Of the cluster, None where it has no address."""
        match = None if self.ray is None else _ADDRESS.fullmatch(self.ray)
        return None if match is None else (match["host"].strip("[]"), int(match["port"]))


@dataclass(frozen=True)
class Places:
    """Places for workers, as they are there.

    Attributes:
        workers: how many, ≥ 1.
        gpus: of each.
        cpus: of each.
    """

    workers: int
    gpus: float
    cpus: int


def places(asked: Workforce, cpus: int, gpus: int, *, device: str) -> Places:
    """The places that are asked for, where there are so many processors and GPUs.

    Args:
        asked: see Workforce.
        cpus: cores of the machine or cluster.
        gpus: its GPUs.
        device: that the networks are to run on, as --device says.

    Raises:
        ValueError: more is asked for than there is.
    """
    use = gpus > 0 and device != "cpu"
    each = asked.gpus_per_worker if asked.gpus_per_worker is not None else float(use)
    if each and device == "cpu":
        raise ArgumentError("gpus_per_worker", f"the device is cpu, got {each:g}")
    if not each and device.startswith(("cuda", "mps")):
        raise ArgumentError("device", f"workers without a GPU compute on cpu, got {device!r}")
    if each > gpus:
        raise ArgumentError("gpus_per_worker", f"there {_are(gpus, 'GPU')}, got {each:g} for each worker")
    fit = int(gpus / each) if each < 1 and each else int(gpus // each) if each else None
    own = asked.ray is None
    cpus_each = asked.cpus_per_worker or 1
    if asked.workers == "auto":
        workers = fit if fit is not None else max(1, cpus // cpus_each)
        if not own:
            workers = min(workers, cpus // cpus_each)
    else:
        workers = int(asked.workers)
    if fit is not None and workers > fit:
        share = f"; --gpus-per-worker {gpus / workers:.2g} shares them" if each == 1 else ""
        raise ArgumentError(
            "workers", f"{workers} with {each:g} GPUs each are more than there are: {gpus}{share}"
        )
    if asked.cpus_per_worker is None and own:
        cpus_each = max(1, cpus // workers)
    if cpus_each > cpus or (not own and workers * cpus_each > cpus):
        raise ArgumentError(
            "workers", f"{max(1, workers)} with {cpus_each} CPUs each are more than there are: {cpus}"
        )
    return Places(workers, each, cpus_each)


def _are(count: int, thing: str) -> str:
    return f"is {count} {thing}" if count == 1 else f"are {count or 'no'} {thing}s"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
