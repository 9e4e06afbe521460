"""A run's results image by image, as text for other programs."""

from __future__ import annotations

import csv
import io
import json
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

from diffproof.checks import unknown_name
from diffproof.errors import ArgumentError
from diffproof.files import cell
from diffproof.runs.attack.report import load_attack_report
from diffproof.runs.attack.robustbench import UNKNOWN, robustbench_entry
from diffproof.runs.attack.store import AttackedImage, AttackStore
from diffproof.runs.certify.accuracy import accuracies, untaken
from diffproof.runs.certify.store import CertifyStore, ImageResult
from diffproof.wording import unfinished

FORMATS = ("cohen", "csv", "json", "robustbench")
ABSTAIN = -1


def export(folder: Path, form: str | None = None) -> str:
    """A run as text.

    Args:
        folder: the run folder, of a certification or of an attack.
        form: "csv", a line an image; "json", the settings and the images, with all their counts or labels; or
            "cohen", the TSV of Cohen et al.'s certify.py, which their analysis code reads: idx, label (the
            true one), predict (−1 for abstention), radius, correct (0 or 1), time (h:mm:ss.ffffff). Radii
            keep all digits where theirs have three; or "robustbench", an attacked defence's entry in its
            leaderboards, see `robustbench_entry`. None for cohen, of attacks for csv.

    Raises:
        ValueError: no run folder, or an unknown format.

    Warns:
        UserWarning: the run has not all its images, or it cannot know all that the format asks for.
    """
    attacked = AttackStore.holds(folder)
    form = form or ("csv" if attacked else "cohen")
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)
    if attacked and form == "cohen":
        raise ArgumentError("format", "cohen is for certifications, expected csv or json for an attack")
    if form == "robustbench":
        return _robustbench(folder, attacked)
    images: list[dict[str, Any]]
    if attacked:
        with AttackStore.reading(folder) as store:
            images, settings = [attacked_row(one) for one in store.results()], store.settings.as_dict()
            told = unfinished(len(images), store.identity.planned)
            store.warn_if_edited()
    else:
        with CertifyStore.reading(folder) as certified:
            results, settings = certified.results(), certified.settings.as_dict()
            images, identity = [certified_row(one) for one in results], certified.identity
            shares = accuracies(
                {one.image_index: one for one in results}, identity.indices, certified.settings
            )
            told = untaken(shares, len(results), identity.planned, certified.settings)
            certified.warn_if_edited()
    for remark in told:
        warnings.warn(f"{folder}: {remark}", stacklevel=2)
    if form == "cohen":
        return _cohen(results)
    if form == "json":
        return json.dumps({"settings": settings, "images": images}, indent=1) + "\n"
    text = io.StringIO()
    if images:
        # Lists of counts and labels are JSON's.
        columns = [name for name, value in images[0].items() if not isinstance(value, list)]
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for image in images:
            numbers = {name: int(one) if isinstance(one, bool) else one for name, one in image.items()}
            writer.writerow({name: cell(one) for name, one in numbers.items()})
    return text.getvalue()


def _robustbench(folder: Path, attacked: bool) -> str:
    if not attacked:
        raise ArgumentError("format", "robustbench is for attacks, expected cohen, csv or json")
    report = load_attack_report([folder])
    for remark in report.remarks:
        warnings.warn(remark, stacklevel=3)
    warnings.warn(f"to be filled in by you, null in the entry: {', '.join(UNKNOWN)}", stacklevel=3)
    return json.dumps(robustbench_entry(report.rows[0]), indent=2) + "\n"


def _cohen(results: list[ImageResult]) -> str:
    lines = ["idx\tlabel\tpredict\tradius\tcorrect\ttime"]
    for result in results:
        label = result.certificate.label
        lines.append(
            f"{result.image_index}\t{result.true_label}\t{ABSTAIN if label is None else label}"
            f"\t{result.certificate.radius!r}\t{int(result.correct)}\t{timedelta(seconds=result.seconds)}"
        )
    return "\n".join(lines) + "\n"


def certified_row(result: ImageResult) -> dict[str, Any]:
    """What a certificate tells, by column; docs/runs.md says what the columns mean."""
    one = result.certificate
    return {
        "image_index": result.image_index,
        "true_label": result.true_label,
        "label": one.label,
        "radius": one.radius,
        "correct": result.correct,
        "selected": one.selected,
        "p_a_lower": one.p_a_lower,
        "p_b_upper": one.p_b_upper,
        "scale": None if one.scales is None else one.scales["sigmas"][one.scales["scale"]],
        "draws": one.n,
        "stopped": one.stopped,
        "denoiser_evaluations": one.denoiser_evaluations,
        "classifier_evaluations": one.classifier_evaluations,
        "seconds": result.seconds,
        "image_hash": one.image_hash,
        "selection_counts": list(one.selection_counts),
        "counts": list(one.counts),
        "hits": [] if one.sequential is None else list(one.sequential["hits"]),
    }


def attacked_row(image: AttackedImage) -> dict[str, Any]:
    """What an attack on an image came to, by column; docs/runs.md says what the columns mean."""
    one = image.evaluated
    found = one.result

    def right(labels: tuple[int, ...]) -> float | None:
        return sum(label == one.true_label for label in labels) / len(labels) if labels else None

    return {
        "image_index": one.image_index,
        "true_label": one.true_label,
        "attacked": found is not None,
        "clean_right": right(one.clean_labels),
        "attacked_right": right(one.labels) if found is not None else 0.0,
        "control_wrong": one.control_wrong,
        "success": None if found is None else found.success,
        "first_success": None if found is None else found.first_success,
        "norm": None if found is None else found.norm,
        "forwards": None if found is None else found.forwards,
        "backwards": None if found is None else found.backwards,
        "draws": None if found is None else found.draws,
        "zero_gradients": None if found is None else found.zero_gradients,
        "seconds": image.seconds,
        "image_hash": image.image_hash,
        "clean_labels": list(one.clean_labels),
        "labels": list(one.labels),
    }
