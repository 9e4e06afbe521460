"""A vote on every noisy draw, with the samples that draws still need packed into full batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffproof.defenses.labelling import Finished, Labeller, part_of_state
from diffproof.defenses.voting import NOT_CAST, votes_needed, winner
from diffproof.denoisers.base import Denoiser, Estimate
from diffproof.noise import Noise
from diffproof.reverse.sampling import first_estimate, posterior_steps


class _Samples(NamedTuple):
    """A batch of samples on their way through the reverse process.

    Attributes:
        draw: the place of the draw that each is of.
        vote: which of its votes.
        noise: a row each.
        images: at noise level sigmas[taken].
        estimate: the denoiser's of these.
        taken: see `images`.
    """

    draw: Tensor
    vote: Tensor
    noise: Noise
    images: Tensor
    estimate: Estimate
    taken: int


class VoteLabeller(Labeller):
    """Labels a draw by the majority of the labels of its posterior samples.

    The first estimate of a draw is the same for all its samples and made once. Samples that any draws still
    need run together. A draw leaves as soon as its outstanding votes cannot change the winner: no vote is
    cast too many, whatever shares its batches.

    Args:
        denoiser: gives the samples.
        label: images and their noise to labels.
        sigmas: noise levels that a sample visits, that of the draws first.
        votes: of a draw, ≥ 1.
        num_classes: number of labels.
        batch_size: see Labeller.
        consensus: see DensePure.
        eta: see DensePure.
        all_votes: cast all votes of every draw.
        first_vote: vote index of the noise of a draw's first sample.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        label: Callable[[Tensor, Noise], Tensor],
        *,
        sigmas: Sequence[float],
        votes: int,
        num_classes: int,
        batch_size: int,
        consensus: int | None = None,
        eta: float = 1.0,
        all_votes: bool = False,
        first_vote: int = 1,
    ) -> None:
        super().__init__(batch_size)
        self._denoiser, self._label, self._eta = denoiser, label, eta
        self._sigmas, self._votes, self._first_vote = sigmas, votes, first_vote
        self._num_classes, self._consensus, self._all_votes = num_classes, consensus, all_votes
        self._ballots = torch.empty(0, votes, dtype=torch.int64)
        self._clean: Tensor | None = None
        self._mix: Tensor | None = None
        self._samples: _Samples | None = None
        # Draws that have a first estimate, votes that these need, and votes that they have cast.
        self._estimated = self._pending = self._cast = 0

    def _needed(self, ballots: Tensor) -> Tensor:
        """The least number of further votes of each draw."""
        if self._all_votes:
            return (ballots == NOT_CAST).sum(1)
        return votes_needed(ballots, self._num_classes, self._consensus)

    @property
    def votes(self) -> bool:
        """See Labeller."""
        return self._votes > 1

    @property
    def wanted(self) -> int:
        """See Labeller; none while votes fill a batch."""
        if self._samples is not None or self._pending >= self.batch_size:
            return 0
        return max(0, self.batch_size - (len(self) - self._estimated))

    @property
    def begun(self) -> int:
        """See Labeller."""
        sampled = 0 if self._samples is None else len(self._samples.draw) * self._samples.taken
        return self._estimated + self._cast * len(self._sigmas) + sampled

    def add(self, noisy: Tensor, noise: Noise, tags: Tensor) -> None:
        """See Labeller."""
        fresh = torch.full((len(tags), self._votes), NOT_CAST, device=tags.device)
        ballots = torch.cat([self._ballots.to(tags.device), fresh])
        super().add(noisy, noise, tags)
        self._ballots = ballots

    def step(self) -> Finished | None:
        """See Labeller."""
        if self._samples is not None and len(self._samples.draw) > self.batch_size:
            self._samples = None
        if self._samples is None:
            if self._pending < self.batch_size and self._estimated < len(self):
                self._estimate()
                return None
            self._samples = self._next_samples(self.batch_size)
        now = self._samples
        if now.taken < len(self._sigmas) - 1:
            images, estimate = next(
                posterior_steps(
                    self._denoiser,
                    now.images,
                    self._sigmas,
                    now.noise,
                    eta=self._eta,
                    estimate=now.estimate,
                    taken=now.taken,
                )
            )
            self._called(len(images))
            self._samples = now._replace(images=images, estimate=estimate, taken=now.taken + 1)
            return None
        labels = self._label(now.estimate.clean, now.noise)
        self._called(len(labels))
        return self._count(now, labels)

    def _estimate(self) -> None:
        """First estimates of the next draws."""
        rows = self.noisy[self._estimated :][: self.batch_size]
        clean, mix = first_estimate(self._denoiser, rows, self._sigmas[0])
        self._called(len(rows))
        # Those that go on from a lean state have votes already.
        needed = int(self._needed(self._ballots[self._estimated :][: len(rows)]).sum())
        if self._clean is not None:
            clean = torch.cat([self._clean, clean])
        if self._mix is not None and mix is not None:
            mix = torch.cat([self._mix, mix])
        # Together: if memory runs out before, nothing has changed.
        self._clean, self._mix = clean, mix
        self._estimated += len(rows)
        self._pending += needed

    def _next_samples(self, size: int) -> _Samples:
        """Samples of the first votes that are needed, whatever draws they are of."""
        ballots = self._ballots[: self._estimated]
        needed = self._needed(ballots)
        before = needed.cumsum(0) - needed
        draw = torch.repeat_interleave(needed, output_size=self._pending)
        cast = (ballots != NOT_CAST).sum(1)
        vote = torch.arange(len(draw), device=draw.device) - before[draw] + cast[draw]
        draw, vote = draw[:size], vote[:size]
        assert self._clean is not None
        mix = None if self._mix is None else self._mix[draw]
        estimate = Estimate(self._clean[draw], mix)
        return _Samples(
            draw, vote, self.noise.rows(draw, vote + self._first_vote), self.noisy[draw], estimate, 0
        )

    def _count(self, samples: _Samples, labels: Tensor) -> Finished | None:
        """Cast the labels of samples; the draws that are decided by them."""
        ballots = self._ballots.index_put((samples.draw, samples.vote), labels)
        needed = self._needed(ballots[: self._estimated])
        decided = (needed == 0).nonzero()[:, 0]
        pending = int(needed.sum())
        if not len(decided):
            self._pending, self._ballots, self._samples = pending, ballots, None
            self._cast += len(labels)
            return None
        voted = ballots[decided]
        cast = (voted != NOT_CAST).sum(1)
        done = Finished(
            self.tags[decided],
            winner(voted, self._num_classes, self._consensus),
            1 + cast * (len(self._sigmas) - 1),
            cast,
            self.noise.draw[decided],
            voted,
        )
        kept = torch.ones(len(self), dtype=torch.bool, device=needed.device)
        kept[decided] = False
        rest = kept.nonzero()[:, 0]
        assert self._clean is not None
        open_ = rest[: self._estimated - len(decided)]
        clean, mix = self._clean[open_], None if self._mix is None else self._mix[open_]
        ballots, gone = ballots[rest], int(cast.sum())
        # Together: if memory runs out before, nothing has changed.
        self._drop(rest)
        self._clean, self._mix, self._ballots = clean, mix, ballots
        self._pending, self._samples = pending, None
        self._estimated -= len(decided)
        self._cast += len(labels) - gone
        return done

    def state(self) -> dict[str, Tensor]:
        """First estimates, ballots, and the samples on their way."""
        tensors = {"ballots": self._ballots}
        if self._clean is not None:
            tensors["clean"] = self._clean
        if self._mix is not None:
            tensors["mix"] = self._mix
        now = self._samples
        if now is not None and now.taken:
            tensors |= {"sample": now.images, "sample_clean": now.estimate.clean}
            tensors["steps"] = torch.tensor(now.taken)
            if now.estimate.log_variance_mix is not None:
                tensors["sample_mix"] = now.estimate.log_variance_mix
        return tensors

    def lean(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The ballots."""
        return {"ballots": state["ballots"]}

    def resume(self, noisy: Tensor, noise: Noise, tags: Tensor, state: Mapping[str, Tensor]) -> None:
        """See Labeller."""
        self._check_state(state, tuple(noisy.shape))
        super().resume(noisy, noise, tags, state)
        there = {name: tensor.to(noisy.device) for name, tensor in state.items()}
        self._ballots, self._clean, self._mix = there["ballots"], there.get("clean"), there.get("mix")
        self._estimated = 0 if self._clean is None else len(self._clean)
        self._pending = int(self._needed(self._ballots[: self._estimated]).sum())
        self._cast = int((self._ballots != NOT_CAST).sum())
        if "sample" in there:
            estimate = Estimate(there["sample_clean"], there.get("sample_mix"))
            begun = self._next_samples(len(there["sample"]))
            self._samples = begun._replace(
                images=there["sample"], estimate=estimate, taken=int(there["steps"])
            )

    def _check_state(self, state: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
        """Raise ValueError unless a vote on draws of this shape can have been left so."""
        ballots = part_of_state(state, "ballots", (shape[0], self._votes), whole=True)
        cast = ballots != NOT_CAST
        few = len(part_of_state(state, "clean", (None, *shape[1:]))) if "clean" in state else 0
        if (
            bool((ballots < NOT_CAST).any() or (ballots >= self._num_classes).any())
            or bool((cast[:, 1:] & ~cast[:, :-1]).any())
            or bool((self._needed(ballots) == 0).any())
            or few > shape[0]
        ):
            raise ValueError("ballots: expected those of an unfinished vote, got others")
        if "mix" in state:
            part_of_state(state, "mix", (few, *shape[1:]))
        if "sample" not in state:
            return
        samples = len(part_of_state(state, "sample", (None, *shape[1:])))
        part_of_state(state, "sample_clean", (samples, *shape[1:]))
        if "mix" in state:
            part_of_state(state, "sample_mix", (samples, *shape[1:]))
        taken = int(part_of_state(state, "steps", (), whole=True))
        if not (0 < taken < len(self._sigmas) and 0 < samples <= int(self._needed(ballots[:few]).sum())):
            raise ValueError(f"sample: expected samples of these draws, got {samples} after {taken} steps")
