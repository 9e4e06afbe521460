"""No denoiser: plain randomized smoothing (Cohen et al. 2019), perhaps by votes of a network that drops."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from diffproof.checks import check_at_least
from diffproof.classifiers.stochastic import check_drops, dropping
from diffproof.defenses.base import CertifiableDefense, Defense
from diffproof.defenses.labelling import Batches, Labelled, Labeller
from diffproof.defenses.voting import majority
from diffproof.errors import ArgumentError
from diffproof.noise import MAX_VOTE, Noise


class Undefended(CertifiableDefense):
    """The classifier alone: the baseline of purification, and on noisy images that of randomized smoothing.

    With `votes` its dropout and drop-path layers stay active and passes vote, as in DensePure's ablation of
    what its own vote is worth (Xiao et al. 2023, table E). Vote k of a draw has the noise of vote k + 1.

    Args:
        classifier: see Defense.
        votes: passes that vote on an image, in [1, 2^16); None for one in which nothing is dropped.
        sigma: standard deviation of the noise that calling the module adds first, in [0, 1] pixels; None adds
            none.

    Raises:
        ValueError: votes out of range, or of a classifier that is a defence or that drops nothing.
    """

    method = "none"

    def __init__(
        self, classifier: nn.Module, *, votes: int | None = None, sigma: float | None = None
    ) -> None:
        super().__init__(classifier, None, sigma)
        self.classifier: nn.Module
        inner = isinstance(classifier, Defense)
        self.votes = None if votes is None else check_at_least("votes", votes, 1, MAX_VOTE)
        if self.votes is not None:
            if inner:
                raise ArgumentError(
                    "votes", "expected a classifier that is no defence, whose own votes count"
                )
            check_drops(classifier)
        self.random = sigma is not None or self.votes is not None or (inner and bool(classifier.random))

    @property
    def rows_per_image(self) -> int:
        """A row for each vote, which `logits` puts through the network together."""
        return (self.votes or 1) * super().rows_per_image

    def evaluations_per_draw(self, sigma: float) -> tuple[int, int]:
        """A classifier evaluation for each vote."""
        return 0, self.votes or 1

    def settings(self) -> dict[str, Any]:
        """Method, and votes where there are any."""
        return {"method": self.method} | ({} if self.votes is None else {"votes": self.votes})

    def classify(self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int) -> Labelled:
        """One classifier evaluation an image and vote."""
        draw, own = self._passes(noisy, noise)
        found = []
        for rows, part in zip(draw.split(batch_size), own.split(batch_size), strict=True):
            if self.votes is None:
                found.append(self.classifier_labels(noisy[rows], part))
                continue
            with dropping(self.classifier, part):
                found.append(self.classifier_labels(noisy[rows], part))
        labels = torch.cat(found)
        if self.votes is not None:
            labels = majority(labels.reshape(len(noisy), self.votes), self.num_classes)
        return Labelled(labels, 0, len(draw))

    def labeller(self, sigma: float, batch_size: int) -> Labeller:
        """See CertifiableDefense."""
        return Batches(
            lambda noisy, noise, size: self.classify(noisy, sigma, noise, size), batch_size, mixed=True
        )

    def logits(self, noisy: Tensor, sigma: float, noise: Noise) -> Tensor:
        """The classifier's logits on the noisy image; of votes the log of their mean class probability."""
        if self.votes is None:
            return self.classifier_logits(noisy, noise)
        draw, own = self._passes(noisy, noise)
        with dropping(self.classifier, own):
            shares = self.classifier_logits(noisy[draw], own).log_softmax(1)
        return shares.reshape(len(noisy), self.votes, -1).logsumexp(1) - math.log(self.votes)

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        """The classifier's logits, on noisy images if the defence has a sigma."""
        if self.sigma is None:
            return self.logits(images, 0.0, noise)
        return super().respond(images, noise)

    def _passes(self, noisy: Tensor, noise: Noise) -> tuple[Tensor, Noise]:
        """Which image each pass is of, and its noise."""
        rows = torch.arange(len(noisy), device=noisy.device)
        if self.votes is None:
            return rows, noise
        draw = rows.repeat_interleave(self.votes)
        vote = torch.arange(self.votes, device=noisy.device).repeat(len(noisy))
        return draw, noise.to(noisy.device).rows(draw, vote + 1)
