"""The sound folder that every case begins with, and the sound command lines."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch

import diffproof as dp
from diffproof.cli.main import run
from diffproof.pictures import save_picture
from diffproof.weights import load_weights, packaged

NETWORKS = "--classifier classifier.safetensors"
DENOISER = "--denoiser denoiser.safetensors"
_CERTIFY = "certify --data data.npz --indices 0:2 --sigma 0.25 --n0 4 --n 8 --seed 0 --out out"
_ATTACK = (
    "attack --data data.npz --indices 0:2 --seed 0 --threat linf --budget 0.1 --attack pgd:iterations=2,eot=1"
    " --gradient exact --diagnose 0 --draws 2 --majority-of 2 --out out"
)
_TRAIN = "--data data.npz --test-data data.npz --iterations 2 --batch-size 4 --out out.safetensors"

# Each ends well, in a second or two, in the folder that `make` makes.
COMMANDS: dict[str, str] = {
    "certify": f"{_CERTIFY} {NETWORKS} --defense none",
    "certify dds": f"{_CERTIFY} {NETWORKS} {DENOISER} --defense dds",
    "certify config": f"certify --config config.yaml {NETWORKS} --out out",
    "certify densepure": f"{_CERTIFY} {NETWORKS} {DENOISER} --defense densepure:steps=1,votes=2",
    "plan certify": f"plan {_CERTIFY.removesuffix(' --out out')} {NETWORKS} --defense none --workers 3",
    "plan attack": f"plan {_ATTACK.removesuffix(' --out out')} {NETWORKS} --defense none",
    "attack": f"{_ATTACK} {NETWORKS} --defense none",
    "attack diffpure": f"{_ATTACK} {NETWORKS} {DENOISER} --defense diffpure:t_star=0.01,steps=1",
    "purify": f"purify pictures {DENOISER} --defense diffpure:t_star=0.01,steps=1 --out out",
    "sample": f"sample {DENOISER} --n 4 --steps 1 --out out.npz",
    "certify shard": f"{_CERTIFY} {NETWORKS} --defense none --shard 1/2",
    "merge": "merge out run-0 run-1",
    "report": "report run-a --out out",
    "report attack": "report run-b --out out",
    "report json": "report run-a --json",
    "report html": "report run-a --html out.html",
    "status": "status run-a run-b",
    "export": "export run-a --out out",
    "verify": "verify run-a",
    "verify attack": "verify run-b",
    "methods": "methods gdmp",
    "train classifier": f"train classifier {_TRAIN} --width 2",
    "train denoiser": f"train denoiser {_TRAIN} --channels 8,8",
    "train guide": f"train guide {_TRAIN} --width 2 --inner-steps 1",
    "finetune": f"finetune {NETWORKS} {DENOISER} --sigma 0.25 {_TRAIN}",
    "convert": "convert plain.pt out.safetensors",
    "certify folder": f"{_CERTIFY.replace('data.npz', 'classes')} {NETWORKS} --defense none",
    "data": "data data.npz",
    "data folder": "data classes",
    "data parquet": "data data.parquet",
    "certify parquet": f"{_CERTIFY.replace('data.npz', 'data.parquet')} {NETWORKS} --defense none",
}


# A stranger's module and package: whatever imports either leaves a file. And what links lead to.
STRANGE, RAN, VICTIM = "strange", "ran", "victim"
_LEAVES = f"""from pathlib import Path

Path({RAN!r}).touch()


def make():
    raise SystemExit
"""


def make(folder: Path) -> dict[str, object]:
    """Make the sound folder; what its runs hold, by command."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        images, labels = dp.load_data("digits", indices="0:20")
        np.savez("data.npz", images=(images.numpy() * 255).round().astype(np.uint8), labels=labels.numpy())
        for index in range(20):
            place = Path("classes", f"class{int(labels[index])}")
            place.mkdir(parents=True, exist_ok=True)
            save_picture(place / f"{index}.png", images[index])
        _write_parquet(Path("data.parquet"))
        Path(VICTIM).write_text("precious")
        for module in (f"{STRANGE}.py", "package/__init__.py", f"package/{STRANGE}.py"):
            Path(module).parent.mkdir(exist_ok=True)
            Path(module).write_text(_LEAVES)
        Path("pictures").mkdir()
        for index in range(2):
            save_picture(Path("pictures", f"{index}.png"), images[index])
        for kind in ("classifier", "denoiser"):
            shutil.copy(packaged(kind)["digits"], f"{kind}.safetensors")
        torch.save(load_weights(Path("classifier.safetensors")).tensors, "plain.pt")
        Path("config.yaml").write_text(
            "data: data.npz\nindices: 0:2\nsigma: 0.25\nn0: 4\nn: 8\ndefense: {name: none}\n"
        )
        density = {"means": [[0.3, 0.4], [0.7, 0.6]], "covariances": [0.002, 0.004], "labels": [0, 1]}
        Path("density.json").write_text(json.dumps(density))
        for name, run_folder in (("certify", "run-a"), ("attack diffpure", "run-b")):
            if run([*COMMANDS[name].replace("--out out", f"--out {run_folder}").split()]) != 0:
                raise RuntimeError(f"the sound {name} fails")
        for number in range(2):
            words = COMMANDS["certify shard"].replace("1/2", f"{number}/2").split()
            words[words.index("--out") + 1] = f"run-{number}"
            if run(words) != 0:
                raise RuntimeError("a sound shard fails")
    finally:
        os.chdir(before)
    return {}


def _write_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(Path("classes").rglob("*.png"))
    column = pa.array([{"bytes": file.read_bytes(), "path": file.name} for file in files])
    labels = pa.array([int(file.parent.name.removeprefix("class")) for file in files])
    pq.write_table(pa.table({"image": column, "label": labels}), path)
