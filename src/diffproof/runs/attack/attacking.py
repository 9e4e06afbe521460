"""What a process does for an attack run: diagnose the evaluation, attack images, score the defence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.attacks.diagnostics.diagnose import diagnose
from diffproof.attacks.diagnostics.finding import Finding
from diffproof.attacks.evaluation import evaluate
from diffproof.attacks.scoring import draw_labels
from diffproof.defenses.base import Defense
from diffproof.defenses.purifying.base import Purifier
from diffproof.defenses.repeatability import checking
from diffproof.defenses.voting import majority
from diffproof.noise import Noise, Stream
from diffproof.runs.attack.job import AttackRun
from diffproof.runs.attack.store import AttackedImage
from diffproof.version import version
from diffproof.weights import hash_tensors

OnProgress = Callable[[int], None]


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


def findings_of(job: AttackRun, batch_size: int) -> list[Finding]:
    """What diagnosing the evaluation on the first images that the defence gets right finds."""
    chosen = _right(job, batch_size)
    if not chosen:
        nothing = "every image is wrong without an attack: there is nothing to diagnose"
        return [Finding("images", False, nothing, {})]
    images, labels = job.images(chosen)
    return diagnose(
        job.view,
        images,
        labels,
        threat=job.threat,
        attack=job.attack,
        seed=job.settings.seed,
        image_indices=chosen,
        batch_size=batch_size,
    )


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


def attack_images(job: AttackRun, indices: list[int], batch_size: int) -> list[AttackedImage]:
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
        fixed_noise=settings.fixed_noise,
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
