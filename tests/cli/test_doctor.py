"""diffproof doctor: what is installed, in a line each; a self-test that would notice a wrong count."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from scipy.stats import beta, norm
from torch import Tensor

import diffproof as dp
from diffproof import doctor
from diffproof.cli.main import run


@pytest.mark.slow
def test_a_sound_installation_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"diffproof 0.1.0, Python {sys.version.split()[0]} on ")
    assert f"torch {torch.__version__}" in lines[1]
    assert any(line.startswith("devices: cpu (") for line in lines)
    assert ": passed; a digit has label 0 within 0.4545, counts (180, 0, 0, 1, 2," in lines[-1]


def test_the_radius_follows_from_the_count() -> None:
    assert pytest.approx(0.5 * norm.ppf(beta.ppf(0.001, 180, 200 - 180 + 1)), abs=1e-6) == doctor._RADIUS
    assert sum(doctor._COUNTS) == doctor._N == 200


def test_no_draw_of_the_self_test_is_near_a_boundary() -> None:
    images, _ = dp.load_data("digits", split="test", indices="36")
    classifier, gaps = dp.load_classifier("digits"), list[Tensor]()

    def watch(_module: object, _inputs: object, logits: Tensor) -> None:
        first, second = logits.detach().topk(2, 1).values.unbind(1)
        gaps.append(first - second)

    classifier.register_forward_hook(watch)
    smoothed = dp.Smoothed(dp.DDS(dp.load_denoiser("digits"), classifier), sigma=0.5)
    assert smoothed.certify(images[0], n0=20, n=200, image_index=36).counts == doctor._COUNTS
    assert float(torch.cat(gaps).min()) > 0.5


def test_another_count_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # Another seed stands for networks that compute something else.
    monkeypatch.setattr(doctor, "_SEED", 1)
    assert run(["doctor", "--device", "cpu"]) == 1
    assert ": failed; a digit has label 0 " in capsys.readouterr().out.splitlines()[-1]


def test_what_is_missing_is_told_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "diffproof-0.1.0.dist-info"
    folder.mkdir()
    asked = ["click>=8.1", "torch>=99", "nowhere-to-be-found>=1.5", "rich; extra == 'web'"]
    asked += ["absent-library>=2; extra == 'web'", "absent-library; extra == 'dev'"]
    lines = ["Metadata-Version: 2.1", "Name: diffproof", "Version: 0.1.0", "Provides-Extra: web"]
    lines += [
        "Provides-Extra: robustbench",
        "Provides-Extra: dev",
        *(f"Requires-Dist: {one}" for one in asked),
    ]
    (folder / "METADATA").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run(["doctor"]) == 1
    told = capsys.readouterr().out
    assert "\nextra web: rich " in told
    assert ", absent-library (missing); pip install 'diffproof[web]'\n" in told
    line = "pip install 'diffproof[robustbench]' 'robustbench>=1.1.1'\n"
    assert f"\nextra robustbench: robustbench (missing); {line}" in told
    assert "extra dev" not in told
    last = told.splitlines()[-1]
    assert last.startswith(
        f"not tested: torch {torch.__version__} (wanted: >=99), nowhere-to-be-found (missing)"
    )
    assert last.endswith("; pip install 'torch>=99' 'nowhere-to-be-found>=1.5'")


def test_caches_are_measured_where_the_environment_puts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "tables"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "torch" / "hub" / "checkpoints" / "net.pt").write_bytes(bytes(1234))
    (tmp_path / "torch" / "hub" / "link").symlink_to(tmp_path)
    found = {cache.folder: cache.bytes for cache in doctor.caches()}
    assert found[tmp_path / "tables"] is None
    size = found[tmp_path / "torch" / "hub"]
    # The link itself may take a few bytes.
    assert size is not None
    assert 1234 <= size < 1234 + 4096


def test_a_device_of_no_kind_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--device", "tpu"]) == 2
    assert "--device: expected auto, cpu, cuda, cuda:N or mps, got 'tpu'" in capsys.readouterr().err
