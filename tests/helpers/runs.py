"""Run folders: small runs, and their stores read and edited without diffproof."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from helpers.command_line import words

# Unlike the demo's runs, small enough to repeat in every test; still some wrong, some certified.
SMALL_RUN: dict[str, object] = {
    "data": "digits",
    "indices": "0:40:8",
    "classifier": "digits",
    "defense": "densepure",
    "sigma": 0.25,
    "steps": 2,
    "votes": 5,
    "n0": 20,
    "n": 100,
    "seed": 3,
}
# What makes of it a run without a defence.
PLAIN: dict[str, object] = {"defense": "none", "denoiser": None, "steps": None, "votes": None}


# Of two calls an image: its first draws, and those behind them.
TOLD: dict[str, Any] = {
    "data": "digits",
    "indices": "0:6",
    "classifier": "digits",
    "defense": "none",
    "sigma": 0.25,
    "n0": 10,
    "n": 30,
    "batch_size": 20,
    "seed": 0,
}


def certify_flags(out: Path, **changes: object) -> list[str]:
    """The command line of SMALL_RUN with other values; None leaves a flag out."""
    flags = {**SMALL_RUN, "out": out}
    if changes.get("defense", flags["defense"]) != flags["defense"]:
        # The settings of another defence are its own.
        del flags["steps"], flags["votes"]
    return words("certify", **{**flags, **changes})


def rows(folder: Path, columns: str = "image_index, true_label, certificate") -> list[tuple[Any, ...]]:
    """The finished images of a certification run."""
    return _select(folder, columns, "images")


def attacked_rows(folder: Path) -> list[tuple[Any, ...]]:
    """The finished images of an attack run but for the seconds."""
    return _select(folder, "image_index, true_label, result, clean, adversarial, purified", "attacked")


def _select(folder: Path, columns: str, table: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(folder / "results.sqlite")
    try:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY image_index").fetchall()
    finally:
        connection.close()


def change(folder: Path, statement: str, *values: object) -> None:
    """Edit a run's store behind diffproof's back."""
    connection = sqlite3.connect(folder / "results.sqlite")
    try:
        with connection:
            connection.execute(statement, values)
    finally:
        connection.close()


def contents(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All that a run's store holds by table, but how it came to be: seconds, progress; rows in one order."""
    connection = sqlite3.connect(folder / "results.sqlite")
    try:
        found = {}
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for table in {name for (name,) in tables} - {"progress", "efforts", "workers", "failures"}:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            kept = ", ".join(column for column in columns if column != "seconds")
            found[table] = sorted(connection.execute(f"SELECT {kept} FROM {table}").fetchall(), key=str)
        return found
    finally:
        connection.close()
