"""Likelihood maximisation and RDC: against the paper's algorithm and torch's Adam; exact gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import diffproof as dp
from diffproof.cli.main import run
from diffproof.defenses.diffusion_classifier.loss import DiffusionLoss
from diffproof.denoisers.base import Estimate, per_row
from diffproof.noise import Noise, Stream
from diffproof.pictures import read_picture, save_picture
from helpers.classifiers import linear_classifier
from helpers.command_line import Refused
from helpers.images import SHAPE
from helpers.noise import noise_of_images

pytestmark = pytest.mark.usefixtures("small_digits")

LEVELS = (0.1, 0.2, 0.25, 0.4)
FIRST_VOTE = 2**14


def iteration_noise(noise: Noise, number: int) -> Noise:
    return noise.rows(torch.arange(len(noise)), torch.full_like(noise.vote, FIRST_VOTE + number))


class SmoothDenoiser(dp.Denoiser):
    """A smooth random network of three classes and a null label."""

    image_shape = SHAPE
    num_classes = 3
    null_label: int | None = 3
    sigma_min, sigma_max = 0.05, 0.5

    def __init__(self, levels: int | tuple[float, ...] = LEVELS) -> None:
        super().__init__()
        grid = torch.linspace(0.1, 0.4, levels) if isinstance(levels, int) else levels
        self.sigmas = torch.as_tensor(grid, dtype=torch.float64)
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 4, 3, padding=1).double()
        self.last = nn.Conv2d(4, 1, 3, padding=1).double()
        self.label = nn.Embedding(4, 4).double()

    def estimate(self, noisy: Tensor, sigma: Any, label: Tensor | None) -> Estimate:
        if label is None:
            label = torch.full((len(noisy),), 3)
        hidden = torch.tanh(2 * self.first(noisy) + self.label(label)[:, :, None, None])
        clean: Tensor = noisy + per_row(sigma, noisy) * torch.tanh(2 * self.last(hidden))
        return Estimate(clean)


def pixels(count: int = 2) -> Tensor:
    """In the middle of [0, 1], but for one that a step may push beyond the end."""
    images = 0.3 + 0.4 * torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(2)).double()
    images[:, :, 0, 0] = 0.99
    images[:, :, 2, 1] = 0.02
    return images


# What the paper and the released code say, in other words and coordinates.


def gaussian_gradient(x: NDArray[Any], mean: float, std: float, noises: list[NDArray[Any]]) -> NDArray[Any]:
    """∇ of the mean over LEVELS of ‖ε_θ − ε‖², where the data are N(mean, std²): closed form."""
    total = np.zeros_like(x)
    for sigma, eps in zip(LEVELS, noises, strict=True):
        slope = sigma / (std**2 + sigma**2)
        total += 2 * slope * (slope * (x + sigma * eps - mean) - eps) / len(LEVELS)
    return total


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("momentum", [0.0, 0.7, 1.0])
def test_iterations_are_those_of_algorithm_1(norm: str, momentum: float) -> None:
    mean, std, budget, step = 0.4, 0.2, 0.12, 0.05
    denoiser = dp.GaussianMixtureDenoiser(
        torch.full((1, *SHAPE), mean, dtype=torch.float64), torch.tensor([std**2], dtype=torch.float64)
    )
    defense = dp.LikelihoodMaximization(
        denoiser,
        linear_classifier(),
        iterations=4,
        budget=budget,
        norm=norm,
        step=step,
        momentum=momentum,
        sigmas=LEVELS,
    )
    images, noise = pixels(3), noise_of_images(3, 5)
    expected = []
    for row, image in enumerate(images.numpy().reshape(3, -1)):
        x, m = image.copy(), np.zeros_like(image)
        for number in range(4):
            own = iteration_noise(noise, number)
            noises = [own.normal(SHAPE, i, torch.float64)[row].numpy().ravel() for i in range(len(LEVELS))]
            g = gaussian_gradient(x, mean, std, noises)
            m = momentum * m - g / np.abs(g).sum()
            if norm == "linf":
                x = np.clip(x + step * np.sign(m), image - budget, image + budget)
            else:
                x = x + step * m / np.sqrt((m**2).sum())
                x = image + (x - image) * min(1.0, budget / np.sqrt(((x - image) ** 2).sum()))
            x = np.clip(x, 0.0, 1.0)
        expected.append(x)
    found = defense.purify(images, noise).reshape(3, -1).numpy()
    assert np.abs(found - images.numpy().reshape(3, -1)).max() > 0.02
    np.testing.assert_allclose(found, np.array(expected), rtol=0, atol=1e-12)


def test_the_authors_variant_is_adam_on_their_data() -> None:
    """In [−1, 1], as they have it: rate 0.1, σ′ in [0.4, 0.6], mean squared error, clipped at the end."""
    denoiser, images, noise = SmoothDenoiser(), pixels(3), noise_of_images(3, 5)
    defense = dp.LikelihoodMaximization(denoiser, linear_classifier(), variant="authors")
    expected = []
    for row in range(3):
        data = (2 * images[row : row + 1] - 1).requires_grad_()
        adam = torch.optim.Adam([data], lr=0.1)
        for number in range(5):
            own = iteration_noise(noise, number)
            uniform = float(torch.special.ndtr(own.normal((1,), 1, torch.float64))[row])
            level = 0.4 + 0.2 * uniform
            noisy = data + level * own.normal(SHAPE, 0, torch.float64)[row]
            clean = 2 * denoiser((noisy + 1) / 2, level / 2) - 1
            adam.zero_grad()
            nn.functional.mse_loss(clean, data).backward()
            adam.step()
        expected.append(((data.detach() + 1) / 2).clamp(0, 1))
    found = defense.purify(images, noise)
    assert float((found - images).abs().max()) > 0.1
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-12)


# On digits.


@pytest.fixture(scope="module")
def digits() -> tuple[dp.Denoiser, Tensor]:
    images, _ = dp.load_data("digits", indices="0:20")
    return dp.load_denoiser("digits"), images


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "authors"])
@pytest.mark.parametrize(("norm", "budget"), [("linf", 8 / 255), ("linf", 0.2), ("l2", 0.5), ("l2", 0.05)])
def test_images_stay_within_the_budget(
    digits: tuple[dp.Denoiser, Tensor], variant: str, norm: str, budget: float
) -> None:
    denoiser, images = digits
    levels = {"timesteps": "uniform:2"} if variant == "paper" else {}
    defense = dp.LikelihoodMaximization(
        denoiser,
        dp.load_classifier("digits"),
        variant=variant,
        norm=norm,
        budget=budget,
        iterations=2,
        step=budget,  # twice too far
        **levels,  # type: ignore[arg-type]
    )
    change = (purified := defense.purify(images, noise_of_images(20, 5))) - images
    length = change.flatten(1).abs().amax(1) if norm == "linf" else change.flatten(1).norm(dim=1)
    assert float(purified.min()) >= 0.0
    assert float(purified.max()) <= 1.0
    assert float(length.max()) <= budget * (1 + 1e-5)
    # The budget is spent, but for what clamping at black and white takes away.
    assert float(length.median()) > 0.5 * budget


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "budget"), [("linf", 8 / 255), ("l2", 0.5)])
def test_the_unconditional_loss_falls(digits: tuple[dp.Denoiser, Tensor], norm: str, budget: float) -> None:
    """On 95% of images, measured under noise that the maximisation did not see."""
    denoiser, images = digits
    defense = dp.LikelihoodMaximization(
        denoiser,
        dp.load_classifier("digits"),
        iterations=4,
        norm=norm,
        budget=budget,
        timesteps="uniform:6",
    )
    images = images[:20]
    loss = DiffusionLoss(denoiser, timesteps="uniform:10", samples=2)
    purified = defense.purify(images, noise_of_images(20, 5))
    before, after = (
        loss.unconditional(x, noise_of_images(20, 6, stream=Stream.SCORING)) for x in (images, purified)
    )
    assert float((after < before).double().mean()) >= 0.95


@pytest.mark.slow
def test_rows_do_not_depend_on_their_batch() -> None:
    images, noise = pixels(5), noise_of_images(5, 5)
    for defense in (settled("linf", 3), settled("l2", 3), settled("authors", 3)):
        whole = defense(images, noise)
        for rows in (torch.tensor([3]), torch.tensor([4, 1])):
            part = defense(images[rows], noise.rows(rows, noise.vote[rows]))
            torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-13)
        assert not torch.equal(defense(images, noise_of_images(5, seed=9)), whole)
        assert not torch.equal(defense(images), defense(images))


# Gradients.


SETTLED: dict[str, dict[str, Any]] = {
    "linf": {"norm": "linf", "budget": 0.1, "step": 0.04},
    "l2": {"norm": "l2", "budget": 0.15, "step": 0.1, "momentum": 0.8},
    "authors": {"variant": "authors"},
    "authors-bound": {"variant": "authors", "norm": "l2", "budget": 0.12},
}


def settled(kind: str, iterations: int, levels: int | tuple[float, ...] = LEVELS) -> dp.RDC:
    """RDC with the likelihood settings of a kind."""
    return dp.RDC(SmoothDenoiser(levels), iterations=iterations, **SETTLED[kind])


def full_graph(defense: dp.RDC, images: Tensor, noise: Noise) -> Tensor:
    """The purification again, in the plainest torch, with the graph of everything."""
    x, first, second = images, torch.zeros_like(images), torch.zeros_like(images)
    for number in range(defense.iterations):
        own = iteration_noise(noise, number)
        if defense.variant == "paper":
            errors = []
            for i, sigma in enumerate(LEVELS):
                eps = own.normal(SHAPE, i, torch.float64)
                noisy = x + sigma * eps
                errors.append(((noisy - defense.denoiser(noisy, sigma)) / sigma - eps).square().sum())
            (g,) = torch.autograd.grad(torch.stack(errors).mean(), x, create_graph=True)
            first = defense.momentum * first - g / g.abs().sum((1, 2, 3), keepdim=True)
            heading = first.sign() if defense.norm == "linf" else first / norms(first)
            x = x + defense.step * heading
        else:
            sigma = 0.2 + 0.1 * torch.special.ndtr(own.normal((1,), 1, torch.float64))[:, 0]
            noisy = x + sigma[:, None, None, None] * own.normal(SHAPE, 0, torch.float64)
            error = 2 * (defense.denoiser(noisy, sigma) - x).square().mean((1, 2, 3)).sum()
            (g,) = torch.autograd.grad(error, x, create_graph=True)
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            root = (second / (1 - 0.999 ** (number + 1))).sqrt()
            x = x - defense.step * first / (1 - 0.9 ** (number + 1)) / (root + 1e-8)
        change = x - images
        if defense.norm == "linf":
            x = images + change.clamp(-defense.budget, defense.budget)
        else:
            x = images + change * (defense.budget / norms(change).clamp(min=defense.budget))
        if defense.variant == "paper" or number == defense.iterations - 1:
            x = x.clamp(0, 1)
    return x


def norms(x: Tensor) -> Tensor:
    return x.square().sum((1, 2, 3), keepdim=True).sqrt()


def gradient_of(function: Callable[[Tensor], Tensor], images: Tensor, weight: Tensor) -> Tensor:
    at = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(at), at, weight)
    return gradient


def directional(function: Callable[[Tensor], Tensor], images: Tensor, direction: Tensor) -> Tensor:
    """J·direction by central differences of fourth order; nothing on the way may need a graph."""
    h = 1e-4
    with torch.no_grad():
        near = function(images + h * direction) - function(images - h * direction)
        far = function(images + 2 * h * direction) - function(images - 2 * h * direction)
    return (8 * near - far) / (12 * h)


def like(values: Tensor, seed: int) -> Tensor:
    return torch.randn(values.shape, generator=torch.Generator().manual_seed(seed), dtype=values.dtype)


@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("kind", list(SETTLED))
def test_gradients_are_exact(kind: str, iterations: int) -> None:
    """⟨J·v, u⟩ = ⟨v, Jᵀ·u⟩, J·v by differences and Jᵀ·u backward; and Jᵀ·u that of the full graph."""
    defense, images, noise = settled(kind, iterations), pixels(), noise_of_images(2, 5)

    def purify(x: Tensor) -> Tensor:
        return defense.purify(x, noise)

    v, u = like(images, 3), like(images, 4)
    torch.testing.assert_close(purify(images), full_graph(defense, images.requires_grad_(), noise).detach())
    images = images.detach()
    backward = gradient_of(purify, images, u)
    full = gradient_of(lambda x: full_graph(defense, x, noise), images, u)
    torch.testing.assert_close(backward, full, rtol=1e-9, atol=1e-10)
    difference = (directional(purify, images, v) * u).sum()
    torch.testing.assert_close(difference, (v * backward).sum(), rtol=1e-5, atol=1e-6)
    # Second-order terms are no small matter, except behind a sign.
    second_order = float((backward - u).flatten(1).norm() / u.flatten(1).norm())
    if kind == "linf":
        inside = (purify(images) > 0) & (purify(images) < 1)
        torch.testing.assert_close(backward, torch.where(inside, u, 0.0))
    else:
        assert second_order > 0.1


@pytest.mark.parametrize("kind", list(SETTLED))
def test_exact_gradients_reach_through_the_classifier(kind: str) -> None:
    defense, images, noise = settled(kind, 2), pixels(), noise_of_images(2, 5)
    view = dp.AttackedDefense(defense, "exact")
    u, v = like(torch.zeros(2, 3).double(), 5), like(images, 6)
    backward = gradient_of(lambda x: view(x, noise), images, u)
    difference = (directional(lambda x: view(x, noise), images, v) * u).sum()
    torch.testing.assert_close(difference, (v * backward).sum(), rtol=1e-5, atol=1e-6)


def test_bpda_is_the_classifiers_gradient_at_the_purified_image() -> None:
    defense, images, noise = settled("l2", 2), pixels(), noise_of_images(2, 5)
    view = dp.AttackedDefense(defense, "bpda")
    u = like(torch.zeros(2, 3).double(), 5)
    torch.testing.assert_close(view(images, noise), defense(images, noise), rtol=0, atol=0)
    purified = defense.purify(images, noise)
    classifier = dp.DiffusionClassifier(defense.denoiser)
    expected = gradient_of(lambda x: classifier(x, noise.nested()), purified, u)
    torch.testing.assert_close(gradient_of(lambda x: view(x, noise), images, u), expected)
    assert view.random
    assert dp.AttackedDefense(defense, "blind").random
    blind = dp.AttackedDefense(defense, "blind")(images, noise)
    torch.testing.assert_close(blind, classifier(images, noise.nested()), rtol=0, atol=0)


def most_saved(work: Callable[[], object]) -> int:
    """The most values that autograd keeps at once while something runs."""
    now, most = 0, 0

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal now, most
            self.tensor = tensor
            now += tensor.numel()
            most = max(most, now)

        def __del__(self) -> None:
            nonlocal now
            now -= self.tensor.numel()

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        work()
    return most


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linf", "l2", "authors"])
def test_memory_is_a_state_an_iteration(kind: str) -> None:
    """A level more costs nothing, and an iteration more what it hands on: image and moments."""

    def most(iterations: int, levels: int) -> int:
        defense = dp.LikelihoodMaximization(
            SmoothDenoiser(levels), linear_classifier(), iterations=iterations, **SETTLED[kind]
        ).requires_grad_(False)

        def work() -> None:
            images = pixels().requires_grad_()
            torch.autograd.grad(defense.purify(images, noise_of_images(2, 5)), images, like(images, 1))

        return most_saved(work)

    assert most(3, 4) == most(3, 10) > 0
    state = (3 if kind == "authors" else 2) * pixels().numel()
    # The first iteration starts from the image itself.
    assert most(5, 4) - most(3, 4) == 2 * state


# The rest of the library.


def test_rdc_is_likelihood_maximisation_before_the_diffusion_classifier() -> None:
    denoiser, images, noise = SmoothDenoiser(), pixels(), noise_of_images(2, 5)
    likelihood: dict[str, Any] = {"iterations": 2, "norm": "l2", "budget": 0.3}
    classified: dict[str, Any] = {"shared_noise": False, "temperature": 2.0, "log_prior": [0.0, -1.0, -2.0]}
    rdc = dp.RDC(
        denoiser, **likelihood, likelihood_timesteps="first:2", timesteps="uniform:3", samples=2, **classified
    )
    classifier = dp.DiffusionClassifier(denoiser, timesteps="uniform:3", samples=2, **classified)
    alone = dp.LikelihoodMaximization(
        denoiser, linear_classifier(), **likelihood, timesteps="first:2", samples=2
    )
    purified = alone.purify(images, noise)
    torch.testing.assert_close(rdc.purify(images, noise), purified, rtol=0, atol=0)
    torch.testing.assert_close(rdc(images, noise), classifier(purified, noise.nested()), rtol=0, atol=0)
    torch.testing.assert_close(alone(images, noise), linear_classifier()(purified), rtol=0, atol=0)
    before = dp.LikelihoodMaximization(denoiser, classifier, **likelihood, timesteps="first:2", samples=2)
    torch.testing.assert_close(before(images, noise), rdc(images, noise), rtol=0, atol=0)
    assert rdc.evaluations == 2 * 2 * 2
    assert rdc.settings()["method"] == "rdc"
    assert rdc.settings()["classifier"] == classifier.settings()


def test_labels_and_probabilities_are_those_of_the_call() -> None:
    images, noise = pixels(), noise_of_images(2, 5)
    rdc = dp.RDC(SmoothDenoiser(), iterations=2, budget=0.1, log_prior=[0.5, 0.0, 0.0], temperature=2.0)
    logits = rdc(images, noise)
    # Purified images have other answers than the given ones.
    assert not torch.allclose(logits, rdc.classifier(images, noise), rtol=0, atol=1e-3)
    expected = logits.exp() / logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(rdc.predict_proba(images, noise), expected, rtol=1e-12, atol=0)
    for size in (None, 1, 4):
        assert torch.equal(rdc.predict_labels(images, noise, size), logits.argmax(1))
    leaf = images.clone().requires_grad_()
    assert rdc.predict_proba(leaf, noise).requires_grad
    assert rdc.predict_labels(images).shape == (2,)
    with pytest.raises(ValueError, match=r"^batch_size: expected an integer ≥ 1, got 0$"):
        rdc.predict_labels(images, noise, 0)
    with pytest.raises(ValueError, match=r"^noise: expected one row for each of 2 images, got 3$"):
        rdc.predict_labels(images, noise_of_images(3, 5))


@pytest.mark.usefixtures("packaged_digits")
@pytest.mark.slow
def test_rdc_races() -> None:
    denoiser, noise = dp.load_denoiser("digits"), noise_of_images(2, 5)
    images, _ = dp.load_data("digits", indices="0:2")
    settings: dict[str, Any] = {"iterations": 1, "likelihood_timesteps": "uniform:1", "budget": 0.05}
    batches: list[int] = []
    assert isinstance(denoiser, dp.NetworkDenoiser)
    denoiser.network.register_forward_pre_hook(lambda _, given: batches.append(len(given[0])))
    raced = dp.RDC(denoiser, timesteps="uniform:40", race_error=0.01, **settings)
    labels = raced.predict_labels(images, noise)
    # One row an image purifies; all levels of all classes would be 800 more.
    assert sum(batches) < 2 + 0.8 * 2 * 10 * 40
    # False alarm: 2·0.01 at most, were a label the hardest case.
    assert torch.equal(labels, raced(images, noise).argmax(1))


@pytest.mark.parametrize("settings", [{}, {"norm": "l2"}, {"variant": "authors"}])
def test_no_images_have_no_answers(settings: dict[str, Any]) -> None:
    images = pixels()[:0]
    defense = dp.LikelihoodMaximization(SmoothDenoiser(), linear_classifier(), iterations=2, **settings)
    assert defense.purify(images).shape == (0, *SHAPE)
    assert defense(images).shape == (0, 3)
    rdc = dp.RDC(SmoothDenoiser(), iterations=2, **settings)
    assert rdc(images).shape == rdc.predict_proba(images).shape == (0, 3)
    assert rdc.predict_labels(images).shape == (0,)


def test_defaults_are_those_of_paper_and_code() -> None:
    paper, l2 = dp.RDC(SmoothDenoiser()), dp.RDC(SmoothDenoiser(), norm="l2")
    assert (paper.iterations, paper.budget, paper.norm, paper.momentum) == (10, 8 / 255, "linf", 1.0)
    assert paper.step == pytest.approx(0.8 / 255)
    assert (l2.iterations, l2.budget, l2.step) == (10, 0.5, 0.05)
    authors = dp.RDC(SmoothDenoiser(), variant="authors")
    assert (authors.iterations, authors.budget, authors.norm, authors.step) == (5, 100.0, "l2", 0.05)
    assert authors.evaluations == 5


@pytest.mark.parametrize("method", ["likelihood", "rdc"])
def test_purify_takes_pictures(tmp_path: Path, method: str) -> None:
    images, _ = dp.load_data("digits", indices="0:2")
    images = (images * 255).round() / 255
    for name, image in zip("ab", images, strict=True):
        save_picture(tmp_path / f"{name}.png", image)
    words = ["purify", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--denoiser", "digits"]
    timesteps = "likelihood_timesteps" if method == "rdc" else "timesteps"
    flags = ["--defense", f"{method}:iterations=2,budget=0.1,{timesteps}=uniform:3", "--seed", "3"]
    flags += ["--classifier", "digits"] if method == "likelihood" else []
    assert run([*words, *flags, "--out", str(tmp_path / "out")]) == 0
    defense = dp.LikelihoodMaximization(
        dp.load_denoiser("digits"),
        dp.load_classifier("digits"),
        iterations=2,
        budget=0.1,
        timesteps="uniform:3",
    )
    expected = defense.purify(images, noise_of_images(2, 3, stream=Stream.FORWARD))
    found = torch.stack([read_picture(tmp_path / "out" / f"{name}.png", 1, None) for name in "ab"])
    assert float((found - expected).abs().max()) <= 0.5 / 255 + 1e-4
    assert float((found - images).abs().max()) > 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "iterations: expected an integer ≥ 1, got 0"),
        (
            {"iterations": 2**14 + 1},
            "iterations: expected at most 16384, got 16385",
        ),
        ({"budget": 0.0}, "budget: expected a finite number > 0, got 0.0"),
        ({"budget": -1.0}, "budget: expected a finite number > 0, got -1.0"),
        ({"step": 0.0}, "step: expected a finite number > 0, got 0.0"),
        ({"momentum": -0.5}, "momentum: expected a finite number ≥ 0, got -0.5"),
        ({"norm": "l1"}, "norm: expected one of linf, l2, got 'l1'"),
        ({"variant": "adam"}, "variant: expected one of paper, authors, got 'adam'"),
        (
            {"variant": "authors", "momentum": 0.5},
            "momentum: the variant authors has its own Adam and loss, and takes none",
        ),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        dp.RDC(SmoothDenoiser(), **settings)
    with pytest.raises(ValueError, match=f"^{message}$"):
        dp.LikelihoodMaximization(SmoothDenoiser(), linear_classifier(), **settings)


def test_networks_that_are_refused() -> None:
    denoiser = SmoothDenoiser()
    denoiser.null_label = None
    with pytest.raises(ValueError, match=r"^denoiser: expected a null label, for the unconditional loss"):
        dp.RDC(denoiser)
    with pytest.raises(ValueError, match=r"^denoiser: expected a null label, for the unconditional loss"):
        dp.LikelihoodMaximization(denoiser, linear_classifier())
    means, variances = torch.full((1, *SHAPE), 0.5), torch.full((1,), 0.1)
    unconditional = dp.GaussianMixtureDenoiser(means, variances, sigmas=torch.tensor(LEVELS))
    dp.LikelihoodMaximization(unconditional, linear_classifier())
    with pytest.raises(ValueError, match=r"^denoiser: expected a class-conditional one"):
        dp.RDC(unconditional)
    with pytest.raises(ValueError, match=r"^timesteps: expected 1 ≤ N ≤ 4"):
        dp.RDC(SmoothDenoiser(), timesteps="first:5")
    with pytest.raises(ValueError, match=r"^likelihood_timesteps: expected 1 ≤ N ≤ 4"):
        dp.RDC(SmoothDenoiser(), likelihood_timesteps="first:5")
    with pytest.raises(ValueError, match=r"^likelihood_timesteps: the variant authors has its own"):
        dp.RDC(SmoothDenoiser(), likelihood_timesteps="first:2", variant="authors")
    other = dp.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 3, image_shape=(1, 4, 4))
    with pytest.raises(ValueError, match=r"^classifier: takes \(1, 4, 4\) images, but the denoiser gives"):
        dp.LikelihoodMaximization(SmoothDenoiser(), other)
    narrow = SmoothDenoiser()
    narrow.sigma_max = 0.25
    with pytest.raises(ValueError, match=r"^sigma: expected"):
        dp.LikelihoodMaximization(narrow, linear_classifier(), variant="authors")


def test_attacks_that_need_a_reverse_process_are_refused() -> None:
    defense = settled("linf", 1)
    with pytest.raises(ValueError, match=r"^gradient: surrogate is for .* reverse process, got 'rdc'$"):
        dp.AttackedDefense(defense, "surrogate")
    with pytest.raises(
        ValueError, match=r"^attack: diffattack needs .* reverse process, got exact of 'rdc'$"
    ):
        dp.DiffAttack().check(dp.AttackedDefense(defense), dp.Linf(0.1))


def test_the_command_line_refuses_in_one_line(tmp_path: Path, refused: Refused) -> None:
    save_picture(tmp_path / "a.png", torch.zeros(1, 8, 8))
    words = ["purify", str(tmp_path / "a.png"), "--denoiser", "digits", "--out", str(tmp_path / "out")]
    assert refused([*words, "--defense", "rdc", "--classifier", "digits"]).startswith("--classifier: ")
    line = refused([*words, "--defense", "likelihood:budget=-1"])
    assert line.startswith("--defense: budget: expected")
