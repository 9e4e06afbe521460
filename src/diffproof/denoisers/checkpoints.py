"""Published checkpoints: every key and shape must fit the preset; misfits are told in the file's own keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from diffproof.errors import ArgumentError

Shapes = Mapping[str, tuple[int, ...]]

_SHOWN = 3  # of each kind of problem; a wrong preset has hundreds


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "one number"


def check_keys(
    tensors: Mapping[str, Tensor],
    expected: Shapes,
    *,
    source: str,
    preset: str,
    others: Iterable[tuple[str, Shapes]] = (),
) -> None:
    """Refuse a checkpoint unless its keys and shapes are exactly those of a preset.

    Args:
        tensors: the checkpoint, under its own keys.
        expected: the shapes that the preset has, under the checkpoint's keys.
        source: the file, for the message.
        preset: the name of the preset, for the message.
        others: further presets of the family, which are named if they fit; read only when `expected` does
            not, so a generator that builds them costs nothing otherwise.

    Raises:
        ValueError: missing, unexpected or misshapen keys; the first few are named, and any preset that fits.
    """
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "misshapen": [
            f"{name} (expected {_times(shape)}, got {_times(tuple(tensors[name].shape))})"
            for name, shape in expected.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ],
    }
    found = "; ".join(f"{kind} {_listed(names)}" for kind, names in problems.items() if names)
    if not found:
        return
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    fitting = [name for name, shapes in others if dict(shapes) == given]
    hint = f"; preset {' or '.join(fitting)} fits" if fitting else ""
    raise ArgumentError("weights", f"{source} does not fit preset {preset}: {found}{hint}")
