"""The error of a user's mistake, and telling errors apart."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")


class ArgumentError(ValueError):
    """A mistake of the user's: an argument, a file or data that is not what it should be.

    Args:
        argument: what it is about, by the name that the user knows it by.
        problem: what was expected and what came.

    Attributes:
        method: "defense" or "attack" where the argument is a setting of one.
    """

    method: str | None = None

    def __init__(self, argument: str, problem: str) -> None:
        # Both go to the base class, which pickles them.
        super().__init__(argument, problem)
        self.argument = argument
        self.problem = problem

    def __str__(self) -> str:
        return printable(f"{self.argument}: {self.problem}")


class UnfinishedError(RuntimeError):
    """Work ended before all of it was done, by no mistake of the user's; what was done is kept."""


# Characters of a line on a screen, at most.
LONGEST_LINE = 500
_SHOWN_END = 160


def printable(text: object, most: int = LONGEST_LINE) -> str:
    """A text as one line that is safe on a terminal.

    White space is joined, control characters and bytes that are no text are escaped (\\x1b, \\xff), and
    the middle of what is longer than `most` is left out.
    """
    line = without_control(" ".join(str(text).split()))
    end = min(_SHOWN_END, most // 3)
    return line if len(line) <= most else f"{line[: most - end - 1]}…{line[-end:]}"


def without_control(text: str) -> str:
    """A text with its control characters, line breaks too, and bytes that are no text escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else escaped(c) for c in text)


def drawn(text: object) -> str:
    """A text as one line that matplotlib draws as it is.

    As `printable`; a dollar begins no formula, and a legend does not leave out what begins with "_".
    """
    line = printable(text).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def escaped(character: str) -> str:
    """What stands for a control character, or for a byte that is no text: \\x1b, \\xff."""
    # Python has a byte that is no text of its encoding as a surrogate of its own.
    byte = ord(character) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else character.encode("unicode_escape").decode()


@contextmanager
def failing_network(argument: str, network: object, address: str | None = None) -> Iterator[None]:
    """While a network of the user's runs: any exception of its is one line that names it.

    Args:
        argument: what the network is here.
        network: the module; one of diffproof's own keeps its exceptions.
        address: where the user's code made it, if it came from there; else its class names it.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        kind = type(network)
        known = isinstance(error, ArgumentError | MemoryError) or kind.__module__.startswith("diffproof.")
        if known or is_out_of_memory(error) or is_compile_error(error):
            raise
        lines = str(error).strip().splitlines() or ["no message"]
        name = f"{kind.__qualname__} of {address or kind.__module__}"
        raise ArgumentError(argument, f"{name} failed: {type(error).__name__}: {lines[0][:200]}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch or Python means that memory ran out."""
    # Importing it takes a second, and the command line imports this module.
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The second is all that oneDNN, torch's library for convolutions on CPUs, says of it; the third mmap's.
    signs = ("can't allocate memory", "could not create a primitive", "Cannot allocate memory")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def halved(batch_size: int, error: BaseException) -> int:
    """Half a batch size for which memory ran out, and a warning that says so.

    Args:
        batch_size: how many images were tried together.
        error: what that raised; raised again unless it means that memory ran out.

    Raises:
        MemoryError: not even one image fits.
    """
    if not is_out_of_memory(error):
        raise error
    if batch_size == 1:
        raise MemoryError("no memory for a batch of one image") from None
    batch_size //= 2
    warnings.warn(f"no memory for the batch: going on with {batch_size} images", stacklevel=3)
    return batch_size


class Fitting:
    """Work whose results do not depend on the batch size: when memory runs out, it goes on with half of it.

    Args:
        batch_size: most rows at once.

    Attributes:
        batch_size: as far as is known.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def __call__(self, do: Callable[[int], Result]) -> Result:
        """What `do` gives for a batch size that fits.

        Raises:
            MemoryError: not even one row fits.
        """
        while True:
            try:
                return do(self.batch_size)
            except (MemoryError, RuntimeError) as error:
                self.batch_size = halved(self.batch_size, error)


def is_compile_error(error: BaseException) -> bool:
    """Whether an exception is of torch.compile."""
    # Importing it takes seconds; where nothing was compiled it is not there.
    compiling = sys.modules.get("torch._dynamo.exc")
    return compiling is not None and isinstance(error, compiling.TorchDynamoException)
