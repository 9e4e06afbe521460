"""Attacks by name, and the two calls that run one: attack and evaluate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from diffproof.attacks import evaluation
from diffproof.attacks.base import Attack, check_arguments
from diffproof.attacks.evaluation import Evaluated, Evaluation, scores
from diffproof.attacks.result import AttackResult
from diffproof.attacks.threat import Threat, load_threat
from diffproof.attacks.views import AttackedDefense, GradientMode
from diffproof.bars import bar
from diffproof.checks import check_flag, shown
from diffproof.defenses.base import Defense
from diffproof.errors import ArgumentError, Fitting
from diffproof.methods import MethodSpec, build, parse
from diffproof.seeds import settled_seed

Found = TypeVar("Found")


def load_attack(attack: str | Mapping[str, Any] | MethodSpec, **settings: Any) -> Attack:
    """An attack by name.

    Args:
        attack: a name of the catalog (`diffproof methods`), "package.module:Class" for a class of your own,
            or the name of a plug-in, each perhaps with settings: "pgd:iterations=200,eot=20"; or a mapping
            with `name` and settings.
        settings: further settings of the attack, as Python's values; see its class.

    Raises:
        ValueError: unknown name, or a setting that is unknown, given twice or out of range.
    """
    spec = attack if isinstance(attack, MethodSpec) else parse("attack", attack)
    loaded: Attack = build(spec, {}, settings)
    return loaded


def attack(
    defense: Defense,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack | str | Mapping[str, Any] | MethodSpec = "pgd",
    threat: Threat | str = "linf",
    budget: str | float | None = None,
    gradient: GradientMode | str = GradientMode.EXACT,
    surrogate_share: float | None = None,
    seed: int | None = None,
    image_indices: Sequence[int] | None = None,
    batch_size: int = 64,
    progress: bool = False,
    **settings: Any,
) -> list[AttackResult]:
    """Attack a defence.

    Args:
        defense: any defence.
        images: N×C×H×W in [0, 1].
        labels: N int64, the true ones.
        attack: an attack, or a text for `load_attack`.
        threat: a threat model, or the name of one: "linf", "l2", "stadv" or "perceptual".
        budget: the largest norm of a perturbation, as a number or like "8/255", where `threat` is a name.
        gradient: the gradient that the attack gets; see GradientMode.
        surrogate_share: share of the steps that the gradient "surrogate" takes, in (0, 1]; 0.1 by default.
        seed: see Attack.run; None draws one, which the results state. A defence that knows the seed can be
            ready for just these draws.
        image_indices: see Attack.run; None for 0, 1, ….
        batch_size: see Attack.run. When memory runs out it is halved, with a warning.
        progress: show a bar that counts images, which needs diffproof[notebook].
        settings: further settings of the attack, where `attack` is a text.

    Returns:
        One result an image. Whether a random defence withstands the images that it found, only fresh draws of
        noise tell.

    Raises:
        ValueError: an argument is unknown or out of range, or the attack cannot be run on this defence.
    """
    view, chosen, within = _resolved(defense, attack, threat, budget, gradient, surrogate_share, settings)
    chosen.check(view, within)
    seed, _ = settled_seed(seed)
    indices = check_arguments(view, images, labels, within, image_indices, batch_size, seed).tolist()

    def do(some: slice, size: int) -> list[AttackResult]:
        given: dict[str, Any] = {
            "threat": within,
            "seed": seed,
            "image_indices": indices[some],
            "batch_size": size,
        }
        found = chosen.run(view, images[some], labels[some], **given)
        return [replace(one, seed=seed) for one in found]

    return _in_batches(view, chosen, len(images), batch_size, progress, do)


def evaluate(
    defense: Defense,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack | str | Mapping[str, Any] | MethodSpec = "pgd",
    threat: Threat | str = "linf",
    budget: str | float | None = None,
    gradient: GradientMode | str = GradientMode.EXACT,
    surrogate_share: float | None = None,
    draws: int = 10,
    votes: int = 10,
    fixed_noise: bool = False,
    seed: int | None = None,
    image_indices: Sequence[int] | None = None,
    batch_size: int = 64,
    progress: bool = False,
    **settings: Any,
) -> Evaluation:
    """Attack those images that a defence gets right, and score it before and after.

    Args:
        defense: any defence.
        images: N×C×H×W in [0, 1].
        labels: N int64, the true ones.
        attack: see `attack`.
        threat: see `attack`.
        budget: see `attack`.
        gradient: see `attack`.
        surrogate_share: see `attack`.
        draws: fresh draws of noise that score an image, ≥ 1.
        votes: draws that vote on its label, ≥ 1.
        fixed_noise: attack once more, with the noise of the answer known; see `Scores.fixed`.
        seed: see `attack`.
        image_indices: see `attack`.
        batch_size: see `attack`.
        progress: see `attack`.
        settings: see `attack`.

    Raises:
        ValueError: an argument is unknown or out of range, or the attack cannot be run on this defence.
    """
    view, chosen, within = _resolved(defense, attack, threat, budget, gradient, surrogate_share, settings)
    chosen.check(view, within)
    seed, _ = settled_seed(seed)
    indices = check_arguments(view, images, labels, within, image_indices, batch_size, seed).tolist()
    how: dict[str, Any] = {"attack": chosen, "threat": within, "draws": draws, "votes": votes, "seed": seed}
    how["fixed_noise"] = check_flag("fixed_noise", fixed_noise)

    def found(some: slice, size: int) -> list[Evaluated]:
        own = {**how, "image_indices": indices[some], "batch_size": size}
        return list(evaluation.evaluate(view, images[some], labels[some], **own).images)

    every = _in_batches(view, chosen, len(images), batch_size, progress, found)
    clean, attacked = scores(every, view.num_classes, draws=draws, votes=votes)
    return Evaluation(tuple(every), clean, attacked, seed)


def _in_batches(
    view: AttackedDefense,
    attack: Attack,
    images: int,
    batch_size: int,
    progress: bool,
    do: Callable[[slice, int], list[Found]],
) -> list[Found]:
    """What is found for so many images, those together that fill a batch, as a run attacks them."""
    every: list[Found] = []
    fitting = Fitting(batch_size)

    def some(size: int) -> list[Found]:
        return do(slice(len(every), len(every) + attack.images_at_once(view.images_at_once(size))), size)

    with bar(progress, attack.name, images, "images") as advance:
        while len(every) < images:
            found = fitting(some)
            every += found
            advance(len(found))
    return every


def _resolved(
    defense: Defense,
    attack: Attack | str | Mapping[str, Any] | MethodSpec,
    threat: Threat | str,
    budget: str | float | None,
    gradient: GradientMode | str,
    surrogate_share: float | None,
    settings: Mapping[str, Any],
) -> tuple[AttackedDefense, Attack, Threat]:
    """What `attack` and `evaluate` are given, as objects."""
    if isinstance(attack, Attack) and settings:
        raise ArgumentError("settings", f"expected none beside an attack, got {', '.join(settings)}")
    chosen = attack if isinstance(attack, Attack) else load_attack(attack, **settings)
    if isinstance(threat, str):
        if budget is None:
            raise ArgumentError("budget", f"expected one for the threat {threat!r}, got None")
        threat = load_threat(threat, budget)
    elif not isinstance(threat, Threat):
        raise ArgumentError("threat", f"expected a diffproof.Threat or a name of one, got {shown(threat)}")
    elif budget is not None:
        raise ArgumentError("budget", f"the threat has its own, expected None, got {budget!r}")
    return AttackedDefense(defense, gradient, surrogate_share=surrogate_share), chosen, threat
