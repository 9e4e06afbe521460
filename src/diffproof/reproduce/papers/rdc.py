"""RDC, "Robust Classification via a Single Diffusion Model" (Chen et al. 2023)."""

from __future__ import annotations

from functools import partial

from diffproof.reproduce.attacked import (
    L2,
    LINF,
    PURIFYING,
    STADV,
    AttackedTable,
    Clean,
    Row,
    Threat,
    diffpure,
)
from diffproof.reproduce.entry import Entry, Unavailable

_table = partial(AttackedTable, "RDC")
_DC = {"denoiser": "denoiser"}
_AA = "AutoAttack 512 images"
_CLEAN = (
    Clean("linf model", "clean_accuracy", setting="512 images"),
    Clean("l2 model", "clean_accuracy", 1, "512 images"),
)
_UNSEEN = "unseen threats"


def _trained(method: str, role: str, printed: str, l2: str = "") -> Row:
    """A classifier; `l2` is the role of another one under that threat."""
    own = {L2.at: _trained(method, l2, printed)} if l2 else {}
    return Row(method, "none", {"classifier": role}, printed, instead=own)


def _diffusion(printed: str, likelihood: str = "") -> tuple[Row, ...]:
    return (
        Row("DC", "dc", _DC, printed),
        # The paper attacks likelihood maximisation by BPDA.
        Row("RDC", f"rdc{likelihood}", _DC, printed, gradient="bpda"),
    )


def _diffused(settings: str, denoiser: str, label: str) -> Row:
    return Row("RDC", f"rdc:{settings}", {"denoiser": denoiser}, label=label, gradient="bpda")


def _rdc(settings: str, label: str) -> Row:
    return _diffused(settings, "denoiser", label)


_ONE = Threat("linf 8/255", "linf", "8/255", "pgd:iterations=80,eot=10", protocol="rdc")

ENTRIES: tuple[Entry, ...] = (
    _table(
        "1",
        "Generative classifiers, purification and adversarial training",
        rows=[
            _trained("AT-DDPM", "at-ddpm", _AA, "at-ddpm-l2"),
            _trained("AT-EDM", "at-edm", _AA, "at-edm-l2"),
            diffpure(_AA),
            Row("SBGC", "sbgc", _DC, _AA),
            _trained("HybViT", "hybvit", _AA),
            _trained("JEM", "jem", _AA),
            *_diffusion(_AA),
        ],
        threats=(LINF, L2),
        clean=_CLEAN,
    ),
    _table(
        "2",
        "Threats that adversarial training has not seen",
        rows=[
            _trained("AT-DDPM-linf", "at-ddpm", _UNSEEN),
            _trained("AT-DDPM-l2", "at-ddpm-l2", _UNSEEN),
            _trained("AT-EDM-linf", "at-edm", _UNSEEN),
            _trained("AT-EDM-l2", "at-edm-l2", _UNSEEN),
            _trained("PAT-self", "pat", _UNSEEN),
            Row("DiffPure t*=0.125", "diffpure:t_star=0.125", PURIFYING, _UNSEEN),
            *_diffusion(_UNSEEN),
        ],
        threats=(LINF, L2, STADV),
        average=True,
    ),
    _table(
        "3",
        "Stronger attacks on RDC: Lagrange, exact gradients",
        rows=[
            Row("RDC", "rdc", _DC, "linf 8/255", "BPDA, N = 10", "bpda", at="BPDA N=10"),
            Row(
                "RDC",
                "rdc",
                _DC,
                "linf 8/255",
                "Lagrange, N = 10",
                attacks={LINF.at: "lagrange:iterations=100"},
                at="Lagrange N=10",
            ),
            Row("RDC", "rdc:iterations=1", _DC, "linf 8/255", "exact, N = 1", at="Exact N=1"),
            Row("RDC", "rdc:iterations=1", _DC, "linf 8/255", "BPDA, N = 1", "bpda", at="BPDA N=1"),
        ],
        clean=(),
    ),
    _table(
        "C.2",
        "Likelihood maximisation within an ℓ2 ball",
        rows=[Row("RDC", "rdc:norm=l2,budget=0.5", _DC, "l2 budget 0.5", gradient="bpda")],
        threats=(L2,),
    ),
    _table(
        "text",
        "RDC without momentum",
        part="-momentum",
        rows=[Row("RDC without momentum", "rdc:momentum=0", _DC, "100 images", gradient="bpda")],
        clean=(),
        images=100,
    ),
    _table(
        "text",
        "Likelihood maximisation before a discriminative classifier",
        part="-likelihood",
        rows=[
            Row(
                "WRN70-16 + likelihood maximisation",
                "likelihood",
                PURIFYING,
                "BPDA, 100 images",
                gradient="bpda",
            )
        ],
        clean=(),
        images=100,
    ),
    _table(
        "text",
        "The optimal diffusion classifier: give the denoiser as --network optimal=empirical:DATA",
        part="-optimal",
        rows=[Row("Optimal diffusion classifier", "dc", {"denoiser": "optimal"})],
        threats=(LINF, L2),
        clean=(),
    ),
    _table(
        "text",
        "The second version's RDC: EDM's networks and noise levels, and a network with a head a class",
        part="-v2",
        rows=[
            _diffused("variant=authors,reduction=mean", "multi-head", "version 2, multi-head"),
            _diffused(
                "variant=authors,sigmas=edm:125,weighting=edm-authors,reduction=mean",
                "edm",
                "version 2, EDM",
            ),
        ],
        threats=(LINF, L2),
    ),
    Unavailable("RDC", "figure1", "The pipeline", why="a drawing without numbers"),
    _table(
        "figure2a",
        "Robust accuracy by the budget of likelihood maximisation",
        rows=[_rdc(f"budget={budget}", f"η = {budget}") for budget in ("2/255", "4/255", "8/255", "16/255")],
        threats=(_ONE,),
    ),
    _table(
        "figure2b",
        "Robust accuracy by the number of levels",
        rows=[_rdc(f"timesteps=uniform:{levels}", f"T' = {levels}") for levels in (10, 50, 126, 500)],
        threats=(_ONE,),
    ),
    _table(
        "figure2c",
        "How random gradients are: the diagnostics of each run",
        rows=[Row("DiffPure", "diffpure:t_star=0.1", PURIFYING), *_diffusion("")],
        threats=(_ONE,),
        diagnose=8,
    ),
)
