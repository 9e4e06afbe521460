"""Families of published checkpoints, whose architectures presets name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from diffproof.denoisers import edm, openai, score_sde
from diffproof.denoisers.network import NetworkDenoiser


class Family(NamedTuple):
    """Checkpoints whose architecture a preset names.

    Attributes:
        presets: their names.
        load: preset and file to denoiser.
        build: preset to denoiser with fresh weights, for networks that predict ε, which can be trained
            further; None for others.
    """

    presets: Iterable[str]
    load: Callable[[str, Path], NetworkDenoiser]
    build: Callable[[str], NetworkDenoiser] | None = None


FAMILIES: dict[str, Family] = {
    "openai": Family(openai.PRESETS, openai.load, openai.build),
    "score_sde": Family(score_sde.PRESETS, score_sde.load, score_sde.build),
    "edm": Family(edm.PRESETS, edm.load),
}
