"""AutoAttack by the authors' package, as it is and through diffproof. Needs `diffproof[attacks]`."""

from __future__ import annotations

import torch
from pyautoattack import AutoAttack

import diffproof as dp

images, labels = dp.load_data("digits", indices="0:4")
defense = dp.Undefended(dp.load_classifier("digits")).eval()

adversary = AutoAttack(defense, norm="Linf", eps=0.2, seed=0, version="standard")
adversarial, _ = adversary.run_standard_evaluation(images, labels)

# The same attack, each image on its own, so that results do not depend on batches; counts included.
# For a random defence give version="rand": the draws of noise behind a gradient then run as one batch.
results = dp.attack(defense, images, labels, attack="autoattack", threat="linf", budget=0.2)

for name, pictures in (
    ("before the attack", images),
    ("after pyautoattack", adversarial),
    ("after diffproof's call of it", torch.stack([result.adversarial for result in results])),
):
    print(f"right {name}: {int((defense(pictures).argmax(1) == labels).sum())} of {len(labels)}")
print("evaluations of each image:", *(result.forwards + result.backwards for result in results))
