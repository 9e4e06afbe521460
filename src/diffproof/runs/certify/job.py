"""A certification run that is ready to start: everything is loaded and has proved to fit together."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from diffproof.data.images import ImageData
from diffproof.defenses.base import CertifiableDefense
from diffproof.defenses.named import compile_networks
from diffproof.errors import ArgumentError
from diffproof.memory import check_batch
from diffproof.runs.certify.store import Partial
from diffproof.runs.code import own_code_of
from diffproof.runs.defense import load_networks_and_defense
from diffproof.runs.prepare import classes_for, first_line, load_images, resolve_device
from diffproof.runs.settings import CertifySettings
from diffproof.runs.shards import in_shard
from diffproof.runs.store import Identity
from diffproof.smoothing.grid_noise import LEVELS, SmoothingNoise
from diffproof.smoothing.packing import Drawing, OnVotes, Packing, SchedulePacking
from diffproof.smoothing.schedule import Counting, Schedule
from diffproof.smoothing.sequential import SequentialTest
from diffproof.smoothing.smoothed import Smoothed
from diffproof.smoothing.tally import Counted, Looks


@dataclass(frozen=True)
class CertifyRun:
    """A run ready to start: everything is loaded and has proved to fit together."""

    settings: CertifySettings
    data: ImageData
    indices: list[int]
    smoothed: Smoothed
    device: torch.device

    def identity(self) -> Identity:
        """What it is made of besides its settings."""
        return Identity(
            weights_hash=self.smoothed.weights_hash() or "",
            data_hash=self.data.fingerprint(self.indices),
            planned=len(self.indices),
            code=own_code_of(self.settings),
            indices=tuple(self.indices),
            part=tuple(self.part) if self.settings.shard else (),
        )

    @property
    def part(self) -> list[int]:
        """The indices of the images that are this run's to certify: all, or those of its shard."""
        return in_shard(self.indices, self.settings.shard)

    def on(self, device: str) -> CertifyRun:
        """The run with its networks on a device; see `resolve_device`."""
        found = resolve_device(device)
        assert isinstance(self.smoothed.base, CertifiableDefense)
        self.smoothed.base.to(found)
        return replace(self, device=found)

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

    @overload
    def packing(self, draws: Schedule, on_ballots: OnVotes = ...) -> SchedulePacking: ...

    @overload
    def packing(self, draws: Drawing, on_ballots: OnVotes = ...) -> Packing: ...

    def packing(self, draws: Drawing, on_ballots: OnVotes = None) -> Packing:
        """What labels draws, those of a Schedule resumably; see `Packing` for ballots."""
        images: dict[int, Tensor] = {}

        def image(index: int) -> Tensor:
            if index not in images:
                for other in images.keys() - draws.in_work.keys():
                    del images[other]
                images[index] = self.smoothed.check_image(self.image(index))
            return images[index]

        settings = self.settings
        return self.smoothed.packing(
            draws, image, seed=settings.seed, batch_size=settings.batch_size, on_ballots=on_ballots
        )


def prepare(settings: CertifySettings, *, here: bool = True) -> CertifyRun:
    """Load what a run needs and label a draw of its first image, so that misfits show before any write.

    Args:
        settings: of the run.
        here: whether this process labels draws; if not, its networks stay on the CPU, and are not called.

    Raises:
        ValueError: anything that is unknown, unreadable or does not fit together.
    """
    settings, data, indices = load_images(settings)
    if settings.noise == SmoothingNoise.GRID and settings.levels is None:
        settings = replace(settings, levels=data.levels or LEVELS)
    device = resolve_device(settings.device if here else "cpu")
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
    return tried(job) if here else job


def tried(job: CertifyRun) -> CertifyRun:
    """The run, whose networks have labelled a draw, and are compiled if they are to be.

    Raises:
        ValueError: they cannot.
    """
    settings, defense = job.settings, job.smoothed.base
    try:
        label_first(job, 1)
    except RuntimeError as error:
        # A network that cannot take the images says so in torch's words.
        raise ArgumentError(
            "data", f"the networks cannot label {job.data.name}: {first_line(error)}"
        ) from None
    if settings.compile:
        assert isinstance(defense, CertifiableDefense)
        try:
            compile_networks(defense)
            # What torch compiles for a few images fits no larger batch, and for one no other.
            label_first(job, max(2, min(settings.batch_size, settings.n0)))
        except RuntimeError as error:
            raise cannot_compile(error) from None
    return job


def cannot_compile(error: RuntimeError) -> ArgumentError:
    """The error of networks that torch does not compile."""
    return ArgumentError(
        "compile",
        f"torch cannot compile the networks: {first_line(error)} (on CPUs it needs a C++ compiler"
        " and Python's headers); leave --compile out to do without",
    )


def label_first(job: CertifyRun, draws: int) -> None:
    """Label draws of the first image, for what goes wrong when the networks run."""
    with warnings.catch_warnings():
        # Said once of every compiled U-Net, and of no use to who certifies it.
        warnings.filterwarnings("ignore", r"\s*Dynamo detected a call to a `functools.lru_cache`")
        index = job.indices[0]
        job.count(Counting(index, draws, None, job.smoothed.num_classes))
