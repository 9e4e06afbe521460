"""DensePure: K reverse-diffusion samples of one noisy image, classified, majority vote (Xiao et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.checks import check_at_least, check_member, check_unit
from diffproof.defenses.base import CertifiableDefense, Labelled, Labelling, Underway, finished
from diffproof.defenses.voting import NOT_CAST, votes_needed, winner
from diffproof.denoisers.base import Denoiser, Estimate, check_denoiser
from diffproof.errors import ArgumentError
from diffproof.noise import MAX_VOTE, Noise
from diffproof.reverse.levels import StepRule, select_sigmas
from diffproof.reverse.sampling import first_estimate, posterior_sample, posterior_steps


class DensePure(CertifiableDefense):
    """Majority vote over `votes` posterior samples of the same noisy draw (DensePure, algorithm 2).

    The first denoiser evaluation is the same for all votes and done once, and voting on a draw stops as soon
    as the outstanding votes cannot change its winner; neither changes a label. Vote k of a draw uses noise
    rows with vote index k + 1.

    Args:
        denoiser: any denoiser; its unconditional estimate is used.
        classifier: see Defense.
        steps: denoiser evaluations of one sample (b), ≥ 1; None for every trained level.
        votes: samples of a draw (K), in [1, 2^16).
        consensus: stop a draw after so many consecutive equal votes (appendix D.8), which may change labels;
            None for the plain majority.
        step_rule: which timesteps the samples visit; see StepRule.
        eta: 1 for the ancestral process of the paper, 0 for deterministic DDIM, whose votes all agree.
        sigma: see CertifiableDefense.

    Raises:
        ValueError: steps, votes or consensus < 1, votes ≥ 2^16, consensus > votes, eta outside [0, 1], or
            given for one step, unknown step rule.
    """

    method = "densepure"

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: nn.Module,
        *,
        steps: int | None = 10,
        votes: int = 40,
        consensus: int | None = None,
        step_rule: StepRule | str = StepRule.AUTHORS,
        eta: float = 1.0,
        sigma: float | None = None,
    ) -> None:
        super().__init__(classifier, check_denoiser(denoiser), sigma)
        self.denoiser: Denoiser
        self.classifier: nn.Module
        self.steps = None if steps is None else check_at_least("steps", steps, 1)
        self.votes = check_at_least("votes", votes, 1, MAX_VOTE)
        self.consensus = None if consensus is None else check_at_least("consensus", consensus, 1)
        if consensus is not None and consensus > votes:
            raise ArgumentError("consensus", f"expected consensus ≤ votes = {votes}, got {consensus}")
        self.step_rule = check_member("step_rule", step_rule, StepRule)
        eta = check_unit("eta", eta)
        if steps == 1 and eta != 1.0:
            raise ArgumentError("eta", f"a sample of one step has no noise, expected none, got {eta!r}")
        self.eta = eta

    @property
    def rows_per_image(self) -> int:
        """A row for each vote, which `logits` puts through the networks together."""
        return self.votes * super().rows_per_image

    def sigmas(self, sigma: float) -> list[float]:
        """The noise levels a sample visits from sigma."""
        return select_sigmas(self.denoiser, sigma, self.steps, self.step_rule)

    def check_sigma(self, sigma: float) -> None:
        """Raise ValueError unless the reverse process can start at sigma with these steps."""
        super().check_sigma(sigma)
        self.sigmas(sigma)

    def evaluations_per_draw(self, sigma: float) -> tuple[int, int]:
        """K·b denoiser and K classifier evaluations."""
        return self.votes * len(self.sigmas(sigma)), self.votes

    def settings(self) -> dict[str, Any]:
        """Method, votes, steps and what else fixes a sample."""
        return {
            "method": self.method,
            "votes": self.votes,
            "steps": self.steps,
            "step_rule": self.step_rule.value,
            "consensus": self.consensus,
            "eta": self.eta,
        }

    def classify(self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int) -> Labelled:
        """The label that wins the vote of each noisy image, and the evaluations spent."""
        return finished(self.classify_in_steps(noisy, sigma, noise, batch_size, None))

    def classify_in_steps(
        self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int, underway: Underway | None
    ) -> Labelling:
        """See CertifiableDefense; `_Voting` says what there is on the way."""
        ballots, spent = yield from self._vote(noisy, sigma, noise, batch_size, underway, all_votes=False)
        labels = winner(ballots, self.num_classes, self.consensus)
        return Labelled(labels, spent, int((ballots != NOT_CAST).sum()))

    def vote_shares(self, noisy: Tensor, sigma: float, noise: Noise) -> Tensor:
        """Shares of all K votes that each class gets, N×num_classes; no early stop, no gradient.

        Args:
            noisy: see `labels`.
            sigma: see `labels`.
            noise: see `labels`.
        """
        voting = self._vote(noisy, sigma, noise, len(noisy), None, all_votes=True)
        ballots, _ = finished(voting)
        return nn.functional.one_hot(ballots, self.num_classes).to(noisy.dtype).mean(1)

    def logits(self, noisy: Tensor, sigma: float, noise: Noise) -> Tensor:
        """Log of the mean class probability over all K samples: the differentiable form of the vote.

        Gradients flow to the images and to the networks, through a graph of all K·b evaluations.
        """
        rows = len(noisy)
        start = first_estimate(self.denoiser, noisy, sigma)
        draw = torch.arange(rows, device=noisy.device).repeat_interleave(self.votes)
        vote = torch.arange(self.votes, device=noisy.device).repeat(rows)
        own = noise.to(noisy.device).rows(draw, vote + 1)
        samples = self._samples(noisy, start, self.sigmas(sigma), own, draw)
        log_shares = self.classifier_logits(samples, own).log_softmax(1).reshape(rows, self.votes, -1)
        return torch.logsumexp(log_shares, 1) - math.log(self.votes)

    def _vote(
        self,
        noisy: Tensor,
        sigma: float,
        noise: Noise,
        batch_size: int,
        underway: Underway | None,
        *,
        all_votes: bool,
    ) -> Generator[Underway, None, tuple[Tensor, int]]:
        """Ballots N×K in the order of voting, and the denoiser evaluations spent."""
        sigmas, noise = self.sigmas(sigma), noise.to(noisy.device)
        # Without noise between the steps all votes are one and the same sample.
        votes = 1 if len(sigmas) == 1 or self.eta == 0.0 else self.votes
        now = _Voting(noisy, len(sigmas), votes, {} if underway is None else underway.tensors)
        while len(now.clean) < len(noisy):
            now.estimated(first_estimate(self.denoiser, noisy[len(now.clean) :][:batch_size], sigma))
            yield now.underway()
        start = Estimate(now.clean, now.mix)
        while True:
            cast = (now.ballots != NOT_CAST).sum(1)
            needed = (
                votes - cast if all_votes else votes_needed(now.ballots, self.num_classes, self.consensus)
            )
            if not bool(needed.any()):
                return now.ballots, now.spent
            draw = torch.repeat_interleave(needed)
            before = needed.cumsum(0) - needed
            vote = torch.arange(len(draw), device=noisy.device) - before[draw] + cast[draw]
            # Votes that all draws still need run together, whatever draw they belong to.
            while len(now.labels) < len(draw):
                rows = slice(len(now.labels), len(now.labels) + now.sampled(batch_size))
                own = noise.rows(draw[rows], vote[rows] + 1)
                images, estimate = now.sample or (noisy[draw[rows]], _rows(start, draw[rows]))
                steps = posterior_steps(
                    self.denoiser, images, sigmas, own, eta=self.eta, estimate=estimate, taken=now.steps
                )
                for images, estimate in steps:
                    now.stepped(images, estimate)
                    yield now.underway()
                now.labelled(self.classifier_labels(estimate.clean, own))
                if len(now.labels) < len(draw):
                    yield now.underway()
            now.counted(draw, vote)
            yield now.underway()

    def _samples(
        self, noisy: Tensor, start: Estimate, sigmas: list[float], noise: Noise, draw: Tensor
    ) -> Tensor:
        """A posterior sample of each of the given rows, under the noise of its vote."""
        return posterior_sample(
            self.denoiser, noisy[draw], sigmas, noise, eta=self.eta, start=_rows(start, draw)
        )


def _rows(estimate: Estimate, index: Tensor) -> Estimate:
    mix = estimate.log_variance_mix
    return Estimate(estimate.clean[index], None if mix is None else mix[index])


class _Voting:
    """A vote on N draws between two network calls.

    Args:
        noisy: the draws, N×C×H×W.
        levels: noise levels that a sample visits.
        votes: of a draw.
        tensors: what `underway` gave, to go on from; empty for a new vote.

    Attributes:
        clean: the first estimates of the first draws, as far as they are there.
        mix: what else the denoiser said of them.
        ballots: N×votes, as they were when the round began: a round casts the votes that all draws need.
        labels: those of the round's first samples.
        sample: the samples in work after `steps` steps: noisy images and their estimate; None for none.
        steps: see `sample`.
        spent: denoiser evaluations.
    """

    def __init__(self, noisy: Tensor, levels: int, votes: int, tensors: dict[str, Tensor]) -> None:
        device = noisy.device
        there = {name: tensor.to(device) for name, tensor in tensors.items()}
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        self.draws, self.levels = len(noisy), levels
        self.clean = there.get("clean", noisy[:0])
        self.mix = there.get("mix")
        uncast = torch.full((len(noisy), votes), NOT_CAST, dtype=torch.int64, device=device)
        self.ballots = there.get("ballots", uncast)
        self.labels = there.get("labels", nothing)
        self.sample: tuple[Tensor, Estimate] | None = None
        if "sample" in there:
            self.sample = there["sample"], Estimate(there["sample_clean"], there.get("sample_mix"))
        self.steps = int(there.get("steps", 0))

    @property
    def cast(self) -> int:
        """Votes that were cast, those of this round included."""
        return int((self.ballots != NOT_CAST).sum()) + len(self.labels)

    @property
    def spent(self) -> int:
        """Denoiser evaluations so far."""
        sampled = 0 if self.sample is None else len(self.sample[0]) * self.steps
        return len(self.clean) + self.cast * (self.levels - 1) + sampled

    def sampled(self, batch_size: int) -> int:
        """How many samples are to be in work: as many as are, or a batch if that is smaller or none are."""
        if self.sample is not None and len(self.sample[0]) > batch_size:
            self.sample, self.steps = None, 0
        return batch_size if self.sample is None else len(self.sample[0])

    def estimated(self, estimate: Estimate) -> None:
        """First estimates of the next draws."""
        self.clean = torch.cat([self.clean, estimate.clean])
        if estimate.log_variance_mix is not None:
            mix = estimate.log_variance_mix
            self.mix = mix if self.mix is None else torch.cat([self.mix, mix])

    def stepped(self, images: Tensor, estimate: Estimate) -> None:
        """The samples in work after one more step."""
        self.sample, self.steps = (images, estimate), self.steps + 1

    def labelled(self, labels: Tensor) -> None:
        """The samples in work have labels."""
        self.labels, self.sample, self.steps = torch.cat([self.labels, labels]), None, 0

    def counted(self, draw: Tensor, vote: Tensor) -> None:
        """All labels of the round are there: cast them."""
        self.ballots = self.ballots.index_put((draw, vote), self.labels)
        self.labels = self.labels[:0]

    def underway(self) -> Underway:
        """All of this, to go on from."""
        tensors = {"clean": self.clean, "ballots": self.ballots, "labels": self.labels}
        if self.mix is not None:
            tensors["mix"] = self.mix
        if self.sample is not None:
            images, estimate = self.sample
            tensors |= {"sample": images, "sample_clean": estimate.clean, "steps": torch.tensor(self.steps)}
            if estimate.log_variance_mix is not None:
                tensors["sample_mix"] = estimate.log_variance_mix
        return Underway(self.draws, tensors, self.spent, self.cast)
