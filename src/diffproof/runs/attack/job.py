"""An attack run that is ready to start: everything is loaded and has proved to fit together."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffproof.attacks.base import Attack
from diffproof.attacks.threat import L2, Threat, load_threat
from diffproof.attacks.views import AttackedDefense
from diffproof.catalog import able
from diffproof.catalog_attacks import ATTACKS
from diffproof.data.images import ImageData
from diffproof.errors import ArgumentError, is_out_of_memory
from diffproof.memory import check_batch
from diffproof.noise import Noise, Stream
from diffproof.runs.attack.settled import settle
from diffproof.runs.code import own_code_of
from diffproof.runs.defense import load_networks_and_defense
from diffproof.runs.prepare import classes_for, first_line, load_images, resolve_device
from diffproof.runs.settings import AttackRequest, AttackSettings
from diffproof.runs.shards import Shard, in_shard
from diffproof.runs.store import Identity
from diffproof.weights import hash_tensors
from diffproof.wording import counted


@dataclass(frozen=True)
class AttackRun:
    """A run ready to start: everything is loaded and has proved to fit together."""

    settings: AttackSettings
    data: ImageData
    indices: list[int]
    view: AttackedDefense
    attack: Attack
    threat: Threat
    device: torch.device

    def images_at_once(self, batch_size: int) -> int:
        """How many images are attacked together in batches of so many rows."""
        return self.attack.images_at_once(self.view.images_at_once(batch_size))

    @property
    def every_group(self) -> list[list[int]]:
        """All images of the run in the groups in which they are attacked, whatever was attacked before."""
        size = self.images_at_once(self.settings.batch_size)
        return [self.indices[start : start + size] for start in range(0, len(self.indices), size)]

    @property
    def groups(self) -> list[list[int]]:
        """The groups that are this run's to attack: all, or those of its shard."""
        return in_shard(self.every_group, self.settings.shard)

    @property
    def part(self) -> list[int]:
        """The indices of the images in its groups."""
        return [index for group in self.groups for index in group]

    def identity(self) -> Identity:
        """What it is made of besides its settings."""
        defense = self.view.defense
        return Identity(
            weights_hash=hash_tensors(defense.state_dict(), defense.describe()),
            data_hash=self.data.fingerprint(self.indices),
            planned=len(self.indices),
            code=own_code_of(self.settings),
            indices=tuple(self.indices),
            part=tuple(self.part) if self.settings.shard else (),
        )

    def on(self, device: str) -> AttackRun:
        """The run with its networks on a device; see `resolve_device`."""
        found = resolve_device(device)
        self.view.defense.to(found)
        return replace(self, device=found)

    def images(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Images N×C×H×W and labels of these indices, on the device."""
        pixels = torch.stack([self.data.pixels[index] for index in indices])
        return pixels.to(self.device), self.data.labels[indices].to(self.device)


def prepare(request: AttackRequest, *, here: bool = True) -> AttackRun:
    """Load what a run needs and try the first image, so that misfits show before any write.

    Args:
        request: for the run.
        here: whether this process attacks; if not, its networks stay on the CPU, and are not called.

    Raises:
        ValueError: anything that is unknown, unreadable or does not fit together, or an attack that cannot be
            run on this defence.
    """
    request, data, indices = load_images(request)
    settings, attack = settle(request, max(data.pixels[indices[0]].shape[-2:]))
    device = resolve_device(settings.device if here else "cpu")
    defense = load_networks_and_defense(settings, device)
    data = classes_for(defense, data, settings).fitting(defense, defense.classifier)
    # An attack differentiates with respect to images; weights would only take memory.
    defense.requires_grad_(False)
    view = AttackedDefense(defense, settings.gradient, surrogate_share=settings.surrogate_share)
    threat = load_threat(settings.threat, settings.budget)
    job = AttackRun(settings, data, indices, view, attack, threat, device)
    attack.check(view, threat)
    _check_groups(job)
    rows = min(settings.batch_size, len(indices) * attack.repeats)
    check_batch(rows, data.pixels[indices[0]].shape)
    threat.check_images(job.images(indices[:1])[0])
    job = tried(job) if here else job
    _warn_of_a_wide_ball(threat, data.pixels[indices[0]])
    return job


def tried(job: AttackRun) -> AttackRun:
    """The run, whose networks have labelled its first image.

    Raises:
        ValueError: they cannot, or give the attack no gradient that it needs.
    """
    try:
        _try_first(job)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        # A network that cannot take the images says so in torch's words.
        raise ArgumentError(
            "data", f"the networks cannot label {job.data.name}: {first_line(error)}"
        ) from None
    return job


def _check_groups(job: AttackRun) -> None:
    """Raise ValueError where there are fewer groups of images than shards."""
    shard, groups = job.settings.shard, len(job.every_group)
    if shard is None or Shard.parse(shard).of <= groups:
        return
    largest = math.ceil(len(job.indices) / (Shard.parse(shard).of - 1)) - 1
    fits = bisect_right(range(1, job.settings.batch_size), largest, key=job.images_at_once)
    told = f"{counted(len(job.indices), 'image')} are attacked in {counted(groups, 'group')}, got {shard}"
    hint = f"; --batch-size {fits} makes them enough" if fits else ""
    raise ArgumentError("shard", f"expected at most {groups}, as {told}{hint}")


def _warn_of_a_wide_ball(threat: Threat, image: Tensor) -> None:
    """Warn of an ℓ2 budget of at least an eighth of the distance from black to white."""
    longest = math.sqrt(image.numel())
    if isinstance(threat, L2) and threat.budget >= longest / 8:
        budget = f"{threat.budget:g}"
        warnings.warn(
            f"budget: l2 {budget} allows almost any image, black and white being {longest:.3g} apart;"
            f" does {budget} mean {budget}/255?",
            stacklevel=3,
        )


def _try_first(job: AttackRun) -> None:
    """Run the networks on the first image, for what goes wrong when they run."""
    index = job.indices[0]
    images, _ = job.images([index])
    noise = Noise.for_draws(job.settings.seed, Stream.CONTROL, index, 0, 1)
    with torch.enable_grad():
        images = images.clone().requires_grad_(job.attack.needs_gradient)
        logits = job.view(images, noise)
    if job.attack.needs_gradient and not logits.requires_grad:
        raise ArgumentError(
            "attack",
            f"{job.attack.name} needs a gradient, and {job.settings.defense!r} gives its images none;"
            f" expected one without, such as {', '.join(able(ATTACKS, 'gradient-free'))}",
        )
