"""Checkpoints to safetensors; a pickle with code in it is loaded in a separate process, if told to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from diffproof.errors import ArgumentError
from diffproof.unpickling import select
from diffproof.weights import CodeInPickleError, load_nested, load_weights, save_weights

# The child finds the same packages and system libraries, and sees nothing else of this environment.
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP")
_CHILD = (
    "import sys; source, folder, key, *sys.path = sys.argv[1:];"
    " from pathlib import Path; from diffproof.unpickling import main;"
    " main(Path(source), Path(folder), key or None)"
)


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
    cannot be imported become inert stand-ins, as do EDM's objects, whose source in the pickle is not run.

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
    if out.exists() and not force:
        raise ArgumentError("out", f"{out} exists; --force overwrites it")
    if not out.parent.is_dir():
        raise ArgumentError("out", f"no such folder: {out.parent}")
    description: dict[str, Any] = {}
    try:
        if source.suffix == ".safetensors":
            loaded, description = load_weights(source)
        else:
            loaded = load_nested(source)
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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ended = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD, str(source.resolve()), name, key or "", *packages],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        try:
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            last = (ended.stderr.strip().splitlines() or ["nothing"])[-1]
            raise ArgumentError(
                "convert", f"loading {source} ended its process with status {ended.returncode}: {last[:200]}"
            ) from None
        if "error" in report:
            raise ArgumentError("convert", f"cannot convert {source}: {report['error'][:300]}")
        return str(report["taken"]), load_weights(folder / "weights.safetensors").tensors
