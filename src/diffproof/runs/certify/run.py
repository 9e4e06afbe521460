"""A certification run: from settings to a run folder, resumable at any moment."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diffproof.data.images import ImageData
from diffproof.defenses.base import CertifiableDefense
from diffproof.defenses.named import compile_networks
from diffproof.errors import ArgumentError, is_compile_error
from diffproof.memory import check_batch
from diffproof.noise import Stream
from diffproof.runs.certify.accuracy import accuracies, known, order
from diffproof.runs.certify.store import CertifyStore, ImageResult, Partial
from diffproof.runs.code import own_code_of
from diffproof.runs.defense import load_networks_and_defense
from diffproof.runs.prepare import classes_for, first_line, load_images, resolve_device
from diffproof.runs.settings import CertifySettings
from diffproof.runs.store import Identity, warn_of_more
from diffproof.smoothing.grid_noise import LEVELS, SmoothingNoise
from diffproof.smoothing.sequential import SequentialTest
from diffproof.smoothing.smoothed import Smoothed
from diffproof.smoothing.tally import Counted, Looks, Tally, counting

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

    def tally(self, index: int) -> Callable[..., Iterator[Tally]]:
        """`Smoothed.tally` of the image of an index."""
        return partial(
            self.smoothed.tally,
            self.data.pixels[index].to(self.device),
            seed=self.settings.seed,
            image_index=index,
            batch_size=self.settings.batch_size,
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
        for _ in job.tally(job.indices[0])(draws, stream=Stream.SELECTION):
            pass


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
        recorder = _Recorder(store)
        until = job.settings.until_half_width is not None
        done = {result.image_index: result for result in store.results()} if until else {}
        left = [index for index in order(job.indices, job.settings) if index not in finished]
        for place, index in enumerate(left):
            if known(accuracies(done, job.indices, job.settings).values(), job.settings):
                on_evaluations((len(left) - place) * job.evaluations_per_image)
                break
            result = _certify_image(job, recorder, index, on_evaluations)
            store.save_result(result)
            done |= {index: result} if until else {}
        return store.results()


class _Recorder:
    """Records partial tallies and commits every few seconds: a commit can cost more than a network call."""

    def __init__(self, store: CertifyStore) -> None:
        self.store = store
        self._committed = self._stepped = time.monotonic()

    def step(self, index: int, partial: Partial) -> None:
        """Commit what is recorded, and these tallies with it, if after such another step it were too late."""
        now = time.monotonic()
        if now - self._committed + (now - self._stepped) > COMMIT_EVERY:
            self.store.save_partial(index, partial)
            self.store.commit()
            now = self._committed = time.monotonic()
        self._stepped = now


def _certify_image(
    job: CertifyRun, recorder: _Recorder, index: int, on_evaluations: OnEvaluations
) -> ImageResult:
    """Certify one image, recording its tallies every few seconds and when interrupted."""
    settings, smoothed = job.settings, job.smoothed
    image = job.data.pixels[index].to(job.device)
    test = job.test(image)
    looks = test or Looks((settings.n,))
    saved = recorder.store.partial(index, looks.checkpoints)
    counted: Counted = saved
    started, told = time.monotonic() - saved.seconds, 0

    def so_far() -> Partial:
        return Partial(counted.selection, counted.estimation, counted.hits, time.monotonic() - started)

    def tell(evaluations: int) -> None:
        nonlocal told
        on_evaluations(max(0, evaluations - told))
        told = max(told, evaluations)

    try:
        for counted in counting(job.tally(index), settings.n0, looks, saved):
            recorder.step(index, so_far())
            tallies = [tally for tally in (counted.selection, counted.estimation) if tally is not None]
            # Of draws that are labelled, all that their labels might have taken is done.
            tell(sum(tally.draws * job.evaluations_per_draw + tally.begun for tally in tallies))
        # So are draws that are not needed.
        tell(job.evaluations_per_image)
    except KeyboardInterrupt:
        recorder.store.save_partial(index, so_far())
        raise
    except RuntimeError as error:
        if is_compile_error(error):
            raise _cannot_compile(error) from None
        raise
    certificate = smoothed.certificate(
        image,
        counted,
        alpha=settings.alpha,
        seed=settings.seed,
        image_index=index,
        bound=settings.bound,
        test=test,
    )
    return ImageResult(index, int(job.data.labels[index]), certificate, so_far().seconds)
