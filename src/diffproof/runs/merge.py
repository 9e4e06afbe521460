"""Shards of a run joined to the folder of the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffproof.errors import ArgumentError
from diffproof.files import expanded
from diffproof.methods import own_class
from diffproof.runs.attack.store import AttackStore
from diffproof.runs.certify.store import CertifyStore
from diffproof.runs.folder import check_new, check_runs
from diffproof.runs.settings import RunSettings
from diffproof.runs.shards import Shard
from diffproof.runs.store import Identity, RunStore
from diffproof.wording import counted, shortened

Kind = type[RunStore[Any]]


@dataclass(frozen=True)
class Merged:
    """What was joined.

    Attributes:
        folder: the run folder that was made.
        kind: of the run.
        shards: how many there were.
        images: how many the run has.
    """

    folder: Path
    kind: str
    shards: int
    images: int


@dataclass(frozen=True)
class _Part:
    """A finished shard."""

    folder: Path
    kind: Kind
    shard: Shard
    settings: RunSettings
    identity: Identity
    versions: set[str]


def merge(out: Path, shards: Sequence[Path]) -> Merged:
    """Join all shards of a run to the folder of the whole run, which is that of a run without shards.

    Certificates, ballots, attacked images and findings are taken over to the byte; nothing is computed again,
    no network or data is read. Where it fails, there is no run in `out`.

    Args:
        out: the run folder to make.
        shards: the shards' run folders, in any order; they are only read.

    Raises:
        ValueError: `out` holds something; or a shard is missing, unfinished, there twice, of another run, or
            no shard at all.
        OSError: the folder cannot be written.
    """
    _check_out(out, shards)
    parts = sorted((_look(folder) for folder in shards), key=lambda part: part.shard)
    _check_one_run(parts)
    first = parts[0]

    def fill(whole: RunStore[Any]) -> None:
        for part in parts:
            with part.kind.reading(part.folder) as store:
                store.warn_if_edited()
                whole.take(store)
        if whole.finished() != {*first.identity.indices}:
            raise ArgumentError("shards", "they changed while they were merged")

    identity = replace(first.identity, part=())
    first.kind.make(out, first.settings.of_shard(None), identity, fill)
    return Merged(out, first.kind.kind, len(parts), identity.planned)


def _check_out(out: Path, shards: Sequence[Path]) -> None:
    """Raise ValueError where there is a run in `out`, or no shard to join, or one twice."""
    check_runs(shards)
    for folder in shards:
        if expanded(folder).resolve() == expanded(out).resolve():
            raise ArgumentError("out", f"{out} is one of the shards, expected a new folder")
    check_new(out)


def _look(folder: Path) -> _Part:
    """A shard.

    Raises:
        ValueError: none, or one that is not finished.
    """
    kind: Kind = AttackStore if AttackStore.holds(folder) else CertifyStore
    with kind.reading(folder) as store:
        settings, identity = store.settings, store.identity
        store.results()  # Whose rows must be what a run writes.
        finished, versions = store.finished(), store.versions()
    if settings.shard is None:
        raise ArgumentError("shards", f"{folder} is no shard, expected runs with --shard")
    lacking = sorted({*identity.part} - finished)
    if lacking:
        what = f"{counted(len(lacking), 'image')} of {len(identity.part):,}"
        told = f"{folder} (shard {settings.shard}) is unfinished, it lacks {what}: {shortened(lacking)}"
        raise ArgumentError("shards", f"{told}; the same command finishes it")
    if finished != {*identity.part}:
        others = shortened(sorted(finished - {*identity.part}))
        raise ArgumentError("shards", f"{folder} holds images that are not of its shard: {others}")
    return _Part(folder, kind, Shard.parse(settings.shard), settings, identity, versions)


def _check_one_run(parts: Sequence[_Part]) -> None:
    """Raise ValueError unless these, in the order of their numbers, are all shards of one run, each once."""
    first, of = parts[0], parts[0].shard.of
    for part in parts[1:]:
        differs = _differences(first, part)
        if differs:
            what = ", ".join(differs)
            raise ArgumentError("shards", f"{part.folder} is of another run than {first.folder}: {what}")
    there: dict[Shard, Path] = {}
    for part in parts:
        other = there.setdefault(part.shard, part.folder)
        if other is not part.folder:
            raise ArgumentError("shards", f"shard {part.shard} is there twice, in {other} and {part.folder}")
    missing = [f"{number}/{of}" for number in range(of) if Shard(number, of) not in there]
    if missing:
        verb = "shard {} is missing" if len(missing) == 1 else "shards {} are missing"
        raise ArgumentError("shards", verb.format(shortened(missing)))
    if sorted(index for part in parts for index in part.identity.part) != [*first.identity.indices]:
        raise ArgumentError("shards", "these do not have each image of the run once")


def _differences(first: _Part, other: _Part) -> list[str]:
    """What tells the run of one shard from that of another, in words."""
    if first.kind is not other.kind:
        return [f"the kind ({first.kind.kind}, now {other.kind.kind})"]
    found = []
    if first.shard.of != other.shard.of:
        found.append(f"the number of shards ({first.shard.of}, now {other.shard.of})")
    settings, others = first.settings, other.settings.of_shard(str(first.shard))
    own = [
        f"{name} ({one}, now {another})"
        for name in ("defense", "attack")
        if (one := getattr(settings, name, None)) != (another := getattr(others, name, None))
        and own_class(name, str(another)) is not None
    ]
    # Code that a folder names is not imported to tell whether its settings mean the same.
    found += own or settings.differences(others)
    if len(both := first.versions | other.versions) > 1:
        found.append(f"the version of diffproof ({', '.join(sorted(both))})")
    mine, its = first.identity, other.identity
    if mine.indices != its.indices:
        found.append(f"which images ({mine.planned}, now {its.planned})")
    # Of other images, there is no telling whether they are the same as before.
    return found + replace(mine, part=()).differences(its, lambda _: mine.data_hash)
