"""Every attack on defences whose diffusion model classifies: batches of rows, which change no result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import diffproof as dp
from diffproof.attacks.scoring import draw_labels
from helpers.attacks import SETTINGS, adversarials, short_package, threat_of
from helpers.defenses import JitteryGradient
from helpers.denoisers import CountingMixture, mixture_around
from helpers.images import inner_pictures
from helpers.noise import attack_noise

CLASSES = 4
# Features are of a classifier, which these defences have none of.
NAMES = [name for name in SETTINGS if name not in ("diffattack", "fast-lpa")]


def defense_of(name: str) -> dp.Defense:
    levels = torch.tensor([0.1, 0.3], dtype=torch.float64)
    settings: dict[str, Any] = {"component_labels": list(range(CLASSES)), "sigmas": levels}
    denoiser = mixture_around(inner_pictures(CLASSES, seed=3), 0.05, **settings)
    own: dict[str, Any] = {} if name == "dc" else {"iterations": 2, "budget": 0.02}
    return dp.load_defense(name, denoiser=denoiser, **own)


# The package warns of a defence that asks for gradients itself.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:pyautoattack:RuntimeWarning")
@pytest.mark.parametrize("method", ["dc", "rdc"])
@pytest.mark.parametrize("name", NAMES)
def test_results_do_not_depend_on_batches(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in ("autoattack", "square"):
        short_package(monkeypatch, 5)
    # The package attacks each image on its own; test_attacks.py gives it several.
    count = 1 if name == "autoattack" else 3
    images = inner_pictures(3)[:count]
    labels = defense_of(method)(images, attack_noise(count, 0)).argmax(1)
    threat = threat_of(name)
    found = {}
    for batch_size in (9, 64):
        defense = defense_of(method)
        found[batch_size] = dp.attack(
            defense, images, labels, attack=name, threat=threat, batch_size=batch_size, **SETTINGS[name]
        )
        assert isinstance(defense.denoiser, CountingMixture)
        # A draw is a row for each class; so are those of the package, which asks for one at a time.
        assert defense.denoiser.largest <= batch_size
        # Lagrange's unconditional loss is a row more.
        counts = (CLASSES, CLASSES + 1) if name == "lagrange" else (CLASSES,)
        assert any(defense.denoiser.largest % count == 0 for count in counts)
    small, whole = found[9], found[64]
    torch.testing.assert_close(adversarials(small), adversarials(whole), rtol=0, atol=1e-10)
    for a, b, image in zip(small, whole, images, strict=True):
        assert (a.first_success, a.forwards, a.backwards) == (b.first_success, b.forwards, b.backwards)
        assert a.forwards > 0
        if name != "stadv":
            assert float((a.adversarial - image).abs().max()) <= 0.02 + 1e-6


def test_scoring_keeps_to_the_batch_and_to_its_labels() -> None:
    drawn = {}
    for batch_size in (1, 8, 64):
        defense = defense_of("dc")
        drawn[batch_size] = draw_labels(
            defense, inner_pictures(3), draws=5, seed=1, image_indices=range(3), batch_size=batch_size
        )
        assert isinstance(defense.denoiser, CountingMixture)
        # One image is the least that there is.
        assert defense.denoiser.largest == max(CLASSES, min(batch_size, 15 * CLASSES))
    assert torch.equal(drawn[1], drawn[64])
    assert torch.equal(drawn[8], drawn[64])


@pytest.mark.parametrize(("batch_size", "images"), [(1, 1), (4, 1), (7, 1), (8, 2), (64, 16)])
def test_images_at_once(batch_size: int, images: int) -> None:
    for defense in (defense_of("dc"), defense_of("rdc")):
        assert defense.images_at_once(batch_size) == images
        assert dp.AttackedDefense(defense).images_at_once(batch_size) == images
    assert JitteryGradient(1.0, torch.zeros(1, 2, 3)).images_at_once(batch_size) == batch_size
