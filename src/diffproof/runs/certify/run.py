"""A certification run: from settings to a run folder, resumable at any moment."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diffproof.data.images import ImageData
from diffproof.defenses.base import CertifiableDefense
from diffproof.defenses.named import compile_networks
from diffproof.errors import ArgumentError, is_compile_error
from diffproof.memory import check_batch
from diffproof.runs.certify.accuracy import accuracies, known, order
from diffproof.runs.certify.ballots import Ballots
from diffproof.runs.certify.store import CertifyStore, ImageResult, Partial
from diffproof.runs.code import own_code_of
from diffproof.runs.defense import load_networks_and_defense
from diffproof.runs.prepare import classes_for, first_line, load_images, resolve_device
from diffproof.runs.progress import alone
from diffproof.runs.settings import CertifySettings
from diffproof.runs.store import Identity, warn_of_more
from diffproof.smoothing.grid_noise import LEVELS, SmoothingNoise
from diffproof.smoothing.packing import OnBallots, Packing, Work
from diffproof.smoothing.schedule import Counting, Schedule
from diffproof.smoothing.sequential import SequentialTest
from diffproof.smoothing.smoothed import Smoothed
from diffproof.smoothing.tally import Counted, Looks

# Seconds between commits to disk: what a crash can lose.
COMMIT_EVERY = 2.0

OnEvaluations = Callable[[int], None]


@dataclass(frozen=True)
class CertifyRun:
    """A run ready to start: everything is loaded and has proved to fit together."""

    settings: CertifySettings
    data: ImageData
    indices: list[int]
    smoothed: Smoothed
    device: torch.device

    @property
    def evaluations_per_draw(self) -> int:
        """Images that would go through a network for one draw if votes were not stopped early."""
        defense = self.smoothed.base
        assert isinstance(defense, CertifiableDefense)
        return max(1, sum(defense.evaluations_per_draw(self.settings.sigma)))

    @property
    def evaluations_per_image(self) -> int:
        """The same for the selection and estimation draws of one image."""
        return (self.settings.n0 + self.settings.n) * self.evaluations_per_draw

    @property
    def largest_radius(self) -> float:
        """See `CertifySettings.largest_radius`."""
        return self.settings.largest_radius(self.smoothed.num_classes)

    def test(self, image: Tensor) -> SequentialTest | None:
        """What ends the draws of an image, None for a fixed number of them."""
        return self.settings.test(self.smoothed.noise.failure_mass(image.numel()))

    def image(self, index: int) -> Tensor:
        """The image of an index, on the networks' device."""
        return self.data.pixels[index].to(self.device)

    def counting(self, index: int, partial: Partial | None = None) -> Counting:
        """The draws of an image, from what was counted of it before."""
        looks = self.test(self.data.pixels[index]) or Looks((self.settings.n,))
        seconds = 0.0 if partial is None else partial.seconds
        classes = self.smoothed.num_classes
        return Counting(index, self.settings.n0, looks, classes, done=partial, seconds=seconds)

    def count(self, counting: Counting) -> Counted:
        """What is counted of one image in the end."""
        settings, image = self.settings, self.image(counting.image_index)
        return self.smoothed.count(image, counting, seed=settings.seed, batch_size=settings.batch_size)

    def packing(self, schedule: Schedule, on_ballots: OnBallots | None = None) -> Packing:
        """What labels the draws of a schedule; see `Packing` for ballots."""
        images: dict[int, Tensor] = {}

        def image(index: int) -> Tensor:
            if index not in images:
                for other in images.keys() - schedule.in_work.keys():
                    del images[other]
                images[index] = self.smoothed.check_image(self.image(index))
            return images[index]

        settings = self.settings
        return self.smoothed.packing(
            schedule, image, seed=settings.seed, batch_size=settings.batch_size, on_ballots=on_ballots
        )


def prepare(settings: CertifySettings) -> CertifyRun:
    """Load what a run needs and label a draw of its first image, so that misfits show before any write.

    Raises:
        ValueError: anything that is unknown, unreadable or does not fit together.
    """
    settings, data, indices = load_images(settings)
    if settings.noise == SmoothingNoise.GRID and settings.levels is None:
        settings = replace(settings, levels=data.levels or LEVELS)
    device = resolve_device(settings.device)
    defense = load_networks_and_defense(
        settings.method,
        classifier=settings.classifier,
        denoiser=settings.denoiser,
        precision=settings.precision,
        device=device,
    )
    data = classes_for(defense, data, settings).fitting(defense, defense.classifier)
    assert isinstance(defense, CertifiableDefense)
    smoothed = Smoothed(defense, settings.sigma, noise=settings.noise, levels=settings.levels)
    job = CertifyRun(settings, data, indices, smoothed, device)
    if settings.keep_ballots and not defense.chosen_labeller(settings.sigma, 1).votes:
        told = f"expected a defence that votes on draws, got {settings.describe()}, one answer a draw"
        raise ArgumentError("keep_ballots", told)
    rows = min(settings.batch_size, max(settings.n0, settings.n))
    check_batch(rows, data.pixels[indices[0]].shape)
    job.test(data.pixels[indices[0]])
    try:
        _label_first(job, 1)
    except RuntimeError as error:
        # A network that cannot take the images says so in torch's words.
        raise ArgumentError("data", f"the networks cannot label {data.name}: {first_line(error)}") from None
    if settings.compile:
        try:
            compile_networks(defense)
            # What torch compiles for a few images fits no larger batch, and for one no other.
            _label_first(job, max(2, min(settings.batch_size, settings.n0)))
        except RuntimeError as error:
            raise _cannot_compile(error) from None
    return job


def _cannot_compile(error: RuntimeError) -> ArgumentError:
    return ArgumentError(
        "compile",
        f"torch cannot compile the networks: {first_line(error)} (on CPUs it needs a C++ compiler"
        " and Python's headers); leave --compile out to do without",
    )


def _label_first(job: CertifyRun, draws: int) -> None:
    """Label draws of the first image, for what goes wrong when the networks run."""
    with warnings.catch_warnings():
        # Said once of every compiled U-Net, and of no use to who certifies it.
        warnings.filterwarnings("ignore", r"\s*Dynamo detected a call to a `functools.lru_cache`")
        index = job.indices[0]
        job.count(Counting(index, draws, None, job.smoothed.num_classes))


def run(
    job: CertifyRun, folder: Path, on_evaluations: OnEvaluations = lambda evaluations: None
) -> list[ImageResult]:
    """Certify every image of the job that the run folder does not hold yet.

    Args:
        job: from `prepare`.
        folder: the run folder, new or of the same settings; its images may be other ones, and stay.
        on_evaluations: called after each network call with how many evaluations of networks are done that
            were not before, those that are stored or were found to be needless included.

    Returns:
        The results of all images of the folder, by index.

    Raises:
        ValueError: the folder holds another run, another process works in it, the store is corrupt, or torch
            cannot compile the networks for a batch of another size.
        OSError: the folder cannot be written.
        MemoryError: not even one image fits into memory.
    """
    identity = Identity(
        weights_hash=job.smoothed.weights_hash() or "",
        data_hash=job.data.fingerprint(job.indices),
        planned=len(job.indices),
        code=own_code_of(job.settings),
        indices=tuple(job.indices),
    )
    with CertifyStore.writing(folder, job.settings, identity, job.data.fingerprint) as store:
        warn_of_more(folder, store.identity, job.indices)
        finished = store.finished()
        on_evaluations(len(finished.intersection(job.indices)) * job.evaluations_per_image)
        left = [index for index in order(job.indices, job.settings) if index not in finished]
        _Running(job, store, left, on_evaluations).run()
        return store.results()


class _Running:
    """The images of a run that are left, of which many are in work at once.

    Args:
        job: the run.
        store: of its folder.
        left: images in the order of their turn.
        on_evaluations: see `run`.
    """

    def __init__(
        self, job: CertifyRun, store: CertifyStore, left: list[int], on_evaluations: OnEvaluations
    ) -> None:
        self.job, self.store, self.left, self.on_evaluations = job, store, left, on_evaluations
        self.schedule = Schedule(left, self._begin)
        self.ballots = Ballots()
        self.packing = job.packing(self.schedule, self.ballots.add if job.settings.keep_ballots else None)
        # Results by image, where they decide how many images there are to be.
        until = job.settings.until_half_width is not None
        self.results = {result.image_index: result for result in store.results()} if until else None
        # Draws of closed images; draws and evaluations that earlier sessions made of those that are begun.
        self.closed = self.drawn = self.drawn_before = self._done_before = self._told = 0
        self._committed = self._stepped = time.monotonic()

    def _begin(self, index: int) -> Counting:
        looks = self.job.counting(index).looks
        assert looks is not None
        counting = self.job.counting(
            index, self.store.partial(index, looks.checkpoints, self.job.smoothed.num_classes)
        )
        self._made_before(counting.draws)
        return counting

    def run(self) -> None:
        """Certify them, recording every few seconds and when interrupted."""
        if not self.left or self._enough():
            self._end()
            return
        self._resume()
        recorded = self._snapshot()
        self._made_before(self.packing.labelled, self.packing.labeller.begun)
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
                raise _cannot_compile(error) from None
            raise
        self._end()
        self._say()

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
            if self.results is not None and index != self.left[self.closed]:
                # It counts when those before it do, if it still does.
                return False
            result = _result(self.job, self.schedule.close(index))
            self.store.save_result(result)
            if self.job.settings.keep_ballots:
                self.store.save_ballots(self.ballots)
                self.store.join_ballots(index)
            self.closed += 1
            self.drawn += result.certificate.n0 + result.certificate.n
            if self.results is not None:
                self.results[index] = result
                if self._enough():
                    return True
        return False

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
        self._done_before += draws * self.job.evaluations_per_draw + evaluations

    def _say(self) -> None:
        """Record how far this session is, for who watches."""
        left = len(self.left) * self.job.evaluations_per_image - max(self._told, self._done)
        evaluations = max(0, self._done - self._done_before)
        self.store.progress.tell(images=self.closed, evaluations=evaluations, remaining=max(0, left))
        worker = alone(
            self.job.device,
            units=self.closed,
            done=max(0, self.drawn + self._draws - self.drawn_before),
            evaluations=self.packing.labeller.rows,
            busy=time.monotonic() - self._started,
        )
        self.store.progress.tell_workers([worker])

    @property
    def _draws(self) -> int:
        """Draws of images in work that have a label."""
        return sum(one.draws for one in self.schedule.in_work.values()) + self.packing.labelled

    @property
    def _done(self) -> int:
        """Evaluations that are done: of draws with a label, all that these might have taken."""
        evaluations = self._draws * self.job.evaluations_per_draw + self.packing.labeller.begun
        return self.closed * self.job.evaluations_per_image + evaluations

    def _advance(self, evaluations: int) -> None:
        self.on_evaluations(max(0, evaluations - self._told))
        self._told = max(self._told, evaluations)

    def _end(self) -> None:
        # So are draws that are not needed.
        self._advance(len(self.left) * self.job.evaluations_per_image)
        self.store.drop_work(self.schedule.in_work)


class _Snapshot(NamedTuple):
    """What is counted of each image in work, its seconds, and how to get what is being labelled."""

    counted: list[tuple[int, Counted, float]]
    work: Callable[[], Work]


def _result(job: CertifyRun, counting: Counting) -> ImageResult:
    """The certificate of an image of which all is counted."""
    index, settings, started = counting.image_index, job.settings, time.monotonic()
    certificate = job.smoothed.certificate(
        job.image(index),
        counting.counted,
        alpha=settings.alpha,
        seed=settings.seed,
        image_index=index,
        bound=settings.bound,
        test=job.test(job.data.pixels[index]),
    )
    seconds = counting.seconds + time.monotonic() - started
    return ImageResult(index, int(job.data.labels[index]), certificate, seconds)
