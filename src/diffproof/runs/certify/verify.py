"""Verification of a run: radii from counts, images and weights by their hashes, some images drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from diffproof.errors import ArgumentError
from diffproof.runs.certify.run import CertifyRun, prepare
from diffproof.runs.certify.store import CertifyStore, ImageResult
from diffproof.runs.code import own_code_of
from diffproof.runs.settings import CertifySettings, RunSettings
from diffproof.runs.store import Identity
from diffproof.weights import hash_tensors
from diffproof.wording import part_of

# Draws that may fall to another label when drawn again, by floating-point ties between machines.
TOLERATED_FLIPS = 2
TOLERATED_SHARE = 0.001

T = TypeVar("T")


@dataclass(frozen=True)
class Verification:
    """What was checked and what was found wrong, a line each."""

    checked: int
    resampled: list[int]
    failures: list[str]
    remarks: list[str]


def verify(folder: Path, *, resample: int = 0, device: str = "auto") -> Verification:
    """Check every certificate of a run.

    Recomputes each radius from its counts, compares the certificate's statistics with the run's settings and
    its hashes with the data and weights as they are now, and draws `resample` images again, spread evenly.

    Raises:
        ValueError: no run folder, nothing finished in it, or its models or data are not to be had.
    """
    with CertifyStore.reading(folder) as store:
        settings, results, identity = store.settings, store.results(), store.identity
    if not results:
        raise ArgumentError("run", f"{folder} has no finished image yet")
    if resample < 0:
        raise ArgumentError("resample", f"expected a number ≥ 0, got {resample}")
    failures = changed_code(identity, settings)
    try:
        # Compiling takes minutes, and only drawing again runs the networks.
        job = prepare(replace(settings, device=device, compile=settings.compile and resample > 0))
    except ArgumentError as error:
        if not failures:
            raise
        return Verification(0, [], [*failures, f"it does not run any more: {error}"], [])
    failures += [failure for result in results for failure in failures_of(result, settings, job)]
    remarks: list[str] = []
    missing = set(job.indices) - {result.image_index for result in results}
    if missing:
        remarks.append(f"{part_of(len(results), len(job.indices), 'image')} finished")
    # Counts that fail their check cannot be compared with a new draw.
    broken = {failure.split(":")[0] for failure in failures}
    whole = [result for result in results if f"image {result.image_index}" not in broken]
    chosen = spread(whole, resample)
    for result in chosen:
        certificate = result.certificate
        draws, flips = certificate.n0 + certificate.n, _draw_again(result, job)
        found = f"image {result.image_index}: drawn again, at least {flips} of {draws} draws fell otherwise"
        if flips > max(TOLERATED_FLIPS, TOLERATED_SHARE * draws):
            failures.append(found)
        elif flips > 0:
            remarks.append(f"{found} (floating-point ties between machines)")
    return Verification(len(results), [result.image_index for result in chosen], failures, remarks)


def changed_code(identity: Identity, settings: RunSettings) -> list[str]:
    """The user's own modules that are not what a run was made with, a line each."""
    modules = identity.changed_code(own_code_of(settings))
    return [f"the code of {module} is not that which the run was made with" for module in modules]


def spread(results: Sequence[T], number: int) -> list[T]:
    """So many of the results, or all there are, spread evenly."""
    count = min(number, len(results))
    return [results[i * len(results) // count] for i in range(count)]


def failures_of(result: ImageResult, settings: CertifySettings, job: CertifyRun) -> list[str]:
    """What is wrong with one result, a line each."""
    certificate = result.certificate
    fixed = ("sigma", "n0", "n", "alpha", "bound", "seed")
    found = [
        f"{name} is {getattr(certificate, name)}, the run's is {getattr(settings, name)}"
        for name in fixed
        if getattr(certificate, name) != getattr(settings, name)
    ]
    counts = (certificate.selection_counts, certificate.counts)
    if any(len(part) != job.smoothed.num_classes or min(part) < 0 for part in counts):
        found.append(f"its counts are not those of {job.smoothed.num_classes} classes")
    elif (sum(certificate.selection_counts), sum(certificate.counts)) != (certificate.n0, certificate.n):
        found.append("its counts do not add up to n0 and n")
    elif certificate.selected != certificate.selection_counts.index(max(certificate.selection_counts)):
        found.append("the selected class did not get the most selection draws")
    elif not found:
        proved = certificate.recompute()
        label = certificate.selected if proved.radius > 0 else None
        stored = (certificate.p_a_lower, certificate.p_b_upper, certificate.radius)
        # Other releases of scipy may differ in the last places of a quantile.
        if any(abs(a - b) > 1e-9 for a, b in zip(proved, stored, strict=True)) or label != certificate.label:
            found.append(
                f"its counts prove radius {proved.radius:.6f}, the certificate says {certificate.radius:.6f}"
            )
    if result.image_index not in job.indices:
        found.append("the run has no such image")
    if certificate.image_index != result.image_index:
        found.append(f"it was made for image {certificate.image_index}")
    if certificate.grid_sigma != job.smoothed.grid_sigma:
        found.append(f"grid_sigma is {certificate.grid_sigma}, the denoiser's is {job.smoothed.grid_sigma}")
    if certificate.settings != job.smoothed.certificate_settings():
        found.append("it was made by a defence with other settings")
    if certificate.weights_hash != job.smoothed.weights_hash():
        found.append("the weights are not those it was made with")
    if not 0 <= result.image_index < len(job.data):
        found.append("the data has no such image")
    else:
        if certificate.image_hash != hash_tensors({"image": job.data.pixels[result.image_index]}):
            found.append("the image is not the one it was made for")
        stated = (certificate.image_size, certificate.classifier_size)
        sizes = job.smoothed.sizes(job.data.pixels[result.image_index])
        # Earlier versions stated no sizes.
        if stated not in (sizes, (None, None)):
            found.append(f"it states image and classifier sizes {stated}, they are {sizes}")
        if int(job.data.labels[result.image_index]) != result.true_label:
            found.append("the data gives another true label")
    return [f"image {result.image_index}: {what}" for what in found]


def _draw_again(result: ImageResult, job: CertifyRun) -> int:
    """The least number of draws that must have fallen to another label than before."""
    certificate, settings = result.certificate, job.settings
    again = job.smoothed.certify(
        job.data.pixels[result.image_index].to(job.device),
        n0=certificate.n0,
        n=certificate.n,
        alpha=certificate.alpha,
        seed=certificate.seed,
        image_index=result.image_index,
        batch_size=settings.batch_size,
        bound=certificate.bound,
    )
    old, new = ((*c.selection_counts, *c.counts) for c in (certificate, again))
    return sum(abs(a - b) for a, b in zip(old, new, strict=True)) // 2
