"""Checkpoints by their content: each is read as what it is, or named with what helps."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from diffproof.classifiers.named import load_classifier
from diffproof.convert import convert
from diffproof.denoisers.named import load_denoiser
from diffproof.weights import load_into, load_weights

STATE = {"0.weight": torch.arange(6.0).reshape(3, 2), "0.bias": torch.ones(3)}


def saved(value: object, **settings: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **settings)
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pt"))
    return file.getvalue()


def script() -> bytes:
    """A TorchScript file has its constants beside its data."""
    return zipped(**{"m/data.pkl": b"\x80\x02}.", "m/constants.pkl": b"\x80\x02).", "m/code/m.py": b""})


def arrays() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(2))
    return file.getvalue()


OPTIMISER = torch.optim.Adam(nn.Linear(2, 2).parameters()).state_dict()
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
WHOLE = saved(STATE)

# Bytes; what they are called; what the user is told to do.
NO_WEIGHTS: dict[str, tuple[bytes, str]] = {
    "LFS": (LFS, "a Git LFS pointer in place of the file; fetch it with `git lfs pull`"),
    "annex": (b"/annex/objects/MD5E-s123--abc.pt\n", "a git-annex pointer .*git annex get"),
    "HTML": (
        b"<!DOCTYPE html>\n<html><head><title>Sign in</title>",
        "an HTML page.*download the file itself",
    ),
    "html": (b"\n\n <html lang=en><body>404</body></html>", "an HTML page"),
    "XML": (
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "XML, .*AccessDenied.*download",
    ),
    "JSON": (b'{"error": "Repository not found"}', "JSON, perhaps a server's error .*Repository not found"),
    "index": (b'{"metadata": {}, "weight_map": {"a": "model-00001.safetensors"}}', "the index of weights"),
    "text": (b"Too many requests, try again later\n", r"a text \('Too many requests"),
    "empty": (b"", "empty; download"),
    "gzip": (gzip.compress(WHOLE), "compressed by gzip; unpack it"),
    "bzip2": (bz2.compress(WHOLE), "compressed by bzip2; unpack it"),
    "xz": (lzma.compress(WHOLE), "compressed by xz; unpack it"),
    "zip": (zipped(**{"weights/model.pt": WHOLE}), r"a zip archive \(weights/model.pt\); unpack it"),
    "npz": (arrays(), r"NumPy arrays \(.npz\)"),
    "npy": (b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'}", "a NumPy array"),
    "tar": (tarred(), "a tar archive; unpack it"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x051.12.", "an ONNX model"),
    "TorchScript": (script(), "a TorchScript program; save its weights: torch.save"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5, as Keras saves weights"),
    "Keras": (zipped(**{"config.json": b"{}", "model.weights.h5": b""}), "a Keras model"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(16), "a GGUF file"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(30), "a PNG picture"),
    "cut zip": (WHOLE[: len(WHOLE) // 2], "unreadable or truncated: a zip file, .*without its end"),
    "cut safetensors": (save(STATE)[:-3], "unreadable or truncated"),
    "cut pickle": (saved(STATE, _use_new_zipfile_serialization=False)[:60], "unreadable or truncated"),
    "noise": (bytes(range(100, 256)) * 3, "unreadable or truncated"),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_what_is_no_weights_file_is_named(tmp_path: Path, kind: str, suffix: str) -> None:
    content, message = NO_WEIGHTS[kind]
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    for load in (
        lambda: load_weights(path),
        lambda: load_denoiser(str(path)),
        lambda: load_classifier(str(path)),
        lambda: convert(path, tmp_path / "out.safetensors"),
        lambda: convert(path, tmp_path / "out.safetensors", trust_pickle=True),
    ):
        with pytest.raises(ValueError, match=f"w{suffix} is {message}") as raised:
            load()
        # Trust would not help.
        assert "trust" not in str(raised.value)
        assert "\n" not in str(raised.value)


def ema(tensors: dict[str, Tensor]) -> dict[str, object]:
    return {"epoch": 3, "optimizer": OPTIMISER, "scheduler": {"last_lr": [0.1]}, "params": tensors}


def loops(tensors: dict[str, Tensor]) -> dict[str, Any]:
    holder: dict[str, Any] = {"net": tensors}
    holder["self"] = holder
    return holder


READ: dict[str, Callable[[], bytes]] = {
    "torch.save": lambda: WHOLE,
    "old torch.save": lambda: saved(STATE, _use_new_zipfile_serialization=False),
    "safetensors": lambda: save(STATE),
    "state_dict": lambda: saved({"state_dict": STATE, "epoch": 1}),
    "model": lambda: saved({"model": STATE, "optimizer": OPTIMISER}),
    "params": lambda: saved(ema(STATE)),
    "two levels": lambda: saved({"checkpoint": {"network": STATE, "step": 4}}),
    "holds itself": lambda: saved(loops(STATE)),
    **{
        prefix: lambda prefix=prefix: saved({f"{prefix}{name}": value for name, value in STATE.items()})  # type: ignore[misc]
        for prefix in ("module.", "model.", "_orig_mod.", "_orig_mod.module.", "net.encoder.")
    },
    "Lightning": lambda: saved(
        {
            "state_dict": {f"model.{name}": value for name, value in STATE.items()},
            "optimizer_states": [OPTIMISER],
        }
    ),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".ckpt", ""])
@pytest.mark.parametrize("kind", READ)
def test_the_name_of_a_file_says_nothing(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(READ[kind]())
    network = nn.Sequential(nn.Linear(2, 3))
    load_into(network, load_weights(path).tensors, str(path))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, STATE[name])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (OPTIMISER, "holds the state of an optimiser, expected a network's state dict"),
        (
            {"model": STATE, "ema": STATE},
            r"several state dicts \(model, ema\); `diffproof convert --key model`",
        ),
        ({"a": {"b": STATE, "c": STATE}}, r"several state dicts \(a.b, a.c\)"),
        ([torch.zeros(2)], "holds one list, expected a state dict"),
        (torch.zeros(2), "holds one Tensor, expected a state dict"),
        ({"epoch": 3, "note": "x"}, r"no flat state dict of tensors, but epoch \(int\), note \(str\)"),
        (
            {"0.weight": torch.ones(2), "step": 3},
            r"no flat state dict of tensors, but 0.weight \(Tensor\), step",
        ),
        ({}, "no flat state dict of tensors, but nothing"),
    ],
)
def test_what_holds_no_one_state_dict_is_named(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(saved(content))
    with pytest.raises(ValueError, match=message):
        load_weights(path)


def test_the_key_that_the_message_offers_is_taken(tmp_path: Path) -> None:
    path, out = tmp_path / "w.pt", tmp_path / "out.safetensors"
    path.write_bytes(saved({"a": {"b": STATE, "c": {"x": torch.zeros(1)}}}))
    assert convert(path, out, key="a.b").taken == "'a.b'"
    assert torch.equal(load_weights(out).tensors["0.bias"], STATE["0.bias"])


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (saved({"args": Namespace(lr=1), "model": STATE}), r"holds code \(argparse.Namespace\)"),
        (saved(nn.Linear(2, 2)), r"holds code \(torch.nn.modules.linear.Linear\)"),
        (pickle.dumps({"model": Namespace(a=1)}), "may hold code"),
        (pickle.dumps({"epoch": 3}), "may hold code"),
        (pickle.dumps({"epoch": 3}, 0), "may hold code"),
    ],
)
def test_pickles_alone_may_be_trusted(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=f"is a pickle that ({what}).*if you trust its source, `diffproof convert`"
    ):
        load_weights(path)
    with pytest.raises(ValueError, match="--trust-pickle loads it"):
        convert(path, tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {f"module.{name}": value for name, value in STATE.items()} | {"extra": torch.ones(1)},
            "missing 0.weight",
        ),
        ({f"module.{name}": value[:1] for name, value in STATE.items()}, "misshapen 0.weight, 0.bias"),
        ({name: value.to(torch.int8) for name, value in STATE.items()}, "quantised 0.weight, 0.bias"),
    ],
)
def test_what_does_not_fit_is_named(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=f"FILE does not fit the network: {message}"):
        load_into(nn.Sequential(nn.Linear(2, 3)), tensors, "FILE")


def test_a_description_is_read_whatever_the_name(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(save(STATE, metadata={"diffproof": json.dumps({"kind": "denoiser"})}))
    assert load_weights(path).description == {"kind": "denoiser"}
