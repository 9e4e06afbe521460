"""AGDM, "Robust Diffusion Models for Adversarial Purification" (Lin et al. 2024)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from diffproof.reproduce import attacked
from diffproof.reproduce.attacked import GUIDED, PURIFYING, AttackedTable, Clean, Row, Threat, diffpure
from diffproof.reproduce.entry import Entry, Unavailable

LINF, L2, STADV = (replace(one, protocol="agdm") for one in (attacked.LINF, attacked.L2, attacked.STADV))
_table = partial(AttackedTable, "AGDM", threats=(LINF,))
_AA = "AutoAttack WRN28-10"
_RESNET = "ResNet-50 t*=125"
_CLEAN = (Clean("clean (linf)"), Clean("clean (l2)", of=1))
_PAPER = "agdm:variant=paper,t_star={t_star}"
# Lee & Kim's: gradual noise of CIFAR-10.
_GRADUAL = "gradual"


def _agdm(t_star: str, printed: str = "", **more: Any) -> tuple[Row, ...]:
    """The paper's algorithm, and the choices that diffproof makes where it is better."""
    return (
        Row("AGDM", _PAPER.format(t_star=t_star), GUIDED, printed, **more),
        Row("AGDM", f"agdm:t_star={t_star}", GUIDED, label="diffproof's choices", **more),
    )


def _purified(t_star: str, printed: str) -> Row:
    return Row("DiffPure", f"diffpure:t_star={t_star}", PURIFYING, printed)


def _eot(norm: Threat) -> Threat:
    return replace(norm, attack="pgd", score="majority", protocol="lee-kim")


def _pgd_eot(setting: str) -> list[Row]:
    return [
        Row("ADP", "adp", PURIFYING, setting),
        diffpure(setting),
        Row("Lee & Kim", _GRADUAL, PURIFYING, setting),
        Row("GDMP", "gdmp:variance=large", PURIFYING, setting),
        *_agdm("0.1", setting),
    ]


_GUIDANCE = (
    ("no guidance (DiffPure)", "diffpure:t_star=0.07", PURIFYING),
    ("guidance (COUP)", "coup", PURIFYING),
    ("robust guidance (AGDM)", _PAPER.format(t_star="0.07"), GUIDED),
)
_SMALL = (replace(attacked.LINF, attack="pgd:iterations=100,eot=20"),)

ENTRIES: tuple[Entry, ...] = (
    _table(
        "1",
        "AutoAttack, ℓ∞, CIFAR-10",
        rows=[
            _purified("0.1", _AA),
            Row("GDMP", "gdmp:variance=large", PURIFYING, _AA),
            Row("COUP (classifier guidance)", "coup", PURIFYING, _AA),
            *_agdm("0.07", f"{_AA} t*=70"),
        ],
    ),
    _table(
        "2",
        "AutoAttack, ℓ2, CIFAR-10",
        rows=[Row("Lee & Kim", _GRADUAL, PURIFYING, _AA), *_agdm("0.07", _AA)],
        threats=(L2,),
    ),
    _table("3", "AutoAttack, ℓ∞, CIFAR-100", dataset="CIFAR-100", rows=_agdm("0.07", _AA)),
    _table(
        "4",
        "What the guide is worth",
        dataset="CIFAR",
        rows=[Row(method, defense, networks, "AutoAttack") for method, defense, networks in _GUIDANCE],
        threats=(
            replace(LINF, at="CIFAR-10 linf", on={"cifar100": "CIFAR-100 linf"}),
            replace(L2, at="CIFAR-10 l2"),
        ),
        clean=(),
    ),
    _table(
        "5",
        "Threats that adversarial training has not seen, ResNet-50",
        rows=[
            Row("Standard", printed=_RESNET),
            *(
                Row(f"AT {name}", "none", {"classifier": f"at-{name.lower()}"}, _RESNET)
                for name in ("linf", "l2", "StAdv", "all")
            ),
            Row("PAT-self", "none", {"classifier": "pat"}, _RESNET),
            Row(
                "Adv. CRAIG", printed=_RESNET, why="the printed number alone: a core-set selection of its own"
            ),
            _purified("0.125", _RESNET),
            *_agdm("0.125", _RESNET),
        ],
        threats=(
            replace(LINF, at="AA linf 8/255"),
            replace(L2, at="AA l2 1.0", budget="1.0"),
            STADV,
        ),
    ),
    _table(
        "6",
        "PGD with EOT, WRN-28-10, ℓ∞ and ℓ2",
        rows=_pgd_eot("PGD+EOT WRN28-10 t*=100"),
        threats=(_eot(LINF), _eot(L2)),
        clean=_CLEAN,
    ),
    _table(
        "7",
        "PGD with EOT, WRN-70-16, ℓ∞ and ℓ2",
        rows=_pgd_eot("PGD+EOT WRN70-16 t*=100"),
        threats=(_eot(LINF), _eot(L2)),
        clean=_CLEAN,
    ),
    Unavailable("AGDM", "text", "Hours of an attack", why="of their machine; --plan says what yours takes"),
    Unavailable("AGDM", "figure1", "The pipeline", why="a drawing without numbers"),
    _table(
        "figure3c",
        "Accuracy by the weight λ of the guide's training",
        rows=[
            Row(
                "AGDM",
                _PAPER.format(t_star="0.07"),
                {**PURIFYING, "guide": f"guide@{weight}"},
                label=f"λ = {weight}",
            )
            for weight in (1, 3, 6, 9)
        ],
        threats=_SMALL,
    ),
    _table(
        "text",
        "Accuracy by the diffusion time t*",
        part="-time",
        rows=[
            Row("AGDM", _PAPER.format(t_star=t_star), GUIDED, label=f"t* = {t_star}")
            for t_star in ("0.03", "0.07", "0.1", "0.15")
        ],
        threats=_SMALL,
    ),
)
