"""ADP: purification along the score in steps that adapt to the image (Yoon et al. 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffproof import gradients
from diffproof.checks import MOST_ROWS, check_at_least, check_not_negative, check_positive
from diffproof.defenses.base import Defense, noise_for
from diffproof.defenses.purifying.base import Purifier, Purify
from diffproof.denoisers.base import Denoiser
from diffproof.noise import MAX_VOTE, Noise

# Of the authors: how far along the score its change is measured, the steps that are taken at least and at
# most, and the step from which an image counts as purified.
_PROBE = 1e-3
_LEAST, _MOST = 1e-5, 0.1
_DONE = 1e-3


class ADP(Purifier):
    """Noise, then x ← clip(x + α·s(x)) with α = λ·ε/(1 − z), z = ⟨s(x), s(x + ε·s(x))⟩/‖s(x)‖².

    α is λ of the way to the mode of a Gaussian (Yoon et al. 2021, algorithm 1; purification/adp.py of the
    released code, with its bounds 1e-5 ≤ α ≤ 0.1). An image stays where it is once α ≤ 0.001. The logits of
    several purifications, each under noise of its own, are averaged.

    The authors' score network knows no noise level, and its score is right up to a factor; here it is that
    of the denoiser at one level, (D(x) − x)/σ_s².

    Args:
        denoiser: any denoiser; its unconditional estimate is used.
        classifier: see Defense.
        sigma: standard deviation of the noise that is added first, of [0, 1] pixels, ≥ 0.
        score_sigma: σ_s, the noise level whose score is followed, of [0, 1] pixels.
        steps: most steps that an image takes, ≥ 1.
        rate: λ, > 0.
        samples: purifications whose logits are averaged, ≥ 1.

    Raises:
        ValueError: an argument is out of range, or the denoiser does not know the noise level.
    """

    method = "adp"

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: nn.Module,
        *,
        sigma: float = 0.25,
        score_sigma: float = 0.25,
        steps: int = 10,
        rate: float = 0.05,
        samples: int = 10,
    ) -> None:
        super().__init__(denoiser, classifier)
        self.sigma = check_not_negative("sigma", sigma)
        self.score_sigma = check_positive("score_sigma", score_sigma)
        denoiser.check_sigma(score_sigma)
        self.steps = check_at_least("steps", steps, 1, MOST_ROWS)
        self.rate = check_positive("rate", rate)
        self.samples = check_at_least("samples", samples, 1, MAX_VOTE)
        self.random = sigma > 0 or (isinstance(classifier, Defense) and classifier.random)

    @property
    def evaluations(self) -> int:
        """Denoiser evaluations of one purification of an image."""
        return 2 * self.steps

    @property
    def rows_per_image(self) -> int:
        """A row for each purification."""
        return self.samples * super().rows_per_image

    def purify(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """As any purifier's: one purification of each image."""
        noise = noise_for(images, noise)
        self.check_networks(images)

        def begin(state: Tensor, images: Tensor) -> Tensor:
            return (state + self.sigma * noise.normal(state.shape[1:], 0, state.dtype)).clamp(0.0, 1.0)

        return gradients.checkpointed(images, [begin, *[self._step] * self.steps])

    def predict_labels(
        self, images: Tensor, noise: Noise | None = None, batch_size: int | None = None
    ) -> Tensor:
        """As any defence's: those of the averaged logits."""
        return Defense.predict_labels(self, images, noise, batch_size)

    def respond_by(self, purify: Purify, images: Tensor, noise: Noise) -> Tensor:
        """The mean of the logits of all purifications; see Purifier."""
        row = torch.arange(len(images), device=images.device).repeat_interleave(self.samples)
        vote = torch.arange(self.samples, device=images.device).repeat(len(images))
        logits = super().respond_by(purify, images[row], noise.rows(row, vote))
        return logits.reshape(len(images), self.samples, -1).mean(1)

    def settings(self) -> dict[str, Any]:
        """Method, noise levels, steps, rate and purifications."""
        return {
            "method": self.method,
            "sigma": self.sigma,
            "score_sigma": self.score_sigma,
            "steps": self.steps,
            "rate": self.rate,
            "samples": self.samples,
        }

    def _score(self, state: Tensor) -> Tensor:
        clean: Tensor = self.denoiser(state, self.score_sigma)
        return (clean - state) / self.score_sigma**2

    def _step(self, state: Tensor, images: Tensor) -> Tensor:
        score = self._score(state)
        length = score.square().flatten(1).sum(1)
        # ‖s‖²·(1 − z), by the difference: z itself would round it away.
        fallen = (score * (score - self._score(state + _PROBE * score))).flatten(1).sum(1)
        tiny = torch.finfo(state.dtype).tiny
        # Where the score grows, z > 1, there is no mode ahead, and the image stays.
        step = self.rate * _PROBE * length / torch.where(fallen == 0, tiny, fallen)
        step = step.clamp(_LEAST, _MOST)
        moved = (state + step[:, None, None, None] * score).clamp(0.0, 1.0)
        return torch.where((step > _DONE)[:, None, None, None], moved, state)
