"""A user's own objective, from its module to a certificate: trained, interrupted, continued, recorded."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
import torch

import diffproof as dp
from diffproof.cli.main import run
from diffproof.weights import load_weights
from helpers.training import losses_of

pytestmark = pytest.mark.usefixtures("small_digits")

MODULE = '''
from dataclasses import dataclass
from pathlib import Path

import diffproof as dp


@dataclass(frozen=True)
class Focal(dp.Objective):
    """Cross-entropy of two draws, weighted by (1 - p_y)^gamma."""

    name = "focal"
    gamma: float = 2.0
    draws: int = 2

    def loss(self, step):
        """The mean."""
        seen = Path("seen")
        seen.write_text(seen.read_text() + "x" if seen.exists() else "x")
        if Path("stop").exists() and len(seen.read_text()) == 4:
            raise ZeroDivisionError("as a kill")
        own = step.log_probabilities(step.images).gather(2, step.labels[:, None, None].expand(-1, 2, 1))
        return (-((1 - own.exp()) ** self.gamma) * own).mean()
'''
TRAIN = "train classifier --data digits --limit 60 --width 4 --batch-size 6 --noise-sigma 0.25 --iterations 6"


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module lies in the current folder, which nothing was loaded from yet."""
    (tmp_path / "own_losses.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_losses", raising=False)


def trained(out: str, text: str = "own_losses:Focal:gamma=3") -> int:
    return run(shlex.split(f"{TRAIN} --objective {text} --checkpoint-every 1e-9 --out {out}.safetensors"))


@pytest.mark.slow
def test_it_trains_goes_on_and_certifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trained("whole") == 0
    seen = tmp_path / "seen"
    assert len(seen.read_text()) == 6
    seen.unlink()
    (tmp_path / "stop").touch()
    with pytest.raises(ZeroDivisionError):
        trained("parts")
    # Another setting of it is another training.
    capsys.readouterr()
    assert trained("parts", "own_losses:Focal:gamma=4") == 2
    assert "of another training: objective.gamma (3" in " ".join(capsys.readouterr().err.split())
    assert trained("parts") == 0
    # Three losses before the stop, which is no loss, and three after it.
    assert len(seen.read_text()) == 7
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert losses_of(whole) == losses_of(parts)
    for name, tensor in load_weights(whole).tensors.items():
        assert torch.equal(tensor, load_weights(parts).tensors[name])
    training = load_weights(whole).description["training"]
    assert training["objective"].startswith("own_losses:Focal:")
    assert "gamma=3" in training["objective"]
    # The first loss is the formula of the untrained network.
    assert losses_of(whole)[0] == pytest.approx(0.9**3 * 2.3, rel=0.2)
    line = f"certify --data digits --indices 0:2 --defense none --classifier {whole} --sigma 0.25"
    assert run(shlex.split(f"{line} --n0 5 --n 20 --out run")) == 0


@pytest.mark.slow
def test_it_fine_tunes() -> None:
    small = "--data digits --limit 40 --batch-size 4 --iterations 2 --sigma 0.25"
    line = f"finetune {small} --classifier digits --denoiser digits --objective own_losses:Focal"
    assert run(shlex.split(f"{line} --out w.safetensors")) == 0
    assert dp.load_classifier("w.safetensors").num_classes == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("own_losses:Focl", "--objective: module own_losses has no class Focl"),
        ("own_losses:Focal:gama=3", "--objective: gama: no setting of"),
        ("own_losses:Path", "--objective: expected a class that own_losses defines itself"),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained("w", text) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"diffproof: error: {message}")
    assert told.count("\n") == 1
