"""DensePure (Xiao et al. 2023)."""

from __future__ import annotations

from functools import partial

from diffproof.reproduce.certified import CIFAR_RADII, IMAGENET_RADII, CertifiedTable, Row
from diffproof.reproduce.entry import Entry, Theory, Unavailable

_FULL = "densepure:steps=10,votes=40"
_SHORT = "densepure:steps=2,votes=5"
_CONSENSUS = "densepure:steps=2,votes=10,consensus=3"

_table = partial(CertifiedTable, "DensePure")
_imagenet = partial(
    CertifiedTable, "DensePure", dataset="ImageNet", radii=IMAGENET_RADII, images=100, n=10_000
)


def _noised(method: str, objective: str) -> Row:
    return Row(method, "none", f"{objective}@{{sigma}}", None)


_BEFORE = (
    Row("PixelDP", "none", "gaussian@{sigma}", None, bound="pixeldp"),
    _noised("RS", "gaussian"),
    _noised("SmoothAdv", "smoothadv"),
    _noised("Consistency", "consistency"),
    _noised("MACER", "macer"),
    _noised("Boosting", "boosting"),
    _noised("SmoothMix", "smoothmix"),
    Row("Denoised", "dds", denoiser="denoised@{sigma}"),
    Row("Lee", "dds", denoiser="score"),
    Row("DDS"),
    Row("DensePure", _FULL),
)
_PAIR = (Row("DDS"), Row("DensePure", _FULL, printed=" b=10 K=40"))
_IMAGENET_PAIR = (
    Row("DDS", printed=" {images} images"),
    Row("DensePure", _FULL, printed=" b=10 K=40 {images} images"),
)


_TWO_STEPS = (Row("DensePure", _SHORT, printed=" b=2 K=5"),)
_BEFORE_OTHERS = "DDS and DensePure before other classifiers, sigma = 0.25"


def _before(first: str, second: str) -> list[Row]:
    return [
        Row(method, defense, role, printed=f" {name}", label=name)
        for role, name in (("classifier", first), ("second", second))
        for method, defense in (("DDS", "dds"), ("DensePure", _FULL))
    ]


def _of(images: int) -> tuple[Row, ...]:
    return tuple(
        Row(row.method, row.defense, printed=row.printed.format(images=images)) for row in _IMAGENET_PAIR
    )


ENTRIES: tuple[Entry, ...] = (
    _table(
        "1",
        "Certified accuracy beside ten earlier methods, best over sigma, CIFAR-10",
        rows=_BEFORE,
        radii=CIFAR_RADII[1:],
        best=True,
    ),
    _imagenet(
        "1", "The same on ImageNet", rows=_BEFORE, radii=IMAGENET_RADII[1:], best=True, part="-imagenet"
    ),
    _table("2", f"{_BEFORE_OTHERS}, CIFAR-10", rows=_before("ViT-B/16", "WRN28-10"), sigmas=(0.25,)),
    _imagenet(
        "2",
        f"{_BEFORE_OTHERS}, ImageNet",
        rows=_before("BEiT", "WRN50-2"),
        radii=CIFAR_RADII,
        sigmas=(0.25,),
        part="-imagenet",
    ),
    _table("A", "DDS and DensePure by sigma, CIFAR-10", rows=_PAIR),
    _imagenet("B", "DDS and DensePure by sigma, ImageNet, 100 images", rows=_of(100)),
    _table(
        "C",
        "The classifier without a denoiser, CIFAR-10",
        rows=[Row("RS without denoiser (ViT-B/16)", "none", denoiser=None)],
    ),
    _imagenet(
        "D",
        "The classifier without a denoiser, ImageNet",
        rows=[Row("RS without denoiser (BEiT)", "none", denoiser=None)],
    ),
    _imagenet(
        "E",
        "Votes of a classifier with drop path, without a denoiser",
        rows=[Row("RS, droppath BEiT, 10 votes", "none:votes=10", "droppath", None)],
    ),
    _table(
        "F",
        "A classifier trained with noise",
        rows=[Row("RS, Gaussian-augmented ViT", "none", "gaussian@{sigma}", None)],
    ),
    _table(
        "G",
        "Votes that end at three equal ones in a row, CIFAR-10",
        rows=[Row("DensePure K-consensus", _CONSENSUS, printed=" b=2 K=10 k=3 100 images")],
        images=100,
        votes="b=2 K=10 k=3",
    ),
    _imagenet(
        "H",
        "Votes that end at three equal ones in a row, ImageNet",
        rows=[Row("DensePure K-consensus", _CONSENSUS, printed=" b=2 K=10 k=3 100 images")],
        votes="b=2 K=10 k=3",
    ),
    _table("I", "Two steps and five votes, CIFAR-10", rows=_TWO_STEPS),
    _imagenet("I", "Two steps and five votes, ImageNet", rows=_TWO_STEPS, part="-imagenet"),
    _imagenet("K", "DDS and DensePure by sigma, ImageNet, 500 images", rows=_of(500), images=500),
    Unavailable(
        "DensePure",
        "figure1",
        "The pipeline",
        why="a drawing without numbers; docs/architecture.md shows where its parts are",
    ),
    Theory("DensePure", "figure2", "Robust regions under the reverse process, and the theorems"),
    _table("figure3", "Certified accuracy over the radius, by sigma", rows=_PAIR),
    _table(
        "figure4-votes",
        "Certified accuracy by the number of votes",
        rows=[Row("DensePure", "densepure:steps=2,votes=40")],
        sigmas=(0.25,),
        over="votes",
    ),
    _table(
        "figure4-steps",
        "Certified accuracy by the number of steps, one vote and forty",
        rows=[
            Row("DensePure", f"densepure:steps={steps},votes={votes}", label=f"b={steps}, K={votes}")
            for votes in (1, 40)
            for steps in (1, 2, 5, 10)
        ],
        sigmas=(0.25,),
    ),
)
