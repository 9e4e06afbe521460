"""Sizes that no memory holds: refused in one line that names the flag, before anything is filled."""

from __future__ import annotations

import shlex

import pytest

from diffproof.memory import check_batch, memory
from helpers.command_line import Refused

TRAIN = "--data digits --limit 40 --iterations 1 --out w.safetensors"
CERTIFY = "certify --data digits --indices 0:1 --classifier digits --defense none --sigma 0.25 --out run"
ATTACK = "attack --data digits --classifier digits --defense none --threat linf --budget 0.1 --out run"
TOO_LARGE = "training so large a network does not fit into memory, which bears 800,000,000 parameters"
BATCH = "2,000,000,000 images of 1×8×8 (channels×height×width) take 1,536.0 GB, the memory has 16.0 GB"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"train denoiser {TRAIN} --channels 8192 --layers 50", f"--channels, --layers: {TOO_LARGE}"),
        (f"train denoiser {TRAIN} --layers 99999999", "--layers: expected at most 1000, got 99999999"),
        (f"train classifier {TRAIN} --width 99999999", f"--width: {TOO_LARGE}"),
        (f"train guide {TRAIN} --width 6000", f"--width: {TOO_LARGE}"),
        (f"train guide {TRAIN} --inner-steps 50001", "--inner-steps: expected at most 50000, got 50001"),
        (f"train classifier {TRAIN} --batch-size 2000000000", f"--batch-size: {BATCH}"),
        (f"{CERTIFY} --n 4000000000 --batch-size 2000000000", f"--batch-size: {BATCH}"),
        (
            f"{ATTACK} --indices 0:40 --attack pgd:eot=50000 --batch-size 2000000000",
            "--batch-size: 2,000,000 images of 1×8×8 (channels×height×width) take 1.5 GB, the memory has"
            " 1.0 GB",
        ),
    ],
)
def test_sizes_beyond_memory(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.setattr("diffproof.memory.memory", lambda: 1e9 if "attack" in line else 16e9)
    assert refused(shlex.split(line)) == message


def test_a_batch_that_fits() -> None:
    rows = int(memory() / 2 / (12 * 3 * 32 * 32))
    check_batch(rows, (3, 32, 32))
    with pytest.raises(ValueError, match=r"^batch_size: "):
        check_batch(3 * rows, (3, 32, 32))
