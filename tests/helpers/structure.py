"""The shape of the source: `python tests/helpers/structure.py` prints its figures."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"
# Rooms of the package from the lowest; a module at its root, such as noise.py, belongs to the first.
LEVELS = (
    ("", "calibration"),
    ("data", "denoisers", "classifiers"),
    ("reverse",),
    ("defenses",),
    ("smoothing", "attacks", "theory"),
    ("training", "scale"),
    ("runs", "doctor"),
    ("web", "reproduce"),
    ("cli", "__main__"),
)


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package, parsed, by its dotted name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


@functools.cache
def imports() -> dict[str, set[str]]:
    """What each module imports of the package, within functions, too; diffproof/__init__.py aside."""
    known = modules()
    edges: dict[str, set[str]] = {name: set() for name in known if name != "diffproof"}
    for name in edges:
        for node in ast.walk(known[name]):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("diffproof"):
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    edges[name].add(inner if inner in known else node.module)
        edges[name].discard("diffproof")
    return edges


def level(module: str) -> int:
    """The level of a module's room."""
    parts = module.split(".")[1:]
    rooms = {room: i for i, level in enumerate(LEVELS) for room in level}
    return rooms.get(parts[0], 0) if len(parts) > 1 or parts[0] in rooms else 0


def upward() -> list[tuple[str, str]]:
    """Imports of a module in a room above."""
    return [
        (name, other) for name, others in imports().items() for other in others if level(other) > level(name)
    ]


def circles() -> list[set[str]]:
    """Sets of modules that import each other, round about."""
    edges = imports()
    reach = {name: set(others) for name, others in edges.items()}
    while True:
        wider = {
            name: near.union(*(reach.get(other, set()) for other in near)) for name, near in reach.items()
        }
        if wider == reach:
            break
        reach = wider
    found = []
    for name in reach:
        circle = {other for other in reach[name] if name in reach.get(other, set())}
        if circle and circle not in found:
            found.append(circle)
    return found


def functions() -> Iterator[tuple[int, str]]:
    """Lines and name of every function, its docstring not counted."""
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first, docstring = node.body[0], 0
                if ast.get_docstring(node) is not None:
                    docstring = (first.end_lineno or 0) - first.lineno + 1
                yield (node.end_lineno or 0) - node.lineno + 1 - docstring, f"{name}.{node.name}"


def long_files(most: int) -> dict[str, int]:
    """Files with more lines."""
    lengths = {
        str(path.relative_to(SOURCE / "diffproof")): len(path.read_text(encoding="utf-8").splitlines())
        for path in SOURCE.rglob("*.py")
    }
    return {name: length for name, length in lengths.items() if length > most}


def options() -> int:
    """Options of the command line, those of every command."""
    import click

    from diffproof.cli.main import diffproof

    def count(command: click.Command) -> int:
        inner = command.commands.values() if isinstance(command, click.Group) else ()
        return sum(isinstance(one, click.Option) for one in command.params) + sum(map(count, inner))

    return count(diffproof)


if __name__ == "__main__":
    longest, where = max(functions())
    print(f"modules that import each other: {len(circles())}")
    print(f"imports of a room above: {len(upward())}")
    print(f"longest function without its docstring: {longest} lines, {where}")
    print(f"files over 400 lines: {long_files(400)}")
    print(f"lines: {sum(len(path.read_text().splitlines()) for path in SOURCE.rglob('*.py'))}")
    print(f"options of the command line: {options()}")
