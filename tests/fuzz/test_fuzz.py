"""A short portion of the fuzzer; tests/fuzz/fuzz.py runs as long as it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from fuzz.fuzz import GENERATORS, Fuzzer, case_of, findings
from fuzz.sound import RAN, VICTIM
from fuzz.trial import Case

# Cases of flags, files, calls and links: as many as a dozen seconds of the processor allow.
COUNTS = (2, 8, 16, 6)
SEED = 3


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Fuzzer:
    return Fuzzer(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.slow
@pytest.mark.parametrize("generator", GENERATORS)
def test_nothing_is_found(fuzzer: Fuzzer, generator: Callable[[Random], Case]) -> None:
    which = GENERATORS.index(generator)
    numbers = range(which, COUNTS[which] * len(GENERATORS), len(GENERATORS))
    found = [(number, case.kind, finding) for number, case, finding in findings(fuzzer, SEED, iter(numbers))]
    assert found == []


@pytest.mark.slow
def test_the_oracle_finds(fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug, a crash, a flood, a bar of escapes, other results of the same run: each is found."""

    def crash() -> int:
        raise KeyError("x")

    def silent() -> int:
        print("accuracy nan")
        return 0

    def long() -> int:
        print("x" * 501)
        return 0

    def escapes() -> int:
        print("\x1b[31m")
        return 0

    def memory() -> int:
        bytearray(2**31 + 2**20)
        return 0

    def lines() -> int:
        print("one\ntwo")
        return 2

    def ran() -> int:
        Path(RAN).touch()
        return 0

    def through() -> int:
        Path(VICTIM).write_text("")
        return 0

    expected = {
        ran: "code ran",
        through: "written through a link",
        crash: "KeyError in ?",
        silent: "nonsense: NaN",
        long: "long line",
        escapes: "control characters",
        memory: "memory",
        lines: "no single line",
    }
    for work, name in expected.items():
        assert [one.name for one in fuzzer.run(Case("", [], work=work, out=""))] == [name]
    monkeypatch.setattr("fuzz.trial.MOST_SECONDS", 0.2)
    assert [one.name for one in fuzzer.run(Case("", [], work=hang, out=""))] == ["hangs"]


def hang() -> int:
    while True:
        pass


@pytest.mark.slow
def test_other_results_of_the_same_run_are_found(fuzzer: Fuzzer) -> None:
    words = case_words("certify")
    assert fuzzer.run(Case("sound", words)) == []
    sound = fuzzer.sound["certify"]
    assert isinstance(sound, tuple)
    fuzzer.sound["certify"] = sound[0], sound[1][:1]
    (finding,) = fuzzer.run(Case("sound", words))
    assert finding.name.startswith("nonsense: other results")
    fuzzer.sound["certify"] = sound


def case_words(name: str) -> list[str]:
    from fuzz.sound import COMMANDS

    return COMMANDS[name].split()


def test_a_case_is_its_number() -> None:
    for number in range(60):
        one, same = case_of(3, number), case_of(3, number)
        assert (one.kind, one.words) == (same.kind, same.words)
    assert len({case_of(3, number).kind for number in range(60)}) > 40
