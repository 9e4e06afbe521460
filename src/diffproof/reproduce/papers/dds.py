"""DDS, "(Certified!!) Adversarial Robustness for Free!" (Carlini et al. 2023)."""

from __future__ import annotations

from functools import partial

from diffproof.reproduce.certified import CIFAR_RADII, IMAGENET_RADII, CertifiedTable, Row
from diffproof.reproduce.entry import Entry, Unavailable

_table = partial(CertifiedTable, "DDS")
_imagenet = partial(CertifiedTable, "DDS", dataset="ImageNet", radii=IMAGENET_RADII, images=1000, n=10_000)
_AT_POSITIVE = CIFAR_RADII[1:]

ENTRIES: tuple[Entry, ...] = (
    _imagenet("1", "ImageNet, best over sigma", rows=[Row("DDS")], radii=IMAGENET_RADII[1:], best=True),
    _imagenet("2", "ImageNet, by sigma", rows=[Row("DDS")]),
    _table(
        "3",
        "CIFAR-10 with a ViT, best over sigma",
        rows=[
            Row("SmoothAdv extra data", "none", "smoothadv@{sigma}", None),
            Row("DDS", printed=" ViT"),
            Row("DDS finetuned", "dds", "finetuned@{sigma}", printed=" ViT"),
        ],
        radii=_AT_POSITIVE,
        best=True,
    ),
    _table("4a", "CIFAR-10 with a wide ResNet, by sigma", rows=[Row("DDS", printed=" WRN28-10")]),
    _table(
        "5",
        "CIFAR-10 with a wide ResNet that is fine-tuned on denoised images",
        rows=[Row("DDS finetuned", "dds", "finetuned@{sigma}", printed=" WRN28-10")],
        radii=_AT_POSITIVE,
        best=True,
    ),
    Unavailable(
        "DDS", "text", "Images a second", why="of their machine; benchmarks/device.py measures yours"
    ),
    _table(
        "text",
        "One shot beside several steps, which add detail that is not the image's",
        part="-steps",
        rows=[
            Row("DDS"),
            *(Row("DDS", f"densepure:steps={steps},votes=1", label=f"{steps} steps") for steps in (2, 5, 10)),
        ],
        sigmas=(0.5,),
    ),
)
