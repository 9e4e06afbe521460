"""settings.yaml of a run folder: what it says, and what somebody changed in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import yaml

from diffproof.checks import shown
from diffproof.files import read_text
from diffproof.runs.database import SETTINGS
from diffproof.runs.flags import Flags
from diffproof.runs.settings import RunSettings

# In bytes: a class map may stand in it.
_LONGEST = 2**24


def settings_text(settings: Flags, code: Mapping[str, str | None]) -> str:
    """A settings.yaml, which names the user's own modules in a comment.

    Args:
        settings: of the run.
        code: see Identity.
    """
    lines = [f"#   {module}: {digest or 'no file'}\n" for module, digest in code.items()]
    if lines:
        lines.insert(0, "# Code that is not diffproof's, by the SHA-256 of its source:\n")
    return yaml.safe_dump(settings.as_dict(), sort_keys=False) + "".join(lines)


def edits(
    folder: Path, settings: RunSettings, code: Mapping[str, str | None], stored: Collection[str]
) -> list[str]:
    """What a settings.yaml says that a run was not made with, or lacks, which images aside; a line each.

    Args:
        folder: the run's.
        settings: what it was made with.
        code: see Identity.
        stored: names of the settings that the file had at first.

    Raises:
        ValueError: it is no text.
    """
    path = folder / SETTINGS
    if path.is_symlink() or not path.is_file():
        return [f"{SETTINGS} is {'a link' if path.is_symlink() else 'missing'}, expected the run's"]
    free, chosen = {*settings.FREE, *settings.SELECTION}, {"indices", "per_class", "limit"} & {*stored}
    made, there = _by_name(settings_text(settings, code)), _by_name(read_text("run", path, _LONGEST))
    needed = [name for name in made if name not in free and (name in stored or name.startswith("#"))]
    lacking = [made[name] for name in needed if name not in there]
    lacking += ["which images"] if chosen and chosen.isdisjoint(there) else []
    return [
        f"{SETTINGS} says {shown(text)}, with which the run was not made"
        for name, text in there.items()
        if name not in free and text != made.get(name) and (name in made or not name.startswith("#"))
    ] + [f"{SETTINGS} lacks {shown(text)}, with which the run was made" for text in lacking]


def _by_name(text: str) -> dict[str, str]:
    """The parts of a settings.yaml by what they are about; a line that begins with a space goes on."""
    parts: dict[str, str] = {}
    name = ""
    for line in filter(str.strip, text.splitlines()):
        name = name if line.startswith((" ", "- ")) else line.split(":")[0].strip()
        parts[name] = f"{parts.get(name, '')} {line.strip()}".strip()
    return parts
