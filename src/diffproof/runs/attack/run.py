"""An attack run: from settings to a run folder, resumable at any moment."""

from __future__ import annotations

import math
import threading
import time
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.attacks.base import Attack
from diffproof.attacks.diagnostics.diagnose import diagnose
from diffproof.attacks.diagnostics.finding import Finding
from diffproof.attacks.evaluation import evaluate
from diffproof.attacks.scoring import draw_labels
from diffproof.attacks.threat import L2, Threat, load_threat
from diffproof.attacks.views import AttackedDefense
from diffproof.catalog import ATTACKS, able
from diffproof.data.images import ImageData
from diffproof.defenses.base import Defense
from diffproof.defenses.purifying.base import Purifier
from diffproof.defenses.repeatability import checking
from diffproof.defenses.voting import majority
from diffproof.errors import ArgumentError, halved, is_out_of_memory
from diffproof.memory import check_batch
from diffproof.noise import Noise, Stream
from diffproof.runs.attack.settled import settle
from diffproof.runs.attack.store import AttackedImage, AttackStore
from diffproof.runs.code import own_code_of
from diffproof.runs.defense import load_networks_and_defense
from diffproof.runs.prepare import classes_for, first_line, load_images, resolve_device
from diffproof.runs.progress import TELL_EVERY, alone
from diffproof.runs.settings import AttackRequest, AttackSettings
from diffproof.runs.shards import Shard, in_shard, is_first
from diffproof.runs.store import Identity, warn_of_more
from diffproof.version import version
from diffproof.weights import hash_tensors
from diffproof.wording import counted

OnProgress = Callable[[int], None]


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

    def images(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Images N×C×H×W and labels of these indices, on the device."""
        pixels = torch.stack([self.data.pixels[index] for index in indices])
        return pixels.to(self.device), self.data.labels[indices].to(self.device)


def prepare(request: AttackRequest) -> AttackRun:
    """Load what a run needs and try the first image, so that misfits show before any write.

    Raises:
        ValueError: anything that is unknown, unreadable or does not fit together, or an attack that cannot be
            run on this defence.
    """
    request, data, indices = load_images(request)
    settings, attack = settle(request, max(data.pixels[indices[0]].shape[-2:]))
    device = resolve_device(settings.device)
    defense = load_networks_and_defense(
        settings.method,
        classifier=settings.classifier,
        denoiser=settings.denoiser,
        guide=settings.guide,
        precision=settings.precision,
        device=device,
    )
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
    try:
        _try_first(job)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        # A network that cannot take the images says so in torch's words.
        raise ArgumentError("data", f"the networks cannot label {data.name}: {first_line(error)}") from None
    _warn_of_a_wide_ball(threat, data.pixels[indices[0]])
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
    job.threat.check_images(images)
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


def run(
    job: AttackRun,
    folder: Path,
    on_images: OnProgress = lambda images: None,
    on_evaluations: OnProgress = lambda evaluations: None,
) -> list[AttackedImage]:
    """Attack every image of the job, or of its shard, that the run folder does not hold yet.

    The evaluation is diagnosed first, once for all shards.

    Args:
        job: from `prepare`.
        folder: the run folder, new or of the same settings; its images may be other ones, and stay.
        on_images: called with the number of images that came to be finished, stored ones included.
        on_evaluations: called at each network call with its number of images, recomputations included.

    Returns:
        The results of all images of the folder, by index.

    Raises:
        ValueError: the folder holds another run, another process works in it, or the store is corrupt.
        OSError: the folder cannot be written.
        MemoryError: not even one image fits into memory.
    """
    settings, defense = job.settings, job.view.defense
    identity = Identity(
        weights_hash=hash_tensors(defense.state_dict(), defense.describe()),
        data_hash=job.data.fingerprint(job.indices),
        planned=len(job.indices),
        code=own_code_of(settings),
        indices=tuple(job.indices),
        part=tuple(job.part) if settings.shard else (),
    )
    writing = AttackStore.writing(folder, settings, identity, job.data.fingerprint)
    with writing as store:
        warn_of_more(folder, store.identity, job.indices)
        finished = store.finished()
        on_images(len(finished.intersection(job.part)))
        # Of a group of which some are finished, the rest.
        groups = [[index for index in group if index not in finished] for group in job.groups]
        if not any(groups):
            return store.results()
        batch_size, session = settings.batch_size, _Session(store, job, on_evaluations)
        with watched(defense, session.on_evaluations):
            for todo in groups:
                while todo:
                    try:
                        if settings.diagnose and is_first(settings.shard) and store.findings() is None:
                            _diagnose(job, store, batch_size)
                        some = todo[: job.images_at_once(batch_size)]
                        attacked = _attack_images(job, some, batch_size)
                    except (MemoryError, RuntimeError) as error:
                        # Results do not depend on the batch size.
                        batch_size = halved(batch_size, error)
                        continue
                    session.save(attacked)
                    on_images(len(some))
                    del todo[: len(some)]
        return store.results()


class _Session:
    """Records what a session finishes, and every few seconds how far it is.

    Args:
        store: of the run's folder.
        job: the run.
        told: see `run`.
    """

    def __init__(self, store: AttackStore, job: AttackRun, told: OnProgress) -> None:
        self.store, self.device, self.told = store, job.device, told
        self.images = self.evaluations = 0
        self._started = self._said = time.monotonic()
        self._thread = threading.get_ident()
        store.progress.begin()

    def on_evaluations(self, evaluations: int) -> None:
        """So many more were done."""
        self.evaluations += evaluations
        self.told(evaluations)
        # On a GPU, gradients recompute in a thread of their own, and SQLite is for the one that opened it.
        if time.monotonic() - self._said > TELL_EVERY and threading.get_ident() == self._thread:
            self._say()
            self.store.commit()

    def save(self, images: list[AttackedImage]) -> None:
        """Record finished images."""
        self.images += len(images)
        self._say()
        self.store.save_results(images)

    def _say(self) -> None:
        images, evaluations, self._said = self.images, self.evaluations, time.monotonic()
        self.store.progress.tell(images=images, evaluations=evaluations)
        busy = self._said - self._started
        worker = alone(self.device, units=images, done=images, evaluations=evaluations, busy=busy)
        self.store.progress.tell_workers([worker])


@contextmanager
def watched(defense: Defense, on_evaluations: OnProgress) -> Iterator[None]:
    """Report each call of a network of the defence with its number of images, recomputation included."""

    def report(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not checking():
            on_evaluations(len(inputs[0]) if inputs else 1)

    hooks = [network.register_forward_hook(report) for network in defense.networks()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _diagnose(job: AttackRun, store: AttackStore, batch_size: int) -> None:
    """Diagnose the evaluation on the first images that the defence gets right; record what was found."""
    chosen = _right(job, batch_size)
    if not chosen:
        nothing = "every image is wrong without an attack: there is nothing to diagnose"
        store.save_findings([Finding("images", False, nothing, {})])
        return
    images, labels = job.images(chosen)
    findings = diagnose(
        job.view,
        images,
        labels,
        threat=job.threat,
        attack=job.attack,
        seed=job.settings.seed,
        image_indices=chosen,
        batch_size=batch_size,
    )
    store.save_findings(findings)


def _right(job: AttackRun, batch_size: int) -> list[int]:
    """The first indices, as many as are to be diagnosed, of images that are right without an attack."""
    settings, found = job.settings, list[int]()
    for start in range(0, len(job.indices), settings.diagnose):
        indices = job.indices[start : start + settings.diagnose]
        images, labels = job.images(indices)
        drawn = draw_labels(
            job.view.defense,
            images,
            draws=settings.majority_of,
            seed=settings.seed,
            image_indices=indices,
            batch_size=batch_size,
            stream=Stream.CONTROL,
        )
        right = majority(drawn, job.view.num_classes) == labels.cpu()
        found += [index for index, good in zip(indices, right.tolist(), strict=True) if good]
        if len(found) >= settings.diagnose:
            break
    return found[: settings.diagnose]


def _attack_images(job: AttackRun, indices: list[int], batch_size: int) -> list[AttackedImage]:
    """Attack some images and score the defence on them."""
    settings, defense = job.settings, job.view.defense
    started = time.monotonic()
    images, labels = job.images(indices)
    evaluation = evaluate(
        job.view,
        images,
        labels,
        attack=job.attack,
        threat=job.threat,
        draws=settings.draws,
        votes=settings.majority_of,
        seed=settings.seed,
        image_indices=indices,
        batch_size=batch_size,
    )
    found = {one.image_index: one.result.adversarial for one in evaluation.images if one.result is not None}
    purified: dict[int, Tensor] = {}
    if isinstance(defense, Purifier) and found:
        index = torch.tensor(list(found))
        noise = Noise.for_rows(settings.seed, Stream.SCORING, index, torch.zeros_like(index))
        with torch.no_grad():  # pictures for the report
            pictures = defense.purify(torch.stack(list(found.values())).to(job.device), noise).cpu()
        purified = dict(zip(found, pictures, strict=True))
    seconds = (time.monotonic() - started) / len(indices)
    return [
        AttackedImage(
            evaluated=one,
            clean=images[row].cpu(),
            purified=purified.get(one.image_index),
            protocol=settings.protocol,
            image_hash=hash_tensors({"image": job.data.pixels[one.image_index]}),
            version=version(),
            seconds=seconds,
        )
        for row, one in enumerate(evaluation.images)
    ]
