"""The diffusion model as the classifier: DC and RDC on digits, and probabilities that mean what they say."""

from __future__ import annotations

from pathlib import Path

import torch

import diffproof as dp

images, labels = dp.load_data("digits", split="test", indices="0:160")
denoiser = dp.load_denoiser("digits")
torch.manual_seed(0)  # a defence that is called without noise draws it from torch's global generator

# 4 of the model's 1,000 noise levels; all of them say more, and take 250 times as long.
dc = dp.DiffusionClassifier(denoiser, timesteps="uniform:4")
# Likelihood maximisation first: pixels move by at most 8/255, to where the image is likelier.
rdc = dp.RDC(denoiser, iterations=3, budget=8 / 255, likelihood_timesteps="uniform:4", timesteps="uniform:4")
cnn = dp.Undefended(dp.load_classifier("digits"))
with torch.no_grad():
    for name, classifier in {"CNN": cnn, "DC": dc, "RDC": rdc}.items():
        right = int((classifier(images[:40]).argmax(1) == labels[:40]).sum())
        print(f"{name}: {right} of 40 test digits right")
    logits = dc(images)

# The temperature is fitted on 80 digits and judged on 80 others. The denoiser saw none of them in training.
temperature = dp.fit_temperature(logits[:80], labels[:80])
calibrated = dp.DiffusionClassifier(denoiser, timesteps="uniform:4", temperature=temperature)
with torch.no_grad():
    probabilities = calibrated.predict_proba(images[80:])
before = dp.reliability(torch.softmax(logits[80:], 1), labels[80:])
after = dp.reliability(probabilities, labels[80:])
for name, measured in {"temperature 1": before, f"temperature {temperature:.2f}": after}.items():
    print(
        f"{name}: accuracy {measured.accuracy:.1%}, mean confidence {measured.confidence:.1%},"
        f" ECE {measured.ece:.1%}, negative log-likelihood {measured.nll:.3f}"
    )
dp.save_reliability(
    Path("reliability.png"), {"temperature 1": before, f"temperature {temperature:.2f}": after}
)
print("written: reliability.png")
