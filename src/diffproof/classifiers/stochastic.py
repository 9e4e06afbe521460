"""Networks whose dropout and drop-path layers stay active, their masks drawn from diffproof's noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import AlphaDropout, FeatureAlphaDropout, _DropoutNd

from diffproof.errors import ArgumentError
from diffproof.noise import Noise

# Classes of libraries that drop a whole branch of an image, by name: of timm, transformers and torchvision.
_PATHS = ("DropPath", "StochasticDepth")
# Of one word of noise.
_WORD = 2**32


@contextmanager
def dropping(network: nn.Module, noise: Noise) -> Iterator[None]:
    """A network in evaluation mode that drops what it drops in training, by masks of the given noise.

    A layer keeps each of its elements, channels (Dropout2d and the like) or an image's whole branch (drop
    path) with its probability and divides by that, in place of torch's generator: what is dropped of a row
    depends on the row's noise and on the layer, not on what shares its batch. Dropout that a network does
    without a layer, as within fused attention, stays off.

    Args:
        network: in evaluation mode, called with len(noise) images at a time.
        noise: one row an image; step s is that of the s-th layer called.

    Raises:
        ValueError: no layer drops anything, one of a kind that is not known, a compiled network, or, when the
            network is called, a layer that sees other than one row an image.
    """
    layers = check_drops(network)
    if any(hasattr(one.forward, "_torchdynamo_orig_callable") for one in network.modules()):
        raise ArgumentError("compile", "a compiled network does not drop; leave it out, or votes")
    step = 0

    def drop(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        nonlocal step
        # In evaluation mode what comes out is what went in.
        given = output
        if len(given) != len(noise):
            raise ArgumentError(
                "votes",
                f"a {type(layer).__name__} of the classifier sees {len(given)} rows of {len(noise)} images;"
                " expected one an image",
            )
        step += 1
        return _dropped(layer, given, noise, step - 1)

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(_removed(layer.register_forward_hook(drop)))
        yield


def check_drops(network: nn.Module) -> list[nn.Module]:
    """The layers of a network that drop something in training.

    Raises:
        ValueError: there is none, or one of a kind that is not known.
    """
    found = []
    for layer in network.modules():
        path = type(layer).__name__.endswith(_PATHS)
        if isinstance(layer, AlphaDropout | FeatureAlphaDropout):
            raise ArgumentError(
                "votes", f"{type(layer).__name__} of the classifier cannot be drawn from noise"
            )
        if (path or isinstance(layer, _DropoutNd)) and share_dropped(layer) > 0:
            found.append(layer)
    if not found:
        raise ArgumentError(
            "votes", "the classifier has no layer of dropout or drop path, so that all votes would agree"
        )
    return found


def share_dropped(layer: nn.Module) -> float:
    """The probability with which a layer drops."""
    share = getattr(layer, "p", None)
    return float((getattr(layer, "drop_prob", None) if share is None else share) or 0.0)


@contextmanager
def _removed(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _dropped(layer: nn.Module, given: Tensor, noise: Noise, step: int) -> Tensor:
    shape = list(given.shape[1:])
    if not isinstance(layer, _DropoutNd):
        shape = [1] * len(shape)
    elif not isinstance(layer, nn.Dropout):
        # Whole channels.
        shape = [shape[0], *[1] * (len(shape) - 1)]
    share = share_dropped(layer)
    words = torch.cat([part for _, part in noise.words(math.prod(shape), step)])
    kept = (words >= round(share * _WORD)).reshape(len(given), *shape).to(given)
    # A share of 1 drops all.
    return given * kept / (1 - share) if share < 1 else given * kept
