"""Whole reverse processes: one-shot denoising and posterior samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from torch import Tensor

from diffproof.checks import check_finite, check_instance, check_listed, check_positive, check_unit, shown
from diffproof.denoisers.base import Denoiser, Estimate, check_denoiser
from diffproof.errors import ArgumentError
from diffproof.modes import check_evaluation_mode
from diffproof.noise import Noise
from diffproof.reverse.solvers import reverse_step


def first_estimate(
    denoiser: Denoiser, noisy: Tensor, sigma: float, *, label: Tensor | None = None, clip: bool = True
) -> Estimate:
    """The denoiser's estimate at the start of a reverse process, clipped to [0, 1] if `clip`."""
    clean, mix = denoiser.checked_estimate(noisy, sigma, label)
    return Estimate(clean.clamp(0.0, 1.0) if clip else clean, mix)


def one_shot(
    denoiser: Denoiser, noisy: Tensor, sigma: float, *, label: Tensor | None = None, clip: bool = True
) -> Tensor:
    """One-shot denoising (Carlini et al. 2023, algorithm 2): the estimate at sigma, clipped to [0, 1].

    Args:
        denoiser: any denoiser.
        noisy: N×C×H×W, image + sigma·N(0, I).
        sigma: its noise level in [0, 1] pixels.
        label: N integers to condition on, None for unconditional.
        clip: False leaves the estimate as it is, for exact denoisers of unbounded densities.

    Raises:
        ValueError: as the denoiser does.
    """
    check_finite(noisy)
    check_evaluation_mode(check_denoiser(denoiser), "denoiser")
    return first_estimate(denoiser, noisy, sigma, label=label, clip=clip).clean


def posterior_sample(
    denoiser: Denoiser,
    noisy: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    label: Tensor | None = None,
    eta: float = 1.0,
    clip: bool = True,
    start: Estimate | None = None,
) -> Tensor:
    """A sample of the image given the noisy image by the reverse process (DensePure, algorithm 1 and C.2).

    As the steps grow and with eta = 1 and an exact denoiser, the result's law tends to the posterior
    p(image | noisy). Gradients flow through every step.

    Args:
        denoiser: any denoiser.
        noisy: N×C×H×W, image + sigmas[0]·N(0, I).
        sigmas: descending noise levels, from `select_sigmas`.
        noise: one row a sample; its step i is the noise of the i-th reverse step, from 1.
        label: N integers to condition on, None for unconditional.
        eta: 1 for the ancestral process, 0 for DDIM.
        clip: clip each clean estimate, and so the result, to [0, 1].
        start: the estimate at sigmas[0], where the caller has it already.

    Returns:
        N×C×H×W.

    Raises:
        ValueError: as the denoiser and `reverse_step` do, no sigmas, or another number of noise rows.
    """
    if len(check_listed("sigmas", sigmas)) == 0:
        raise ArgumentError("sigmas", "expected at least one noise level")
    if start is None:
        # Else the caller has looked at what this takes, once for many samples.
        check_finite(noisy)
        check_evaluation_mode(check_denoiser(denoiser), "denoiser")
        check_instance("noise", noise, Noise, "a diffproof.Noise")
        sigmas = [check_positive("sigmas", sigma) for sigma in check_listed("sigmas", sigmas)]
        if any(later >= earlier for earlier, later in itertools.pairwise(sigmas)):
            raise ArgumentError("sigmas", f"expected descending noise levels, got {shown(sigmas)}")
        check_unit("eta", eta)
    estimate = first_estimate(denoiser, noisy, sigmas[0], label=label, clip=clip) if start is None else start
    steps = posterior_steps(
        denoiser, noisy, sigmas, noise, label=label, eta=eta, clip=clip, estimate=estimate
    )
    for _, later in steps:
        estimate = later
    return estimate.clean


def posterior_steps(
    denoiser: Denoiser,
    noisy: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    label: Tensor | None = None,
    eta: float = 1.0,
    clip: bool = True,
    estimate: Estimate,
    taken: int = 0,
) -> Iterator[tuple[Tensor, Estimate]]:
    """The sample of `posterior_sample` step by step: after each, the noisy images and their estimate.

    Args:
        denoiser: see `posterior_sample`.
        noisy: N×C×H×W at noise level sigmas[taken].
        sigmas: see `posterior_sample`.
        noise: see `posterior_sample`.
        label: see `posterior_sample`.
        eta: see `posterior_sample`.
        clip: see `posterior_sample`.
        estimate: the denoiser's of these images.
        taken: steps that led to them.

    Raises:
        ValueError: as `posterior_sample` does.
    """
    if eta != 0.0 and len(noise) != len(noisy):
        raise ArgumentError("noise", f"expected one row for each of {len(noisy)} images, got {len(noise)}")
    for i, (sigma, next_sigma) in enumerate(itertools.pairwise(sigmas[taken:]), start=taken + 1):
        normal = None if eta == 0.0 else noise.normal(noisy.shape[1:], i, noisy.dtype)
        variance = denoiser.learned_variance(estimate, sigma, next_sigma) if eta == 1.0 else None
        noisy = reverse_step(noisy, estimate.clean, sigma, next_sigma, normal, eta=eta, variance=variance)
        estimate = first_estimate(denoiser, noisy, next_sigma, label=label, clip=clip)
        yield noisy, estimate
