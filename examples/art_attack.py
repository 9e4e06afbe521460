"""An attack of ART on DiffPure. Needs `pip install adversarial-robustness-toolbox`."""

from __future__ import annotations

import torch
from art.attacks.evasion import AutoProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier

import diffproof as dp

images, labels = dp.load_data("digits", indices="0:8")
defense = dp.DiffPure(dp.load_denoiser("digits"), dp.load_classifier("digits"), t_star=0.05, steps=2).eval()

estimator = PyTorchClassifier(
    defense, torch.nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=10, clip_values=(0.0, 1.0)
)
attack = AutoProjectedGradientDescent(
    estimator, eps=0.2, eps_step=0.1, max_iter=10, nb_random_init=1, verbose=False
)
adversarial = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))

# The defence is random: each call draws fresh noise.
for name, pictures in (("before", images), ("after", adversarial)):
    right = int((defense(pictures).argmax(1) == labels).sum())
    print(f"right {name} the attack: {right} of {len(labels)}")
