"""The checkpoint of a training: everything that continues it exactly, in one file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from diffproof.errors import ArgumentError
from diffproof.files import replacing
from diffproof.training.processes import Processes
from diffproof.weights import load_nested

_HASH = re.compile("[0-9a-f]{64}")
Identity = Mapping[str, Any]


class Part(Protocol):
    """Anything with a state: a module, an optimiser, a scheduler."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take over a state."""


class Checkpoint:
    """Saves and restores the parts of a training, its random number generators and its losses.

    Args:
        path: the file; None saves nothing.
        parts: what has a state, by name.
        generator: the generator of batches and noise.
        processes: those that share the training; the first one writes.
        identity: what must be the same when the training continues.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        parts: Mapping[str, Part],
        generator: torch.Generator,
        processes: Processes,
        identity: Identity,
    ) -> None:
        self.path, self.parts, self.generator, self.processes = path, parts, generator, processes
        self.identity = json.loads(json.dumps(identity))
        self.saved_at: int | None = None

    def save(self, losses: list[float]) -> None:
        """Write the state after len(losses) steps in place of the previous one.

        All processes call it together. A state with a weight that is not finite is not written.

        Raises:
            OSError: it cannot be written; the previous state stays.
        """
        if self.path is None:
            return
        states = [self.processes.gather(state) for state in _random_states(self.processes.device)]
        if self.processes.rank:
            return
        state: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in state["network"].values()):
            return
        state |= {
            "identity": json.dumps(self.identity),
            "losses": torch.tensor(losses, dtype=torch.float64),
            "generator": self.generator.get_state(),
            "random": states,
        }
        with replacing(self.path) as fresh:
            try:
                torch.save(state, fresh)
            except RuntimeError as error:
                # torch's own writer says so of a full disk.
                raise OSError(f"checkpoint: cannot write {self.path}: {str(error).splitlines()[0]}") from None
        self.saved_at = len(losses)

    def restore(self) -> list[float]:
        """Load the state if there is one; the losses so far.

        Raises:
            ValueError: the file is unreadable, or of a training with other settings.
        """
        if self.path is None or not os.path.lexists(self.path):
            return []
        try:
            state = load_nested(self.path)
        except ValueError:
            raise ArgumentError("checkpoint", f"{self.path} is damaged; delete it to start anew") from None
        expected = {*self.parts, "identity", "losses", "generator", "random"}
        if not isinstance(state, dict) or set(state) != expected:
            raise ArgumentError(
                "checkpoint", f"{self.path} is no checkpoint of a training; delete it to start anew"
            )
        theirs: dict[str, Any] = json.loads(state["identity"])
        differing = _differences(theirs, self.identity)
        if differing:
            raise ArgumentError(
                "checkpoint",
                f"{self.path} is of another training: {'; '.join(differing[:3])}; delete it to start anew",
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        _set_random_states([states[self.processes.rank] for states in state["random"]], self.processes.device)
        losses: list[float] = state["losses"].tolist()
        self.saved_at = len(losses)
        return losses

    def hint(self) -> str:
        """Where the last good state is, as the end of a message."""
        if self.path is None or self.saved_at is None:
            return ""
        return f"; the state after iteration {self.saved_at} is kept in {self.path}"


def _differences(theirs: Mapping[str, Any], mine: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted({*theirs, *mine}):
        one, other = theirs.get(name), mine.get(name)
        if isinstance(one, dict) or isinstance(other, dict):
            before, now = (part if isinstance(part, dict) else {} for part in (one, other))
            found += _differences(before, now, f"{prefix}{name}.")
        elif one != other:
            # Of hashes nobody learns anything.
            hashes = any(isinstance(part, str) and _HASH.fullmatch(part) for part in (one, other))
            found.append(f"{prefix}{name}" if hashes else f"{prefix}{name} ({one}, now {other})")
    return found


def _random_states(device: torch.device) -> list[Tensor]:
    """Torch's own generators: the CPU's, and that of the GPU where there is one."""
    on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_gpu]


def _set_random_states(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
