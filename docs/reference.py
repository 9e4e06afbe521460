"""The site's reference, made when it is built: commands, methods of the catalog, public names of Python."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

# Beside the environment's own packages, so that the site is that of this checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import diffproof
from diffproof.catalog import Method
from diffproof.cli.main import diffproof as command_group
from diffproof.methods import KINDS, written_as


def on_files(files: Files, *, config: Any) -> Files:
    """See mkdocs: add the generated pages."""
    pages = {"commands": commands_page(), "methods": methods_page(), "python": python_page()}
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def commands_page() -> str:
    """Every command with its arguments and flags, as `--help` gives them."""
    about = "What `diffproof COMMAND --help` says, on one page.\n"
    return "\n".join(["# Commands", "", about, *_command("diffproof", command_group, 2)])


def methods_page() -> str:
    """Every defence, attack and objective with its settings, as `diffproof methods NAME` gives them."""
    lines = [
        "# Methods",
        "",
        "What `diffproof methods NAME` says, on one page. A method and its settings are one text, such as",
    ]
    lines += [
        "`densepure:steps=10,votes=40`, for `--defense`, `--attack`, `--objective`, `dp.load_defense`,",
        "`dp.load_attack` and `dp.load_objective`.",
        "",
    ]
    for title, table in zip(("Defences", "Attacks", "Objectives"), KINDS.values(), strict=True):
        lines += [f"## {title}", ""]
        for method in table.values():
            lines += _method(method)
    return "\n".join(lines)


def python_page() -> str:
    """Every public name, from its docstring."""
    homes = diffproof._HOMES
    lines = ["# Python", "", "Everything here is in the namespace `diffproof`: `import diffproof as dp`.", ""]
    kinds = {
        "attacks": "Attacks",
        "smoothing": "Smoothing",
        "defenses": "Defences",
        "denoisers": "Diffusion models",
    }
    kinds |= {
        "classifiers": "Classifiers",
        "data": "Data",
        "reverse": "The reverse process",
        "calibration": "Calibration",
        "training": "Training",
    }
    rooms: dict[str, list[str]] = {}
    for name, home in homes.items():
        rooms.setdefault(kinds.get(home.split(".")[0], "Beside these"), []).append(name)
    for title in [*kinds.values(), "Beside these"]:
        lines += [f"## {title}", ""]
        for name in sorted(rooms.get(title, []), key=str.lower):
            lines += [f"::: diffproof.{homes[name]}.{name}", ""]
    return "\n".join(lines)


def _command(path: str, command: click.Command, level: int) -> Iterator[str]:
    yield from (f"{'#' * min(level, 4)} {path}", "", "```text")
    yield from (_help(path, command), "```", "")
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _command(f"{path} {name}", inner, level + 1)


def _help(path: str, command: click.Command) -> str:
    context = click.Context(
        command, info_name=path, terminal_width=88, max_content_width=88, **command.context_settings
    )
    return command.get_help(context)


def _method(method: Method) -> Iterator[str]:
    yield from (f"### {method.name}", "", method.line, "")
    if method.networks:
        yield from (f"Needs: {', '.join(method.networks)}.", "")
    if method.optional:
        yield from (f"Takes, too: {', '.join(method.optional)}.", "")
    if not method.settings:
        return
    yield from ("| setting | takes | default | |", "|---|---|---|---|")
    for setting in method.settings:
        usual = "needed" if setting.required else f"`{written_as(setting, setting.default)}`"
        cells = (f"`{setting.name}`", setting.value.says(), usual, setting.meaning)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""
