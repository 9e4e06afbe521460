"""Parquet files before they are read: what their footers say, and that they fit each other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffproof.errors import ArgumentError, printable
from diffproof.files import check_file
from diffproof.formats import in_place_of_file

# Bytes that show what lies in place of a table.
_HEAD = 4096
# How archives of zip, gzip, bzip2, xz, zstd, 7z and RAR begin.
_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!")


def check_start(path: Path) -> None:
    """Raise ValueError of a file that is no parquet file, with what it is where that is known."""
    check_file("data", path)
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(_ARCHIVES) or head[257:262] == b"ustar":
        raise ArgumentError("data", f"{path} is an archive; unpack it and give its folder")
    if head.startswith(b"\x93NUMPY"):
        wanted = "np.savez(FILE, images=…, labels=…) writes an .npz file of both"
        raise ArgumentError("data", f"{path} is a single array; {wanted}")
    if not head.startswith(b"PAR1"):
        wanted = "no parquet file; expected a .parquet or .npz file, or a folder of class folders with images"
        raise ArgumentError("data", f"cannot read {path}: it is {in_place_of_file(head) or wanted}")


def check_tables(paths: Iterable[Path]) -> None:
    """Raise ValueError of files that cannot be one table: damaged or empty ones, columns of several kinds."""
    kinds: dict[str, tuple[str, Path]] = {}
    before: tuple[set[str], Path] | None = None
    for path in paths:
        schema = _schema(path)
        names, first = before = before or ({*schema.names}, path)
        if not (names <= {*schema.names} or names >= {*schema.names}):
            got = f"{', '.join(schema.names)} in {path}"
            raise ArgumentError(
                "data", f"expected the columns {', '.join(sorted(names))} as in {first}, got {got}"
            )
        for name in schema.names:
            if schema.names.count(name) > 1:
                raise ArgumentError("data", f"{path} has {schema.names.count(name)} columns called {name!r}")
            kind = _plain(schema.field(name).type)
            other, first = kinds.setdefault(name, (kind, path))
            if "null" in (other, kind):
                kinds[name] = (kind if other == "null" else other, first)
            elif other != kind:
                raise ArgumentError(
                    "data",
                    f"the column {name!r} is {printable(other, 60)} in {first}, but {printable(kind, 60)} in"
                    f" {path}; expected one kind",
                )


def _schema(path: Path) -> Any:
    import pyarrow.parquet

    check_start(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
    except MemoryError:
        raise
    except Exception as error:  # pyarrow's of a damaged file
        raise ArgumentError("data", f"cannot read {path}: {printable(error, 160)}") from None
    if rows == 0 or not schema.names:
        raise ArgumentError("data", f"{path} has no {'row' if schema.names else 'column'}")
    return schema


def _plain(kind: Any) -> str:
    """A type without what does not matter here: how texts and bytes are stored."""
    import pyarrow.types

    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    if pyarrow.types.is_integer(kind):
        return "integers"
    if pyarrow.types.is_struct(kind):
        return "structs"
    return str(kind).removeprefix("large_").replace("string_view", "string")
