"""What a weights file is, by its content: its name may say anything."""

from __future__ import annotations

import collections
import io
import pickletools
import zipfile
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from diffproof.errors import ArgumentError


class Format(Enum):
    """Formats that weights are read in."""

    SAFETENSORS = "safetensors"
    TORCH = "torch.save"
    PICKLE = "pickle"


class _Start(NamedTuple):
    begins: bytes
    what: str
    remedy: str


# Read of a file to tell what it is; and the largest pickle that is walked through for that.
_HEAD, _WALKED = 4096, 2**24
# How torch.save's older format begins.
_LEGACY = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_UNPACK = "unpack it and give the file inside that holds the weights"
_AGAIN = "download the file itself"
_OTHER = "expected safetensors, or a file of torch.save"
_ONNX_FIELDS = (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42")
_POINTERS = (
    _Start(
        b"version https://git-lfs", "a Git LFS pointer in place of the file", "fetch it with `git lfs pull`"
    ),
    _Start(b"/annex/objects/", "a git-annex pointer in place of the file", "fetch it with `git annex get`"),
)
_STARTS = (
    _Start(b"\x89HDF\r\n\x1a\n", "HDF5, as Keras saves weights", _OTHER),
    _Start(b"\x1f\x8b\x08", "compressed by gzip", _UNPACK),
    _Start(b"BZh", "compressed by bzip2", _UNPACK),
    _Start(b"\xfd7zXZ\x00", "compressed by xz", _UNPACK),
    _Start(b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    _Start(b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    _Start(b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    _Start(b"\x93NUMPY", "a NumPy array", _OTHER),
    _Start(b"GGUF", "a GGUF file of a language model", _OTHER),
    _Start(b"\x89PNG\r\n", "a PNG picture", _OTHER),
    _Start(b"\xff\xd8\xff", "a JPEG picture", _OTHER),
    _Start(b"%PDF-", "a PDF document", _OTHER),
    _Start(b"\x7fELF", "a program", _OTHER),
)


def format_of(path: Path) -> Format:
    """The format of a file, by its content.

    Raises:
        ValueError: it is empty, damaged, or something else, which is named with what helps.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
        size = file.seek(0, 2)
    # A table behind its length, which is no length of anything above a terabyte.
    if head[5:9] == b"\0\0\0{":
        return Format.SAFETENSORS
    if head.startswith(b"PK\x03\x04"):
        return _format_of_zip(path)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return Format.TORCH if _LEGACY in head[:32] else Format.PICKLE
    if (named := _other_format(head)) is not None:
        raise ArgumentError("weights", f"{path} is {named}")
    # Of the protocols that have no mark at their beginning.
    if size <= _WALKED and is_whole_pickle(path, Format.PICKLE):
        return Format.PICKLE
    text = _as_text(head)
    if text is not None:
        raise ArgumentError("weights", f"{path} is a text ({text!r}); {_OTHER}")
    raise ArgumentError("weights", f"{path} is unreadable or truncated: it begins as no weights file does")


def in_place_of_file(head: bytes) -> str | None:
    """What lies in place of a file of any kind that was not fetched, and what helps; None for all else.

    Args:
        head: the first bytes of it.
    """
    if not head:
        return f"empty; {_AGAIN}"
    for start in _POINTERS:
        if head.startswith(start.begins):
            return f"{start.what}; {start.remedy}"
    if (_as_text(head) or "").lower().startswith(("<!doctype html", "<html", "<head")):
        return f"an HTML page, perhaps in place of a download; {_AGAIN}"
    return None


def check_fetched(argument: str, folder: Path) -> None:
    """Raise ValueError of a weights file in a folder, or below it, in whose place lies something else."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".bin") and path.is_file():
            with path.open("rb") as file:
                found = in_place_of_file(file.read(_HEAD))
            if found is not None:
                raise ArgumentError(argument, f"{path} is {found}")


def _other_format(head: bytes) -> str | None:
    """What is no weights file, and what helps; None for what may be one."""
    if (named := in_place_of_file(head)) is not None:
        return named
    for start in _STARTS:
        if head.startswith(start.begins):
            return f"{start.what}; {start.remedy}"
    if head[257:262] == b"ustar":
        return f"a tar archive; {_UNPACK}"
    if head[4:8] == b"TFL3":
        return f"a TensorFlow Lite model; {_OTHER}"
    # A protobuf whose first field is a small number, and whose second is a text or message of ONNX.
    if head[:1] == b"\x08" and b"\x01" <= head[1:2] < b"\x14" and head[2:3] in _ONNX_FIELDS:
        return f"an ONNX model; {_OTHER}"
    text = _as_text(head)
    start_of_text = (text or "").lower()
    if start_of_text.startswith("<?xml"):
        return f"XML, perhaps a server's error ({text!r}); {_AGAIN}"
    if start_of_text.startswith(("{", "[")):
        if '"weight_map"' in head.decode("utf-8", "replace"):
            return "the index of weights in several files; merge them into one safetensors file"
        return f"JSON, perhaps a server's error ({text!r}); {_AGAIN}"
    return None


def _as_text(head: bytes) -> str | None:
    """The beginning of a text on one line, None where bytes are none."""
    text = head.decode("utf-8-sig", "ignore")
    if (
        len(head) < 8
        or len(text.encode()) < len(head) - 6
        or not all(c.isprintable() or c.isspace() for c in text)
    ):
        return None
    return " ".join(text.split())[:60]


def _format_of_zip(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise ArgumentError(
            "weights", f"{path} is unreadable or truncated: a zip file, as torch.save writes, without its end"
        ) from None
    inner = {name.partition("/")[2] for name in names}
    if "data.pkl" in inner and "constants.pkl" not in inner:
        return Format.TORCH
    if "data.pkl" in inner:
        what = "a TorchScript program; save its weights: torch.save(torch.jit.load(FILE).state_dict(), NEW)"
    elif names and all(name.endswith(".npy") for name in names):
        what = f"NumPy arrays (.npz); {_OTHER}"
    elif "model.weights.h5" in names:
        what = f"a Keras model; {_OTHER}"
    else:
        what = f"a zip archive ({', '.join(names[:3])[:60] or 'empty'}); {_UNPACK}"
    raise ArgumentError("weights", f"{path} is {what}")


def is_whole_pickle(path: Path, kind: Format) -> bool:
    """Whether the pickle in a file reads to its end; nothing of it is run. Large ones are taken to."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                if archive.getinfo(name).file_size > _WALKED:
                    return True
                content = archive.read(name)
        elif path.stat().st_size > _WALKED:
            return True
        else:
            content = path.read_bytes()
        read = io.BytesIO(content)
        # In torch.save's older format a number, a version and a table go before.
        for _ in range(1 if kind is Format.PICKLE or zipfile.is_zipfile(path) else 4):
            collections.deque(pickletools.genops(read), maxlen=0)
        return kind is Format.TORCH or not read.read(1)
    except MemoryError:
        raise
    except Exception:  # damaged pickles end in almost any exception
        return False
