"""Runs a schedule in this process: draws of many images share batches, so that networks stay full."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffproof.defenses.labelling import Finished, Labeller
from diffproof.errors import ArgumentError, halved
from diffproof.noise import Noise
from diffproof.smoothing.schedule import Schedule, Unit
from diffproof.smoothing.tally import Tally

OfImage = Callable[[int], Tensor]
OnVotes = Callable[[Unit, Tensor, Tensor], None] | None

# In bytes, of what is kept of draws in work: more would take longer to write than some calls take to make.
LARGEST_STATE = 2**27


class Timed(Protocol):
    """An image in work, and the seconds that were spent on it."""

    seconds: float


class Drawing(Protocol):
    """Where draws come from and where their labels go, such as a Schedule.

    Attributes:
        vain: evaluations for draws that nobody wants any more.
    """

    vain: int

    @property
    def in_work(self) -> Mapping[int, Timed]:
        """Images that have draws in work."""

    def take(self, rows: int) -> Unit | None:
        """The next draws, at most so many; None while there are none."""

    def put(self, unit: Unit, tally: Tally) -> None:
        """Count the draws of a unit that was taken."""


class Work(NamedTuple):
    """Draws that are being labelled.

    Attributes:
        units: those that lack labels, each with the tally of the labels that are there, and those that have
            all while earlier ones do not.
        tensors: `unit` and `draw` of each draw without a label, and what was computed of these; no draws of
            units that are to be labelled from their start.
    """

    units: list[tuple[Unit, Tally]]
    tensors: dict[str, Tensor]


@dataclass
class _InWork:
    """A unit in work, its labels so far, how many are missing, and whether somebody wants them."""

    unit: Unit
    tally: Tally
    missing: int
    wanted: bool = True


class Packing:
    """Labels draws, a network call at a time.

    Args:
        labeller: an empty one.
        added: noisy draws of an image, C×H×W and the noise of N rows to N×C×H×W; see `GridNoise.added`.
        schedule: what is drawn.
        image: an image by its index, on the networks' device.
        num_classes: number of labels.
        seed: fixes the noise, with an image's index.
        on_halved: told the new batch size when memory has run out.
        on_ballots: told the unit, the numbers and the ballots (M×votes) of draws on which a vote has ended.

    Attributes:
        labeller: the given one; it counts what went through the networks.
    """

    def __init__(
        self,
        labeller: Labeller,
        added: Callable[[Tensor, Noise], Tensor],
        schedule: Drawing,
        image: OfImage,
        *,
        num_classes: int,
        seed: int,
        on_halved: Callable[[int], None] = lambda batch_size: None,
        on_ballots: OnVotes = None,
    ) -> None:
        self.labeller, self._added, self._schedule, self._image = labeller, added, schedule, image
        self._none, self._seed, self._on_halved = Tally((0,) * num_classes), seed, on_halved
        self._on_ballots = on_ballots
        self._units: dict[int, _InWork] = {}
        self._tag = 0
        self._since = time.monotonic()

    # Counts of labels have no gradient, and a graph would only take memory and time.
    @torch.no_grad()
    def step(self) -> bool:
        """Fill up the next network call and make it; whether there was one to make.

        Raises:
            ValueError: what the networks say of their images, or of their labels.
            MemoryError: not even one image fits into memory.
        """
        self._fill()
        if not len(self.labeller):
            return False
        while True:
            try:
                done = self.labeller.step()
                break
            except (MemoryError, RuntimeError) as error:
                self._halve(error)
        self._share_time()
        if done is not None:
            self._count(done)
        return True

    def _fill(self) -> None:
        """Take draws until the next network call is full, or there are none."""
        units, wanted = [], self.labeller.wanted
        while wanted > 0 and (unit := self._schedule.take(wanted)) is not None:
            units.append(unit)
            wanted -= unit.stop - unit.start
        parts = []
        for unit in units:
            self._units[self._tag] = _InWork(unit, self._none, unit.stop - unit.start)
            parts.append((self._tag, torch.arange(unit.start, unit.stop)))
            self._tag += 1
        if parts:
            self._send(parts)

    def _send(self, parts: list[tuple[int, Tensor]]) -> None:
        """Give draws to the labeller, by the tags of their units; in halves where memory runs out."""
        try:
            noisy, noise = self._drawn([self._units[tag].unit for tag, _ in parts], [one for _, one in parts])
            sizes = torch.tensor([len(draw) for _, draw in parts])
            tags = torch.tensor([tag for tag, _ in parts]).repeat_interleave(sizes)
            self.labeller.add(noisy, noise, tags.to(noisy.device))
            return
        except (MemoryError, RuntimeError) as error:
            self._halve(error)
        if len(parts) == 1:
            parts = [(tag, half) for tag, draw in parts for half in draw.chunk(2)]
        middle = len(parts) // 2
        for some in (parts[:middle], parts[middle:]):
            if some:
                self._send(some)

    def _halve(self, error: BaseException) -> None:
        """Go on with half the batch size, if memory ran out; else the error is raised again."""
        self.labeller.batch_size = halved(self.labeller.batch_size, error)
        self._on_halved(self.labeller.batch_size)

    def _drawn(self, units: list[Unit], draws: list[Tensor]) -> tuple[Tensor, Noise]:
        """Noisy draws of units, and the noise for what works on them."""
        noisy, noises = [], []
        for unit, draw in zip(units, draws, strict=True):
            image = self._image(unit.image_index)
            index = torch.full_like(draw, unit.image_index)
            noise = Noise.for_rows(self._seed, unit.stream, index, draw).to(image.device)
            noisy.append(self._added(image, noise))
            noises.append(noise.after_first())
        return torch.cat(noisy), Noise.joined(noises)

    def _share_time(self) -> None:
        """Each image in work took its draws' share of the time since the last call."""
        now = time.monotonic()
        passed, self._since = now - self._since, now
        missing = sum(one.missing for one in self._units.values())
        for one in self._units.values():
            counting = self._schedule.in_work.get(one.unit.image_index)
            if counting is not None:
                counting.seconds += passed * one.missing / missing

    def _count(self, done: Finished) -> None:
        """Add labels to the tallies of their units, and give those that are complete to the schedule."""
        tags, labels, denoiser, classifier = (one.cpu() for one in done[:4])
        classes = len(self._none.counts)
        if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            found = f"{int(labels.min())} to {int(labels.max())}"
            raise ArgumentError("defense", f"expected labels in [0, {classes}), got {found}")
        for tag in tags.unique().tolist():
            own, one = tags == tag, self._units[tag]
            if self._on_ballots is not None and done.ballots is not None:
                voted = own.to(done.draw.device)
                self._on_ballots(one.unit, done.draw[voted].cpu(), done.ballots[voted].cpu())
            counts = torch.bincount(labels[own], minlength=classes).tolist()
            spent = int(denoiser[own].sum()), int(classifier[own].sum())
            new = Tally(tuple(counts), int(own.sum()), *spent)
            one.tally, one.missing = one.tally + new, one.missing - new.draws
            if one.missing:
                continue
            del self._units[tag]
            if one.wanted:
                self._schedule.put(one.unit, one.tally)
            else:
                self._schedule.vain += one.tally.evaluations


class SchedulePacking(Packing):
    """Labels the draws of a schedule; whoever is interrupted goes on with what was being labelled.

    Attributes:
        failed: images that were given up: none, since an error ends the run here.
    """

    _schedule: Schedule
    failed: Mapping[int, str] = MappingProxyType({})

    @property
    def begun(self) -> int:
        """Evaluations that were spent on draws without a label."""
        return self.labeller.begun

    @property
    def labelled(self) -> int:
        """Draws that have a label while their unit or earlier ones are not complete."""
        waiting = sum(
            tally.draws for counting in self._schedule.in_work.values() for _, tally in counting.waiting()
        )
        return waiting + sum(one.tally.draws for one in self._units.values())

    def snapshot(self) -> Callable[[], Work]:
        """What gives the draws that are being labelled now, to go on from, even when they are no more."""
        in_work = [(tag, one.unit, one.tally) for tag, one in self._units.items()]
        waiting = [one for counting in self._schedule.in_work.values() for one in counting.waiting()]
        waiting += [(unit, self._none) for unit in self._schedule.returned]
        if not len(self.labeller):
            return lambda: Work(waiting, {})
        tags, draw, state = self.labeller.tags, self.labeller.noise.draw, self.labeller.state()
        if sum(tensor.nbytes for tensor in state.values()) > LARGEST_STATE:
            state = self.labeller.lean(state)

        def work() -> Work:
            places = {tag: place for place, (tag, *_) in enumerate(in_work)}
            of = torch.tensor([places[tag] for tag in tags.tolist()])
            own = {"unit": of, "draw": draw} | {f"of {name}": one for name, one in state.items()}
            return Work([(unit, tally) for _, unit, tally in in_work] + waiting, own)

        return work

    def resume(self, work: Work) -> None:
        """Go on with what was being labelled, before the first step.

        Args:
            work: of a packing of the same draws; of any batch size. What the schedule has no more is labelled
                in vain.

        Raises:
            ValueError: no packing of such draws can have given this.
        """
        if any(len(tally.counts) != len(self._none.counts) for _, tally in work.units):
            raise ValueError(f"expected counts of {len(self._none.counts)} classes, got others")
        none = torch.empty(0, dtype=torch.int64)
        of, draw = work.tensors.get("unit", none), work.tensors.get("draw", none)
        missing = [int((of == place).sum()) for place in range(len(work.units))]
        for place, (unit, tally) in sorted(
            enumerate(work.units), key=lambda one: self._schedule.in_turn(one[1][0])
        ):
            taken = self._schedule.reopen(unit)
            if missing[place]:
                self._units[place] = _InWork(unit, tally, missing[place], taken)
            elif taken and tally.draws:
                self._schedule.put(unit, tally)
            elif taken:
                self._schedule.returned.append(unit)
        self._tag = len(work.units)
        if not len(of):
            return
        begun = list(self._units)
        noisy, noise = self._drawn(
            [work.units[place][0] for place in begun], [draw[of == place] for place in begun]
        )
        # Where each stood: they are drawn unit by unit here.
        drawn = torch.cat([(of == place).nonzero()[:, 0] for place in begun])
        order = drawn.argsort().to(noisy.device)
        state = {name[3:]: tensor for name, tensor in work.tensors.items() if name.startswith("of ")}
        self.labeller.resume(noisy[order], noise.rows(order, noise.vote[order]), of.to(noisy.device), state)
