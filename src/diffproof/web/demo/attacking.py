"""One picture attacked, and what the defence says of it before and after."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffproof.attacks.evaluation import Evaluated
from diffproof.attacks.named import evaluate
from diffproof.attacks.scoring import draw_labels
from diffproof.defenses.base import Defense
from diffproof.defenses.voting import majority
from diffproof.noise import Stream
from diffproof.web.demo.picture import Picture

# Fresh draws of the defence's noise that label a picture, before an attack and after it.
DRAWS = 5


@dataclass(frozen=True)
class Attacked:
    """What an attack did to a picture.

    Attributes:
        picture: the one that was attacked.
        label: the class that the attack leads away from: the true one, or where nobody knows it the one that
            the defence gives.
        evaluated: the defence's labels before and after, and what the attack found.
        adversarial: the attacked image, C×H×W; None where the defence was wrong already.
        before: the defence's majority label without the attack.
        after: its majority label after it; None as before.
        distance: ℓ2 distance of the two images; 0 where there is no other.
        random: whether the defence answers otherwise each time.
    """

    picture: Picture
    label: int
    evaluated: Evaluated
    adversarial: Tensor | None
    before: int
    after: int | None
    distance: float
    random: bool


def attacked(
    defense: Defense,
    picture: Picture,
    *,
    threat: str,
    budget: float,
    iterations: int,
    eot: int,
    seed: int = 0,
) -> Attacked:
    """Attack one picture by PGD with exact gradients, and label it under fresh noise.

    Args:
        defense: what is attacked.
        picture: what it is attacked on.
        threat: "linf" or "l2".
        budget: see Threat.
        iterations: see PGD.
        eot: see PGD; 1 for a defence that is not random.
        seed: see `evaluate`.

    Raises:
        ValueError: an argument is out of range, or the attack cannot be run on this defence.
    """
    image, index = picture.image[None], [picture.index]
    label = picture.label
    if label is None:
        drawn = draw_labels(
            defense,
            image,
            draws=DRAWS,
            seed=seed,
            image_indices=index,
            batch_size=64,
            stream=Stream.CONTROL,
        )
        label = int(majority(drawn, defense.num_classes))
    evaluation = evaluate(
        defense,
        image,
        torch.tensor([label]),
        attack="pgd",
        iterations=iterations,
        eot=eot if defense.random else 1,
        threat=threat,
        budget=budget,
        draws=DRAWS,
        votes=DRAWS,
        seed=seed,
        image_indices=index,
    )
    (found,) = evaluation.images
    adversarial = None if found.result is None else found.result.adversarial
    return Attacked(
        picture,
        label,
        found,
        adversarial,
        _majority(found.clean_labels, defense),
        _majority(found.labels, defense) if found.labels else None,
        0.0 if adversarial is None else float(torch.linalg.vector_norm(adversarial - picture.image)),
        defense.random,
    )


def _majority(labels: tuple[int, ...], defense: Defense) -> int:
    return int(majority(torch.tensor([labels]), defense.num_classes))
