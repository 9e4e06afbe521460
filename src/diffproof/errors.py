"""Telling errors apart."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch or Python means that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The second is all that oneDNN, torch's library for convolutions on CPUs, says of it.
    signs = ("can't allocate memory", "could not create a primitive")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def is_compile_error(error: BaseException) -> bool:
    """Whether an exception is of torch.compile."""
    # Importing it takes a second, and nobody needs it before.
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
