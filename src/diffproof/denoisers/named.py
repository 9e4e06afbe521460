"""Denoisers by name: packaged ones, weights files, diffusers pipelines, published checkpoint families."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from diffproof.checks import unknown_name
from diffproof.denoisers import diffusers, edm, openai, saved, score_sde
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.weights import packaged


class Family(NamedTuple):
    """Checkpoints whose architecture a preset names."""

    presets: Iterable[str]
    load: Callable[[str, Path], NetworkDenoiser]


FAMILIES: dict[str, Family] = {
    "openai": Family(openai.PRESETS, openai.load),
    "score_sde": Family(score_sde.PRESETS, score_sde.load),
    "edm": Family(edm.PRESETS, edm.load),
}


def load_denoiser(spec: str) -> NetworkDenoiser:
    """A denoiser, in evaluation mode.

    Args:
        spec: a packaged name ("digits", "cifar10"); a .safetensors file of `diffproof train denoiser`; the
            folder or the Hub id of a diffusers pipeline with a UNet2DModel, perhaps after "diffusers:"; or
            "family:preset@path" for a published checkpoint, with family "openai", "score_sde" or "edm".

    Raises:
        ValueError: unknown name, unreadable file, or weights that do not fit.
    """
    family, colon, rest = spec.partition(":")
    if colon and family == "diffusers":
        return diffusers.load(rest)
    if colon and (family in FAMILIES or "@" in rest):
        return _load_checkpoint(spec, family, rest)
    known = packaged("denoiser")
    if spec in known:
        return saved.load(known[spec])
    path = Path(spec)
    if path.is_dir() or (not path.exists() and _is_hub_id(spec)):
        return diffusers.load(spec)
    if not path.exists() and path.suffix == "" and "/" not in spec:
        raise unknown_name("denoiser", spec, known)
    return saved.load(path)


def _load_checkpoint(spec: str, family: str, rest: str) -> NetworkDenoiser:
    if family not in FAMILIES:
        raise unknown_name("denoiser", family, [*FAMILIES, "diffusers"])
    preset, at, path = rest.partition("@")
    presets = FAMILIES[family].presets
    if not at or not path:
        raise ValueError(
            f"denoiser: expected {family}:PRESET@PATH with PRESET one of {', '.join(presets)}; got {spec!r}"
        )
    if preset not in presets:
        raise unknown_name(f"{family} preset", preset, presets)
    return FAMILIES[family].load(preset, Path(path))


# What ends so is a file that is not there, not a Hub id; other dots occur in ids.
_FILES = (".safetensors", ".pt", ".pth", ".pkl", ".ckpt", ".bin")


def _is_hub_id(spec: str) -> bool:
    return spec.count("/") == 1 and not spec.startswith((".", "/", "~")) and not spec.endswith(_FILES)
