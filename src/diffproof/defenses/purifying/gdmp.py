"""GDMP: purification guided by the likeness to the input, in several rounds (Wang et al. 2022)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from torch import Tensor, nn

from diffproof.checks import check_at_least, check_member, check_positive
from diffproof.defenses.purifying.coordinates import papers_state
from diffproof.defenses.purifying.reverse_process import Draw, Purification, StepLevels, potential_gradient
from diffproof.denoisers.base import Denoiser, Estimate
from diffproof.errors import ArgumentError
from diffproof.noise import MAX_STEP
from diffproof.optional import import_optional
from diffproof.reverse.solvers import Solver, largest_variance, last_variance


class Likeness(StrEnum):
    """What pulls the purified image towards the input.

    MSE: minus the mean squared error.
    SSIM: structural similarity (Wang et al. 2004), a Gaussian window of 11 pixels, or of the largest odd
        number that fits into the image.
    """

    MSE = "mse"
    SSIM = "ssim"


class Variance(StrEnum):
    """Σ of DDPM's step, that of its noise and of its guidance.

    POSTERIOR: what the network learned, or β̃; the step to the image has neither.
    LARGE: β, "fixed large", as in the authors' configurations; in the step to the image, which has no noise,
        the guidance has β̃ of the step before.
    """

    POSTERIOR = "posterior"
    LARGE = "large"


# Scales of the authors' CIFAR-10 configurations, for likenesses that are means over 3·32·32 values.
_SCALES = {Likeness.MSE: 60_000.0, Likeness.SSIM: 70_000.0}
_CIFAR10_VALUES = 3 * 32 * 32
_WINDOW = 11
# Pixels of the papers lie in [−1, 1].
_RANGE = 2.0


class GDMP(Purification):
    """Diffuse and denoise, guided by the input diffused to the same level (Wang et al. 2022).

    With x_t the papers' state and x'_t the defence's input, diffused afresh at each step, a step's mean moves
    by s_t·Σ·∇G(x_t, x'_t), G the likeness of each image on its own, s_t = √(1 − ᾱ_t)/(m·√ᾱ_t) and
    m = (2·budget/3)/scale. The authors' code averages the likeness over the batch, so that their guidance
    weakens with its size; here it is that of a batch of one.

    Args:
        denoiser: see Purification.
        classifier: see Purification.
        t_star: noise level of each round, as a time in (0, 1].
        rounds: how many rounds, ≥ 1.
        steps: denoiser evaluations of a round, ≥ 1; None for one a timestep.
        solver: see Solver.
        likeness: what pulls towards the input; see Likeness. SSIM needs pytorch-msssim.
        scale: strength of the guidance, > 0, as in the authors' configurations; None for theirs of CIFAR-10
            (60,000 for MSE, 70,000 for SSIM) in proportion to the image's values: as strong on each pixel.
            Longer steps and higher noise levels have a larger Σ, and overshoot unless the scale is smaller.
        budget: ℓ∞ bound of the perturbations to remove, > 0, in [0, 1] pixels.
        variance: Σ of the steps of DDPM, the only solver that has a choice; see Variance.

    Raises:
        ValueError: an argument is out of range, pytorch-msssim is missing, or the solver has no variance
            LARGE.
    """

    method = "gdmp"

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: nn.Module,
        *,
        t_star: float = 0.036,
        rounds: int = 4,
        steps: int | None = None,
        solver: Solver | str = Solver.DDPM,
        likeness: Likeness | str = Likeness.MSE,
        scale: float | None = None,
        budget: float = 8 / 255,
        variance: Variance | str = Variance.POSTERIOR,
    ) -> None:
        check_at_least("rounds", rounds, 1, MAX_STEP // 2)
        super().__init__(
            denoiser,
            classifier,
            t_star=[t_star] * rounds,
            steps=None if steps is None else [steps] * rounds,
            solver=solver,
        )
        self.likeness = check_member("likeness", likeness, Likeness)
        if self.likeness is Likeness.SSIM:
            import_optional("pytorch_msssim", "gdmp")
        self.scale = None if scale is None else check_positive("scale", scale)
        self.budget = check_positive("budget", budget)
        self.variance = check_member("variance", variance, Variance)
        if self.variance is Variance.LARGE and self.solver is not Solver.DDPM:
            given = f"the solver {self.solver.value} has its own; expected posterior, got large"
            raise ArgumentError("variance", given)

    def score_shift(self, noisy: Tensor, sigma: float, images: Tensor, draw: Draw) -> Tensor:
        """s_t·∇G of the state and the input at its noise level."""
        guide = papers_state(images + sigma * draw(), sigma)

        def likeness(state: Tensor) -> Tensor:
            if self.likeness is Likeness.MSE:
                return -(papers_state(state, sigma) - guide).square().flatten(1).mean(1)
            return _structural_similarity(papers_state(state, sigma), guide)

        scale = self.scale
        if scale is None:
            scale = _SCALES[self.likeness] * noisy[0].numel() / _CIFAR10_VALUES
        strength = 2 * sigma * scale / (2 * self.budget / 3)
        return strength * potential_gradient(likeness, noisy)

    def step_variance(self, estimate: Estimate, levels: StepLevels) -> Tensor | None:
        """See Purification; of LARGE one number for all pixels."""
        if self.variance is Variance.POSTERIOR:
            return super().step_variance(estimate, levels)
        _, sigma, next_sigma = levels
        if next_sigma > 0.0:
            return estimate.clean.new_tensor(largest_variance(sigma, next_sigma))
        return estimate.clean.new_tensor(last_variance(sigma, levels.before))

    def settings(self) -> dict[str, Any]:
        """Those of the purification, and of its guidance."""
        return super().settings() | {
            "likeness": self.likeness.value,
            "scale": self.scale,
            "budget": self.budget,
            "variance": self.variance.value,
        }


def _structural_similarity(images: Tensor, others: Tensor) -> Tensor:
    """N values; images N×C×H×W in the papers' pixels."""
    import pytorch_msssim

    fitting = min(_WINDOW, images.shape[2], images.shape[3])
    window = fitting - 1 + fitting % 2
    similarity: Tensor = pytorch_msssim.ssim(
        images, others, data_range=_RANGE, size_average=False, win_size=window
    )
    return similarity
