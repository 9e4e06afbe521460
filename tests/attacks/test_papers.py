"""Protocols against the figures of their papers and code, and what they refuse."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

import diffproof as dp
from diffproof.attacks.autoattack import VERSIONS
from diffproof.attacks.named import load_attack
from diffproof.attacks.papers import PROTOCOLS, load_protocol
from diffproof.attacks.scoring import Score, Scores
from diffproof.attacks.threat import THREATS, load_threat
from diffproof.catalog_attacks import ATTACKS
from diffproof.methods import load_class
from helpers.attacks import purifier
from helpers.images import inner_pictures
from helpers.noise import attack_noise

# Both average the gradients of the loss of each draw.
MEAN = {"loss": "ce", "mean_of": "loss"}
LEE_KIM = {"iterations": 200, "eot": 20, "step": 0.007, **MEAN, "random_start": False}
DIFFBREAK = {"iterations": 100, "eot": 10, "step": 0.008, **MEAN, "random_start": True}


@pytest.mark.parametrize(
    ("name", "threat", "size", "attack", "expected"),
    [
        ("diffpure", "linf", 32, "autoattack", {"version": "rand", "eot": 20}),
        ("diffpure", "l2", 256, "autoattack", {"version": "rand", "eot": 20}),
        ("lee-kim", "linf", 32, "pgd", LEE_KIM),
        ("lee-kim", "l2", 32, "pgd", {**LEE_KIM, "direction": "sign"}),
        ("lee-kim", "linf", 224, "pgd", {**LEE_KIM, "iterations": 20}),
        ("diffbreak", "linf", 8, "pgd", DIFFBREAK),
        ("diffbreak", "linf", 256, "pgd", {**DIFFBREAK, "eot": 16}),
        ("diffhammer", "l2", 32, "selective", {**MEAN, "iterations": 100, "eot": 10}),
        ("agdm", "linf", 32, "autoattack", {"version": "rand", "eot": 20}),
        ("agdm", "stadv", 32, "stadv", {}),
        ("rdc", "l2", 32, "pgd", {**MEAN, "iterations": 80, "eot": 10}),
    ],
)
def test_settings_are_those_of_the_papers(
    name: str, threat: str, size: int, attack: str, expected: dict[str, Any]
) -> None:
    protocol = load_protocol(name)
    assert protocol.attack_on(threat) == attack
    assert protocol.gradient is dp.GradientMode.EXACT
    assert protocol.settings(None, {}, threat, size) == expected
    assert protocol.settings(attack, expected, threat, size) == expected
    load_attack(attack, **expected)


@pytest.mark.parametrize(
    ("name", "headline"),
    [
        ("diffpure", "fresh"),
        ("lee-kim", "majority"),
        ("diffbreak", "majority"),
        ("diffhammer", "worst"),
        ("agdm", "fresh"),
        ("rdc", "fresh"),
    ],
)
def test_scores_are_those_of_the_papers(name: str, headline: str) -> None:
    protocol = load_protocol(name)
    assert (protocol.draws, protocol.votes) == (10, 10)
    assert protocol.headline is Score(headline)


def test_scores_have_names() -> None:
    assert [score.value for score in Score] == [field.name for field in fields(Scores)][:4]


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_every_protocol_can_be_run(name: str) -> None:
    """Its attack has every setting and every threat; what it fixes is no default."""
    protocol = load_protocol(name)
    assert protocol.name == name
    assert {protocol.attack, *protocol.attacks.values()} <= set(ATTACKS)
    assert set(protocol.attacks) <= set(protocol.threats)
    assert set(protocol.threats) <= set(THREATS)
    for threat in protocol.threats:
        attack = protocol.attack_on(threat)
        assert isinstance(load_threat(threat, 0.01), load_class("attack", attack).threats)
        for size in (32, 256):
            fixed = protocol.fixed_for({}, threat, size)
            load_attack(attack, **protocol.defaults, **fixed)
            assert not set(fixed) & set(protocol.defaults)


def test_defaults_may_be_changed_and_other_settings_given() -> None:
    diffpure = load_protocol("diffpure")
    for version, eot in (("rand", {"eot": 20}), ("standard", {})):
        assert version in VERSIONS
        settled = diffpure.settings(None, {"version": version}, "linf", 32)
        assert settled == {"version": version, **eot}
        assert load_attack("autoattack", **settled).repeats == (20 if version == "rand" else 1)
    given = load_protocol("lee-kim").settings("pgd", {"direction": "sign"}, "linf", 32)
    assert given == {**LEE_KIM, "direction": "sign"}


@pytest.mark.parametrize(
    ("name", "attack", "given", "threat", "size", "message"),
    [
        ("lee-kim", None, {"iterations": 50}, "linf", 32, "iterations: protocol lee-kim fixes 200, got 50"),
        ("lee-kim", None, {"iterations": 200}, "linf", 224, "iterations: protocol lee-kim fixes 20, got 200"),
        ("lee-kim", "pgd", {"loss": "dlr"}, "linf", 32, "loss: protocol lee-kim fixes ce, got dlr"),
        (
            "lee-kim",
            None,
            {"mean_of": "logits"},
            "linf",
            32,
            "mean_of: protocol lee-kim fixes loss, got logits",
        ),
        (
            "diffbreak",
            None,
            {"mean_of": "logits"},
            "linf",
            32,
            "mean_of: protocol diffbreak fixes loss, got logits",
        ),
        (
            "lee-kim",
            None,
            {"random_start": True},
            "linf",
            32,
            "random_start: protocol lee-kim fixes False, got True",
        ),
        (
            "lee-kim",
            None,
            {"direction": "steepest"},
            "l2",
            32,
            "direction: protocol lee-kim fixes sign, got steepest",
        ),
        ("lee-kim", "autoattack", {}, "linf", 32, "attack: protocol lee-kim fixes pgd, got autoattack"),
        ("diffpure", None, {"eot": 1}, "linf", 32, "eot: protocol diffpure fixes 20, got 1"),
        ("diffpure", None, {}, "stadv", 32, "threat: protocol diffpure is for l2, linf, got stadv"),
        ("diffbreak", None, {}, "l2", 32, "threat: protocol diffbreak is for linf, got l2"),
    ],
)
def test_contradictions_are_refused_in_one_line(
    name: str, attack: str | None, given: dict[str, Any], threat: str, size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        load_protocol(name).settings(attack, given, threat, size)


def test_a_protocol_that_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"^protocol: unknown name 'leekim'; did you mean lee-kim\?"):
        load_protocol("leekim")


@pytest.mark.parametrize("threat", ["linf", "l2"])
def test_lee_kim_in_l2_is_their_update(threat: str) -> None:
    """Their loop: x + 0.007·sign of the mean gradient over the draws, projected, clamped to [0, 1]."""
    budget, images = 0.02, inner_pictures(2)
    defense = purifier(steps=1)
    labels = defense.classifier_logits(images).argmax(1)
    settings = load_protocol("lee-kim").settings(None, {}, threat, 32) | {"iterations": 4, "eot": 3}
    results = dp.attack(
        defense,
        images,
        labels,
        attack="pgd",
        threat=threat,
        budget=budget,
        seed=7,
        image_indices=[5, 6],
        **settings,
    )
    adversarial = images.clone()
    for iteration in range(4):
        gradient = torch.zeros_like(images)
        for draw in range(3):
            leaf = adversarial.clone().requires_grad_()
            logits = defense(leaf, attack_noise(2, 3 * iteration + draw))
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            gradient += torch.autograd.grad(loss, leaf)[0] / 3
        change = adversarial + 0.007 * gradient.sign() - images
        if threat == "linf":
            change = change.clamp(-budget, budget)
        else:
            change = change * (budget / change.flatten(1).norm(dim=1)).clamp(max=1)[:, None, None, None]
        adversarial = (images + change).clamp(0, 1)
    assert adversarial.shape[1:] == (1, 4, 4)
    got = torch.stack([result.adversarial for result in results])
    torch.testing.assert_close(got, adversarial, rtol=0, atol=1e-12)
