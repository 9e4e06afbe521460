"""The main job on the packaged digits: certified accuracy of plain smoothing, DDS and DensePure.

Nine runs (three methods at three noise levels) over the same 50 test images, with sizes and seed fixed here.
An interrupted run continues where it stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

from diffproof.cli.main import guarded
from diffproof.cli.progress import run_with_progress
from diffproof.cli.tables import print_report
from diffproof.runs.certify.figures import write_report
from diffproof.runs.certify.job import prepare
from diffproof.runs.certify.report import load_report
from diffproof.runs.settings import CertifySettings

FOLDER = Path("demo")
SIGMAS = (0.25, 0.5, 1.0)
DEFENSES = ("none", "dds", "densepure:steps=2,votes=5")
RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)


def main() -> None:
    """Certify, compare, and say where everything is."""
    folders = []
    for sigma in SIGMAS:
        for defense in DEFENSES:
            settings = CertifySettings(
                seed=0,
                data="digits",
                indices="0:500:10",
                denoiser=None if defense == "none" else "digits",
                classifier="digits",
                defense=defense,
                sigma=sigma,
                n0=30,
                n=300,
                batch_size=1024,
            )
            folder = FOLDER / f"{defense.partition(':')[0]}-{sigma:g}"
            run_with_progress(prepare(settings), folder)
            folders.append(folder)
    report = load_report(folders, RADII)
    written = write_report(report, FOLDER / "report", force=True)
    print_report(report)
    print("run folders:", *folders, sep="\n  ")
    print("written:", *written, sep="\n  ")


if __name__ == "__main__":
    sys.exit(guarded(main))
