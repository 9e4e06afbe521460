"""Docstrings name what there is: Args and Attributes hold one parameter a line, and all of them in order."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from inspect import cleandoc

import pytest

from helpers.paths import ROOT

SOURCE = ROOT / "src" / "diffproof"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def documented(tree: ast.AST) -> Iterator[tuple[str, Function | ast.ClassDef, str]]:
    """Name, node and docstring of functions and classes that have one, those in others included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.expr):
            continue
        if isinstance(node, Function | ast.ClassDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield node.name, node, docstring
            yield from ((f"{node.name}.{name}", one, its) for name, one, its in documented(node))
        else:
            yield from documented(node)


def entries(docstring: str, section: str) -> list[str]:
    """The entries of a section, each with its continuation lines; the header as it is, where it says more."""
    found: list[str] = []
    inside = False
    for line in cleandoc(docstring).splitlines():
        depth = len(line) - len(line.lstrip())
        if depth == 0:
            inside = line == f"{section}:"
            found += [line] if line.startswith(f"{section}: ") else []
        elif inside and depth == 8 and found:
            found[-1] += f" {line.strip()}"
        elif inside:
            # An entry, or a line of a depth that no entry has, which does not read as one.
            found.append(line.removeprefix(" " * 4))
    return found


def parameters(function: Function) -> list[str]:
    """Those of the signature, less the instance or class of a method."""
    given = function.args
    every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    return [one.arg for one in every if one is not None and one.arg not in ("self", "cls")]


def fields(of: ast.ClassDef) -> list[tuple[str, bool]]:
    """Fields of a dataclass or a named tuple, and whether its constructor takes them."""
    return [
        (ast.unparse(one.target), one.value is None or "init=False" not in ast.unparse(one.value))
        for one in of.body
        if isinstance(one, ast.AnnAssign) and not ast.unparse(one.annotation).startswith("ClassVar")
    ]


def attributes(of: ast.ClassDef) -> list[str]:
    """Whatever the class gives a value: in its body, in its methods, or as a property."""
    stored = [
        one.attr if isinstance(one, ast.Attribute) else one.id
        for one in ast.walk(of)
        if isinstance(one, ast.Name | ast.Attribute) and isinstance(one.ctx, ast.Store)
    ]
    return stored + [one.name for one in of.body if isinstance(one, Function)]


def constructor(of: ast.ClassDef) -> Function | None:
    """The class's own, None where it inherits it or is a dataclass."""
    return next((one for one in of.body if isinstance(one, Function) and one.name == "__init__"), None)


def parameters_of(node: Function | ast.ClassDef) -> list[str]:
    """Those of a function, or of a class's constructor."""
    function = constructor(node) if isinstance(node, ast.ClassDef) else node
    if function is not None:
        return parameters(function)
    assert isinstance(node, ast.ClassDef)
    return [name for name, taken in fields(node) if taken]


def problems(node: Function | ast.ClassDef, docstring: str) -> Iterator[str]:
    """What is wrong with the sections of a docstring."""
    if not re.search(r"^ *(Args|Attributes):", docstring, re.MULTILINE):
        return
    taken = parameters_of(node)
    known, public = [], []
    if isinstance(node, ast.ClassDef):
        known = attributes(node)
        if constructor(node) is None:
            public = [name for name, _ in fields(node) if not name.startswith("_")]
    for section, allowed, needed in (("Args", taken, taken), ("Attributes", known, public)):
        found = entries(docstring, section)
        named = []
        for entry in found:
            name, colon, meaning = entry.partition(": ")
            if not (colon and name.isidentifier() and name != section):
                yield f"{section}: expected one name and a colon, got {entry!r}"
                continue
            named.append(name)
            for second in re.findall(r"[.;] (\w+): ", meaning):
                if second in allowed:
                    yield f"{section}: {second} shares the entry of {name}"
        yield from (f"{section}: there is no {name}" for name in named if name not in allowed)
        if found and [name for name in named if name in needed] != needed:
            yield f"{section}: expected {', '.join(needed)}, got {', '.join(named)}"


@pytest.mark.slow
def test_docstrings_name_every_parameter_on_a_line_of_its_own() -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno} {name}: {problem}"
        for path in sorted(SOURCE.rglob("*.py"))
        for name, node, docstring in documented(ast.parse(path.read_text(encoding="utf-8")))
        for problem in problems(node, docstring)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["    low: the one end.", "    high: the other end,", "        above it."], None),
        (["    low, high: the ends."], "Args: expected one name and a colon, got 'low, high: the ends.'"),
        (["    low: the one. high: the other."], "Args: high shares the entry of low"),
        (["    low: the one."], "Args: expected low, high, got low"),
        (["    high: the other.", "    low: the one."], "Args: expected low, high, got high, low"),
        (["    low: the one.", "    high: the other.", "    top: none."], "Args: there is no top"),
        (["    low: the one.", "      high: the other."], "Args: expected one name and a colon, got '  high"),
    ],
)
@pytest.mark.parametrize("kind", ["function", "class"])
def test_broken_docstrings_are_found(args: list[str], problem: str | None, kind: str) -> None:
    docstring = "\n    ".join(["Between.", "", "Args:", *args])
    if kind == "function":
        text = f'def f(low, *, high=1):\n    """{docstring}"""'
    else:
        text = f'class C:\n    """{docstring}"""\n\n    low: int\n    high: int = 1'
    found = [one for _, node, given in documented(ast.parse(text)) for one in problems(node, given)]
    assert not found if problem is None else any(one.startswith(problem) for one in found)
