"""Checkpoints to safetensors; a pickle with code in it is loaded in a separate process, if told to."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, NamedTuple

from torch import Tensor

from diffproof.errors import ArgumentError
from diffproof.files import check_out_file, read_text
from diffproof.unpickling import select
from diffproof.weights import CodeInPickleError, load_described, load_weights, save_weights

# The child finds the same packages and system libraries, and sees nothing else of this environment.
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP")
_CHILD = (
    "import sys; source, folder, key, most, *sys.path = sys.argv[1:];"
    " from pathlib import Path; from diffproof.unpickling import confine, main;"
    " confine(Path(folder), int(most)); main(Path(source), Path(folder), key or None)"
)
# Seconds that loading a trusted pickle may take.
TIME_LIMIT = 600.0
# Bytes that a file of its process may have, at least; tensors that share memory are copied.
_MOST_WRITTEN, _TIMES_ITS_SIZE = 2**30, 8


class Converted(NamedTuple):
    """What a conversion took from a file ("'ema'", "the whole file") and how much it was."""

    taken: str
    tensors: int
    values: int


def convert(
    source: Path, out: Path, *, trust_pickle: bool = False, key: str | None = None, force: bool = False
) -> Converted:
    """Write the weights in a checkpoint as safetensors, under the names that they have there.

    A safetensors file's description of its network, as diffproof's commands write it, comes along.

    A file of tensors in plain containers is read as data. Any other pickle can run any program on this
    machine with the user's rights as it loads, so it is loaded only with `trust_pickle`, and then in a
    separate process: that keeps its code and memory out of this one and this one's environment variables out
    of its sight, but is no sandbox. What the pickle names is imported and called there; only names that
    cannot be imported become inert stand-ins, as do EDM's objects, whose source in the pickle is not run. It
    has TIME_LIMIT seconds, and what it started in its process group ends with it.

    Args:
        source: safetensors, a file of torch.save, or a pickle, with a state dict or a module in it.
        out: the .safetensors file; it appears complete or not at all.
        trust_pickle: load `source` even if it holds code.
        key: the entry with the weights; None takes the file itself if it has the tensors, else the first of
            `diffproof.unpickling.USUAL_KEYS` that is there.
        force: overwrite `out`.

    Raises:
        ValueError: a pickle with code without `trust_pickle`, an unreadable file, no such key, no weights
            there, or an `out` that exists or is no .safetensors.
    """
    if out.suffix != ".safetensors":
        raise ArgumentError("out", f"expected a name that ends in .safetensors, got {out}")
    check_out_file(out, force=force)
    description: dict[str, Any] = {}
    try:
        loaded, description = load_described(source)
        taken, tensors = select(loaded, key)
    except CodeInPickleError:
        if not trust_pickle:
            raise ArgumentError(
                "convert",
                f"{source} is a pickle with more than data in it: loading it can run any program on"
                " your machine with your rights; if you trust where it comes from, --trust-pickle loads it in"
                " a separate process, which keeps its code out of this one but is no sandbox",
            ) from None
        taken, tensors = _unpickled_elsewhere(source, key)
    unshared = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_weights(out, unshared, description)
    return Converted(taken, len(tensors), sum(tensor.numel() for tensor in tensors.values()))


def _unpickled_elsewhere(source: Path, key: str | None) -> tuple[str, dict[str, Tensor]]:
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    packages = [entry for entry in sys.path if entry]
    most = max(_MOST_WRITTEN, _TIMES_ITS_SIZE * source.stat().st_size)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        command = [sys.executable, "-I", "-c", _CHILD, str(source.resolve()), name, key or "", str(most)]
        with (folder / "errors").open("wb") as errors:
            status = _end_of([*command, *packages], folder, environment, errors)
        if status is None:
            raise ArgumentError("convert", f"loading {source} took more than {TIME_LIMIT:g} s and was ended")
        try:
            report = json.loads(read_text("convert", folder / "report.json"))
        except (OSError, ValueError):
            last = (_last_lines(folder / "errors") or ["nothing"])[-1]
            raise ArgumentError(
                "convert", f"loading {source} ended its process with status {status}: {last[:200]}"
            ) from None
        if "error" in report:
            raise ArgumentError("convert", f"cannot convert {source}: {report['error'][:300]}")
        return str(report["taken"]), load_weights(folder / "weights.safetensors").tensors


def _end_of(command: list[str], folder: Path, environment: dict[str, str], errors: IO[bytes]) -> int | None:
    """Run a command in a process group that is gone afterwards; its exit status, None at the time limit."""
    child = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        # It stays open as long as this process lives; see unpickling.confine.
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,
    )
    try:
        return child.wait(TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # What the pickle started, too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def _last_lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        return file.read().decode("utf-8", "replace").strip().splitlines()
