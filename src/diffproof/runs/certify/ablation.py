"""What fewer votes and fewer draws would have certified, from the ballots that one run kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor

from diffproof.defenses.voting import winner
from diffproof.errors import ArgumentError, drawn
from diffproof.files import check_out, replacing_all, write_csv
from diffproof.noise import Stream
from diffproof.pictures import save_chart
from diffproof.runs.certify.figures import step_of
from diffproof.runs.certify.report import Row, load_row
from diffproof.runs.certify.store import CertifyStore, ImageResult
from diffproof.runs.settings import CertifySettings
from diffproof.smoothing.bounds import radius_bound
from diffproof.smoothing.certificate import certifies
from diffproof.wording import counted


class Over(StrEnum):
    """What an ablation varies.

    VOTES: votes of a draw, K.
    DRAWS: draws that bound the selected class's probability, n.
    """

    VOTES = "votes"
    DRAWS = "draws"


@dataclass(frozen=True)
class Ablation:
    """A run as it would have been with fewer votes or draws.

    Attributes:
        folder: the run's.
        over: what varies.
        rows: by its value, ascending; the last is the run itself.
        radii: ε at which certified accuracy is wanted.
    """

    folder: Path
    over: Over
    rows: dict[int, Row]
    radii: tuple[float, ...]


def load_ablation(folder: Path, over: Over, radii: Sequence[float]) -> Ablation:
    """What a run with ballots would have certified with 1, 2, 5, 10, 20, 50, … votes or draws.

    Fewer votes: each draw's label is that of its first votes, which a run with as many would have given it.
    Fewer draws: of each image the first ones.

    Args:
        folder: a finished or unfinished run.
        over: what varies.
        radii: see `load_report`.

    Raises:
        ValueError: a run that kept no ballots, or draws of one that ended when it was decided.
    """
    row = load_row(folder)
    settings = row.settings
    if not settings.keep_ballots:
        raise ArgumentError("over", f"{folder} kept no ballots; certify --keep-ballots does")
    if over is Over.DRAWS and settings.stop != "fixed":
        raise ArgumentError("over", f"expected a run of a fixed number of draws, {folder} is {settings.stop}")
    rows: dict[int, list[ImageResult]] = {}
    with CertifyStore.reading(folder) as store:
        for result in row.results:
            ballots = ballots_of(store, result)
            votes = ballots[Stream.ESTIMATION][1].shape[1]
            for value in series(votes if over is Over.VOTES else settings.n):
                few = (value, settings.n) if over is Over.VOTES else (votes, value)
                rows.setdefault(value, []).append(_with_fewer(result, settings, ballots, *few))
    made = {value: replace(row, results=results) for value, results in rows.items()}
    return Ablation(folder, over, made, tuple(radii))


def failures_of_ballots(store: CertifyStore, results: Sequence[ImageResult]) -> list[str]:
    """What certificates say that the ballots of the run's draws do not give, a line each."""
    found = []
    for result in results if store.settings.keep_ballots else ():
        one = result.certificate
        try:
            ballots = ballots_of(store, result)
            again = _with_fewer(
                result, store.settings, ballots, ballots[Stream.ESTIMATION][1].shape[1], one.n
            )
        except ArgumentError as error:
            found.append(f"image {result.image_index}: {error.problem}")
            continue
        if (again.certificate.selection_counts, again.certificate.counts) != (
            one.selection_counts,
            one.counts,
        ):
            found.append(f"image {result.image_index}: its ballots do not give its counts")
    return found


def ballots_of(store: CertifyStore, result: ImageResult) -> dict[Stream, tuple[Tensor, Tensor]]:
    """The ballots of all draws that a finished image counts; there may be more, which it did not need.

    Raises:
        ValueError: some are missing, or cannot be.
    """
    found, one = store.ballots(result.image_index), result.certificate
    ballots = {}
    for stream, wanted in ((Stream.SELECTION, one.n0), (Stream.ESTIMATION, one.n)):
        image = f"image {result.image_index}"
        draw, votes = (part[:wanted] for part in found.get(stream, (torch.empty(0), torch.empty(0))))
        if not draw.equal(torch.arange(wanted)):
            raise ArgumentError("run", f"{store.folder} lacks ballots of {image}")
        if int(votes[:, 0].min()) < 0 or int(votes.max()) >= len(one.counts):
            raise ArgumentError(
                "run", f"{store.folder} has ballots of image {result.image_index} that cannot be"
            )
        ballots[stream] = draw, votes
    return ballots


def series(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, … below a number, and the number."""
    steps = (factor * 10**power for power in range(len(str(most))) for factor in (1, 2, 5))
    return [*(step for step in steps if step < most), most]


def _with_fewer(
    result: ImageResult,
    settings: CertifySettings,
    ballots: dict[Stream, tuple[Tensor, Tensor]],
    votes: int,
    draws: int,
) -> ImageResult:
    """A result as it would be with fewer votes of its draws, and of the first draws."""
    one = result.certificate
    classes = len(one.counts)
    consensus = one.settings.get("consensus")
    if consensus is not None and consensus > votes:
        consensus = None

    selection, estimation = (
        winner(ballots[stream][1][:, :votes], classes, consensus)
        for stream in (Stream.SELECTION, Stream.ESTIMATION)
    )
    counts = [
        torch.bincount(labels, minlength=classes).tolist() for labels in (selection, estimation[:draws])
    ]
    selected = counts[0].index(max(counts[0]))
    test = settings.test(one.failure_mass)
    if test is None:
        proved = radius_bound(
            counts[1], selected, one.alpha, one.sigma, one.bound, failure_mass=one.failure_mass
        )
    else:
        hit = (estimation == selected).cumsum(0)
        # It ended as the vote of all needed; what was proved until then holds.
        looks = [look for look in test.checkpoints if look <= len(hit)]
        proved = test.proved([int(hit[look - 1]) for look in looks])[0]
    certificate = replace(
        one,
        label=selected if certifies(proved, test is not None) else None,
        radius=proved.radius,
        p_a_lower=proved.p_a_lower,
        p_b_upper=proved.p_b_upper,
        selected=selected,
        selection_counts=tuple(counts[0]),
        counts=tuple(counts[1]),
        n=min(draws, one.n),
    )
    return replace(result, certificate=certificate)


def header(ablation: Ablation) -> list[str]:
    """Column names of the table."""
    return [ablation.over.value, *(f"ε={radius:g}" for radius in ablation.radii), "ACR"]


def cells(ablation: Ablation) -> list[list[str]]:
    """The rows of the table as people read it."""
    return [
        [
            f"{value:,}",
            *(f"{row.certified_accuracy(radius):.1%}" for radius in ablation.radii),
            f"{row.average_radius:.3f}",
        ]
        for value, row in ablation.rows.items()
    ]


def write_ablation(ablation: Ablation, folder: Path, *, force: bool) -> tuple[Path, Path]:
    """Write the table as CSV, with shares in [0, 1], and certified accuracy over what varies as PNG.

    Returns:
        The two paths.

    Raises:
        ValueError: something is in the way, see `files.check_out`.
        OSError: the folder cannot be written.
    """
    table, picture = (folder / f"over-{ablation.over}.{kind}" for kind in ("csv", "png"))
    check_out(folder, (table.name, picture.name), force=force)
    names = [f"certified_accuracy_at_{radius:g}" for radius in ablation.radii]
    lines: list[list[object]] = [[ablation.over.value, "images", *names, "acr", "run"]]
    for value, row in ablation.rows.items():
        shares = [f"{row.certified_accuracy(radius):.6f}" for radius in ablation.radii]
        acr = f"{row.average_radius:.6f}"
        lines.append([value, len(row.results), *shares, acr, str(ablation.folder)])
    with replacing_all([table, picture]) as (fresh_table, fresh_picture):
        write_csv(fresh_table, lines)
        _draw(ablation, fresh_picture)
    return table, picture


def _draw(ablation: Ablation, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axis = figure.subplots()
    values = list(ablation.rows)
    for place, radius in enumerate(ablation.radii):
        shares = [100 * row.certified_accuracy(radius) for row in ablation.rows.values()]
        axis.plot(values, shares, marker="o", markersize=4, label=f"ε = {radius:g}", **step_of(place))
    last = ablation.rows[values[-1]]
    axis.set_xscale("log")
    axis.set_xticks(values, [f"{value:,}" for value in values])
    axis.minorticks_off()
    axis.set_xlabel("votes of a draw, K" if ablation.over is Over.VOTES else "draws of an image, n")
    axis.set_ylabel("certified accuracy (%)")
    axis.set_ylim(0, 102)
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    settings = last.settings
    images = counted(len(last.results), "image")
    title = f"{settings.describe()}, σ = {settings.sigma:g}, {images}"
    axis.set_title(drawn(title), fontsize=10)
    save_chart(path, figure, dpi=150)
