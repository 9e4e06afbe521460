"""Weights files: safetensors with a description in their metadata, loaded as data and never as code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffproof.errors import ArgumentError, is_out_of_memory
from diffproof.files import check_archive, check_file, replacing
from diffproof.formats import Format, format_of, is_whole_pickle
from diffproof.optional import one_line
from diffproof.texts import parse_json

_ASSETS = Path(__file__).parent / "assets"


class CodeInPickleError(ArgumentError):
    """A file was not loaded because it is a pickle with more than data in it."""


class Weights(NamedTuple):
    """Tensors by name, and what the file says about them ("kind", "network", "training", …)."""

    tensors: dict[str, Tensor]
    description: dict[str, Any]


def packaged(kind: str) -> dict[str, Path]:
    """The files of one kind ("denoiser", "classifier") that ship with the package, by name."""
    return {
        path.stem.removesuffix(f"-{kind}"): path for path in sorted(_ASSETS.glob(f"*-{kind}.safetensors"))
    }


def save_weights(path: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write a safetensors file whose metadata holds `description` as JSON.

    Raises:
        ValueError: the format has no such type of numbers, or no such name.
    """
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if "__metadata__" in contiguous:
        raise ArgumentError("weights", "safetensors keeps the name __metadata__ for itself; got a tensor")
    try:
        data = save(contiguous, metadata={"diffproof": json.dumps(description, sort_keys=True)})
    except (KeyError, UnicodeEncodeError) as error:
        problem = f"safetensors takes no tensors of such a type or name: {one_line(error, 160)}"
        raise ArgumentError("weights", problem) from None
    with replacing(path) as fresh:
        fresh.write_bytes(data)


def load_weights(path: Path) -> Weights:
    """Read a weights file as data.

    Args:
        path: safetensors, or a file of torch.save that holds only tensors and plain containers.

    Raises:
        ValueError: the file is missing, truncated, holds code, or is no weights file.

    Only safetensors written by `save_weights` carry a description; that of other files is empty.
    """
    loaded, description = load_described(path)
    return Weights(_state_dict(loaded, path), description)


def load_nested(path: Path) -> Any:
    """Read a training checkpoint as data: tensors and numbers in nested dicts and lists, as it holds them.

    Raises:
        ValueError: as `load_weights`, but any plain content will do.
    """
    return load_described(path)[0]


def load_described(path: Path) -> tuple[Any, dict[str, Any]]:
    """As `load_nested`, with the description that a file of `save_weights` carries.

    Raises:
        ValueError: as `load_nested`.
        MemoryError: there is too little for the file.
    """
    check_file("weights", path)
    kind = format_of(path)
    try:
        if kind is Format.SAFETENSORS:
            return _read_safetensors(path)
        return _read_pickle_as_data(path, kind), {}
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"no memory for {path}, which has {path.stat().st_size:,} bytes") from None


def state_dicts(loaded: object) -> dict[str, dict[str, Tensor]]:
    """The state dicts in what a checkpoint holds, by the names that lead there; an optimiser's is none."""
    found: dict[str, dict[str, Tensor]] = {}
    open_ones, seen = [("", loaded)], set[int]()
    while open_ones:
        name, value = open_ones.pop()
        if not isinstance(value, dict) or "param_groups" in value:
            continue
        if name and _is_state(value):
            found[name] = value
        elif id(value) not in seen:  # containers may hold themselves
            seen.add(id(value))
            open_ones += [(f"{name}.{key}".lstrip("."), one) for key, one in reversed(value.items())]
    return found


def _is_state(value: dict[Any, Any]) -> bool:
    """Whether a dict is a state dict: tensors, all named by texts."""
    return bool(value) and all(
        isinstance(name, str) and isinstance(one, Tensor) for name, one in value.items()
    )


def _state_dict(loaded: object, path: Path) -> dict[str, Tensor]:
    """The tensors of a file: all that it holds, or its one state dict among other things."""
    if not isinstance(loaded, dict):
        raise ArgumentError("weights", f"{path} holds one {type(loaded).__name__}, expected a state dict")
    if _is_state(loaded):
        return loaded
    found = state_dicts(loaded)
    if len(found) == 1:
        return next(iter(found.values()))
    entries = ", ".join(f"{name} ({type(value).__name__})" for name, value in list(loaded.items())[:4])
    problem = f"no flat state dict of tensors, but {entries[:200] or 'nothing'}"
    if found:
        key = next(iter(found))
        problem = (
            f"several state dicts ({', '.join(found)}); `diffproof convert --key {key}` takes one of them"
        )
    elif "param_groups" in loaded:
        problem = "the state of an optimiser, expected a network's state dict"
    raise ArgumentError("weights", f"{path} holds {problem}")


def _read_safetensors(path: Path) -> Weights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        description = parse_json(metadata.get("diffproof", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ArgumentError("weights", f"{path} is unreadable or truncated: {error}") from None
    if not isinstance(description, dict):
        raise ArgumentError("weights", f"the description in {path} is no table of names and values")
    return Weights(tensors, description)


# Optimiser states hold learning rates as NumPy numbers, which torch does not count as data by itself.
_NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
_NUMPY_NUMBERS: list[Any] = [
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
]


def _read_pickle_as_data(path: Path, kind: Format) -> Any:
    check_archive("weights", path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY_NUMBERS):
            # torch warns of the pickle's protocol before it refuses it.
            warnings.simplefilter("ignore")
            # Of a file's name it would make something, too.
            with path.open("rb") as file:
                loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle ends in almost any exception
        if is_out_of_memory(error):
            raise  # a sound file that does not fit is not a damaged one
        if not is_whole_pickle(path, kind):
            raise ArgumentError(
                "weights", f"{path} is unreadable or truncated: its pickle breaks off"
            ) from None
        if kind is Format.TORCH and not isinstance(error, pickle.UnpicklingError):
            raise ArgumentError(
                "weights", f"{path} is unreadable or truncated: {one_line(error, 160)}"
            ) from None
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = "may hold code" if named is None else f"holds code ({named[1]})"
        raise CodeInPickleError(
            "weights",
            f"{path} is a pickle that {what} and was not loaded; if you trust its source, `diffproof convert`"
            " turns it into safetensors (as safetensors.torch.save_file does)",
        ) from None
    for name, tensor in _tensors("", loaded):
        if (
            tensor.layout is not torch.strided
            or tensor.device.type != "cpu"
            or tensor.is_quantized
            or tensor.is_nested
        ):
            raise ArgumentError("weights", f"{path}: {name} is no ordinary tensor")
        # A stride of 0 makes a large tensor of few bytes; a small one does no harm.
        if tensor.numel() > max(_FEW, path.stat().st_size):
            has = f"{name} has {tensor.numel():,} values, the file {path.stat().st_size:,} bytes"
            raise ArgumentError("weights", f"{path}: {has}")
    return loaded


# Values of a tensor that may repeat itself at will.
_FEW = 2**26


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested dicts and lists, by the names that lead there; containers may hold themselves."""
    open_ones, seen = [(name, value)], set()
    while open_ones:
        name, value = open_ones.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            open_ones += [(f"{name}.{key}".lstrip("."), one) for key, one in inner]


@contextmanager
def only_data() -> Iterator[None]:
    """Within this block torch.load runs no code in a pickle, whatever the library that calls it asks for.

    Raises:
        CodeInPickleError: a file that the block loads holds code, or is damaged.
    """
    # torch's own switches: the first overrides every caller, and having both is an error.
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            yield
    except pickle.UnpicklingError:
        raise CodeInPickleError(
            "weights", "the file is a pickle that holds code, or is damaged, and was not loaded"
        ) from None
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


# A network may have so many parameters more than its file has values: what does not fit is told by name.
_TIMES_ITS_FILE, _MORE = 2, 2**20


@contextmanager
def no_larger_than(values: int) -> Iterator[None]:
    """Within this block, networks are not built with more parameters than a file can hold.

    Its description may ask for any number of layers and channels; what is too much costs no memory.

    Args:
        values: how many numbers the file has.

    Raises:
        ValueError: the parameters are more than twice as many, small networks aside.
    """
    problem = f"the network asks for more parameters than the file's {values:,}"
    with parameters_within(_TIMES_ITS_FILE * values + _MORE, ArgumentError("weights", problem)):
        yield


@contextmanager
def parameters_within(most: float, error: ArgumentError) -> Iterator[None]:
    """Within this block, building networks with more parameters than these raises an error, at once."""
    left = most

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal left
        left -= 1 if parameter is None else parameter.numel()
        if left < 0:
            raise error

    hook = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def stored_bytes(folder: Path) -> int:
    """How large the files of weights in a folder are together."""
    found = [path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern)]
    return sum(path.stat().st_size for path in found if path.is_file())


def without_wrapper(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Tensors without the prefix that a wrapper gave all their names, if they are the wanted ones then.

    DataParallel puts "module." before every name, torch.compile "_orig_mod.", many trainings "model.".

    Args:
        tensors: by name.
        wanted: names.
    """
    first, same = next(iter(tensors), ""), set(wanted)
    for prefix in (first[: cut + 1] for cut, letter in enumerate(first) if letter == "."):
        if {name.removeprefix(prefix) for name in tensors} == same:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Fill a module; every key and shape must fit, less the prefix of a wrapper (see `without_wrapper`).

    Raises:
        ValueError: missing, unexpected or misshapen tensors, integers for floats, or parameters with NaN or
            infinity; the first few are named.
    """
    own = module.state_dict()
    tensors = without_wrapper(tensors, own)
    both = [name for name in own if name in tensors]
    problems = {
        "missing": [name for name in own if name not in tensors],
        "unexpected": [name for name in tensors if name not in own],
        "misshapen": [name for name in both if own[name].shape != tensors[name].shape],
        "quantised": [
            name for name in both if own[name].is_floating_point() > tensors[name].is_floating_point()
        ],
        "not finite": [
            name
            for name, _ in module.named_parameters()
            if name in tensors and not bool(tensors[name].isfinite().all())
        ],
    }
    found = [f"{kind} {', '.join(names[:3])}" for kind, names in problems.items() if names]
    if found:
        raise ArgumentError("weights", f"{source} does not fit the network: {'; '.join(found)}")
    module.load_state_dict(tensors)


# Integers of so many bytes.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Bytes up to which a tensor is hashed sooner than its numbers are summed.
_SMALL = 100_000


def checksums(tensors: Mapping[str, Tensor]) -> tuple[object, ...]:
    """A short account of tensors in this process, made where they lie; a number that changes changes it.

    Of large ones, and those on a device, only what keeps the sums of all rows and columns could go unseen.
    """
    # Devices are waited for once all sums are asked for.
    made = [(name, one.dtype, one.shape, _account(one.detach())) for name, one in tensors.items()]
    return tuple((*about, one if isinstance(one, int) else tuple(one.tolist())) for *about, one in made)


def _account(tensor: Tensor) -> int | Tensor:
    parts = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    bits = parts.view(_INTEGERS[parts.itemsize])
    if bits.is_cpu and bits.nbytes <= _SMALL:
        return hash(bits.numpy().tobytes())
    table = bits.flatten(1) if bits.ndim > 1 else bits.reshape(-1, 1)
    own = 8 // table.itemsize
    # Numbers of eight bytes are summed as they are, many times as fast as what is made longer first.
    if table.is_contiguous() and table.shape[1] % own == 0 and table.storage_offset() % own == 0:
        table = table.view(torch.int64)
    return torch.stack([_by_place(table.sum(1)), _by_place(table.sum(0))])


def _by_place(sums: Tensor) -> Tensor:
    """Their sum, each times its place, counted from 1; modulo 2^64."""
    return (sums * torch.arange(1, len(sums) + 1, device=sums.device)).sum()


def hash_tensors(tensors: Mapping[str, Tensor], description: str = "") -> str:
    """SHA-256 over names, dtypes, shapes, bytes and a description, independent of device and order."""
    digest = hashlib.sha256(description.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
