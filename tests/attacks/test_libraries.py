"""foolbox, ART, torchattacks and pyautoattack themselves: on defences, and beside our attacks."""

from __future__ import annotations

import importlib
import runpy
import sys
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import diffproof as dp
from diffproof.attacks.threat import PixelThreat
from helpers.paths import EXAMPLES

pytestmark = pytest.mark.usefixtures("small_digits")

BUDGET = {"linf": 0.08, "l2": 0.5}
STEPS = 10


def library(name: str) -> ModuleType:
    """A library, or a skipped test; foolbox imports from a part of scipy that is to go."""
    pytest.importorskip(
        name.split(".")[0], reason=f"{name} is not installed or does not import", exc_type=ImportError
    )
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    images, labels = dp.load_data("digits", indices="0:40")
    return images, labels


@pytest.fixture(scope="module")
def undefended() -> dp.Undefended:
    return dp.Undefended(dp.load_classifier("digits")).eval()


@pytest.fixture(scope="module")
def diffpure() -> dp.DiffPure:
    return dp.DiffPure(dp.load_denoiser("digits"), dp.load_classifier("digits"), t_star=0.05, steps=1).eval()


def accuracy(defense: dp.Defense, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((defense(images).argmax(1) == labels).float().mean())


def ours(defense: dp.Defense, images: Tensor, labels: Tensor, threat: str, **settings: Any) -> Tensor:
    results = dp.attack(
        defense,
        images,
        labels,
        threat=threat,
        budget=BUDGET[threat],
        iterations=STEPS,
        step=BUDGET[threat] / 4,
        **settings,
    )
    return torch.stack([result.adversarial for result in results])


def check(found: Tensor, images: Tensor, threat: str) -> None:
    assert found.shape == images.shape
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    ball = dp.load_threat(threat, BUDGET[threat])
    assert isinstance(ball, PixelThreat)
    largest = float(ball.norm(found - images).max())
    assert 0.5 * BUDGET[threat] < largest <= BUDGET[threat] + 1e-5


def foolbox_pgd(defense: dp.Defense, images: Tensor, labels: Tensor, threat: str) -> Tensor:
    foolbox = library("foolbox")
    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[threat]
    attack = kind(abs_stepsize=BUDGET[threat] / 4, steps=STEPS, random_start=False)
    model = foolbox.PyTorchModel(defense, bounds=(0, 1), device="cpu")
    found: Tensor = attack(model, images, labels, epsilons=BUDGET[threat])[1]
    return found


def art_pgd(defense: dp.Defense, images: Tensor, labels: Tensor, threat: str) -> Tensor:
    classification = library("art.estimators.classification")
    evasion = library("art.attacks.evasion")
    estimator = classification.PyTorchClassifier(
        defense,
        torch.nn.CrossEntropyLoss(),
        input_shape=(1, 8, 8),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = evasion.ProjectedGradientDescent(
        estimator,
        norm={"linf": np.inf, "l2": 2}[threat],
        eps=BUDGET[threat],
        eps_step=BUDGET[threat] / 4,
        max_iter=STEPS,
        verbose=False,
    )
    return torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))


def torchattacks_pgd(defense: dp.Defense, images: Tensor, labels: Tensor, threat: str) -> Tensor:
    torchattacks = library("torchattacks")
    settings = {"eps": BUDGET[threat], "alpha": BUDGET[threat] / 4, "steps": STEPS, "random_start": False}
    kind = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[threat]
    found: Tensor = kind(defense, **settings)(images, labels)
    return found


PEERS = {"foolbox": foolbox_pgd, "art": art_pgd, "torchattacks": torchattacks_pgd}


@pytest.mark.slow
@pytest.mark.parametrize("threat", ["linf", "l2"])
@pytest.mark.parametrize("peer", list(PEERS))
def test_pgd_is_that_of_the_peers(
    peer: str, threat: str, undefended: dp.Undefended, data: tuple[Tensor, Tensor]
) -> None:
    """The same robust accuracy within one image of 40, and the same images but for some pixels."""
    images, labels = data
    theirs = PEERS[peer](undefended, images, labels, threat)
    mine = ours(undefended, images, labels, threat)
    check(theirs, images, threat)
    check(mine, images, threat)
    robust = accuracy(undefended, mine, labels)
    assert 0.1 < robust < 0.9
    assert abs(robust - accuracy(undefended, theirs, labels)) <= 1 / 40 + 1e-6
    # Rounding decides the sign of the smallest gradients. ART clips to the pixel range before it projects to
    # the ball, we after: under ℓ2 these are different points.
    tolerance = 0.02 if (peer, threat) == ("art", "l2") else 1e-4
    assert float(((mine - theirs).abs() < tolerance).float().mean()) > 0.98


@pytest.mark.slow
@pytest.mark.parametrize("peer", list(PEERS))
def test_peers_attack_a_random_defence(peer: str, diffpure: dp.DiffPure, data: tuple[Tensor, Tensor]) -> None:
    images, labels = data[0][:4], data[1][:4]
    torch.manual_seed(0)
    found = PEERS[peer](diffpure, images, labels, "linf")
    check(found, images, "linf")
    before = torch.nn.functional.cross_entropy(diffpure(images), labels)
    assert float(torch.nn.functional.cross_entropy(diffpure(found), labels).detach()) > float(before.detach())


@pytest.mark.slow
def test_pyautoattack_attacks_a_random_defence(diffpure: dp.DiffPure, data: tuple[Tensor, Tensor]) -> None:
    pyautoattack = library("pyautoattack")
    adversary = pyautoattack.AutoAttack(diffpure, norm="Linf", eps=0.3, seed=0, version="rand")
    adversary.attacks_to_run, adversary.apgd.eot_iter, adversary.apgd.n_iter = ["apgd-ce"], 2, 5
    found, _ = adversary.run_standard_evaluation(data[0][:2], data[1][:2], batch_size=2)
    assert 0 < float((found - data[0][:2]).abs().max()) <= 0.3 + 1e-6


@pytest.mark.slow
def test_autoattack_breaks_what_pgd_breaks(undefended: dp.Undefended, data: tuple[Tensor, Tensor]) -> None:
    library("pyautoattack")
    images, labels = data[0][:2], data[1][:2]
    for threat, budget in (("linf", 0.3), ("l2", 2.0)):
        for attack in ("pgd", "autoattack"):
            results = dp.attack(undefended, images, labels, attack=attack, threat=threat, budget=budget)
            found = torch.stack([result.adversarial for result in results])
            assert accuracy(undefended, found, labels) == 0
            assert all(result.success and result.norm <= budget + 1e-5 for result in results)


def test_square_breaks_digits_without_gradients(
    undefended: dp.Undefended, data: tuple[Tensor, Tensor]
) -> None:
    library("pyautoattack")
    images, labels = data[0][:6], data[1][:6]
    results = dp.attack(undefended, images, labels, attack="square", budget=0.3, queries=200)
    assert accuracy(undefended, torch.stack([result.adversarial for result in results]), labels) == 0
    assert all(result.backwards == 0 and result.success for result in results)


def test_stadv_breaks_digits(undefended: dp.Undefended, data: tuple[Tensor, Tensor]) -> None:
    images, labels = data[0][:10], data[1][:10]
    results = dp.attack(
        undefended, images, labels, attack="stadv", threat="stadv", budget=0.25, iterations=30
    )
    assert accuracy(undefended, images, labels) == 1
    assert accuracy(undefended, torch.stack([result.adversarial for result in results]), labels) == 0
    assert all(result.success and 0 < result.norm <= 0.25 + 1e-6 for result in results)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "needed"),
    [
        ("foolbox_attack", "foolbox"),
        ("art_attack", "art"),
        ("torchattacks_attack", "torchattacks"),
        ("autoattack_attack", "pyautoattack"),
    ],
)
def test_examples_run(script: str, needed: str, capsys: pytest.CaptureFixture[str]) -> None:
    library(needed)
    with warnings.catch_warnings():
        # Threads and deprecations of the libraries are their own affair.
        warnings.simplefilter("ignore")
        runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")
    output = capsys.readouterr().out
    assert "right before" in output
    assert "right after" in output
    assert script not in sys.modules
