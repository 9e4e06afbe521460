"""Paths as users write them; reading only files of a sane size; writing that leaves the old file or the new.

An interruption never leaves half a file.
"""

from __future__ import annotations

import csv
import errno
import math
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from diffproof.checks import shown
from diffproof.errors import ArgumentError, without_control

# What settings, descriptions and other texts have at most, in bytes.
MOST_TEXT = 2**20
# An archive is a bomb if it expands to more than this, and to more than so many times its own size.
_BOMB, _EXPANSION = 2**28, 100
_KINDS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


def check_file(argument: str, path: Path) -> int:
    """The size of a regular file in bytes; links are followed, nothing is opened.

    Raises:
        ValueError: there is none, or it is a folder, a pipe, a socket or a device.
        OSError: it may not be looked at.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        told = f"broken link: {path} leads to no file" if path.is_symlink() else f"no such file: {path}"
        raise ArgumentError(argument, told) from None
    except ValueError as error:  # a null byte
        raise ArgumentError(argument, f"no such file: {path} ({error})") from None
    if (kind := _kind(found.st_mode)) is not None:
        raise ArgumentError(argument, f"{path} is a {kind}, expected a file")
    return found.st_size


def _kind(mode: int) -> str | None:
    """What it is called that is no regular file, by its mode; None for a file."""
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), None)


def no_own_file(path: Path) -> str | None:
    """What is in the place of a file that we alone write and read; None for a file, or nothing.

    A link might lead anywhere, and to open a pipe may take forever.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    return "link" if stat.S_ISLNK(mode) else _kind(mode)


@contextmanager
def named(argument: str) -> Iterator[None]:
    """While a name or path of the user is looked up: one too long for any file is a mistake of theirs."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ArgumentError(argument, f"no file has so long a name: {shown(error.filename)}") from None


def read_text(argument: str, path: Path, most: int = MOST_TEXT) -> str:
    """The UTF-8 text of a file of at most `most` bytes.

    Raises:
        ValueError: as `check_file`, or it is longer or no UTF-8.
        OSError: it cannot be read.
    """
    check_file(argument, path)
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ArgumentError(argument, f"{path} is longer than {most:,} bytes, the most for such a file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError(argument, f"{path} is no UTF-8 text: {error}") from None


def check_archive(argument: str, path: Path) -> None:
    """Refuse a zip file that would expand beyond all measure, by the sizes that it declares.

    At most 256 MiB, or 100 times the size of the file, whichever is more. What is no zip file passes.

    Raises:
        ValueError: as `check_file`, or it would expand to more.
    """
    size = check_file(argument, path)
    try:
        with zipfile.ZipFile(path) as archive:
            expanded = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError):
        return
    if expanded > max(_BOMB, _EXPANSION * size):
        raise ArgumentError(
            argument,
            f"{path} has {size:,} bytes and would expand to {expanded:,}, expected at most"
            f" {_BOMB:,} or {_EXPANSION} times its size",
        )


def check_array(file: IO[bytes], size: int) -> None:
    """Refuse an array in the .npy format whose header asks for other than what follows: NumPy believes it.

    Args:
        file: at its begin; left behind the header.
        size: bytes that it has.

    Raises:
        ValueError: no such array, or one of another size.
    """
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = header(file)
    follow = size - file.tell()
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize != follow:
        raise ValueError(f"{follow:,} bytes are no {dtype} of shape {shape}")


def expanded(path: str | Path) -> Path:
    """A path whose leading "~" or "~user" is that home folder; as it is where there is none."""
    return Path(os.path.expanduser(path))


def expanded_spec(spec: str) -> str:
    """A network's spec with "~" expanded wherever a path may begin: at its start, after ":" or "@"."""
    return re.sub(r"(?<![^:@])~[^/:@]*(?=/|$)", lambda home: os.path.expanduser(home[0]), spec)


def members(spec: str) -> list[str]:
    """The specs of an ensemble's members, of "ensemble:a,b,c"; of any other spec itself.

    A file whose name begins so is no ensemble.
    """
    kind, colon, rest = spec.partition(":")
    if (kind, colon) != ("ensemble", ":") or os.path.isfile(expanded_spec(spec)):
        return [spec]
    return [one.strip() for one in rest.split(",")]


def warn_of_path(argument: str, name: str, what: str) -> None:
    """Say that a name means what we call so, where a file or folder here has that name, too.

    Args:
        argument: what the name was given for, such as "data".
        name: without a slash.
        what: what it means, such as "the packaged data set".
    """
    if os.path.lexists(name):
        kind = "folder" if os.path.isdir(name) else "file"
        warnings.warn(f"{argument}: {name} is {what}; ./{name} is the {kind} of that name", stacklevel=3)


def check_out(folder: Path, names: Iterable[str], *, force: bool) -> None:
    """Refuse to write files into a folder, which need not be there yet, where something is in the way.

    Args:
        folder: given as `out`.
        names: of the files.
        force: whether they may replace files that are there.

    Raises:
        ValueError: the folder or a part of its path is a file, may not be written to, or has such a file, or
            a link in the place of one.
    """
    parent = expanded(folder)
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise ArgumentError("out", f"{parent} is a file, expected a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ArgumentError("out", f"no permission to write to {parent}")
    for name in names:
        _check_no_link(expanded(folder), name)
        _check_target(expanded(folder) / name, force)


def check_out_file(path: Path, *, force: bool) -> None:
    """Refuse to write a file into a folder that must be there, as `check_out` does.

    Raises:
        ValueError: no such folder, or something is in the way, such as a link to a file.
    """
    if not path.parent.is_dir():
        raise ArgumentError("out", f"no such folder: {path.parent}")
    _check_leads_somewhere(path)
    # One to a pipe or a terminal, as /dev/stdout, overwrites nothing.
    if path.is_file():
        check_no_link(path)
    _check_target(path, force)


def _check_no_link(folder: Path, name: str) -> None:
    """Raise ValueError where a file within a folder would be written elsewhere, as nobody asked for."""
    for place in (Path(name), *Path(name).parents[:-1]):
        check_no_link(folder / place)


def check_no_link(path: Path) -> None:
    """Raise ValueError where a link, a pipe or a device is in the place of a file to write."""
    kind = no_own_file(path)
    if kind == "link":
        raise ArgumentError("out", f"{path} is a link, which is not followed")
    if kind not in (None, "folder"):
        raise ArgumentError("out", f"{path} is a {kind}, expected a file")


def _check_target(path: Path, force: bool) -> None:
    _check_leads_somewhere(path)
    if path.is_dir():
        raise ArgumentError("out", f"{path} is a folder, expected to write a file there")
    if path.exists() and not force:
        raise ArgumentError("out", f"{path} exists; --force overwrites it")


def _check_leads_somewhere(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise ArgumentError("out", f"{path} is a link that leads to no file")


def created(path: Path, mode: int = 0o666) -> None:
    """Make an empty file, and none through a link: one that is there under this name is removed first.

    Args:
        path: of the file.
        mode: of it, without what the process takes from all of its files.

    Raises:
        OSError: it cannot be made.
    """
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))


def remove(path: Path) -> None:
    """Remove a file, if it is there, and what a kill within `replacing` left beside it."""
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.new").unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the place of `path` only if all went well.

    A device or a pipe is written to itself, and a link keeps its name: renaming would destroy either. No link
    in the place of the path beside it is followed.

    Raises:
        ValueError: the path is a link that leads to no file.
    """
    path = expanded(path)
    _check_leads_somewhere(path)
    device = path.exists() and not path.is_file()
    path = path if device else Path(os.path.realpath(path))
    fresh = path if device else path.with_name(f"{path.name}.new")
    if not device:
        created(fresh)
    try:
        yield fresh
        if not device:
            fresh.replace(path)
    except OSError as error:
        # A full disk does not say where.
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        if not device:
            fresh.unlink(missing_ok=True)


@contextmanager
def replacing_all(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """`replacing` for files of one folder, all of them or none; a folder made for them goes with them."""
    folder = expanded(paths[0]).parent
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            yield [stack.enter_context(replacing(path)) for path in paths]
    except BaseException:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise


def write_files(folder: Path, writers: Mapping[str, Callable[[Path], None]], *, force: bool) -> list[Path]:
    """Write files of one folder, all of them or none, each by the function that its name has.

    Returns:
        Their paths.

    Raises:
        ValueError: something is in the way, see `check_out`.
        OSError: the folder cannot be written.
    """
    check_out(folder, writers, force=force)
    paths = [folder / name for name in writers]
    with replacing_all(paths) as fresh:
        for write, path in zip(writers.values(), fresh, strict=True):
            write(path)
    return paths


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV, whole or not at all; before what a spreadsheet would run comes an apostrophe."""
    with (
        replacing(path) as fresh,
        fresh.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows([[cell(value) for value in row] for row in rows])


def cell(value: object) -> object:
    """What a CSV file holds of a value: texts without control characters, which a terminal would obey.

    Before a text that a spreadsheet would run comes an apostrophe.
    """
    if not isinstance(value, str | Path):
        return value
    text = without_control(str(value))
    if not text.startswith(("=", "+", "-", "@")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
