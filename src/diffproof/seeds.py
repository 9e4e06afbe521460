"""Seeds of what is certified and attacked: drawn where none is given."""

from __future__ import annotations

import secrets

from diffproof.noise import check_seed


def drawn_seed() -> int:
    """A seed that nobody knew before, in [0, 2^64); the operating system's, which no other seed foretells."""
    return secrets.randbits(64)


def settled_seed(seed: int | None) -> tuple[int, bool]:
    """A seed, and whether it was drawn, as it is where none is given.

    Noise of a seed that is known beforehand can be remembered by a classifier, whose certificates then say
    nothing.

    Raises:
        ValueError: a seed outside [0, 2^64).
    """
    return (drawn_seed(), True) if seed is None else (check_seed(seed), False)
