"""Entry point: the command group, and errors as one line."""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar

import click

from diffproof.cli.attack import attack
from diffproof.cli.certify import certify
from diffproof.cli.completion import completion
from diffproof.cli.convert import convert
from diffproof.cli.data import data
from diffproof.cli.demo import demo
from diffproof.cli.doctor import doctor
from diffproof.cli.finetune import finetune
from diffproof.cli.merge import merge
from diffproof.cli.methods import methods
from diffproof.cli.numbers import strict
from diffproof.cli.plan import plan
from diffproof.cli.purify import purify
from diffproof.cli.report import report
from diffproof.cli.reproduce import reproduce
from diffproof.cli.results import export, verify
from diffproof.cli.sample import sample
from diffproof.cli.screen import echo, printed
from diffproof.cli.serve import serve
from diffproof.cli.status import status
from diffproof.cli.theory import theory
from diffproof.cli.train import train
from diffproof.cli.watch import watch
from diffproof.errors import ArgumentError, UnfinishedError, is_out_of_memory
from diffproof.interrupts import terminated_as_interrupted

UNFINISHED = 1
USER_ERROR = 2
INTERRUPTED = 130
# Whether errors print where they came from.
_tracebacks = ContextVar("tracebacks", default=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="diffproof")
@click.option("--traceback", is_flag=True, help="Print where an error came from, before its line.")
def diffproof(**flags: bool) -> None:
    """Certified and empirical robustness of image classifiers with diffusion models.

    A first run, on the packaged digits:

    \b
      diffproof certify --data digits --indices 0:20 --denoiser digits \\
          --classifier digits --defense densepure:steps=2,votes=10 \\
          --sigma 0.5 --n 1000 --out runs/a
      diffproof report runs/a --out report
    """
    _tracebacks.set(flags["traceback"])


COMMANDS = (
    certify,
    attack,
    plan,
    purify,
    sample,
    merge,
    status,
    report,
    watch,
    serve,
    export,
    verify,
    reproduce,
    data,
    methods,
    theory,
    demo,
    train,
    finetune,
    convert,
    doctor,
    completion,
)
for command in COMMANDS:
    diffproof.add_command(command)
strict(diffproof)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 refuted or left undone, 2 a user's mistake, 130 interrupted.

    Any other exception ends in a traceback, with Python's exit status 1. What the encoding of a screen cannot
    show becomes a question mark.
    """
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(run(arguments))


def _open_streams() -> None:
    """Let what a shell has closed, as with 2>&-, lead nowhere.

    Else the next file that is opened, perhaps a run's store, takes its number, and what any library says goes
    into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free: this one.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""

    def work() -> object:
        _check_directory()
        return diffproof.main(args=arguments, prog_name="diffproof", standalone_mode=False)

    return guarded(work)


def _check_directory() -> None:
    # Libraries that torch loads end the process without one.
    try:
        os.getcwd()
    except OSError as error:
        raise click.ClickException(
            f"the current directory is gone ({error.strerror}); change to one"
        ) from None


def guarded(work: Callable[[], object]) -> int:
    """Do some work and return its exit status. A mistake of the user's becomes one line.

    An error of ours is none of the user's mistakes: it goes on, and Python prints its traceback. SIGTERM is
    a Ctrl-C.
    """
    with terminated_as_interrupted(), warnings.catch_warnings():
        # Each line once, however often a command comes to say it.
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _show_warning
        return _status_of(work)


def _status_of(work: Callable[[], object]) -> int:
    try:
        status = work()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        echo(error.format_message(), err=True)
        return USER_ERROR
    except click.ClickException as error:
        return _complain(error.format_message() + _place_of(error, error.__cause__))
    except (ArgumentError, OSError, MemoryError) as error:
        text = str(error) or ("no memory" if isinstance(error, MemoryError) else type(error).__name__)
        return _complain(_stream_of(error) + text + _place_of(error, error))
    except UnfinishedError as error:
        _complain(str(error))
        return UNFINISHED
    except (KeyboardInterrupt, click.Abort) as error:
        # click turns a KeyboardInterrupt into an Abort that has it as its cause.
        hint = str(error) or str(error.__cause__ or "")
        printed(f"diffproof: interrupted{'; ' * bool(hint)}{hint}", err=True)
        return INTERRUPTED
    except RuntimeError as error:
        # What torch raises where Python has a MemoryError.
        if not is_out_of_memory(error):
            raise
        return _complain(f"no memory: {error}")


def _place_of(error: Exception, mistake: BaseException | None) -> str:
    """Print where an error came from, if asked to; else how to ask, of one in the user's own code."""
    if _tracebacks.get():
        traceback.print_exception(error)
        return ""
    return "" if mistake is None or mistake.__cause__ is None else "; diffproof --traceback … shows where"


def _stream_of(error: Exception) -> str:
    """Names the output where printing failed; nothing for other errors."""
    if not isinstance(error, OSError) or error.filename is not None:
        return ""
    where = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return "standard output: " * (where[-1].partition(".")[0] in ("click", "rich"))


def _complain(message: str) -> int:
    printed(f"diffproof: error: {message}", err=True)
    return USER_ERROR


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    printed(f"diffproof: warning: {message}", err=True)
