"""A certification run: from settings to a run folder, resumable at any moment."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from diffproof.errors import ArgumentError, is_compile_error
from diffproof.noise import Stream
from diffproof.runs.certify.accuracy import accuracies, known, order
from diffproof.runs.certify.ballots import Ballots
from diffproof.runs.certify.job import CertifyRun, cannot_compile
from diffproof.runs.certify.store import CertifyStore, ImageResult, Partial
from diffproof.runs.certify.workers import ARITHMETIC, OnWorkers
from diffproof.runs.progress import alone
from diffproof.runs.store import warn_of_more
from diffproof.runs.workers import Hire, ImagesFailedError
from diffproof.scale.fleet import Fleet
from diffproof.smoothing.packing import SchedulePacking, Work
from diffproof.smoothing.schedule import Counting, Schedule, Unit
from diffproof.smoothing.tally import Counted

# Seconds between commits to disk: what a crash can lose.
COMMIT_EVERY = 2.0

OnEvaluations = Callable[[int], None]


def run(
    job: CertifyRun,
    folder: Path,
    on_evaluations: OnEvaluations = lambda evaluations: None,
    hire: Hire = nullcontext,
) -> list[ImageResult]:
    """Certify every image of the job, or of its shard, that the run folder does not hold yet.

    Args:
        job: from `prepare`.
        folder: the run folder, new or of the same settings; its images may be other ones, and stay.
        on_evaluations: called after each network call with how many evaluations of networks are done that
            were not before, those that are stored or were found to be needless included.
        hire: gives workers that label the draws, once there is one to label; by default this process does.

    Returns:
        The results of all images of the folder, by index.

    Raises:
        ValueError: the folder holds another run, another process works in it, the store is corrupt, or torch
            cannot compile the networks for a batch of another size.
        OSError: the folder cannot be written.
        MemoryError: not even one image fits into memory.
        ImagesFailedError: images that no worker could label are left out, and accuracy is not known without.
        FleetError: no worker is left.

    What `hire` raises leaves no new folder.

    Warns:
        UserWarning: images failed, and accuracy is known to the half-width that was asked for, whatever their
            outcomes are.
    """
    identity = job.identity()
    with CertifyStore.writing(folder, job.settings, identity, job.data.fingerprint) as store:
        warn_of_more(folder, store.identity, job.indices)
        finished = store.finished()
        on_evaluations(len(finished.intersection(job.part)) * job.certifier.evaluations_per_image)
        left = [index for index in order(job.part, job.settings) if index not in finished]
        running = _Running(job, store, left, on_evaluations)
        if running.over:
            running.end()
        else:
            with hire() as fleet:
                running.run(fleet)
        return store.results()


class _Running:
    """The images of a run that are left, of which many are in work at once.

    Args:
        job: the run.
        store: of its folder.
        left: images in the order of their turn.
        on_evaluations: see `run`.
    """

    packing: SchedulePacking | OnWorkers
    computed: Mapping[str, Any] | None

    def __init__(
        self, job: CertifyRun, store: CertifyStore, left: list[int], on_evaluations: OnEvaluations
    ) -> None:
        self.job, self.store, self.left, self.on_evaluations = job, store, left, on_evaluations
        self.schedule = Schedule(left, self._begin)
        self.ballots = Ballots()
        # Results by image, where they decide how many images there are to be.
        until = job.settings.until_half_width is not None
        self.results = {result.image_index: result for result in store.results()} if until else None
        # Draws of closed images; draws and evaluations that earlier sessions made of those that are begun.
        self.closed = self.drawn = self.drawn_before = self._done_before = self._told = 0
        # Draws of images that are not to be finished.
        self._dropped = 0
        self._committed = self._stepped = time.monotonic()
        self._turn = 0

    def _begin(self, index: int) -> Counting:
        certifier = self.job.certifier
        looks = certifier.counting(index).looks
        assert looks is not None
        partial = self.store.partial(index, looks.checkpoints, self.job.smoothed.num_classes)
        counting = certifier.counting(index, partial, 0.0 if partial is None else partial.seconds)
        self._made_before(counting.draws)
        return counting

    @property
    def over(self) -> bool:
        """Whether there is nothing to do."""
        return not self.left or self._enough()

    def run(self, fleet: Fleet | None) -> None:
        """Certify them here or on workers, recording every few seconds and when interrupted."""
        on_ballots = self._keep if self.job.settings.keep_ballots else None
        self.computed = None if fleet is None else fleet.facts[ARITHMETIC]
        if fleet is None:
            self.packing = self.job.certifier.packing(self.schedule, on_ballots)
        else:
            size, classes = self.job.settings.batch_size, self.job.smoothed.num_classes
            self.packing = OnWorkers(fleet, self.schedule, size, classes, on_ballots)
        self._resume()
        recorded = self._snapshot()
        self._made_before(self.packing.labelled, self.packing.begun)
        self._started = time.monotonic()
        self.store.progress.begin()
        try:
            while self.packing.step():
                if self._close():
                    break
                recorded = self._snapshot()
                self._record(recorded)
                self._advance(self._done)
            else:
                # Of some, all was counted before.
                self._close()
        except KeyboardInterrupt:
            self._save(recorded)
            raise
        except RuntimeError as error:
            if is_compile_error(error):
                raise cannot_compile(error) from None
            raise
        self._dropped = self._draws
        self.end()
        self._say()
        failed = self.packing.failed
        if failed and not self._enough():
            raise ImagesFailedError(failed)
        if failed:
            either = "accuracy is known well enough, whether certified or not"
            warnings.warn(str(ImagesFailedError(failed, left=either)), stacklevel=2)

    def _keep(self, unit: Unit, draw: Tensor, ballots: Tensor) -> None:
        """Keep ballots; of an image that is finished by now they are needless."""
        if unit.image_index in self.schedule.in_work:
            self.ballots.add(unit, draw, ballots)

    def _resume(self) -> None:
        """Go on with what was being labelled.

        Raises:
            ValueError: the store is corrupt.
        """
        work, images = self.store.work(), len(self.job.data)
        try:
            if any(unit.image_index >= images for unit, _ in work.units):
                raise ValueError(f"expected draws of {images} images, got those of others")
            self.packing.resume(work)
        except ArgumentError:
            raise
        except ValueError as error:
            found = f"the store in {self.store.folder} is corrupt: draws in work: {error}"
            raise ArgumentError("run", found) from None

    def _close(self) -> bool:
        """Make the certificates of images of which all is counted; whether others are not needed any more."""
        for index in self.schedule.finished():
            if self.results is not None and index != self._next():
                # It counts when those before it do, if it still does.
                return False
            result = _result(self.job, self.schedule.close(index), self.computed)
            self.store.save_result(result)
            if self.job.settings.keep_ballots:
                self.store.save_ballots(self.ballots)
                counted = {Stream.SELECTION: result.certificate.n0, Stream.ESTIMATION: result.certificate.n}
                self.store.join_ballots(index, counted)
            self.closed += 1
            self.drawn += result.certificate.n0 + result.certificate.n
            if self.results is not None:
                self.results[index] = result
                if self._enough():
                    return True
        return False

    def _next(self) -> int | None:
        """The first image in turn that has no result and may have one yet."""
        assert self.results is not None
        while self._turn < len(self.left):
            index = self.left[self._turn]
            if index not in self.results and index not in self.packing.failed:
                return index
            self._turn += 1
        return None

    def _enough(self) -> bool:
        """Whether the accuracies are known well enough."""
        if self.results is None:
            return False
        return known(
            accuracies(self.results, self.job.indices, self.job.settings).values(), self.job.settings
        )

    def _snapshot(self) -> _Snapshot:
        counted = [(one.image_index, one.counted, one.seconds) for one in self.schedule.in_work.values()]
        return _Snapshot(counted, self.packing.snapshot())

    def _record(self, now: _Snapshot) -> None:
        """Commit what there is if after such another step it were too late: it costs more than a call."""
        stepped = time.monotonic()
        if stepped - self._committed + (stepped - self._stepped) > COMMIT_EVERY:
            self._save(now)
            self.store.commit()
            stepped = self._committed = time.monotonic()
        self._stepped = stepped

    def _save(self, now: _Snapshot) -> None:
        partials = {
            index: Partial(counted.selection, counted.estimation, counted.hits, seconds)
            for index, counted, seconds in now.counted
        }
        self.store.save_partials(partials, now.work())
        self.store.save_ballots(self.ballots)
        self._say()

    def _made_before(self, draws: int, evaluations: int = 0) -> None:
        """So many draws, and evaluations of draws without a label, are none of this session's."""
        self.drawn_before += draws
        self._done_before += draws * self.job.certifier.evaluations_per_draw + evaluations

    def _say(self) -> None:
        """Record how far this session is, for who watches."""
        left = len(self.left) * self.job.certifier.evaluations_per_image - max(self._told, self._done)
        evaluations = max(0, self._done - self._done_before)
        drawn = max(0, self.drawn + self._draws - self.drawn_before)
        needless = self.schedule.needless + self._dropped
        told, progress = {"images": self.closed, "evaluations": evaluations}, self.store.progress
        if isinstance(self.packing, OnWorkers):
            roll = self.packing.roll
            self.packing.fleet.needless = needless
            progress.tell(**told, **roll.effort, remaining=max(0, left))
            roll.say(progress)
            return
        work = drawn + self.schedule.needless
        progress.tell(**told, work=work, wasted=min(needless, work), remaining=max(0, left))
        worker = alone(
            self.job.device,
            units=self.closed,
            done=drawn,
            evaluations=self.packing.labeller.rows,
            busy=time.monotonic() - self._started,
        )
        progress.tell_workers([worker])

    @property
    def _draws(self) -> int:
        """Draws of images in work that have a label."""
        return sum(one.draws for one in self.schedule.in_work.values()) + self.packing.labelled

    @property
    def _done(self) -> int:
        """Evaluations that are done: of draws with a label, all that these might have taken."""
        evaluations = self._draws * self.job.certifier.evaluations_per_draw + self.packing.begun
        return self.closed * self.job.certifier.evaluations_per_image + evaluations

    def _advance(self, evaluations: int) -> None:
        self.on_evaluations(max(0, evaluations - self._told))
        self._told = max(self._told, evaluations)

    def end(self) -> None:
        """Record that nothing is left to do."""
        # So are draws that are not needed.
        self._advance(len(self.left) * self.job.certifier.evaluations_per_image)
        self.store.drop_work(self.schedule.in_work)


class _Snapshot(NamedTuple):
    """What is counted of each image in work, its seconds, and how to get what is being labelled."""

    counted: list[tuple[int, Counted, float]]
    work: Callable[[], Work]


def _result(job: CertifyRun, counting: Counting, computed: Mapping[str, Any] | None) -> ImageResult:
    """The certificate of an image of which all is counted; see `Smoothed.certificate`."""
    index, started = counting.image_index, time.monotonic()
    certificate = job.certifier.certificate(index, counting.counted, computed)
    seconds = counting.seconds + time.monotonic() - started
    return ImageResult(index, int(job.data.labels[index]), certificate, seconds)
