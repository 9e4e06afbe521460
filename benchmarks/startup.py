"""Processor seconds of `diffproof certify` on one digit, start-up and all, over those of `import torch`.

Each is a process of its own, in turn; the medians and their ratio are printed.
"""

from __future__ import annotations

import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile

ROUNDS = 5
CERTIFY = (
    "-m diffproof certify --data digits --denoiser digits --classifier digits --defense dds --sigma 0.5"
    " --indices 0 --n0 1 --n 1 --out"
)


def processor_seconds(arguments: list[str]) -> float:
    """What a fresh interpreter takes, all of its threads together."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print both medians and the ratio."""
    torch, certify = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            torch.append(processor_seconds(["-c", "import torch"]))
            certify.append(processor_seconds([*shlex.split(CERTIFY), os.path.join(folder, str(number))]))
    one, other = statistics.median(torch), statistics.median(certify)
    print(f"import torch {one:.2f} s, diffproof certify {other:.2f} s: {other / one:.2f} times")


if __name__ == "__main__":
    main()
