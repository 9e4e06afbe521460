"""What attacks are tried on, and what they found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import diffproof as dp
from diffproof.attacks.base import Job
from diffproof.attacks.threat import Flow, Linf, Perceptual, Threat
from helpers.classifiers import curved_classifier
from helpers.denoisers import mixture_around
from helpers.images import inner_pictures

# Every attack by name, as short as it can be.
SETTINGS: dict[str, dict[str, Any]] = {
    "pgd": {"iterations": 3, "eot": 3, "random_start": True},
    "diffattack": {"iterations": 2, "eot": 2},
    "lagrange": {"iterations": 2, "eot": 2},
    "low-frequency": {"iterations": 3, "eot": 3, "share": 0.5},
    "selective": {"iterations": 3, "eot": 3, "share": 0.5},
    "stadv": {"iterations": 3, "eot": 3},
    "fast-lpa": {"iterations": 3, "eot": 3},
    "square": {"queries": 6},
    "autoattack": {"version": "rand", "eot": 3},
}


def purifier(classifier: dp.Classifier | None = None, **settings: Any) -> dp.DiffPure:
    settings = {"t_star": 0.05, "steps": 4, **settings}
    # The package warns where there are only three classes.
    behind = classifier or curved_classifier(seed=2)
    return dp.DiffPure(mixture_around(inner_pictures(4, seed=3)), behind, **settings)


def threat_of(name: str) -> Threat:
    """A threat that an attack stays within."""
    own: dict[str, Threat] = {"stadv": Flow(0.2), "fast-lpa": Perceptual(0.3)}
    return own.get(name, Linf(0.02))


def short_package(patch: pytest.MonkeyPatch, iterations: int = 12) -> None:
    """Let the package's APGD and FAB take 12 iterations, and Square 100 queries in place of 5000.

    APGD halves the step and starts again within 12, as in its 100.
    """
    shorter = {
        "autopgd_base.APGDAttack": {"n_iter": iterations},
        "fab_pt.FABAttack_PT": {"n_iter": iterations},
        "square.SquareAttack": {"n_queries": 100},
    }
    for name, most in shorter.items():
        module, kind = name.split(".")
        attack: Any = getattr(pytest.importorskip(f"pyautoattack.{module}"), kind)

        def short(*given: Any, usual: Any = attack.__init__, most: Any = most, **named: Any) -> None:
            usual(
                *given,
                **{key: min(value, most[key]) if key in most else value for key, value in named.items()},
            )

        patch.setattr(attack, "__init__", short)


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
