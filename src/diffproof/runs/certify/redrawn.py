"""Images of a certification drawn again: what fell otherwise, and whether rounding explains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from diffproof.runs.certify.job import CertifyRun
from diffproof.runs.certify.store import ImageResult
from diffproof.smoothing.arithmetic import flips, most_flips, uncertain
from diffproof.smoothing.certificate import Certificate
from diffproof.smoothing.schedule import Counting
from diffproof.smoothing.tally import Counted, Looks
from diffproof.wording import counted

T = TypeVar("T")


def spread(results: Sequence[T], number: int) -> list[T]:
    """So many of the results, or all there are, spread evenly."""
    count = min(number, len(results))
    return [results[i * len(results) // count] for i in range(count)]


def drawn_again(
    results: Sequence[ImageResult], failures: Sequence[str], resample: int, job: CertifyRun
) -> tuple[list[ImageResult], list[str], list[str]]:
    """Results that were drawn again, what did not hold of them, and remarks."""
    # Counts that fail their check cannot be compared with a new draw.
    broken = {failure.split(":")[0] for failure in failures}
    chosen = spread([one for one in results if f"image {one.image_index}" not in broken], resample)
    wrong, ties = [], []
    fell, near, precision = 0, 0, job.settings.precision
    for result in chosen:
        one, again = result.certificate, _draw_again(result, job)
        assert again.selection is not None
        assert again.estimation is not None
        pairs = ((one.selection_counts, again.selection.counts), (one.counts, again.estimation.counts))
        count, may = (sum(measured(*pair) for pair in pairs) for measured in (flips, uncertain))
        count = max(count, _moved(one, again))
        fell, near = fell + count, near + may
        found = f"image {result.image_index}: drawn again, at least {count} of {one.n0 + one.n} draws"
        if count > most_flips(may, precision):
            wrong.append(f"{found} fell otherwise, {explained(may, precision)}")
        elif count > 0:
            ties.append(f"{found} fell otherwise (rounding between machines){_proved(one, again)}")
        else:
            wrong += _evaluations_again(one, again)
    # What might be rounding in each image is none in all of them together.
    if not wrong and fell > most_flips(near, precision):
        what = f"{counted(len(chosen), 'image')} drawn again: at least {fell} draws fell otherwise"
        wrong.append(f"{what}, {explained(near, precision)}")
    return chosen, wrong, ties


def _proved(one: Certificate, again: Counted) -> str:
    """What draws of which some fell otherwise prove; nothing where an end of draws depends on them."""
    if one.sequential is not None or again.selection is None or again.estimation is None:
        return ""
    now = replace(one, selection_counts=again.selection.counts, counts=again.estimation.counts)
    return f": they prove radius {now.recompute().radius:.6f}, the certificate says {one.radius:.6f}"


def _evaluations_again(one: Certificate, again: Counted) -> list[str]:
    """Evaluations that a certificate does not state as they are: the same draws take as many."""
    found = []
    # Earlier versions, which did not state their precision, may have voted in another order.
    for name in ("denoiser_evaluations", "classifier_evaluations") if one.precision is not None else ():
        tallies = [tally for tally in (again.selection, again.estimation) if tally is not None]
        spent = sum(getattr(tally, name) for tally in tallies)
        if spent != getattr(one, name):
            found.append(f"image {one.image_index}: {name} is {getattr(one, name)}, drawn again {spent}")
    return found


def explained(draws: int, precision: str) -> str:
    """How many flips of draws near a boundary are rounding, in words."""
    return f"rounding in {precision} explains {most_flips(draws, precision)} of {draws} near a boundary"


def _moved(certificate: Certificate, again: Counted) -> int:
    """The least number of draws that must have fallen otherwise before some look, by its hits."""
    selection, sequential = again.selection, certificate.sequential
    if sequential is None or selection is None or selection.selected != certificate.selected:
        return 0
    hits: list[int] = sequential["hits"]
    return max(abs(before - now) for before, now in zip(hits, again.hits, strict=True))


def _draw_again(result: ImageResult, job: CertifyRun) -> Counted:
    """The same draws, looked at where they were, as they are labelled now."""
    certificate, test = result.certificate, job.certifier.test_of(job.data.pixels[result.image_index])
    looks: tuple[int, ...] = (certificate.n,)
    if test is not None:
        looks = tuple(look for look in test.checkpoints if look <= certificate.n)
    classes = job.smoothed.num_classes
    return job.certifier.count(Counting(result.image_index, certificate.n0, Looks(looks), classes))
