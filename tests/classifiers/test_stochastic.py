"""Votes of a classifier whose dropout and drop-path layers are drawn from diffproof's noise."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

import diffproof as dp
from diffproof.classifiers.stochastic import check_drops, dropping
from diffproof.cli.main import run
from diffproof.runs.certify.store import CertifyStore


class DropPath(nn.Module):
    """As timm and transformers have it: nothing in evaluation mode."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, images: Tensor) -> Tensor:
        """The images."""
        assert not self.training
        return images


def network(path: float = 0.5, elements: float = 0.2, channels: float = 0.3) -> nn.Module:
    """A small network with the three kinds of layers."""
    torch.manual_seed(3)
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3), nn.Dropout2d(channels), nn.ReLU(), DropPath(path)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(elements), nn.Linear(144, 10)).eval()


def classifier() -> dp.Classifier:
    return dp.Classifier(network(), 10, image_shape=(1, 8, 8)).eval()


def rows(count: int, seed: int = 5) -> dp.Noise:
    return dp.Noise.for_draws(seed, dp.Stream.ESTIMATION, 2, 0, count)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Dropout(0.3), (6, 5, 7)),
        (nn.Dropout2d(0.3), (40, 5, 7)),
        (DropPath(0.3), (6, 5, 7)),
    ],
)
def test_what_a_layer_drops(layer: nn.Module, shape: tuple[int, ...]) -> None:
    count = 400
    with dropping(layer.eval(), rows(count)):
        found = layer(torch.ones(count, *shape))
    assert found.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    kept = (found > 0).flatten(2) if isinstance(layer, nn.Dropout2d) else (found > 0).flatten(1)[..., None]
    if not isinstance(layer, nn.Dropout):
        # Channels, or whole images, are kept or dropped together.
        axis = -1 if isinstance(layer, nn.Dropout2d) else 1
        assert torch.equal(kept.all(axis), kept.any(axis))
        kept = kept.any(axis, keepdim=True)
    # Two-sided, false-alarm rate 1e-6.
    total, number = int(kept.sum()), kept.numel()
    assert binom.ppf(5e-7, number, 0.7) <= total <= binom.ppf(1 - 5e-7, number, 0.7)


def test_masks_are_those_of_row_and_layer_whatever_shares_the_batch() -> None:
    model, images = classifier(), torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = rows(6)

    def answers(of: dp.Noise, these: Tensor) -> Tensor:
        with torch.no_grad(), dropping(model, of):
            found: Tensor = model(these)
        return found

    whole = answers(noise, images)
    parts = [answers(one, image) for one, image in zip(noise.split(2), images.split(2), strict=True)]
    torch.testing.assert_close(torch.cat(parts), whole)
    torch.testing.assert_close(answers(noise, images), whole)
    assert not torch.allclose(answers(rows(6, seed=6), images), whole)
    # Outside, the network is what it was, and torch's own generator is not asked.
    state = torch.get_rng_state()
    answers(noise, images)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(model(images), classifier()(images))
    assert not any(layer._forward_hooks for layer in model.modules())


def test_two_layers_of_a_row_are_independent() -> None:
    pair = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)).eval()
    with dropping(pair, rows(500)):
        first = pair[0](torch.ones(500, 8)) > 0
    with dropping(pair, rows(500)):
        both = pair(torch.ones(500, 8)) > 0
    # Kept by both: a quarter; false-alarm rate 1e-6.
    assert binom.ppf(5e-7, 4000, 0.25) <= int(both.sum()) <= binom.ppf(1 - 5e-7, 4000, 0.25)
    assert bool((first >= both).all())


def test_the_vote_is_the_majority_of_passes() -> None:
    model = classifier()
    defense = dp.Undefended(model, votes=7)
    noisy = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    noise = rows(9)
    labels = []
    for row in range(9):
        ballots = []
        for vote in range(7):
            own = noise.rows(torch.tensor([row]), torch.tensor([vote + 1]))
            with torch.no_grad(), dropping(model, own):
                ballots.append(int(model(noisy[row : row + 1]).argmax()))
        labels.append(max(ballots, key=lambda label: (ballots.count(label), -ballots.index(label))))
    assert len({*labels}) > 1
    for batch_size in (1, 4, 100):
        found = defense.classify(noisy, 0.25, noise, batch_size)
        assert found.labels.tolist() == labels
        assert found[1:] == (0, 63)
    assert defense.settings() == {"method": "none", "votes": 7}
    assert defense.evaluations_per_draw(0.25) == (0, 7)


def test_logits_are_the_log_of_the_mean_probability_and_have_gradients() -> None:
    model = classifier().double()
    defense = dp.Undefended(model, votes=3)
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    images.requires_grad_()
    logits = defense(images, rows(2))
    shares = []
    for vote in range(3):
        own = rows(2).rows(torch.arange(2), torch.full((2,), vote + 1))
        with dropping(model, own):
            shares.append(model(images).softmax(1))
    torch.testing.assert_close(logits, torch.stack(shares).mean(0).log())
    (slope,) = torch.autograd.grad(logits[:, 0].sum(), images)
    moved = images.detach() + 1e-6 * torch.ones_like(images)
    change = (defense(moved, rows(2)) - logits)[:, 0].sum() / 1e-6
    assert float(slope.sum()) == pytest.approx(float(change.detach()), rel=1e-4)
    assert defense.random
    assert not dp.Undefended(model).random


def test_transformers_drop_paths(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BeitConfig(
        image_size=8,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=8,
        drop_path_rate=0.4,
        num_labels=3,
    )
    torch.manual_seed(0)
    model = transformers.BeitForImageClassification(config).eval()
    # The first layer's rate is 0; each of the others is called twice.
    assert len(check_drops(model)) == 2
    images = torch.rand(6, 3, 8, 8)
    with torch.no_grad():
        plain = model(images).logits
        with dropping(model, rows(6)):
            dropped = model(images).logits
    assert not torch.allclose(plain, dropped)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Flatten(), "the classifier has no layer of dropout or drop path, so that all votes would agree"),
        (nn.Sequential(nn.Flatten(), nn.Dropout(0.0)), "the classifier has no layer of dropout or drop path"),
        (nn.Sequential(nn.AlphaDropout(0.1), nn.Flatten()), "AlphaDropout of the classifier cannot be drawn"),
    ],
)
def test_networks_that_cannot_vote_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=f"^votes: {message}"):
        dp.Undefended(dp.Classifier(model, 64, image_shape=(1, 8, 8)), votes=3)


def test_layers_that_see_other_rows_are_refused() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, images: Tensor) -> Tensor:
            """Two rows an image."""
            dropped: Tensor = self.drop(images.reshape(2 * len(images), -1))
            return dropped.reshape(len(images), 64)

    defense = dp.Undefended(dp.Classifier(Windows(), 64, image_shape=(1, 8, 8)).eval(), votes=3)
    with pytest.raises(ValueError, match=r"^votes: a Dropout of the classifier sees 6 rows of 3 images"):
        defense.classify(torch.rand(1, 1, 8, 8), 0.25, rows(1), 100)


@pytest.mark.slow
def test_a_defence_or_a_compiled_network_does_not_vote() -> None:
    inner = dp.Undefended(classifier())
    with pytest.raises(ValueError, match=r"^votes: expected a classifier that is no defence"):
        dp.Undefended(inner, votes=3)
    model = classifier()
    model.forward = torch.compile(model.forward)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"^compile: "), dropping(model, rows(1)):
        pass


CODE = """
import torch
from torch import nn
import diffproof as dp


def factory():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 10))
    return dp.Classifier(network, 10, image_shape=(1, 8, 8))
"""


@pytest.mark.slow
def test_it_certifies_whatever_the_batch_and_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dropping_code.py").write_text(CODE)
    line = "certify --data digits --indices 0:3 --defense none:votes=5 --classifier dropping_code:factory"
    found = []
    for number, batch in enumerate((256, 7)):
        folder = tmp_path / f"run{number}"
        flags = f"{line} --sigma 0.1 --n0 10 --n 40 --batch-size {batch} --out {folder}"
        assert run(shlex.split(flags)) == 0
        with CertifyStore.reading(folder) as store:
            found.append([one.certificate.counts for one in store.results()])
        assert run(["verify", str(folder), "--trust"]) == 0
    assert found[0] == found[1]
    assert any(max(counts) < 40 for counts in found[0])


def test_the_exact_number_of_words_is_drawn() -> None:
    # A layer of many elements takes several chunks of rows.
    layer = nn.Dropout(0.25).eval()
    with dropping(layer, rows(70)):
        found = layer(torch.ones(70, 3001))
    assert math.isclose(float((found > 0).double().mean()), 0.75, abs_tol=5 * math.sqrt(0.1875 / 70 / 3001))
    assert np.isclose(float(found.max()), 4 / 3)
