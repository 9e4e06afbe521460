"""Racing against whole sums: network evaluations, agreement and accuracy of a diffusion classifier.

    python benchmarks/racing.py [--denoiser digits] [--data digits] [--indices 0:512] [--errors 0.3,0.1,0.01]
        [--orders 1] [--bfloat16] [--losses FILE]

Computes every loss once (K·T network evaluations an image), replays races on them, and runs a few races on
the network itself to check that they are the same. FILE keeps the losses of the images that are done: the
same command continues it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import safetensors.torch
import scipy.stats
import torch
from torch import Tensor

import diffproof as dp
from diffproof.data.indices import parse_indices
from diffproof.defenses.diffusion_classifier.racing import informative_shares, race_terms
from diffproof.noise import Noise, Stream

CHECKED = 3
AT_ONCE = 16


def noise_of(indices: list[int], draw: int = 0) -> Noise:
    """The noise of images; the losses come from draw 0."""
    index = torch.tensor(indices)
    return Noise.for_rows(0, Stream.PREDICTION, index, torch.full_like(index, draw))


def losses_of(classifier: dp.DiffusionClassifier, images: Tensor, indices: list[int]) -> Tensor:
    """Every term of the images' sums, N×T×K float32."""
    noise = noise_of(indices)
    with torch.inference_mode():
        levels = range(len(classifier.loss.levels))
        return torch.stack([classifier.loss.level_losses(images, noise, level) for level in levels], 1)


def main() -> None:
    """Print a line for each error."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--denoiser", default="digits")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--indices", default=None)
    parser.add_argument("--errors", default="0.3,0.1,0.01")
    parser.add_argument("--orders", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--losses", type=Path, default=None)
    options = parser.parse_args()

    denoiser = dp.load_denoiser(options.denoiser)
    if options.bfloat16:
        denoiser = denoiser.to(torch.bfloat16)
    data = dp.load_data(options.data)
    indices = parse_indices(options.indices or f"0:{len(data)}", len(data))
    classifier = dp.DiffusionClassifier(denoiser)
    loss, classes = classifier.loss, classifier.num_classes

    file = options.losses
    kept = safetensors.torch.load_file(file) if file is not None and file.exists() else {}
    missing = [index for index in indices if str(index) not in kept]
    for start in range(0, len(missing), AT_ONCE):
        some = missing[start : start + AT_ONCE]
        found = losses_of(classifier, torch.stack([data.pixels[index] for index in some]), some)
        kept |= {str(index): losses.contiguous() for index, losses in zip(some, found, strict=True)}
        if file is not None:
            safetensors.torch.save_file(kept, file)
    table = torch.stack([kept[str(index)] for index in indices])

    truth = data.labels[indices]
    exact = (-table.double().sum(1)).argmax(1)
    whole = classes * len(loss.levels)
    print(
        f"{len(indices)} images, K·T = {whole:,}; whole sums: accuracy {(exact == truth).double().mean():.1%}"
    )
    shares = informative_shares(
        torch.tensor(loss.levels),
        torch.tensor([loss.share(level) for level in range(len(loss.levels))], dtype=torch.float64),
    )
    print("error   accuracy  mean ratio  median ratio  disagreements (95% Clopper–Pearson)")
    for error in (float(text) for text in options.errors.split(",")):
        races = [
            race_terms(
                lambda rows, terms, _: table[rows, terms],
                noise_of(indices, order),
                shares,
                torch.zeros(classes),
                error=error,
            )
            for order in range(options.orders)
        ]
        labels = torch.stack([one.labels for one in races])
        spent = torch.stack([one.evaluations for one in races]).double()
        # Every order of an image is one race; its images are what the interval counts.
        wrong = int((labels[0] != exact).sum())
        every = float((labels != exact).double().mean())
        interval = scipy.stats.binomtest(wrong, len(indices)).proportion_ci(method="exact")
        print(
            f"{error:<7g} {(labels == truth).double().mean():8.2%} {whole / spent.mean():11.1f}"
            f" {whole / spent.median():13.1f}  {wrong} of {len(indices)}"
            f" [{interval.low:.2%}, {interval.high:.2%}]; {every:.3%} over {options.orders} orders",
            flush=True,
        )
        first = indices[:CHECKED]
        images = torch.stack([data.pixels[index] for index in first])
        real = classifier.race(images, noise_of(first), error=error, batch_size=256)
        same = (real.labels == labels[0, :CHECKED]) & (real.evaluations == spent[0, :CHECKED])
        print(f"        on the network: {int(same.sum())} of {len(first)} races the same")


if __name__ == "__main__":
    main()
