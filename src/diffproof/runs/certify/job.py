"""A certification run that is ready to start: everything is loaded and has proved to fit together."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffproof.checks import renamed
from diffproof.classifiers.named import load_classifier
from diffproof.data.images import ImageData
from diffproof.defenses.base import CertifiableDefense
from diffproof.defenses.named import compile_networks, set_precision
from diffproof.defenses.undefended import Undefended
from diffproof.errors import ArgumentError
from diffproof.memory import check_batch
from diffproof.runs.code import own_code_of
from diffproof.runs.defense import load_networks_and_defense
from diffproof.runs.prepare import classes_for, first_line, load_images, resolve_device
from diffproof.runs.settings import CertifySettings
from diffproof.runs.shards import in_shard
from diffproof.runs.store import Identity
from diffproof.smoothing.certifier import Certifier
from diffproof.smoothing.grid_noise import LEVELS, SmoothingNoise
from diffproof.smoothing.rules import Cascade, Chosen
from diffproof.smoothing.scaled import DualSmoothed, MultiScale, Scaled
from diffproof.smoothing.schedule import Counting
from diffproof.smoothing.smoothed import Smoothed


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
        if isinstance(self.smoothed, Scaled) and isinstance(self.smoothed.chooser, CertifiableDefense):
            self.smoothed.chooser.to(found)
        return replace(self, device=found)

    @property
    def largest_radius(self) -> float:
        """See `CertifySettings.largest_radius`."""
        return self.settings.largest_radius(self.smoothed.num_classes)

    @property
    def certifier(self) -> Certifier:
        """What is drawn of its images, and what comes of it."""
        s = self.settings
        fixed = (s.n0, s.n, s.alpha, s.bound, s.seed, s.batch_size, s.seed_drawn)
        return Certifier(self.smoothed, self.image, s.test, *fixed)

    def image(self, index: int) -> Tensor:
        """The image of an index, on the networks' device."""
        return self.data.pixels[index].to(self.device)


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
    defense = load_networks_and_defense(settings, device)
    data = classes_for(defense, data, settings).fitting(defense, defense.classifier)
    assert isinstance(defense, CertifiableDefense)
    smoothed = _smoothed(settings, defense, device)
    job = CertifyRun(settings, data, indices, smoothed, device)
    if settings.keep_ballots and not defense.chosen_labeller(settings.sigma, 1).votes:
        told = f"expected a defence that votes on draws, got {settings.describe()}, one answer a draw"
        raise ArgumentError("keep_ballots", told)
    rows = min(settings.batch_size, max(settings.n0, settings.n))
    check_batch(rows, data.pixels[indices[0]].shape)
    job.certifier.test_of(data.pixels[indices[0]])
    return tried(job) if here else job


def _smoothed(settings: CertifySettings, defense: CertifiableDefense, device: torch.device) -> Smoothed:
    """The classifier that a run certifies."""
    noise: dict[str, Any] = {"noise": settings.noise, "levels": settings.levels}
    rule = settings.rule()
    if isinstance(rule, Cascade):
        return MultiScale(defense, rule.sigmas, threshold=rule.threshold, **noise)
    if not isinstance(rule, Chosen):
        return Smoothed(defense, settings.sigma, **noise)
    assert settings.chooser is not None
    with renamed({"classifier": "chooser"}):
        chooser = Undefended(load_classifier(settings.chooser))
    set_precision(chooser, getattr(torch, settings.precision)).to(device)
    return DualSmoothed(defense, rule.sigmas, chooser=chooser, choice_sigma=rule.choice_sigma, **noise)


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
        job.certifier.count(Counting(index, draws, None, job.smoothed.num_classes))
