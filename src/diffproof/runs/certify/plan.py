"""What a certification run will take."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace
from time import perf_counter as now

from torch import Tensor

from diffproof.noise import Stream
from diffproof.runs.certify.job import CertifyRun
from diffproof.runs.certify.run import COMMIT_EVERY
from diffproof.runs.certify.store import CertifyStore, ImageResult
from diffproof.runs.code import own_code_of
from diffproof.runs.plan import Costs, Pace, Range, folder_sizes, measure, spread_out, until_ready
from diffproof.runs.store import Identity
from diffproof.smoothing.packing import LARGEST_STATE
from diffproof.smoothing.schedule import Counting, Schedule
from diffproof.smoothing.tally import Counted, Tally

# Standard errors of the evaluations of an image that the range of the time holds.
_ERRORS = 2.0


def certify_costs(job: CertifyRun, loading: float, importing: float = 0.0) -> Costs:
    """Time calls of the run's networks on draws of some of its images, for a few seconds; write nothing.

    Args:
        job: from `prepare`.
        loading: the seconds that took.
        importing: those that the libraries took before.

    Raises:
        MemoryError: not even one image fits into memory.
    """
    s, sample = job.settings, spread_out(job.part)
    turns = itertools.cycle(sample)
    tallies: dict[int, list[Tally]] = {index: [] for index in sample}
    kept = 0.0

    def label(draws: int) -> int:
        nonlocal kept
        index = next(turns)
        counting = Counting(index, draws, None, job.smoothed.num_classes, first=Stream.ESTIMATION)
        packing = job.certifier.packing(Schedule([index], lambda _: counting))
        while packing.step():
            tensors = packing.snapshot()().tensors.values()
            kept = max(kept, sum(_size(tensor, at_once / draws, s.batch_size) for tensor in tensors))
        tally = counting.counted.selection
        assert tally is not None
        tallies[index].append(tally)
        return tally.evaluations

    at_once = min(s.batch_size, max(s.n0, s.n))
    # What torch compiles for one row fits no larger batch.
    pace = measure(label, at_once, start=2 if s.compile else 1)
    shares = [
        sum(tally.evaluations for tally in counted) / sum(tally.draws for tally in counted)
        for counted in tallies.values()
        if counted
    ]
    a_draw = statistics.mean(shares)
    ending, result = _end(job, sample[0], tallies[sample[0]][-1])
    paths = [_looks(job, index, counted[-1])[0] for index, counted in tallies.items() if counted]
    draws = statistics.mean(path[-1] for path in paths)
    # Draws of all images share batches.
    rows = round(len(job.part) * (s.n0 + draws))
    seconds = pace.of(rows, s.batch_size, a_draw).times(1 / len(job.part))
    unsure = _unsure(shares, len(job.part)) / a_draw
    unsure += _unsure([path[-1] for path in paths], len(job.part)) / draws
    seconds = Range(seconds.low * max(0.0, 1 - unsure), seconds.expected, seconds.high * (1 + unsure))
    units, chain = _units(job, pace, (s.n0, math.ceil(draws)), a_draw)
    ends = len(job.part) * ending
    seconds = seconds.plus(Range(ending, ending, ending))
    begin_size, size = _sizes(job, result)
    if len(job.part) * seconds.expected > COMMIT_EVERY:
        # Of the image in work.
        begin_size += min(round(kept), LARGEST_STATE)
    return Costs(
        images=len(job.part),
        evaluations=(s.n0 + draws) * a_draw,
        most_evaluations=job.certifier.evaluations_per_image,
        seconds=seconds,
        size=size,
        begin_seconds=Range(loading, loading, loading),
        first_evaluations=0,
        first_seconds=Range(0.0, 0.0, 0.0),
        begin_size=begin_size,
        units=units,
        largest=1 / units,
        least=chain.at_least(Range(ends, ends, ends)),
        worker_seconds=until_ready(loading, importing),
    )


def _units(job: CertifyRun, pace: Pace, streams: tuple[int, int], evaluations: float) -> tuple[int, Range]:
    """How many parts workers can share, and the seconds of those that wait for each other.

    Args:
        job: the run.
        pace: of its networks.
        streams: draws of an image that select its class, and those that come after.
        evaluations: of a draw.
    """
    # Half a batch of the draws of one image at a time.
    unit = max(1, job.settings.batch_size // 2)
    first, second = (pace.of(min(unit, draws), unit, evaluations) for draws in streams)
    return len(job.part) * sum(math.ceil(draws / unit) for draws in streams), first.plus(second)


def _looks(job: CertifyRun, index: int, tally: Tally) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where a run looks at an image's hits, and the hits, were its share of them always that of a tally."""
    test = job.certifier.test_of(job.data.pixels[index])
    if test is None:
        return (job.settings.n,), ()
    # That no draw has missed yet says little of those to come.
    share = (max(tally.counts) + 0.5) / (tally.draws + 1)
    hits = [math.floor(share * look) for look in test.checkpoints]
    end = next((place for place in range(1, len(hits)) if test.enough(hits[:place])), len(hits))
    return test.checkpoints[:end], tuple(hits[:end])


def _size(tensor: Tensor, factor: float, most: int) -> float:
    """Bytes of a tensor of so many times the rows; one of images has at most a batch of them."""
    rows = len(tensor) if tensor.ndim else 1
    return tensor.nbytes / max(1, rows) * min(factor * rows, most)


def _unsure(shares: list[float], images: int) -> float:
    """How far the mean of some of the images may lie from that of all."""
    if len(shares) < 2:
        return 0.0
    error = statistics.stdev(shares) / math.sqrt(len(shares))
    return _ERRORS * error * math.sqrt(1 - len(shares) / images)


def _end(job: CertifyRun, index: int, tally: Tally) -> tuple[float, ImageResult]:
    """Seconds from the last draw of an image to its certificate, and the result, were all draws as these."""
    s = job.settings

    def drawn(draws: int) -> Tally:
        counts = [count * draws // tally.draws for count in tally.counts]
        counts[counts.index(max(counts))] += draws - sum(counts)
        return replace(tally, counts=tuple(counts), draws=draws)

    looks, hits = _looks(job, index, tally)
    counted = Counted(drawn(s.n0), drawn(looks[-1]), hits)
    # Of the weights, whose hash is computed once.
    job.smoothed.weights_hash()
    started = now()
    certificate = job.certifier.certificate(index, counted)
    seconds = now() - started
    return seconds, ImageResult(index, int(job.data.labels[index]), certificate, seconds)


def _sizes(job: CertifyRun, result: ImageResult) -> tuple[int, float]:
    identity = Identity(
        weights_hash=job.smoothed.weights_hash() or "",
        data_hash="0" * 64,
        planned=len(job.indices),
        code=own_code_of(job.settings),
        indices=tuple(job.indices),
        part=tuple(job.part) if job.settings.shard else (),
    )

    def save(store: CertifyStore, index: int) -> None:
        store.save_result(replace(result, image_index=index))

    return folder_sizes(CertifyStore, job.settings, identity, save)
