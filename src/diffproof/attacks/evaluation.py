"""An honest evaluation of a defence: clean draws, the attack, fresh draws; every score beside its control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffproof.attacks.base import Attack, check_arguments
from diffproof.attacks.result import AttackResult
from diffproof.attacks.scoring import Hits, Scores, draw_labels, hits
from diffproof.attacks.threat import Threat
from diffproof.attacks.views import AttackedDefense, FixedNoise, GradientMode
from diffproof.checks import MOST_DRAWS, check_at_least
from diffproof.defenses.repeatability import check_unchanged, weights_of
from diffproof.defenses.voting import majority
from diffproof.noise import Noise, Stream
from diffproof.notebooks import table
from diffproof.wording import part_of


@dataclass(frozen=True)
class Evaluated:
    """One image before and after an attack.

    Attributes:
        image_index: the image's number in its data set.
        true_label: its class.
        clean_labels: the defence's, under fresh noise, without an attack.
        result: what the attack found; None where the majority of the clean labels is wrong already: such an
            image is not attacked, and counts as wrong in every score after the attack.
        labels: the defence's labels of the attacked image, under noise that the attack has not seen; none
            where it was not attacked.
        control_wrong: the clean image, too, was answered wrongly under one of as many draws as the attack
            looks at, or would have looked at if a success had not stopped it.
        fixed_clean: whether the clean image is right under the one draw of noise of `fixed_right`; None where
            that was not asked for.
        fixed_right: whether it stays right when that noise is known: the attack, run again, sees no other,
            and neither does the answer.
        fixed_adversarial: what that attack found, C×H×W in [0, 1]; None where it did not run.
    """

    image_index: int
    true_label: int
    clean_labels: tuple[int, ...]
    result: AttackResult | None
    labels: tuple[int, ...]
    control_wrong: bool
    fixed_clean: bool | None = None
    fixed_right: bool | None = None
    fixed_adversarial: Tensor | None = None


@dataclass(frozen=True)
class Evaluation:
    """A defence before and after an attack.

    Attributes:
        images: what was found for each image, in their order.
        clean: the scores without an attack.
        attacked: the scores after it.
        seed: of all noise.
    """

    images: tuple[Evaluated, ...]
    clean: Scores
    attacked: Scores
    seed: int

    def _repr_html_(self) -> str:
        """The scores before and after, for notebooks."""
        attacked = part_of(sum(one.result is not None for one in self.images), len(self.images), "image")
        after = self.attacked.named.values()
        rows = [(*clean, share) for clean, share in zip(self.clean.named.items(), after, strict=True)]
        title = f"accuracy, and its 95% interval; {attacked} right without an attack, and attacked"
        return table(title, rows, ("", "clean", "attacked"))


def evaluate(
    view: AttackedDefense,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack,
    threat: Threat,
    draws: int = 10,
    votes: int = 10,
    fixed_noise: bool = False,
    seed: int,
    image_indices: Sequence[int] | None = None,
    batch_size: int = 64,
) -> Evaluation:
    """Attack those images that a defence gets right, and draw labels before and after.

    The attack's noise, that of the clean control and that of the labels after the attack are three streams.

    Args:
        view: the defence as the attack sees it; labels are always those of the defence itself.
        images: N×C×H×W in [0, 1].
        labels: N int64, the true ones.
        attack: the attack to run.
        threat: what it may change.
        draws: fresh draws of noise that score an image, ≥ 1; see Scores.
        votes: draws that vote on its label, ≥ 1; see Scores.
        fixed_noise: attack once more, with the noise of the answer known; see `Scores.fixed`.
        seed: see Attack.run.
        image_indices: see Attack.run; None for 0, 1, ….
        batch_size: see Attack.run.

    Raises:
        ValueError: an argument is out of range, or the attack cannot be run on this defence.
    """
    check_at_least("draws", draws, 1, MOST_DRAWS)
    check_at_least("votes", votes, 1, MOST_DRAWS)
    attack.check(view, threat)
    indices = check_arguments(view, images, labels, threat, image_indices, batch_size, seed).tolist()
    defense, needed, began = view.defense, max(draws, votes), weights_of(view.defense)

    def drawn(rows: Tensor, of: Sequence[int], stream: Stream) -> Tensor:
        return draw_labels(
            defense, rows, draws=needed, seed=seed, image_indices=of, batch_size=batch_size, stream=stream
        )

    clean = drawn(images, indices, Stream.CONTROL)
    right = majority(clean[:, :votes], view.num_classes) == labels.cpu()
    attacked = right.nonzero()[:, 0].tolist()
    found: dict[int, tuple[AttackResult, Tensor, bool]] = {}
    if attacked:
        chosen = [indices[row] for row in attacked]
        results = attack.run(
            view,
            images[attacked],
            labels[attacked],
            threat=threat,
            seed=seed,
            image_indices=chosen,
            batch_size=batch_size,
        )
        after = drawn(torch.stack([result.adversarial for result in results]), chosen, Stream.SCORING)
        for i, row in enumerate(attacked):
            looks = attack.most_draws(results[i], view.num_classes) if view.random else 1
            wrong = _wrong_within(view, images[row], results[i], looks, seed, batch_size)
            found[row] = (results[i], after[i], wrong)
    fixed: dict[int, _Known] = {}
    if fixed_noise:
        own: dict[str, Any] = {"attack": attack, "threat": threat, "seed": seed, "batch_size": batch_size}
        fixed = _under_fixed_noise(view, images, labels, attacked, indices, **own)
    check_unchanged(defense, began)
    made = []
    for row, index in enumerate(indices):
        result, after, wrong = found.get(row, (None, torch.empty(0, dtype=torch.int64), True))
        before, known = tuple(clean[row].tolist()), fixed.get(row, ())
        one = Evaluated(index, int(labels[row]), before, result, tuple(after.tolist()), wrong, *known)
        made.append(one)
    clean_scores, attacked_scores = scores(made, view.num_classes, draws=draws, votes=votes)
    return Evaluation(tuple(made), clean_scores, attacked_scores, seed)


# What sees the defence itself, so that a wrong answer that the attack saw is one of the defence.
_SEES = (GradientMode.EXACT, GradientMode.BPDA, GradientMode.ADJOINT)


# Of an image under fixed noise, see Evaluated: right before, right after, and what was found.
_Known = tuple[bool, bool, Tensor | None]


def _under_fixed_noise(
    view: AttackedDefense,
    images: Tensor,
    labels: Tensor,
    attacked: list[int],
    indices: Sequence[int],
    *,
    attack: Attack,
    threat: Threat,
    seed: int,
    batch_size: int,
) -> dict[int, _Known]:
    """By row, whether the clean image and the attacked one are right under one draw that the attack knows,
    and the attacked one.

    Rows that are not attacked count as wrong after it.
    """
    known, alone = FixedNoise(view, seed), attack.of_fixed_noise()
    alone.check(known, threat)
    at_once = max(1, view.images_at_once(batch_size))
    clean = [
        known.answers(images[part], torch.tensor(indices)[part]) == labels[part].cpu()
        for part in torch.arange(len(images)).split(at_once)
    ]
    right = torch.cat(clean).tolist()
    found: dict[int, _Known] = {row: (right[row], False, None) for row in range(len(images))}
    left = [row for row in attacked if right[row]]
    if not left:
        return found
    chosen = [indices[row] for row in left]
    results = alone.run(
        known,
        images[left],
        labels[left],
        threat=threat,
        seed=seed,
        image_indices=chosen,
        batch_size=batch_size,
    )
    for row, index, result in zip(left, chosen, results, strict=True):
        answer = known.answers(result.adversarial[None].to(images.device), torch.tensor([index]))
        seen = result.success and view.gradient in _SEES
        found[row] = (True, not seen and int(answer) == int(labels[row]), result.adversarial)
    return found


def _wrong_within(
    view: AttackedDefense, image: Tensor, result: AttackResult, looks: int, seed: int, batch_size: int
) -> bool:
    """Whether what the attack saw errs on the clean image, too, under so many draws."""
    with torch.no_grad():  # labels have no gradient
        at_once = view.images_at_once(batch_size)
        for start in range(0, looks, at_once):
            stop = min(start + at_once, looks)
            noise = Noise.for_draws(seed, Stream.CONTROL, result.image_index, start, stop)
            rows = image.expand(stop - start, *image.shape)
            if bool((view(rows, noise).argmax(1) != result.label).any()):
                return True
    return False


def scores(
    evaluated: Sequence[Evaluated], num_classes: int, *, draws: int, votes: int
) -> tuple[Scores, Scores]:
    """The scores on the clean images and after the attack; see `hits_of` for the arguments."""
    found = hits_of(evaluated, num_classes, draws=draws, votes=votes)
    known = all(one.fixed_right is not None for one in evaluated)
    fixed = [
        torch.tensor([bool(getattr(one, name)) for one in evaluated]) if known else None
        for name in ("fixed_clean", "fixed_right")
    ]
    before, after = (
        Scores.of(one, draws=draws, votes=votes, fixed=right) for one, right in zip(found, fixed, strict=True)
    )
    return before, after


def hits_of(evaluated: Sequence[Evaluated], num_classes: int, *, draws: int, votes: int) -> tuple[Hits, Hits]:
    """What each image is right in, clean and after the attack.

    Args:
        evaluated: the images, at least one.
        num_classes: number of classes of the defence.
        draws: labels of an image that count, at most as many as were drawn; see Scores.
        votes: labels of an image that vote, at most as many as were drawn; see Scores.

    Raises:
        ValueError: no image, or fewer labels than draws or votes.
    """
    check_at_least("images", len(evaluated), 1)
    check_at_least("num_classes", num_classes, 2)
    truth = torch.tensor([one.true_label for one in evaluated])
    clean = torch.tensor([one.clean_labels for one in evaluated])
    # No label is the true one where the image was not attacked since it was wrong already.
    nothing = (-1,) * clean.shape[1]
    after = torch.tensor([one.labels or nothing for one in evaluated])
    before = hits(
        clean,
        truth,
        torch.tensor([one.control_wrong for one in evaluated]),
        num_classes,
        draws=draws,
        votes=votes,
    )
    seen = torch.tensor([one.result is None or one.result.success for one in evaluated])
    # Classes are shifted by one, so that "not attacked" is a class of its own.
    return before, hits(after + 1, truth + 1, seen, num_classes + 1, draws=draws, votes=votes)
