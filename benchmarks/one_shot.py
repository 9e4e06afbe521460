"""Accuracy of a classifier on noisy images, without and with one-shot denoising: one draw an image.

python benchmarks/one_shot.py DATA CLASSIFIER DENOISER
"""

from __future__ import annotations

import sys

import diffproof as dp
from diffproof.training.classifier import accuracy
from diffproof.training.finetune import denoised_accuracy

SIGMAS = (0.12, 0.25, 0.5)


def main(data: str, classifier_spec: str, denoiser_spec: str) -> None:
    """Print a line for each sigma."""
    images, classifier = dp.load_data(data), dp.load_classifier(classifier_spec)
    denoiser = dp.load_denoiser(denoiser_spec)
    print(f"{len(images)} images; clean {accuracy(classifier, images):.1%}")
    for sigma in SIGMAS:
        noisy = accuracy(classifier, images, sigma, seed=0)
        denoised = denoised_accuracy(classifier, denoiser, images, sigma, seed=0)
        print(f"sigma = {sigma:g}: noisy {noisy:.1%}, denoised {denoised:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
