"""The benchmark of a device, on the CPU at toy size: it measures, keeps what it has measured, and goes on."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from helpers.paths import EXAMPLES

FLAGS = "--device cpu --networks small --batches 2,4 --draws 2 --votes 3 --steps 2"


@pytest.mark.slow
@pytest.mark.usefixtures("all_seeds_given")
def test_lines_are_measured_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmarks = EXAMPLES.parent / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))
    main = runpy.run_path(str(benchmarks / "device.py"))["main"]
    main.__globals__["ROUNDS"] = 1
    kept = tmp_path / "device.json"
    main([*FLAGS.split(), "--out", str(kept), "--seconds", "0"])
    assert not kept.exists()
    assert capsys.readouterr().out.count("not measured yet") == 8
    main([*FLAGS.split(), "--out", str(kept)])
    lines = json.loads(kept.read_text())
    assert len(lines) == 8
    # One device, one precision: the same numbers and labels.
    assert [value for name, value in lines.items() if "CPU" in name] == [
        "0 of 256 numbers differ",
        "0 of 256 numbers differ",
        "at least 0 of 4 labels differ",
    ]
    assert all(" of bare networks, noise " in value for name, value in lines.items() if "batch" in name)
    lines["DDS, float32, batch 2"] = "kept"
    kept.write_text(json.dumps(lines))
    capsys.readouterr()
    main([*FLAGS.split(), "--out", str(kept)])
    assert "DDS, float32, batch 2: kept" in capsys.readouterr().out
