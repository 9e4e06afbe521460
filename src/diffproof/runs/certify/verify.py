"""Verification of a run: radii from counts, images and weights by their hashes, some images drawn again."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffproof.errors import ArgumentError
from diffproof.methods import own_class
from diffproof.runs.certify.ablation import failures_of_ballots
from diffproof.runs.certify.accuracy import accuracies, untaken
from diffproof.runs.certify.job import CertifyRun, prepare
from diffproof.runs.certify.redrawn import drawn_again
from diffproof.runs.certify.report import Row
from diffproof.runs.certify.store import CertifyStore, ImageResult
from diffproof.runs.code import own_code_of
from diffproof.runs.places import Places
from diffproof.runs.settings import CertifySettings, RunSettings
from diffproof.runs.store import Identity
from diffproof.smoothing.arithmetic import arithmetic
from diffproof.smoothing.certificate import Certificate, certifies
from diffproof.smoothing.stopping import Stopping
from diffproof.version import version
from diffproof.wording import counted

# Relative: noise levels computed on another machine may differ in their last bits.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Verification:
    """What was checked and what was found wrong, a line each.

    Attributes:
        checked: images.
        resampled: indices of those that were drawn again.
        failures: what does not hold.
        remarks: what else the reader must know.
        covered: what was checked, in words.
        left: what was not.
    """

    checked: int
    resampled: list[int]
    failures: list[str]
    remarks: list[str]
    covered: str = ""
    left: str = ""


def verify(
    folder: Path, *, resample: int = 0, device: str = "auto", places: Places | None = None
) -> Verification:
    """Check every certificate of a run.

    Recomputes each radius from its counts, compares the certificate's statistics with the run's settings and
    its hashes with the data and weights as they are now, and draws `resample` images again, spread evenly.

    Args:
        folder: the run folder.
        resample: how many images to draw again, ≥ 0.
        device: where to.
        places: of data and networks; None for what the counts alone tell, without either.

    Raises:
        ValueError: no run folder, nothing finished in it, or its models or data are not to be had.
    """
    with CertifyStore.reading(folder) as store:
        settings, results, identity = store.settings, store.results(), store.identity
        edited = store.edited()
        unlike = failures_of_ballots(store, results)
    check_asked(folder, results, resample, places)
    failures = [failure for result in results for failure in failures_of_counts(result, settings, identity)]
    failures += _unlike(results) + unlike + edited
    mixed, remarks = told_versions({one.certificate.version for one in results})
    failures += mixed
    shares = accuracies({one.image_index: one for one in results}, identity.indices, settings)
    remarks += untaken(shares, len(results), identity.planned, settings)
    remarks += [f"the {results[0].certificate.seed_told}"] if not settings.seed_drawn else []
    if places is None:
        row = Row((folder,), settings, identity.weights_hash, results, identity.planned)
        remarks.append(
            f"from the counts: certified accuracy {row.certified_accuracy(0.0):.1%}, average certified radius"
            f" {row.average_radius:.3f}, wrong {row.wrong:.1%}, abstained {row.abstained:.1%}"
        )
        covered = "counts, votes, radii and labels against each other and the settings"
        left = "images, true labels, weights, code; whether the networks give these counts"
        return Verification(len(results), [], failures, remarks, covered, left)
    places.check(settings, folder)
    try:
        settings, found = places.settle(settings, identity, folder)
        # Compiling takes minutes, and only drawing again runs the networks.
        with split_told():
            job = prepare(replace(settings, device=device, compile=settings.compile and resample > 0))
    except ArgumentError as error:
        code = changed_code(identity, settings)
        if not code:
            raise
        return Verification(0, [], [*code, f"it does not run any more: {error}"], [])
    failures = changed_code(identity, settings) + failures
    weights = job.smoothed.weights_hash()
    failures += [line for result in results for line in failures_of(result, job, identity, weights)]
    chosen, again, ties = drawn_again(results, failures, resample, job)
    covered = "counts, radii, images, true labels, weights" + ", code" * bool(identity.code)
    drawn = [result.image_index for result in chosen]
    left = left_out(len(drawn), len(results), "draws")
    return Verification(len(results), drawn, failures + again, found + remarks + ties, covered, left)


@contextmanager
def split_told() -> Iterator[None]:
    """Errors of the run's split come out as those of the data, which lacks it: nobody gave a split here."""
    try:
        yield
    except ArgumentError as error:
        if error.argument != "split":
            raise
        raise ArgumentError("data", f"split: {error.problem}") from None


def check_asked(folder: Path, results: Sequence[object], resample: int, places: Places | None) -> None:
    """Raise ValueError unless there is something to check, and what is to be drawn again can be."""
    if not results:
        raise ArgumentError("run", f"{folder} has no finished image yet")
    if resample < 0:
        raise ArgumentError("resample", f"expected a number ≥ 0, got {resample}")
    if places is None and resample:
        raise ArgumentError("resample", f"drawing again needs data and networks, got {resample} and --counts")


def told_versions(versions: Collection[str]) -> tuple[list[str], list[str]]:
    """What does not hold of the versions of diffproof that made the images of a run, and remarks."""
    names = ", ".join(sorted(versions))
    if len(versions) > 1:
        return [f"its images come from {len(versions)} versions of diffproof: {names}"], []
    return [], [] if version() in versions else [f"it was made by diffproof {names}, this is {version()}"]


def left_out(drawn: int, images: int, what: str) -> str:
    """What was not checked where data and networks were there."""
    return (
        f"{what} of {counted(images - drawn, 'image')}, which --resample makes again"
        if drawn < images
        else ""
    )


def changed_code(identity: Identity, settings: RunSettings) -> list[str]:
    """The user's own modules that are not what a run was made with, a line each."""
    modules = identity.changed_code(own_code_of(settings))
    return [f"the code of {module} is not that which the run was made with" for module in modules]


def failures_of_counts(result: ImageResult, settings: CertifySettings, identity: Identity) -> list[str]:
    """What is wrong with one result in itself and beside the run's settings, a line each."""
    certificate, sequential = result.certificate, result.certificate.sequential is not None
    fixed = (
        "sigma",
        "n0",
        *(() if sequential else ("n",)),
        "alpha",
        "bound",
        "seed",
        "seed_drawn",
        "noise",
        "levels",
    )
    found = [
        f"{name} is {getattr(certificate, name)}, the run's is {getattr(settings, name)}"
        for name in fixed
        if getattr(certificate, name) != getattr(settings, name)
    ]
    counts = (certificate.selection_counts, certificate.counts)
    if len(counts[0]) != len(counts[1]) or len(counts[0]) < 2 or min(map(min, counts)) < 0:
        found.append(f"its counts are not those of {len(counts[1])} classes")
    elif (sum(certificate.selection_counts), sum(certificate.counts)) != (certificate.n0, certificate.n):
        found.append("its counts do not add up to n0 and n")
    elif found_of_scales := _failures_of_scales(certificate, settings):
        found += found_of_scales
    elif not found and not (found := _failures_of_stop(certificate, settings)):
        proved = certificate.recompute()
        label = certificate.selected if certifies(proved, sequential) else None
        stored = (certificate.p_a_lower, certificate.p_b_upper, certificate.radius)
        # Other releases of scipy may differ in the last places of a quantile.
        if any(abs(a - b) > 1e-9 for a, b in zip(proved, stored, strict=True)) or label != certificate.label:
            found.append(
                f"its counts prove radius {proved.radius:.6f}, the certificate says {certificate.radius:.6f}"
            )
    if identity.indices and result.image_index not in identity.indices:
        found.append("the run has no such image")
    if certificate.image_index != result.image_index:
        found.append(f"it was made for image {certificate.image_index}")
    if certificate.weights_hash != identity.weights_hash:
        found.append("the weights are not those that the run was made with")
    if certificate.compiled and not settings.compile:
        found.append("it was made by compiled networks, the run's are not")
    for name in ("denoiser_evaluations", "classifier_evaluations"):
        spent, most = getattr(certificate, name), getattr(certificate, f"naive_{name}")
        if not 0 <= spent <= most or most % max(1, certificate.n0 + certificate.n):
            found.append(f"{name} is {spent}, expected at most {most}, as many for each draw")
    if own_class("defense", settings.defense) is None:
        method = settings.method.filled()
        of_run = {"method": method.name, **method.settings}
        found += [
            f"{name} is {certificate.settings[name]}, the run's is {value}"
            for name, value in of_run.items()
            # Lists of levels are filled in from the denoiser.
            if name in certificate.settings
            and not isinstance(certificate.settings[name], list)
            and str(certificate.settings[name]) != str(value)
        ]
    return [f"image {result.image_index}: {what}" for what in found]


def _failures_of_scales(certificate: Certificate, settings: CertifySettings) -> list[str]:
    """What is wrong with the class that was selected, and with the noise levels, a line each."""
    rule, stated = settings.rule(), certificate.scales
    if rule is None or stated is None:
        if (rule is None) != (stated is None):
            return ["its noise levels are not the run's"]
        most = certificate.selection_counts.index(max(certificate.selection_counts))
        right = certificate.selected == most
        return [] if right else ["the selected class did not get the most selection draws"]
    if not same(rule.stated(), {name: value for name, value in stated.items() if name != "scale"}):
        return [f"its noise levels are {stated}, the run's {rule.stated()}"]
    try:
        settled = certificate.settled
    except ArgumentError as error:
        return [f"it cannot be: {error}"]
    assert settled is not None
    if (settled.label, settled.scale) != (certificate.selected, stated.get("scale")):
        return ["class and noise level are not those that the selection draws choose"]
    return []


def _failures_of_stop(certificate: Certificate, settings: CertifySettings) -> list[str]:
    """What of a certificate's end of draws is not what the run's test says of its hits."""
    stated = certificate.sequential
    if stated is None or settings.stop == Stopping.FIXED:
        return (
            []
            if stated is None and settings.stop == Stopping.FIXED
            else ["its draws did not end as the run's"]
        )
    try:
        test, hits = settings.test(certificate.failure_mass), stated["hits"]
        assert test is not None
        asked = test.proved(hits)[1]
    except ArgumentError as error:
        return [f"it cannot be: {error}"]
    found = [
        f"{name} is {stated[name]}, expected {asked[name]}" for name in asked if stated[name] != asked[name]
    ]
    if not hits or (test.checkpoints[len(hits) - 1], hits[-1]) != (
        certificate.n,
        certificate.counts[certificate.selected],
    ):
        found.append("its hits do not end with its draws")
    elif not test.enough(hits) or test.enough(hits[:-1]):
        found.append("its draws did not end when they were enough")
    return found


def _unlike(results: Sequence[ImageResult]) -> list[str]:
    """What certificates of one run must have in common and do not."""
    certificates = [result.certificate for result in results]
    ways: dict[str, list[Any]] = {
        "numbers of classes": [len(one.counts) for one in certificates],
        "settings of the defence": [one.settings for one in certificates],
        "noise levels of the denoiser": [one.grid_sigma for one in certificates],
        "precisions": [(one.precision, one.compiled) for one in certificates if one.precision is not None],
    }
    found = []
    for what, values in ways.items():
        different: list[Any] = []
        for value in values:
            if not any(same(value, other) for other in different):
                different.append(value)
        if len(different) > 1:
            found.append(f"certificates with {len(different)} {what}")
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two values, or what two lists or mappings hold, are equal but for rounding of floats."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_ROUNDING)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def failures_of(result: ImageResult, job: CertifyRun, identity: Identity, weights: str | None) -> list[str]:
    """What one result says of data and networks, with this hash, and is not so, a line each."""
    certificate, found = result.certificate, list[str]()
    if len(certificate.counts) != job.smoothed.num_classes:
        found.append(f"its counts are not those of {job.smoothed.num_classes} classes")
    if not identity.indices and result.image_index not in job.indices:
        found.append("the run has no such image")
    if not same(certificate.grid_sigma, job.smoothed.grid_sigma):
        found.append(f"grid_sigma is {certificate.grid_sigma}, the denoiser's is {job.smoothed.grid_sigma}")
    if not same(certificate.settings, job.smoothed.certificate_settings()):
        found.append("it was made by a defence with other settings")
    for name, each in zip(("denoiser", "classifier"), job.smoothed.evaluations_per_draw, strict=True):
        naive, most = f"naive_{name}_evaluations", each * (certificate.n0 + certificate.n)
        if getattr(certificate, naive) != most:
            found.append(f"{naive} is {getattr(certificate, naive)}, expected {most}")
    if certificate.weights_hash != weights:
        found.append("the weights are not those it was made with")
    if not 0 <= result.image_index < len(job.data):
        found.append("the data has no such image")
    else:
        image = job.data.pixels[result.image_index]
        if certificate.image_hash != job.smoothed.image_hash(image):
            found.append("the image is not the one it was made for")
        noise = job.smoothed.noise
        if certificate.failure_mass < noise.failure_mass(image.numel()):
            found.append("it states less failure mass than its noise has")
        for name, is_so in (("off_grid", noise.off_grid(image.numel())), ("moved", noise.moved(image))):
            if not same(getattr(certificate, name), is_so):
                found.append(f"{name} is {getattr(certificate, name)}, expected {is_so}")
        stated = (certificate.image_size, certificate.classifier_size)
        sizes = job.smoothed.sizes(image)
        # Earlier versions stated neither sizes nor precision.
        if stated not in (sizes, (None, None)):
            found.append(f"it states image and classifier sizes {stated}, they are {sizes}")
        precision = arithmetic(job.smoothed.base, image)["precision"]
        if certificate.precision not in (precision, None):
            found.append(f"it was made in {certificate.precision}, the run's networks are in {precision}")
        if int(job.data.labels[result.image_index]) != result.true_label:
            found.append("the data gives another true label")
    return [f"image {result.image_index}: {what}" for what in found]
