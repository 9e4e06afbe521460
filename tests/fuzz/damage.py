"""Cases of files: one of the sound ones damaged, exchanged, or made by somebody who means harm."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sqlite3
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from fuzz.sound import COMMANDS, STRANGE, VICTIM
from fuzz.trial import Case

Damage = Callable[[Path, Random], None]

# Files of the sound folder, and the commands that read them.
FILES: dict[str, tuple[str, ...]] = {
    "data.npz": ("certify", "attack", "train classifier", "train denoiser", "data"),
    "data.parquet": ("certify parquet", "data parquet"),
    "classes/class0/0.png": ("certify folder", "data folder"),
    "pictures/0.png": ("purify",),
    "classifier.safetensors": ("certify", "finetune", "verify"),
    "denoiser.safetensors": ("certify dds", "certify densepure", "purify"),
    "plain.pt": ("convert",),
    "config.yaml": ("certify config",),
    "run-a/results.sqlite": (
        "report",
        "report json",
        "export",
        "print",
        "latex",
        "verify",
        "status",
        "certify again",
    ),
    "run-b/results.sqlite": ("report attack", "verify attack", "status"),
    "run-1/results.sqlite": ("merge", "certify shard again"),
    "run-a/settings.yaml": ("certify settings",),
    "density.json": ("theory",),
}
EXTRA = {
    "certify again": COMMANDS["certify"].replace("--out out", "--out run-a"),
    "certify shard again": COMMANDS["certify shard"].replace("--out out", "--out run-1"),
    "certify settings": "certify --config run-a/settings.yaml --out out",
    "theory": "theory --density density.json --points 5 --out out",
    "print": "export run-a --format csv",
    "latex": "report run-a --latex out",
}
NASTY: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        3,
        10**9,
        2**63,
        10**30,
        0.5,
        -0.5,
        1e300,
        float("nan"),
        float("inf"),
        "",
        "x",
        "nan",
    ),
    *(
        [],
        [[]],
        [1, 2],
        {},
        {"a": {"b": []}},
        "a" * 10_000,
        "\x1b[31m",
        "=1+1",
        "[/red]",
        "$\\frac$",
        "_x",
        "\udcff",
        "os:abort",
        f"{STRANGE}:make",
        f"package.{STRANGE}:Own",
        f"ensemble:digits,{STRANGE}:make",
        "0:2",
        "/etc",
    ),
)


def truncated(path: Path, random: Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: random.randrange(len(data))])


def flipped(path: Path, random: Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(random.choice((1, 3, 30))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def header_flipped(path: Path, random: Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(random.choice((1, 3))):
        data[random.randrange(min(200, len(data)))] = random.randrange(256)
    path.write_bytes(data)


def noise(path: Path, random: Random) -> None:
    path.write_bytes(random.randbytes(random.choice((0, 1, 100, 10_000))))


def exchanged(path: Path, random: Random) -> None:
    """Another kind of file under this name."""
    others = [name for name in FILES if name != str(path) and Path(name).is_file()]
    shutil.copy(random.choice(others), path)


def other_thing(path: Path, random: Random) -> None:
    path.unlink()
    makers: tuple[Callable[[], object], ...] = (
        lambda: os.mkfifo(path),
        path.mkdir,
        lambda: path.symlink_to("gone"),
        lambda: path.symlink_to(path.name),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("/proc/self/mem"),
        lambda: None,
    )
    random.choice(makers)()


def text_changed(path: Path, random: Random) -> None:
    """Words of a text exchanged for nasty ones, or lines repeated."""
    lines = path.read_text().splitlines()
    place = random.randrange(len(lines))
    name = lines[place].partition(":")[0]
    lines[place] = random.choice(
        (
            f"{name}: {json.dumps(random.choice(NASTY), default=str)}",
            f"{name}: {'[' * 5000}",
            f"{name}: {'[' * 50}{']' * 50}",
            f"&a {name}: *a",
            f"{name}: !!python/object/apply:os.abort []",
            f"{lines[place]}\n{lines[place]}",
            f"\x1b]0;{name}",
            "a: &a [x,x]\n" + "\n".join(f"b{i}: &b{i} [{f'*b{i - 1},' * 9}]" for i in range(1, 30)),
            f"{name}: {'9' * 5000}",
            f"classifier: {STRANGE}:make",
            f"defense: {{name: package.{STRANGE}:Own}}",
            f"#   package.{STRANGE}: {'0' * 64}",
            "ray: 127.0.0.1:1",
            "",
        )
    )
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")


def json_changed(path: Path, random: Random) -> None:
    loaded = json.loads(path.read_text())
    _spoil(loaded, random)
    path.write_text(json.dumps(loaded))


def _spoil(tree: Any, random: Random) -> None:
    """Exchange, remove or add one value somewhere in nested dicts and lists."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = random.choice(keys)
        if isinstance(tree[key], dict | list) and tree[key] and random.random() < 0.6:
            tree = tree[key]
            continue
        how = random.random()
        if how < 0.15:
            del tree[key]
        elif how < 0.2 and isinstance(tree, dict):
            tree["more"] = random.choice(NASTY)
        else:
            tree[key] = random.choice((*NASTY, 10**6, 10**5))
        return


def store_changed(path: Path, random: Random) -> None:
    """A cell of a store, or something within its JSON, exchanged."""
    connection = sqlite3.connect(path)
    with connection:
        tables = [t for (t,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = random.choice(tables)
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        column = random.choice(columns)
        row = connection.execute(f"SELECT rowid, {column} FROM {table} LIMIT 1").fetchone()
        if random.random() < 0.1:
            connection.execute(f"PRAGMA user_version = {random.choice((-1, 2, 2**31 - 1))}")
        elif row is None:
            connection.execute(f"DROP TABLE {random.choice(tables)}")
        else:
            value: Any = random.choice(NASTY)
            if isinstance(row[1], str) and row[1].startswith(("{", "[")) and random.random() < 0.8:
                tree = json.loads(row[1])
                _spoil(tree, random)
                value = json.dumps(tree)
                if random.random() < 0.1:
                    deep = random.choice((20, 900, 100_000))
                    value = random.choice(
                        ("[" * deep, "[" * deep + "]" * deep, value.replace("{", '{"a": NaN,'))
                    )
            if isinstance(value, int) and abs(value) >= 2**63:
                value = 2**63 - 1
            if not isinstance(value, int | float | str | None):
                value = json.dumps(value)
            if isinstance(value, str):
                value = value.encode("utf-8", "surrogateescape")
                value = value.decode() if b"\xff" not in value else value
            try:
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, row[0]))
            except sqlite3.IntegrityError:
                connection.execute(f"DELETE FROM {table}")
    connection.close()


def arrays_changed(path: Path, random: Random) -> None:
    with np.load(path) as archive:
        images, labels = archive["images"], archive["labels"]
    changes: tuple[tuple[Any, Any], ...] = (
        (images, labels.astype(np.uint64) + np.uint64(2**63)),
        (images, labels + 10**9),
        (images, labels - 1),
        (images, labels.astype(float)),
        (images, np.full(20, np.nan)),
        (images, np.zeros((20, 10))),
        (images, labels[:3]),
        (images, labels.astype(str)),
        (images.astype(np.float32), labels),
        (images / 255.0, labels),
        (images / 255.0 * np.nan, labels),
        (images / 127.5 - 1, labels),
        (images.astype(np.int64), labels),
        (images.astype(bool), labels),
        (images.astype(complex), labels),
        (images[:, 0], labels),
        (images[:, :, :0], labels),
        (images[:0], labels[:0]),
        (images.repeat(2, 1), labels),
        (np.array([None, images], dtype=object), labels),
        (np.zeros((20, 1, 2, 2), np.uint8), labels),
        (np.zeros((20, 1, 40, 40), np.uint8), labels),
    )
    images, labels = random.choice(changes)
    if random.random() < 0.1:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb:
            for name in ("images.npy", "labels.npy"):
                bomb.writestr(name, bytes(2**27 + 2**20))
        return
    names = random.choice((("images", "labels"), ("x_test", "y_test"), ("a\x1b", "b"), ("x", "y")))
    np.savez(path, **{names[0]: images, names[1]: labels})


def tensors_changed(path: Path, random: Random) -> None:
    """The header of a safetensors file, or the description in it, with another value somewhere."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    how = random.random()
    if how < 0.7:
        description = json.loads(header["__metadata__"]["diffproof"])
        _spoil(description, random)
        header["__metadata__"]["diffproof"] = json.dumps(description)
    elif how < 0.9:
        _spoil(header, random)
    else:
        header |= {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    declared = random.choice((len(text),) * 9 + (2**40,))
    path.write_bytes(struct.pack("<Q", declared) + text + data[8 + size :])


def pickle_changed(path: Path, random: Random) -> None:
    tensor = torch.zeros(2)
    values: tuple[Any, ...] = (
        {"a": tensor.expand(2**20, 2), "b": tensor.expand(2**30, 2**20, 2)},
        {"a": torch.zeros(2, device="meta")},
        {"a": torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (10**9,), check_invariants=False)},
        {"a": torch.full((2,), torch.nan)},
        {"a" * 10_000: tensor, "\x1b[31m": tensor},
        {"optimizer": {"lr": 1}, "model": {"a": tensor}},
        {1: tensor, (2, 3): tensor},
        {"model": {1: tensor}},
        {"\udcff": tensor},
        {"__metadata__": tensor},
        {"a": tensor.to(torch.complex128)},
        {"a": Random(3)},
        [tensor],
        "text",
    )
    torch.save(random.choice(values), path, _use_new_zipfile_serialization=random.random() < 0.7)


DAMAGES: dict[str, Damage] = {
    one.__name__: one for one in (truncated, flipped, header_flipped, noise, exchanged, other_thing)
}
OF_A_KIND: dict[str, Damage] = {
    "npz": arrays_changed,
    "safetensors": tensors_changed,
    "pt": pickle_changed,
    "yaml": text_changed,
    "json": json_changed,
    "sqlite": store_changed,
}


# What commands write besides what they are told to, or first.
_BESIDE = (
    *("out", "out.new", "out/table.csv", "out/curve.png", "out/settings.yaml", "out/settings.yaml.new"),
    *("out/lock", "out/results.sqlite.new", "out/results.sqlite-journal", "out/sheet.png", "out/0.png"),
    *("out.safetensors.new", "out.checkpoint", "out.checkpoint.new", "out.samples.png", "out.loss.csv"),
    *("out.loss.png", "out.lock", "run-a/results.sqlite-wal", "run-a/results.sqlite-journal", "run-a/lock"),
)


def link_case(random: Random) -> Case:
    """A case of a link, or a pipe, in the place of what a command writes."""
    name, link = random.choice(list(COMMANDS)), Path(random.choice(_BESIDE))
    words = [*shlex.split(COMMANDS[name]), *["--force"] * random.choice((0, 1))]
    # To one that is named on the command line a command writes.
    target = random.choice((VICTIM, "nothing", "classes", *["a pipe"] * (link.name != "out")))

    def prepare() -> None:
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        if target == "a pipe":
            os.mkfifo(link)
        else:
            link.symlink_to(os.path.relpath(target, link.parent))

    return Case(f"link {link} to {target}, {name}", words, prepare, out="")


def file_case(random: Random) -> Case:
    """A case of a damaged file."""
    name = random.choice(list(FILES))
    ending = name.rpartition(".")[2]
    damages = [*DAMAGES.values(), *[OF_A_KIND[ending]] * 8] if ending in OF_A_KIND else [*DAMAGES.values()]
    damage = random.choice(damages)
    command = random.choice(FILES[name])
    if command == "theory" and random.random() < 0.8:
        # A sound density is half a minute of work.
        damage = truncated
    words = shlex.split({**COMMANDS, **EXTRA}[command])
    out = "" if command in ("certify again", "verify", "verify attack") else words[-1]
    seed = random.getrandbits(64)
    kind = f"file {ending} {damage.__name__}, {command}"
    return Case(
        kind, words, lambda: damage(Path(name), Random(seed)), out=out if out.startswith("out") else ""
    )
