"""Workers as actors of Ray, on this machine or on a cluster."""

from __future__ import annotations

import os
import platform
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from diffproof.errors import ArgumentError, printable
from diffproof.interrupts import terminated_as_interrupted
from diffproof.optional import import_optional
from diffproof.scale.engine import Event, Hello, Order, Worker
from diffproof.scale.fleet import FleetError
from diffproof.scale.session import begin, own_folder
from diffproof.scale.workforce import Places, Workforce, cores, places

# Seconds to reach a cluster in, and for another try where it is only slow.
_REACH = 5.0
# In bytes, of what workers of this machine share: answers are small.
_STORE = 2**28
_QUIET: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}


class Refusal(NamedTuple):
    """What a worker says instead of hello when it cannot load what it needs.

    Attributes:
        host: name of its machine.
        error: in one line.
    """

    host: str
    error: str


class Actor:
    """A worker within an actor.

    Args:
        make: makes the worker; called when it is to say hello.
        arguments: of `make`; references of Ray among them are resolved.
    """

    def __init__(self, make: Callable[..., Worker], *arguments: Any) -> None:
        self._make, self._arguments = make, arguments
        self._worker: Worker | None = None

    def hello(self) -> Hello | Refusal:
        """See Worker."""
        try:
            self._worker = self._make(*self._arguments)
            return self._worker.hello()
        except Exception as error:  # whatever the user's own code raises
            return Refusal(platform.node(), _told(error))

    def work(self, orders: Sequence[Order], seconds: float) -> Any:
        """See Worker."""
        assert self._worker is not None
        return self._worker.work(orders, seconds)


class RayEngine:
    """Carries orders to actors; see Engine.

    Args:
        make: see Actor.
        arguments: see Actor.
        each: what each worker takes.
    """

    def __init__(self, make: Callable[..., Worker], arguments: Sequence[Any], each: Places) -> None:
        import ray

        self._ray, self._make, self._arguments = ray, make, arguments
        # Who makes it again is the fleet, who knows what it had to do.
        self._class = ray.remote(Actor).options(
            num_cpus=each.cpus, num_gpus=each.gpus, max_restarts=0, max_task_retries=0
        )
        self._actors: dict[int, Any] = {}
        self._asked: dict[Any, int] = {}

    def start(self, worker: int) -> None:
        """See Engine."""
        self._actors[worker] = self._class.remote(self._make, *self._arguments)
        self._asked[self._actors[worker].hello.remote()] = worker

    def send(self, worker: int, orders: Sequence[Order], seconds: float) -> None:
        """See Engine."""
        self._asked[self._actors[worker].work.remote(orders, seconds)] = worker

    def wait(self, seconds: float) -> list[Event]:
        """See Engine."""
        ray = self._ray
        if not self._asked:
            time.sleep(min(seconds, 0.1))
            return []
        waiting = list(self._asked)
        self._check()
        ready, _ = ray.wait(waiting, num_returns=1, timeout=seconds)
        if ready:
            # And all others that are there by now.
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return [self._event(one) for one in ready if one in self._asked]

    def _check(self) -> None:
        """Raise FleetError where a process of Ray is no more: Ray would wait for it, then end this one."""
        node = self._ray._private.worker._global_node
        if node is not None and (dead := node.dead_processes()):
            # Nothing else answers any more, and to wait for that takes minutes.
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            raise FleetError(f"Ray's process {dead[0][0]} ended; the same command continues")

    def _event(self, asked: Any) -> Event:
        ray, worker = self._ray, self._asked.pop(asked)
        try:
            said = ray.get(asked)
        except ray.exceptions.RayTaskError as error:
            return Event(worker, error=_told(error.cause))
        except ray.exceptions.RayError as error:
            # It may only be out of reach; what it does then is done by others, too.
            self.stop(worker)
            return Event(worker, error=_reason(error), lost=True)
        if isinstance(said, Refusal):
            return Event(worker, error=said.error, host=said.host)
        return Event(worker, said)

    def stop(self, worker: int) -> None:
        """See Engine."""
        self._asked = {asked: other for asked, other in self._asked.items() if other != worker}
        if (actor := self._actors.pop(worker, None)) is not None:
            self._ray.kill(actor)

    def now(self) -> float:
        """See Engine."""
        return time.monotonic()


def _told(error: BaseException | None) -> str:
    """What an error says to a user, in a line."""
    if isinstance(error, ArgumentError | OSError | MemoryError) and str(error):
        return printable(error)
    return printable(f"{type(error).__name__}: {error}")


def _reason(error: BaseException) -> str:
    """Why an actor is no more: what Ray says of it, without its many lines on who it was."""
    text = str(error)
    if "connection error code 2" in text:
        return "its process ended: it was killed, ran out of memory or crashed"
    if "temporarily unavailable" in text:
        return "it does not answer: its machine is out of reach or gone"
    for sign in ("Worker exit detail:", "ModuleNotFoundError:", "exit_detail:", "The node"):
        if sign in text:
            start = text.index(sign)
            return printable(text[start:].removeprefix("Worker exit detail:").strip(), 200)
    return printable(f"{type(error).__name__}: {text}", 200)


@contextmanager
def connected(asked: Workforce, device: str) -> Iterator[Places]:
    """While Ray runs: on this machine for this process alone, or the cluster of an address.

    Args:
        asked: how many workers there are to be, and where.
        device: see `places`.

    Raises:
        ValueError: Ray is not installed, no cluster answers there, it is of another version, or it has not
            what is asked for.
    """
    if asked.ray is None:
        # Before Ray is started, so that a mistake shows at once.
        there = places(asked, cores(), gpus(), device=device)
    if asked.host_and_port is not None:
        _reach(*asked.host_and_port)
    own = asked.ray is None
    with terminated_as_interrupted():
        ray = _ray(own)
        with own_folder() if own else nullcontext() as folder:
            try:
                if asked.ray is None:
                    _start(ray, folder, there.workers * there.cpus)
                else:
                    _join(ray, asked.ray)
                    has = ray.cluster_resources()
                    there = places(asked, int(has.get("CPU", 0)), int(has.get("GPU", 0)), device=device)
                # Ray has taken SIGTERM for itself.
                with terminated_as_interrupted():
                    yield there
            finally:
                ray.shutdown()


def _ray(own: bool) -> Any:
    """Ray, for a cluster of its own or another.

    Raises:
        ValueError: it is not installed.
    """
    # All are read when Ray is imported; the second says what Ray will do by default some day.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Half a minute each, in which nothing can be seen or interrupted.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")
    if own and "RAY_AUTH_MODE" not in os.environ:
        # Others on this machine or its network must not reach the workers.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray = import_optional("ray", "ray")
    # Ray prints on standard output that a worker died; whoever uses it says so himself.
    ray._private.worker._worker_logs_enabled = False
    return ray


def _start(ray: Any, folder: Path | None, cpus: int) -> None:
    """Start Ray on this machine, with its files in a folder.

    Raises:
        FleetError: it does not start.
    """
    try:
        # Ray's processes speak to each other so, and wait for minutes where they cannot.
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=_REACH).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise FleetError(f"Ray does not start here: 127.0.0.1 cannot be reached ({reason})") from None
    try:
        begin(
            ray,
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=_STORE,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
            **_QUIET,
        )
    except Exception as error:  # Ray raises nothing more special
        raise FleetError(f"Ray does not start here: {printable(error, 300)}") from None


def _join(ray: Any, address: str) -> None:
    """Become a command of a cluster.

    Raises:
        ValueError: none answers there, or it is of another version.
    """
    try:
        begin(ray, address=address, **_QUIET)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        raise ArgumentError("ray", f"cannot join the cluster at {address}: {printable(error, 300)}") from None


def _reach(host: str, port: int) -> None:
    """Raise ValueError unless somebody listens there."""
    try:
        socket.create_connection((host, port), timeout=_REACH).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArgumentError("ray", f"nobody answers at {host}:{port} ({reason})") from None


def gpus() -> int:
    """GPUs that torch can use here."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
