"""The benchmark against the loop of DensePure's authors, at toy size: what it measures, and going on."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

import diffproof as dp
from helpers.paths import ROOT

METHODS = ["dds", "densepure:steps=2,votes=3,consensus=2"]
RADII = [0.0, 0.25]
N0, N = 8, 40


@pytest.mark.slow
@pytest.mark.usefixtures("small_digits", "all_seeds_given")
def test_both_are_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "benchmarks" / "densepure_loop.py"))["main"]
    out = tmp_path / "loop"
    flags = f"--sigma 0.7 --n0 {N0} --n {N} --batch 64 --block 2 --checked-draws 16 --out {out}".split()
    flags += ["--radii", *map(str, RADII), "--methods", *METHODS]
    main([*flags, "--images", "3", "--seconds", "0"])
    assert capsys.readouterr().out.count("nothing measured yet") == 2

    main([*flags, "--images", "3", "--fixed-images", "2"])
    printed = capsys.readouterr().out
    rows = json.loads((out / "loop.json").read_text())["rows"]
    # Two blocks of each method, and a check and an image of the loop's for each without consensus.
    assert len(rows) == 4 + 4 + 4
    assert [row["same"] for name, row in rows.items() if name.startswith("check")] == [16] * 4
    assert "dds, 3 images: " in printed
    assert f"than the loop's {(N0 + N) * 3 * 2:,}," in printed

    # What the loop certifies is what the same draws do without an end.
    data = dp.load_data("digits")
    denoiser, classifier = dp.load_denoiser("digits"), dp.load_classifier("digits")
    for method in ("dds", "densepure:steps=2,votes=3"):
        defense = dp.load_defense(method, denoiser=denoiser, classifier=classifier)
        smoothed = dp.Smoothed(defense, 0.7, levels=data.levels)
        found = {name: row for name, row in rows.items() if name.startswith(f"fixed {method} ")}
        assert len(found) == 2
        for name, row in found.items():
            index = int(name.rpartition(" ")[2])
            certificate = smoothed.certify(data.images[index], n0=N0, n=N, seed=0, image_index=index)
            right = certificate.label == int(data.labels[index])
            assert row["certified"] == [right and certificate.radius >= radius for radius in RADII]

    main([*flags, "--images", "4", "--fixed-images", "2"])
    later = json.loads((out / "loop.json").read_text())["rows"]
    assert rows.items() <= later.items()
    # The block of one image has become one of two, and its seconds are of a part of it.
    assert sorted(name for name in later if name not in rows) == sorted(
        name.replace("+1", "+2") for name in rows if name.endswith("+1")
    )
    assert [later[name]["seconds"] for name in later if name not in rows] == [None, None]
    assert "4 images" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="other settings"):
        main([*flags, "--images", "3", "--n", "500"])
