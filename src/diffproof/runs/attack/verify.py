"""Verification of an attack run: perturbations by their norm, images by their hash, some scored again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from diffproof.attacks.scoring import draw_labels
from diffproof.attacks.threat import PixelThreat
from diffproof.errors import ArgumentError
from diffproof.noise import Stream
from diffproof.runs.attack.run import AttackRun, prepare
from diffproof.runs.attack.store import AttackedImage, AttackStore
from diffproof.runs.certify.verify import (
    TOLERATED_FLIPS,
    TOLERATED_SHARE,
    Verification,
    changed_code,
    spread,
)
from diffproof.weights import hash_tensors
from diffproof.wording import part_of

# A norm above the budget by this much may be rounding: of pixels in float32, 0.5 + 0.1 − 0.5 is above 0.1.
_ROUNDING = 1e-5


def verify_attack(folder: Path, *, resample: int = 0, device: str = "auto") -> Verification:
    """Check every image of an attack run.

    Measures each perturbation of pixels again, compares images and labels with the data as they are now and
    the weights with those of the run, and draws the labels of `resample` attacked images again, spread
    evenly. The attack itself is not repeated; nor is the movement of StAdv measured, which the image does not
    show.

    Raises:
        ValueError: no attack run, nothing finished in it, or its models or data are not to be had.
    """
    with AttackStore.reading(folder) as store:
        settings, results, identity = store.settings, store.results(), store.identity
    if not results:
        raise ArgumentError("run", f"{folder} has no finished image yet")
    if resample < 0:
        raise ArgumentError("resample", f"expected a number ≥ 0, got {resample}")
    failures = changed_code(identity, settings)
    try:
        job = prepare(replace(settings, device=device))
    except ArgumentError as error:
        if not failures:
            raise
        return Verification(0, [], [*failures, f"it does not run any more: {error}"], [])
    failures += [failure for image in results for failure in failures_of(image, job)]
    defense = job.view.defense
    if identity.weights_hash != hash_tensors(defense.state_dict(), defense.describe()):
        failures.append("the weights are not those that were attacked")
    remarks: list[str] = []
    missing = set(job.indices) - {image.evaluated.image_index for image in results}
    if missing:
        remarks.append(f"{part_of(len(results), len(job.indices), 'image')} finished")
    if not isinstance(job.threat, PixelThreat):
        remarks.append(f"{job.threat.name}: how far pixels moved cannot be measured again")
    chosen = spread([image for image in results if image.evaluated.result is not None], resample)
    for image in chosen:
        index, draws, flips = image.evaluated.image_index, len(image.evaluated.labels), _flips(image, job)
        found = f"image {index}: scored again, {flips} of {draws} labels fell otherwise"
        if flips > max(TOLERATED_FLIPS, TOLERATED_SHARE * draws):
            failures.append(found)
        elif flips > 0:
            remarks.append(f"{found} (floating-point ties between machines)")
    return Verification(len(results), [image.evaluated.image_index for image in chosen], failures, remarks)


def failures_of(image: AttackedImage, job: AttackRun) -> list[str]:
    """What is wrong with one image, a line each."""
    one, found = image.evaluated, []
    index = one.image_index
    if index not in job.indices:
        found.append("the run has no such image")
    if not 0 <= index < len(job.data):
        return [f"image {index}: the data has no such image"]
    pixels = job.data.pixels[index]
    if image.image_hash != hash_tensors({"image": pixels}) or not torch.equal(image.clean, pixels):
        found.append("the image is not the one that was attacked")
    if int(job.data.labels[index]) != one.true_label:
        found.append("the data gives another true label")
    if one.result is not None:
        adversarial = one.result.adversarial
        if not bool(((adversarial >= 0) & (adversarial <= 1)).all()):
            found.append("the attacked image leaves [0, 1]")
        norm = one.result.norm
        if isinstance(job.threat, PixelThreat):
            norm = float(job.threat.norm((adversarial - pixels)[None]))
            if abs(norm - one.result.norm) > _ROUNDING:
                found.append(f"its perturbation has norm {norm:.6g}, the result says {one.result.norm:.6g}")
        if norm > job.threat.budget + _ROUNDING:
            found.append(f"its perturbation has norm {norm:.6g}, the budget is {job.threat.budget:.6g}")
    return [f"image {index}: {what}" for what in found]


def _flips(image: AttackedImage, job: AttackRun) -> int:
    """How many labels of the attacked image differ from those stored."""
    one = image.evaluated
    assert one.result is not None
    labels = draw_labels(
        job.view.defense,
        one.result.adversarial[None].to(job.device),
        draws=len(one.labels),
        seed=job.settings.seed,
        image_indices=[one.image_index],
        batch_size=job.settings.batch_size,
        stream=Stream.SCORING,
    )
    return int((labels[0] != torch.tensor(one.labels)).sum())
