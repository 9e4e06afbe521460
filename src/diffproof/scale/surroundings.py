"""What a worker's process takes over from the command that it works for."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Surroundings:
    """Where a command runs.

    Attributes:
        directory: its current one; a worker on a machine that has none of that name stays where it is.
        path: where it finds modules, behind a worker's own places.
        threads: that torch may use in a worker.
    """

    directory: str
    path: tuple[str, ...]
    threads: int

    @classmethod
    def here(cls, threads: int) -> Surroundings:
        """Those of this process."""
        return cls(os.getcwd(), tuple(sys.path), threads)

    def enter(self) -> None:
        """Let this process work as that one does."""
        import torch

        if Path(self.directory).is_dir():
            os.chdir(self.directory)
        sys.path += [place for place in self.path if place not in sys.path]
        torch.set_num_threads(self.threads)
        # The command has said them already.
        warnings.simplefilter("ignore")
