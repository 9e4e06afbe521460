"""DensePure: K reverse-diffusion samples of one noisy image, classified, majority vote (Xiao et al. 2023)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.checks import check_at_least, check_member, check_unit
from diffproof.defenses.base import CertifiableDefense
from diffproof.defenses.labelling import Labelled, label_all
from diffproof.defenses.vote_labeller import VoteLabeller
from diffproof.denoisers.base import Denoiser, Estimate, check_denoiser
from diffproof.errors import ArgumentError
from diffproof.noise import MAX_VOTE, Noise
from diffproof.reverse.levels import StepRule, select_sigmas
from diffproof.reverse.sampling import first_estimate, posterior_sample


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
        return label_all(self.labeller(sigma, batch_size), noisy, noise)[0]

    def labeller(self, sigma: float, batch_size: int, *, all_votes: bool = False) -> VoteLabeller:
        """See CertifiableDefense.

        Args:
            sigma: see `labels`.
            batch_size: see `classify`.
            all_votes: cast all votes of every draw, those that change nothing, too.
        """
        sigmas = self.sigmas(sigma)
        return VoteLabeller(
            self.denoiser,
            self.classifier_labels,
            sigmas=sigmas,
            # Without noise between the steps all votes are one and the same sample.
            votes=1 if len(sigmas) == 1 or self.eta == 0.0 else self.votes,
            num_classes=self.num_classes,
            batch_size=batch_size,
            consensus=self.consensus,
            eta=self.eta,
            all_votes=all_votes,
        )

    def vote_shares(self, noisy: Tensor, sigma: float, noise: Noise) -> Tensor:
        """Shares of all K votes that each class gets, N×num_classes; no early stop, no gradient.

        Args:
            noisy: see `labels`.
            sigma: see `labels`.
            noise: see `labels`.
        """
        _, ballots = label_all(self.labeller(sigma, len(noisy), all_votes=True), noisy, noise)
        assert ballots is not None
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
