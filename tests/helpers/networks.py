"""Which networks the packaged names are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from diffproof import weights

_PACKAGED = weights._ASSETS


@contextmanager
def packaged_again() -> Iterator[None]:
    """The denoiser "digits" is the packaged one in modules with `small_digits`, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "_ASSETS", _PACKAGED)
        yield
