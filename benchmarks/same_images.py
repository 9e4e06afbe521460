"""Two certification runs on the images that they share: accuracy, wrong labels certified, who is ahead.

python benchmarks/same_images.py RUN OTHER [--at 0,0.1,0.25,0.5,0.75,1]
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from scipy.stats import binomtest

from diffproof.runs.certify.store import CertifyStore, ImageResult


def radii(results: list[ImageResult]) -> dict[int, float]:
    """The certified radius of each image, −1 where the label is wrong or none."""
    return {one.image_index: one.certificate.radius if one.correct else -1.0 for one in results}


def compare(what: str, run: set[int], other: set[int]) -> str:
    """Images of one run and not of the other, and whether that may be chance."""
    gained, lost = len(run - other), len(other - run)
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return f"{what}: {len(run)} and {len(other)}, {gained} gained, {lost} lost, sign test p = {p:.2g}"


def read(folder: Path) -> list[ImageResult]:
    """The results of a run folder."""
    with CertifyStore.reading(folder) as store:
        return store.results()


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--at", default="0,0.1,0.25,0.5,0.75,1", help="radii, with commas between")
    given = parser.parse_args()
    found = [read(given.run), read(given.other)]
    runs = [radii(results) for results in found]
    shared = sorted(runs[0].keys() & runs[1].keys())
    pairs = [(runs[0][index], runs[1][index]) for index in shared]
    print(f"{len(shared)} images")
    for which, folder in enumerate((given.run, given.other)):
        mine = [pair[which] for pair in pairs]
        shares = [sum(r >= float(at) for r in mine) / len(mine) for at in given.at.split(",")]
        average = sum(max(r, 0.0) for r in mine) / len(mine)
        print(f"{folder.name}: " + " ".join(f"{share:.1%}" for share in shares) + f", ACR {average:.3f}")
    right, wrong = (
        [
            {one.image_index for one in results if one.image_index in shared and one.correct is of}
            & {one.image_index for one in results if not one.certificate.abstained}
            for results in found
        ]
        for of in (True, False)
    )
    print(compare("certified at 0", *right))
    print(compare("wrong labels certified", *wrong))
    # Between two neighbouring radii the difference is that at the larger one.
    ends = sorted({0.0, *(r for pair in pairs for r in pair if r >= 0)})
    leads = [(end, sum(a >= end for a, _ in pairs) - sum(b >= end for _, b in pairs)) for end in ends]
    start = 0.0
    for lead, stretch in itertools.groupby(leads, key=lambda item: item[1]):
        end = [end for end, _ in stretch][-1]
        print(f"{start:.3f} to {end:.3f}: {lead:+d} images")
        start = end


if __name__ == "__main__":
    main()
