"""The benchmark that compares what denoisers learn in an equal time, on digits cut down."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

import diffproof as dp
from diffproof.denoisers.network import NetworkDenoiser
from diffproof.training.denoiser import denoising_errors
from helpers.paths import ROOT

pytestmark = pytest.mark.slow


def test_choices_are_compared_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "benchmarks" / "denoiser_choices.py"))["main"]
    out = tmp_path / "choices"
    line = (
        f"--out {out} --data digits --extra-data digits --classifier digits --held-out 20 --iterations 4"
        " --batch-size 8 --choices edm"
    ).split()
    main([*line, "edm, narrower"])
    table = capsys.readouterr().out.splitlines()
    first, narrower = (row.split(" | ") for row in table if row.startswith("| edm"))
    assert first[:2] == ["| edm", "4"]
    # What is smaller takes more steps in the same time.
    assert int(narrower[1]) > 4
    denoiser = dp.load_denoiser(str(out / "edm.safetensors"))
    assert isinstance(denoiser, NetworkDenoiser)
    data = dp.load_data("digits")
    held_out = data.select(range(len(data) - 20, len(data)))
    errors = denoising_errors(denoiser, held_out, (0.12, 0.25, 0.5, 1.0), 0)
    assert [float(cell) for cell in first[2:6]] == pytest.approx(errors, abs=1e-4)
    # The same again trains and measures nothing.
    kept = out / "edm.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"errors": [9.0] * 4}))
    before = (out / "edm.safetensors").stat().st_mtime_ns
    main(line)
    assert "| 9.0000 | 9.0000 |" in capsys.readouterr().out
    assert (out / "edm.safetensors").stat().st_mtime_ns == before
