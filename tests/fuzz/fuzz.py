"""A fuzzer of every command, file kind and public call: cases from a seed, each in a forked child, judged.

    python tests/fuzz/fuzz.py --seconds 3600 --seed 7

runs as long as it is told and prints what it found, grouped by kind, with the command of one case of each;
`--case 123` runs only that one and leaves its folder. trial.py says what is held against a case. A case is
a pure function of the seed and its number.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

# The networks are small, and a process that is forked from one with threads may hang; set before torch loads.
os.environ["OMP_NUM_THREADS"] = "1"
if __name__ == "__main__":
    # Modules here are found under their package, as in the suite.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from fuzz.calls import call_case
from fuzz.damage import file_case, link_case
from fuzz.flags import flag_case
from fuzz.sound import COMMANDS, make
from fuzz.trial import Case, Finding, identity, judged, tried

GENERATORS: tuple[Callable[[Random], Case], ...] = (flag_case, file_case, call_case, link_case)


def case_of(seed: int, number: int) -> Case:
    """The case of this number."""
    random = Random(f"{seed}:{number}")
    return GENERATORS[number % len(GENERATORS)](random)


class Fuzzer:
    """Runs cases in copies of a sound folder, within `place`."""

    def __init__(self, place: Path) -> None:
        self.place = place
        make(place / "sound")
        self.sound: dict[str, object] = {}
        for name in ("certify", "attack"):
            case, folder = Case(name, shlex.split(COMMANDS[name])), self._folder(name)
            ended = tried(case, folder)
            if ended.status != 0:
                raise RuntimeError(f"the sound {name} fails: {ended.stderr}")
            self.sound[name] = identity(folder / "out")

    def _folder(self, name: str) -> Path:
        return shutil.copytree(self.place / "sound", self.place / name, symlinks=True)

    def run(self, case: Case, *, keep: bool = False) -> list[Finding]:
        """What is wrong with a case."""
        folder = self._folder("case")
        try:
            ended = tried(case, folder)
            if keep:
                print(ended)
            return judged(case, ended, folder, self.sound)
        finally:
            if not keep:
                shutil.rmtree(folder)


def findings(fuzzer: Fuzzer, seed: int, numbers: Iterator[int]) -> Iterator[tuple[int, Case, Finding]]:
    """What is found in these cases."""
    for number in numbers:
        case = case_of(seed, number)
        for finding in fuzzer.run(case):
            yield number, case, finding


def main() -> int:
    """Fuzz; 1 where anything was found."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--seconds", type=float, default=3600)
    arguments.add_argument("--seed", type=int, default=7)
    arguments.add_argument("--case", type=int, help="only this case, whose folder stays")
    given = arguments.parse_args()
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    fuzzer = Fuzzer(place)
    if given.case is not None:
        case = case_of(given.seed, given.case)
        print(case.kind, shlex.join(case.words), place / "case", sep="\n")
        print(*fuzzer.run(case, keep=True), sep="\n")
        return 0
    until, count = time.monotonic() + given.seconds, 0

    def numbers() -> Iterator[int]:
        nonlocal count
        while time.monotonic() < until:
            yield count
            count += 1

    groups: dict[str, list[tuple[int, Case, Finding]]] = {}
    for found in findings(fuzzer, given.seed, numbers()):
        group = groups.setdefault(found[2].name, [])
        if not group:
            print(f"{found[0]}: {found[2].name}: {found[1].kind!a}: {found[2].seen!a}", flush=True)
        group.append(found)
    shutil.rmtree(place)
    print(f"\n{count} cases, {sum(map(len, groups.values()))} findings of {len(groups)} kinds")
    for name, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        number, case, finding = group[0]
        print(f"\n{len(group)} × {name}\n  case {number}, {case.kind!a}\n  {finding.seen!a}")
        print(f"  {ascii(shlex.join(case.words))[:1000]}")
        print(f"  also: {', '.join(sorted({ascii(other.kind)[:80] for _, other, _ in group[1:]})[:8])}")
    return int(bool(groups))


if __name__ == "__main__":
    sys.exit(main())
