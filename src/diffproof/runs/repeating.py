"""The command that repeats a run."""

from __future__ import annotations

import shlex
from pathlib import Path

from diffproof.runs.code import own_places
from diffproof.runs.settings import CertifySettings, RunSettings


def command(settings: RunSettings, folder: Path) -> str:
    """The command line, for a POSIX shell, that makes a run of these settings again in another folder.

    Args:
        settings: of the run; a class map, which has no flag but a file's, is taken from its settings.yaml.
        folder: the run's.
    """
    words = ["diffproof", "certify" if isinstance(settings, CertifySettings) else "attack"]
    given = settings.as_dict()
    # Who repeats a run gives its seed.
    del given["seed_drawn"]
    if given.pop("class_map", None) is not None:
        words += ["--config", str(folder / "settings.yaml")]
        # Code that a file names runs only where it is named here, too.
        given = {name: given[name] for name in own_places(given)}
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] * value
        else:
            words += [flag, str(value)]
    return shlex.join([*words, "--out", f"{folder.resolve().name}-again"])
