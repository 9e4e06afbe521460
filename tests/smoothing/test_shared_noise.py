"""No two parts of a smoothed classifier share a word of noise; votes of an inner defence have their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import diffproof as dp
from diffproof import noise as noise_module
from diffproof.defenses.labelling import Labelled
from diffproof.noise import Noise, Stream
from diffproof.philox import philox4x32
from diffproof.smoothing.grid_noise import ContinuousNoise, GridNoise
from helpers.classifiers import steep_classifier
from helpers.denoisers import mixture

SIGMA = 0.3
IMAGE = torch.tensor([[[0.2, 0.7], [0.55, 0.4]]], dtype=torch.float64)
DRAWS = 6
TAKEN = r"^step: step 0 of vote 0 is the noise in the images"


def diffpure() -> dp.Defense:
    return dp.DiffPure(mixture(), steep_classifier(), t_star=0.1, steps=2)


def diffusion_classifier(**settings: Any) -> dp.DiffusionClassifier:
    return dp.DiffusionClassifier(
        mixture(component_labels=torch.arange(5) % 2), sigmas=[0.1, 0.4, 0.5], **settings
    )


COMPOSITIONS: dict[str, Callable[[], dp.CertifiableDefense]] = {
    "none of diffpure": lambda: dp.Undefended(diffpure()),
    "dds of diffpure": lambda: dp.DDS(mixture(), diffpure()),
    "dds of none of diffpure": lambda: dp.DDS(mixture(), dp.Undefended(diffpure())),
    "none of agdm": lambda: dp.Undefended(
        dp.AGDM(mixture(), steep_classifier(), guide=steep_classifier(), t_star=0.1, steps=2)
    ),
    "none of rdc": lambda: dp.Undefended(
        dp.LikelihoodMaximization(mixture(), diffusion_classifier(), iterations=2)
    ),
    "densepure": lambda: dp.DensePure(mixture(), steep_classifier(), steps=3, votes=4, step_rule="log-sigma"),
    "densepure of diffpure": lambda: dp.DensePure(
        mixture(), diffpure(), steps=2, votes=3, step_rule="log-sigma"
    ),
    "densepure of dc": lambda: dp.DensePure(
        mixture(), diffusion_classifier(), steps=2, votes=3, step_rule="log-sigma"
    ),
    "densepure of dc with a noise a class": lambda: dp.DensePure(
        mixture(), diffusion_classifier(shared_noise=False), steps=2, votes=3, step_rule="log-sigma"
    ),
    "dc": diffusion_classifier,
}


@pytest.mark.parametrize("kind", [GridNoise, ContinuousNoise])
@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_no_word_is_drawn_twice(
    composition: str, kind: type[GridNoise | ContinuousNoise], monkeypatch: pytest.MonkeyPatch
) -> None:
    defense = COMPOSITIONS[composition]()
    drawn = Counter[tuple[int, ...]]()

    def watched(*arguments: Any) -> Any:
        words = philox4x32(*arguments)
        drawn.update(map(tuple, np.stack(words, -1).reshape(-1, 4).tolist()))
        return words

    monkeypatch.setattr(noise_module, "philox4x32", watched)
    noise = Noise.for_draws(5, Stream.ESTIMATION, 0, 0, DRAWS)
    noisy = kind(SIGMA).added(IMAGE, noise)
    assert len(drawn) == DRAWS
    defense.classify(noisy, SIGMA, noise.after_first(), 64)
    assert drawn.total() > 2 * DRAWS
    assert [words for words, count in drawn.items() if count > 1] == []


def test_what_a_defence_draws_is_not_what_its_images_hold() -> None:
    class Careless(dp.DDS):
        def classify(self, noisy: Tensor, sigma: float, noise: Noise, batch_size: int) -> Labelled:
            again = noisy - sigma * noise.normal(noisy.shape[1:], 0, noisy.dtype)
            return super().classify(again, sigma, noise, batch_size)

    smoothed = dp.Smoothed(Careless(mixture(), steep_classifier()), SIGMA)
    with pytest.raises(ValueError, match=TAKEN):
        smoothed.certify(IMAGE, n0=2, n=2)
    with pytest.raises(ValueError, match=TAKEN):
        smoothed.predict(IMAGE, n=2)


def test_nested_noise_is_one_of_its_own_for_each_row_and_depth() -> None:
    noise = Noise.for_draws(5, Stream.ESTIMATION, 0, 0, 8)
    noise = noise.rows(torch.arange(8), torch.arange(8) % 4)
    inner = noise.nested()
    rows = [one.normal((4,), 1, torch.float64) for one in (noise, inner, inner.nested())]
    assert len({tuple(row) for made in rows for row in made.tolist()}) == 24
    # A row's nested noise is its own, whatever batch it stands in.
    for part in noise.split(3):
        place = [int(draw) for draw in part.draw]
        assert part.nested().normal((4,), 1, torch.float64).equal(rows[1][place])
    # Votes of one draw differ in nothing else.
    votes = noise.rows(torch.zeros(4, dtype=torch.int64), torch.arange(4)).nested()
    assert len({tuple(row) for row in votes.normal((4,), 1, torch.float64).tolist()}) == 4
    assert not bool(votes.vote.any())
