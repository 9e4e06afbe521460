"""Careless flags and configuration files: one line, exit status 2, nothing written, no long wait."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from helpers.command_line import Refused, words
from helpers.runs import PLAIN, certify_flags

ATTACK: dict[str, object] = {
    "data": "digits",
    "indices": "0:2",
    "classifier": "digits",
    "denoiser": "digits",
    "defense": "diffpure:t_star=0.1,steps=2",
    "threat": "linf",
    "budget": "0.1",
    "attack": "pgd:iterations=1",
    "out": "run",
}
CERTIFY: dict[str, object] = {
    "data": "digits",
    "indices": "0:2",
    "classifier": "digits",
    "defense": "none",
    "sigma": 0.25,
    "n": 4,
    "out": "run",
}
LONG = "9" * 5000


def check(line: str, flag: str, message: str) -> None:
    """The line names the flag that was typed, and says what is expected of an argument of it."""
    argument, problem = message.split(": ", 1)
    if argument.replace("_", "-") == flag:
        assert line.startswith(f"--{flag}: {problem}")
    elif argument.startswith("Invalid value"):
        assert line.startswith(message)
    else:
        assert line.startswith(f"--{flag}: {message}")
    assert len(line) < 500


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        (flag, value, f"Invalid value for '--{flag}': {shown} is not a valid {kind}.")
        for flags, kind in ((("n", "seed", "limit", "batch-size"), "integer"), (("sigma", "alpha"), "float"))
        for flag in flags
        for value, shown in (
            ("1_0", "'1_0'"),
            ("0x10", "'0x10'"),
            ("١٢", "'١٢'"),
            ("", "''"),
            (" 1", "' 1'"),
            ("1,0", "'1,0'"),
        )
    ]
    + [
        ("n", LONG, "Invalid value for '--n': '999"),
        ("n", 10**29, "n: expected at most 4294967295, got 100000000000000000000000000000"),
        ("n0", 2**63, "n0: expected at most 4294967295, got 9223372036854775808"),
        ("batch-size", 10**29, "batch_size: expected at most 2147483647, got 1"),
        ("image-size", 100_000, "image_size: expected at most 8192, got 100000"),
        ("sigma", "1e999", "sigma: expected a finite number > 0, got inf"),
        ("sigma", "nan", "sigma: expected a finite number > 0, got nan"),
        ("alpha", "-0", "alpha: expected a number in (0, 1), got -0.0"),
        ("split", "", "Invalid value for '--split': expected a text, got ''."),
        ("classifier", "  ", "Invalid value for '--classifier': expected a text, got ' '."),
        ("out", " ", "Invalid value for '--out': expected a path, got ' '."),
        ("classifier", "é" * 5000, "classifier: expected a name or a path, got one too long for a file: 'éé"),
        ("indices", "0,0,0", "indices: expected each image once, got 0 again in '0,0,0'"),
        ("indices", "0:3,2:4", "indices: expected each image once, got 2 again in '0:3,2:4'"),
        ("indices", "1_0", "indices: expected start:stop or start:stop:step, got '1_0'"),
        ("indices", "١", "indices: expected start:stop or start:stop:step, got '١'"),
        ("indices", LONG, "indices: expected start:stop or start:stop:step, got '999"),
    ],
)
def test_certify_refuses(refused: Refused, flag: str, value: object, message: str) -> None:
    check(refused(words("certify", **{**CERTIFY, flag.replace("-", "_"): value})), flag, message)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("budget", "1e999", "budget: expected a finite number > 0, got inf"),
        ("budget", LONG, "budget: expected a finite number > 0, got inf"),
        ("budget", "1/1_0", "budget: expected a number or a fraction like 8/255, got '1/1_0'"),
        ("budget", "١/٢", "budget: expected a number or a fraction like 8/255, got '١/٢'"),
        ("budget", "8/0", "budget: expected a number or a fraction like 8/255, got '8/0'"),
        ("guide", "digits", "guide: the method 'diffpure' takes none"),
        ("draws", 10**9, "draws: expected at most 100000, got 1000000000"),
        ("majority-of", 10**9, "majority_of: expected at most 100000, got 1000000000"),
        ("defense", "diffpure:t_star=0.1,steps=99999999", "steps: expected at most 32767 in all rounds, got"),
        (
            "defense",
            "diffpure:t_star=1e-300",
            "t_star: the time 1e-300 is the noise level 1.58114e-151, but sigma:",
        ),
        ("defense", "diffpure:sigma=1e-300", "sigma: expected a noise level of the VP-SDE, in"),
        ("defense", "gdmp:rounds=99999999", "rounds: expected at most 32767, got 99999999"),
        ("defense", "gdmp:rounds=2,steps=99999999", "steps: expected at most 32766 in all rounds, got"),
        (
            "defense",
            "gradual:t_star=[0.1],steps=[99999999]",
            "steps: expected at most 32767 in all rounds, got",
        ),
        ("defense", "diffpure:sigma=nan", "sigma: expected a number > 0, or none, got 'nan'"),
        ("defense", "diffpure:t_star=0.1,steps=٢", "steps: expected an integer ≥ 1, or none, got '٢'"),
        ("attack", "pgd:iterations=99999999", "iterations: expected at most 50000, got 99999999"),
        ("attack", "pgd:eot=99999999", "eot: expected at most 50000, got 99999999"),
        ("attack", f"pgd:eot={LONG}", "eot: expected an integer ≥ 1, got '999"),
        ("attack", "square:queries=99999999999", "queries: expected at most 4294967292, got 99999999999"),
    ],
)
def test_attack_refuses(refused: Refused, flag: str, value: object, message: str) -> None:
    check(refused(words("attack", **{**ATTACK, flag.replace("-", "_"): value})), flag, message)


# What a module of the user's may hold besides a factory.
BAD = """
import functools, os
from diffproof import load_classifier as reexported

def exits():
    raise SystemExit(0)

def nothing():
    pass

def needing(size, *more, depth):
    pass

partial = functools.partial(os.getcwd)
number = 3
"""


@pytest.mark.parametrize("flag", ["classifier", "denoiser"])
@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("os:abort", "expected a module of your own, got os of Python's standard library"),
        ("signal:pause", "expected a module of your own, got signal of Python's standard library"),
        ("builtins:exit", "expected a module of your own, got builtins of Python's standard library"),
        ("os.path:join", "expected a module of your own, got os.path of Python's standard library"),
        ("torch:zeros", "expected a function of Python, got torch:zeros"),
        (
            "bad:reexported",
            "expected a function that bad defines itself, got bad:reexported, a function of d",
        ),
        (
            "bad:partial",
            "expected a function that bad defines itself, got bad:partial, a partial of functools",
        ),
        ("bad:needing", "expected a function without arguments, got bad:needing(size, depth)"),
        ("bad:exits", "bad:exits() failed: SystemExit: 0"),
        ("bad:nothing", "bad:nothing() returned NoneType, expected a "),
        ("bad:number", "module bad has no function number"),
        ("leaving:make", "importing leaving failed: SystemExit: 0"),
    ],
)
def test_own_code_is_a_function_of_its_module(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, flag: str, spec: str, problem: str
) -> None:
    Path("bad.py").write_text(BAD)
    Path("leaving.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for module in ("bad", "leaving"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    line = refused(certify_flags(Path("run"), **{"denoiser": "digits", "defense": "dds", flag: spec}))
    check(line, flag, f"{flag}: {problem}")


@pytest.mark.parametrize("kind", ["defense", "attack"])
@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("os:abort", "expected a module of your own, got os of Python's standard library"),
        ("diffproof:DDS", "expected a class that diffproof defines itself, got diffproof:DDS, a type of d"),
        (
            "torch.nn:Linear",
            "expected a class that torch.nn defines itself, got torch.nn:Linear, a type of t",
        ),
    ],
)
def test_own_methods_are_classes_of_their_module(
    refused: Refused, kind: str, spec: str, problem: str
) -> None:
    check(refused(words("attack", **{**ATTACK, kind: spec})), kind, f"{kind}: {problem}")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sigma: 1_0", "sigma in c.yaml: '1_0' is not a valid float."),
        ("sigma: .nan", "sigma in c.yaml: '.nan' is not a valid float."),
        ("sigma: ''", "sigma in c.yaml: '' is not a valid float."),
        ("n: 0o17", "n in c.yaml: '0o17' is not a valid integer."),
        ("n: 1e3", "n in c.yaml: '1e3' is not a valid integer."),
        ("split: ''", "split in c.yaml: expected a text, got ''."),
        ("indices: 0,0", "indices in c.yaml: expected each image once, got 0 again in '0,0'"),
        ("n:\n  - 3", "config: expected one value for n, got ['3']"),
        ("defense: !!python/name:os.abort ''", "defense in c.yaml: unknown name ''"),
        ("sigma: &a 1\nn0: *a\nn: *b", "config: cannot read c.yaml: aliases (*name) are not read here"),
        (
            "classifier: [[a, b], {c: d}]",
            "config: expected one value for classifier, got [['a', 'b'], {'c': 'd'}]",
        ),
        ("? [a, b]\n: 3", "config: cannot read c.yaml: "),
        ("<<: {sigma: 3}\nn: 3", "config: unknown name '<<'"),
        ("sigma: 1\n---\nsigma: 2", "config: cannot read c.yaml: expected a single document"),
        # Deeper than Python's recursion goes.
        ("[" * 1000, "config: "),
        ("{a: " * 1000, "config: "),
        (BOMB, "config: cannot read c.yaml: aliases (*name) are not read here"),
    ],
)
def test_configurations_are_refused(refused: Refused, text: str, message: str) -> None:
    Path("c.yaml").write_text(text, encoding="utf-8")
    flags: dict[str, object] = {
        name: None for name in ("sigma", "n", "n0", "split", "indices", "classifier") if f"{name}:" in text
    }
    flags |= {} if "defense:" in text else {"defense": "none"}
    settings = {**PLAIN, "defense": None, **flags}
    line = refused([*certify_flags(Path("run"), **settings), "--config", "c.yaml"])
    assert message in line
    assert len(line) < 500
