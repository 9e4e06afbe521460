"""What any classifier of noisy digits could reach at sigma = 1, and what DDS and DensePure make of it.

The Bayes classifier over the training digits weighs each of them by its likelihood given the noisy image; no
labelling of single draws does better on that distribution.
"""

from __future__ import annotations

import torch

import diffproof as dp

SIGMA = 1.0
DRAWS = 50
IMAGES = range(0, 500, 10)


def main() -> None:
    """Print accuracy on single draws and the share of images whose true label gets over 60% of them."""
    train, test = dp.load_data("digits", split="train"), dp.load_data("digits", split="test")
    images, labels = test.images[list(IMAGES)], test.labels[list(IMAGES)]
    index = torch.arange(len(images)).repeat_interleave(DRAWS)
    noise = dp.Noise.for_rows(0, dp.Stream.PREDICTION, index, torch.arange(DRAWS).repeat(len(images)))
    noisy = images[index] + SIGMA * noise.normal(images.shape[1:], 0, torch.float32)
    denoiser, classifier = dp.load_denoiser("digits"), dp.load_classifier("digits")

    distance = torch.cdist(noisy.flatten(1), train.images.flatten(1)) ** 2
    weight = torch.softmax(-distance / (2 * SIGMA**2), dim=1)
    posterior = torch.zeros(len(noisy), 10).index_add_(1, train.labels, weight)
    given = {"Bayes": posterior.argmax(1)}
    with torch.no_grad():
        given["dds"] = dp.DDS(denoiser, classifier).labels(noisy, SIGMA, noise)
        for steps, votes in ((2, 5), (10, 10)):
            defense = dp.DensePure(denoiser, classifier, steps=steps, votes=votes)
            given[f"densepure b={steps} K={votes}"] = defense.labels(noisy, SIGMA, noise)
    print(f"{len(images)} test digits, {DRAWS} draws each, sigma = {SIGMA:g}")
    for name, guesses in given.items():
        right = (guesses == labels[index]).float()
        confident = (right.reshape(len(images), DRAWS).mean(1) > 0.6).float().mean()
        most = torch.bincount(guesses, minlength=10).max() / len(guesses)
        print(
            f"{name}: {right.mean():.1%} of draws right, true label on over 60% of draws for {confident:.0%}"
            f" of images, commonest label {most:.0%} of all"
        )


if __name__ == "__main__":
    main()
