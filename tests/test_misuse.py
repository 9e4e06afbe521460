"""The public API with wrong kinds and values: each a clear ArgumentError, or the right answer.

A row is a call, one of its arguments and a wrong value for it. The error names that argument, and says what
was expected.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import diffproof as dp
from diffproof.smoothing.outward import binomial_bound_below
from diffproof.theory.densities import GaussianMixture
from helpers.classifiers import steep_classifier
from helpers.denoisers import mixture
from helpers.images import pictures
from helpers.noise import noise_of

NAN, INF = float("nan"), float("inf")
SHAPE = (1, 2, 2)
IMAGES, LABELS = pictures(2, 0, SHAPE), torch.tensor([0, 1])
CLASSIFIER = steep_classifier()
DENOISER = mixture()
CONDITIONAL = mixture(component_labels=[0, 1, 2, 0, 1])
PLAIN = dp.Undefended(CLASSIFIER)
DDS = dp.DDS(DENOISER, CLASSIFIER, sigma=0.2)
DIFFPURE = dp.DiffPure(DENOISER, CLASSIFIER, t_star=0.1, steps=2)
INDEX = torch.tensor([0, 1])


def lacking(values: Tensor) -> tuple[Tensor, Tensor]:
    """Tensors without some or all of their values."""
    return values.to("meta"), values.to_sparse()


# Wrong values by kind. What is no number is wrong for every number, and what is no whole one for every count.
NO_NUMBER = (NAN, "0.5", True, torch.tensor(0.5), [0.5], 1j)
NO_INTEGER = (1.5, 2.0, NAN, "2", True, [2], "٢")
POSITIVE = (*NO_NUMBER, 0.0, -1.0, INF)
SHARE = (*NO_NUMBER, 0.0, -0.5, 1.5)
PROBABILITY = (*SHARE, 1.0)
COUNT = (*NO_INTEGER, 0, -1)
DRAWN = (*NO_INTEGER, -1, 2**64)  # None draws one
SEED = (*DRAWN, None)
INDICES = (*lacking(INDEX), [0], [0, 0], [0, -1], [0, 2**28], [0.0, 1.0], ["0", "1"], [False, True], 7)
TOO_LONG = ("a" * 300, "a" * 5000, "a/" * 3000, f"/{'a' * 300}.safetensors", f"{'a' * 300}.npz")
CHOICE: tuple[Any, ...] = ("nothing", 3, [], {}, "a" * 5000, "two\nlines", None)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that nested tensors are a prototype
    NESTED = torch.nested.nested_tensor(list(IMAGES))
PIXELS = (
    (IMAGES * 255).to(torch.uint8),
    IMAGES.tolist(),
    IMAGES.numpy(),
    IMAGES[0, 0, 0],
    *lacking(IMAGES),
    NESTED,
    IMAGES * NAN,
    IMAGES / 0,
    None,
    IMAGES.to(torch.complex64),
)
# The noise of smoothing takes pixels out of [0, 1], so that classifiers and denoisers take such, too.
CLEAN = (*PIXELS, IMAGES.half(), IMAGES.bfloat16(), IMAGES * 255, IMAGES * 2 - 1, IMAGES + 0.1, IMAGES - 1)
SHAPES = (
    IMAGES[0],
    IMAGES[:, 0],
    pictures(2, 0, (3, 2, 2)),
    IMAGES.permute(0, 2, 3, 1),
    pictures(2, 0, (1, 4, 4)),
)
TRUTH = (
    LABELS.double(),
    nn.functional.one_hot(LABELS, 3),
    LABELS.tolist(),
    LABELS.numpy(),
    LABELS + 2,
    LABELS - 1,
    LABELS[:1],
    LABELS.int(),
    *lacking(LABELS),
    None,
)
NO_MODULE = (None, "digits", torch.tanh, 3, nn.Linear)
NO_NOISE = (noise_of(1), 0, "noise", torch.zeros(2, *SHAPE))


def two_labels(noisy: Tensor) -> Tensor:
    return (noisy.mean((1, 2, 3)) > 0.5).long()


class Call(NamedTuple):
    """A function, right arguments, and by argument the wrong values."""

    function: Callable[..., Any]
    right: dict[str, Any]
    wrong: dict[str, tuple[Any, ...]]


def smoothed(method: str, wrong: dict[str, tuple[Any, ...]], **right: Any) -> Call:
    def call(sigma: float = 0.25, **arguments: Any) -> Any:
        return getattr(dp.Smoothed(DDS, sigma), method)(**arguments)

    several = [value for value in CLEAN if value is not NESTED]  # each image of it is a plain tensor
    image = tuple(value[0] if isinstance(value, Tensor | np.ndarray | list) else value for value in several)
    shapes = tuple(value[0] for value in SHAPES)
    common = {
        "sigma": POSITIVE,
        "image": image + shapes,
        "seed": DRAWN,
        "batch_size": COUNT,
        "alpha": PROBABILITY,
    }
    common["image_index"] = (*NO_INTEGER, -1, 2**28, 2**64, None)
    right = {"image": IMAGES[0], "n": 3, "alpha": 0.1, "seed": 0, "image_index": 0, "batch_size": 4, **right}
    return Call(call, right, {**common, "n": (*COUNT, 2**32 + 1), **wrong})


ATTACK: dict[str, Any] = {
    "attack": "pgd",
    "iterations": 1,
    "threat": "linf",
    "budget": 0.1,
    "seed": 0,
    "batch_size": 8,
}
ATTACKED = {
    "images": CLEAN + SHAPES,
    "labels": TRUTH,
    "seed": DRAWN,
    "image_indices": INDICES,
    "batch_size": COUNT,
}
BUDGET = (
    NAN,
    INF,
    0.0,
    -1.0,
    True,
    "",
    "1/0",
    "1e999",
    "1_0/255",
    "١/٢",
    "half",
    2.0,
    None,
    [0.1],
    torch.tensor(0.1),
)


def diagnosed(**arguments: Any) -> Any:
    return dp.diagnose(
        dp.AttackedDefense(DIFFPURE), threat=dp.Linf(0.1), attack=dp.PGD(iterations=1), **arguments
    )


def of_defense(defense: nn.Module, method: str = "forward") -> Call:
    function = defense if method == "forward" else getattr(defense, method)
    return Call(
        function, {"images": IMAGES, "noise": noise_of(2)}, {"images": CLEAN + SHAPES, "noise": NO_NOISE}
    )


def purifying(kind: Callable[..., Any], wrong: dict[str, tuple[Any, ...]], **right: Any) -> Call:
    networks = {"denoiser": (*NO_MODULE, CLASSIFIER), "classifier": (*NO_MODULE, nn.Identity())}
    return Call(kind, {"denoiser": DENOISER, "classifier": CLASSIFIER, **right}, {**networks, **wrong})


TIME = (*SHARE, INF)
STEPS = (*COUNT, 10**9)
SOLVED = {"steps": STEPS, "solver": CHOICE}
GRID = ((), [NAN], [0.2, 0.1], [0.0, 0.1], ["0.1"], "0.1", [True], 0.1)
LOSS = {
    "sigmas": GRID,
    "timesteps": ("none", "first:0", "uniform:1.5", "first:", "uniform:99999999", "first:١", 3, None),
    "weighting": CHOICE,
    "samples": (*COUNT, 10**9),
    "reduction": CHOICE,
}
PGD = {
    "iterations": STEPS,
    "eot": (*COUNT, 2**32),
    "step": POSITIVE,
    "loss": CHOICE,
    "mean_of": CHOICE,
    "direction": CHOICE,
    "random_start": (1, "true", None),
}
# What errors call an argument besides its own name: a part of it, or what it stands for.
ALSO = {
    "noisy": ("images",),
    "spec": ("denoiser", "classifier", "count", "data"),
    "source": ("data", "split"),
    "method": ("defense", "sigma", "steps"),
    "name": ("threat", "protocol"),
    "attack": ("iterations", "eot", "step"),
    "t_star": ("rounds", "steps"),
    "crop": ("resize",),
    "size": ("resize",),
    "start": ("draws",),
    "stop": ("draws",),
    "beta_max": ("beta_min",),
    "draw": ("image_index",),
    "rule": ("step_rule",),
    "rounds": ("steps",),
    "n0": ("n",),
    "base": ("num_classes",),
}
ROWS = PROBABILITIES = torch.tensor([[0.2, 0.8], [0.7, 0.3]])
SCORES = (
    PROBABILITIES[0],
    PROBABILITIES.tolist(),
    PROBABILITIES * NAN,
    PROBABILITIES.long(),
    PROBABILITIES[:0],
    *lacking(PROBABILITIES),
    None,
)
TWO = torch.tensor([1, 1])

CALLS = {
    "Smoothed": Call(
        dp.Smoothed,
        {"base": two_labels, "sigma": 0.25, "num_classes": 2},
        {
            "sigma": POSITIVE,
            "num_classes": (*COUNT, 1, None),
            "base": (None, 3, "digits", CLASSIFIER(IMAGES)),
        },
    ),
    "certify": smoothed("certify", {"n0": (*COUNT, 2**32 + 1), "bound": CHOICE}, n0=2, bound="one-sided"),
    "certify a data set": Call(
        dp.certify,
        {"images": IMAGES, "labels": LABELS, "defense": DDS, "sigma": 0.25, "n0": 2, "n": 3},
        {
            "images": CLEAN + SHAPES,
            "labels": TRUTH,
            "defense": (None, "digits", 3),
            "sigma": POSITIVE,
            "n0": (*COUNT, 2**32 + 1),
            "n": (*COUNT, 2**32 + 1),
            "alpha": PROBABILITY,
            "seed": DRAWN,
            "image_indices": INDICES,
            "batch_size": COUNT,
            "bound": CHOICE,
            "stop": CHOICE,
            "radii": ([0.1],),
            "num_classes": (*NO_INTEGER, 2),
            "noise": CHOICE,
            "levels": COUNT,
            "progress": (*CHOICE, 1),
        },
    ),
    "certified_accuracy": Call(
        dp.certify(IMAGES, LABELS, defense=DDS, sigma=0.25, n0=2, n=3).certified_accuracy,
        {"radius": 0.1},
        {"radius": (*NO_NUMBER, -0.1)},
    ),
    "predict": smoothed("predict", {}),
    "attack": Call(
        lambda **given: dp.attack(DIFFPURE, **given),
        {"images": IMAGES, "labels": LABELS, "image_indices": [0, 1], **ATTACK},
        {
            **ATTACKED,
            "budget": BUDGET,
            "threat": CHOICE,
            "attack": ("nothing", 3, None, "pgd:iterations=0", "os:abort"),
            "iterations": COUNT,
            "gradient": CHOICE,
            "surrogate_share": (0.5, NAN, "1"),
        },
    ),
    "evaluate": Call(
        lambda **given: dp.evaluate(DIFFPURE, **given),
        {"images": IMAGES, "labels": LABELS, "image_indices": [0, 1], "draws": 1, "votes": 1, **ATTACK},
        {**ATTACKED, "draws": (*COUNT, 10**9), "votes": (*COUNT, 10**9), "budget": BUDGET},
    ),
    "evaluate a module": Call(
        lambda defense: dp.evaluate(defense, IMAGES, LABELS, budget=0.1),
        {"defense": PLAIN},
        {"defense": (CLASSIFIER, nn.Identity(), None, "none", DENOISER)},
    ),
    "diagnose": Call(
        diagnosed,
        {"images": IMAGES, "labels": LABELS, "image_indices": [0, 1], "seed": 0, "batch_size": 8},
        ATTACKED,
    ),
    "gradient_similarity": Call(
        lambda **given: dp.gradient_similarity(DIFFPURE, **given),
        {
            "images": IMAGES,
            "labels": LABELS,
            "image_indices": [0, 1],
            "seed": 0,
            "repeats": 2,
            "batch_size": 8,
        },
        {**ATTACKED, "repeats": (*COUNT, 1), "loss": CHOICE},
    ),
    "Undefended()": of_defense(PLAIN),
    "DDS()": of_defense(DDS),
    "DiffPure()": of_defense(DIFFPURE),
    "AttackedDefense()": of_defense(dp.AttackedDefense(DIFFPURE)),
    "purify": of_defense(DIFFPURE, "purify"),
    "predict_labels": of_defense(DDS, "predict_labels"),
    "predict_proba": of_defense(DDS, "predict_proba"),
    "Purifier.predict_labels": of_defense(DIFFPURE, "predict_labels"),
    "DiffusionClassifier()": of_defense(dp.DiffusionClassifier(CONDITIONAL)),
    "DiffusionClassifier.predict_labels": of_defense(dp.DiffusionClassifier(CONDITIONAL), "predict_labels"),
    "RDC.purify": of_defense(dp.RDC(CONDITIONAL, iterations=1), "purify"),
    "batch_size": Call(
        lambda batch_size: DDS.predict_labels(IMAGES, batch_size=batch_size),
        {"batch_size": 1},
        {"batch_size": COUNT},
    ),
    "Classifier": Call(
        dp.Classifier,
        {"network": nn.Flatten(), "num_classes": 3, "mean": [0.5], "std": [0.5]},
        {
            "network": NO_MODULE,
            "num_classes": (*COUNT, 1, None),
            "image_shape": ((3,), (1, 0, 2), (1.0, 2, 2), "1x2x2", (1, 2, True), 3),
            "mean": ([NAN], [127.5], [INF], ["0.5"], [True], "0.5", [-3.0], 0.5, [0.5, 0.5]),
            "std": ([NAN], [127.5], [0.0], [-1.0], [INF], ["0.5"], "0.5", 0.5, [0.5, 0.5]),
            "resize": (32, "32"),
            "class_names": (["a"], "abc", [1, 2, 3], 3),
        },
    ),
    "Classifier()": Call(CLASSIFIER, {"images": IMAGES}, {"images": PIXELS + SHAPES}),
    "Resize": Call(
        dp.Resize,
        {"size": 4},
        {
            "size": (0, -1, 2.5, "4", True, (4,), (4, 0), None, NAN),
            "crop": (0, (5, 5), (2.0, 2), "2"),
            "interpolation": CHOICE,
        },
    ),
    "Denoiser()": Call(
        DENOISER,
        {"noisy": IMAGES, "sigma": 0.2},
        {
            "noisy": PIXELS + SHAPES,
            "sigma": (
                *NO_NUMBER[1:3],
                NAN,
                INF,
                0.0,
                -1.0,
                [0.2],
                torch.tensor([0.2] * 3),
                torch.tensor([NAN] * 2),
                *lacking(torch.tensor([0.2, 0.3])),
                torch.tensor([True, True]),
                torch.tensor([0.2, 0.3]).to(torch.complex64),
                None,
            ),
        },
    ),
    "per_class": Call(
        CONDITIONAL.per_class,
        {"noisy": IMAGES, "sigma": 0.2, "classes": LABELS},
        {
            "noisy": PIXELS + SHAPES,
            "classes": (*TRUTH[:4], *lacking(LABELS), LABELS + 3, LABELS - 1, LABELS[:0], LABELS.int(), 1),
        },
    ),
    "DiffusionLoss.losses": Call(
        dp.DiffusionLoss(CONDITIONAL, sigmas=[0.3]).losses,
        {"images": IMAGES, "noise": noise_of(2)},
        {"images": PIXELS},
    ),
    "Denoiser(label)": Call(
        CONDITIONAL,
        {"noisy": IMAGES, "sigma": 0.2, "label": LABELS},
        {"label": (*TRUTH[:3], *lacking(LABELS), LABELS[:1], LABELS + 3, LABELS - 1, LABELS.bool(), 1)},
    ),
    "one_shot": Call(
        dp.one_shot,
        {"denoiser": DENOISER, "noisy": IMAGES, "sigma": 0.2},
        {"denoiser": (*NO_MODULE, CLASSIFIER), "noisy": PIXELS + SHAPES},
    ),
    "posterior_sample": Call(
        dp.posterior_sample,
        {"denoiser": DENOISER, "noisy": IMAGES, "sigmas": [0.2, 0.1], "noise": noise_of(2)},
        {
            "denoiser": (*NO_MODULE, CLASSIFIER),
            "noisy": PIXELS + SHAPES,
            "sigmas": ((), [0.1, 0.2], [0.2, 0.2], [0.2, NAN], ["0.2"], 0.2),
            "noise": NO_NOISE,
            "eta": (*NO_NUMBER, -0.1, 1.1),
        },
    ),
    "select_sigmas": Call(
        dp.select_sigmas,
        {"denoiser": DENOISER, "sigma": 0.3, "steps": 2, "rule": "log-sigma"},
        {"denoiser": (*NO_MODULE, CLASSIFIER), "sigma": POSITIVE, "steps": STEPS, "rule": CHOICE},
    ),
    "NetworkDenoiser": Call(
        dp.NetworkDenoiser,
        {"network": nn.Identity(), "schedule": dp.DiscreteSchedule.linear(10)},
        {
            "network": NO_MODULE,
            "schedule": (None, "linear", 3),
            "prediction": CHOICE,
            "data_range": ((1.0, 0.0), (0.0, NAN), (0.0, INF), (0.0,), "01", (False, True), ("0", "1"), None),
            "image_shape": ((3,), (1, 0, 2), "1x2x2", 3),
            "num_classes": (*COUNT,),
            "null_label": (*NO_INTEGER, -1),
        },
    ),
    "DiscreteSchedule": Call(
        dp.DiscreteSchedule,
        {"alphas_cumprod": torch.tensor([0.9, 0.5])},
        {
            "alphas_cumprod": (
                torch.tensor([0.5, 0.9]),
                torch.tensor([NAN]),
                torch.zeros(0),
                *lacking(torch.tensor([0.9, 0.5])),
                [0.9, 0.5],
                None,
                "linear",
            )
        },
    ),
    "DiscreteSchedule.from_betas": Call(
        dp.DiscreteSchedule.from_betas,
        {"betas": [0.1, 0.2]},
        {"betas": (*lacking(torch.tensor([0.1, 0.2])), [], ["0.1"], "0.1", None, [0.1, NAN], [10**400])},
    ),
    "DiscreteSchedule.linear": Call(
        dp.DiscreteSchedule.linear,
        {"timesteps": 10},
        {"timesteps": STEPS, "start": PROBABILITY, "end": PROBABILITY},
    ),
    "DiscreteSchedule.cosine": Call(
        dp.DiscreteSchedule.cosine, {"timesteps": 10}, {"timesteps": STEPS, "max_beta": PROBABILITY}
    ),
    "VariancePreservingSchedule": Call(
        dp.VariancePreservingSchedule,
        {},
        {
            "beta_min": (*NO_NUMBER, -1.0, 30.0),
            "beta_max": (*NO_NUMBER, 0.0, INF),
            "smallest_time": PROBABILITY,
            "time_scale": POSITIVE,
        },
    ),
    "VarianceExplodingSchedule": Call(
        dp.VarianceExplodingSchedule, {}, {"sigma_low": POSITIVE, "sigma_high": (*POSITIVE, 0.001)}
    ),
    "EmpiricalDenoiser": Call(
        dp.EmpiricalDenoiser,
        {"images": IMAGES, "labels": LABELS},
        {
            "images": (*PIXELS, IMAGES[0]),
            "labels": (*TRUTH[:4], *TRUTH[5:7], *lacking(LABELS), LABELS.bool(), torch.tensor([0, 10**9])),
            "sigmas": GRID,
        },
    ),
    "GaussianMixtureDenoiser": Call(
        dp.GaussianMixtureDenoiser,
        {
            "means": IMAGES,
            "covariances": torch.tensor([0.1, 0.1]),
            "weights": [0.5, 0.5],
            "component_labels": [0, 1],
        },
        {
            "means": (*PIXELS, IMAGES[0], IMAGES[:0]),
            "covariances": (
                torch.tensor([0.1]),
                torch.tensor([0.1, -0.1]),
                torch.tensor([0.1, NAN]),
                *lacking(torch.tensor([0.1, 0.1])),
                torch.tensor([0.1, 0.1]).to(torch.complex64),
                [0.1, 0.1],
                None,
            ),
            "weights": (*lacking(LABELS / 1), [0.5, 0.6], [1.0, 0.0], [NAN, 1.0], ["a", "b"], [0.5]),
            "component_labels": ([0], [0, 2], [0.0, 1.0], [0, -1], ["0", "1"], [0, 10**9]),
            "sigmas": (torch.tensor([0.2, 0.1]), torch.tensor([NAN]), torch.zeros(0), [0.2, "0.1"]),
        },
    ),
    "Undefended": Call(
        dp.Undefended,
        {"classifier": CLASSIFIER},
        {"classifier": (*NO_MODULE, nn.Identity(), DENOISER), "sigma": POSITIVE},
    ),
    "theory.GaussianMixture": Call(
        GaussianMixture,
        {"means": ROWS, "covariances": torch.tensor([0.1, 0.1]), "weights": [0.5, 0.5], "labels": [0, 1]},
        {
            "means": (*lacking(ROWS), ROWS.tolist(), "means", ROWS * NAN, ROWS.long(), ROWS[0], None),
            "covariances": (*lacking(ROWS[0]), [0.1, 0.1], "0.1", 0.1, None),
            "weights": (*lacking(ROWS[0]), ["a", "b"], "0.5", [0.5, 0.6], [NAN, 1.0], 0.5),
            "labels": (*lacking(LABELS), ["a", "b"], "01", [0.0, 1.0], [0, -1], [0, 10**400], 0),
        },
    ),
    "theory.score": Call(
        GaussianMixture(ROWS, torch.tensor([0.1, 0.1])).score,
        {"points": ROWS, "sigma": 0.1},
        {"points": (*lacking(ROWS), ROWS.tolist(), "points", ROWS * NAN, ROWS.long(), ROWS[0], None)},
    ),
    "DDS": purifying(dp.DDS, {"sigma": POSITIVE}),
    "DensePure": purifying(
        dp.DensePure,
        {
            "steps": COUNT,
            "votes": (*COUNT, 10**9),
            "consensus": (*COUNT, 99),
            "step_rule": CHOICE,
            "eta": (*NO_NUMBER, -0.1, 1.1),
            "sigma": POSITIVE,
        },
        steps=2,
    ),
    "DiffPure": purifying(dp.DiffPure, {"t_star": TIME, **SOLVED}, t_star=0.1, steps=2),
    "DiffPure(sigma)": purifying(dp.DiffPure, {"sigma": POSITIVE}, sigma=0.1, steps=2),
    "GDMP": purifying(
        dp.GDMP,
        {
            "t_star": TIME,
            "rounds": (*COUNT, 10**9),
            **SOLVED,
            "likeness": CHOICE,
            "scale": POSITIVE,
            "budget": POSITIVE,
        },
        steps=2,
    ),
    "GradualNoise": purifying(
        dp.GradualNoise,
        {
            "t_star": ((), 0.1, "0.1", [NAN], ["0.1"], [True], [2.0]),
            "steps": ([1], 2, [1.0, 2.0], ["1", "2"], [0, 1], [10**9, 1]),
            "solver": CHOICE,
        },
        t_star=[0.1, 0.2],
        steps=[1, 2],
    ),
    "COUP": purifying(
        dp.COUP, {"t_star": TIME, **SOLVED, "scale": POSITIVE, "diffuse": (1, "true", None)}, steps=2
    ),
    "ADP": purifying(
        dp.ADP,
        {
            "sigma": (*NO_NUMBER, -1.0, INF),
            "score_sigma": POSITIVE,
            "steps": COUNT,
            "rate": POSITIVE,
            "samples": COUNT,
        },
    ),
    "SBGC": Call(
        dp.SBGC,
        {"denoiser": CONDITIONAL},
        {"denoiser": (*NO_MODULE, CLASSIFIER, DENOISER), "steps": COUNT, "temperature": POSITIVE},
    ),
    "AGDM": purifying(
        dp.AGDM,
        {
            "guide": (*NO_MODULE, nn.Identity()),
            "t_star": TIME,
            **SOLVED,
            "scale": POSITIVE,
            "variant": CHOICE,
            "where": CHOICE[:-1],
            "distance": CHOICE[:-1],
            "guide_last": (1, "true"),
            "label": CHOICE,
        },
        guide=CLASSIFIER,
        steps=2,
    ),
    "LikelihoodMaximization": purifying(
        dp.LikelihoodMaximization,
        {
            "iterations": STEPS,
            "budget": POSITIVE,
            "norm": CHOICE[:-1],
            "step": POSITIVE,
            "momentum": (*NO_NUMBER, -1.0, INF),
            "variant": CHOICE,
            **{name: LOSS[name] for name in ("sigmas", "timesteps", "weighting", "samples")},
        },
    ),
    "DiffusionClassifier": Call(
        dp.DiffusionClassifier,
        {"denoiser": CONDITIONAL},
        {
            "denoiser": (*NO_MODULE, CLASSIFIER, DENOISER),
            **LOSS,
            "shared_noise": (1, "true", None),
            "log_prior": ([0.0], [NAN] * 3, ["0"] * 3, 0.0, [True] * 3),
            "temperature": POSITIVE,
            "race_error": PROBABILITY,
        },
    ),
    "RDC": Call(
        dp.RDC,
        {"denoiser": CONDITIONAL},
        {
            "iterations": STEPS,
            "budget": POSITIVE,
            "step": POSITIVE,
            "likelihood_timesteps": LOSS["timesteps"],
            "temperature": POSITIVE,
        },
    ),
    "DiffusionLoss": Call(
        dp.DiffusionLoss, {"denoiser": CONDITIONAL}, {"denoiser": (*NO_MODULE, CLASSIFIER), **LOSS}
    ),
    "PGD": Call(dp.PGD, {}, PGD),
    "LowFrequency": Call(dp.LowFrequency, {}, {"share": SHARE, "iterations": COUNT}),
    "DiffAttack": Call(dp.DiffAttack, {}, {"weight": POSITIVE, "eot": COUNT}),
    "Lagrange": Call(
        dp.Lagrange, {}, {"weights": ((), [NAN], [-1.0], [INF], ["1"], [True], 1.0, "1"), "step": POSITIVE}
    ),
    "StAdv": Call(
        dp.StAdv, {}, {"iterations": STEPS, "eot": COUNT, "learning_rate": POSITIVE, "smoothness": POSITIVE}
    ),
    "Square": Call(dp.Square, {}, {"queries": (*COUNT, 2**32)}),
    "AutoAttack": Call(dp.AutoAttack, {"version": "rand"}, {"version": CHOICE, "eot": (*COUNT, 2**32)}),
    "Linf": Call(dp.Linf, {"budget": 0.1}, {"budget": (*POSITIVE, 1.5, "8/255", None)}),
    "L2": Call(dp.L2, {"budget": 0.1}, {"budget": (*POSITIVE, "8/255", None)}),
    "Flow": Call(dp.Flow, {"budget": 0.1}, {"budget": (*POSITIVE, 1.5, None)}),
    "FastLPA": Call(dp.FastLPA, {}, {"iterations": STEPS, "eot": COUNT}),
    "Perceptual": Call(dp.Perceptual, {"budget": 0.1}, {"budget": (*POSITIVE, "8/255", None)}),
    "load_threat": Call(
        dp.load_threat, {"name": "linf", "budget": "8/255"}, {"name": CHOICE, "budget": BUDGET}
    ),
    "AttackedDefense": Call(
        dp.AttackedDefense,
        {"defense": DIFFPURE, "gradient": "surrogate", "surrogate_share": 0.5},
        {"defense": (*NO_MODULE, CLASSIFIER), "gradient": CHOICE, "surrogate_share": SHARE},
    ),
    "Noise": Call(
        dp.Noise,
        {"seed": 0, "stream": dp.Stream.ATTACK, "image_index": INDEX, "draw": INDEX, "vote": INDEX},
        {
            "seed": SEED,
            "stream": (99, -1, "attack", None, 0.5),
            **{
                name: (
                    INDEX.int(),
                    INDEX.to(torch.uint8),
                    INDEX.double(),
                    INDEX.bool(),
                    INDEX - 1,
                    INDEX + size,
                    [0, 1],
                    INDEX[:, None],
                    *lacking(INDEX),
                    0,
                )
                for name, size in (("image_index", 2**28), ("draw", 2**32), ("vote", 2**16))
            },
        },
    ),
    "Noise.for_draws": Call(
        dp.Noise.for_draws,
        {"seed": 0, "stream": dp.Stream.ATTACK, "image_index": 0, "start": 0, "stop": 2},
        {
            "seed": SEED,
            "image_index": (*NO_INTEGER, -1, 2**28, 2**64),
            "start": (*NO_INTEGER, -1, 2),
            "stop": (*NO_INTEGER, 0, 2**32 + 1),
        },
    ),
    "Noise.normal": Call(
        noise_of(2).normal,
        {"shape": SHAPE, "step": 0, "dtype": torch.float64},
        {
            "shape": ((1, -1), (1.0,), "12", 3),
            "step": (-1, 2**16, 0.5, "0", True, INDEX.int(), INDEX[:1], *lacking(INDEX)),
            "dtype": (torch.int64, "float32", None),
        },
    ),
    "reliability": Call(
        dp.reliability,
        {"probabilities": PROBABILITIES, "labels": TWO},
        {
            "probabilities": (*SCORES, PROBABILITIES * 3),
            "labels": (*TRUTH[:4], *lacking(TWO), TWO + 1, TWO - 2, TWO[:1], None),
            "bins": (*COUNT, 10**9),
        },
    ),
    "fit_temperature": Call(
        dp.fit_temperature,
        {"logits": PROBABILITIES, "labels": TWO},
        {"logits": SCORES, "labels": (*TRUTH[:4], *lacking(TWO), TWO + 1, TWO[:1])},
    ),
    "scores": Call(
        lambda **given: dp.scores(
            dp.evaluate(PLAIN, IMAGES, LABELS, budget=0.1, iterations=1, draws=1, votes=1).images, **given
        ),
        {"num_classes": 3, "draws": 1, "votes": 1},
        {"num_classes": COUNT, "draws": (*COUNT, 2), "votes": (*COUNT, 2)},
    ),
    "load_data": Call(
        dp.load_data,
        {"source": "digits", "split": "test"},
        {
            "source": ("", " ", *TOO_LONG, "digit", None, 3, b"digits", ["digits"]),
            "split": ("", "tests", 3),
            "indices": (
                "",
                " ",
                "0,0,0",
                "0:3,2:4",
                "1_0",
                "١",
                "-1",
                "0x1",
                "1.0",
                "0:0",
                "1e3",
                "9" * 5000,
                "0:2:0",
                3,
                [0, 1],
            ),
            "limit": COUNT,
        },
    ),
    "load_denoiser": Call(
        dp.load_denoiser,
        {"spec": "digits"},
        {
            "spec": (
                "",
                " ",
                *TOO_LONG,
                None,
                3,
                "digit",
                "os:abort",
                "builtins:exit",
                "signal:pause",
                "posix:abort",
                "empirical:",
                "empirical:digits:test:0",
                "empirical:digits:test:1e3",
            )
        },
    ),
    "load_classifier": Call(
        dp.load_classifier,
        {"spec": "digits"},
        {
            "spec": (
                "",
                " ",
                *TOO_LONG,
                None,
                3,
                "digit",
                "os:abort",
                "builtins:exit",
                "signal:pause",
                "posix:abort",
                "torch:zeros",
                "hf:",
            )
        },
    ),
    "load_defense": Call(
        dp.load_defense,
        {"method": "dds", "denoiser": DENOISER, "classifier": CLASSIFIER},
        {
            "method": (
                "",
                " ",
                "dd",
                None,
                3,
                "os:abort",
                "dds:",
                "dds:sigma",
                "dds:steps=2",
                "dds:sigma=1_0",
                "dds:sigma=nan",
                "dds:sigma=١",
                "dds:sigma=1e999",
                "dds:sigma=",
            ),
            "guide": (CLASSIFIER,),
            "classifier": (None, "digits"),
            "denoiser": (None, "digits"),
        },
    ),
    "load_attack": Call(
        dp.load_attack,
        {"attack": "pgd"},
        {
            "attack": (
                "",
                " ",
                "pg",
                None,
                3,
                "os:abort",
                "pgd:",
                "pgd:eot=1_0",
                "pgd:eot=0x1",
                "pgd:eot=1e3",
                "pgd:eot=" + "9" * 5000,
                "pgd:step=1e999",
                "pgd:eot=1,eot=2",
            )
        },
    ),
    "load_protocol": Call(dp.load_protocol, {"name": "lee-kim"}, {"name": CHOICE}),
}


def refusal(function: Callable[..., Any], arguments: dict[str, Any]) -> dp.ArgumentError:
    try:
        answer = function(**arguments)
    except dp.ArgumentError as error:
        return error
    pytest.fail(f"{arguments} give {answer!r}")


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_are_refused_in_one_line(name: str) -> None:
    call = CALLS[name]
    call.function(**call.right)
    for argument, values in call.wrong.items():
        for value in values:
            error = refusal(call.function, {**call.right, argument: value})
            told = str(error)
            assert "\n" not in told
            assert len(told) < 400, told
            assert error.argument in ALSO.get(argument, ()) or argument in error.argument, told


# Right answers to what looks odd.


def test_numbers_of_numpy_are_numbers() -> None:
    usual = dp.Smoothed(DDS, 0.25).certify(
        IMAGES[0], n0=4, n=8, alpha=0.25, seed=3, image_index=2, batch_size=4
    )
    given: dict[str, Any] = {
        "n0": np.int64(4),
        "n": np.uint8(8),
        "alpha": np.float32(0.25),
        "seed": np.int64(3),
        "image_index": np.int32(2),
        "batch_size": np.int16(4),
    }
    odd = dp.Smoothed(DDS, np.float64(0.25)).certify(IMAGES[0], **given)
    assert odd == usual
    assert dp.Certificate.from_json(odd.to_json()) == usual


@pytest.mark.parametrize(
    "same",
    [
        lambda images: images.repeat_interleave(2, 3)[..., ::2],
        lambda images: images.transpose(2, 3).contiguous().transpose(2, 3),
        lambda images: images.to(memory_format=torch.channels_last),
        lambda images: images.clone().requires_grad_(),
        lambda images: torch.nn.Parameter(images),
    ],
    ids=["strided", "transposed", "channels last", "with gradient", "parameter"],
)
def test_how_images_lie_in_memory_changes_nothing(same: Callable[[Tensor], Tensor]) -> None:
    given = same(IMAGES)
    smoothed = dp.Smoothed(DDS, 0.25)
    settings: dict[str, Any] = {"n0": 4, "n": 8, "alpha": 0.25}
    assert smoothed.certify(given[0], **settings) == smoothed.certify(IMAGES[0], **settings)
    assert torch.equal(DIFFPURE(given, noise_of(2)), DIFFPURE(IMAGES, noise_of(2)))
    for one, other in zip(
        dp.attack(DIFFPURE, given, LABELS, **ATTACK),
        dp.attack(DIFFPURE, IMAGES, LABELS, **ATTACK),
        strict=True,
    ):
        assert torch.equal(one.adversarial, other.adversarial)


def test_rounding_takes_no_image_out_of_range() -> None:
    edge = torch.tensor([[[[-1e-7, 1 + 1e-7], [0.0, 1.0]]]], dtype=torch.float64)
    assert dp.Smoothed(DDS, 0.25).predict(edge[0], n=4, alpha=0.9) in (0, 1, 2, None)
    (result,) = dp.attack(DIFFPURE, edge, LABELS[:1], **ATTACK)
    assert 0.0 <= float(result.adversarial.min()) <= float(result.adversarial.max()) <= 1.0
    with pytest.raises(dp.ArgumentError, match=r"expected pixels in \[0, 1\], got \[-1.01e-05, 1\]"):
        DIFFPURE(edge.clamp(max=1.0) - torch.tensor([[1e-5, 0.0], [0.0, 0.0]]))


def test_labels_of_any_integers_are_labels() -> None:
    denoiser = dp.NetworkDenoiser(
        Labelled(), dp.DiscreteSchedule.linear(10), num_classes=3, null_label=3, prediction="v_prediction"
    )
    usual = denoiser(IMAGES, 0.1, LABELS)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert torch.equal(denoiser(IMAGES, 0.1, LABELS.to(dtype)), usual)


class Labelled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 1).double()

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        moved: Tensor = x + self.embedding(label)[..., None, None]
        return moved


def test_no_image_has_no_logits() -> None:
    assert DDS(IMAGES[:0], noise_of(2).split(2)[0].rows(torch.arange(0), torch.arange(0))).shape == (0, 3)


# Networks that are no functions of an image.


class Mode(nn.Module):
    """A classifier whose forward depends on its mode, as many a paper's does."""

    def __init__(self, answer: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer
        self.layer = nn.Linear(4, 3).double()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.layer(self.answer(self, images.flatten(1)))
        return logits


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3).double()


class FunctionalDropout(OneLayer):
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(nn.functional.dropout(images.flatten(1), 1e-9, self.training))
        return logits


def dropped(module: nn.Module, rows: Tensor) -> Tensor:
    return nn.functional.dropout(rows, 1e-9, module.training)


class Helped(OneLayer):
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(dropped(self, images.flatten(1)))
        return logits


class Named(OneLayer):
    def forward(self, images: Tensor) -> Tensor:
        mode: bool = getattr(self, "training")  # noqa: B009
        logits: Tensor = self.layer(nn.functional.dropout(images.flatten(1), 1e-9, mode))
        return logits


def hooked() -> nn.Module:
    network = layered(nn.Identity())
    network.register_forward_hook(lambda module, given, logits: dropped(module, logits))
    return network


def exchanged() -> nn.Module:
    network = layered(nn.Identity())
    plain = network.forward
    network.forward = lambda images: dropped(network, plain(images))
    return network


class Recurrent(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 3, num_layers=2, dropout=dropout, batch_first=True).double()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.lstm(images[:, 0])[0][:, -1]
        return logits


def layered(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(4, 3)).double()


class Attending(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, dropout, batch_first=True).double()

    def forward(self, images: Tensor) -> Tensor:
        rows: Tensor = self.attention(images[:, 0], images[:, 0], images[:, 0])[0]
        return rows.flatten(1)[:, :3]


IN_TRAINING: dict[str, Callable[[], nn.Module]] = {
    "RReLU": lambda: layered(nn.RReLU()),
    "InstanceNorm2d": lambda: layered(nn.InstanceNorm2d(1, track_running_stats=True)),
    "BatchNorm2d": lambda: layered(nn.BatchNorm2d(1)),
    "AlphaDropout": lambda: layered(nn.AlphaDropout(1e-9)),
    "_SpectralNorm": lambda: layered(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))),
    "Linear": lambda: layered(nn.utils.spectral_norm(nn.Linear(2, 2))),
    "FunctionalDropout": FunctionalDropout,
    "Helped": Helped,
    "Named": Named,
    "Sequential": hooked,
    "Sequential ": exchanged,
    "RecursiveScriptModule": lambda: torch.jit.script(layered(nn.Dropout(1e-9))),
    "LSTM": lambda: Recurrent(0.1),
    "MultiheadAttention": lambda: Attending(0.1),
}
HARMLESS: dict[str, Callable[[], nn.Module]] = {
    "InstanceNorm2d": lambda: layered(nn.InstanceNorm2d(1)),
    "LSTM": lambda: Recurrent(0.0),
    "MultiheadAttention": lambda: Attending(0.0),
}


def calls(defense: dp.CertifiableDefense) -> dict[str, Callable[[], object]]:
    """The public calls whose answer a network in training mode, or with a state, would spoil."""
    arguments: dict[str, Any] = {"budget": 0.1, "iterations": 1}
    return {
        "certify": lambda: dp.Smoothed(defense, 0.25).certify(IMAGES[0], n0=2, n=2),
        "predict": lambda: dp.Smoothed(defense, 0.25).predict(IMAGES[0], n=2),
        "attack": lambda: dp.attack(defense, IMAGES, LABELS, **arguments),
        "evaluate": lambda: dp.evaluate(defense, IMAGES, LABELS, draws=1, votes=1, **arguments),
        "similarity": lambda: dp.gradient_similarity(defense, IMAGES, LABELS, repeats=2),
    }


@pytest.mark.parametrize("name", IN_TRAINING)
def test_modules_in_training_mode_are_refused(name: str) -> None:
    defense = dp.Undefended(dp.Classifier(IN_TRAINING[name](), 3))
    labelling = {
        "labels": lambda: defense.predict_labels(IMAGES),
        "proba": lambda: defense.predict_proba(IMAGES),
    }
    for call in (calls(defense) | labelling).values():
        with pytest.raises(dp.ArgumentError, match=f"^classifier: {name.strip()} is in training mode"):
            call()
    defense.eval()
    for call in (calls(defense) | labelling).values():
        call()


def test_normalisation_by_the_batch_is_refused_in_any_mode() -> None:
    layer = nn.BatchNorm1d(4, track_running_stats=False)
    network = nn.Sequential(nn.Flatten(), layer, nn.Linear(4, 3)).double()
    for call in calls(dp.Undefended(dp.Classifier(network, 3)).eval()).values():
        with pytest.raises(dp.ArgumentError, match=r"^classifier: BatchNorm1d keeps no running statistics"):
            call()


@pytest.mark.parametrize("name", HARMLESS)
def test_modules_that_know_no_mode_are_taken_in_any(name: str) -> None:
    defense = dp.Undefended(dp.Classifier(HARMLESS[name](), 3))
    assert defense.training
    for call in calls(defense).values():
        call()


def seeding(module: nn.Module, rows: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.functional.dropout(rows, 0.5)


CHANGING: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "always dropout": lambda module, rows: nn.functional.dropout(rows, 0.5),
    "self-seeding": seeding,
    "random": lambda module, rows: rows + torch.rand_like(rows),
    "state": lambda module, rows: rows * module.calls,
    "batch mean": lambda module, rows: rows - rows.mean(0),
    "batch deviation": lambda module, rows: rows / rows.std(0, unbiased=False),
    "batch deviation of two at least": lambda module, rows: rows / (rows.std(0) + 0.1),
    "position": lambda module, rows: rows * torch.arange(1, len(rows) + 1)[:, None],
}


@pytest.mark.parametrize("name", CHANGING)
def test_networks_that_are_no_function_of_an_image_are_refused(name: str) -> None:
    torch.manual_seed(0)
    for call in calls(dp.Undefended(dp.Classifier(Mode(CHANGING[name]), 3)).eval()):
        defense = dp.Undefended(dp.Classifier(Mode(CHANGING[name]), 3)).eval()
        with pytest.raises(
            dp.ArgumentError, match=r"^classifier: gives one image other answers when asked again"
        ):
            calls(defense)[call]()


class Held:
    """A plain object that holds a module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, rows: Tensor) -> Tensor:
        held: Tensor = self.module(rows)
        return held


class Reaching(nn.Module):
    """A network that calls a module which is none of its children."""

    def __init__(self, held: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.hold = (held,)

    def forward(self, images: Tensor, *_: Tensor | None) -> Tensor:
        return self.hold[0](images + 0.25)


@pytest.mark.parametrize("inner", [nn.Dropout(0.5), nn.BatchNorm2d(1)], ids=["dropout", "batch norm"])
@pytest.mark.parametrize("closure", [False, True], ids=["object", "closure"])
def test_a_module_in_training_mode_that_is_reached_through_an_object(inner: nn.Module, closure: bool) -> None:
    held: Callable[[Tensor], Tensor] = (lambda rows: inner(rows)) if closure else Held(inner)
    image = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))

    def defended() -> dp.DiffPure:
        denoiser = dp.NetworkDenoiser(Reaching(held), dp.DiscreteSchedule.linear()).eval()
        return dp.DiffPure(denoiser, CLASSIFIER, t_star=0.01, steps=1)

    inner.train()
    network = nn.Sequential(Reaching(held), nn.Flatten(), nn.Linear(16, 3)).eval()
    for ask in ("predict_proba", "predict_labels"):
        defense = dp.Undefended(dp.Classifier(network, 3)).eval()
        with pytest.raises(dp.ArgumentError, match=r"^classifier: gives one image other answers"):
            getattr(defense, ask)(image)
    for ask in ("purify", "predict_proba"):
        with pytest.raises(dp.ArgumentError, match=r"^denoiser: gives one image other answers"):
            getattr(defended(), ask)(image)
    inner.eval()
    assert defended().purify(image).shape == image.shape
    assert dp.Undefended(dp.Classifier(network, 3)).predict_proba(image).shape == (2, 3)


class NoBrightCorner(nn.Module):
    """Fails for images with a bright corner, as negatives of the others have."""

    def __init__(self, noisy: bool) -> None:
        super().__init__()
        self.linear, self.noisy = nn.Linear(16, 3), noisy

    def forward(self, images: Tensor) -> Tensor:
        if bool((images[:, 0, 0, 0] > 0.9).any()):
            raise RuntimeError("too bright")
        logits: Tensor = self.linear(images.flatten(1))
        return logits + torch.rand_like(logits) if self.noisy else logits


def test_a_network_may_fail_for_images_that_nobody_gave() -> None:
    images = torch.zeros(2, 1, 4, 4)
    sound = dp.Undefended(dp.Classifier(NoBrightCorner(noisy=False), 3)).eval()
    assert sound.predict_proba(images).shape == (2, 3)
    with pytest.raises(dp.ArgumentError, match="too bright"):
        sound.predict_proba(1 - images)
    chance = dp.Undefended(dp.Classifier(NoBrightCorner(noisy=True), 3)).eval()
    with pytest.raises(dp.ArgumentError, match=r"^classifier: gives one image other answers"):
        chance.predict_proba(images)


class NoisyNetwork(nn.Module):
    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> Tensor:
        return x + 0.1 * torch.rand_like(x)


def test_a_denoiser_that_is_no_function_is_refused() -> None:
    denoiser = dp.NetworkDenoiser(NoisyNetwork(), dp.DiscreteSchedule.linear()).eval()
    for call in calls(dp.DDS(denoiser, CLASSIFIER, sigma=0.2)).values():
        with pytest.raises(dp.ArgumentError, match=r"^denoiser: gives one image other answers"):
            call()


class Output(nn.Module):
    """A network that makes something of its input."""

    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None) -> object:
        return self.make(x)


async def later(x: Tensor) -> Tensor:
    return x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: (x,), "got tuple; wrap it in a module"),
        (lambda x: {"sample": x}, "got dict; wrap it"),
        (lambda x: None, "got NoneType"),
        (lambda x: x.numpy(), "got ndarray"),
        (later, "got coroutine"),
        (lambda x: x > 0, "expected floats of 4×4 from the network, got shape .*, torch.bool"),
        (lambda x: x.long(), "expected floats of 4×4 from the network, got shape .*, torch.int64"),
        (lambda x: x[:, :, :1], r"expected floats of 4×4 from the network, got shape \(2, 1, 1, 4\)"),
        (lambda x: x[:1], "expected 1 or 2 output channels"),
    ],
)
def test_outputs_of_a_denoisers_network(make: Callable[[Tensor], object], message: str) -> None:
    denoiser = dp.NetworkDenoiser(Output(make), dp.DiscreteSchedule.linear()).eval()
    with pytest.raises(dp.ArgumentError, match=message):
        denoiser(torch.rand(2, 1, 4, 4), 0.2)
    if make is later:
        # What was never awaited would be told here.
        gc.collect()


class Asynchronous(nn.Module):
    async def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


@pytest.mark.slow
def test_async_functions_are_no_networks() -> None:
    with pytest.raises(dp.ArgumentError, match=r"^base: expected a tensor of 2 labels, got coroutine"):
        dp.Smoothed(later, 0.25, num_classes=2).certify(IMAGES[0], n0=2, n=2)  # type: ignore[arg-type]
    with pytest.raises(dp.ArgumentError, match=r"^classifier: expected a tensor of logits .* got coroutine"):
        dp.Classifier(Asynchronous(), 4)(IMAGES)
    # What was never awaited would be told here.
    gc.collect()


class Drifting(nn.Module):
    """A network that becomes another one after some images."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.layer = nn.Linear(IMAGES[0].numel(), 3)
        self.left = after

    def forward(self, images: Tensor) -> Tensor:
        self.left -= len(images)
        logits: Tensor = self.layer(images.flatten(1)) * (1 if self.left > 0 else -1)
        return logits


def drifting(after: int) -> dp.Undefended:
    torch.manual_seed(0)
    return dp.Undefended(dp.Classifier(Drifting(after), 3)).eval()


USES: dict[str, Callable[[dp.Undefended], object]] = {
    "certify": lambda defense: dp.Smoothed(defense, 0.25).certify(IMAGES[0], n0=10, n=40),
    "run": lambda defense: dp.PGD(iterations=5, eot=1).run(
        dp.AttackedDefense(defense),
        IMAGES,
        LABELS,
        threat=dp.Linf(0.1),
        seed=0,
        image_indices=range(2),
        batch_size=8,
    ),
    "evaluate": lambda defense: dp.evaluate(
        defense, IMAGES, LABELS, budget=0.1, iterations=1, draws=10, votes=1
    ),
}


@pytest.mark.parametrize("call", USES)
def test_a_network_that_changes_after_a_while_is_refused(call: str) -> None:
    with pytest.raises(dp.ArgumentError, match=r"^classifier: gives an image another answer by now"):
        USES[call](drifting(8))
    USES[call](drifting(10_000))


class Adapting(nn.Module):
    """A network that writes to its own weights or statistics, once, when it has seen some images."""

    def __init__(self, change: Callable[[Any], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(IMAGES[0].numel(), 3)
        self.register_buffer("running_calls", torch.zeros(()))
        self.change, self.left = change, 8

    def forward(self, images: Tensor) -> Tensor:
        before, self.left = self.left, self.left - len(images)
        if self.left <= 0 < before:
            with torch.no_grad():
                self.change(self)
        logits: Tensor = self.layer(images.flatten(1))
        return logits


@pytest.mark.parametrize("call", USES)
@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda network: network.layer.weight.mul_(0.99), "weight"),
        (lambda network: network.layer.weight.data.copy_(network.layer.weight.flip(0)), "weight"),
        (lambda network: network.layer.bias.data.copy_(network.layer.bias.roll(1)), "bias"),
        (lambda network: network.running_calls.add_(1), "running_calls"),
    ],
    ids=["a step", "swapped rows", "swapped numbers", "a statistic"],
)
def test_a_network_that_changes_its_own_weights_is_refused(
    call: str, change: Callable[[Any], object], name: str
) -> None:
    torch.manual_seed(0)
    defense = dp.Undefended(dp.Classifier(Adapting(change), 3)).eval()
    with pytest.raises(dp.ArgumentError, match=rf"^classifier: changes its own network\..*{name} while it"):
        USES[call](defense)


@pytest.mark.parametrize("call", USES)
def test_weights_may_change_between_two_uses(call: str) -> None:
    defense = drifting(10_000)
    for change in (torch.nn.init.ones_, torch.nn.init.zeros_):
        USES[call](defense)
        change(next(defense.parameters()))
    USES[call](defense)


def test_a_function_of_chance_is_refused() -> None:
    with torch.random.fork_rng():
        # Of this seed, the last draw alone would get its label again.
        torch.manual_seed(1)
        smoothed = dp.Smoothed(lambda noisy: torch.randint(2, (len(noisy),)), 0.25, num_classes=2)
        with pytest.raises(dp.ArgumentError, match=r"^base: gives one image another label when asked again"):
            smoothed.certify(IMAGES[0], n0=20, n=20, alpha=0.1, seed=0, image_index=0)


@pytest.mark.parametrize("load", [dp.load_data, dp.load_denoiser, dp.load_classifier])
@pytest.mark.parametrize("source", ["", " ", "a" * 256, "a/" * 2049])
def test_sources_that_no_system_can_look_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[[str], object], source: str
) -> None:
    # Which is a folder of class folders: an empty text is not this one.
    (tmp_path / "cat").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "cat" / "1.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(dp.ArgumentError, match="expected a name or a path, got"):
        load(source)


@pytest.mark.parametrize("scales", [(), (0.1, 0.25)], ids=["one level", "two"])
def test_a_function_that_changes_after_a_while_is_refused(scales: tuple[float, ...]) -> None:
    calls = 0

    def labels(noisy: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        label = noisy.flatten(1).sum(1) > IMAGES[0].sum()
        return label.long() if calls < 20 else torch.zeros(len(noisy), dtype=torch.int64)

    smoothed = dp.Smoothed(labels, 0.25, num_classes=2)
    if scales:
        smoothed = dp.MultiScale(labels, scales, num_classes=2)
    with pytest.raises(dp.ArgumentError, match=r"^base: gives an image another label by now than at first"):
        smoothed.certify(IMAGES[0], n0=20, n=500, seed=0, batch_size=10)


def test_a_chooser_that_changes_after_a_while_is_refused() -> None:
    given: dict[str, Any] = {"chooser": drifting(60), "choice_sigma": 0.25}
    smoothed = dp.DualSmoothed(drifting(10_000), (0.1, 0.25, 0.5), **given)
    with pytest.raises(dp.ArgumentError, match=r"^classifier: gives an image another answer by now"):
        smoothed.certify(IMAGES[0], n0=40, n=400, seed=0)


def test_a_function_that_gives_other_labels_is_refused() -> None:
    seen: list[int] = []

    def counting(noisy: Tensor) -> Tensor:
        seen.append(1)
        return torch.full((len(noisy),), len(seen) % 2)

    smoothed = dp.Smoothed(counting, 0.25, num_classes=2)
    with pytest.raises(dp.ArgumentError, match=r"^base: gives one image another label when asked again"):
        smoothed.certify(IMAGES[0], n0=2, n=2)


def test_a_denoiser_in_training_mode_is_refused() -> None:
    network = nn.Sequential(nn.Dropout(1e-9))
    denoiser = dp.NetworkDenoiser(network, dp.DiscreteSchedule.linear())
    sampling: list[Callable[[], object]] = [
        lambda: dp.one_shot(denoiser, IMAGES, 0.2),
        lambda: dp.posterior_sample(denoiser, IMAGES, [0.2, 0.1], noise_of(2)),
        lambda: dp.DDS(denoiser, CLASSIFIER, sigma=0.2).predict_labels(IMAGES),
    ]
    for call in sampling:
        with pytest.raises(dp.ArgumentError, match=r"^denoiser: Dropout is in training mode"):
            call()


class InPlace(nn.Module):
    num_classes = 4

    def forward(self, images: Tensor, *timestep_and_label: Any) -> Tensor:
        images.clamp_(0.4, 0.6)
        return images.flatten(1) if not timestep_and_label else images


def test_networks_that_change_their_input_are_refused_or_get_a_copy() -> None:
    images = IMAGES.clone()
    with pytest.raises(dp.ArgumentError, match=r"^classifier: changes its input in place"):
        dp.Undefended(InPlace()).predict_labels(images.clone())
    denoiser = dp.NetworkDenoiser(InPlace(), dp.VarianceExplodingSchedule(), prediction="v_prediction")
    with pytest.raises(dp.ArgumentError, match=r"^network: changes its input in place"):
        denoiser(images, 0.2)
    # Behind a normalisation it only gets what was made for it.
    dp.Undefended(dp.Classifier(InPlace(), 4)).predict_labels(images)
    assert torch.equal(images, IMAGES)


DATA = dp.load_data("digits", indices="0:4")
CERTIFICATE = dp.Smoothed(DDS, 0.2).certify(IMAGES[0], n0=2, n=5)
MISUSES: list[tuple[Callable[[], object], str]] = [
    (lambda: CERTIFICATE.covers(None, IMAGES[1]), "image: expected a torch tensor of floats"),  # type: ignore[arg-type]
    (lambda: CERTIFICATE.covers(IMAGES[0], "x"), "other: expected a torch tensor of floats"),  # type: ignore[arg-type]
    (lambda: CERTIFICATE.covers(IMAGES[0] * NAN, IMAGES[0]), "image: "),
    (lambda: CERTIFICATE.covers(IMAGES[0] * 255, IMAGES[0]), "image: "),
    (lambda: CERTIFICATE.covers(IMAGES[0], IMAGES[0] - 1), "other: "),
    (lambda: CERTIFICATE.covers(IMAGES[0].to("meta"), IMAGES[0]), "image: "),
    (
        lambda: dp.Smoothed(DDS, 0.2).certify(IMAGES[0], stop="sequential", radii=[[0.1]]),  # type: ignore[list-item]
        r"radii: expected numbers, got \[0.1\]",
    ),
    (
        lambda: dp.Smoothed(lambda rows: rows, 1e-320, num_classes=2),
        "sigma: expected levels·sigma ≥ 1e-09, got 255·9.99989e-321",
    ),
    (lambda: dp.Resize(4)("x"), "images: expected a torch tensor of floats"),  # type: ignore[arg-type]
    (lambda: dp.Resize(4)(IMAGES[0]), r"images: expected N×C×H×W, got shape \(1, 2, 2\)"),
    (lambda: DATA.select([1.5]), "indices: expected integers, got 1.5"),  # type: ignore[list-item]
    (lambda: DATA.select([-1]), "indices: expected 0 to 3, got -1"),
    (lambda: DATA.select([4]), "indices: expected 0 to 3, got 4"),
    (lambda: DATA.select("0:2"), "indices: "),  # type: ignore[arg-type]
    (lambda: DATA.batch(torch.tensor([0, 9])), "indices: expected 0 to 3, got 9"),
    (lambda: DATA.batch([True]), "indices: expected integers, got True"),
    (lambda: DATA.with_channels(0), "channels: expected 1 or 3, got 0"),
    (lambda: DATA.with_channels(2), "channels: expected 1 or 3, got 2"),
    (lambda: DATA.with_channels("3"), "channels: expected an integer"),  # type: ignore[arg-type]
    (lambda: dp.match_classes(None, CLASSIFIER), "data: expected a diffproof.ImageData, got None"),  # type: ignore[arg-type]
    (lambda: dp.match_classes(DATA, 3), "model: expected a network with num_classes, got 3"),
]


@pytest.mark.parametrize("number", range(len(MISUSES)))
def test_misuses_of_results_and_data(number: int) -> None:
    call, message = MISUSES[number]
    with pytest.raises(dp.ArgumentError, match=f"^{message}"):
        call()


@pytest.mark.parametrize("alpha", [1e-200, 2.3e-308, 5e-324])
def test_an_alpha_next_to_nothing_proves_next_to_nothing(alpha: float) -> None:
    for n in (1, 5, 10, 100):
        for count in (0, n // 2, n - 1, n):
            assert 0 <= binomial_bound_below(count, n, alpha) <= binomial_bound_below(count, n, 0.001)
