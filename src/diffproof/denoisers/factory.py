"""Denoisers that a user's own code builds."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from diffproof.denoisers.base import Denoiser
from diffproof.errors import ArgumentError
from diffproof.own_code import Address, build
from diffproof.weights import load_into, load_weights
from diffproof.wording import kind_of


def load(where: Address, weights: str | None) -> Denoiser:
    """Call a function of a user's module. It runs as your code, with all that your code may do.

    Args:
        where: a function without arguments that returns a diffproof.Denoiser.
        weights: a file with the state dict of the denoiser's `network`; None leaves it as it is.

    Raises:
        ValueError: no such module or function, an exception in either, something else returned, or weights
            that do not fit.
    """
    denoiser = build("denoiser", where)
    if not isinstance(denoiser, Denoiser):
        raise ArgumentError(
            "denoiser",
            f"{where}() returned {kind_of(denoiser)}, expected a diffproof.Denoiser; a"
            " network becomes one as diffproof.NetworkDenoiser(network, schedule, prediction=…)",
        )
    denoiser.address = str(where)
    if weights is not None:
        network = getattr(denoiser, "network", None)
        if not isinstance(network, nn.Module):
            raise ArgumentError(
                "denoiser", f"{where}() has no network that could take the weights of {weights}"
            )
        load_into(network, load_weights(Path(weights)).tensors, weights)
    return denoiser.eval()
