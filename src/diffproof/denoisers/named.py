"""Denoisers by name: packaged, weights files, diffusers pipelines, published checkpoints, data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffproof.checks import check_at_least, check_source, unknown_name
from diffproof.data.classes import PACKAGED
from diffproof.data.images import ONE_SIZE
from diffproof.data.named import load_data
from diffproof.denoisers import diffusers, factory, saved
from diffproof.denoisers.base import Denoiser
from diffproof.denoisers.empirical import EmpiricalDenoiser
from diffproof.denoisers.families import FAMILIES
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.denoisers.schedules import named_schedule
from diffproof.errors import ArgumentError
from diffproof.files import expanded_spec, named, warn_of_path
from diffproof.own_code import Address, address, exists, plugin
from diffproof.pictures import UnreadableError
from diffproof.weights import load_weights, packaged

_EMPIRICAL = "empirical"
# What `diffproof train denoiser` trains at by itself.
_SCHEDULE = ("cosine", 1000)


@named("denoiser")
def load_denoiser(spec: str) -> Denoiser:
    """A denoiser, in evaluation mode.

    Args:
        spec: a packaged name ("digits", "cifar10"); a .safetensors file of `diffproof train denoiser`; the
            folder or the Hub id of a diffusers pipeline with a UNet2DModel, perhaps after "diffusers:";
            "family:preset@path" for a published checkpoint, with family "openai", "score_sde" or "edm"; or
            "package.module:factory[@FILE]", your own code, which runs; NAME[@FILE], a plug-in; or
            "empirical:DATA", "empirical:DATA:SPLIT" or "empirical:DATA:SPLIT:COUNT" for the optimal denoiser
            of the first COUNT images of a data set (by default all of its training split), at the noise
            levels that `diffproof train denoiser` trains at by default.

    Raises:
        ValueError: unknown name, unreadable file or data, or weights that do not fit.
    """
    spec = expanded_spec(check_source("denoiser", spec))
    family, colon, rest = spec.partition(":")
    if colon and family == _EMPIRICAL:
        return _load_empirical(spec, rest)
    if colon and family == "diffusers":
        return diffusers.load(rest)
    own = own_factory(spec)
    if own is not None:
        _, at, weights = spec.partition("@")
        return factory.load(own, weights if at else None)
    if colon and (family in FAMILIES or "@" in rest):
        return _load_checkpoint(spec, family, rest)
    known = packaged("denoiser")
    if spec in known:
        warn_of_path("denoiser", spec, "the packaged diffusion model")
        denoiser = saved.load(known[spec])
        denoiser.class_names = PACKAGED[spec]
        return denoiser
    path = Path(spec)
    if path.is_dir() or (not path.exists() and _is_hub_id(spec)):
        return diffusers.load(spec)
    if not path.exists() and path.suffix == "" and "/" not in spec:
        raise unknown_name("denoiser", spec, known)
    return saved.load(path)


def load_described(spec: str) -> tuple[NetworkDenoiser, dict[str, Any]]:
    """A denoiser to train further, and what a file is to say of the network.

    Args:
        spec: a packaged name, a file of `diffproof train denoiser`, or a published checkpoint that predicts
            ε, "openai:PRESET@FILE" or "score_sde:PRESET@FILE"; see `load_denoiser`.

    Raises:
        ValueError: as `load_denoiser`, or it is another kind of denoiser.
    """
    denoiser = load_denoiser(spec)
    family, colon, rest = spec.partition(":")
    if colon and family in FAMILIES and isinstance(denoiser, NetworkDenoiser):
        if FAMILIES[family].build is None:
            raise ArgumentError("denoiser", f"{family}'s networks, which predict v, are not trained further")
        preset = rest.partition("@")[0]
        return denoiser, {"kind": "denoiser", "checkpoint": {"family": family, "preset": preset}}
    path = packaged("denoiser").get(spec, Path(expanded_spec(spec)))
    description = load_weights(path).description if path.is_file() else {}
    if not isinstance(denoiser, NetworkDenoiser) or description.get("kind") != "denoiser":
        raise ArgumentError(
            "denoiser",
            "expected a file of `diffproof train denoiser`, or openai:PRESET@FILE or score_sde:PRESET@FILE,"
            f" to train further, got {spec!r}",
        )
    return denoiser, {name: value for name, value in description.items() if name != "training"}


def own_factory(spec: str) -> Address | None:
    """The function of a user's code, or of a plug-in, that a denoiser's spec names; None for any other."""
    name = spec.partition("@")[0]
    where = address(name)
    if where is not None:
        taken = name.partition(":")[0] in (*FAMILIES, "diffusers", _EMPIRICAL)
        return where if not taken and exists(where.module) else None
    if name in packaged("denoiser") or "/" in name or Path(name).suffix or Path(spec).exists():
        return None
    return plugin("diffproof.denoisers", name)


def _load_empirical(spec: str, rest: str) -> EmpiricalDenoiser:
    source, *parts = rest.split(":")
    split, count = (*parts, "", "")[:2]
    if not source or len(parts) > 2 or (count and not count.isdecimal()):
        raise ArgumentError("denoiser", f"expected {_EMPIRICAL}:DATA[:SPLIT[:COUNT]], got {spec!r}")
    data = load_data(source, split or None, default_split="train")
    if count:
        data = data.select(range(min(check_at_least("count", int(count), 1), len(data))))
    missing = set(range(len(data.class_names))) - set(data.labels.tolist())
    if missing:
        raise ArgumentError("denoiser", f"{spec!r} has no image of class {data.class_names[min(missing)]}")
    try:
        images, labels = data
    except ArgumentError as error:
        # The flags that are the way out are for the images that are certified or trained on.
        problem = error.reason if isinstance(error, UnreadableError) else error.problem.removesuffix(ONE_SIZE)
        raise ArgumentError("denoiser", f"{spec!r}: {problem}") from None
    name, timesteps = _SCHEDULE
    schedule = named_schedule(name, timesteps=timesteps)
    # A schedule counts in units of [−1, 1] pixels.
    denoiser = EmpiricalDenoiser(images, labels, sigmas=schedule.sigmas / 2).eval()
    denoiser.origin = schedule.origin
    denoiser.class_names = data.class_names if data.classes_named else None
    return denoiser


def _load_checkpoint(spec: str, family: str, rest: str) -> NetworkDenoiser:
    if family not in FAMILIES:
        raise unknown_name("denoiser", family, [*FAMILIES, "diffusers", _EMPIRICAL])
    preset, at, path = rest.partition("@")
    presets = FAMILIES[family].presets
    if not at or not path:
        raise ArgumentError(
            "denoiser", f"expected {family}:PRESET@PATH with PRESET one of {', '.join(presets)}; got {spec!r}"
        )
    if preset not in presets:
        raise unknown_name(f"{family} preset", preset, presets)
    return FAMILIES[family].load(preset, Path(path))


# What ends so is a file that is not there, not a Hub id; other dots occur in ids.
_FILES = (".safetensors", ".pt", ".pth", ".pkl", ".ckpt", ".bin")


def _is_hub_id(spec: str) -> bool:
    return spec.count("/") == 1 and not spec.startswith((".", "/", "~")) and not spec.endswith(_FILES)
