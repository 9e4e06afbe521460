"""diffproof reproduce: the tables and figures of four papers."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffproof.catalog import PRECISIONS, STOPS
from diffproof.cli.attack import attack
from diffproof.cli.certify import certify
from diffproof.cli.finetune import finetune
from diffproof.cli.flags import Names, command, device_option
from diffproof.cli.paths import PATH
from diffproof.cli.plan import plan
from diffproof.cli.report import report
from diffproof.cli.run_options import WorkerCount
from diffproof.cli.sample import sample
from diffproof.cli.screen import Rows, echo, printed, said, screen_width, show
from diffproof.cli.theory import theory
from diffproof.cli.train import train
from diffproof.errors import ArgumentError, UnfinishedError

if TYPE_CHECKING:
    from diffproof.reproduce.entry import Cell, Entry, Line
    from diffproof.reproduce.request import Request, Step

_COMMANDS: Mapping[str, click.Command] = {
    "certify": certify,
    "attack": attack,
    "train": train,
    "finetune": finetune,
    "sample": sample,
    "report": report,
    "theory": theory,
}

# Images that Wang et al. 2023 generate, and steps of `diffproof train classifier` by default.
_SAMPLES, _STEPS = 1_000_000, 1000


def _entries(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from diffproof.reproduce.entries import ENTRIES

    return [name for name in ("list", *ENTRIES) if name.startswith(incomplete)]


@command()
@click.argument("entry", shell_complete=_entries)
@click.option("--data", help="Take the images of this data set; see diffproof certify --help.")
@click.option("--split", help="Take this split of the data. [default: test, or the only one]")
@click.option("--indices", help="Take these test images: start:stop:step. [default: as many as the paper]")
@click.option("--limit", type=int, help="Take this many of them at random. [default: as many as the paper]")
@click.option("--classifier", help="The table's classifier; see diffproof certify --help.")
@click.option("--denoiser", help="Its diffusion model; see diffproof certify --help.")
@click.option("--guide", help="AGDM's robust classifier.")
@click.option(
    "--network",
    "further",
    multiple=True,
    help="Take this SPEC for a network of the table, as in gaussian@0.25=FILE; give it again for more.",
)
@click.option(
    "--train", "trains", is_flag=True, help="Train the networks that are lacking, where diffproof can."
)
@click.option(
    "--iterations", type=int, help="Let each training take this many steps. [default: the command’s]"
)
@click.option("--n", type=int, help="Bound by this many draws of noise. [default: the paper's]")
@click.option(
    "--stop", type=Names(STOPS), default="fixed", help="End draws so; see diffproof certify --help."
)
@click.option(
    "--attack",
    "attacked_by",
    help="Attack pixels by this in place of the paper's attacks, as in pgd:iterations=20,eot=8; rows of an"
    " attack of their own keep it.",
)
@click.option(
    "--workers", type=WorkerCount(), help="Share each run among so many processes; extra diffproof[ray]."
)
@device_option
@click.option("--precision", type=Names(PRECISIONS), default="float32", help="Run the networks so.")
@click.option(
    "--plan", "only_plan", is_flag=True, help="Say what would run and what it would take; run nothing."
)
@click.option(
    "--quick", is_flag=True, help="Cut all sizes down, to try the table out: no number of it counts."
)
@click.option(
    "--out",
    type=PATH,
    help="Write run folders, weights and tables to this folder, or go on in it; all but list need one.",
)
def reproduce(entry: str, only_plan: bool, **flags: Any) -> int:
    """Run a table or a figure of a paper on your data and networks, and print it beside the paper's.

    ENTRY is a name such as densepure:table1, of four papers: DensePure (Xiao et al. 2023), DDS (Carlini et
    al. 2023), RDC (Chen et al. 2023), AGDM (Lin et al. 2024). `diffproof reproduce list` has all of them.

    Every row is a run of `diffproof certify` or `diffproof attack` with the paper's settings, whose command
    is printed before it runs. The same command goes on where it was interrupted; entries with one --out share
    runs. A row whose network is not given is left out, and the table says what it needs; --train trains
    those that diffproof can. Without any row the command ends with status 2. Intervals are 95%
    Clopper–Pearson.

    \b
      diffproof reproduce densepure:table1 --data cifar10 --classifier FILE \\
          --denoiser openai:cifar10@FILE --out table1 --plan
      diffproof reproduce densepure:tableA --data digits --classifier digits \\
          --denoiser digits --n 1000 --out digits
    """
    if entry == "list":
        _list()
        return 0
    from diffproof.reproduce.entries import find
    from diffproof.reproduce.entry import Unavailable

    found = find(entry)
    if isinstance(found, Unavailable):
        raise ArgumentError("entry", f"{found.name} is not run: {found.why}")
    request = _request(found, **flags)
    if found.columns():
        _check_data(request.data, flags["split"])
    steps = found.steps(request)
    if not steps:
        raise ArgumentError("entry", f"{found.name} has no row to run: it lacks {_lacks(found, request)}")
    if only_plan:
        _plan(steps)
        _print(found, found.lines(request), request, {})
        return 0
    failed = _run(steps)
    lines = found.lines(request)
    _print(found, lines, request, failed)
    if lines:
        said(f"written: {_write(found, lines, request)}")
    return 1 if failed or any(line.lacking for line in lines) else 0


def _list() -> None:
    """All entries, each with what it shows, what it needs, or why it is not run."""
    from diffproof.reproduce.entries import ENTRIES
    from diffproof.reproduce.entry import Unavailable

    pages = click.HelpFormatter(width=min(screen_width(), 100))
    rows = []
    for entry in ENTRIES.values():
        told = f"{entry.title}."
        if isinstance(entry, Unavailable):
            told = f"{told} Not run: {entry.why}."
        elif entry.needs:
            told = f"{told} Takes {', '.join(_roles(entry.needs))}."
        rows.append((entry.name, told))
    pages.write_dl(rows)
    echo(pages.getvalue(), nl=False)


def _check_data(data: str, split: str | None) -> None:
    """Raise ValueError for data that cannot be read, before anything else is asked for."""
    from diffproof.data.named import load_data

    load_data(data, split)


def _lacks(entry: Entry, request: Request) -> str:
    """The flags of an entry's networks that are not given, those of several noise levels together."""
    from diffproof.reproduce.request import flag
    from diffproof.reproduce.trainings import training

    lacking = [role for role in entry.needs if role not in request.networks]
    flags = ", ".join(map(flag, _roles(lacking)))
    trained = request.training is None and any(training(role) is not None for role in lacking)
    return flags + "; --train makes those that diffproof can" * trained


def _roles(needs: Sequence[str]) -> list[str]:
    """Roles with their noise levels together: "gaussian@0.25/0.5/1"."""
    levels: dict[str, list[str]] = {}
    for role in needs:
        name, _, level = role.partition("@")
        levels.setdefault(name, []).append(level)
    return [f"{name}@{'/'.join(some)}" if any(some) else name for name, some in levels.items()]


def _request(
    entry: Entry,
    *,
    data: str | None,
    split: str | None,
    indices: str | None,
    limit: int | None,
    further: tuple[str, ...],
    trains: bool,
    iterations: int | None,
    n: int | None,
    stop: str,
    attacked_by: str | None,
    workers: int | str | None,
    device: str,
    precision: str,
    quick: bool,
    out: Path | None,
    **networks: str | None,
) -> Request:
    """What the flags say; ValueError where something is lacking or idle."""
    from diffproof.reproduce.request import Request
    from diffproof.reproduce.trainings import images_seen

    if out is None:
        raise ArgumentError("out", "expected a folder for the runs, got none")
    if data is None and entry.columns():
        raise ArgumentError("data", "expected a data set, got none")
    if indices is not None and limit is not None:
        raise ArgumentError("limit", "chooses images, and so does --indices")
    if iterations is not None and not trains:
        raise ArgumentError("iterations", "is for --train, which is not given")
    if attacked_by is not None:
        attacked_by = _attack(entry, attacked_by)
    specs = {role: spec for role, spec in networks.items() if spec is not None}
    specs |= _further(entry, further)
    on = ("--device", device)
    images = (("--indices", indices), ("--limit", limit))
    chosen = tuple(str(word) for flag, value in images if value is not None for word in (flag, value))
    return Request(
        data or "",
        specs,
        out,
        chosen,
        (*_given(split=split, workers=workers), *on, "--precision", precision),
        (*_given(iterations=20 if quick and iterations is None else iterations), *on) if trains else None,
        20 if quick else min(_SAMPLES, images_seen(iterations or _STEPS)),
        n,
        stop,
        attacked_by,
        quick,
    )


def _attack(entry: Entry, text: str) -> str:
    """The attack in place of a table's."""
    from diffproof.methods import parse
    from diffproof.reproduce.attacked import AttackedTable

    if not isinstance(entry, AttackedTable):
        raise ArgumentError("attack", f"{entry.name} has no attack")
    return str(parse("attack", text))


def _given(**flags: object) -> tuple[str, ...]:
    return tuple(
        str(word) for name, value in flags.items() if value is not None for word in (f"--{name}", value)
    )


def _further(entry: Entry, further: Sequence[str]) -> dict[str, str]:
    """The networks of --network by their roles."""
    from diffproof.reproduce.trainings import with_starts

    given: dict[str, str] = {}
    for text in further:
        role, equals, spec = text.partition("=")
        if not equals or not spec:
            raise ArgumentError("network", f"expected ROLE=SPEC, got {text!r}")
        if role not in with_starts(entry.needs):
            raise ArgumentError("network", f"{entry.name} has no {role!r}; it takes {', '.join(entry.needs)}")
        given[role] = spec
    return given


def _plan(steps: Sequence[Step]) -> None:
    """Every command, and what those take whose networks are there."""
    for step in steps:
        said(f"$ diffproof {shlex.join(step.line)}")
        if step.words[0] not in ("certify", "attack"):
            continue
        try:
            plan.main([*step.words], prog_name="diffproof plan", standalone_mode=False)
        except (ArgumentError, click.ClickException, OSError) as error:
            said(f"  cannot be planned yet: {_text(error)}")


def _run(steps: Sequence[Step]) -> dict[Path, str]:
    """Run all commands, one after the other; what those could not do that failed, by their outputs."""
    failed: dict[Path, str] = {}
    for number, step in enumerate(steps, 1):
        if step.trains and step.out.exists():
            continue
        said(f"[{number}/{len(steps)}] diffproof {shlex.join(step.line)}")
        if step.trains:
            step.out.parent.mkdir(parents=True, exist_ok=True)
        # A report is of the runs that could be made.
        name, *words = (word for word in step.line if Path(word) not in failed)
        try:
            _COMMANDS[name].main(words, prog_name=f"diffproof {name}", standalone_mode=False)
        except (ArgumentError, click.ClickException, UnfinishedError, OSError, MemoryError) as error:
            # The other rows do not wait for this one.
            failed[step.out] = _text(error)
            printed(f"diffproof: error: {failed[step.out]}", err=True)
    return failed


def _text(error: Exception) -> str:
    return error.format_message() if isinstance(error, click.ClickException) else str(error)


def _print(entry: Entry, lines: Sequence[Line], request: Request, failed: Mapping[Path, str]) -> None:
    """The table, and what a reader must know."""
    if lines:
        rows = [[line.label, *(f"{_ours(cell)}\n{_printed(cell)}" for cell in line.cells)] for line in lines]
        title = f"{entry.name}: {entry.title}; in %, below it the paper's"
        show(Rows(["method", *entry.columns()], rows, title=title))
    for line in lines:
        if line.lacking:
            said(f"{line.label}: {line.lacking}")
    for out, why in failed.items():
        said(f"not done: {out}: {why}")
    if request.attack is not None:
        said(f"note: attacked by {request.attack} in place of the paper's attacks on pixels")
    if request.quick:
        said("note: sizes are cut down (--quick): no number of yours counts")
    said("note: the paper's numbers are of its networks, data and sample sizes")


def _ours(cell: Cell) -> str:
    if cell.ours is None:
        return "–"
    clean = "" if cell.clean is None else f" [{cell.clean:.1f}]"
    interval = "" if cell.low is None else f" ({cell.low:.0f}–{cell.high:.0f})"
    return f"{cell.ours:.1f}{clean}{interval}"


def _printed(cell: Cell) -> str:
    if cell.printed is None:
        return "–"
    clean = "" if cell.printed_clean is None else f" [{cell.printed_clean:g}]"
    return f"{cell.printed:g}{clean}"


def _write(entry: Entry, lines: Sequence[Line], request: Request) -> Path:
    """The table as CSV."""
    from diffproof.files import write_csv
    from diffproof.reproduce.entry import slug

    path = request.out / slug(entry.name) / "beside_the_paper.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Sequence[object]] = [
        ("method", "at", "ours", "low", "high", "clean", "printed", "runs", "lacking")
    ]
    for line in lines:
        runs = "; ".join(map(str, line.folders))
        for at, cell in zip(entry.columns(), line.cells, strict=True):
            numbers = cell.ours, cell.low, cell.high, cell.clean, cell.printed
            rows.append((line.label, at, *numbers, runs, line.lacking))
    write_csv(path, rows)
    return path
