"""Loading a trusted pickle for its tensors: runs in the process that `convert` starts, and nowhere else.

What a pickle names is imported and called as it says, so it can do anything. Two things are replaced: names
that cannot be imported become inert stand-ins that only record their state, and so do the objects of EDM's
pickles, whose source code inside the pickle is thus never run.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import signal
import threading
import types
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffproof.errors import ArgumentError
from diffproof.weights import state_dicts

# Where checkpoints keep their weights, in order of preference; the first there is decides.
USUAL_KEYS = ("ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model")


class StandIn:
    """An object of a class that is not installed: keeps attributes and items, does nothing."""

    def __init__(self, *arguments: object, **named: object) -> None:
        self.items: dict[Any, Any] = {}

    def __new__(cls, *arguments: object, **named: object) -> StandIn:
        """Takes what the real class takes; pickles often skip __init__."""
        made = super().__new__(cls)
        made.items = {}
        return made

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        """As a list takes an element."""
        self.items[len(self.items)] = value


def _persistent(meta: dict[str, Any]) -> StandIn:
    # How EDM's pickles rebuild an object: its class's source code and its state. Only the state is used.
    made = StandIn()
    made.__setstate__(dict(meta["state"]))
    return made


def _storage(data: bytes) -> Any:
    # As torch's own, which fails where the file's device does not exist.
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.endswith("torch_utils.persistence") and name == "_reconstruct_persistent_obj":
            return _persistent
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage
        try:
            return super().find_class(module, name)
        except Exception:  # a package that is there but broken raises anything
            return type(name, (StandIn,), {"__module__": module})


def unpickle(path: Path) -> Any:
    """What a pickle or a file of torch.save holds, on the CPU. This runs whatever code it names."""
    reader: Any = types.ModuleType("reader")
    reader.Unpickler = _Unpickler
    reader.load = lambda file, **settings: _Unpickler(file, **settings).load()
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            first = _Unpickler(file).load()
        if not isinstance(first, int):
            return first
        # torch.save's old format begins with a number.
    return torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)


def select(loaded: Any, key: str | None) -> tuple[str, dict[str, Tensor]]:
    """The weights in what a file holds.

    Args:
        loaded: a module, a state dict, or a dict with one of them among other things.
        key: which entry; None takes `loaded` itself if it has the tensors, else the first of USUAL_KEYS.

    Returns:
        what was taken, in words, and its tensors by name.

    Raises:
        ValueError: no such entry, or it is neither a module nor a state dict.
    """
    entries = loaded.items if isinstance(loaded, StandIn) else loaded
    if key is None:
        whole = named_tensors(loaded)
        if whole:
            return "the whole file", whole
    # Files may name their entries by numbers, which a command line cannot.
    named = {str(name): value for name, value in entries.items()} if isinstance(entries, dict) else {}
    inner = state_dicts(entries)
    if key is None:
        key = next((usual for usual in USUAL_KEYS if usual in named), None)
    found = f"the file holds {', '.join(list(named)[:8]) or f'one {type(loaded).__name__}'}"
    if key in inner:
        return repr(key), inner[key]
    if key is None or key not in named:
        wanted = "a module or state dict" if key is None else repr(key)
        raise ArgumentError("key", f"expected {wanted}, but {found}")
    tensors = named_tensors(named[key])
    if not tensors:
        raise ArgumentError("key", f"{key!r} is neither a module nor a state dict; name another; {found}")
    return repr(key), tensors


def named_tensors(value: Any) -> dict[str, Tensor] | None:
    """The tensors of a state dict or of a module (stand-in or real), by name; None for anything else."""
    if isinstance(value, dict):
        is_state = all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
        return dict(value) if is_state else None
    return dict(_module_tensors(value, "")) if _is_module(value) else None


def _is_module(value: Any) -> bool:
    return {"_parameters", "_buffers", "_modules"} <= getattr(value, "__dict__", {}).keys()


def _module_tensors(module: Any, prefix: str) -> list[tuple[str, Tensor]]:
    # Not module.state_dict(): stand-ins have none, and a real module may hold stand-ins.
    state = vars(module)
    hidden = state.get("_non_persistent_buffers_set", ())
    own = {**state["_parameters"], **{k: v for k, v in state["_buffers"].items() if k not in hidden}}
    tensors = [(prefix + name, tensor) for name, tensor in own.items() if tensor is not None]
    for name, child in state["_modules"].items():
        if child is not None and _is_module(child):
            tensors += _module_tensors(child, f"{prefix}{name}.")
    return tensors


def confine(folder: Path, most: int) -> None:
    """Bound what this process writes to a file, and end its group, and its folder, when its parent is gone.

    Args:
        folder: removed then.
        most: bytes.
    """
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    def watch() -> None:
        # Standard input is a pipe that the parent holds and never writes to.
        while os.read(0, 1):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main(source: Path, folder: Path, key: str | None) -> None:
    """Convert `source` to weights.safetensors and report.json in `folder`, or write only the latter."""
    from safetensors.torch import save_file

    report: dict[str, str]
    try:
        taken, tensors = select(unpickle(source), key)
        # Copies: safetensors refuses tensors that share memory.
        copies = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
        save_file(copies, folder / "weights.safetensors")
        report = {"taken": taken}
    except Exception as error:  # whatever the pickle raises
        report = {"error": " ".join(f"{error or type(error).__name__}".split())}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
