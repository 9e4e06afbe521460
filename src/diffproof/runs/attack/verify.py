"""Verification of an attack run: perturbations by their norm, images by their hash, some scored again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from diffproof.attacks.features import distances, features_of
from diffproof.attacks.scoring import draw_labels
from diffproof.attacks.threat import Flow, Perceptual, PixelThreat, Threat, load_threat
from diffproof.attacks.views import FixedNoise
from diffproof.errors import ArgumentError
from diffproof.noise import Stream
from diffproof.runs.attack.job import AttackRun, prepare
from diffproof.runs.attack.report import scored
from diffproof.runs.attack.store import AttackedImage, AttackStore
from diffproof.runs.certify.redrawn import explained, spread
from diffproof.runs.certify.verify import (
    Verification,
    changed_code,
    check_asked,
    left_out,
    split_told,
    told_versions,
)
from diffproof.runs.places import Places
from diffproof.runs.store import Identity
from diffproof.smoothing.arithmetic import most_flips, uncertain
from diffproof.weights import hash_tensors
from diffproof.wording import counted, unfinished

# A norm above the budget by this much may be rounding: of pixels in float32, 0.5 + 0.1 − 0.5 is above 0.1.
_ROUNDING = 1e-5
# Distances of features that may be rounding, as shares, by the precision of the networks.
_OF_FEATURES = {"float32": 1e-3, "bfloat16": 0.1}
_UNCHECKED = "whether the attack that knows the noise finds no more"


def verify_attack(
    folder: Path, *, resample: int = 0, device: str = "auto", places: Places | None = None
) -> Verification:
    """Check every image of an attack run.

    Measures each perturbation of pixels again, compares images and labels with the data as they are now and
    the weights with those of the run, and draws the labels of `resample` attacked images again, spread
    evenly; of a run with fixed noise those of their clean images and of what the attack that knows it found
    under it, too. The attacks themselves are not repeated; nor is the movement of StAdv measured, which the
    image does not show. Distances of features are, by the defence's classifier.

    Args:
        folder: the run folder.
        resample: how many attacked images to draw labels of again, ≥ 0.
        device: where to.
        places: of data and networks; None for what the stored images and labels alone tell, without either.

    Raises:
        ValueError: no attack run, nothing finished in it, or its models or data are not to be had.
    """
    with AttackStore.reading(folder) as store:
        settings, results, identity = store.settings, store.results(), store.identity
        edited = store.edited()
    check_asked(folder, results, resample, places)
    threat = load_threat(settings.threat, settings.budget)
    failures = [
        failure for image in results for failure in failures_in_store(image, threat, identity)
    ] + edited
    mixed, remarks = told_versions({image.version for image in results})
    failures += mixed
    remarks += unfinished(len(results), identity.planned)
    if isinstance(threat, Flow):
        remarks.append(f"{threat.name}: how far pixels moved cannot be measured again")
    elif isinstance(threat, Perceptual) and places is None:
        remarks.append(f"{threat.name}: how far features moved takes the classifier, which is not loaded")
    if places is None:
        _, clean, attacked = scored(results, settings)
        remarks.append(
            f"from the labels: robust accuracy of one draw {attacked.fresh.value:.1%} (clean"
            f" {clean.fresh.value:.1%}), majority {attacked.majority.value:.1%},"
            f" worst {attacked.worst.value:.1%}"
        )
        covered = "perturbations, budgets, numbers of labels, hashes of the stored images"
        left = "images, true labels, weights, code; whether the defence gives these labels"
        left += f"; {_UNCHECKED}" * settings.fixed_noise
        return Verification(len(results), [], failures, remarks, covered, left)
    places.check(settings, folder)
    try:
        settings, found = places.settle(settings, identity, folder)
        with split_told():
            job = prepare(replace(settings, device=device))
    except ArgumentError as error:
        code = changed_code(identity, settings)
        if not code:
            raise
        return Verification(0, [], [*code, f"it does not run any more: {error}"], [])
    failures = changed_code(identity, settings) + failures
    failures += [failure for image in results for failure in failures_of(image, job, identity)]
    defense = job.view.defense
    if identity.weights_hash != hash_tensors(defense.state_dict(), defense.describe()):
        failures.append("the weights are not those that were attacked")
    attacked_images = [image for image in results if image.evaluated.result is not None]
    # The defence takes no other pixels; those are among the failures.
    chosen = spread([image for image in attacked_images if _in_range(image)], resample)
    wrong, ties = _scored_again(chosen, job)
    covered = "perturbations, budgets, images, true labels, weights" + ", code" * bool(identity.code)
    left = left_out(len(chosen), len(attacked_images), "labels after the attack")
    if settings.fixed_noise:
        left = f"{left}; {_UNCHECKED}".removeprefix("; ")
    drawn = [image.evaluated.image_index for image in chosen]
    return Verification(len(results), drawn, failures + wrong, found + remarks + ties, covered, left)


def _scored_again(chosen: list[AttackedImage], job: AttackRun) -> tuple[list[str], list[str]]:
    """What did not hold when labels were drawn again, and remarks."""
    wrong, ties = [], []
    fell, near, precision = 0, 0, job.settings.precision
    for image in chosen:
        before = torch.tensor(image.evaluated.labels)
        again, classes = _labels_again(image, job), job.view.defense.num_classes
        count = int((again != before).sum())
        may = uncertain(*(torch.bincount(one, minlength=classes).tolist() for one in (before, again)))
        fell, near = fell + count, near + may
        found = f"image {image.evaluated.image_index}: scored again, {count} of {len(before)} labels"
        if count > most_flips(may, precision):
            wrong.append(f"{found} fell otherwise, {explained(may, precision)}")
        elif count > 0:
            ties.append(f"{found} fell otherwise (rounding between machines)")
    # What might be rounding in each image is none in all of them together.
    if not wrong and fell > most_flips(near, precision):
        what = f"{counted(len(chosen), 'image')} scored again: {fell} labels fell otherwise"
        wrong.append(f"{what}, {explained(near, precision)}")
    for what, fallen in (("clean", _clean_again), ("attacked", _attacked_again)):
        told = [answer for image in chosen for answer in fallen(image, job)]
        fell = sum(told)
        if fell:
            found = (
                f"fixed noise: {fell} of the labels of {counted(len(told), f'{what} image')} fell otherwise"
            )
            # At worst each of them is on the boundary.
            (wrong if fell > most_flips(len(told), precision) else ties).append(found)
    return wrong, ties


def failures_in_store(image: AttackedImage, threat: Threat, identity: Identity) -> list[str]:
    """What is wrong with one image in itself, a line each."""
    one, found = image.evaluated, list[str]()
    if identity.indices and one.image_index not in identity.indices:
        found.append("the run has no such image")
    if image.image_hash != hash_tensors({"image": image.clean}):
        found.append("the stored image is not the one that was attacked")
    if one.fixed_right and (one.result is None or not one.fixed_clean):
        found.append("it withstands the attack that knows the noise, but is wrong before it")
    elif one.fixed_right and one.fixed_adversarial is None:
        found.append("it withstands the attack that knows the noise, whose image is not there")
    if one.fixed_adversarial is not None:
        known = one.fixed_adversarial
        if not bool(((known >= 0) & (known <= 1)).all()):
            found.append("what the attack that knows the noise found leaves [0, 1]")
        if isinstance(threat, PixelThreat):
            norm = float(threat.norm((known - image.clean)[None]))
            if norm > threat.budget + _ROUNDING:
                told = f"norm {norm:.6g}, the budget is {threat.budget:.6g}"
                found.append(f"what the attack that knows the noise found has {told}")
    if one.result is not None:
        adversarial = one.result.adversarial
        if not _in_range(image):
            found.append("the attacked image leaves [0, 1]")
        norm = one.result.norm
        if isinstance(threat, PixelThreat):
            norm = float(threat.norm((adversarial - image.clean)[None]))
            if abs(norm - one.result.norm) > _ROUNDING:
                found.append(f"its perturbation has norm {norm:.6g}, the result says {one.result.norm:.6g}")
        if norm > threat.budget + _ROUNDING:
            found.append(f"its perturbation has norm {norm:.6g}, the budget is {threat.budget:.6g}")
    return [f"image {one.image_index}: {what}" for what in found]


def _in_range(image: AttackedImage) -> bool:
    assert image.evaluated.result is not None
    adversarial = image.evaluated.result.adversarial
    return bool(((adversarial >= 0) & (adversarial <= 1)).all())


def failures_of(image: AttackedImage, job: AttackRun, identity: Identity) -> list[str]:
    """What one image says of the data and is not so, a line each."""
    one, found = image.evaluated, list[str]()
    index = one.image_index
    if not identity.indices and index not in job.indices:
        found.append("the run has no such image")
    if not 0 <= index < len(job.data):
        return [f"image {index}: the data has no such image"]
    pixels = job.data.pixels[index]
    if image.image_hash != hash_tensors({"image": pixels}) or not torch.equal(image.clean, pixels):
        found.append("the image is not the one that was attacked")
    if int(job.data.labels[index]) != one.true_label:
        found.append("the data gives another true label")
    if one.result is not None and isinstance(job.threat, Perceptual) and _in_range(image):
        pair = (one.result.adversarial[None].to(job.device), image.clean[None].to(job.device))
        norm = float(distances(features_of(job.view.defense), *pair))
        if abs(norm - one.result.norm) > _OF_FEATURES[job.settings.precision] * (1 + norm):
            found.append(f"its features are {norm:.4g} away, the result says {one.result.norm:.4g}")
    return [f"image {index}: {what}" for what in found]


def _labels_again(image: AttackedImage, job: AttackRun) -> Tensor:
    """The labels of the attacked image as its draws are labelled now."""
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
    return labels[0]


def _clean_again(image: AttackedImage, job: AttackRun) -> list[bool]:
    """Whether the clean image's answer under the fixed noise is another one now; [] where none was kept."""
    right = image.evaluated.fixed_clean
    return [] if right is None else [_is_right(image, image.clean, job) is not right]


def _attacked_again(image: AttackedImage, job: AttackRun) -> list[bool]:
    """Whether what the attack that knows the noise found is answered wrongly, though it withstood; [] where
    it did not: a wrong answer may be one that the attack saw before it ended.
    """
    found = image.evaluated.fixed_adversarial
    if found is None or not image.evaluated.fixed_right:
        return []
    return [not _is_right(image, found, job)]


def _is_right(image: AttackedImage, pixels: Tensor, job: AttackRun) -> bool:
    """Whether pixels are labelled as the image is, under the fixed noise."""
    index = torch.tensor([image.evaluated.image_index])
    answer = FixedNoise(job.view, job.settings.seed).answers(pixels[None].to(job.device), index)
    return int(answer) == image.evaluated.true_label
