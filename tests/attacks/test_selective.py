"""Selection of vulnerable draws: against a plain loop, and where purifications disagree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import diffproof as dp
from diffproof.attacks.expectation import Expectation
from diffproof.attacks.losses import Loss, loss_values
from diffproof.attacks.selective import Selective
from diffproof.defenses.base import Defense
from diffproof.noise import Noise
from helpers.attacks import job_of
from helpers.images import pictures
from helpers.noise import attack_noise

SHAPE = (1, 1, 2)


class Disagreeing(Defense):
    """Under half of the noise the first pixel must grow for a wrong answer, under the other half shrink."""

    method = "disagreeing"

    def __init__(self) -> None:
        super().__init__(dp.Classifier(torch.nn.Flatten(), 2))

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        way = noise.normal((1,), 0, images.dtype)[:, 0].sign()
        rise = 4 * way * (images[:, 0, 0, 0] - 0.5)
        return torch.stack([torch.ones_like(rise), 0.3 + rise], dim=1)


class Curved(Defense):
    """Logits that depend on images and noise in earnest."""

    method = "curved"

    def __init__(self) -> None:
        super().__init__(dp.Classifier(torch.nn.Flatten(), 3))

    def respond(self, images: Tensor, noise: Noise) -> Tensor:
        moved = images.flatten(1) + noise.normal((6,), 0, images.dtype)
        return torch.stack([moved.sin().sum(1), moved.cos().sum(1), (moved * moved.roll(1, 1)).sum(1)], dim=1)


@pytest.mark.parametrize(("share", "kept"), [(0.1, 1), (0.5, 3), (1.0, 5)])
def test_a_gradient_is_the_mean_over_the_draws_of_largest_margin(share: float, kept: int) -> None:
    images, labels = pictures(4, 1, (1, 2, 3)), torch.tensor([0, 1, 2, 0])
    job = job_of(Curved(), images, labels, batch_size=3)
    attack = Selective(eot=5, share=share)
    got = attack.expectation(job).gradient(images, 2)
    for row, image in enumerate(images):
        found = []
        for repeat in range(5):
            point = image[None].clone().requires_grad_()
            noise = attack_noise(4, 2 * 5 + repeat)
            logits = job.view(point, noise.rows(torch.tensor([row]), torch.tensor([0])))
            own = labels[row : row + 1]
            margin = float(loss_values(Loss.MARGIN, logits.detach(), own))
            value = loss_values(Loss.CE, logits, own).sum()
            found.append((margin, torch.autograd.grad(value, point)[0][0]))
        chosen = sorted(found, key=lambda one: -one[0])[:kept]
        expected = torch.stack([gradient for _, gradient in chosen]).mean(0)
        torch.testing.assert_close(got[row], expected, rtol=1e-10, atol=1e-12)
    if kept == 5:
        plain = Expectation(job, eot=5, loss=Loss.CE).gradient(images, 2)
        torch.testing.assert_close(got, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_it_breaks_what_the_mean_does_not() -> None:
    """From the middle the mean gradient is what chance leaves; one of the two ways ends in a wrong answer."""
    images, labels = torch.full((8, *SHAPE), 0.5, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
    reached = {}
    for name in ("pgd", "selective"):
        found = dp.evaluate(
            Disagreeing(),
            images,
            labels,
            attack=f"{name}:iterations=30,eot=16,step=0.02,loss=margin",
            threat="l2",
            budget=0.3,
            draws=10,
            votes=1,
        )
        far = [abs(float(one.result.adversarial[0, 0, 0]) - 0.5) for one in found.images if one.result]
        reached[name] = sum(far) / len(far)
        if name == "selective":
            # Half of the draws are wrong: that none of 10 is happens once in 1024.
            assert found.attacked.worst.value == 0.0
    # Once it leaves the middle, the draws it follows stay the same; the mean draws it back.
    assert reached["selective"] > 0.29
    assert reached["pgd"] < 0.2


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"^share: expected"):
        Selective(share=0.0)
    with pytest.raises(ValueError, match=r"^mean_of: selective averages losses, got logits"):
        Selective(mean_of="logits")
