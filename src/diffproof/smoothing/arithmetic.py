"""The arithmetic that a base classifier labels in, and how often a label falls otherwise there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from diffproof.defenses.base import Defense

# Share of uncertain draws, those without an image's most frequent label, that fall to another one in another
# batch, with other threads, on another machine: more than `benchmarks/flips.py` finds.
FLIP_RATES = {"float32": 0.001, "bfloat16": 0.05}
# That draws which are the same are taken for others, for each question asked.
_FALSE_ALARM = 1e-5


def arithmetic(base: object, image: Tensor) -> dict[str, Any]:
    """What a certificate states of it: precision, whether networks are compiled, kind of device.

    Args:
        base: a defence or a plain function.
        image: one that it labels.
    """
    networks = base.networks() if isinstance(base, Defense) else []
    parameters = (one for network in networks for one in network.parameters() if one.is_floating_point())
    dtypes = sorted({str(one.dtype).removeprefix("torch.") for one in parameters})
    return {
        "precision": " and ".join(dtypes) or str(image.dtype).removeprefix("torch."),
        "compiled": any(map(_is_compiled, networks)),
        "device": image.device.type,
    }


def _is_compiled(network: nn.Module) -> bool:
    """Whether torch.compile made a module, its call or its forward."""
    ways = (network, network.forward, getattr(network, "_compiled_call_impl", None))
    return any(hasattr(one, "_torchdynamo_orig_callable") or hasattr(one, "_orig_mod") for one in ways)


def flips(counts: Sequence[int], again: Sequence[int]) -> int:
    """The least number of draws that must have fallen to another label than before, by counts of labels."""
    return sum(abs(one - other) for one, other in zip(counts, again, strict=True)) // 2


def uncertain(counts: Sequence[int], again: Sequence[int]) -> int:
    """How many draws may lie near a boundary: those without the most frequent label, and one more."""
    return max(sum(one) - max(one) for one in (counts, again)) + 1


def most_flips(draws: int, precision: str) -> int:
    """The largest number of flips that the rate of a precision explains; more are a failure.

    Args:
        draws: uncertain ones.
        precision: of the networks; one without a rate of its own has that of bfloat16.
    """
    # It takes a second to import, and only verification needs it.
    from scipy.stats import binom

    rate = FLIP_RATES.get(precision, FLIP_RATES["bfloat16"])
    return int(binom.isf(_FALSE_ALARM, draws, rate))
