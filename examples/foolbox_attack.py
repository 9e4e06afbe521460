"""A foolbox attack on DiffPure: a defence is a torch module of [0, 1] pixels. Needs `pip install foolbox`."""

from __future__ import annotations

import foolbox

import diffproof as dp

images, labels = dp.load_data("digits", indices="0:8")
defense = dp.DiffPure(dp.load_denoiser("digits"), dp.load_classifier("digits"), t_star=0.05, steps=2).eval()

model = foolbox.PyTorchModel(defense, bounds=(0, 1))
attack = foolbox.attacks.LinfPGD(steps=10)
_, adversarial, _ = attack(model, images, labels, epsilons=0.2)

# The defence is random: each call draws fresh noise.
for name, pictures in (("before", images), ("after", adversarial)):
    print(f"right {name} the attack: {int((defense(pictures).argmax(1) == labels).sum())} of {len(labels)}")
