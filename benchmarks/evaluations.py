"""Denoiser evaluations that DensePure spends over the naive K·b a draw, on digits at sigma = 0.5."""

from __future__ import annotations

import torch

import diffproof as dp

IMAGES = range(0, 500, 50)
SIGMA = 0.5


def main() -> None:
    """Print the ratios, each over the same images."""
    images = dp.load_data("digits").images
    denoiser, classifier = dp.load_denoiser("digits"), dp.load_classifier("digits")
    print(f"denoiser evaluations / (votes·steps), {len(IMAGES)} test images, sigma = {SIGMA}")
    for votes, steps, n in ((40, 10, 50), (10, 2, 500)):
        smoothed = dp.Smoothed(dp.DensePure(denoiser, classifier, steps=steps, votes=votes), SIGMA)
        certificates = [
            smoothed.certify(images[i], n0=50, n=n, seed=0, image_index=i, batch_size=512) for i in IMAGES
        ]
        spent = torch.tensor([c.denoiser_evaluations for c in certificates]).sum()
        naive = torch.tensor([c.naive_denoiser_evaluations for c in certificates]).sum()
        print(f"K = {votes}, b = {steps}: {spent:,} of {naive:,} = {float(spent / naive):.3f}")


if __name__ == "__main__":
    main()
