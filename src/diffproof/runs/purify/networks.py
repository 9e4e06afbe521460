"""What purifies pictures and labels them, here or on workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from diffproof.classifiers.base import predicted_labels
from diffproof.defenses.purifying.base import Purifier
from diffproof.defenses.repeatability import checking
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.errors import ArgumentError
from diffproof.noise import Noise, Stream
from diffproof.own_code import current_directory_first
from diffproof.runs import workers
from diffproof.runs.code import own_code_of
from diffproof.runs.defense import load_networks_and_defense
from diffproof.runs.groups import GroupWorker
from diffproof.runs.prepare import resolve_device
from diffproof.runs.purify.job import PurifyRun, PurifySettings, image_shape
from diffproof.scale.engine import Order
from diffproof.scale.fleet import Fleet
from diffproof.scale.surroundings import Surroundings
from diffproof.scale.workforce import Workforce
from diffproof.version import version
from diffproof.weights import hash_tensors

# Purified pictures N×C×H×W, and the labels (before, after) of each, () without a classifier.
Outcome = tuple[Tensor, list[tuple[str, ...]]]


def purified(defense: Purifier, settings: PurifySettings, images: Tensor, places: Sequence[int]) -> Outcome:
    """Purify pictures.

    Args:
        defense: purifies.
        settings: of the run.
        images: N×C×H×W, on the defence's device.
        places: among all pictures, which fix the noise.

    Raises:
        ValueError: a purified picture is not finite.
    """
    index = torch.tensor(list(places))
    noise = Noise.for_rows(settings.seed, Stream.FORWARD, index, torch.zeros_like(index))
    with torch.no_grad():
        after = defense.purify(images, noise)
        if not bool(torch.isfinite(after).all()):
            raise ArgumentError("denoiser", "expected finite pictures, got NaN or infinity")
        if settings.classifier is None:
            return after.cpu(), [()] * len(images)
        logits = [defense.classifier_logits(part, noise.to(images.device)) for part in (images, after)]
        both = [predicted_labels(part).tolist() for part in logits]
    names = getattr(defense.classifier, "class_names", None) or range(defense.num_classes)
    return after.cpu(), [(str(names[old]), str(names[new])) for old, new in zip(*both, strict=True)]


@contextmanager
def counting(defense: Purifier, on_evaluations: Callable[[int], None]) -> Iterator[None]:
    """Tell of every image that goes through the denoiser's network for the pictures, if it has one."""
    if not isinstance(defense.denoiser, NetworkDenoiser):
        yield
        return
    hook = defense.denoiser.network.register_forward_hook(
        lambda _, inputs, __: None if checking() else on_evaluations(len(inputs[0]))
    )
    try:
        yield
    finally:
        hook.remove()


def facts(defense: Purifier, settings: PurifySettings) -> dict[str, object]:
    """What must be the same on all workers, in words; see Hello."""
    return {
        "version of diffproof": version(),
        "weights in the files": hash_tensors(defense.state_dict(), defense.describe()),
        "code of your own": own_code_of(settings),
    }


def purify_worker(
    settings: PurifySettings, surroundings: Surroundings, shipped: Purifier | None
) -> GroupWorker:
    """A worker of a purification, whose orders are pictures by their places.

    Args:
        settings: of the run.
        surroundings: of the command.
        shipped: what purifies; None to read its networks here.

    Raises:
        ValueError: they cannot be read.
    """
    surroundings.enter()
    device = resolve_device(settings.device)
    with current_directory_first():
        defense = shipped or load_networks_and_defense(settings, device)
    assert isinstance(defense, Purifier)
    return worker_of(defense.to(device), settings, device)


def worker_of(purifier: Purifier, settings: PurifySettings, device: torch.device) -> GroupWorker:
    """A worker with what purifies on its device."""
    evaluated = [0]

    def do(one: Order, batch_size: int) -> Outcome:
        parts = []
        with counting(purifier, lambda count: evaluated.__setitem__(0, evaluated[0] + count)):
            for start in range(0, len(one.images), batch_size):
                places = one.images[start : start + batch_size]
                images = torch.stack([one.load[place] for place in places]).to(device)
                parts.append(purified(purifier, settings, images, places))
        return torch.cat([after for after, _ in parts]), [label for _, labels in parts for label in labels]

    hello = workers.hello(str(device), dict(facts(purifier, settings)))
    grey = torch.full((1, *image_shape(purifier)), 0.5, device=device)

    def check() -> None:
        purified(purifier, settings, grey, [0])

    return GroupWorker(hello, do, settings.batch_size, lambda: evaluated[0], check)


def hired(job: PurifyRun, asked: Workforce) -> AbstractContextManager[Fleet]:
    """Workers for pictures that were prepared for them; see `runs.workers.hired`."""
    must = dict(facts(job.defense, job.settings))
    return workers.hired(asked, purify_worker, job.settings, must, ship=lambda: job.defense, what="pictures")
