"""How random the gradients of a defence are (Chen et al. 2023, Figure 2c)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffproof.attacks.base import MOST_GRADIENTS, Job, check_arguments
from diffproof.attacks.expectation import Expectation
from diffproof.attacks.losses import Loss
from diffproof.attacks.views import AttackedDefense
from diffproof.checks import check_at_least, check_member
from diffproof.defenses.base import Defense


def gradient_similarity(
    defense: Defense | AttackedDefense,
    images: Tensor,
    labels: Tensor,
    *,
    repeats: int = 10,
    eot: int = 1,
    loss: Loss | str = Loss.CE,
    seed: int = 0,
    image_indices: Sequence[int] | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Mean cosine similarity of the gradients that an attack gets under different noise.

    1 where noise changes no gradient's direction; near 0 where one gradient tells nothing about the next, and
    an attack of that EOT only wanders.

    Args:
        defense: any defence, or one as an attack sees it, with another gradient than the exact one.
        images: N×C×H×W in [0, 1].
        labels: N int64, the true ones.
        repeats: gradients of each image, ≥ 2, each under draws of noise of its own.
        eot: draws of noise a gradient is the mean over, ≥ 1.
        loss: what is differentiated; see Loss.
        seed: see Attack.run.
        image_indices: see Attack.run; None for 0, 1, ….
        batch_size: see Attack.run.

    Returns:
        N float64 means over all pairs of an image's gradients; NaN where one of them is zero, and so has no
        direction.

    Raises:
        ValueError: an argument is out of range, or the defence gives no gradient or one that is not finite.
    """
    view = defense if isinstance(defense, AttackedDefense) else AttackedDefense(defense)
    check_at_least("repeats", repeats, 2)
    check_at_least("eot", eot, 1, MOST_GRADIENTS)
    loss = check_member("loss", loss, Loss)
    indices = check_arguments(view, images, labels, None, image_indices, batch_size, seed)
    job = Job(view, images.detach(), labels.to(images.device), indices, seed, batch_size)
    expectation = Expectation(job, eot=eot, loss=loss)
    total = torch.zeros(images[0].numel(), dtype=torch.float64, device=images.device).expand(len(images), -1)
    for repeat in range(repeats):
        gradient = expectation.gradient(job.images, repeat).double().flatten(1)
        total = total + gradient / gradient.norm(dim=1, keepdim=True)
    # |Σu|² of unit vectors is their number and twice the sum over pairs.
    return (total.square().sum(1) - repeats) / (repeats * (repeats - 1))
