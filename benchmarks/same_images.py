"""Two certification runs on the images that they share: accuracy at some radii, and where one is behind.

python benchmarks/same_images.py RUN OTHER [--at 0,0.1,0.25,0.5,0.75,1]
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from scipy.stats import binomtest

from diffproof.runs.certify.store import CertifyStore


def radii(folder: Path) -> dict[int, float]:
    """The certified radius of each image, −1 where the label is wrong or none."""
    with CertifyStore.reading(folder) as store:
        results = store.results()
    return {one.image_index: one.certificate.radius if one.correct else -1.0 for one in results}


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--at", default="0,0.1,0.25,0.5,0.75,1", help="radii, with commas between")
    given = parser.parse_args()
    runs = [radii(given.run), radii(given.other)]
    shared = sorted(runs[0].keys() & runs[1].keys())
    pairs = [(runs[0][index], runs[1][index]) for index in shared]
    print(f"{len(shared)} images")
    for which, folder in enumerate((given.run, given.other)):
        mine = [pair[which] for pair in pairs]
        shares = [sum(r >= float(at) for r in mine) / len(mine) for at in given.at.split(",")]
        average = sum(max(r, 0.0) for r in mine) / len(mine)
        print(f"{folder.name}: " + " ".join(f"{share:.1%}" for share in shares) + f", ACR {average:.3f}")
    gained = sum(a >= 0 > b for a, b in pairs)
    lost = sum(b >= 0 > a for a, b in pairs)
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    print(f"at 0: {gained} gained, {lost} lost, sign test p = {p:.2f}")
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
