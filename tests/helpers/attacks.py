"""What attacks are tried on, and what they found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import diffproof as dp
from diffproof.attacks.base import Job
from helpers.classifiers import curved_classifier
from helpers.denoisers import mixture_around
from helpers.images import inner_pictures

# Every attack by name, as short as it can be.
SETTINGS: dict[str, dict[str, Any]] = {
    "pgd": {"iterations": 3, "eot": 3, "random_start": True},
    "diffattack": {"iterations": 2, "eot": 2},
    "lagrange": {"iterations": 2, "eot": 2},
    "low-frequency": {"iterations": 3, "eot": 3, "share": 0.5},
    "stadv": {"iterations": 3, "eot": 3},
    "square": {"queries": 6},
    "autoattack": {"version": "rand", "eot": 3},
}


def purifier(**settings: Any) -> dp.DiffPure:
    settings = {"t_star": 0.05, "steps": 4, **settings}
    # The package warns where there are only three classes.
    return dp.DiffPure(mixture_around(inner_pictures(4, seed=3)), curved_classifier(seed=2), **settings)


def short_apgd(patch: pytest.MonkeyPatch) -> None:
    """Let the package's APGD take 12 iterations: it halves the step and starts again, as in its 100."""
    apgd: Any = pytest.importorskip("pyautoattack.autopgd_base").APGDAttack
    usual = apgd.__init__

    def short(*given: Any, **named: Any) -> None:
        usual(*given, **{**named, "n_iter": 12})

    patch.setattr(apgd, "__init__", short)


def labels_of(defense: dp.Defense, images: Tensor) -> Tensor:
    with torch.no_grad():
        return defense.classifier_logits(images).argmax(1)


def job_of(
    defense: dp.Defense, images: Tensor, labels: Tensor, *, batch_size: int = 64, gradient: str = "exact"
) -> Job:
    view = dp.AttackedDefense(defense, gradient)
    return Job(view, images, labels, torch.arange(len(images)) + 5, 7, batch_size)


def adversarials(results: list[dp.AttackResult]) -> Tensor:
    return torch.stack([result.adversarial for result in results])
