"""A torchattacks attack on DiffPure. Needs `pip install --no-deps torchattacks`: it asks for old requests."""

from __future__ import annotations

import torchattacks

import diffproof as dp

images, labels = dp.load_data("digits", indices="0:8")
defense = dp.DiffPure(dp.load_denoiser("digits"), dp.load_classifier("digits"), t_star=0.05, steps=2).eval()

attack = torchattacks.EOTPGD(defense, eps=0.2, alpha=0.05, steps=10, eot_iter=2)
adversarial = attack(images, labels)

# The defence is random: each call draws fresh noise.
for name, pictures in (("before", images), ("after", adversarial)):
    print(f"right {name} the attack: {int((defense(pictures).argmax(1) == labels).sum())} of {len(labels)}")
