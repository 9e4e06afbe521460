"""diffproof finetune."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from diffproof.cli.flags import command
from diffproof.cli.run_options import class_map_option
from diffproof.cli.screen import printed
from diffproof.cli.training_options import (
    TrainingOptions,
    fit_with_progress,
    objective_option,
    training_options,
    write_weights,
)

if TYPE_CHECKING:
    import torch

    from diffproof.classifiers.base import Classifier
    from diffproof.denoisers.base import Denoiser


@command()
@click.option("--classifier", required=True, help="Start from this classifier; see diffproof certify --help.")
@click.option(
    "--denoiser", required=True, help="Denoise by this diffusion model; see diffproof certify --help."
)
@click.option(
    "--sigma",
    required=True,
    type=float,
    help="Add noise of this standard deviation, > 0; pixels lie in [0, 1].",
)
@objective_option("finetune")
@training_options(iterations=1000, learning_rate=0.0001)
@class_map_option
@click.option("--extra-data", help="Train on a second set of images, too, with the same classes.")
@click.option("--extra-share", default=0.5, help="Draw this share of images from --extra-data, in (0, 1).")
def finetune(
    classifier: str,
    denoiser: str,
    sigma: float,
    objective: str | None,
    class_map: str | None,
    extra_data: str | None,
    extra_share: float,
    **common: Any,
) -> None:
    """Fine-tune a classifier on images that were noised and denoised in one shot.

    The weights file is a classifier for diffproof certify, at this sigma (that of module.path:factory is
    given as module.path:factory@FILE). Beside it comes the loss, .loss.csv and .loss.png. An interrupted
    fine-tuning continues when the same command is given again.
    """
    from diffproof.classifiers.saved import describe_base
    from diffproof.data.classes import match_classes
    from diffproof.training import finetune as finetuning
    from diffproof.training.batches import Mixture
    from diffproof.training.classifier import named_classes
    from diffproof.training.objectives.named import load_objective
    from diffproof.training.processes import is_first
    from diffproof.wording import counted

    objective = objective or "gaussian"
    loss = load_objective(objective)
    options = TrainingOptions(**common)
    options.check()
    settings = options.settings()
    model, diffusion = _networks(classifier, denoiser, options.torch_device())
    chosen, test, record = options.images()
    more = options.extra_images(extra_data)
    options.warn_of_shared(test, chosen, more)
    told = options.told(record, start=classifier, extra=more)
    images, extra, held_out = (
        found and match_classes(found, model, class_map).fitting(diffusion, model)
        for found in (chosen, more, test)
    )
    assert images is not None
    data = Mixture(images, extra, extra_share=extra_share, flip=options.flip)
    diffusion.check_sigma(sigma)
    description = describe_base(classifier) | named_classes(images, model)
    measured = partial(finetuning.denoised_accuracy, sigma=sigma, seed=options.seed)
    before = measured(model, diffusion, held_out) if held_out is not None and is_first() else None
    tuned, losses = fit_with_progress(
        options,
        images,
        partial(finetuning.finetune, model, diffusion, data, settings, sigma=sigma, objective=loss),
    )
    metrics = {}
    if held_out is not None:
        metrics["denoised_accuracy"] = round(measured(tuned, diffusion, held_out), 6)
    write_weights(options, tuned.network.state_dict(), description, losses, metrics, told, objective)
    if held_out is not None:
        printed(
            f"accuracy on {counted(len(held_out), 'denoised test image')}, sigma = {sigma:g}:"
            f" {before:.2%} before, {metrics['denoised_accuracy']:.2%} after"
        )


def _networks(classifier: str, denoiser: str, device: torch.device) -> tuple[Classifier, Denoiser]:
    """Both networks; ValueError for some that do not fit together."""
    from diffproof.checks import loading
    from diffproof.classifiers.named import load_classifier
    from diffproof.defenses.dds import DDS
    from diffproof.denoisers.named import load_denoiser

    with loading("classifier"):
        model = load_classifier(classifier).to(device)
    with loading("denoiser"):
        diffusion = load_denoiser(denoiser).to(device)
    DDS(diffusion, model)
    return model, diffusion
