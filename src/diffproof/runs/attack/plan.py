"""What an attack run will take."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from diffproof.attacks.base import Attack, Job
from diffproof.attacks.evaluation import Evaluated
from diffproof.attacks.expectation import Expectation
from diffproof.attacks.losses import Loss
from diffproof.attacks.pgd import PGD
from diffproof.attacks.result import AttackResult
from diffproof.attacks.views import GradientMode
from diffproof.defenses.purifying.base import Purifier
from diffproof.noise import Noise, Stream
from diffproof.runs.attack.attacking import watched
from diffproof.runs.attack.job import AttackRun
from diffproof.runs.attack.store import AttackedImage, AttackStore
from diffproof.runs.code import own_code_of
from diffproof.runs.plan import Costs, Range, Spent, folder_sizes, measure, spread_out, until_ready
from diffproof.runs.shards import is_first
from diffproof.runs.store import Identity
from diffproof.version import version

# What the diagnostics spend on an image besides three attacks: forwards of a random defence and of another,
# and gradients.
_CHECKS, _CHECKS_FIXED, _SLOPES = 128, 68, 3


class _Calls:
    """Timed calls of the networks of an attack run, on some of its images.

    Attributes:
        asked: how often the defence was asked for the label of each image.
        right: how often it was right.
    """

    def __init__(self, job: AttackRun) -> None:
        self.job, sample = job, spread_out(job.part)
        self.images, self.labels = job.images(sample)
        self.indices = torch.tensor(sample)
        self.asked, self.right = torch.zeros(2, len(sample), dtype=torch.int64)
        self._rows = itertools.count()
        self._counted = 0

    def kind(self, call: Callable[[Job], object], most: int) -> Callable[[int, int], Spent]:
        """Time one kind of calls, of at most so many rows; gives what rows, and rows at once, spend."""
        rows_run = evaluations = 0

        def counting(rows: int) -> int:
            nonlocal rows_run, evaluations
            self._counted = 0
            call(self._some(rows))
            rows_run, evaluations = rows_run + rows, evaluations + self._counted
            # A defence without networks, as of a denoiser in closed form, takes time all the same.
            return self._counted or rows

        with watched(self.job.view.defense, self._count):
            pace = measure(counting, most)
        each = evaluations / rows_run
        return lambda rows, at_once: Spent(rows * each, pace.of(rows, at_once, each or 1.0))

    def _count(self, evaluations: int) -> None:
        self._counted += evaluations

    def _some(self, rows: int) -> Job:
        """The next rows: one image after the other, and again."""
        row = torch.tensor([next(self._rows) for _ in range(rows)]) % len(self.images)
        settings = self.job.settings
        return Job(
            self.job.view,
            self.images[row],
            self.labels[row],
            self.indices[row],
            settings.seed,
            settings.batch_size,
        )

    @property
    def share(self) -> float:
        """Mean over images of the share of right labels."""
        asked = self.asked > 0
        return float((self.right[asked] / self.asked[asked]).mean())

    def label(self, job: Job) -> None:
        """Labels of the defence, as for its scores."""
        noise = Noise.for_rows(job.seed, Stream.CONTROL, job.image_indices, torch.arange(len(job.images)))
        with torch.no_grad():  # labels have no gradient
            right = (job.view.defense(job.images, noise).argmax(1) == job.labels).cpu().long()
        place = torch.searchsorted(self.indices, job.image_indices)
        self.asked.index_add_(0, place, torch.ones_like(right))
        self.right.index_add_(0, place, right)

    def gradient(self, job: Job) -> Tensor:
        """A gradient of the attack's."""
        return self._expectation(job).gradient(job.images, 0).cpu()

    def look(self, job: Job) -> Tensor:
        """What the attack sees, without a gradient."""
        return self._expectation(job).look(job.images, 0).cpu()

    def _expectation(self, job: Job) -> Expectation:
        attack = self.job.attack
        respond = attack.responding(job.view) if isinstance(attack, PGD) else None
        return Expectation(job, eot=1, loss=attack.traits().loss or Loss.MARGIN, respond=respond)


def attack_costs(job: AttackRun, loading: float, importing: float = 0.0) -> Costs:
    """Time calls of the run's networks on some of its images, for a few seconds; write nothing.

    An attack that stops when it has found something, as AutoAttack and Square do, can take less; the images
    that the defence gets wrong already, which are not attacked, are as many as among those of the calls.

    Args:
        job: from `prepare`.
        loading: the seconds that took.
        importing: those that the libraries took before.

    Raises:
        MemoryError: not even one image fits into memory.
    """
    s, attack, defense = job.settings, job.attack, job.view.defense
    at_once = job.view.images_at_once(s.batch_size)
    # Of all images of a group together, so that calls have the size that they will have.
    group = len(job.groups[0])
    scored = max(s.draws, s.majority_of) if defense.random else 1
    forwards, backwards = attack.most_evaluations(job.view.num_classes)
    result = _result(job, forwards, backwards)
    looks = attack.most_draws(result, job.view.num_classes) if job.view.random else 1
    calls = _Calls(job)
    most = min(at_once, group * attack.repeats)
    most_looks = max(most, min(at_once, looks))
    another = job.view.gradient in (GradientMode.SURROGATE, GradientMode.BLIND)
    label = calls.kind(calls.label, max(min(at_once, group * scored), 1 if another else most_looks))
    look = calls.kind(calls.look, most_looks) if another else label
    gradient = calls.kind(calls.gradient, most) if attack.needs_gradient else look

    def attacks(images: int, times: int = 1, by: Attack = attack) -> Spent:
        rows = min(at_once, images * by.repeats)
        forwards, backwards = by.most_evaluations(job.view.num_classes)
        return gradient(times * images * backwards, rows) + look(
            times * images * (forwards - backwards), rows
        )

    def labels(images: int, draws: int) -> Spent:
        return label(images * draws, min(at_once, images * draws))

    clean, share = labels(group, scored), calls.share
    attacked = attacks(group) + labels(group, scored + isinstance(defense, Purifier))
    if s.fixed_noise:
        # The answers to clean images and to those of an attack that knows their noise.
        clean += labels(group, 1)
        attacked += attacks(group, by=attack.of_fixed_noise()) + labels(group, 1)
    image = (clean + attacked * share) * (1 / group) + look(looks, min(at_once, looks)) * share
    most_of_an_image = (clean + attacked) * (1 / group) + look(looks, min(at_once, looks))
    first = Spent(0.0, Range(0.0, 0.0, 0.0))
    if s.diagnose and is_first(s.shard):
        checked, traits = min(s.diagnose, len(job.indices)), attack.traits()
        checks = _CHECKS if defense.random else _CHECKS_FIXED
        first += labels(checked, scored) + attacks(checked, times=3)
        first += look(checked * (checks + traits.iterations), min(at_once, checked * checks))
        first += gradient(checked * _SLOPES, min(at_once, checked))
    begin_size, size = _sizes(job, result)
    return Costs(
        images=len(job.part),
        evaluations=image.evaluations,
        most_evaluations=round(most_of_an_image.evaluations),
        seconds=image.seconds,
        size=size,
        begin_seconds=Range(loading, loading, loading),
        first_evaluations=round(first.evaluations),
        first_seconds=first.seconds,
        begin_size=begin_size,
        units=len(job.groups),
        largest=group / len(job.part),
        least=image.seconds.times(group),
        worker_seconds=until_ready(loading, importing),
    )


def _result(job: AttackRun, forwards: int, backwards: int) -> AttackResult:
    """What the attack may say of the first image, for what depends on no more than its kind."""
    image, label = job.images(job.indices[:1])
    traits = job.attack.traits()
    return AttackResult(
        image_index=job.indices[0],
        label=int(label),
        adversarial=image[0],
        norm=job.threat.budget,
        first_success=None,
        forwards=forwards,
        backwards=backwards,
        draws=traits.eot * (traits.iterations + 1),
        zero_gradients=0.0,
    )


def _sizes(job: AttackRun, result: AttackResult) -> tuple[int, float]:
    s, image = job.settings, result.adversarial
    drawn = (result.label,) * max(s.draws, s.majority_of)
    identity = Identity(
        weights_hash="0" * 64,
        data_hash="0" * 64,
        planned=len(job.indices),
        code=own_code_of(s),
        indices=tuple(job.indices),
        part=tuple(job.part) if s.shard else (),
    )

    def save(store: AttackStore, index: int) -> None:
        finished = AttackedImage(
            evaluated=Evaluated(index, result.label, drawn, result, drawn, control_wrong=False),
            clean=image,
            purified=image if isinstance(job.view.defense, Purifier) else None,
            protocol=s.protocol,
            image_hash="0" * 64,
            version=version(),
            seconds=0.0,
        )
        store.save_results([finished])

    return folder_sizes(AttackStore, s, identity, save)
