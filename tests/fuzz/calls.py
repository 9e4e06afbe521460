"""Cases of public calls: sound arguments of which one or two are exchanged."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

import diffproof as dp
from diffproof.errors import LONGEST_LINE
from fuzz.trial import Case

_SOURCE = str(Path(dp.__file__).parent)


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def _defense(name: str, **settings: Any) -> Any:
    return dp.load_defense(
        {"name": name, **settings},
        denoiser=dp.load_denoiser("digits"),
        classifier=dp.load_classifier("digits"),
    )


def _smoothed(sigma: float) -> dp.Smoothed:
    return dp.Smoothed(dp.Undefended(dp.load_classifier("digits")), sigma=sigma)


def _images() -> Tensor:
    return torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))


IMAGE: dict[str, Callable[[], Any]] = {"image": lambda: _images()[0]}
BATCH: dict[str, Callable[[], Any]] = {"images": _images}


def _given(**values: Any) -> dict[str, Callable[[], Any]]:
    return {name: partial(values.get, name) for name in values}


# What is called, and its sound arguments, made afresh for each case.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Callable[[], Any]]]] = {
    "certify": (
        lambda image, sigma, **more: _smoothed(sigma).certify(image, **more),
        IMAGE
        | _given(sigma=0.25, n0=4, n=8, alpha=0.01, seed=0, image_index=0, batch_size=4, bound="one-sided"),
    ),
    "certify a data set": (
        lambda images, **more: dp.certify(images, defense=_defense("dds"), **more),
        BATCH | _given(labels=torch.tensor([1, 2]), sigma=0.25, n0=4, n=8, alpha=0.01, seed=0, batch_size=4),
    ),
    "predict": (
        lambda image, sigma, **more: _smoothed(sigma).predict(image, **more),
        IMAGE | _given(sigma=0.25, n=8, alpha=0.01, seed=0, image_index=0, batch_size=4),
    ),
    "Classifier": (
        lambda images, network, num_classes, **more: dp.Classifier(network, num_classes, **more).eval()(
            images
        ),
        BATCH | _given(num_classes=10, image_shape=(1, 8, 8), mean=[0.5], std=[0.5]) | {"network": network},
    ),
    "denoiser": (
        lambda images, sigma, label: dp.load_denoiser("digits")(images, sigma, label),
        BATCH | _given(sigma=0.25, label=None),
    ),
    "one_shot": (
        lambda images, sigma, label: dp.one_shot(dp.load_denoiser("digits"), images, sigma, label=label),
        BATCH | _given(sigma=0.25, label=torch.tensor([1, 2])),
    ),
    "dds": (lambda images, noise: _defense("dds")(images, noise), BATCH | _given(noise=None)),
    "diffpure": (
        lambda images, **settings: _defense("diffpure", **settings)(images),
        BATCH | _given(t_star=0.01, steps=1, solver="ddpm"),
    ),
    "densepure": (
        lambda image, sigma, **settings: dp.Smoothed(_defense("densepure", **settings), sigma=sigma).predict(
            image, n=4
        ),
        IMAGE | _given(steps=1, votes=2, sigma=0.25, step_rule="authors"),
    ),
    "attack": (
        lambda images, labels, **more: dp.attack(_defense("dds"), images, labels, **more),
        BATCH
        | _given(
            labels=torch.tensor([1, 2]), attack="pgd:iterations=1,eot=1", threat="linf", budget="0.1", seed=0
        ),
    ),
    "evaluate": (
        lambda images, labels, **more: dp.evaluate(_defense("dds"), images, labels, **more),
        BATCH
        | _given(
            labels=torch.tensor([1, 2]), attack="pgd:iterations=1,eot=1", threat="l2", budget=0.1, draws=2
        ),
    ),
    "load_data": (
        dp.load_data,
        _given(source="data.npz", split=None, indices="0:2", limit=2, image_size=None),
    ),
    "load_denoiser": (dp.load_denoiser, _given(spec="denoiser.safetensors")),
    "load_classifier": (dp.load_classifier, _given(spec="classifier.safetensors")),
    "load_threat": (dp.load_threat, _given(name="linf", budget="8/255")),
    "load_attack": (dp.load_attack, _given(attack="pgd:iterations=2,eot=1")),
    "select_sigmas": (
        lambda **more: dp.select_sigmas(dp.load_denoiser("digits"), **more),
        _given(sigma=0.25, steps=3, rule="authors"),
    ),
    "Noise": (
        lambda shape, step, **more: dp.Noise.for_rows(**more).normal(shape, step, torch.float32),
        _given(seed=0, stream=dp.Stream.FORWARD, image_index=torch.tensor([0, 1]), draw=torch.tensor([0, 1]))
        | _given(shape=(1, 2), step=0),
    ),
    "fit_temperature": (
        dp.fit_temperature,
        _given(logits=torch.eye(3) * 2 + 0.1, labels=torch.tensor([0, 1, 1])),
    ),
    "reliability": (
        dp.reliability,
        _given(probabilities=torch.eye(3) * 0.7 + 0.1, labels=torch.tensor([0, 1, 1]), bins=3),
    ),
    "EmpiricalDenoiser": (
        lambda images, labels, sigma: dp.EmpiricalDenoiser(images, labels)(images, sigma),
        BATCH | _given(labels=torch.tensor([0, 1]), sigma=0.3),
    ),
    "GaussianMixture": (
        lambda images, covariances, weights, sigma: dp.GaussianMixtureDenoiser(images, covariances, weights)(
            images, sigma
        ),
        BATCH | _given(covariances=torch.tensor([0.1, 0.2]), weights=[0.5, 0.5], sigma=0.3),
    ),
    "from_json": (dp.Certificate.from_json, _given(text="{}")),
}
_SCALARS: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        1,
        2,
        10**12,
        2**64,
        0.5,
        -0.5,
        1e308,
        1e-308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "0.5",
    ),
    *(
        (),
        [],
        [0.5, 0.5],
        {},
        {"a": 1},
        object,
        b"x",
        "os:abort",
        "a" * 5000,
        "/dev/zero",
        "\x1b[31m",
        1j,
        3.0,
    ),
)


def _other(value: Any, random: Random) -> Any:
    """Another value: of a tensor's, one that is nearly the same."""
    if isinstance(value, nn.Module) and random.random() < 0.5:
        return random.choice(
            (nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)), nn.Identity(), network)
        )
    if not isinstance(value, Tensor) or random.random() < 0.2:
        return random.choice(_SCALARS)
    changes: tuple[Callable[[Tensor], Any], ...] = (
        lambda one: one * torch.nan,
        lambda one: one * torch.inf,
        lambda one: one * 255,
        lambda one: one - 2,
        lambda one: one.half(),
        lambda one: one.double(),
        lambda one: one.to(torch.uint8),
        lambda one: one.to(torch.int32),
        lambda one: one.bool(),
        lambda one: one.to(torch.complex64),
        lambda one: one[:0],
        lambda one: one[0],
        lambda one: one[None],
        lambda one: one.flatten(),
        lambda one: one.to("meta"),
        lambda one: one.tolist(),
        lambda one: one.numpy(),
        lambda one: one.repeat(*(3 for _ in one.shape)),
        lambda one: one.to_sparse(),
        lambda one: one + 10**9,
    )
    return random.choice(changes)(value)


def call_case(random: Random) -> Case:
    """A case of a call."""
    name = random.choice(list(CALLS))
    function, sound = CALLS[name]
    chosen = random.sample(list(sound), min(len(sound), random.choice((1, 1, 1, 2))))
    seed = random.getrandbits(64)

    def work() -> int:
        changes = Random(seed)
        values = {one: make() for one, make in sound.items()}
        for one in chosen:
            values[one] = _other(values[one], changes)
        return _outcome(lambda: function(**values))

    told = Random(seed)
    words = [name, *(f"{one}={repr(_other(sound[one](), told))[:100]}" for one in chosen)]
    return Case(f"call {name} {' '.join(chosen)}", words, work=work, out="")


def _outcome(call: Callable[[], Any]) -> int:
    """Call it; a mistake that is told ends like a command's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = call()
        except dp.ArgumentError as error:
            return _told(str(error))
        except (ValueError, TypeError, OSError, MemoryError) as error:
            at = error.__traceback__
            while at is not None and at.tb_next is not None:
                at = at.tb_next
            if at is not None and not at.tb_frame.f_code.co_filename.startswith(_SOURCE):
                raise
            return _told(str(error))
    if not _finite(found):
        print("nan: a result that is not finite")
    return 0


def _told(text: str) -> int:
    # A library's message may have lines, but not without end.
    print(f"diffproof: error: {' '.join(ascii(text).split())[: LONGEST_LINE - 20]}", file=sys.stderr)
    return 2


def _finite(found: Any) -> bool:
    if isinstance(found, Tensor):
        return not found.is_floating_point() or bool(torch.isfinite(found).all())
    if isinstance(found, float):
        return found == found
    if isinstance(found, list | tuple):
        return all(map(_finite, found))
    return True
