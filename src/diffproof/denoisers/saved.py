"""Denoisers as `diffproof train denoiser` writes them, and classifiers that are denoisers, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffproof.checks import check_class_names, renamed
from diffproof.classifiers import hybrid
from diffproof.denoisers.diffusers import from_unet
from diffproof.denoisers.families import FAMILIES
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.denoisers.schedules import named_schedule
from diffproof.denoisers.unet import UNet2D
from diffproof.errors import ArgumentError
from diffproof.weights import load_into, load_weights, no_larger_than


def build_denoiser(description: dict[str, Any]) -> NetworkDenoiser:
    """The denoiser that a weights file describes, with fresh weights.

    Raises:
        ValueError: the description is of something else, or incomplete.
    """
    both = description.get("kind") == "classifier" and "denoises" in description
    if description.get("kind") != "denoiser" and not both:
        raise ArgumentError(
            "denoiser",
            "expected a file of `diffproof train denoiser`, which describes its network;"
            f" this one describes {description.get('kind', 'nothing')}",
        )
    try:
        if both:
            return _hybrid(description)
        if "checkpoint" in description:
            return _published(**description["checkpoint"])
        unet = UNet2D(**description["network"])
        schedule = named_schedule(**description["schedule"])
        return from_unet(
            unet,
            schedule,
            prediction=description["prediction"],
            data_range=tuple(description.get("data_range", (-1.0, 1.0))),
            null_label=description["null_label"],
            patch=description.get("patch", 1),
            multi_head=description.get("multi_head", False),
        )
    except KeyError as error:
        raise ArgumentError("denoiser", f"the weights file's description is incomplete: {error}") from None
    except (TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise ArgumentError("denoiser", f"the weights file's description is wrong: {error}") from None


def _hybrid(description: dict[str, Any]) -> NetworkDenoiser:
    """A classifier that was trained as a denoiser, too, as that."""
    network, size = hybrid.build(description)
    schedule, (channels, height, width) = (
        named_schedule(**description["denoises"]),
        description["image_shape"],
    )
    denoiser = NetworkDenoiser(network, schedule, image_shape=(channels, height, width))
    denoiser.structure = hybrid.structure(size)
    return denoiser


def _published(family: str, preset: str) -> NetworkDenoiser:
    """The network of a published checkpoint, which was trained further."""
    build = FAMILIES[family].build
    if build is None:
        raise ArgumentError("checkpoint", f"expected a family that predicts ε, got {family}")
    return build(preset)


def load(path: Path) -> NetworkDenoiser:
    """The denoiser of a .safetensors file written by `diffproof train denoiser`, or by `diffproof train
    classifier` with an objective that trains one, too; in evaluation mode.

    Raises:
        ValueError: unreadable file, or weights that do not fit.
    """
    tensors, description = load_weights(path)
    with no_larger_than(sum(tensor.numel() for tensor in tensors.values())):
        denoiser = build_denoiser(description)
    if "class_names" in description and "denoises" not in description:
        with renamed({"class_names": "denoiser"}):
            denoiser.class_names = check_class_names(description["class_names"], denoiser.num_classes or 0)
    load_into(denoiser.network, {name: tensor.float() for name, tensor in tensors.items()}, str(path))
    return denoiser.eval()
